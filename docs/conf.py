"""Makes the site of these pages: `tox run -e docs` writes it to `dist/site`.

Sphinx, with a theme and a Markdown parser that are maintained, and warnings as errors.  The pages are plain Markdown,
which a code host shows as it is: nothing of Sphinx stands in them.  The navigation is `index.md`: its headings, and
below each the pages in the order in which it links to them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import layerport

sys.path.insert(0, str(Path(__file__).parent))
import list_api
import list_errors

project = "layerport"
version = release = layerport.__version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"layerport {version}"
html_show_copyright = False
html_copy_source = False
myst_heading_anchors = 3


def navigation(index: str) -> str:
    """The tables of contents, hidden, that the headings and links of the index page say."""
    lines = []
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        pages = dict.fromkeys(re.findall(r"\]\((\w+)\.md\)", section))
        if pages:
            lines += ["", "```{toctree}", ":hidden:", f":caption: {section.splitlines()[0]}", "", *pages, "```"]
    return "\n".join(lines) + "\n"


def read(app: Any, name: str, source: list[str]) -> None:
    """Give pages what only the site has; Markdown elsewhere in the repository is to download, as other files are."""
    source[0] = re.sub(r"\]\((\.\./[\w/.-]+\.md)", r"](path:\1", source[0])
    if name == "index":
        source[0] += navigation(source[0])
    if name == "errors":
        source[0] += list_errors.page()
    if name == "api":
        source[0] += list_api.page()
    if name == "layer_tables":
        import list_layers  # it needs the built-in layers, and runs beside benchmarks/ only

        source[0] += list_layers.page()
    if name == "reference":
        for heading, anchor in list_api.anchors():
            source[0] = source[0].replace(f"| `{heading}` |", f"| [`{heading}`](api.md#{anchor}) |")


def setup(app: Any) -> None:
    app.connect("source-read", read)
