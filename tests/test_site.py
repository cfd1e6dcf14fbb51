"""The site: it is built without a warning, every public name is in its reference, every command on its page."""

import importlib
import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
import typer
from sphinx.util.inventory import InventoryFile
from typer.cli import app as typer_cli
from typer.testing import CliRunner

from analysis.cli import app
from analysis.explorer.widget import Explorer

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tracer", "regulate", "metrics", "analysis")
COMMANDS = typer.main.get_command(app).commands  # pyright: ignore


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names that the built site has."""
    home = tmp_path_factory.mktemp("site")
    for name in ("docs", "notebooks"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("build", "notebooks"))
    shutil.copy(ROOT / "CITATION.cff", home)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", "docs/build/html"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = InventoryFile.loads((home / "docs" / "build" / "html" / "objects.inv").read_bytes(), uri="")
    return {name for kind in found.data if kind.startswith("py:") for name in found.data[kind]}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(inventory, package):
    module = importlib.import_module(package)
    assert {f"{package}.{name}" for name in module.__all__} <= inventory


def public() -> list[tuple[str, object]]:
    """Return the functions and classes that packages offer, and the classes' own public methods."""
    found = []
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            one = getattr(module, name)
            if inspect.isfunction(one) or inspect.isclass(one):
                found.append((f"{package}.{name}", one))
            if inspect.isclass(one):
                found += [
                    (f"{package}.{name}.{method}", getattr(one, method))
                    for method, made in vars(one).items()
                    if not method.startswith("_") and isinstance(made, classmethod | staticmethod | FunctionType)
                ]
    explorer = [(f"analysis.explorer.widget.Explorer.{name}", getattr(Explorer, name)) for name in ("select", "figure")]
    return found + explorer


@pytest.mark.parametrize(("name", "one"), public(), ids=[name for name, _ in public()])
def test_a_public_function_says_what_it_takes_and_what_it_raises(name, one):
    text = inspect.getdoc(one) or ""
    assert len(text) > 20
    if inspect.isroutine(one):
        source = inspect.getsource(one)
        own = [word for word in inspect.signature(one).parameters if word not in ("self", "args", "kwargs")]
        if len(own) > 2:
            assert all(f"{word}:" in text for word in own), f"{name} says nothing of some of {own}"
        if "raise " in source:
            assert "Raises:" in text


def test_every_command_is_on_the_page_with_all_its_options():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    written = CliRunner().invoke(typer_cli, ["analysis.cli", "utils", "docs", "--name", "attnreg"]).output
    assert page == written, "docs/cli.md is out of date: make docs"
    assert len(COMMANDS) > 10
    for name, command in COMMANDS.items():
        assert f"## `attnreg {name}`" in page
        assert command.help, name
        assert all(option.help for option in command.params if option.name != "help"), name
