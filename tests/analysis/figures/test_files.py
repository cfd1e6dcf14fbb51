"""Figures as files: whole or not at all, the same bytes in every process, text as text."""

import os
import subprocess
import sys
import zlib
from hashlib import sha256
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.figures.files import write

FORMS = (".pdf", ".svg", ".png")
# Draws what is hardest to draw twice alike: laid-out text, an image, hatches, clips and markers.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from analysis.figures.files import write
from analysis.figures.results import forest, outcome_bars

def image():
    figure = Figure(figsize=(3, 2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(np.arange(192, dtype=np.uint8).reshape(8, 8, 3), interpolation="bicubic")
    right.scatter([1, 2], [3, 4])
    right.fill_between([1, 2], [3, 4], hatch="//")
    return figure

row = {"metric": "clip_cos", "protocol": "p", "value": 0.3, "difference": 0.1, "difference_low": 0.0}
row |= {"difference_high": 0.2, "p_holm": 0.2}
board = pd.DataFrame([row | {"method": method} for method in ("plain", "conform", "syngen")])
values = pd.DataFrame([
    {"method": m, "prompt_id": p, "prompt": p, "seed": s, "metric": "detection_rate", "protocol": "p", "value": v}
    for m, shift in (("plain", 0), ("conform", 1)) for p in "ab" for s, v in enumerate((shift, 1.0, 0.0))
])
for name, draw in (("image", image), ("forest", lambda: forest(board, "clip_cos", "fi fl ä")),
                   ("bars", lambda: outcome_bars(values))):
    write(draw, Path(sys.argv[1]), name, {"": values, "by-seed": board})
"""


def plot() -> Figure:
    figure = Figure(figsize=(3, 2), layout="constrained")
    figure.add_subplot(title="fit of a line").plot([1, 2, 4])
    return figure


def test_two_processes_write_the_same_bytes(tmp_path, monkeypatch):
    (tmp_path / "matplotlibrc").write_text("font.size: 20")  # someone's own settings have no say
    other = {"PYTHONHASHSEED": "17", "SOURCE_DATE_EPOCH": "1000000000", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path / "there")]
    subprocess.run(command, env=os.environ | other, check=True)
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "here")])
    exec(compile(SCRIPT, "script", "exec"), {})
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / k).iterdir()} for k in ("here", "there"))
    endings = (*FORMS, ".csv", "-by-seed.csv")
    assert sorted(here) == sorted(name + end for name in ("image", "forest", "bars") for end in endings)
    assert {name: sha256(content).hexdigest() for name, content in here.items()} == {
        name: sha256(content).hexdigest() for name, content in there.items()
    }


def test_the_same_process_writes_the_same_bytes_again_and_leaves_nothing_else(tmp_path):
    first = [path.read_bytes() for path in write(plot, tmp_path / "figures", "fit")]
    again = write(plot, tmp_path / "figures", "fit")
    assert [path.read_bytes() for path in again] == first
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["fit.pdf", "fit.png", "fit.svg"]
    assert [path.suffix for path in again] == list(FORMS)


def test_text_stays_text_in_embedded_truetype(tmp_path):
    pdf, svg, _ = write(plot, tmp_path, "fit")
    assert ">fit of a line</text>" in svg.read_text()
    content = pdf.read_bytes()
    assert b"/CIDFontType2" in content or b"/Subtype /TrueType" in content
    assert b"/Type3" not in content
    assert b"/CreationDate" not in content
    assert "<dc:date>" not in svg.read_text()


def test_images_have_300_dots_per_inch(tmp_path):
    def draw() -> Figure:
        figure = Figure(figsize=(2, 1))
        figure.add_axes((0, 0, 0.5, 1)).imshow(np.eye(4), interpolation="bicubic")
        return figure

    pdf, _, png = write(draw, tmp_path, "eye")
    assert b"/Height 300" in pdf.read_bytes()
    assert b"/Width 300" in pdf.read_bytes()
    assert int.from_bytes(png.read_bytes()[16:20]) == 600


def test_nobodys_settings_are_changed_nor_asked(tmp_path):
    expected = [path.read_bytes() for path in write(plot, tmp_path, "fit")]
    with mpl.rc_context({"font.size": 20, "pdf.fonttype": 3, "svg.fonttype": "path", "svg.hashsalt": None}):
        before = dict(mpl.rcParams)
        assert [path.read_bytes() for path in write(plot, tmp_path, "fit")] == expected
        assert dict(mpl.rcParams) == before


def test_what_fails_half_way_leaves_the_older_files_as_they_were(tmp_path):
    write(plot, tmp_path, "fit")
    before = {path.name: zlib.crc32(path.read_bytes()) for path in tmp_path.iterdir()}
    calls = []

    def draw() -> Figure:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the third time")
        figure = plot()
        figure.axes[0].set_title("other")
        return figure

    with pytest.raises(RuntimeError, match="the third time"):
        write(draw, tmp_path, "fit")
    assert {path.name: zlib.crc32(path.read_bytes()) for path in tmp_path.iterdir()} == before


def test_what_cannot_be_written_leaves_no_part_behind(tmp_path):
    (tmp_path / "fit.svg").mkdir()
    with pytest.raises(OSError, match=r"fit\.svg"):
        write(plot, tmp_path, "fit")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_figure_that_is_not_new_or_whose_layout_moves_is_an_error(tmp_path):
    one = plot()
    with pytest.raises(ValueError, match="new figure at every call"):
        write(lambda: one, tmp_path, "fit")
    with pytest.raises(ValueError, match='got "tight"'):
        write(lambda: Figure(layout="tight"), tmp_path, "fit")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", ".fit", "a/b", ".."])
def test_a_name_that_is_no_files_is_an_error(name, tmp_path: Path):
    with pytest.raises(ValueError, match="name must be a file's"):
        write(plot, tmp_path, name)
