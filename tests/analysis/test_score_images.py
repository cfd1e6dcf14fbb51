"""Detections of images in memory: every number that a figure needs, and each image looked at once."""

import numpy as np
import pytest
from PIL import Image

from analysis.score_images import score_images
from metrics.detection import detect, look
from tracer.store import Store


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "trace.duckdb") as store:
        yield store


@pytest.fixture
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    return {str(i): Image.fromarray(p) for i, p in enumerate(pixels)}


def test_an_image_is_looked_at_once_per_protocol_and_targets(store, images, tiny_detector, monkeypatch):
    looked_at = []
    monkeypatch.setattr("metrics.detection.look", lambda d, i, t, b: looked_at.append(len(i)) or look(d, i, t, b))
    score_images(store, tiny_detector, {"0": images["0"]}, ["cat"])
    score_images(store, tiny_detector, images, ["cat"])
    score_images(store, tiny_detector, images, ["cat"])
    score_images(store, tiny_detector, images, ["cat", "dog"])
    assert looked_at == [1, 1, 0, 2]
    assert len(store.sql("FROM scores WHERE metric = 'detection_argmax'")) == 2 + 2 * 2


@pytest.mark.parametrize("assignment", ["argmax", "independent", "distinct"])
def test_the_store_has_what_the_detector_says_under_every_assignment(store, images, tiny_detector, assignment):
    score_images(store, tiny_detector, images, ["cat", "dog"])
    said = detect(tiny_detector, list(images.values()), [["cat", "dog"]] * 2, assignment=assignment)
    rows = store.sql("FROM scores WHERE metric = ? ORDER BY image_sha256, target", [f"detection_{assignment}"])
    flat = [detection for detections in said for detection in detections]
    assert rows["value"].tolist() == [detection.score for detection in flat]
    assert rows["query"].tolist() == ["a photo of a cat", "a photo of a dog"] * 2
    for kept, detection in zip(rows["box"], flat, strict=True):
        assert np.array_equal(kept, np.float32(detection.box)) if detection.box else kept is None


def test_verdicts_are_read_at_the_protocols_threshold(store, images, tiny_detector):
    score_images(store, tiny_detector, images, ["cat", "dog"])
    verdicts = store.sql("FROM verdicts WHERE protocol = ?", [tiny_detector.protocol.name])
    assert len(verdicts) == 4
    assert (verdicts["found"] == (verdicts["score"] > tiny_detector.protocol.threshold)).all()
