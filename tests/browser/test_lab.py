"""Each notebook in a real JupyterLab, as a person runs it; and the explorer in it, with the mouse and the keys."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from tracer.folders import emoji_world

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LONGEST = 240  # seconds; on two cores that do something else as well
SETTINGS = {  # every cell is drawn, wherever the window stands; no news from outside
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}
PANEL = "[...window.jupyterapp.shell.widgets('main')][0]"
CELLS = f"{PANEL}.content.widgets.filter((cell) => cell.model.type === 'code')"
OUTPUTS = f"{CELLS}.map((cell) => cell.model.toJSON().outputs)"
EXPLORER = ".attnreg-explorer"

pytestmark = pytest.mark.skipif(not (emoji_world() / "sd" / "unet").is_dir(), reason="no generator is there")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab that stands on a copy of the notebooks."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(FOLDER, home / "notebooks")
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # JupySQL, whose connection is tested elsewhere, brings a plugin that throws in today's Lab; nobody needs it.
    disabled = home / "jupyter_config_dir" / "labconfig" / "page_config.json"
    disabled.parent.mkdir(parents=True)
    disabled.write_text(json.dumps({"disabledExtensions": {"jupysql-plugin": True}}))
    own = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    environment = os.environ | own | {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    environment["OMP_NUM_THREADS"] = "1"  # beside other tests two threads of a kernel only wait for each other
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
        "--IdentityProvider.token=", f"--ServerApp.root_dir={home / 'notebooks'}",
        "--LabApp.expose_app_in_browser=True", f"--LabApp.workspaces_dir={home / 'workspaces'}",
    ]  # fmt: skip
    with (home / "log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process:
        try:
            waited_for(f"http://127.0.0.1:{port}/api")
            yield f"http://127.0.0.1:{port}/lab"
        finally:
            process.terminate()
            process.wait(30)


def waited_for(address: str) -> None:
    """Wait until a server answers."""
    end = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def opened(tab, lab: str, name: str) -> None:
    """Open a notebook and wait for its kernel."""
    tab.window(1280, 1000)
    tab.open(f"{lab}/tree/{name}.ipynb?reset")
    tab.until(f"window.jupyterapp?.status !== undefined && {PANEL}?.content?.widgets?.length > 3", 120, 0.2)
    tab.until(f"{PANEL}.sessionContext.session?.kernel?.status === 'idle'", 120, 0.2)
    tab.run(f"window.jupyterapp.shell.activateById({PANEL}.id)")


def ran(tab) -> list[list[dict]]:
    """Run all cells and return their outputs."""
    tab.run("(window.jupyterapp.commands.execute('notebook:run-all-cells'), 0)")
    done = f"{CELLS}.every((cell) => cell.model.executionCount && cell.model.executionState !== 'running')"
    tab.until(f"{done} && {PANEL}.sessionContext.session.kernel.status === 'idle'", LONGEST, 0.5)
    return tab.run(OUTPUTS)


def texts_of(outputs: list[dict]) -> list[str]:
    """Return what a cell says in plain text."""
    return ["".join(out["data"]["text/plain"] if "data" in out else out["text"]) for out in outputs]


def without(outputs: list[list[dict]], kind: str) -> list[dict]:
    return [out for cell in outputs for out in cell if out["output_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_the_lab_and_says_what_was_committed(tab, lab, path, tmp_path):
    opened(tab, lab, path.stem)
    tab.run(f"{CELLS}.forEach((cell) => cell.model.clearExecution())")
    outputs = ran(tab)
    assert not without(outputs, "error")
    committed = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    compared = 0
    for cell, found in zip(committed, outputs, strict=True):
        for tag in {"same", "alike"} & set(cell.metadata.get("tags", [])):
            texts, expected = (
                ["".join(out["data"]["text/plain"]) for out in outputs if "data" in out]
                for outputs in (found, cell.outputs)
            )
            assert (texts == expected) if tag == "same" else [*map(words, texts)] == [*map(words, expected)]
            compared += 1
    assert compared
    assert not errors(tab, lab)
    if any("explore(" in cell.source for cell in committed):
        explores(tab)
        Image.fromarray(tab.picture()).save(tmp_path / "explorer.png")
        assert not errors(tab, lab)
        hears_an_error(tab, lab)
    tab.run(f"{PANEL}.context.save().then(() => {PANEL}.sessionContext.shutdown()).then(() => true)")


def words(text: str) -> list[str]:
    """Return what a text says but for its numbers: images, and so rates, depend on the processor."""
    return re.sub(r"-?\d+\.\d+", "0.0", text).split()


def errors(tab, lab: str) -> list[str]:
    """Return what went wrong in the browser, and what it asked of others than the Lab."""
    own = lab.removesuffix("/lab").split("://")[1]
    return [said for said in tab.complaints(own) if "'type': 'warning'" not in said]


def hears_an_error(tab, lab: str) -> None:
    """Throw in a script like the explorer's, which comes from a blob of the Lab's own address: it must be heard."""
    script = "setTimeout(() => nothing.at.all)"
    tab.run(f"import(URL.createObjectURL(new Blob(['{script}'], {{ type: 'text/javascript' }}))).then(() => true)")
    tab.settle()
    assert any("ReferenceError" in said and "blob:http://127.0.0.1" in said for said in errors(tab, lab))


def value_in_the_middle(tab) -> float:
    """Return what the explorer says of the map's middle: the map's own number, whatever lies under it."""
    tab.hover(f"{EXPLORER} canvas")
    said = tab.of(f"{EXPLORER} .said", "textContent")
    assert said.startswith(f"{shown(tab)['word']}, row ")
    return float(said.rsplit(" ", 1)[1])


def shown(tab) -> dict:
    return json.loads(tab.run(f"document.querySelector('{EXPLORER}').dataset.shown"))


def explores(tab) -> None:
    """Pick another word and step, hover, use the keys: each time the map is another one, and values are said."""
    tab.until(f"document.querySelector('{EXPLORER} canvas') !== null")
    tab.until(f"document.querySelector('{EXPLORER}').dataset.shown !== undefined")
    first, before = value_in_the_middle(tab), shown(tab)
    other = next(
        place
        for place, word in enumerate(
            tab.run(f"[...document.querySelectorAll('{EXPLORER} button')].map((b) => b.textContent)")
        )
        if word != before["word"]
    )
    tab.click(f"{EXPLORER} button:nth-of-type({other + 1})")
    tab.until(f"JSON.parse(document.querySelector('{EXPLORER}').dataset.shown).word !== '{before['word']}'")
    second = value_in_the_middle(tab)
    assert first != second
    tab.press("ArrowRight", 39)
    tab.until(f"JSON.parse(document.querySelector('{EXPLORER}').dataset.shown).step === {before['step'] + 1}")
    assert value_in_the_middle(tab) != second
    tab.press("h")
    tab.until(f"JSON.parse(document.querySelector('{EXPLORER}').dataset.shown).head === 0")
    tab.click(f"{EXPLORER} rect")
    tab.until(f"JSON.parse(document.querySelector('{EXPLORER}').dataset.shown).layers !== '{before['layers']}'")
    picture = tab.picture()
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 300  # something is drawn, in many colours
