"""How Sphinx makes the site: .venv/bin/sphinx-build -W -n -c docs . build/site

The repository is the source, so that each link leads to the same page there as on GitHub.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from geventws import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "geventws"
release = version = __version__
project_copyright = "the authors of geventws, MIT licence"
root_doc = "docs/index"
include_patterns = ["CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "benchmarks/*.md", "examples/*/*.md"]
exclude_patterns = [".*", "build", "geventws", "tests", "**/node_modules"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinxcontrib.mermaid"]
myst_heading_anchors = 4  # as GitHub makes them
myst_fence_as_directive = ["mermaid"]
mermaid_height = "auto"
mermaid_fullscreen = False
smartquotes = False  # quotes are Python's
# Our own names must lead somewhere, but for type variables; others' are not linked.
nitpick_ignore_regex = [("py:.*", r"(?!geventws\b).*|geventws\.(flask\.View|gateway\.Gateway|rooms\.\w*Listener)")]
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"geventws {__version__}"
html_copy_source = False
html_show_sphinx = False
html_additional_pages = {"index": "redirect.html"}
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]

LINK = re.compile(r"\]\(([\w./-]+)\.md\)")


def contents(text: str) -> str:
    """Return the directives by which the site has the pages that a text links to, under its headings."""
    found = []
    seen: set[str] = set()
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        pages = [page for page in dict.fromkeys(LINK.findall(section)) if page not in seen]
        seen |= {*pages}
        if pages:
            caption = section.partition("\n")[0].strip("# ")
            found.append(f"```{{toctree}}\n---\nhidden:\ncaption: {caption}\n---\n{chr(10).join(pages)}\n```\n")
    return "\n".join(found)


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname in {root_doc, "benchmarks/README"}:
        source[0] += "\n" + contents(source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_contents)
    return {"parallel_read_safe": True}
