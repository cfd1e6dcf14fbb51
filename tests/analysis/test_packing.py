"""Packing: the same trace in a smaller file."""

import duckdb
import pytest

from analysis.packing import pack
from regulate import METHODS, Request, generate
from tracer.capture import Capture
from tracer.scores import ScoreRow, add_scores
from tracer.store import Store


@pytest.fixture(scope="module")
def files(tiny_pipe, tmp_path_factory):
    """A trace as it was recorded, and packed."""
    folder = tmp_path_factory.mktemp("packing")
    recorded, packed = folder / "recorded.duckdb", folder / "packed.duckdb"
    request = Request("a cat and a dog", ("cat", "dog"), (1, 2), steps=6)
    with Store.create(recorded) as store:
        for name in ("plain", "regulation", "regulation-fixed"):
            generate(tiny_pipe, request, METHODS[name], store, Capture())
        add_scores(store, [ScoreRow("f00", "ours", "found", 1.0, "cat")])
    pack(recorded, packed)
    return recorded, packed


def test_every_table_and_view_holds_the_same_rows(files):
    with duckdb.connect() as both:
        for name, path in zip(("recorded", "packed"), files, strict=True):
            both.execute(f"ATTACH '{path}' AS {name} (READ_ONLY)")
        names = both.sql("SELECT DISTINCT table_name FROM information_schema.tables").df()["table_name"].tolist()
        assert {"maps", "head_stats", "scores", "attn", "dominance", "completeness"} <= set(names)
        for name in names:
            rows = [both.sql(f"SELECT count(*) FROM {trace}.{name}").fetchall() for trace in ("recorded", "packed")]
            assert rows[0] == rows[1]
        for name in ("maps", "head_stats", "scores", "samples", "dominance"):
            assert both.sql(f"SELECT count(*) FROM recorded.{name}").fetchall() != [(0,)]
            lost = both.sql(f"SELECT count(*) FROM (FROM recorded.{name} EXCEPT ALL FROM packed.{name})")
            assert lost.fetchall() == [(0,)]


def test_the_packed_file_is_a_whole_trace_and_smaller(files):
    recorded, packed = files
    assert packed.stat().st_size < recorded.stat().st_size
    with Store.open(packed) as store:
        assert store.verify()["whole"].all()


def test_a_file_that_is_there_is_not_touched(files):
    recorded, packed = files
    before = packed.read_bytes()
    with pytest.raises(ValueError, match="must not exist yet"):
        pack(recorded, packed)
    assert packed.read_bytes() == before
