"""Calibration: rates worked out by hand, true shares recovered in simulation, and the emoji detector's own errors."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metrics.calibration import (
    THRESHOLDS,
    Calibration,
    Curve,
    calibrate,
    conjunction,
    corrected,
    known_scores,
    rogan_gladen,
    threshold_curve,
)
from metrics.detection import detect
from metrics.weights import load_detector
from tracer.scenes import ANIMALS, OBJECTS, render, sample_scene

NOUNS = ANIMALS + OBJECTS
GOOD = Calibration(recall=0.9, false_positive_rate=0.1, n_present=500, n_absent=500, threshold=0.2)


def test_a_curve_counts_images_whose_every_target_is_above_the_threshold():
    scores = [[0.9, 0.3], [0.2], [0.5, 0.5, 0.5], [0.01, 0.99]]  # weakest: .3, .2, .5, .01
    assert threshold_curve(scores, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]).tolist() == [1.0, 0.75, 0.5, 0.25, 0.25, 0.0]


def test_the_usual_thresholds_go_from_005_to_05():
    assert (THRESHOLDS[0], THRESHOLDS[-1], len(THRESHOLDS)) == (0.05, 0.5, 46)


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=3), min_size=1, max_size=20))
def test_a_curve_never_rises(scores):
    curve = threshold_curve(scores)
    assert (np.diff(curve) <= 0).all()


@pytest.mark.parametrize("scores", [[], [[0.5], []]])
def test_a_curve_of_nothing_is_refused(scores):
    with pytest.raises(ValueError, match="at least one target"):
        threshold_curve(scores)


def test_a_rate_is_freed_of_both_errors():
    # of 100 images 60 hold their target: .9 * 60 + .1 * 40 = 58 are found
    assert rogan_gladen(0.58, 0.9, 0.1) == pytest.approx(0.6)
    assert rogan_gladen(0.58, 1.0, 0.0) == 0.58


def test_a_rate_that_no_share_explains_is_clipped_and_said_to_be():
    assert rogan_gladen(0.95, 0.9, 0.1) == 1.0
    assert rogan_gladen(0.05, 0.9, 0.1) == 0.0
    rng = np.random.default_rng(0)
    assert corrected(0.98, 100, GOOD, rng).note.startswith("clipped from 1.100")  # .88 / .8
    assert corrected(0.5, 100, GOOD, rng).note == ""


def test_a_detector_that_cannot_tell_is_refused():
    with pytest.raises(ValueError, match="recall must exceed"):
        rogan_gladen(0.5, 0.3, 0.3)
    blind = Calibration(recall=0.2, false_positive_rate=0.3, n_present=50, n_absent=50, threshold=0.1)
    with pytest.raises(ValueError, match="recall must exceed"):
        corrected(0.5, 100, blind, np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [(1.1, 0.9, 0.1), (0.5, 1.2, 0.1), (0.5, 0.9, -0.1)])
def test_shares_outside_zero_to_one_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        rogan_gladen(*wrong)


def test_a_conjunction_misses_more_and_imagines_what_is_missing():
    recall, wrong = conjunction(GOOD, 3)
    assert recall == pytest.approx(0.9**3)  # all three found
    assert wrong == pytest.approx(0.9 * 0.9 * 0.1)  # two found, the third imagined
    assert conjunction(GOOD, 1) == (0.9, 0.1)
    with pytest.raises(ValueError, match="targets must be at least 1"):
        conjunction(GOOD, 0)


def simulated(
    rng: np.random.Generator, share: float, images: int, n: int, targets: int = 1
) -> tuple[float, Calibration]:
    """A rate over images of which a share holds all targets and the rest lacks one, and a calibration on n targets."""
    recall, wrong = 0.85, 0.08
    there = np.ones((images, targets), bool)
    there[:, 0] = rng.random(images) < share
    found = rng.random((images, targets)) < np.where(there, recall, wrong)
    counted = Calibration(rng.binomial(n, recall) / n, rng.binomial(n, wrong) / n, n, n, 0.2)
    return float(found.all(1).mean()), counted


@pytest.mark.parametrize("targets", [1, 2])
def test_the_true_share_is_recovered_and_held_by_the_interval(targets):
    rng = np.random.default_rng(7)
    results = []
    for _ in range(300):
        rate, counted = simulated(rng, 0.6, 400, 200, targets)
        results.append(corrected(rate, 400, counted, rng, targets, draws=1_000))
    assert np.mean([r.rate for r in results]) == pytest.approx(0.6, abs=0.01)
    held = np.mean([r.low <= 0.6 <= r.high for r in results])
    assert 0.91 <= held <= 0.99  # .95 within about three standard errors of 300 trials


def test_an_interval_knows_how_well_the_detector_is_known():
    # without the calibration's doubt it would be 2 * 1.96 * sqrt(.58 * .42 / 1e6) / .8 = .0024 wide
    few = Calibration(0.9, 0.1, 40, 40, 0.2)
    widths = []
    for calibration in (few, Calibration(0.9, 0.1, 10**8, 10**8, 0.2)):
        answer = corrected(0.58, 10**6, calibration, np.random.default_rng(1))
        widths.append(answer.high - answer.low)
    assert widths[1] == pytest.approx(0.0024, rel=0.05)
    assert widths[0] > 50 * widths[1]


def test_a_perfect_calibration_of_few_targets_is_no_certainty():
    perfect = Calibration(1.0, 0.0, 10, 10, 0.2)
    answer = corrected(0.5, 10**6, perfect, np.random.default_rng(1))
    assert (answer.rate, answer.note) == (0.5, "")
    assert answer.high - answer.low > 0.1


def test_draws_that_cannot_tell_widen_the_interval_to_both_ends():
    barely = Calibration(0.6, 0.5, 10, 10, 0.2)  # in about a third of the draws it is the other way round
    nothing, everything = (corrected(rate, 10**6, barely, np.random.default_rng(1)) for rate in (0.0, 1.0))
    assert (nothing.rate, nothing.low, nothing.high) == (0.0, 0.0, 1.0)
    assert (everything.rate, everything.low, everything.high) == (1.0, 0.0, 1.0)


def test_the_interval_of_a_conjunction_closes_on_its_rate():
    sure = Calibration(0.9, 0.1, 10**10, 10**10, 0.2)
    answer = corrected(0.5, 10**10, sure, np.random.default_rng(1), targets=3)
    # recall .729, false positives .081: (.5 - .081) / .648
    assert (answer.low, answer.rate, answer.high) == pytest.approx((0.419 / 0.648,) * 3, abs=1e-4)


def test_the_same_generator_gives_the_same_interval():
    one, two, other = (corrected(0.58, 100, GOOD, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == two
    assert one != other


@pytest.mark.parametrize("wrong", [{"images": 0}, {"draws": 0}, {"confidence": 1.0}])
def test_an_interval_from_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        corrected(**{"rate": 0.5, "images": 100, "calibration": GOOD, "rng": np.random.default_rng(0)} | wrong)


def test_the_lowest_threshold_that_reaches_a_rate_is_taken():
    rates = [(0.1, 0.99, 0.2), (0.2, 0.95, 0.05), (0.3, 0.9, 0.01)]
    curve = Curve(tuple(Calibration(recall, wrong, 100, 100, level) for level, recall, wrong in rates))
    assert curve.reaching(0.05).threshold == 0.2
    assert curve.reaching(0.04).threshold == 0.3
    assert curve.at(0.2).recall == 0.95
    with pytest.raises(ValueError, match=r"from 0\.01, got 0\.001"):
        curve.reaching(0.001)
    with pytest.raises(ValueError, match="one of the curve's 3"):
        curve.at(0.25)


@pytest.mark.parametrize("wrong", [{"recall": 1.2}, {"false_positive_rate": -0.1}, {"n_present": 0}, {"n_absent": 0}])
def test_a_calibration_that_was_not_counted_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must lie in|must be counted"):
        Calibration(
            **{"recall": 0.9, "false_positive_rate": 0.1, "n_present": 9, "n_absent": 9, "threshold": 0.1} | wrong
        )


@pytest.fixture(scope="module")
def detector():
    return load_detector()


@pytest.fixture(scope="module")
def known():
    """Forty rendered scenes from a seed of their own, half of the pairs never trained on, and what is in them."""
    rng = np.random.default_rng(123_456)
    scenes = [sample_scene(rng, seen_only=index % 2 == 0) for index in range(40)]
    images = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2) / 255
    return images, [[thing.word for thing in scene.things] for scene in scenes]


def test_targets_are_scored_as_the_metric_scores_them(detector, known):
    images, names = known[0][:6], known[1][:6]
    there, gone = known_scores(detector, images, names, NOUNS, batch=64)
    assert there == pytest.approx([d.score for image in detect(detector, images, names) for d in image], abs=1e-5)
    absent = [[noun for noun in NOUNS if noun not in image] for image in names]
    pairs = [(index, noun) for index, image in enumerate(absent) for noun in image]
    together = detect(detector, images[[i for i, _ in pairs]], [[*names[i], noun] for i, noun in pairs], batch=64)
    assert gone == pytest.approx([detections[-1].score for detections in together], abs=1e-5)
    _, alone = known_scores(detector, images, names, NOUNS, "alone", batch=64)
    assert (alone >= gone - 1e-6).all()
    assert (alone > gone + 1e-3).any()


def test_the_emoji_detector_keeps_what_its_card_says(detector, known):
    images, names = known
    curve = calibrate(detector, images, names, NOUNS, batch=64)
    there = sum(map(len, names))
    assert [point.n_present for point in curve.points] == [there] * 46
    assert [point.n_absent for point in curve.points] == [24 * 40 - there] * 46
    for kind in ("recall", "false_positive_rate"):
        assert (np.diff([getattr(point, kind) for point in curve.points]) <= 0).all()
    shipped = curve.at(detector.protocol.threshold)
    assert shipped.recall >= 0.95  # the card has .99 of 2000 scenes
    assert shipped.false_positive_rate <= 0.01
    assert curve.reaching(0.01).threshold <= detector.protocol.threshold


def test_content_that_cannot_be_counted_is_refused(detector, known):
    images, names = known[0][:2], known[1][:2]
    with pytest.raises(ValueError, match="words of the vocabulary, got "):
        calibrate(detector, images, names, ["unicorn"])
    with pytest.raises(ValueError, match="a repeated name"):
        calibrate(detector, images, [["cat", "cat"], ["dog"]], NOUNS)
    with pytest.raises(ValueError, match="0 that are there"):
        calibrate(detector, images, [[], []], NOUNS)
    with pytest.raises(ValueError, match="thresholds must rise"):
        calibrate(detector, images, names, NOUNS, thresholds=(0.2, 0.1))
