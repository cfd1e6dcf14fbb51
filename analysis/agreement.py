"""How far a person agrees with the detector, and the detection rate as the person would have counted it.

Conventions:
    Everything is weighted back to all pictures of the methods that were drawn from: a labelled image stands for N / n
    images of its stratum (N are there, n are labelled), and for each picture that shows it; a stratum without any
    answer is spoken for by the others of its verdict. The sheet holds both verdicts alike, whatever their shares, so
    that its unweighted numbers, which are given too, hold for itself alone.
    A target that was called unsure, or not answered, is left out; so is an image with such a target where images count.
    The corrected rate is the share of pictures of which a person would say that all targets are there: the person's
    share among those that the detector calls complete and among the others, each times how many there are.
    A method's own rate comes from its own strata if each has at least 10 labelled images or is labelled whole; else
    from the recall and the false positives of all methods together, by Rogan and Gladen (`metrics/calibration.py`).
    Intervals are of 95 % and tell what the images that nobody looked at may be; of other prompts they say nothing.
    Kappa's is a bootstrap of images (`resampled`), the others are `likely` ones, see `analysis/double_sampling.py`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.table import Table

from analysis.audit import Judged, Stratum, images_of, judged, strata_of
from analysis.double_sampling import DRAWS, Sample, error_rates, interval, kappa, likely, resampled, said, table_of
from analysis.labels import Labels
from analysis.stats import Interval
from metrics.calibration import rogan_gladen
from tracer.store import Store

ENOUGH = 10  # labelled images in each of a method's strata, for a rate of its own
OWN, POOLED = "own labels", "pooled errors"

Confusion = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class MethodRate:
    """A method's detection rate, as measured on all its pictures and as corrected; way: `OWN` or `POOLED`."""

    method: str
    pictures: int
    labelled: int
    measured: float
    corrected: Interval
    way: str


@dataclass(frozen=True)
class Agreement:
    """The person beside the detector.

    Attributes:
        protocol: name of the reading that was judged.
        person: fingerprint of the labels.
        answers: how many targets were answered yes, no, unsure, and "" for not at all.
        images: whose targets all have a yes or no.
        sheet: images in it.
        confusion: labelled targets: person yes, no; in each, found by the detector, not found.
        raw_agreement: share of the labelled targets on which both agree, unweighted.
        raw_kappa: Cohen's, unweighted.
        agreement: as `raw_agreement`, weighted.
        kappa: Cohen's, weighted.
        recall: of the detector, by target, if the person is right; weighted.
        false_positive_rate: likewise.
        measured: share of all pictures with all targets found.
        corrected: share of all pictures that show all targets, to the person.
        unsure_as_no: the corrected rate if what was called unsure is not there.
        unsure_as_yes: and if it is.
        methods: each one's rate.
    """

    protocol: str
    person: str
    answers: Mapping[str, int]
    images: int
    sheet: int
    confusion: Confusion
    raw_agreement: float
    raw_kappa: float
    agreement: float
    kappa: Interval
    recall: Interval
    false_positive_rate: Interval
    measured: float
    corrected: Interval
    unsure_as_no: float
    unsure_as_yes: float
    methods: tuple[MethodRate, ...]


@dataclass(frozen=True)
class _Answered:
    """An image of the sheet: its pictures, the answers to its targets, and the stratum that it was drawn from."""

    pictures: tuple[Judged, ...]
    shown: tuple[str, ...]
    stratum: Stratum

    @property
    def whole(self) -> bool:
        return all(shown in ("yes", "no") for shown in self.shown)


def agreement(store: Store, labels: Labels, protocol_name: str, rng: np.random.Generator) -> Agreement:
    """Return how far a person and the detector agree, and the corrected detection rates.

    Args:
        store: with the pictures that were drawn from.
        labels: from `analysis.labels.read_labels`.
        protocol_name: of the reading to judge; another one than the images were drawn by is fine.
        rng: where chance comes from.

    Raises:
        ValueError: as `compared`, or a reading or method is unknown.
    """
    methods = sorted({method for method, _ in labels.strata})
    drawn_from = judged(store, labels.protocol, methods)
    return compared(drawn_from, judged(store, protocol_name, methods), labels, protocol_name, rng)


def compared(
    drawn_from: Sequence[Judged],
    pictures: Sequence[Judged],
    labels: Labels,
    name: str,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> Agreement:
    """Return the same from pictures that are in memory.

    Args:
        drawn_from: all pictures, with the verdicts that images were drawn by.
        pictures: the same with the verdicts to be judged.
        labels: of some of them.
        name: of the reading to judge.
        rng: where chance comes from.
        draws: how many, for intervals.

    Raises:
        ValueError: the pictures are not those that were drawn from, or the answers do not cover both verdicts.
    """
    sheet = _joined(drawn_from, pictures, labels)
    targets, images = _targets(sheet, labels.strata, pictures), _images(sheet, labels.strata, pictures)
    counts = np.bincount(3 - 2 * targets.yes - targets.found, minlength=4).reshape(2, 2)
    table, open_table = table_of(targets.share, said(targets)), table_of(targets.share, likely(targets, rng, draws))
    again = resampled(targets, np.array([one.stratum[1] for one in sheet]), rng, draws)
    pooled, open_pooled = table_of(images.share, said(images)), table_of(images.share, likely(images, rng, draws))
    rates = [
        interval(float(rate), rest) for rate, rest in zip(error_rates(table), error_rates(open_table), strict=True)
    ]
    answers = Counter(shown for one in sheet for shown in one.shown)
    methods = sorted({picture.method for picture in pictures})
    own = [_images(sheet, labels.strata, pictures, method) for method in methods]
    return Agreement(
        protocol=name,
        person=labels.fingerprint,
        answers={word: answers[word] for word in ("yes", "no", "unsure", "")},
        images=len(images.found),
        sheet=len(sheet),
        confusion=((int(counts[0, 0]), int(counts[0, 1])), (int(counts[1, 0]), int(counts[1, 1]))),
        raw_agreement=float(np.trace(counts) / counts.sum()),
        raw_kappa=float(kappa(counts / counts.sum())),
        agreement=float(np.trace(table)),
        kappa=interval(float(kappa(table)), kappa(table_of(targets.share, again))),
        recall=rates[0],
        false_positive_rate=rates[1],
        measured=images.share,
        corrected=interval(float(pooled[0].sum()), open_pooled[0].sum(0)),
        unsure_as_no=_rate_with_unsure(sheet, labels.strata, pictures, "no"),
        unsure_as_yes=_rate_with_unsure(sheet, labels.strata, pictures, "yes"),
        methods=tuple(_method(m, s, pooled, open_pooled, rng) for m, s in zip(methods, own, strict=True)),
    )


def as_table(found: Agreement) -> Table:
    """Return rates for the terminal, in percent, and below them how far person and detector agree."""
    table = Table(title=f"What {found.person} saw", title_justify="left", box=SIMPLE_HEAD, padding=0, show_edge=False)
    for heading in ("method", "pictures", "labelled\nimages", "all found, %\n(detector)", "all there, %\n[95 %]", "by"):
        left = heading in ("method", "by")
        table.add_column(heading, justify="left" if left else "right", vertical="bottom", no_wrap=heading != "method")
    for one in found.methods:
        rate = "-" if np.isnan(one.corrected.estimate) else str(one.corrected)
        table.add_row(one.method, str(one.pictures), str(one.labelled), f"{100 * one.measured:.1f}", rate, one.way)
    total = str(sum(one.pictures for one in found.methods))
    table.add_row("all", total, str(found.images), f"{100 * found.measured:.1f}", str(found.corrected), "all labels")
    k, answers = found.kappa, found.answers
    table.caption_justify = "left"
    table.caption = (
        f"kappa {k.estimate:.2f} [{k.low:.2f}, {k.high:.2f}], agreement {found.agreement:.1%}: all targets\n"
        f"kappa {found.raw_kappa:.2f}, agreement {found.raw_agreement:.1%}: those of the sheet, unweighted\n"
        f"recall {found.recall} %, false positives {found.false_positive_rate} %\n"
        f"answers: {answers['yes']} yes, {answers['no']} no, {answers['unsure']} unsure, {answers['']} not given\n"
        f"all there if unsure is no {found.unsure_as_no:.1%}, if it is yes {found.unsure_as_yes:.1%}\n"
        f"{found.images} of {found.sheet} images labelled whole\n"
        f"protocol {found.protocol}"
    )
    return table


def _joined(drawn_from: Sequence[Judged], pictures: Sequence[Judged], labels: Labels) -> list[_Answered]:
    before = images_of(drawn_from)
    now = before if pictures is drawn_from else images_of(pictures)
    if strata_of(before) != dict(labels.strata) or {p.path for p in drawn_from} != {p.path for p in pictures}:
        raise ValueError(
            "pictures must be those that the sheet was drawn from, with the verdicts of then, got "
            f"{len(drawn_from):,} and {len(pictures):,} to judge; score those that are missing, or draw a new sheet"
        )
    answers = labels.by_image()
    if not any(row.shown in ("yes", "no") for row in labels.rows):
        raise ValueError("labels must hold at least one yes or no, got none")
    if unknown := [targets for sha256, targets in answers if (sha256, targets) not in now]:
        raise ValueError(f"labels must name the targets that were asked of each image, got {', '.join(unknown[0])}")
    return [_Answered(tuple(now[key]), shown, before[key][0].stratum) for key, shown in answers.items()]


def _images(
    sheet: Sequence[_Answered], strata: Mapping[Stratum, int], pictures: Sequence[Judged], method: str | None = None
) -> Sample:
    """Return the whole images of a method, or of all, as far as they are labelled."""
    whole = [(number, one) for number, one in enumerate(sheet) if one.whole]
    shown_in = np.array([sum(method in (None, p.method) for p in one.pictures) for _, one in whole], int)
    verdicts = [all(picture.found) for picture in pictures if method in (None, picture.method)]
    kept = shown_in > 0
    return Sample(
        found=np.array([all(one.pictures[0].found) for _, one in whole], bool)[kept],
        yes=np.array([set(one.shown) == {"yes"} for _, one in whole], bool)[kept],
        image=np.array([number for number, _ in whole], int)[kept],
        pictures=shown_in[kept],
        weight=(_weights([one for _, one in whole], strata) * shown_in)[kept],
        sizes=(len(verdicts) - sum(verdicts), sum(verdicts)),
    )


def _targets(sheet: Sequence[_Answered], strata: Mapping[Stratum, int], pictures: Sequence[Judged]) -> Sample:
    """Return all targets that are answered with yes or no."""
    some = [(number, one) for number, one in enumerate(sheet) if {"yes", "no"} & set(one.shown)]
    weights = _weights([one for _, one in some], strata)
    rows = [
        (found, shown == "yes", number, len(one.pictures), weight * len(one.pictures))
        for (number, one), weight in zip(some, weights, strict=True)
        for found, shown in zip(one.pictures[0].found, one.shown, strict=True)
        if shown in ("yes", "no")
    ]
    found, yes, image, shown_in, weight = (
        np.array(column, kind)
        for column, kind in zip(zip(*rows, strict=True), (bool, bool, int, int, float), strict=True)
    )
    verdicts = [one for picture in pictures for one in picture.found]
    return Sample(found, yes, image, shown_in, weight, (len(verdicts) - sum(verdicts), sum(verdicts)))


def _weights(answered: Sequence[_Answered], strata: Mapping[Stratum, int]) -> Float[np.ndarray, " image"]:
    """Return for how many images each one stands."""
    labelled = Counter(one.stratum for one in answered)
    spread = {}
    for verdict in (False, True):
        everything = sum(size for stratum, size in strata.items() if stratum[1] == verdict)
        covered = sum(size for stratum, size in strata.items() if stratum[1] == verdict and labelled[stratum])
        spread[verdict] = everything / covered if covered else 0.0
    return np.array([strata[one.stratum] / labelled[one.stratum] * spread[one.stratum[1]] for one in answered], float)


def _rate_with_unsure(
    sheet: Sequence[_Answered], strata: Mapping[Stratum, int], pictures: Sequence[Judged], word: str
) -> float:
    decided = [replace(one, shown=tuple(word if s == "unsure" else s for s in one.shown)) for one in sheet]
    images = _images(decided, strata, pictures)
    return float(table_of(images.share, said(images))[0].sum())


def _method(
    method: str,
    images: Sample,
    pooled: Float[np.ndarray, "2 2"],
    open_pooled: Float[np.ndarray, "2 2 draw"],
    rng: np.random.Generator,
) -> MethodRate:
    count, share = sum(images.sizes), images.share
    sides = [images.found == side for side in (False, True)]
    if all(
        mine.sum() >= ENOUGH or images.pictures[mine].sum() >= size
        for mine, size in zip(sides, images.sizes, strict=True)
    ):
        rates = [table_of(share, yes)[0].sum(0) for yes in (said(images), likely(images, rng, len(open_pooled[0, 0])))]
        return MethodRate(method, count, len(images.found), share, interval(float(rates[0]), rates[1]), OWN)
    (recall, wrong), (recalls, wrongs) = error_rates(pooled), error_rates(open_pooled)
    try:
        estimate = rogan_gladen(share, float(recall), float(wrong))
    except ValueError:  # the person says that the detector cannot tell
        return MethodRate(method, count, len(images.found), share, Interval(np.nan, 0.0, 1.0), POOLED)
    # Which of the method's own pictures the detector errs on is chance too.
    shares = rng.beta(images.sizes[1] + 0.5, images.sizes[0] + 0.5, len(recalls))
    tells = recalls > wrongs
    drawn = np.clip((shares - wrongs) / np.where(tells, recalls - wrongs, 1), 0, 1)
    low, high = (interval(estimate, np.where(tells, drawn, end)) for end in (0.0, 1.0))
    return MethodRate(method, count, len(images.found), share, Interval(estimate, low.low, high.high), POOLED)
