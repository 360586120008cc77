"""The pictures of the dashboard in the documentation: `python tests/observing/screenshots.py [NAME ...]`.

Writes docs/images/dashboard-NAME.png, of programs that are made up (`load`). It needs Playwright, Chromium and, to make
the files small, Pillow.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from playwright import sync_api as playwright

from cmwq.observing.dashboard.serving import Dashboard, Settings
from cmwq.observing.dashboard.sources import Link, Over, Target
from observing.load import KINDS, Load

ROOT = Path(__file__).resolve().parent.parent.parent
SHOTS: dict[str, tuple[str, dict[str, Any]]] = {
    "loaded": ("loaded", {"full": True}),
    "dark": ("loaded", {"color_scheme": "dark", "full": True}),
    "stalled": ("stalled", {"height": 820}),
    "worker": ("loaded", {"details": True, "height": 760}),
    "idle": ("idle", {"height": 820}),
    "narrow": ("loaded", {"width": 390, "height": 1500}),
    "large": ("large", {"height": 900}),
}
BEFORE = 500  # pictures that lie in the past when the page is opened


class Program:
    """A source of one process, whose last minutes have passed already."""

    paced = True

    def __init__(self, kind: str) -> None:
        self.load = Load(**KINDS[kind])
        before = BEFORE if self.load.size < 1000 else 60
        self.load.time = time.time() - before
        self.load.begun = self.load.time - 8000
        self.load.stall_from = time.time() - 30
        self.closed = threading.Event()

    def targets(self) -> list[Target]:
        return [Target(18211, "python -m shop.worker", source=self)]

    def connect(self, target: Target) -> Link:
        return self

    def picture(self, stacks: bool) -> dict[str, Any]:
        self.load.step()
        self.closed.wait(max(0.0, self.load.time - time.time()))
        if self.closed.is_set():
            raise Over("The dashboard has ended.")
        return self.load.picture(True)

    def close(self) -> None:
        self.closed.set()


def shoot(browser: Any, address: str, name: str, options: dict[str, Any]) -> None:
    size = {"width": options.get("width", 1440), "height": options.get("height", 900)}
    scheme = options.get("color_scheme", "light")
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("#figure-running")
    time.sleep(3)
    if options.get("details"):
        page.locator("#workers .rows .row").nth(1).click()
        time.sleep(2)
    path = ROOT / f"docs/images/dashboard-{name}.png"
    page.screenshot(path=path, full_page=options.get("full", False))
    context.close()
    shrink(path)


def shrink(path: Path) -> None:
    try:
        from PIL import Image
    except ImportError:
        return
    with Image.open(path) as image:
        image.convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)


def main(names: list[str]) -> None:
    (ROOT / "docs/images").mkdir(exist_ok=True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in names or SHOTS:
            kind, options = SHOTS[name]
            told: list[str] = []
            dashboard = Dashboard(Program(kind), Settings(search=False))
            serving = threading.Thread(target=dashboard.serve, args=(told.append,))
            serving.start()
            while not told:
                time.sleep(0.1)
            time.sleep(3 if kind != "large" else 15)
            try:
                shoot(browser, told[0], name, options)
            finally:
                dashboard.stop()
                serving.join()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
