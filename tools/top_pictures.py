"""Make the pictures of docs/top.md: `top_pictures.py [FOLDER]` writes SVGs there, by default to docs/images.

They show a process that never was, the story of tests/pictures.py, so that they come out the same each time.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from pictures import Story  # type: ignore[import-not-found]  # noqa: E402 (it is in tests)

from cmwq.observing.top import Top  # noqa: E402
from cmwq.observing.top_details import Details  # noqa: E402
from cmwq.observing.top_source import Over  # noqa: E402

SHOTS = {
    # name: size, light, keys to press, does the process end
    "queues-80x24": ((80, 24), False, [], False),
    "queues-120x40": ((120, 40), False, [], False),
    "workers-light": ((120, 40), True, ["3", "down", "down"], False),
    "details": ((120, 40), False, ["3", "s", "s", "down", "down", "down", "enter"], False),
    "queue-details": ((120, 40), True, ["down", "enter"], False),
    "workers-80x24": ((80, 24), False, ["3"], False),
    "ended": ((120, 40), False, ["3"], True),
}
SECONDS = 90


class Told:
    """The first pictures of the story at once, and then the same again and again, or the end."""

    def __init__(self, ends: bool) -> None:
        self._story = Story(workers=60)
        self._ends = ends
        self._left = SECONDS
        self.last: dict[str, Any] = {}

    @property
    def over(self) -> bool:
        return not self._left

    def picture(self, stacks: bool = False) -> dict[str, Any]:
        if self._left:
            self._left -= 1
            self.last = self._story.next()
        elif self._ends:
            raise Over("process 4242 has ended")
        return self._story.with_stacks(self.last) if stacks else self.last

    def close(self) -> None:
        pass


async def until(pilot: Any, condition: Callable[[], bool]) -> None:
    while not condition():
        await pilot.pause(0.05)


async def shoot(folder: Path, name: str) -> None:
    size, light, keys, ends = SHOTS[name]
    told = Told(ends)
    app = Top(told, "4242", every=0.001, light=light)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: told.over and app.history.picture.get("uptime") == told.last["uptime"])
        await pilot.press(*keys)
        await pilot.pause(0.2)
        await until(
            pilot,
            lambda: (
                app.state == ("ended" if ends else "live")
                and not (isinstance(app.screen, Details) and app.screen.row.get("stack") == [])
            ),
        )
        app._stop.set()  # nothing more is asked
        await pilot.pause(0.2)
        picture = app.export_screenshot(title="cmwq top")
        (folder / f"top-{name}.svg").write_text(re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL))


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else ROOT / "docs/images"
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments[1:] or SHOTS:
        asyncio.run(shoot(folder, name))


if __name__ == "__main__":
    main(sys.argv[1:])
