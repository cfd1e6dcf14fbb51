"""The house rules that no other tool checks."""

import ast
import importlib
import tomllib
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tracer.tap import Tap

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tracer", "regulate", "metrics", "analysis")
FOLDERS = (*PACKAGES, "data/emoji/make")
MAX_FILE, MAX_FUNCTION = 300, 40  # lines
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(path):
    return str(path.relative_to(ROOT))


def test_every_folder_of_ours_is_looked_at():
    assert {next(f for f in FOLDERS if name_of(path).startswith(f)) for path in SOURCES} == set(FOLDERS)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_has_at_most_300_lines(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE


def docstring_of(node: ast.FunctionDef) -> int:
    """Lines of a function's docstring: what it says to its user is not held against it."""
    if ast.get_docstring(node) is None:
        return 0
    return (node.body[0].end_lineno or 0) - node.body[0].lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_function_has_at_most_40_lines(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 - docstring_of(node) for node in functions}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_shapes_of_every_package_are_checked(package):
    for path in sorted((ROOT / package).rglob("[!_]*.py")):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        assert type(module.__loader__).__name__ == "_JaxtypingLoader"


def test_a_wrong_shape_is_caught():
    right, wrong = torch.zeros(1, 2, 4, 8), torch.zeros(2, 4, 8)
    Tap("attn2", 0, 2, 2, right, right, right, 1.0)
    with pytest.raises(TypeCheckError):
        Tap("attn2", 0, 2, 2, wrong, right, right, 1.0)


def test_every_dependency_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if line[0] != "#"}
    for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]):
        requirement = Requirement(text)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier
