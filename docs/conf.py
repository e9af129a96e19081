"""How Sphinx builds these pages: `make docs`, or `python -m sphinx -W -b html docs docs/_build`."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the extensions, and the program

project = "trainyard"
extensions = ["myst_parser", "from_source", "marked_blocks"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_fence_as_directive = ["sh"]  # marked_blocks.py
html_theme = "furo"
html_title = "trainyard"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
