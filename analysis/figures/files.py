"""A figure as files for papers and pages: PDF, SVG, PNG, and its numbers as CSV, the same bytes for the same figure.

Conventions: fonts go into a PDF as TrueType, text stays text in an SVG too (in DejaVu Sans, where it is shown, or the
next best), images in either have 300 dots per inch, as a PNG has. No date goes in, nor anyone's settings of matplotlib.
The bytes hang on matplotlib's version.
"""

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import TightLayoutEngine

from analysis.figures.style import STYLE

DPI = 300
SAVED = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "attnreg"}
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {"Software": None}}


def write(
    draw: Callable[[], Figure], folder: Path, name: str, numbers: Mapping[str, pd.DataFrame] | None = None
) -> tuple[Path, ...]:
    """Write a figure as PDF, SVG and PNG, and the numbers behind it as CSV, and return their paths.

    No file is begun before all are drawn, and each replaces an older one at once. The figure is drawn anew for
    each: what is saved a second time may be laid out otherwise.

    Args:
        draw: makes the figure, a new one at every call.
        folder: is made if it is not there.
        name: of the files, without ending.
        numbers: tables, each by what comes behind the name and a dash in its file's; "" for nothing.

    Raises:
        ValueError: the name is not a file's, or `draw` returns one figure twice or one of layout "tight", whose bytes
            change.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise ValueError(f"name must be a file's, without a folder and a dot before it, got {name!r}")
    figures: list[Figure] = []
    contents = {folder / f"{name}.{form}": _drawn(draw, form, figures) for form in UNDATED}
    for ending, table in (numbers or {}).items():
        file = folder / f"{name}{ending and f'-{ending}'}.csv"
        contents[file] = table.to_csv(index=False, lineterminator="\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    partials = {path: path.with_name(f".{path.name}.partial") for path in contents}
    try:
        for path, partial in partials.items():
            partial.write_bytes(contents[path])
        for path, partial in partials.items():
            partial.replace(path)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)
    return tuple(contents)


def _drawn(draw: Callable[[], Figure], form: str, before: list[Figure]) -> bytes:
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | SAVED)
        figure = draw()
        if any(figure is other for other in before):
            raise ValueError("draw must make a new figure at every call, got the same one again")
        if isinstance(figure.get_layout_engine(), TightLayoutEngine):
            raise ValueError('draw must make a figure of layout "constrained" or none, got "tight"')
        before.append(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=DPI, metadata=UNDATED[form])
        return buffer.getvalue()
