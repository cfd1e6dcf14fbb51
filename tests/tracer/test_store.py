"""The store's file: made whole or not at all, changed whole or not at all, readable by anybody."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace

import duckdb
import pyarrow as pa
import pytest

from tracer.capture import Capture
from tracer.rows import CallRow, LayerRow, Pass, RunRow, SampleRow, token_rows
from tracer.store import Store

VIEWS = (
    "images", "words", "attn", "stats", "token_steps", "start_share", "dominance", "dominance_ratio", "completeness",
)  # fmt: skip


def empty_pass(*calls):
    """Return a pass that recorded no map."""
    return Pass(calls, pa.table({}), pa.table({}))


def test_a_new_store_is_an_empty_trace_without_leftovers(tmp_path):
    with Store.create(tmp_path / "it's a trace.duckdb") as store:
        assert store.sql("FROM runs").empty
        assert store.sql("SELECT value FROM meta WHERE key = 'codec'")["value"].tolist() == ["sqrt_64"]
    assert [file.name for file in tmp_path.iterdir()] == ["it's a trace.duckdb"]


def test_rows_are_grouped_by_2048_in_a_file_that_duckdb_1_4_can_read(store, bench):
    database = store.sql("FROM duckdb_databases() WHERE database_name = 'trace'").iloc[0]
    assert database["options"]["row_group_size"] == "2048"
    assert database["tags"]["storage_version"] == "v1.4.0+"
    traced = bench.record(store, bench.Setting(sizes=((1, 1, 300),), length=10))
    rows = "SELECT max(count) n FROM pragma_storage_info('head_stats') WHERE column_name = 'p90'"
    assert 0 < store.sql(rows)["n"][0] <= 2048 < 2 * 300 * 11
    assert store.verify(traced.run_id)["whole"].all()


def test_an_existing_store_is_gone_on_with(tmp_path):
    path = tmp_path / "trace.duckdb"
    for number in (1, 2):
        with Store.create(path) as store:
            assert store.add_run(RunRow("m"), Capture()) == number
    with Store.open(path) as store:
        assert store.sql("SELECT run_id FROM runs ORDER BY 1")["run_id"].tolist() == [1, 2]


def test_an_open_store_cannot_be_changed(tmp_path):
    Store.create(tmp_path / "trace.duckdb").close()
    with Store.open(tmp_path / "trace.duckdb") as store:
        with pytest.raises(duckdb.InvalidInputException, match="read-only"):
            store.add_run(RunRow("m"), Capture())
        with pytest.raises(duckdb.InvalidInputException, match="read-only"):
            store.sql("DELETE FROM meta")


def test_two_readers_see_the_file_at_once(tmp_path):
    Store.create(tmp_path / "trace.duckdb").close()
    with Store.open(tmp_path / "trace.duckdb") as one, Store.open(tmp_path / "trace.duckdb") as two:
        assert one.sql("FROM meta").equals(two.sql("FROM meta"))


def test_what_is_not_there_cannot_be_opened_and_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.duckdb"):
        Store.open(tmp_path / "none.duckdb")
    with pytest.raises(FileNotFoundError, match="folder"):
        Store.create(tmp_path / "none" / "trace.duckdb")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opening", [Store.create, Store.open])
def test_a_file_that_is_no_trace_is_refused_and_left_alone(tmp_path, opening):
    text = tmp_path / "notes.txt"
    text.write_text("not a database " * 1000)
    database = tmp_path / "other.duckdb"
    with duckdb.connect(str(database)) as connection:
        connection.execute("CREATE TABLE mine (i INTEGER)")
    for path in (text, database):
        before = path.read_bytes()
        with pytest.raises(ValueError, match="must be an Attnreg trace"):
            opening(path)
        assert path.read_bytes() == before


def test_a_trace_of_another_schema_version_is_refused(tmp_path):
    path = tmp_path / "trace.duckdb"
    with Store.create(path) as store, closing(store.cursor()) as cursor:
        cursor.execute("UPDATE meta SET value = '0' WHERE key = 'schema_version'")
    with pytest.raises(ValueError, match="schema version 3, got 0"):
        Store.open(path)


def test_a_trace_opened_inside_a_connection_is_let_go_and_the_connection_stays(tmp_path):
    traces = [tmp_path / "a.duckdb", tmp_path / "b.duckdb"]
    for path in traces:
        Store.create(path).close()
    duckdb.connect(tmp_path / "other.duckdb").close()
    with duckdb.connect() as inside:
        for path in traces:
            with Store.open(path, inside) as reader:
                assert reader.sql("SELECT value FROM meta WHERE key = 'codec'").at[0, "value"] == "sqrt_64"
            with Store.create(path):  # nobody reads it any more
                pass
        with pytest.raises(ValueError, match="must be an Attnreg trace"):
            Store.open(tmp_path / "other.duckdb", inside)
        assert inside.execute("SELECT count(*) FROM duckdb_databases() WHERE NOT internal").fetchall() == [(1,)]
        with Store.open(traces[0], inside) as reader:
            assert reader.sql("SELECT count(*) AS n FROM runs").at[0, "n"] == 0


def test_parameters_are_bound_by_place_and_by_name(store):
    word = "'; DROP TABLE runs; --"
    assert store.sql("SELECT ? AS word", [word])["word"].tolist() == [word]
    assert store.sql("SELECT $word AS word", {"word": word})["word"].tolist() == [word]


def test_a_result_that_nobody_reads_to_its_end_blocks_no_other_query(store):
    with closing(store.cursor()) as cursor:
        cursor.execute("SELECT * FROM range(1000000)").fetchone()
        assert store.sql("SELECT 1 AS one")["one"].tolist() == [1]


def test_other_threads_read_while_the_store_is_being_written(store, bench):
    traced = bench.record(store, bench.Setting())
    found = []
    reader = threading.Thread(target=lambda: found.append(store.sql("SELECT count(*) n FROM maps_f32")["n"][0]))
    reader.start()
    reader.join()
    assert found == [2 * (2 + 3) * 8]
    assert traced.run_id == 1


def test_a_run_keeps_all_that_is_said_of_it(store):
    run = RunRow(
        "emoji", "abc", "StableDiffusionPipeline", "DDIM", 25, 7.5, 64, 96, "float32",
        "regulate", {"beta": 0.1, "layers": ["a"]}, {"torch": "2.14.1"},
    )  # fmt: skip
    store.add_run(run, Capture(steps=range(0, 50, 25)))
    row = store.sql("FROM runs").iloc[0]
    assert (row["spec_hash"], row["n_steps"], row["guidance"], row["height"], row["width"]) == (
        "abc",
        25,
        7.5,
        64,
        96,
    )
    assert json.loads(row["method_params"]) == {"beta": 0.1, "layers": ["a"]}
    assert json.loads(row["capture"]) == {
        "layers": ["*"], "steps": [0, 25], "heads": "all", "tokens": "words", "precision": "uint8",
        "resolution": None, "branches": ["cond"], "kinds": ["sample"], "solves": False,
    }  # fmt: skip
    assert json.loads(row["versions"]) == {"torch": "2.14.1"}
    assert row["status"] == "running"


def test_a_pass_is_written_whole_or_not_at_all(store):
    run_id = store.add_run(RunRow("m"), Capture())
    store.add_passes(run_id, [empty_pass(CallRow(0, 0, "sample", ("cond",), 0))])
    twice = empty_pass(CallRow(0, 1, "sample", ("cond",), 1), CallRow(0, 0, "sample", ("cond",), 0))
    with pytest.raises(duckdb.ConstraintException):
        store.add_passes(run_id, [replace(twice, layers=[LayerRow(0, "mid_block.attn2", 2, 2, 1)])])
    assert store.sql("SELECT call FROM calls")["call"].tolist() == [0]
    assert store.sql("FROM layers").empty


def test_a_layers_block_is_read_from_its_path(store):
    run_id = store.add_run(RunRow("m"), Capture())
    paths = ("down_blocks.2.attentions.1.attn2", "mid_block.attentions.0.attn2", "transformer_blocks.11.attn")
    layers = [LayerRow(i, path, 2, 3, 4) for i, path in enumerate(paths)]
    store.add_passes(run_id, [replace(empty_pass(), layers=layers)])
    rows = store.sql("SELECT block, block_idx, h, w, heads FROM layers ORDER BY layer").to_numpy().tolist()
    assert rows == [
        ["down_blocks", 2, 2, 3, 4],
        ["mid_block", 0, 2, 3, 4],
        ["transformer_blocks", 11, 2, 3, 4],
    ]


@pytest.mark.parametrize(
    ("damage", "table"),
    [
        ("DELETE FROM maps_f32 WHERE token = 3 AND head = 0 AND call = 1 AND layer = 0", "maps_f32"),
        ("DELETE FROM head_stats WHERE call = 1 AND sample = 1", "head_stats"),
        ("DELETE FROM head_stats WHERE token IS NULL AND layer = 1", "head_stats"),
        ("DELETE FROM maps_f32 WHERE phase = 'edited' AND layer = 1", "maps_f32"),
        ("DELETE FROM maps_f32 WHERE branch = 'uncond'", "maps_f32"),
        ("INSERT INTO maps_f32 FROM maps_f32 WHERE token = 2 AND layer = 1", "maps_f32"),
        ("UPDATE maps_f32 SET token = 2 WHERE token = 3 AND layer = 0", "maps_f32"),
        ("UPDATE head_stats SET head = 9 WHERE head = 1", "head_stats"),
        ("UPDATE maps_f32 SET token = 40 WHERE token = 3", "maps_f32"),
        ("INSERT INTO maps_f32 SELECT * REPLACE (8 AS call) FROM maps_f32 WHERE call = 1", "maps_f32"),
        ("INSERT INTO maps SELECT * EXCLUDE (map), 0, 0, [1] FROM maps_f32 LIMIT 1", "maps"),
    ],
)
def test_verify_finds_rows_that_are_missing_doubled_or_misplaced(store, bench, damage, table):
    prompts, both = ("a hip|po", "a cat"), bench.BOTH
    bench.record(store, bench.Setting(prompts, ("", ""), edit=slice(2, 4), capture=both))
    whole = store.verify().set_index("table")["whole"]
    assert whole.to_dict() == {"head_stats": True, "maps_f32": True}
    with closing(store.cursor()) as cursor:
        cursor.execute(damage)
    assert not store.verify().set_index("table")["whole"][table]


def test_verify_expects_the_product_of_the_counts(store, bench):
    setting = bench.Setting(("a hip|po", "a cat"), ("", ""), sizes=((2, 2, 3), (1, 2, 4)), calls=5)
    run_id = bench.record(store, setting).run_id
    expected = store.verify(run_id).set_index("table")["expected"].to_dict()
    assert expected["maps_f32"] == 2 * 5 * (3 + 4) * 8
    assert expected["head_stats"] == 5 * (3 + 4) * (8 + 1) + 5 * (3 + 4) * 8
    assert store.verify(run_id + 1).empty


def test_duckdb_alone_reads_the_file_under_any_name(tmp_path, bench):
    path = tmp_path / "trace.duckdb"
    with Store.create(path) as store:
        bench.record(store, bench.Setting(capture=Capture()))
    program = (
        "import sys, duckdb\n"
        "direct = duckdb.connect(sys.argv[1], read_only=True)\n"
        f"for view in {VIEWS}: assert direct.sql(f'FROM {{view}}').fetchall(), view\n"
        "direct.close()\n"
        "other = duckdb.connect()\n"
        "other.execute('ATTACH ? AS mine (READ_ONLY)', [sys.argv[1]])\n"
        f"for view in {VIEWS}: assert other.sql(f'FROM mine.{{view}}').fetchall(), view\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import conftest
from tracer.store import Store

with Store.create(sys.argv[1]) as store:
    add_passes = store.add_passes
    def tell(run_id, passes):
        add_passes(run_id, passes)
        for recorded in passes:
            print(run_id, recorded.calls[0].call, flush=True)
    store.add_passes = tell
    while True:
        conftest.record(store, conftest.Setting(sizes=((8, 8, 4), (4, 4, 4)), length=16, calls=20))
"""


def test_a_killed_run_leaves_a_file_that_opens_with_every_pass_that_was_acknowledged(tmp_path, request):
    path = tmp_path / "trace.duckdb"
    places = [str(request.path.parent), str(request.config.rootpath)]
    command = [sys.executable, "-c", KILLED, str(path), *places]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [tuple(map(int, process.stdout.readline().split())) for _ in range(30)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += [tuple(map(int, line.split())) for line in process.stdout if line.endswith("\n")]
    with Store.open(path) as store:
        calls = store.sql("SELECT run_id, call FROM calls").to_numpy().tolist()
        assert set(acknowledged) <= {tuple(row) for row in calls}
        assert len(acknowledged) >= 30
        assert store.verify()["whole"].all()
    with Store.create(path) as store:
        assert store.add_run(RunRow("next"), Capture()) > acknowledged[-1][0]


def test_samples_and_tokens_come_together_or_not_at_all(store, bench):
    run_id = store.add_run(RunRow("m"), Capture())
    tokens = token_rows(SampleRow(0, "a"), "cond", bench.tokens_of("a", 5), ())
    with pytest.raises(duckdb.Error):
        store.add_samples(run_id, [SampleRow(0, "a")], [row | {"nowhere": 1} for row in tokens])
    assert store.sql("FROM samples").empty
    assert store.sql("FROM tokens").empty
