"""Make the pictures of docs/top.md: `top_pictures.py [FOLDER]` writes SVGs there, by default to docs/images.

They show a process that never was, the story of tests/pictures.py, so that they come out the same each time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from pictures import Story  # noqa: E402

from cmwq.observing.top import Top  # noqa: E402
from cmwq.observing.top_source import Over  # noqa: E402

SHOTS = {
    # name: size, light, keys to press, does the process end
    "queues-80x24": ((80, 24), False, [], False),
    "queues-120x40": ((120, 40), False, [], False),
    "functions-light": ((120, 40), True, ["2"], False),
    "workers": ((120, 40), False, ["3", "down", "down"], False),
    "details": ((120, 40), False, ["3", "s", "s", "down", "down", "down", "enter"], False),
    "queue-details": ((120, 40), True, ["down", "enter"], False),
    "pools-80x24": ((80, 24), True, ["4"], False),
    "ended": ((120, 40), False, ["3"], True),
    "help": ((80, 24), False, ["question_mark"], False),
}
SECONDS = 90


class Told:
    """The first pictures of the story at once, and then the same again and again, or the end."""

    def __init__(self, ends: bool) -> None:
        self._story = Story(workers=60)
        self._ends = ends
        self.left = SECONDS
        self._last: dict[str, Any] = {}

    def picture(self, stacks: bool = False) -> dict[str, Any]:
        if self.left:
            self.left -= 1
            self._last = self._story.next()
        elif self._ends:
            raise Over("process 4242 has ended")
        return self._story.with_stacks(self._last) if stacks else self._last

    def close(self) -> None:
        pass


async def shoot(folder: Path, name: str) -> None:
    size, light, keys, ends = SHOTS[name]
    told = Told(ends)
    app = Top(told, "4242", every=0.001, light=light)
    async with app.run_test(size=size) as pilot:
        until = time.monotonic() + 60
        while (told.left or (ends and app.state != "ended")) and time.monotonic() < until:
            await pilot.pause(0.05)
        if not ends:
            app.paused = True
            app.state = "live"
        await pilot.press(*keys)
        await pilot.pause(0.3)
        app._write()
        await pilot.pause(0.1)
        (folder / f"top-{name}.svg").write_text(app.export_screenshot(title=f"cmwq top: {name}"))


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else ROOT / "docs/images"
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments[1:] or SHOTS:
        asyncio.run(shoot(folder, name))


if __name__ == "__main__":
    main(sys.argv[1:])
