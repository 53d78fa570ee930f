"""Imports point one way: nets <- analysis <- policies <- training <- growthrings <- run."""

import ast
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
