"""Scores of sets: intervals that are as wide as the metric varies, and warnings where it misleads."""

from typing import Any

import jaxtyping
import numpy as np
import pytest

from metrics.fid import cmmd, fid, kid_unbiased
from metrics.set_scores import SET_METRICS, cmmd_scores, set_scores, small_sample_warnings, subsample_interval

METRICS = {"fid": fid, "kid": kid_unbiased, "cmmd_u": cmmd, "cmmd_v": lambda x, y: cmmd(x, y, biased=True)}


def pair(rng: np.random.Generator, count: int, shift: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    spread = np.linspace(1, 0.3, 8)
    return rng.normal(size=(count, 8)) * spread + shift, rng.normal(size=(count, 8)) * spread


@pytest.mark.parametrize("metric", SET_METRICS)
def test_intervals_are_centred_on_the_value_and_as_wide_as_it_varies_between_sets(metric):
    rng = np.random.default_rng(0)
    values, margins = [], []
    for _ in range(60):
        x, y = pair(rng, 60)
        low, high = subsample_interval(metric, x, y, rng, subsamples=30)
        values.append(METRICS[metric](x, y))
        margins.append((high - low) / 2)
        assert (low + high) / 2 == pytest.approx(values[-1], rel=1e-6)
    assert 0.75 < np.mean(margins) / (1.96 * np.std(values)) < 1.5  # over 60 sets a deviation is known to 9 %


def test_intervals_follow_from_the_generator_and_grow_with_confidence():
    x, y = pair(np.random.default_rng(1), 30)
    low, high = subsample_interval("kid", x, y, np.random.default_rng(2))
    assert (low, high) == subsample_interval("kid", x, y, np.random.default_rng(2))
    wider = subsample_interval("kid", x, y, np.random.default_rng(2), confidence=0.99)
    assert (wider[1] - wider[0]) / (high - low) == pytest.approx(2.5758 / 1.9600, rel=1e-4)


def test_intervals_that_cannot_be_had_are_refused():
    x, y = pair(np.random.default_rng(3), 30)
    rng = np.random.default_rng(4)
    with pytest.raises(ValueError, match="of 4 images at least, got 3 and 30"):
        subsample_interval("kid", x[:3], y, rng)
    with pytest.raises(ValueError, match="subsamples must be at least 2"):
        subsample_interval("kid", x, y, rng, subsamples=1)
    with pytest.raises(ValueError, match="confidence in"):
        subsample_interval("kid", x, y, rng, confidence=1.0)


def test_an_unknown_metric_is_refused():
    unknown: Any = "is"
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="metric must be one of fid, kid"):
            subsample_interval(unknown, *pair(np.random.default_rng(3), 30), np.random.default_rng(4))
        with pytest.raises(ValueError, match="metric must be one of fid, kid"):
            small_sample_warnings(unknown, 5, 5, 5)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("metric", "n", "n_reference", "dimension", "parts"),
    [
        ("fid", 3000, 3000, 2048, []),
        ("fid", 3000, 3001, 2048, ["3000 and 3001 images"]),
        ("fid", 2047, 2047, 512, ["biased upwards"]),
        ("fid", 2048, 2048, 2048, ["not full rank"]),  # one is lost to the mean
        ("fid", 3000, 100, 512, ["3000 and 100", "fid of 100 images is biased", "not full rank"]),
        ("kid", 100, 200, 2048, []),
        ("kid", 200, 99, 2048, ["kid of 99 images"]),
        ("cmmd_u", 5, 8, 768, []),
        ("cmmd_v", 5000, 5000, 768, []),
        ("cmmd_v", 4999, 5000, 768, ["4999 and 5000", "take cmmd_u"]),
    ],
)
def test_small_samples_are_warned_of(metric, n, n_reference, dimension, parts):
    found = small_sample_warnings(metric, n, n_reference, dimension)
    assert len(found) == len(parts)
    assert all(part in text for part, text in zip(parts, found, strict=True))


def test_scores_of_a_set_carry_their_value_interval_sizes_and_warnings():
    x, y = pair(np.random.default_rng(5), 40)
    scores = set_scores(x, y[:35], np.random.default_rng(6), subsamples=10)
    assert [score.metric for score in scores] == ["fid", "kid"]
    assert [score.value for score in scores] == [fid(x, y[:35], allow_unequal=True), kid_unbiased(x, y[:35])]
    assert all(score.low < score.value < score.high for score in scores)
    assert {(score.n, score.n_reference) for score in scores} == {(40, 35)}
    assert [score.warnings for score in scores] == [small_sample_warnings(name, 40, 35, 8) for name in ("fid", "kid")]


def test_both_cmmds_are_scored_side_by_side():
    x, y = pair(np.random.default_rng(7), 40)
    scores = cmmd_scores(x, y, np.random.default_rng(8), subsamples=10)
    assert {score.metric: score.value for score in scores} == {"cmmd_u": cmmd(x, y), "cmmd_v": cmmd(x, y, biased=True)}
    assert ["take cmmd_u" in str(score.warnings) for score in scores] == [False, True]
