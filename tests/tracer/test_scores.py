"""Scores: what is there stays, all of a step is written or nothing, verdicts are scores read at a threshold."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracer.capture import Capture
from tracer.rows import RunRow, SampleRow
from tracer.scores import (
    PictureRow,
    ProtocolRow,
    ReadingRow,
    ScoreRow,
    SetScoreRow,
    Written,
    add_protocols,
    add_scores,
    add_set_scores,
    local_path,
    pictures_in,
    write,
)
from tracer.store import Store
from tracer.words import Target

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.floats(allow_nan=False, width=32)
boxes = st.none() | st.tuples(*[numbers] * 4)
scores = st.builds(ScoreRow, texts, texts, texts, st.floats(allow_nan=False), texts, texts, st.none() | texts, boxes)


def test_a_score_that_is_there_stays_unless_it_is_to_be_replaced(store):
    row = ScoreRow("aa", "owl", "detection_argmax", 0.25, "cat", "cat")
    add_scores(store, [row, ScoreRow("aa", "clip", "clip_cos", 0.5, against="a cat")])
    add_scores(store, [replace(row, value=0.75)])
    add_scores(store, [])
    assert store.sql("SELECT value FROM scores WHERE protocol = 'owl'")["value"].tolist() == [0.25]
    add_scores(store, [replace(row, value=0.75)], replace=True)
    assert store.sql("SELECT value FROM scores ORDER BY value")["value"].tolist() == [0.5, 0.75]


def test_what_an_image_was_held_against_tells_scores_apart(store):
    row = ScoreRow("aa", "owl", "detection_argmax", 0.25, "cat", "cat")
    add_scores(store, [row, replace(row, against="cat, dog", value=0.5)])
    assert store.sql("SELECT against, value FROM scores ORDER BY against").to_numpy().tolist() == [
        ["cat", 0.25],
        ["cat, dog", 0.5],
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(rows=st.lists(scores, unique_by=lambda r: (r.image_sha256, r.protocol, r.metric, r.target, r.against)))
def test_scores_come_back_as_they_were(store, rows):
    with store.transaction() as cursor:
        cursor.execute("DELETE FROM scores")
    add_scores(store, rows)
    names = ", ".join(ScoreRow.__dataclass_fields__)
    back = store.cursor().execute(f"SELECT {names} FROM scores").fetchall()
    assert {ScoreRow(*values[:7], tuple(values[7]) if values[7] else None) for values in back} == set(rows)


def test_a_step_is_written_whole_or_not_at_all(store):
    good = [ScoreRow("aa", "owl", "detection_argmax", 0.25, "cat")]
    with pytest.raises(Exception, match="seed"):
        write(
            store, Written(good, {("aa", "clip"): np.ones(2, np.float32)}, [PictureRow("a.png", "x", "p", seed="1st")])
        )
    assert [len(store.sql(f"FROM {table}")) for table in ("scores", "embeddings", "pictures")] == [0, 0, 0]


def test_a_pictures_newer_row_takes_the_older_ones_place_and_comes_back_whole(store):
    old = PictureRow("a.png", "plain", "a cat", 3, "p0", ("cat",), "animals", '{"a": 1}', 10, 2**60, 64, 32)
    new = replace(old, image_sha256="ff", notes=("was grey",), seed=None)
    write(store, Written(pictures=[old]))
    write(store, Written(pictures=[new, PictureRow("b.png", "plain", "", error="it is no image")]))
    assert pictures_in(store)["a.png", "plain"] == new
    assert pictures_in(store)["b.png", "plain"].error == "it is no image"


def test_a_file_below_the_stores_folder_is_named_from_there(tmp_path):
    with Store.create(tmp_path / "scores.duckdb") as store:
        assert local_path(store, tmp_path / "images" / "0.png") == "images/0.png"
        assert local_path(store, tmp_path.parent / "0.png") == str((tmp_path.parent / "0.png").resolve())


def test_a_threshold_and_an_assignment_are_ways_to_read_the_same_scores(store):
    rows = [
        ScoreRow("aa", "owl", f"detection_{assignment}", value, target, "cat, dog")
        for assignment, values in {"argmax": (0.6, 0.2), "independent": (0.6, 0.5)}.items()
        for target, value in zip(("cat", "dog"), values, strict=True)
    ]
    add_scores(store, rows)
    add_protocols(
        store,
        [ProtocolRow("owl", "DetectionProtocol", "emoji", {"a": 1}, {"torch": "2.14.1"})],
        [ReadingRow(f"owl@{t},{a}", "owl", t, a) for t in (0.1, 0.4) for a in ("argmax", "independent")],
    )
    found = store.sql("SELECT protocol, bool_and(found) AS found FROM verdicts GROUP BY protocol ORDER BY protocol")
    assert dict(zip(found["protocol"], found["found"], strict=True)) == {
        "owl@0.1,argmax": True,
        "owl@0.1,independent": True,
        "owl@0.4,argmax": False,
        "owl@0.4,independent": True,
    }
    assert store.sql("SELECT found FROM found_at(0.4)")["found"].tolist() == [False]
    assert store.sql("SELECT found FROM found_at(0.4, by_assignment := 'independent')")["found"].tolist() == [True]


def test_an_image_whose_score_equals_the_threshold_is_not_found(store):
    add_scores(store, [ScoreRow("aa", "owl", "detection_argmax", 0.5, "cat", "cat")])
    assert store.sql("SELECT found FROM found_at(0.5)")["found"].tolist() == [False]


def test_a_traced_images_outcome_is_that_of_its_own_targets(store):
    run = store.add_run(RunRow("tiny"), Capture())
    targets = (Target("dog", (5,)), Target("cat", (2,)))
    store.add_samples(run, [SampleRow(0, "a dog and a cat", targets=targets)], [])
    store.add_images(run, {0: ("aa", "0.png")})
    add_protocols(store, [], [ReadingRow("owl@0.5", "owl", 0.5, "argmax")])
    asked = {"cat": {"cat": 0.9}, "cat, dog": {"cat": 0.9, "dog": 0.1}}
    add_scores(
        store,
        [
            ScoreRow("aa", "owl", "detection_argmax", value, target, against)
            for against, values in asked.items()
            for target, value in values.items()
        ],
    )
    assert store.sql("SELECT protocol, found FROM outcomes").to_numpy().tolist() == [["owl@0.5", False]]


def test_a_sets_score_is_kept_with_its_interval_and_warnings(store):
    row = SetScoreRow("s", "r", "inception", "fid", 1.5, 1.0, None, 10, 20, ("few images",))
    add_set_scores(store, [row])
    (back,) = store.cursor().execute("FROM set_scores").fetchall()
    assert back == ("s", "r", "inception", "fid", 1.5, 1.0, None, 10, 20, ["few images"])
