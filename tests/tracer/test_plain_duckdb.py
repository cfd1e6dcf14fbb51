"""DuckDB's own command line opens a trace, without a line of our code: here an older release than the library."""

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import duckdb_cli
import pytest

from tracer.capture import Capture
from tracer.store import Store

CLI = Path(sys.executable).with_name("duckdb")
VIEWS = (
    "images", "words", "attn", "stats", "token_steps", "start_share", "dominance", "dominance_ratio", "completeness",
)  # fmt: skip


@pytest.fixture
def path(tmp_path, bench):
    """A trace with a run of each precision."""
    path = tmp_path / "it's a trace.duckdb"
    with Store.create(path) as store:
        for precision in ("uint8", "float16", "float32", "none"):
            bench.record(store, bench.Setting(capture=Capture(precision=precision)))
    return path


def ask(path: Path, query: str) -> list[dict]:
    done = subprocess.run([CLI, "-readonly", "-json", path, query], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_the_command_line_is_an_older_release_than_the_library():
    assert Path(duckdb_cli.__file__).is_file()
    version = subprocess.run([CLI, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.split()[0].lstrip("v").split(".") < duckdb.__version__.split(".")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_answers(path, view):
    assert ask(path, f"SELECT count(*) AS n FROM {view}")[0]["n"] > 0
    assert ask(path, f"FROM {view} LIMIT 1")


def test_maps_of_each_precision_are_decoded_alike(path):
    rows = ask(path, "SELECT run_id, list(list_sum(map) ORDER BY call, layer, head, token) AS s FROM attn GROUP BY ALL")
    sums = {row["run_id"]: row["s"] for row in rows}
    assert sorted(sums) == [1, 2, 3]
    assert sums[2] == pytest.approx(sums[3], abs=0.02)
    assert sums[1] == pytest.approx(sums[3], abs=0.2)


def test_a_word_s_map_is_the_one_that_our_own_reader_gives(path):
    (row,) = ask(path, "FROM word_map(0, 'hippo', 1, 4)")
    with Store.open(path) as store:
        own = store.maps(0, "hippo", steps=1, size=4).mean((0, 1, 2))
    assert row["map"] == pytest.approx(own.ravel().tolist(), abs=1e-6)
