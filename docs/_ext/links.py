"""Links to other sites are listed in external-links.txt: an address, and a page that has it. None is fetched.

Links within the site are checked by Sphinx and MyST: one that leads nowhere is a warning, and so an error. The list
is of all pages, also of those that did not have to be built anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes


def write(app: Any, exception: Exception | None) -> None:
    if exception is not None or app.builder.format != "html":
        return
    found = {
        f"{reference['refuri']} {page}\n"
        for page in app.env.found_docs
        for reference in app.env.get_doctree(page).findall(nodes.reference)
        if reference.get("refuri", "").startswith(("http:", "https:"))
    }
    Path(app.outdir, "external-links.txt").write_text("".join(sorted(found)))


def setup(app: Any) -> dict[str, bool]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
