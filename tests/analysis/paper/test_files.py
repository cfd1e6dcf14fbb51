"""A paper's table as files: LaTeX that compiles, Markdown and HTML with the same cells, CSV with every number."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from analysis.paper.cells import TIMES, Column, Number, PaperTable, Row, style_of
from analysis.paper.files import STYLE_SHEET, csv_of, document_of, html_of, latex_of, markdown_of, write

NASTY = r"50% of A&E_#1 {x} $5 ~ ^ \ <b> | [q] *"
BARE = re.compile(r"(?<!\\)[%#]|(?<![\\$])_")


def column(metric: str, group: str = "", **kinds) -> Column:
    return Column("COCO", metric, group, style_of(metric, **kinds).heading, **kinds)


@pytest.fixture
def table() -> PaperTable:
    columns = (column("clip_cos", "A&E"), column("detection_rate", "A&E"), column("lpips", "A&E"), column("overhead"))
    plain = Row("plain", "Original", (Number(0.3284, 0.3211, 0.3349, "clip#1"), Number(0.04, -0.02, 0.1), "--", "--"))
    cells = Number(0.337, p_holm=0.01, difference=0.01, bold=True), Number(1.0, p_holm=0.01, difference=-1.0)
    return PaperTable("50% of A&E.", columns, (plain, Row("ours", "Ours", (*cells, "n/a", Number(-0.0123)))), "real")


def test_a_cell_of_a_notebook_shows_the_table_as_its_file_does_and_says_what_to_do_next(table):
    shown = table._repr_html_()
    assert html_of(table) in shown
    assert STYLE_SHEET in shown
    assert ":root" not in shown  # which would colour the whole Lab
    assert "analysis.paper.files.write(table" in shown


def replaced(table: PaperTable, text: str) -> PaperTable:
    """The table with one text in every place that holds one."""
    columns = tuple(replace(column, group=text, title=text) for column in table.columns)
    rows = tuple(replace(row, label=text) for row in table.rows)
    return PaperTable(text, columns, rows, table.world)


def latex_rows(text: str) -> list[list[str]]:
    """The cells of every line of the tabular; refuses what LaTeX would stumble over."""
    depth = 0
    for sign in re.sub(r"\\[\\{}]", "", text):
        depth += {"{": 1, "}": -1}.get(sign, 0)
        assert depth >= 0
    assert depth == 0
    begun, ended = (re.findall(rf"\\{word}{{([a-z*]+)}}", text) for word in ("begin", "end"))
    assert begun == ended[::-1]
    body = text.replace("{!}{%\n", "{!}{\n")  # the one comment that is meant
    assert not BARE.search(re.sub(r"\\label{.*}", "", body))
    assert len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    inside = body[body.index(r"\toprule") : body.index(r"\bottomrule")]
    lines = [line for line in inside.splitlines() if line.endswith(r"\\")]
    return [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines]


def width(cells: list[str]) -> int:
    spans = [re.search(r"\\multicolumn{(\d+)}", cell) for cell in cells]
    return sum(int(span[1]) if span else 1 for span in spans)


def test_every_line_of_the_latex_table_has_as_many_cells_as_columns(table):
    rows = latex_rows(latex_of(table))
    assert [width(cells) for cells in rows] == [5] * 5  # groups, titles, plain, its intervals, ours without
    assert r"\begin{tabular}{lcccc}" in latex_of(table)
    assert r"\cmidrule(lr){2-4}" in latex_of(table)
    assert r"\cmidrule(lr){5-5}" not in latex_of(table)  # nothing is above the costs


def test_latex_shows_mean_interval_bold_and_dagger(table):
    rows = [[cell.strip() for cell in cells] for cells in latex_rows(latex_of(table))]
    assert rows[1] == [
        "Method",
        r"CLIP $\uparrow$",
        r"Det. rate $\uparrow$",
        r"LPIPS $\downarrow$",
        r"Overhead $\downarrow$",
    ]
    assert rows[2] == ["Original", "0.328", r"4.0\%", "--", "--"]
    assert rows[3] == ["", r"{\scriptsize [0.321, 0.335]}", r"{\scriptsize [0.0, 10.0]}", "", ""]
    assert rows[4] == ["Ours", r"\textbf{0.337}$^{\dagger}$", r"100.0\%$^{\ddagger}$", "n/a", r"$-$1.2\%"]


@pytest.mark.parametrize("text", [NASTY, "% all", "a % b", "A & B", "[x]", "*", r"\input{x}", "a_b^c", 'a "word"'])
def test_latex_survives_every_sign_in_every_place(table, text):
    nasty = latex_of(replaced(table, text))
    assert {width(cells) for cells in latex_rows(nasty)} == {5}
    assert not re.search(r"\\\\\s*[\[*]", nasty)  # would be taken for an argument of the line's end
    assert not re.search(r"\\(midrule|addlinespace|toprule)\s*\[", nasty)
    assert r"\input{x}" not in nasty


def test_a_wide_table_spans_both_columns_of_the_page(table):
    assert r"\begin{table}[t]" in latex_of(table)
    five = PaperTable("", (*table.columns, column("passes")), tuple(Row("a", "a", ("--",) * 5) for _ in "a"), "real")
    assert r"\begin{table*}[t]" in latex_of(five)


def test_markdown_has_as_many_cells_in_every_line_as_columns(table):
    for one in (table, replaced(table, NASTY)):
        lines = markdown_of(one).splitlines()
        assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]] == [6] * 4
    text = markdown_of(table)
    assert "| Original | 0.328 <sub>[0.321, 0.335]</sub> | 4.0% <sub>[0.0, 10.0]</sub> | -- | -- |" in text
    assert r"| Method | A\&E: CLIP ↑ |" in text
    assert "**0.337**† |" in text
    assert text.endswith("\n\n50% of A\\&E.\n")


class Reader(HTMLParser):
    """Cells of an HTML table, row by row: (tag, colspan, text)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.caption, self.open = [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag == "meta":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append((tag, int(dict(attributes).get("colspan", 1)), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "caption" in self.open:
            self.caption += data
        elif {"td", "th"} & set(self.open):
            tag, span, text = self.rows[-1][-1]
            self.rows[-1][-1] = tag, span, text + data


def test_html_holds_the_same_cells(table):
    found = Reader(html_of(table))
    assert [sum(span for _, span, _ in row) for row in found.rows] == [5] * 4
    assert found.rows[0][1] == ("th", 3, "A&E")
    assert [text for _, _, text in found.rows[2]][:3] == ["Original", "0.328[0.321, 0.335]", "4.0%[0.0, 10.0]"]
    assert [text for _, _, text in found.rows[3]] == ["Ours", "0.337†", "100.0%‡", "n/a", "\N{MINUS SIGN}1.2%"]
    assert "<b>0.337</b><sup>†</sup>" in html_of(table)
    assert found.caption == "50% of A&E."


def test_html_survives_every_sign_and_is_a_page_of_its_own(table):
    nasty = replaced(table, NASTY)
    found = Reader(document_of(nasty).removeprefix("<!doctype html>\n"))
    assert found.caption == NASTY
    assert found.rows[-1][0][2] == NASTY
    assert "http" not in document_of(nasty)


def test_a_table_without_groups_has_one_line_of_headings(table):
    flat = replace(table, columns=tuple(replace(column, group="") for column in table.columns))
    assert len(latex_rows(latex_of(flat))) == 4
    assert r"\cmidrule" not in latex_of(flat)
    assert len(Reader(html_of(flat)).rows) == 3


def test_csv_has_every_number_as_it_is(table):
    exact = Number(1 / 3, 0.1 + 0.2, 0.4, "clip#1", 8, 4, 32, "prompts", 0.01, p_holm=1e-17, bold=True)
    rows = (Row("ours", "Ours, 50%", (exact, "--", "n/a", Number(-0.0123))),)
    lines = list(csv.DictReader(io.StringIO(csv_of(replace(table, rows=rows)))))
    assert [line["cell"] for line in lines] == ["number", "--", "n/a", "number"]
    first = lines[0]
    assert [float(first[name]) for name in ("value", "low", "p_holm")] == [1 / 3, 0.1 + 0.2, 1e-17]
    assert [first[name] for name in ("method", "label", "source", "metric")] == [
        "ours",
        "Ours, 50%",
        "COCO",
        "clip_cos",
    ]
    assert [first[name] for name in ("prompts", "seeds", "images", "bold", "world")] == ["8", "4", "32", "True", "real"]
    assert (first["p"], first["difference_low"], lines[1]["value"]) == ("", "", "")
    assert lines[3]["value"] == "-0.0123"


def test_passes_are_written_as_multiples_and_a_difference_without_its_unit():
    assert style_of("passes").text(1.5) == f"1.50{TIMES}"
    assert style_of("detection_rate", difference=True).text(-0.079) == "-7.9"
    assert style_of("detection_rate", difference=True).interval(Number(0.0, -0.2, 0.00001)) == "[-20.0, 0.0]"
    assert style_of("lpips").text(-0.0001) == "0.000"  # not -0.000


def test_all_four_files_are_written_with_the_same_bytes_each_time(table, tmp_path):
    paths = write(table, tmp_path / "a", "table-1")
    assert [path.name for path in paths] == ["table-1.tex", "table-1.md", "table-1.html", "table-1.csv"]
    again = write(table, tmp_path / "b", "table-1")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert rb"\label{tab:table-1}" in paths[0].read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in paths)


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_half_written(table, tmp_path):
    write(table, tmp_path, "t")
    before = (tmp_path / "t.tex").read_bytes()
    (tmp_path / "t.csv").unlink()
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(OSError, match=r"t\.csv"):
        write(table, tmp_path, "t")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.html", "t.md", "t.tex"]
    assert (tmp_path / "t.tex").read_bytes() == before


@pytest.mark.parametrize("name", ["", "../t", "a/b", ".t", "a b", "t\n"])
def test_a_name_that_is_a_path_is_refused(table, tmp_path, name):
    with pytest.raises(ValueError, match="name must be of letters"):
        write(table, tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_row_must_have_a_cell_for_every_column(table):
    with pytest.raises(ValueError, match="ours must have 4 cells, got 1"):
        replace(table, rows=(Row("ours", "Ours", ("--",)),))
