"""The site in a real browser: it builds without a warning; its pages fit, wide and narrow, light and dark."""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="Playwright isn't installed here")
pytest.importorskip("furo", reason="furo isn't installed here; `make docs` installs it")
pytest.importorskip("myst_parser", reason="MyST isn't installed here; `make docs` installs it")

from conftest import HANG
from playwright import sync_api as playwright

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"wide": (1440, 900), "narrow": (360, 740)}
PAGES = 55  # at least
CHECK = """() => ({
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    pictures: [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src),
    drawings: [...document.querySelectorAll("svg.picture")].filter(s => s.getBoundingClientRect().height < 60).length,
    heading: document.querySelectorAll("h1").length,
    ink: getComputedStyle(document.body).color,
    paper: getComputedStyle(document.body).backgroundColor,
})"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(folder / "doctrees")]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(folder / "html")], capture_output=True, text=True, timeout=10 * HANG
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(HANG)
        server.server_close()


def pages(site: Path) -> list[str]:
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "genindex.html")


def test_the_site_has_its_pages_and_lists_the_links_that_leave_it(site: Path) -> None:
    assert len(pages(site)) >= PAGES
    listed = (site / "external-links.txt").read_text().splitlines()
    assert listed == sorted(listed)
    assert any(line.startswith("https://ui.perfetto.dev") for line in listed)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_fits_and_is_whole(chromium: Any, address: str, site: Path, size: str, scheme: str) -> None:
    width, height = SIZES[size]
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    problems: list[str] = []
    page = context.new_page()
    page.set_default_timeout(HANG * 1000)
    page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
    page.on("console", lambda said: said.type in ("error", "warning") and problems.append(f"{page.url}: {said.text}"))

    def failed(request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the next page was opened before the icon was there
            problems.append(f"{page.url}: {request.url}: {request.failure}")

    page.on("requestfailed", failed)
    page.on("request", lambda request: request.url.startswith(address) or problems.append(f"leaves: {request.url}"))
    for name in pages(site):
        page.goto(f"{address}/{name}", wait_until="load")
        found = page.evaluate(CHECK)
        if found["overflow"] > 0:
            problems.append(f"{name}: {found['overflow']} px too wide")
        problems += [f"{name}: {picture} is missing" for picture in found["pictures"]]
        if found["drawings"]:
            problems.append(f"{name}: {found['drawings']} drawings are flat")
        if found["heading"] != 1 and name != "search.html":
            problems.append(f"{name}: {found['heading']} headings of the first order")
        light = sum(map(int, found["paper"][4:-1].split(",")[:3])) > 3 * 128
        if light != (scheme == "light"):
            problems.append(f"{name}: {scheme}, and the paper is {found['paper']}")
    context.close()
    assert problems == []


def test_the_search_finds_a_page(chromium: Any, address: str) -> None:
    page = chromium.new_page()
    page.goto(f"{address}/search.html?q=debounce")
    found = page.locator("#search-results a").first
    playwright.expect(found).to_be_visible(timeout=HANG * 1000)
    page.close()
