"""Imports point one way: nets <- analysis <- policies <- training <- growthrings <- run."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("nets", "analysis", "policies", "training", "growthrings", "run")
MODULES = ("growthrings", "run")
FILES = [
    path
    for floor in FLOORS
    for path in (
        [ROOT / f"{floor}.py"] if floor in MODULES else sorted((ROOT / floor).rglob("*.py"))
    )
]


def imported(source, package):
    """Names of all modules that a file imports, wherever in it, with the line.

    What it does as the program itself is left out: `python -m growthrings` hands on to run.
    """
    found, tree = [], ast.parse(source)
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            name = f"{package}.{node.module or ''}" if node.level else node.module
            found.append((name, node.lineno))
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func).lower():
            for argument in node.args[:1]:  # import_module(f"nets.{name}"), __import__("nets")
                parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                first = parts[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.append((first.value, node.lineno))
    return found


def floor_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_a_floor_above_it(path):
    own = FLOORS.index(floor_of(path))
    above = {
        (name, line)
        for name, line in imported(path.read_text(), floor_of(path))
        if name.split(".")[0] in FLOORS[own + 1 :]
    }
    assert not above


def test_every_floor_is_walked_and_uses_those_below():
    below = {floor: set() for floor in FLOORS}
    for path in FILES:
        names = {name.split(".")[0] for name, _ in imported(path.read_text(), floor_of(path))}
        below[floor_of(path)] |= names & set(FLOORS)
    assert below["nets"] == {"nets"}
    assert below["analysis"] == {"nets", "analysis"}
    assert {"nets", "analysis"} <= below["policies"]
    assert {"nets", "analysis", "policies"} <= below["training"]
    assert below["growthrings"] == {"nets", "analysis", "policies", "training"}
    assert {"analysis", "training"} <= below["run"]


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module):
    """Name the room of a module: its floor's folder, or itself where it stands in none."""
    return ".".join(module.split(".")[:2])


def uses():
    """Map every module to those that it imports."""
    known = {module_of(path): path for path in FILES}
    found = {}
    for module, path in known.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        names = {name for name, _ in imported(path.read_text(), package)}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        found[module] = names & set(known) - {module}
    return found


def circles(graph):
    """Give what is left after all that imports nothing else of what is left has been taken away."""
    left = {name: set(others) for name, others in graph.items()}
    while free := {name for name, others in left.items() if not others & set(left)}:
        left = {name: others for name, others in left.items() if name not in free}
    return sorted(left)


def inner(graph):
    """Leave the floors' fronts out, which give the names of all their rooms."""
    return {name: {o for o in others if "." in o} for name, others in graph.items() if "." in name}


def test_no_files_import_each_other():
    assert not circles(inner(uses()))


def test_no_rooms_import_each_other():
    rooms = {}
    for module, others in inner(uses()).items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, others))
    assert not circles({room: others - {room} for room, others in rooms.items()})


def test_no_file_imports_the_front_of_its_own_floor():
    for module, others in uses().items():
        floor, _, inside = module.partition(".")
        assert not inside or floor not in others, module


@pytest.mark.parametrize("floor", ["nets", "analysis", "training"])
def test_every_room_is_small_and_says_what_is_inside(floor):
    rooms = [path for path in (ROOT / floor).iterdir() if any(path.glob("*.py"))]
    assert rooms
    for room in rooms:
        words = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
        assert words is not None
        assert len(re.findall(r"\.(?=\s|$)", words)) == 2, f"{room.name}: two sentences"
        assert len(list(room.glob("*.py"))) <= 10, f"{room.name}: at most nine files and its front"


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "source",
    [
        "import training.running.loop",
        "from training import loop",
        "def f():\n    from training.running.loop import train",
        "if TYPE_CHECKING:\n    import training",
        "import_module('training.running.loop')",
        "import_module(f'training.{name}')",
        "__import__('training')",
    ],
)
def test_the_walk_sees_every_kind_of_import(source):
    assert {name.split(".")[0] for name, _ in imported(source, "nets")} == {"training"}
