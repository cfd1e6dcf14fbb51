r"""A paper's table as files: LaTeX, Markdown and HTML to print, CSV with every number behind it.

Conventions:
    LaTeX needs ``\usepackage{booktabs,graphicx}`` and goes into a paper by ``\input``; a table that is wider than the
    text is shrunk to it. Every text is escaped: titles, names and captions as well as cells, whose own percent signs
    no formatter escapes.
    A file appears whole or not at all, and has the same bytes for the same table.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import fields
from html import escape
from math import isnan
from pathlib import Path
from uuid import uuid4

from analysis.paper.cells import TIMES, Cell, Column, Number, PaperTable, Row

NARROW = 4  # columns that fit into one of two columns of text
CORNER = "Method"
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%" + "\n"
FACTS = tuple(field.name for field in fields(Number) if field.name != "counted")  # images says how many, always
HEADINGS = ("method", "label", "source", "metric", "of_difference", "cell", *FACTS, "world")

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    TIMES: r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
} | {sign: rf"\{sign}" for sign in "&%$#_{}"}

STYLE_SHEET = """\
.paper-table { border-collapse: collapse; border-block: 2px solid; font: 14px/1.35 system-ui, sans-serif; }
.paper-table caption { caption-side: bottom; text-align: left; padding-top: .6em; font-size: 12px; }
.paper-table th, .paper-table td { padding: .3em .7em; text-align: center; font-weight: normal; }
.paper-table td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.paper-table th:first-child { text-align: left; }
.paper-table thead tr:last-child th { border-bottom: 1px solid; }
.paper-table .group { padding: .3em .2em 0; }
.paper-table .group span { display: block; border-bottom: 1px solid; padding-bottom: .3em; }
.paper-table sup { line-height: 0; }
.paper-table small { display: block; font-size: 11px; opacity: .75; }
"""


def latex_of(table: PaperTable, label: str = "") -> str:
    """Return the table as a LaTeX float, intervals in small type below the numbers; `label` is for references."""
    wide = "*" * (len(table.columns) > NARROW)
    titles = " & ".join(_latex(text) for text in (CORNER, *(column.title for column in table.columns)))
    lines = [
        rf"\begin{{table{wide}}}[t]",
        r"\centering\small\setlength{\tabcolsep}{3pt}\setlength{\belowcaptionskip}{4pt}",
        rf"\caption{{{_latex(table.caption)}}}",
        *([rf"\label{{{label}}}"] if label else []),
        FITTED + rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
        r"\toprule",
        *_latex_groups(table),
        rf"{titles} \\",
        r"\midrule",
        "\n\\addlinespace\n".join(_latex_row(row, table.columns) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        rf"\end{{table{wide}}}",
    ]
    return "\n".join(lines) + "\n"


def markdown_of(table: PaperTable) -> str:
    """Return the table as GitHub reads it, groups and columns in one heading, the caption below."""
    heads = [" ".join(filter(None, (f"{c.group}:" if c.group else "", c.title))) for c in table.columns]
    lines = [[CORNER, *heads], [":--", *[":-:"] * len(heads)]]
    for row in table.rows:
        cells = [_markdown_cell(column, cell) for column, cell in zip(table.columns, row.cells, strict=True)]
        lines.append([_markdown(row.label), *cells])
    lines[0] = [_markdown(text) for text in lines[0]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{_markdown(table.caption)}\n"


def html_of(table: PaperTable) -> str:
    """Return the table as an HTML element of the class "paper-table"; `STYLE_SHEET` is its look."""
    groups = "".join(
        f'<th class="group" scope="colgroup" colspan="{count}"><span>{escape(group)}</span></th>'
        if group
        else f'<td colspan="{count}"></td>'
        for group, count in table.groups
    )
    titles = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in table.columns)
    rows = [
        f'<tr><th scope="row">{escape(row.label)}</th>'
        + "".join(f"<td>{_html_cell(c, cell)}</td>" for c, cell in zip(table.columns, row.cells, strict=True))
        + "</tr>"
        for row in table.rows
    ]
    above = [f"<tr><td></td>{groups}</tr>"] if any(group for group, _ in table.groups) else []
    head = [*above, f'<tr><th scope="col">{CORNER}</th>{titles}</tr>']
    return "\n".join(
        [
            '<table class="paper-table">',
            f"<caption>{escape(table.caption)}</caption>",
            "<thead>",
            *head,
            "</thead>",
            "<tbody>",
            *rows,
            "</tbody>",
            "</table>\n",
        ]
    )


def csv_of(table: PaperTable) -> str:
    """Return every cell as a line with all that is known of it, unrounded and unscaled; what is not known is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADINGS)
    for row, column, cell in table.numbers():
        facts = [getattr(cell, name) for name in FACTS] if isinstance(cell, Number) else [""] * len(FACTS)
        kind = "number" if isinstance(cell, Number) else cell
        line = [row.method, row.label, column.source, column.metric, column.difference, kind, *facts, table.world]
        writer.writerow(["" if isinstance(fact, float) and isnan(fact) else fact for fact in line])
    return buffer.getvalue()


def document_of(table: PaperTable) -> str:
    """Return the HTML table as a page of its own."""
    title = escape(", ".join(dict.fromkeys(column.group or column.title for column in table.columns)))
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>\n:root {{ color-scheme: light dark; }}\n{STYLE_SHEET}</style>\n{html_of(table)}</html>\n"
    )


def shown_in_a_cell(table: PaperTable) -> str:
    """Return the table as a notebook's cell shows it: with its look, which colours nothing else, and what is next."""
    after = "writes it as LaTeX, Markdown, HTML and CSV"
    return (
        f"<style>\n{STYLE_SHEET}</style>\n{html_of(table)}\n"
        f"<p><code>analysis.paper.files.write(table, folder, name)</code> {after}</p>"
    )


def write(table: PaperTable, folder: str | Path, name: str) -> list[Path]:
    """Write ``name.tex``, ``name.md``, ``name.html`` and ``name.csv``; return their paths.

    Raises:
        ValueError: the name has other signs than letters, digits, points, hyphens and underscores.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"name must be of letters, digits, points, hyphens and underscores, got {name!r}")
    texts = {
        "tex": latex_of(table, f"tab:{name}"),
        "md": markdown_of(table),
        "html": document_of(table),
        "csv": csv_of(table),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    return [_write(Path(folder) / f"{name}.{kind}", text) for kind, text in texts.items()]


def _write(path: Path, text: str) -> Path:
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _latex(text: str) -> str:
    """Return text as LaTeX; an opening bracket or star must not be taken for an argument of the line's end before."""
    escaped = "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))
    return "{}" + escaped if escaped[:1] in ("[", "*") else escaped


def _latex_groups(table: PaperTable) -> list[str]:
    if not any(group for group, _ in table.groups):
        return []
    cells, rules, start = [""], [], 2
    for group, count in table.groups:
        cells.append(rf"\multicolumn{{{count}}}{{c}}{{{_latex(group)}}}")
        rules += [rf"\cmidrule(lr){{{start}-{start + count - 1}}}"] if group else []
        start += count
    return [f"{' & '.join(cells)} \\\\".lstrip(), " ".join(rules)]


def _latex_row(row: Row, columns: Sequence[Column]) -> str:
    pairs = list(zip(columns, row.cells, strict=True))
    values = [_latex(row.label), *(_latex_cell(column, cell) for column, cell in pairs)]
    ends = ["", *(_latex_number(c.below(cell)) if isinstance(cell, Number) else "" for c, cell in pairs)]
    below = [rf"{{\scriptsize {end}}}" if end else "" for end in ends]
    return " & ".join(values) + r" \\" + (f"\n{' & '.join(below)} \\\\" if any(ends) else "")


def _latex_cell(column: Column, cell: Cell) -> str:
    if not isinstance(cell, Number):
        return cell
    text = _latex_number(column.style.text(cell.value))
    mark = _latex(cell.mark).replace("$", "")
    return (rf"\textbf{{{text}}}" if cell.bold else text) + (f"$^{{{mark}}}$" if mark else "")


def _latex_number(text: str) -> str:
    return _latex(text).removeprefix("{}").replace("-", "$-$")


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~&])", r"\\\1", " ".join(text.split()))


def _markdown_cell(column: Column, cell: Cell) -> str:
    if not isinstance(cell, Number):
        return cell
    text, ends = column.style.text(cell.value), column.below(cell)
    return (f"**{text}**" if cell.bold else text) + cell.mark + (f" <sub>{ends}</sub>" if ends else "")


def _html_cell(column: Column, cell: Cell) -> str:
    if not isinstance(cell, Number):
        return "&ndash;" if cell == "--" else cell
    text, ends = (escape(part).replace("-", "&minus;") for part in (column.style.text(cell.value), column.below(cell)))
    mark = f"<sup>{cell.mark}</sup>" if cell.mark else ""
    return (f"<b>{text}</b>" if cell.bold else text) + mark + (f"<small>{ends}</small>" if ends else "")
