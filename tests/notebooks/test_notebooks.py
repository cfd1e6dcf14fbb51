"""Every notebook runs from a clean kernel, top to bottom, and was committed with its outputs.

Where there is a browser, `tests/browser/test_lab.py` runs them in a real JupyterLab instead, and compares outputs.
"""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

from analysis.experiments.emoji import TUNED
from metrics.protocols import DetectionProtocol, emoji_detection
from regulate import METHODS
from tracer.folders import emoji_world

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.skipif(shutil.which("chromium") is not None, reason="run in JupyterLab")
@pytest.mark.skipif(not (emoji_world() / "sd" / "unet").is_dir(), reason="the emoji world's generator is not there")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_a_clean_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)


class Reached(Exception):
    """The cell came as far as to run its experiment."""


@pytest.mark.parametrize(("model", "world", "known"), [("emoji", "emoji", TUNED), ("sd15", "real", METHODS)])
@pytest.mark.parametrize("path", NOTEBOOKS[2:], ids=lambda path: path.stem)
def test_another_model_brings_its_own_world_and_methods(path, model, world, known, monkeypatch):
    asked = []

    def caught(experiment, *_):
        asked.append(experiment)
        raise Reached

    monkeypatch.setattr("analysis.running.run.run", caught)
    with pytest.raises(Reached):
        exec(cell_with(path, "results = run("), {"MODEL": model})
    (experiment,) = asked
    (part,) = experiment.parts
    assert (experiment.world, part.model, part.methods["regulation"]) == (world, model, known["regulation"])


@pytest.mark.parametrize(("emoji", "world"), [(True, "emoji"), (False, "real")])
def test_another_model_is_judged_by_a_detector_of_its_own_world(emoji, world):
    given = {"load_detector": lambda protocol, device: protocol or emoji_detection(), "DEVICE": "cpu"}
    names = given | {"EMOJI": emoji, "DetectionProtocol": DetectionProtocol}
    exec(cell_with(NOTEBOOKS[0], "detector = ").splitlines()[0], names)
    assert names["detector"].world == world


def cell_with(path: Path, text: str) -> str:
    """Return the source of the cell that has a text, without its magics."""
    cells = (cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    source = next(source for source in cells if text in source)
    return "\n".join(line for line in source.splitlines() if not line.startswith("%"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_committed_with_its_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "stream"], (
        "noise, or a machine's path"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_exported_notebook_shows_every_figure_one_in_place_of_the_explorer_too(path):
    """As on GitHub: a stored state of the widget would stand there instead, which shows nothing without a network."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    figures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert figures
    assert all(f"data:image/png;base64,{figure[:500]}" in page for figure in figures)
    assert "widget-view" not in page
