"""Links to other sites are listed in external-links.txt: an address, and a page that has it. None is fetched.

Links within the site are checked by Sphinx and MyST: one that leads nowhere is a warning, and so an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes

found: dict[str, set[str]] = {}


def collect(app: Any, doctree: nodes.document, docname: str) -> None:
    for reference in doctree.findall(nodes.reference):
        address = reference.get("refuri", "")
        if address.startswith(("http:", "https:")):
            found.setdefault(address, set()).add(docname)


def write(app: Any, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        lines = [f"{address} {page}\n" for address, pages in sorted(found.items()) for page in sorted(pages)]
        Path(app.outdir, "external-links.txt").write_text("".join(lines))


def setup(app: Any) -> dict[str, bool]:
    app.connect("doctree-resolved", collect)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
