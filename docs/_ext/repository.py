"""Pages that are files elsewhere in the repository, and links that leave the folder of the documents.

Guarantees: a file stays where the repository has it, and reads well there; on the site it is a page. A link to such a
file leads to its page, a link to an example to where its source is shown, and a link to any other file of the
repository becomes its text alone: the site has no such file. A link to a file that does not exist is left as it is, so
that MyST reports it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent
PAGES = {
    "ARCHITECTURE.md": "project/architecture",
    "CONTRIBUTING.md": "project/contributing",
    "CHANGELOG.md": "project/changelog",
    "SECURITY.md": "project/security",
    "bench/README.md": "project/benchmarks",
    "src/cmwq/_pool/README.md": "inside/pool",
    "src/cmwq/_sensor/README.md": "inside/sensors",
    "README.md": "index",
}
"""Which page a file of the repository is. The page's own file says only that; the index is a page of its own."""
FILES = {page: file for file, page in PAGES.items() if page != "index"}


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def relink(text: str, here: Path, page: Path) -> str:
    """The text of a file that is in the folder `here`, with links that hold on the page, another file perhaps."""

    def link(match: re.Match[str]) -> str:
        bang, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        name, _, anchor = target.partition("#")
        there = (here / name).resolve()
        if not there.exists():
            return match[0]
        anchor = anchor and f"#{anchor}"
        inside = there.relative_to(ROOT).as_posix()
        if there.is_relative_to(DOCS):
            return f"{bang}[{words}]({os.path.relpath(there, page.parent)}{anchor})"
        if inside in PAGES:
            return f"[{words}]({os.path.relpath(DOCS / f'{PAGES[inside]}.md', page.parent)}{anchor})"
        if inside.startswith("examples"):
            chapter = "programs-that-stall" if inside == "examples/stalls" else slug(there.name)
            return f"[{words}]({os.path.relpath(DOCS / 'examples.md', page.parent)}#{chapter})"
        return words

    parts = re.split(r"(^[ ]*```.*?^[ ]*```$)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, part) for part in parts[::2]]
    return "".join(parts)


def read(app: Any, docname: str, source: list[str]) -> None:
    file = FILES.get(docname)
    page = DOCS / f"{docname}.md"
    path = page if file is None else ROOT / file
    if file is not None:
        app.env.note_dependency(str(path))
    source[0] = relink(path.read_text() if file else source[0], path.parent, page)


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
