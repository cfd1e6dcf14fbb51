"""What `attnreg methods` tells, and whether it is so."""

import inspect
from importlib import import_module

import pytest
from typer.testing import CliRunner

from analysis import cli
from analysis.method_list import facts, known, method_table
from regulate import METHODS
from regulate.catalogue import CATALOGUE
from regulate.method import Method


def run(*arguments: str, width: int = 80) -> str:
    told = CliRunner().invoke(cli.app, ["methods", *arguments], env={"COLUMNS": str(width), "TERM": "dumb"})
    return told.output if told.exit_code == 0 else f"exit {told.exit_code}: {told.output}"


def test_every_method_is_listed_with_its_mechanism_and_fits_a_terminal():
    told = run()
    assert all(name in told for name in METHODS)
    assert "latent guidance" in told
    assert max(len(line) for line in told.splitlines()) <= 80


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_sheet_tells_all_of_a_method(name):
    told = " ".join(run(name, width=400).split())
    entry = CATALOGUE[name]
    for fact in (entry.needs, entry.source, entry.licence, entry.models, entry.mechanism):
        assert fact in told
    assert all(f"{constant} {value!r}" in told for constant, value in entry.method.parameters().items())


def test_passes_are_those_of_the_formulas():
    assert facts("plain")["passes, 50 steps"] == "50"
    assert facts("attend-and-excite")["passes, 50 steps"] == "50 + 50 to 113 with gradients"  # 3 x (20 + 1) more
    assert facts("attend-and-excite-fixed")["passes, 50 steps"] == "50 + 25 to 85 with gradients"  # 3 x 20 more
    assert facts("syngen")["passes, 50 steps"] == "50 + 25 with gradients"
    assert facts("initno")["passes, 50 steps"] == "50 + 1 to 100 with gradients"


def test_the_whole_table_goes_into_a_file(tmp_path):
    run("--csv", str(tmp_path / "methods.csv"))
    assert (tmp_path / "methods.csv").read_text().count("\n") > len(METHODS)
    assert method_table()["method"].tolist() == list(METHODS)


def test_a_method_that_is_not_there_is_an_error_that_names_those_that_are():
    with pytest.raises(ValueError, match="no method is called 'attend'; methods are plain, regulation, "):
        known("attend")
    assert run("attend").startswith("exit 2: attnreg: no method is called")


def test_every_method_has_its_own_name_of_its_class_and_a_source_in_its_file():
    for name, entry in CATALOGUE.items():
        kind = type(entry.method)
        document = inspect.getdoc(import_module(kind.__module__)) or ""
        assert kind is Method or "Source:" in document or "Controls:" in document, name
        assert name.startswith(kind.name) or name == "random-bias", name
