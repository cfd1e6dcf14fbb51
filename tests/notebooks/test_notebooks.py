"""Every notebook runs from a clean kernel, top to bottom, and was committed with its outputs.

Where there is a browser, `tests/browser/test_lab.py` runs them in a real JupyterLab instead, and compares outputs.
"""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

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
