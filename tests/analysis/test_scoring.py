"""Detections in the store: every number that a figure needs, and each image looked at once."""

import numpy as np
import pytest
from PIL import Image

from analysis import scoring
from analysis.scoring import detection_rows, score_images
from metrics.detection import Detection
from tracer.store import Store

CAT = Detection("cat", "a photo of a cat", 0.7, (1.0, 2.0, 30.0, 40.0))
DOG = Detection("dog", "a photo of a dog", 0.2, None)


def values(rows) -> dict[tuple[str, str], float]:
    return {(row.target, row.metric): row.value for row in rows}


def test_an_images_rows_hold_scores_verdicts_and_boxes():
    rows = values(detection_rows("f00", (CAT, DOG), "ours", 0.5))
    assert rows == {
        ("", "found"): 0.0,
        ("cat", "detection"): 0.7, ("cat", "found"): 1.0, ("cat", "box_left"): 1.0, ("cat", "box_top"): 2.0,
        ("cat", "box_right"): 30.0, ("cat", "box_bottom"): 40.0,
        ("dog", "detection"): 0.2, ("dog", "found"): 0.0,
    }  # fmt: skip


def test_an_image_is_found_when_every_target_is():
    assert values(detection_rows("f00", (CAT,), "ours", 0.5))["", "found"] == 1.0
    assert values(detection_rows("f00", (CAT, DOG), "ours", 0.1))["", "found"] == 1.0


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "trace.duckdb") as store:
        yield store


def test_an_image_is_looked_at_once_per_protocol_and_targets(store, tiny_detector, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    images = {str(i): Image.fromarray(p) for i, p in enumerate(pixels)}
    looked_at = []
    detect = scoring.detect
    monkeypatch.setattr(scoring, "detect", lambda d, i, t: looked_at.append(len(i)) or detect(d, i, t))
    score_images(store, tiny_detector, {"0": images["0"]}, ["cat"])
    score_images(store, tiny_detector, images, ["cat"])
    score_images(store, tiny_detector, images, ["cat"])
    score_images(store, tiny_detector, images, ["cat", "dog"])
    assert looked_at == [1, 1, 0, 2]
    assert len(store.sql("FROM scores WHERE metric = 'detection'")) == 4


def test_an_argmax_detection_without_a_box_is_scored_zero(store):
    store.add_scores(detection_rows("f00", (CAT, Detection("dog", "a dog", 0.0, None)), "ours", 0.0))
    assert store.sql("SELECT value FROM scores WHERE metric = 'found' AND target = 'dog'").iat[0, 0] == 0
