"""The pages of docs/ as a site: links, places in its order, tables and code, without MkDocs."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml
from runs import quiet, script, short_comparison

import policies
from analysis import LayerReading, Record
from policies import Never, Periodic, Policy
from training import Cell, compare

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
POLICIES = [
    each
    for each in (getattr(policies, name) for name in policies.__all__)
    if inspect.isclass(each) and issubclass(each, Policy) and each is not Policy
]


def prose(text: str) -> str:
    """Leave out blocks and inline code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Give the anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.is_file(), target
        if page.parent != ROOT:
            assert DOCS in path.parents, f"{target}: the site has what is in docs/"
        assert not anchor or anchor in anchors(path), target


def test_the_front_page_of_the_site_is_the_readme_with_links_from_docs():
    text = script(DOCS / "first_page.py").front((ROOT / "README.md").read_text())
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    assert len(targets) > 10
    assert all((DOCS / target.partition("#")[0]).is_file() for target in targets)


def places(nav: object) -> list[str]:
    """Give the pages of a nav in their order."""
    if isinstance(nav, str):
        return [nav]
    inside = nav.values() if isinstance(nav, dict) else nav
    return [page for each in inside for page in places(each)]


def test_every_page_has_its_place_in_the_site():
    named = places(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert sorted(named) == sorted(["index.md", *pages])
    readme = (ROOT / "README.md").read_text()
    assert all(f"(docs/{page})" in readme for page in pages if not page.startswith("api/"))
    for floor in ("nets", "analysis", "policies", "training"):
        assert f"\n::: {floor}\n" in (DOCS / "api" / f"{floor}.md").read_text()


@pytest.mark.parametrize("kind", [Record, LayerReading])
def test_the_tables_of_fields_name_every_field(kind):
    text = (DOCS / "policies.md").read_text()
    (table,) = re.findall(rf"^\| field of a {kind.__name__} \|.*?\n\n", text, re.M | re.S)
    first = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = [name for cell in first for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(named) == sorted(item.name for item in fields(kind))


@pytest.mark.parametrize("kind", POLICIES, ids=lambda kind: kind.__name__)
def test_the_gallery_has_every_policy_with_its_settings_and_picture(kind):
    text = (DOCS / "gallery.md").read_text()
    settings = [
        item.name if item.default is MISSING else f"{item.name}={item.default!r}"
        for item in fields(kind)
    ]
    assert f"\n| `{kind.__name__}` | " in text
    assert f"\n### {kind.__name__}\n\n`{kind.__name__}({', '.join(settings)})`" in text
    assert kind is Never or f"](pictures/policies/{kind.__name__}.png)" in text


def test_pictures_are_small_and_all_shown():
    pictures = {path for path in (DOCS / "pictures").rglob("*") if path.is_file()}
    assert sum(path.stat().st_size for path in pictures) < 1_000_000
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    assert shown == pictures


def code_of(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


def test_the_loop_of_the_page_runs_as_printed(capsys):
    code = code_of("own_loop.md")[0]
    assert code == (ROOT / "examples" / "own_loop.py").read_text()
    exec(code, {})
    assert "is wider by 8; outputs moved by" in capsys.readouterr().out


def test_a_policy_decides_in_a_loop_of_ones_own_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(code_of("own_loop.md")[1], {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[2] == "[]" for line in lines] == [
        True,
        False,
        True,
        False,
        True,
        True,
    ]
    assert list((tmp_path / "runs" / "own").glob("events*"))


def test_a_torchvision_resnet_grows_as_printed(capsys):
    exec(code_of("own_loop.md")[2], {})
    said = capsys.readouterr().out
    assert float(said.removeprefix("outputs moved by ")) < 1e-4


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """A comparison in runs/digits of a folder, of two rows with one seed."""
    folder = tmp_path_factory.mktemp("site") / "runs" / "digits"
    rows = {"static": Cell(Never()), "periodic": Cell(Periodic(every=1))}
    compare(short_comparison(folder, cells=rows, seeds=[0], epochs=0.1), quiet)
    return folder


def test_a_comparison_is_read_as_printed(comparison, monkeypatch, capsys):
    monkeypatch.chdir(comparison.parents[1])
    exec(code_of("files.md")[0], {})
    static, periodic, columns = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"static 0 0\.\d+ \[\]", static)
    assert re.fullmatch(r"periodic 0 0\.\d+ \[\d+.*\]", periodic)
    assert columns.startswith("['row', 'seed', ")


def test_the_page_of_files_has_every_name_that_stands_in_them(comparison):
    run = comparison / "periodic" / "seed0"
    names = {path.name for path in (*run.iterdir(), *comparison.glob("*.*"))}
    for file in ("summary", "data"):
        names |= set(json.loads((run / f"{file}.json").read_text()))
    for table in (run / "metrics.csv", run / "losses.csv", comparison / "comparison.csv"):
        names |= set(table.read_text().splitlines()[0].split(","))
    said = set(re.findall(r"`([^`]+)`", (DOCS / "files.md").read_text()))
    said |= {name.removesuffix("/") for name in said}
    assert {name for name in names if "tfevents" not in name} <= said
