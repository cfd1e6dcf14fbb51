"""Shards: rows that are on disk whole, once, and read back as they were."""

import pyarrow as pa
import pytest
from pyarrow.parquet import write_table

from analysis.shards import SCHEMA, done, read_shards, write_shard


def rows(seeds=(0, 1), spec="s1", protocol="p1", prompt="a cat and a dog") -> list[dict[str, object]]:
    return [
        {"spec": spec, "method": "plain", "parameters": "{}", "prompt_id": "animals-000", "prompt": prompt}
        | {"seen": True, "seed": seed, "target": target, "score": 0.25 + seed, "threshold": 0.5}
        | {"protocol": protocol, "image_sha256": f"{seed:064}", "standing": "no-op" if seed else "acts"}
        for seed in seeds
        for target in ("cat", "dog")
    ]


def test_rows_come_back_as_they_were_written(tmp_path):
    write_shard(tmp_path / "rows", rows())
    assert read_shards(tmp_path / "rows").to_dict("records") == rows()


def test_rows_from_before_methods_could_idle_are_of_methods_that_acted(tmp_path):
    old = pa.schema([field for field in SCHEMA if field.name != "standing"])
    write_table(pa.Table.from_pylist(rows((5,)), old), tmp_path / "old.parquet")
    write_shard(tmp_path, rows((1,)))
    assert read_shards(tmp_path).groupby("seed")["standing"].unique().map(list).to_dict() == {5: ["acts"], 1: ["no-op"]}


def test_an_image_is_done_under_its_specification_and_protocol_only(tmp_path):
    write_shard(tmp_path, rows((0, 1)))
    write_shard(tmp_path, rows((2,), spec="s2"))
    write_shard(tmp_path, rows((3,), protocol="p2"))
    assert done(tmp_path, "p1") == {
        ("s1", "a cat and a dog", 0), ("s1", "a cat and a dog", 1), ("s2", "a cat and a dog", 2),
    }  # fmt: skip
    assert done(tmp_path, "p2") == {("s1", "a cat and a dog", 3)}


def test_nothing_is_done_in_an_empty_or_absent_folder(tmp_path):
    assert done(tmp_path / "absent", "p1") == set()
    assert read_shards(tmp_path / "absent").empty


def test_work_that_is_done_again_counts_once(tmp_path):
    assert write_shard(tmp_path, rows()) == write_shard(tmp_path, rows())
    write_shard(tmp_path, rows((1, 2)))
    assert len(read_shards(tmp_path)) == 6


def test_a_file_that_is_half_written_is_not_read(tmp_path):
    path = write_shard(tmp_path, rows())
    path.with_suffix(".partial").write_bytes(path.read_bytes()[:100])
    assert len(read_shards(tmp_path)) == 4
    assert write_shard(tmp_path, rows()) == path
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_no_rows_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_shard(tmp_path, [])
