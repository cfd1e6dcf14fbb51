"""Tasks as a metric: a row per image under the task's own name, with what is wrong, and colours by CLIP."""

import json

import numpy as np
import pytest
from PIL import Image

from metrics.judging import tasks_protocol
from metrics.pictures import Picture
from metrics.protocols import emoji_clip, emoji_detection
from metrics.scoring import score
from tracer.scenes import place, render
from tracer.store import Store

RECORDS = {
    "counting": {"include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]},
    "two_object": {"include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1}]},
    "colors": {"include": [{"class": "car", "count": 1, "color": "green"}]},
}
SHOWN = {  # words and colours, and whether that is what the record asks
    "counting": [(("cat", "cat"), (None, None), True), (("cat",), (None,), False)],
    "two_object": [(("cat", "dog"), (None, None), True), (("cat", "bird"), (None, None), False)],
    "colors": [(("car",), ("green",), True), (("car",), ("red",), False)],
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[tuple[Picture, bool]]:
    folder, rng = tmp_path_factory.mktemp("tasks"), np.random.default_rng(7)
    made = []
    for tag, shown in SHOWN.items():
        for words, colours, right in shown:
            path = folder / f"{tag}-{right}.png"
            Image.fromarray(render(place(rng, words, list(colours)))).save(path)
            record = {"tag": tag, "prompt": tag, **RECORDS[tag]}
            made.append((Picture(path, tag, int(right), "plain", tag, tag=tag, metadata=record), right))
    return made


def test_each_task_is_a_row_under_its_own_name(pictures, tmp_path):
    with Store.create(tmp_path / "scores.duckdb") as store:
        report = score(store, [picture for picture, _ in pictures], [tasks_protocol("emoji")])
        assert report.problems == ()
        rows = store.sql("SELECT path, s.metric, s.value, s.query FROM scores s JOIN pictures USING (image_sha256)")
        said = {row.path.split("/")[-1]: (row.metric, row.value == 1, row.query) for row in rows.itertuples()}
        names = {"counting": "owl-count", "two_object": "owl-two-object", "colors": "owl-colour"}
        for picture, right in pictures:
            metric, correct, reason = said[picture.path.name]
            assert (metric, correct) == (names[picture.tag], right), picture.path.name
            assert right == (not isinstance(reason, str))
        values = store.sql("SELECT metric, avg(value) AS value FROM picture_values GROUP BY metric")
        assert dict(values.itertuples(index=False)) == dict.fromkeys(names.values(), 0.5)
        assert score(store, [picture for picture, _ in pictures], [tasks_protocol("emoji")]).worked == 0


def test_a_picture_without_a_record_is_no_task(tmp_path, pictures):
    bare = Picture(pictures[0][0].path, "a cat", 0, "plain", "a cat")
    with Store.create(tmp_path / "scores.duckdb") as store:
        assert score(store, [bare], [tasks_protocol("emoji")]).problems == ()
        assert store.sql("FROM scores").empty


def test_a_record_of_another_form_is_named(tmp_path, pictures):
    odd = Picture(pictures[0][0].path, "a cat", 0, "plain", "a cat", metadata={"include": "a cat", "tag": "counting"})
    with Store.create(tmp_path / "scores.duckdb") as store:
        (problem,) = score(store, [odd], [tasks_protocol("emoji")]).problems
        assert problem.path == odd.path


def test_the_protocol_depends_on_the_detector_the_colours_and_the_tasks():
    facts = tasks_protocol("emoji").facts
    assert json.loads(json.dumps(facts))["detector"]["weights"] == emoji_detection().weights
    assert facts["colours"] == emoji_clip().facts
    assert tasks_protocol("real").fingerprint.startswith("owl-tasks#")
    assert tasks_protocol("emoji").fingerprint.startswith("emoji-tasks#")
