"""What the pages show works: Python and SQL blocks run, in their order, in an empty folder."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.cli import app
from tracer.store import Store

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRACES = {"scores.md": "scores.duckdb"}  # pages whose commands stand between the code that they need
BLOCK = re.compile(r"^```(python|sql|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = {page.name: BLOCK.findall(page.read_text(encoding="utf-8")) for page in PAGES}


def test_the_pages_have_code_of_each_kind():
    assert {kind for kind, _ in CODE["traces.md"]} == {"python", "sql", "sh"}
    assert len(CODE["traces.md"]) > 15
    assert any(kind == "python" for kind, _ in CODE["README.md"])


@pytest.mark.parametrize("page", [name for name, blocks in CODE.items() if blocks])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for kind, text in CODE[page]:
        if kind == "python":
            exec(compile(text, page, "exec"), names)
        elif kind == "sql":
            with Store.open(TRACES.get(page, "run.duckdb")) as store:
                assert not store.sql(text).empty, text
        elif page in TRACES:
            for line in text.splitlines():
                result = CliRunner().invoke(app, shlex.split(line)[1:])
                assert result.exit_code == 0, (line, result.output)


COMMANDS = [line for _, text in CODE["traces.md"] for line in text.splitlines() if line.startswith("attnreg ")]


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    assert len(COMMANDS) >= 5
    for line in COMMANDS:
        if "both.duckdb" in line:
            assert runner.invoke(app, ["import", "both.duckdb", "run-parquet"]).exit_code == 0
        result = runner.invoke(app, shlex.split(line)[1:] + (["--steps", "2"] if " trace " in line else []))
        assert result.exit_code == 0, (line, result.output)
    assert Path("dominance.parquet").stat().st_size > 1000
