"""What is installed: every package and module, typed; and `import growthrings` with all names."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

import analysis
import growthrings
import nets
import policies
import run
import training

ROOT = Path(__file__).parents[1]
FLOORS = ("nets", "analysis", "policies", "training")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DESIGNED = [
    "Architecture",
    "Stage",
    "Block",
    "Cost",
    "preset",
    "seed_of",
    "build",
    "grow",
    "cost",
    "from_torchvision",
    "Widen",
    "WidenStage",
    "Insert",
    "Remove",
    "Narrow",
    "Freeze",
    "Unfreeze",
    "SetSurvival",
    "Observer",
    "LayerReading",
    "Record",
    "read_history",
    "Policy",
    "Never",
    "Periodic",
    "RandomSite",
    "Plateau",
    "LayerStatistic",
    "StochasticDepth",
]


def python(*words: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_of_all_floors_are_here():
    names = set(growthrings.__all__)
    assert names >= set(DESIGNED)
    assert len(names) == len(growthrings.__all__)  # no two floors share a name
    for floor in (nets, analysis, policies, training):
        assert names >= set(floor.__all__)
        for name in floor.__all__:
            assert getattr(growthrings, name) is getattr(floor, name)
    assert set(dir(growthrings)) >= names
    with pytest.raises(AttributeError, match="module 'growthrings' has no attribute 'nope'"):
        growthrings.nope  # noqa: B018


def test_import_growthrings_waits_with_torch(tmp_path):
    code = "import sys, growthrings; assert growthrings.preset and growthrings.Train; "
    code += "assert 'torch' not in sys.modules; from growthrings import *; "
    code += "assert 'torch' in sys.modules; print(build(preset('mlp-4')), Plateau())"
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    assert "Plateau(" in python("-c", path + code, cwd=tmp_path)


def test_the_version_is_said_once_and_everywhere(capsys):
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "training.__version__"}
    assert growthrings.__version__ == training.__version__
    cite = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cite["version"] == growthrings.__version__
    with pytest.raises(SystemExit) as stop:
        run.main(["--version"])
    assert stop.value.code in (0, None)
    assert capsys.readouterr().out == f"growthrings {growthrings.__version__}\n"


def test_the_module_is_the_command_whatever_the_folder_holds(tmp_path):
    (tmp_path / "run.py").write_text("raise SystemExit('not this one')\n")
    start = f"import sys, runpy; sys.path[0] = ''; sys.path.append({str(ROOT)!r}); "
    start += "sys.argv[1:] = ['--version']; runpy.run_module('growthrings', run_name='__main__')"
    told = python("-c", start, cwd=tmp_path)
    assert told == f"growthrings {growthrings.__version__}\n"
    assert python("-m", "growthrings", "--version", cwd=ROOT) == told


@pytest.mark.parametrize("name", FLOORS)
def test_what_hides_a_floor_is_named(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("")
    code = f"import sys; sys.path.insert(0, ''); sys.path.append({str(ROOT)!r}); "
    code += "\ntry: import growthrings\nexcept ImportError as error: print(error)"
    told = f"{tmp_path / name}.py hides the {name} of growthrings: rename it, or start elsewhere\n"
    assert python("-c", code, cwd=tmp_path) == told


def test_all_packages_and_modules_are_installed_and_typed():
    """As setuptools finds them: a folder in a floor is shipped if a pattern names it."""
    tools = PROJECT["tool"]["setuptools"]
    patterns = tools["packages"]["find"]["include"]
    for floor in FLOORS:
        assert (ROOT / floor / "py.typed").is_file()
        for path in (ROOT / floor).rglob("*.py"):
            package = path.parent.relative_to(ROOT)
            assert (ROOT / package / "__init__.py").is_file()
            assert any(fnmatch(".".join(package.parts), pattern) for pattern in patterns)
    assert any(fnmatch("nets.plan", pattern) for pattern in patterns)
    assert not any(fnmatch(name, p) for name in ("tests", "benchmarks", "data") for p in patterns)
    assert tools["package-data"] == {"*": ["py.typed"]}
    assert set(tools["py-modules"]) == {path.stem for path in ROOT.glob("*.py")}
    assert PROJECT["project"]["scripts"] == {"growthrings": "run:main"}
