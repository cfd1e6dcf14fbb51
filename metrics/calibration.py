"""How far a detection rate can be trusted: how often the detector misses and imagines, and the rate without that.

Conventions:
    Scores are as in ``metrics/detection.py``: sigmoids in [0, 1]; found means above the threshold, not at it.
    recall               share of targets that are in the picture and found.
    false_positive_rate  share of targets that are not in the picture and found nevertheless.
    Both are counted on pictures of known content (rendered scenes, or annotated photographs). They hold for generated
    pictures as far as a thing there is as hard to see as in those.
    Targets that are there are asked together, as a prompt's targets are. One that is not there is asked along with all
    that are ("together": what happens to a prompt whose second object is missing), or by itself ("alone": stricter,
    since no other name can claim its box).
The Rogan-Gladen estimate is the share of pictures that do hold their targets, if `rate` of them were found to:
    (rate - false_positive_rate) / (recall - false_positive_rate).
Source: Rogan and Gladen, American Journal of Epidemiology 107 (1978), 71-76, equation 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from metrics.detection import Boxes, Images, look, score_targets
from metrics.weights import Detector

THRESHOLDS = tuple(level / 100 for level in range(5, 51))
DRAWS = 10_000

Asked = Literal["together", "alone"]


@dataclass(frozen=True)
class Calibration:
    """How often one threshold errs, and on how many targets that was counted."""

    recall: float
    false_positive_rate: float
    n_present: int
    n_absent: int
    threshold: float

    def __post_init__(self) -> None:
        """Refuse what cannot have been counted."""
        for field in ("recall", "false_positive_rate"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} must lie in [0, 1], got {getattr(self, field)}")
        if min(self.n_present, self.n_absent) < 1:
            raise ValueError(f"both kinds of targets must be counted, got {self.n_present} and {self.n_absent}")


@dataclass(frozen=True)
class Curve:
    """Calibrations by rising threshold, all of the same pictures."""

    points: tuple[Calibration, ...]

    def at(self, threshold: float) -> Calibration:
        """Return the calibration of a threshold of the curve.

        Raises:
            ValueError: the curve has no such threshold.
        """
        for point in self.points:
            if abs(point.threshold - threshold) < 1e-9:
                return point
        low, high = self.points[0].threshold, self.points[-1].threshold
        raise ValueError(f"threshold must be one of the curve's {len(self.points)}, {low} to {high}, got {threshold}")

    def reaching(self, false_positive_rate: float) -> Calibration:
        """Return the lowest threshold with at most this rate of false positives: the one of the highest recall.

        Raises:
            ValueError: no threshold of the curve reaches it.
        """
        for point in self.points:
            if point.false_positive_rate <= false_positive_rate:
                return point
        least = self.points[-1].false_positive_rate
        raise ValueError(
            f"false_positive_rate must be one that the curve reaches, from {least}, got {false_positive_rate}"
        )


@dataclass(frozen=True)
class Corrected:
    """A rate freed of the detector's errors, its interval, and "" or what to say with it."""

    rate: float
    low: float
    high: float
    note: str


def threshold_curve(
    scores: Sequence[Sequence[float]], thresholds: Sequence[float] = THRESHOLDS
) -> Float[np.ndarray, " threshold"]:
    """Return the detection rate at each threshold: the share of images whose every target is above it.

    Args:
        scores: each image's targets' scores, before any threshold.
        thresholds: in [0, 1).

    Raises:
        ValueError: there is no image, or one without targets.
    """
    if not scores or not all(len(image) for image in scores):
        raise ValueError("scores must hold at least one image, each with at least one target")
    return shares_above(np.array([min(image) for image in scores], float), thresholds)


def shares_above(scores: Float[np.ndarray, " score"], thresholds: Sequence[float]) -> Float[np.ndarray, " threshold"]:
    """Return the share of scores above each threshold."""
    return (scores[None] > np.asarray(thresholds, float)[:, None]).mean(1)


def calibrate(
    detector: Detector,
    images: Images,
    present: Sequence[Sequence[str]],
    vocabulary: Sequence[str],
    thresholds: Sequence[float] = THRESHOLDS,
    absent_asked: Asked = "together",
    batch: int = 8,
) -> Curve:
    """Return recall and false positives by threshold, from images of known content.

    Args:
        detector: from `metrics.weights.load_detector`; its protocol says which boxes may answer.
        images: what to look at.
        present: all names of the vocabulary that are in each image.
        vocabulary: the names that prompts may ask for.
        thresholds: rising, in [0, 1).
        absent_asked: how names that are not there are asked.
        batch: images in one forward pass.

    Raises:
        ValueError: nothing is ever there or nothing ever missing, a name is repeated or outside the vocabulary, or
            thresholds do not rise.
    """
    levels = list(thresholds)
    if not levels or levels != sorted(set(levels)):
        raise ValueError(f"thresholds must rise, got {thresholds!r}")
    if any(len(set(names)) != len(names) for names in present):
        raise ValueError("present must name each thing of an image once, got a repeated name")
    if unknown := {name for names in present for name in names} - set(vocabulary):
        raise ValueError(f"present must name words of the vocabulary, got {', '.join(sorted(unknown))}")
    there, gone = known_scores(detector, images, present, vocabulary, absent_asked, batch)
    if not there.size or not gone.size:
        raise ValueError(
            f"both kinds of targets must occur, got {there.size} that are there and {gone.size} that are not"
        )
    rates = zip(levels, shares_above(there, levels), shares_above(gone, levels), strict=True)
    return Curve(tuple(Calibration(float(r), float(f), there.size, gone.size, t) for t, r, f in rates))


def known_scores(
    detector: Detector,
    images: Images,
    present: Sequence[Sequence[str]],
    vocabulary: Sequence[str],
    absent_asked: Asked = "together",
    batch: int = 8,
) -> tuple[Float[np.ndarray, " present"], Float[np.ndarray, " absent"]]:
    """Return the scores of all targets that are in the images, and of all that are not; see `calibrate`."""
    assignment = detector.protocol.assignment
    there: list[float] = []
    gone: list[float] = []
    answers = look(detector, images, [list(vocabulary)] * len(present), batch)
    for boxes, names in zip(answers, present, strict=True):
        if names:
            there += [d.score for d in score_targets(_only(boxes, names), assignment)]
        beside = list(names) if absent_asked == "together" else []
        for name in vocabulary:
            if name not in names:
                gone.append(score_targets(_only(boxes, [*beside, name]), assignment)[-1].score)
    return np.array(there, float), np.array(gone, float)


def conjunction(calibration: Calibration, targets: int) -> tuple[float, float]:
    """Return recall and false positives of "all targets found", for images that hold all of so many or lack some.

    Assumed: given the picture, the detector errs on each target independently of the others, and equally often; and
    an image that lacks anything lacks one target only. Where more are missing false positives are rarer than that,
    and a rate corrected by these is too low, never too high.

    Raises:
        ValueError: there is no target.
    """
    if targets < 1:
        raise ValueError(f"targets must be at least 1, got {targets}")
    others = calibration.recall ** (targets - 1)
    return others * calibration.recall, others * calibration.false_positive_rate


def rogan_gladen(rate: float, recall: float, false_positive_rate: float) -> float:
    """Return the share of images that hold their targets, clipped to [0, 1]; see the module for the formula.

    Raises:
        ValueError: one of them leaves [0, 1], or the detector finds what is absent as often as what is there.
    """
    return float(np.clip(_estimate(rate, recall, false_positive_rate), 0, 1))


def corrected(
    rate: float,
    images: float | int,
    calibration: Calibration,
    rng: np.random.Generator,
    targets: int = 1,
    confidence: float = 0.95,
    draws: int = DRAWS,
) -> Corrected:
    """Return a detection rate freed of the detector's errors, with an interval that holds the calibration's own doubt.

    The rate, the recall and the false positives are drawn anew, each from the Beta distribution that its count leaves
    (Jeffreys' prior, so that a recall of 1 out of few is no certainty); the interval is the middle of the estimates.
    Targets of one calibration picture count as independent ones. A draw that could not tell present from absent says
    nothing, and widens the interval at both ends.

    Args:
        rate: share of images with all targets found, in [0, 1].
        images: how many it was counted on. Images of one prompt are no independent ones: give the effective number,
            n / (1 + (m - 1) icc) for m images a prompt.
        calibration: of the threshold that the rate was counted with.
        rng: where chance comes from.
        targets: how many an image has; what is then assumed says `conjunction`.
        confidence: share that the interval is to hold, in (0, 1).
        draws: how many.

    Raises:
        ValueError: as `rogan_gladen` and `conjunction`, or there are no images, no draws, or no confidence.
    """
    if images <= 0 or draws < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"images and draws must be positive and confidence in (0, 1), got {images}, {draws}, {confidence}"
        )
    raw = _estimate(rate, *conjunction(calibration, targets))
    rates = _drawn(rng, rate, images, draws)
    hits = _drawn(rng, calibration.recall, calibration.n_present, draws)
    wrong = _drawn(rng, calibration.false_positive_rate, calibration.n_absent, draws)
    others = hits ** (targets - 1)
    useless: Bool[np.ndarray, " draw"] = hits <= wrong
    gap = np.where(useless, 1, others * (hits - wrong))
    estimates = np.clip((rates - others * wrong) / gap, 0, 1)
    tail = (1 - confidence) / 2
    low = np.quantile(np.where(useless, 0, estimates), tail)
    high = np.quantile(np.where(useless, 1, estimates), 1 - tail)
    note = "" if 0 <= raw <= 1 else f"clipped from {raw:.3f}: the rate lies outside what the calibration allows"
    return Corrected(float(np.clip(raw, 0, 1)), float(low), float(high), note)


def _estimate(rate: float, recall: float, false_positive_rate: float) -> float:
    named = {"rate": rate, "recall": recall, "false_positive_rate": false_positive_rate}
    for name, value in named.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
    if recall <= false_positive_rate:
        raise ValueError(f"recall must exceed false_positive_rate, got {recall} and {false_positive_rate}")
    return (rate - false_positive_rate) / (recall - false_positive_rate)


def _drawn(rng: np.random.Generator, share: float, count: float | int, draws: int) -> Float[np.ndarray, " draw"]:
    """Return draws of a share that was seen in so many cases."""
    return rng.beta(share * count + 0.5, (1 - share) * count + 0.5, draws)


def _only(boxes: Boxes, names: Sequence[str]) -> Boxes:
    """Return what the detector says if just these names are asked; their scores stay as they are."""
    columns = [boxes.targets.index(name) for name in names]
    return Boxes(tuple(names), tuple(boxes.queries[c] for c in columns), boxes.logits[:, columns], boxes.corners)
