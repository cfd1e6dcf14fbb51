"""What is done and what failed, as files."""

from dataclasses import replace

from pyarrow.parquet import read_table, write_table

from analysis.running.estimate import estimate, first_units, in_words, size_of
from analysis.running.ledger import done, failures, forget_failures, rows_of, write_failure, write_unit
from tracer.capture import Capture

ROW = {
    "part": "p", "method": "m", "prompt_id": "i", "prompt": "a cat", "image": "x.png", "image_sha256": "s", "images": 2,
    "seconds": 3.0, "passes": 4, "gradient_passes": 0, "peak_bytes": 5, "device": "cpu", "threads": 1, "host": "h",
    "traced": False,
}  # fmt: skip


def rows(key: str, seeds=(1, 0), **facts):
    return [ROW | {"unit": key, "seed": seed} | facts for seed in seeds]


def test_rows_come_back_sorted_and_whole(tmp_path):
    for key in ("b", "a"):
        write_unit(tmp_path, key, rows(key))
    assert done(tmp_path) == {"a", "b"}
    table = rows_of(tmp_path)
    assert list(zip(table["unit"], table["seed"], strict=True)) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert table[list(ROW)].drop_duplicates().to_dict("records") == [ROW]


def test_a_file_that_was_begun_and_not_finished_is_not_there(tmp_path):
    write_unit(tmp_path, "a", rows("a"))
    (tmp_path / "units" / ".b.77.partial").write_bytes(b"PAR1")
    assert done(tmp_path) == {"a"}
    assert len(rows_of(tmp_path)) == 2


def test_a_failure_is_forgotten_when_asked_or_when_it_is_mended(tmp_path):
    write_failure(tmp_path, "a", {"error": "no"})
    write_failure(tmp_path, "b", {"error": "neither"})
    assert failures(tmp_path) == {"a": {"error": "no"}, "b": {"error": "neither"}}
    write_unit(tmp_path, "a", rows("a"))
    assert list(failures(tmp_path)) == ["b"]
    forget_failures(tmp_path, {"b"})
    assert failures(tmp_path) == {}


def test_an_empty_run_has_no_rows(tmp_path):
    assert done(tmp_path) == set()
    assert list(rows_of(tmp_path).columns)[:2] == ["unit", "part"]
    assert rows_of(tmp_path).empty


def test_the_time_left_is_by_each_methods_own_median(small, tiny_pipe, tmp_path):
    from analysis.prompts.files import PromptSet
    from analysis.running.units import planned

    one = planned(small.parts[0], PromptSet("p", "P", small.parts[0].prompts), tiny_pipe, ("", ""))
    units = list(one.units.values())
    (tmp_path / "x.png").write_bytes(b"1" * 100)
    for unit in units[:3]:  # plain and regulation of the first prompt, plain of the second
        seconds = {"plain": 4.0, "regulation": 10.0}[unit.name]
        facts = {"part": "pairs", "method": unit.name, "seconds": seconds}
        write_unit(tmp_path, unit.key, rows(unit.key, **facts))
    left = estimate(tmp_path, rows_of(tmp_path), units[3:], workers=2)
    assert (left.units, left.images, left.image_bytes, left.trace_bytes, left.bytes) == (3, 6, 600, 0, 600)
    assert left.seconds == (10 + 4 + 10) / 2
    assert estimate(tmp_path, rows_of(tmp_path).head(0), units, 1).seconds is None
    assert [unit.name for unit in first_units(units)] == ["plain", "regulation"]


def test_what_was_made_before_tracing_was_noted_counts_as_untraced(tmp_path):
    write_unit(tmp_path, "a", rows("a"))
    write_unit(tmp_path, "b", rows("b", traced=True))
    file = tmp_path / "units" / "a.parquet"
    write_table(read_table(file).drop_columns("traced"), file)
    assert rows_of(tmp_path).groupby("unit")["traced"].all().to_dict() == {"a": False, "b": True}


def test_sizes_are_of_whole_files_and_what_vanishes_has_none(small, tiny_pipe, tmp_path, monkeypatch):
    from analysis.prompts.files import PromptSet
    from analysis.running.units import planned

    part = replace(small.parts[0], traced={"plain": Capture()})
    one = planned(part, PromptSet("p", "P", part.prompts), tiny_pipe, ("", ""))
    traced = [unit for unit in one.units.values() if unit.capture][:2]
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "a.duckdb").write_bytes(b"1" * 50)
    (tmp_path / "traces" / ".b.77.duckdb").write_bytes(b"1" * 900)
    left = estimate(tmp_path, rows_of(tmp_path), traced, 1)
    assert (left.trace_bytes, left.merged_bytes, left.bytes) == (100, 150, 250)
    (tmp_path / "pairs.duckdb").write_bytes(b"1" * 120)  # most of it is copied already
    assert estimate(tmp_path, rows_of(tmp_path), traced, 1).merged_bytes == 30
    gone = tmp_path / "gone.duckdb"
    monkeypatch.setattr(type(gone), "is_file", lambda path: True)  # renamed between the two questions
    assert size_of(gone) == 0


def test_durations_are_said_as_one_reads_them():
    assert [in_words(s) for s in (None, 12.0, 600.0, 9000.0)] == ["unknown", "12 s", "10 min", "2.5 h"]
    assert in_words(89.4) == "89 s"
