"""How the site is built: `make docs`. Warnings are errors."""

import re
import shutil
from importlib.metadata import version as version_of
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).parent
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)  # sources must lie below this folder
COLUMNS = re.compile(r" *\S+( \S+)* {2,}\S")

project, author, copyright = "Attnreg", "Attnreg contributors", "Attnreg contributors, MIT licence"
release = version = version_of("attnreg")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build", "**/.ipynb_checkpoints"]
html_theme, html_title = "furo", "Attnreg"
html_static_path, html_css_files = ["_static"], ["tables.css"]
nb_execution_mode = "off"  # they are run by the tests, and shown with what came of that
nb_mime_priority_overrides = [("html", "image/png", 1), ("html", "application/vnd.jupyter.widget-view+json", 99)]
napoleon_use_ivar = True  # a field is a line, not a heading
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True


def as_written(app, what, name, thing, options, lines):
    """Show the lists of a module's docstring as they stand: those of two columns are literal blocks."""
    if what != "module":
        return
    found = groupby(lines, key=lambda line: (line.startswith(" "), bool(COLUMNS.match(line)) and line[0] != " "))
    runs = [list(run) for _, run in found]
    lines.clear()
    for run in runs:
        if any(COLUMNS.match(line) for line in run):
            run = ["", ".. code-block:: text", "", *(f"    {line}" for line in run)]
        lines.extend([*run, ""] if run[-1].startswith(" ") else run)


def setup(app):
    """Tell autodoc."""
    app.connect("autodoc-process-docstring", as_written, priority=100)  # before napoleon reads the headings
