"""A trace answers in four forms, to readers who can change nothing and reach nothing else."""

import csv
import io
import json

import duckdb
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from analysis.answers import ROWS, Form, ask
from analysis.cli import app
from analysis.info import info
from analysis.trace import Drawing, trace
from tracer.capture import Capture
from tracer.store import Store

PROMPT = "a cat and a dog"


@pytest.fixture(scope="module")
def file(tiny_pipe, tmp_path_factory):
    """A trace of two images, and of a third with statistics only."""
    path = tmp_path_factory.mktemp("answers") / "run.duckdb"
    trace(PROMPT, path, Drawing((3, 4), steps=2), targets=["cat", "dog"], model=tiny_pipe)
    trace(PROMPT, path, Drawing((5,), steps=2), Capture(precision="none"), model=tiny_pipe)
    return path


def test_a_table_shows_names_and_numbers(file):
    lines = ask(file, "SELECT image, prompt, seed FROM images ORDER BY image").split("\n")
    assert lines[0].split() == ["image", "prompt", "seed"]
    assert [line.split() for line in lines[1:]] == [[str(i), *PROMPT.split(), str(3 + i)] for i in range(3)]


def test_a_table_cuts_long_lists_and_many_rows_and_says_so(file):
    assert "... 256]" in ask(file, "SELECT map FROM word_map(0, 'cat', 0, 16)")
    assert ask(file, f"SELECT range i FROM range({ROWS + 7})").endswith("7 more rows; --format csv shows all")


def test_csv_and_json_hold_everything(file):
    query = f"SELECT range i, [1.5, 2] AS l, NULL AS n, 'a,\"b\"' AS t FROM range({ROWS + 7})"
    rows = list(csv.reader(io.StringIO(ask(file, query, Form.CSV))))
    assert rows[0] == ["i", "l", "n", "t"]
    assert rows[-1] == [str(ROWS + 6), "[1.5, 2.0]", "", 'a,"b"']
    answer = json.loads(ask(file, query, Form.JSON))
    assert len(answer) == ROWS + 7
    assert answer[0] == {"i": 0, "l": [1.5, 2.0], "n": None, "t": 'a,"b"'}


@pytest.mark.parametrize("form", Form)
def test_an_answer_is_written_to_a_file_whole(file, tmp_path, form):
    out = tmp_path / "answer"
    assert ask(file, "FROM dominance ORDER BY ALL", form, out) == f"{out}: 84 rows"
    assert [path.name for path in tmp_path.iterdir()] == ["answer"]
    if form is Form.PARQUET:
        with Store.open(file) as store:
            assert pq.read_table(out).num_rows == len(store.sql("FROM dominance"))
    else:
        assert out.read_text() == ask(file, "FROM dominance ORDER BY ALL", form) + "\n"


def test_parquet_without_a_file_is_refused(file):
    with pytest.raises(ValueError, match="--out"):
        ask(file, "FROM runs", Form.PARQUET)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('{other}')", "SELECT content FROM read_text('{other}')", "ATTACH '{other}.duckdb'",
        "COPY (SELECT 1) TO '{other}'", "EXPORT DATABASE '{other}.folder'", "SET enable_external_access = true",
        "INSTALL httpfs", "LOAD httpfs", "SELECT * FROM glob('/*')", "DELETE FROM runs", "CREATE TABLE trace.x (i INT)",
        "DROP VIEW images", "UPDATE runs SET status = 'done'", "SELECT * FROM answer", "SET memory_limit = '1GB'",
    ],
)  # fmt: skip
def test_a_query_changes_nothing_and_reaches_no_other_file(file, tmp_path, query):
    other = tmp_path / "other.csv"
    other.write_text("secret\n1\n")
    before = file.read_bytes()
    with pytest.raises(duckdb.Error):
        ask(file, query.format(other=other))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["other.csv"]
    assert other.read_text() == "secret\n1\n"


def test_traces_are_compared_in_one_query(file):
    query = "SELECT count(*) AS n FROM images a JOIN b.images b USING (image_sha256)"
    copy = file.with_name("copy.duckdb")
    copy.write_bytes(file.read_bytes())
    assert ask(file, query, Form.CSV, others={"b": copy}) == "n\n3"


@pytest.mark.parametrize(("name", "message"), [("a-b", "must be letters"), ("trace", "none of"), ("1a", "must be")])
def test_a_name_that_cannot_be_one_is_refused(file, name, message):
    with pytest.raises(ValueError, match=message):
        ask(file, "SELECT 1", others={name: file})


def test_info_says_what_is_there(file):
    page = info(file)
    assert [line.split()[:4] for line in page.split("\n")[2:4]] == [
        ["1", "done", "plain", "unnamed"],
        ["2", "done", "plain", "unnamed"],
    ]
    assert "precision=none" in page
    assert page.count("yes") == 3
    assert "NO" not in page


def test_info_says_what_is_missing(file, tmp_path):
    broken = tmp_path / "broken.duckdb"
    broken.write_bytes(file.read_bytes())
    with duckdb.connect(str(broken)) as connection:
        connection.execute("DELETE FROM maps WHERE layer = 2 AND call = 1 AND token = 2")
    assert "NO: 2 layers of a pass are not" in info(broken)


def test_info_of_an_empty_trace(tmp_path):
    Store.create(tmp_path / "empty.duckdb").close()
    assert info(tmp_path / "empty.duckdb").endswith("no run")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sql", "none.duckdb", "SELECT 1"], "there is no trace at none.duckdb"),
        (["sql", "{file}", "SELEC"], "Parser Error"),
        (["sql", "{file}", "SELECT 1", "--attach", "b"], "--attach must be NAME=FILE, got b"),
        (["info", "pyproject.toml"], "pyproject.toml must be an Attnreg trace"),
        (["export", "{file}", "/"], "/ must not exist yet"),
        (["import", "none/x.duckdb", "none"], "none is no exported trace"),
        (["trace", "a cat", "--out", "none/x.duckdb"], "the folder of none/x.duckdb does not exist"),
    ],
)
def test_a_command_says_in_a_line_what_is_wrong(file, command, message):
    result = CliRunner().invoke(app, [part.replace("{file}", str(file)) for part in command])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.strip().count("\n") == 0


def test_a_pipeline_is_given_only_what_it_takes(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.trace.EMOJI", {"true_cfg_scale": 2.0})
    monkeypatch.setattr("analysis.trace.load_pipeline", lambda name, device: tiny_pipe)
    with pytest.raises(ValueError, match="StableDiffusionPipeline takes no true_cfg_scale"):
        trace(PROMPT, tmp_path / "t.duckdb", model="emoji")
    assert list(tmp_path.iterdir()) == []


def test_the_command_traces_the_emoji_world(tmp_path):
    out = tmp_path / "t.duckdb"
    command = ["trace", "a cat and a lion", "--out", str(out), "--steps", "3", "--seeds", "3", "--batch", "2", "--both",
               "--target", "cat", "--images", str(tmp_path / "pictures"), "--every", "2", "--heads", "mean",
               "--precision", "float16", "--layers", "up_blocks.*", "--resolution", "8"]  # fmt: skip
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    with Store.open(out) as store:
        assert store.verify()["whole"].all()
        images = store.sql("SELECT seed, done FROM images ORDER BY image")
        assert images.to_numpy().tolist() == [[i, True] for i in range(3)]
        assert store.sql("SELECT DISTINCT step FROM calls ORDER BY 1")["step"].tolist() == [0, 2]
        assert set(store.sql("SELECT DISTINCT branch::VARCHAR b FROM maps_f16")["b"]) == {"cond", "uncond"}
        assert store.maps(2, "lion", layers="up_blocks.1.attentions.0.*").shape == (2, 1, 1, 8, 8)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0.png", "1.png", "2.png"]
