"""The site: `make docs` builds it into out/site. Every warning is an error, links that lead nowhere included.

Nothing is fetched: pictures are drawn by `_ext/pictures.py`, two of them from runs of the simulator, and links to other
sites are only listed (`_ext/links.py`), in out/site/external-links.txt.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.pycode import ModuleAnalyzer

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_ext"))

import cmwq  # noqa: E402  # after the path is set, like the extensions

# The class calls itself ThreadPoolExecutor, for programs that look at that. Here it has its own name.
cmwq.Executor.__name__ = cmwq.Executor.__qualname__ = "Executor"

project = "cmwq"
author = "the cmwq authors"
project_copyright = "the cmwq authors. MIT licence"
release = version = cmwq.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "docstrings", "repository", "pictures", "commands", "links"]
exclude_patterns = ["_ext"]
source_suffix = {".md": "markdown"}
root_doc = "index"
language = "en"

myst_enable_extensions = ["colon_fence", "deflist", "html_image"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "cmwq"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}


def setup(app: object) -> None:
    # Of an overloaded method the page says the signature: Sphinx would print the overloads with `~P` for parameters.
    analyzer = ModuleAnalyzer.for_module("cmwq._workqueue.queue")
    analyzer.analyze()
    analyzer.overloads.clear()
    app.add_lexer("output", TextLexer)  # type: ignore[attr-defined]
