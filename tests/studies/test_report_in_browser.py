"""Report pages in a real browser, at the width of a phone: quiet, whole and asking for nothing.

Slow tests (`make test-all`): they need Chromium, which no requirement of the project installs, and
fail with its name where it is missing (Debian, Ubuntu: `apt-get install chromium`).
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qfleet.command_line.cli import main

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE_PX, DESK_PX = 390, 1280
STUDIES = sorted((Path(__file__).resolve().parents[2] / "docs" / "studies").glob("*.html"))

# A window may not be narrower than 500 pixels, a frame may. What it measures it tells its parent.
FRAME = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<script>addEventListener("message", (event) => {{ document.title = event.data; }});</script>
<iframe src="page.html" width="{width}" height="800" style="border: 0"></iframe>"""
MEASURE = """<script>addEventListener("load", () => parent.postMessage(JSON.stringify({
  width: innerWidth,
  content: document.documentElement.scrollWidth,
  asked: performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:")),
  broken: [...document.images].filter((image) => !image.naturalWidth).length,
  pictures: [...document.querySelectorAll("svg")].filter(
    (picture) => picture.getBoundingClientRect().height > 50).length,
}), "*"));</script></body>"""


@pytest.fixture
def chromium() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail(f"this test needs a browser, one of {', '.join(NAMES)}; none is on the path")
    return found


def shown(
    chromium: str, page: str, width_px: int, folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """What a browser of that width measures on `page`, and the lines of its console."""
    assert page.count("</body>") == 1
    folder.mkdir()
    (folder / "page.html").write_text(page.replace("</body>", MEASURE), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width_px), encoding="utf-8")
    done = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--enable-logging=stderr", "--v=0", "--no-first-run", "--hide-scrollbars"),
            f"--user-data-dir={folder / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND",  # what it asks for fails at once, and is told
            f"--window-size={width_px + 100},1000",
            *("--virtual-time-budget=5000", "--dump-dom", (folder / "frame.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(title[1])), console


@pytest.fixture
def command_page(make_run, tmp_path: Path) -> str:
    """Of `qfleet report`: two arms, one with a name as long as they come, one run failed."""
    changes = {"target_update_period_learner_steps": 12_345, "updates_per_call": 7}
    runs = [make_run(f"a{seed}", seed=seed) for seed in (1, 2, 3)]
    runs += [make_run(f"b{seed}", seed=seed, learner=changes) for seed in (1, 2)]
    runs.append(make_run("b3", seed=3, learner=changes, status="failed", exit_code=5))
    page = tmp_path / "report.html"
    assert main(["report", *map(str, runs), "-o", str(page)]) == 0
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("width_px", [PHONE_PX, DESK_PX])
def test_page_of_the_command_fits_and_is_quiet(chromium, command_page, width_px, tmp_path) -> None:
    found, console = shown(chromium, command_page, width_px, tmp_path / "shown")

    assert console == []
    assert (found["width"], found["content"]) == (width_px, width_px)
    assert (found["asked"], found["broken"]) == ([], 0)
    assert found["pictures"] == command_page.count("<svg") == 5


@pytest.mark.parametrize("page", STUDIES, ids=lambda page: page.name)
def test_pages_of_studies_fit_a_phone_and_are_quiet(chromium, page, tmp_path) -> None:
    found, console = shown(chromium, page.read_text("utf-8"), PHONE_PX, tmp_path / "shown")

    assert console == []
    assert (found["width"], found["content"]) == (PHONE_PX, PHONE_PX)
    assert (found["asked"], found["broken"]) == ([], 0)
    assert found["pictures"] > 0


def test_a_page_that_is_none_of_it_is_seen_through(chromium, tmp_path) -> None:
    """What the other tests ask for can be missed: each thing once, on purpose."""
    page = (
        '<!doctype html><body><div style="width: 700px">wide</div>'
        '<img src="http://elsewhere.invalid/picture.png">'
        '<script>console.error("a mistake")</script></body>'
    )

    found, console = shown(chromium, page, PHONE_PX, tmp_path / "shown")

    assert found["content"] > found["width"] == PHONE_PX
    assert found["asked"] == ["http://elsewhere.invalid/picture.png"]
    assert (found["broken"], found["pictures"]) == (1, 0)
    assert any("a mistake" in line for line in console)
