"""The output in docs/stalls.md, made anew: each program of examples/stalls is run until it stalls, and dumped.

    python tools/stalls.py            # rewrites the blocks of the page, and docs/images/dump.svg
    python tools/stalls.py NAME       # prints one

A block of the page follows a line `<!-- cmwq dump: NAME -->`. What differs on each machine is left out: where the
repository and Python are.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cmwq.cli.blocks import plain, print_rich
from cmwq.cli.sections import page
from cmwq.observing.client import Connection, connect

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/stalls.md"
PICTURE = ROOT / "docs/images/dump.svg"
SHOWN = "lock_held"
WIDTH = 80
SECONDS = 8.0  # until every program has stalled, and what stalls was reported
BLOCK = re.compile(r"(<!-- cmwq dump: (\w+) -->\n```text\n).*?(```\n)", re.DOTALL)
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Fira Code, Menlo, Consolas, DejaVu Sans Mono, monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""As rich draws it, but for fonts that would be loaded from elsewhere."""


def main() -> None:
    if sys.argv[1:]:
        print(plain(page(stalled(sys.argv[1])), WIDTH))
        return
    pictures = {name: stalled(name) for _, name, _ in BLOCK.findall(PAGE.read_text())}
    PAGE.write_text(
        BLOCK.sub(lambda found: f"{found[1]}{plain(page(pictures[found[2]]), WIDTH)}\n{found[3]}", PAGE.read_text())
    )
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn(pictures[SHOWN]))


def stalled(name: str) -> dict[str, Any]:
    """The picture of the program, stalled."""
    program = ROOT / f"examples/stalls/{name}.py"
    command = [sys.executable, str(program.relative_to(ROOT))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            with connect(pid) as connection:
                picture = settled(connection)
        finally:
            process.kill()
    words = json.dumps(picture).replace(json.dumps(f"{ROOT}{os.sep}")[1:-1], "")
    anywhere: dict[str, Any] = json.loads(words)
    anywhere["command"] = ["python", *anywhere["command"][1:]]
    return anywhere


def settled(connection: Connection) -> dict[str, Any]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(0.5)
    return connection.picture(stacks=True)


def drawn(picture: dict[str, Any]) -> str:
    """The text in colours, as a drawing."""
    from rich.console import Console

    console = Console(
        record=True, width=WIDTH + 1, file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=False
    )
    print_rich(page(picture), WIDTH, console)
    return console.export_svg(title="cmwq dump", code_format=SVG, unique_id="dump")


if __name__ == "__main__":
    main()
