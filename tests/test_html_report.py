"""The report: one file with tables and pictures that opens without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from runs import quiet
from test_comparison import small

from analysis.reporting import capacity_pictures
from analysis.reporting.html_report import html_of
from nets import Insert, SetSurvival, Widen, WidenStage, cost, preset, seed_of
from policies import Never, Periodic, RandomSite
from training.comparing.comparison import compare
from training.settings.compare_settings import Cell
from training.settings.start_settings import Start

CELLS = {
    "static-quarter": Cell(Never(), Start(0.25, None)),
    "static-full": Cell(Never()),
    "periodic": Cell(Periodic()),
    "random-site": Cell(RandomSite()),
}
TITLES = {
    "Score over training FLOPs and over time": 2,
    "Final scores, every seed": 1,
    "Each row beside the frontier": 4,
    "Architectures over time": 2,
    "Where each row put its capacity": 1,
    "Layer statistics at the end": 4,
}
"""How many pictures each part has."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison."""
    out = tmp_path_factory.mktemp("report") / "a <b>"
    compare(small(out, cells=CELLS, epochs=0.2, primary="periodic vs random-site"), quiet)
    return out


def test_the_report_holds_tables_pictures_command_and_environment(folder):
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == page.count("</svg>") == sum(TITLES.values())
    for title in TITLES:
        assert f"<h2>{title}</h2>" in page
    for name in CELLS:
        assert f"<td>{name}</td>" in page
        assert f">{name}</text>" in page  # in a picture
    verdict, table = page.index('<p class="verdict">'), page.index("<table>")
    assert verdict < table < page.index("<svg")
    assert "Primary comparison, named beforehand: <b>periodic - random-site</b>" in page
    assert "python: 3." in page
    assert "torch: " in page
    assert "<h2>Command</h2><pre>python " in page
    assert "net: resnet8" in page
    assert "<title>a &lt;b&gt;</title>" in page


def test_the_page_is_read_dark_and_printed(folder):
    page = (folder / "report.html").read_text()
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    pictures = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "currentColor" in pictures
    hatched = re.sub(r"<pattern.*?</pattern>", "", pictures, flags=re.DOTALL)
    for ink in ("#000000", "#ffffff"):  # would not be seen, or would be a white sheet
        assert f"fill: {ink}" not in hatched


def test_the_report_names_no_address(folder):
    page = (folder / "report.html").read_text()
    assert "http" not in page.split("<h2>Command")[0]
    assert not re.search(r"\ssrc=|@import|url\((?!#)", page)
    links = re.findall(r'href="([^"]*)"', page)
    assert all(link.startswith(("#", "data:")) for link in links)


def test_the_same_comparison_gives_the_same_report(folder):
    before = (folder / "report.html").read_bytes()
    compare(small(folder, cells=CELLS, epochs=0.2, primary="periodic vs random-site"), quiet)
    assert (folder / "report.html").read_bytes() == before


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1400, 400])
def test_a_browser_opens_it_and_asks_for_nothing_else(folder, tmp_path, width):
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            asked.append(f"{self.path} {int(code)}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    words = "chromium --headless --no-sandbox --disable-gpu --disable-background-networking"
    more = [f"--window-size={width},900", f"--user-data-dir={tmp_path}", "--enable-logging=stderr"]
    address = f"http://127.0.0.1:{server.server_port}/report.html"
    command = [*words.split(), *more, "--virtual-time-budget=3000", "--dump-dom", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/report.html 200"]
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg") == sum(TITLES.values())
    assert done.stdout.count("<table>") == 3


def test_our_markdown_becomes_html():
    text = "a **b** < c\n\n| x   | y |\n| --- | -: |\n| <1> | 2 |"
    assert html_of(text) == (
        '<p>a <b>b</b> &lt; c</p>\n<div class="wide"><table><thead><tr><th>x</th><th>y</th></tr>'
        "</thead><tbody><tr><td>&lt;1&gt;</td><td>2</td></tr></tbody></table></div>"
    )


def test_capacity_is_counted_by_stage_and_kind():
    from analysis import Record

    limit = preset("resnet20")
    first = seed_of(limit, 0.5, 1)
    actions = (
        Widen("stage1.block1", 4),
        SetSurvival("stage1.block1", 0.5),
        Insert("stage3.block1", 8),
        Widen("stage3.block2", 2),  # the newborn
        WidenStage("stage2", 2),
    )
    record = Record(
        step=1, epoch=1.0, spent=0.1, seed=0, architecture=first, limit=cost(limit), applied=actions
    )
    last, sizes = first, [cost(first).flops]
    for action in actions:
        last = last.apply(action)
        sizes.append(cost(last).flops)
    steps = [after - before for before, after in pairwise(sizes)]
    assert capacity_pictures._added([record]) == {
        (0, "widened"): steps[0],
        (2, "inserted"): steps[2],
        (2, "widened"): steps[3],
        (1, "widened"): steps[4],
    }
