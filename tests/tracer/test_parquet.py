"""A trace that was exported and imported holds what it held, under new run numbers."""

import duckdb
import numpy as np
import pytest

from tracer.capture import Capture
from tracer.parquet import LARGE, SMALL, export_parquet, import_parquet
from tracer.scores import PictureRow, ReadingRow, ScoreRow, Written, add_protocols, write
from tracer.store import Store

CAPTURES = [Capture(), Capture(precision="float16", heads="mean"), Capture(precision="none"), None]


@pytest.fixture
def filled(store, bench):
    """A store with a run of each precision, one of them edited, and a row in every table of scores but one."""
    for capture in CAPTURES:
        bench.record(store, bench.Setting(capture=capture or bench.BOTH, edit=slice(1, 2)))
    box = (1.0, 2.0, 3.0, 4.0)
    scores = [ScoreRow("aa", "owl", "detection_argmax", 0.25, "cat", "cat, dog", "a cat", box)]
    vectors = {("aa", "clip"): np.ones(3, np.float32)}
    write(store, Written(scores, vectors, [PictureRow("a.png", "plain", "a cat", 3, targets=("cat",))]))
    add_protocols(store, [], [ReadingRow("owl@0.1", "owl", 0.1, "argmax")])
    return store


def rows_of(store, table):
    frame = store.sql(f"FROM {table} ORDER BY ALL")
    return [[value.tolist() if isinstance(value, np.ndarray) else value for value in row] for row in frame.to_numpy()]


def test_an_exported_trace_comes_back_as_it_was(filled, tmp_path):
    export_parquet(filled, tmp_path / "out")
    assert import_parquet(tmp_path / "out", tmp_path / "back.duckdb") == [1, 2, 3, 4]
    with Store.open(tmp_path / "back.duckdb") as back:
        assert back.verify()["whole"].all()
        for table in (*SMALL, *LARGE):
            assert repr(rows_of(back, table)) == repr(rows_of(filled, table)), table
        assert np.array_equal(back.maps((2, 0), "cat", layers=0), filled.maps((2, 0), "cat", layers=0))


def test_the_large_tables_are_partitioned_by_run_and_sample(filled, tmp_path):
    export_parquet(filled, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*SMALL, *LARGE}
    assert sorted(path.name for path in (tmp_path / "out" / "head_stats").iterdir()) == [
        f"run_id={i}" for i in range(1, 5)
    ]
    count = duckdb.sql(
        f"SELECT count(*) FROM read_parquet('{tmp_path}/out/maps/**/*.parquet', hive_partitioning = true) "
        "WHERE run_id = 1 AND sample = 0"
    ).fetchall()
    assert count == filled.sql("SELECT count(*)::BIGINT n FROM maps").to_records(index=False).tolist()


def test_traces_are_brought_together_with_new_numbers(filled, tmp_path):
    export_parquet(filled, tmp_path / "out")
    path = tmp_path / "both.duckdb"
    import_parquet([tmp_path / "out"] * 2, path)
    assert import_parquet(str(tmp_path / "out"), path) == [9, 10, 11, 12]
    with Store.open(path) as store:
        assert store.verify()["whole"].all()
        assert store.sql("SELECT run_id FROM runs ORDER BY 1")["run_id"].tolist() == list(range(1, 13))
        assert store.sql("SELECT count(*) n FROM scores")["n"].tolist() == [1]


def test_an_import_that_fails_changes_nothing(filled, tmp_path):
    export_parquet(filled, tmp_path / "out")
    path = tmp_path / "back.duckdb"
    import_parquet(tmp_path / "out", path)
    broken = next((tmp_path / "out" / "maps").rglob("*.parquet"))
    broken.write_bytes(b"no parquet")
    with pytest.raises(duckdb.Error):
        import_parquet(tmp_path / "out", path)
    with Store.open(path) as store:
        assert len(store.sql("FROM runs")) == 4
        assert store.verify()["whole"].all()


def test_an_export_that_fails_leaves_nothing(filled, tmp_path, monkeypatch):
    monkeypatch.setattr("tracer.parquet.LARGE", ("head_stats", "nowhere"))
    with pytest.raises(duckdb.Error):
        export_parquet(filled, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_what_is_there_is_not_written_over_and_what_is_not_there_is_not_read(filled, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="must not exist"):
        export_parquet(filled, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"no runs/0\.parquet"):
        import_parquet(tmp_path / "out", tmp_path / "new.duckdb")
    assert not (tmp_path / "new.duckdb").exists()
    with pytest.raises(FileNotFoundError, match="folder of"):
        export_parquet(filled, tmp_path / "none" / "out")
