"""`%%sql` in a real IPython shell: tables, variables in and out, and nothing written."""

import duckdb
import numpy as np
import pandas as pd
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import tracer
from tracer.store import Store

WRITING = (
    "DELETE FROM samples",
    "COMMIT; UPDATE runs SET model = 'none'",
    "SELECT 1; COMMIT; DELETE FROM samples",
    "COPY (SELECT 1) TO 'out.csv'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO 'out.csv'",
    "WITH one AS (SELECT 1) DELETE FROM samples",
    "-- nothing but a comment",
)


@pytest.fixture(scope="module")
def trace(tiny_pipe, tmp_path_factory):
    """A trace of one image."""
    path = tmp_path_factory.mktemp("trace") / "trace.duckdb"
    with tracer.recording(tiny_pipe, path, targets=["cat", "dog"]):
        tiny_pipe("a cat and a dog", num_inference_steps=2)
    return path


@pytest.fixture
def shell(trace, monkeypatch) -> InteractiveShell:
    """A shell without a history file, in the trace's folder, with the extension loaded."""
    monkeypatch.chdir(trace.parent)
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    shell.run_line_magic("load_ext", "tracer")
    return shell


def test_a_cell_gives_the_table_that_the_store_gives(shell, trace):
    query = "SELECT step, word, share FROM dominance ORDER BY ALL"
    with Store.open(trace) as store:
        expected = store.sql(query)
    assert len(expected) > 10
    pd.testing.assert_frame_equal(shell.run_cell_magic("sql", "trace.duckdb", query), expected)
    pd.testing.assert_frame_equal(shell.run_cell_magic("sql", "", query), expected)  # the same one again


def test_variables_are_bound_and_the_table_goes_into_one(shell):
    shell.user_ns["word"] = "dog' OR 1 = 1 --"
    query = "SELECT count(*) AS n FROM dominance WHERE word = $word AND '$step' <> word"
    assert shell.run_cell_magic("sql", "trace.duckdb", query).at[0, "n"] == 0
    shell.user_ns["word"] = "dog"
    assert shell.run_cell_magic("sql", "-o dogs", query) is None
    assert shell.user_ns["dogs"].at[0, "n"] > 0


@pytest.mark.parametrize("value", [2, np.int64(2), np.float32(2), np.uint8(2), pd.Series([1, 2]).iloc[1]])
def test_a_number_of_numpys_is_bound_like_any_other(shell, value):
    shell.user_ns["two"] = value
    assert shell.run_cell_magic("sql", "trace.duckdb", "SELECT $two AS two, $two > 1 AS more").iloc[0].tolist() == [
        2,
        1,
    ]


@pytest.mark.parametrize("query", ["FROM images", "DESCRIBE images", "SHOW TABLES", "VALUES (1);", "SELECT 1; -- one"])
def test_all_that_reads_is_a_query(shell, query):
    assert len(shell.run_cell_magic("sql", "trace.duckdb", query)) > 0


def test_an_open_store_is_asked_by_its_name_and_not_written(shell, trace, tmp_path):
    copy = tmp_path / "copy.duckdb"
    copy.write_bytes(trace.read_bytes())
    with Store.create(copy) as store:  # open to write
        shell.user_ns["mine"] = store
        models = set(store.sql("SELECT model FROM runs")["model"])
        assert shell.run_cell_magic("sql", "mine", "SELECT count(*) AS n FROM images").at[0, "n"] == 1
        for query in WRITING:
            with pytest.raises(UsageError, match="must be one query that reads"):
                shell.run_cell_magic("sql", "mine", query)
        assert store.sql("SELECT count(*) AS n FROM samples").at[0, "n"] == 1
        assert set(store.sql("SELECT model FROM runs")["model"]) == models
    assert not (trace.parent / "out.csv").exists()


def test_the_first_cell_must_name_a_trace_and_a_missing_variable_is_said(shell):
    with pytest.raises(UsageError, match="must name a trace the first time"):
        shell.run_cell_magic("sql", "", "SELECT 1")
    with pytest.raises(duckdb.Error, match="nowhere"):
        shell.run_cell_magic("sql", "trace.duckdb", "SELECT $nowhere")


def test_a_store_shows_its_runs_and_what_to_do_next(trace):
    with Store.open(trace) as store:
        shown = store._repr_html_()
    assert "trace.duckdb" in shown
    assert "a cat and a dog" in shown
    assert "analysis.explore(store)" in shown
    assert "trace.duckdb</b> is closed" in store._repr_html_()


def test_jupysql_asks_the_same_file_through_its_native_connection(trace, monkeypatch):
    monkeypatch.setenv("PLOOMBER_STATS_ENABLED", "false")  # it would report that it is used
    query = "SELECT step, word, share FROM dominance ORDER BY ALL"
    jupysql = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    jupysql.run_line_magic("load_ext", "sql")
    jupysql.run_line_magic("config", "SqlMagic.autopandas = True")
    with duckdb.connect(str(trace), read_only=True) as jupysql.user_ns["conn"]:
        jupysql.run_line_magic("sql", "conn")
        given = jupysql.run_cell_magic("sql", "", query)
    with Store.open(trace) as store:
        pd.testing.assert_frame_equal(given, store.sql(query))
