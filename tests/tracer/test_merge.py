"""Traces of workers, brought together: each once, nothing lost."""

import pytest

from regulate import METHODS, Request, generate
from tracer.capture import Capture
from tracer.merge import Part, merge
from tracer.store import Store

REQUEST = Request("a cat and a dog", ("cat", "dog"), (0, 1), steps=2)
TABLES = ("samples", "tokens", "layers", "calls", "head_stats", "maps")


def traced(pipe, path, method="plain"):
    with Store.create(path) as store:
        generate(pipe, REQUEST, METHODS[method], store, Capture(tokens="targets"))
    return path


@pytest.fixture
def parts(tiny_pipe, tmp_path):
    return {name: Part(traced(tiny_pipe, tmp_path / f"{name}.duckdb", name)) for name in ("plain", "regulation")}


def contents(store, run):
    """Return every row of a run, without its number."""
    return {
        table: sorted(map(repr, store.sql(f"SELECT * EXCLUDE (run_id) FROM {table} WHERE run_id = ?", [run]).values))
        for table in TABLES
    }


def test_every_row_arrives_once_however_often_it_is_asked(parts, tmp_path):
    with Store.create(tmp_path / "all.duckdb") as store:
        numbers = merge(store, parts)
        assert merge(store, parts) == numbers == {"plain": 1, "regulation": 2}
        assert store.verify()["whole"].all()
        for name, number in numbers.items():
            with Store.open(parts[name].path) as own:
                assert contents(store, number) == contents(own, 1)
        assert list(store.sql("SELECT method FROM runs ORDER BY run_id")["method"]) == ["plain", "regulation"]


def test_a_trace_that_is_in_the_store_need_not_be_there_any_more(parts, tmp_path):
    with Store.create(tmp_path / "all.duckdb") as store:
        first = merge(store, parts)
        parts["plain"].path.unlink()
        assert merge(store, parts) == first
        with pytest.raises(FileNotFoundError, match=r"there is no trace at .*gone.duckdb"):
            merge(store, {"gone": Part(tmp_path / "gone.duckdb")})


def test_a_trace_can_be_called_by_another_method(parts, tmp_path):
    with Store.create(tmp_path / "all.duckdb") as store:
        merge(store, {"x": Part(parts["regulation"].path, "beta 0.1")})
        assert store.sql("SELECT DISTINCT method FROM images")["method"].tolist() == ["beta 0.1"]


def test_a_file_of_two_runs_is_refused_and_leaves_nothing(tiny_pipe, parts, tmp_path):
    with Store.create(parts["plain"].path) as store:
        generate(tiny_pipe, REQUEST, METHODS["regulation"], store, Capture(precision="none"))
    with Store.create(tmp_path / "all.duckdb") as store:
        with pytest.raises(ValueError, match="must hold one run, got 2"):
            merge(store, {"two": parts["plain"]})
        assert store.sql("FROM runs").empty
        assert store.sql("FROM samples").empty
        merge(store, {"one": parts["regulation"]})  # the name of the part is free again
