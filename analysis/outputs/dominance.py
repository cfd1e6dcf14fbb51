"""From anecdote to evidence: what the traces of many prompts say about dominance and missing objects."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.evidence import figures
from analysis.evidence.companions import companion_numbers, companion_panels
from analysis.evidence.dose import dose_frame, dose_means, dose_response, dose_trend
from analysis.evidence.ground_truth import scene_pointing, scenes_of
from analysis.evidence.pointing import pointing_means, pointing_table
from analysis.evidence.prediction import foretold, reliability, roc
from analysis.evidence.questions import (
    auc_by_head,
    auc_by_head_and_step,
    auc_by_step,
    dominance_by_outcome,
    method_changes,
)
from analysis.evidence.same_word import same_word, same_word_panels
from analysis.evidence.tables import TargetShares, share_ratio, target_shares
from analysis.outputs.made import Made, MadeFigure, figure_of
from analysis.plan import PLAIN
from analysis.running.results import PartResults
from analysis.running.run import RunResults
from tracer.models import load_pipeline
from tracer.store import Store

SCENES = 40  # drawn for the pointing game


def over_steps(results: RunResults) -> Iterator[Made]:
    """Yield how dominant one target is, in images that miss an object and in others."""
    for part in _traced(results):
        table = dominance_by_outcome(_plain(part))
        yield _figure(
            results, part, "dominance", "Does dominance go with missing objects?",
            "The share of the most dominant target in each layer, step by step, in plain images that miss a target and "
            "in those that show all, with 95 % intervals over prompts, for these seeds.",
            partial(figures.dominance_over_steps, table), {"": table},
        )  # fmt: skip


def companions(results: RunResults) -> Iterator[Made]:
    """Yield what stands beside dominance: ratio, evenness, and the targets' own quantiles."""
    for part in _traced(results):
        table = companion_numbers(_plain(part))
        yield _figure(
            results, part, "companions", "What else differs where an object is missing?",
            "Plain images that miss a target and those that show all, step by step, means over heads and layers: the "
            "largest share over the smallest (geometric mean), how even the shares are (1: equal), what part of the "
            "attention all targets get together, and the 0.9-quantile of a target's map, of missing and of found "
            "targets, which are different words. 95 % intervals over prompts, for these seeds.",
            partial(companion_panels, table), {"": table},
        )  # fmt: skip


def same_words(results: RunResults) -> Iterator[Made]:
    """Yield whether a word gets less attention where its object is missing than the same word where it is found."""
    for part in _traced(results):
        table = same_word(_plain(part))
        yield _figure(
            results, part, "same-word", "Does a word get less attention where its object is missing?",
            "A missing target against itself, in the plain images of the same prompt and other seeds in which it is "
            "found: how much less of the targets' attention it gets, and how much lower the 0.9-quantile of its map "
            "is. A star marks p below 0.05 after Holm's correction over steps and layers; t tests over prompts.",
            partial(same_word_panels, table), {"": table},
        )  # fmt: skip


def prediction(results: RunResults) -> Iterator[Made]:
    """Yield whether dominance foretells that an object will be missing."""
    for part in _traced(results):
        shares = _plain(part)
        measure = np.log(share_ratio(shares.by_layer()))
        found = foretold(measure, shares.missing, shares.prompts, shares.steps, shares.layers)
        table, bins = auc_by_step(shares), reliability(found.images)
        yield _figure(
            results, part, "prediction", "Does dominance foretell a missing object?",
            "Left: the area under the ROC curve of the dominant target's share, by step and layer; squares mark where "
            "the logarithm of the largest share over the smallest told most, on the other prompts than part 1 or 2. "
            "Middle: the ROC curves of these two choices, on the prompts that did not choose. Right: what a logistic "
            "curve foretells of prompts that it was not fitted to, against what happened; its squared error is "
            f"{found.gain.estimate:.3f} [{found.gain.low:.3f}, {found.gain.high:.3f}] below that of foretelling the "
            "mean.",
            partial(figures.prediction_panels, table, found, bins),
            {
                "by-step": table, "parts": found.choices, "foretold": found.images, "roc": roc(found.images),
                "bins": bins,
            },
        )  # fmt: skip


def heads(results: RunResults) -> Iterator[Made]:
    """Yield which heads and layers carry it."""
    for part in _traced(results):
        shares = _plain(part)
        table, by_step = auc_by_head(shares), auc_by_head_and_step(shares)
        yield _figure(
            results, part, "heads", "Which heads and layers carry it?",
            "The area under the ROC curve of a head's dominant share, averaged over the steps; 0.5 is chance. Left "
            "of all pairs of images, in which heads may tell kinds of prompts apart; right of images of one prompt. "
            "Two stars: p below 0.05 after Holm, one: after Benjamini and Hochberg.",
            partial(figures.head_matrix, table), {"": table, "by-step": by_step},
        )  # fmt: skip


def changes(results: RunResults) -> Iterator[Made]:
    """Yield how each method changes dominance."""
    for part in _traced(results):
        shares = _shares(part)
        if len(set(shares.images["method"])) > 1:
            table = method_changes(shares, PLAIN)
            yield _figure(
                results, part, "changes", "What do methods change of it?",
                "The ratio of the largest to the smallest share as a multiple of the plain image's, and how much more "
                "the target gets that the plain image misses; the model's own maps, the same prompts and seeds.",
                partial(figures.method_change, table), {"": table},
            )  # fmt: skip


def pointing(results: RunResults) -> Iterator[Made]:
    """Yield whether the maps are about the objects."""
    for part in _traced(results):
        with Store.open(part.store) as store:
            table = pointing_means(pointing_table(store, part.protocol("detection_rate"), method=PLAIN))
        yield _figure(
            results, part, "pointing", "Are the maps about the objects?",
            "How often a word's highest cell lies in the box that the detector found for it, and how much of its map "
            "does, beside what a map without any idea of the object would give: the box's share of the image. Where "
            "objects of a generated image truly lie nobody knows; targets that the detector missed have no box.",
            partial(figures.pointing_over_steps, table), {"": table},
        )  # fmt: skip


def pointing_truth(results: RunResults) -> Iterator[Made]:
    """Yield the same where it is known where objects lie: in drawn scenes of the emoji world, for its models alone."""
    for part in results.parts if results.experiment.world == "emoji" else ():
        pipe = load_pipeline(part.planned.part.model)
        table = pointing_means(scene_pointing(pipe, scenes_of(SCENES), part.planned.part.steps))
        yield _figure(
            results, part, "pointing-truth", "Are the maps about the objects, where it is known where these lie?",
            f"As for generated images, but for {SCENES} drawn scenes of two objects, noised to the level of each step "
            "and given to the network with their captions: the boxes are those that the objects were drawn in.",
            partial(figures.pointing_over_steps, table), {"": table},
            f"{SCENES} drawn scenes of two objects each, noised to each step's level.",
        )  # fmt: skip


def dose(results: RunResults) -> Iterator[Made]:
    """Yield dominance and detection over the strength of each edit: methods whose names end in a number."""
    for part in _traced(results):
        for edit, strengths in _edits(part).items():
            doses = dose_frame(_shares(part), _shares(part, used=True), strengths)
            means, trend = dose_means(doses), dose_trend(doses)
            yield _figure(
                results, part, f"dose-{edit}", f"Do dominance and detection follow the strength of an edit? {edit}",
                f"The same prompts and seeds at every strength of {edit}; 0 is the plain model. Left the share of the "
                "most dominant target, in the maps that the network was made to use and in those that it computed "
                "itself; in the middle the part of the attention that all targets get. Means over layers and steps; "
                "rho is the mean of the prompts' rank correlations. 95 % intervals over prompts, for these seeds.",
                partial(dose_response, means, trend), {"": means, "trend": trend},
            )  # fmt: skip


def _edits(part: PartResults) -> Mapping[str, Mapping[str, float]]:
    """Return each edit's strengths by method, plain among them; a method's name is the edit's and its strength.

    Raises:
        ValueError: a name does not end in a number.
    """
    edits: dict[str, dict[str, float]] = {}
    for name in part.planned.part.traced:
        edit, _, strength = name.rpartition(" ")
        if name != PLAIN:
            try:
                edits.setdefault(edit, {PLAIN: 0.0})[name] = float(strength)
            except ValueError:
                raise ValueError(f"names of traced methods must end in the strength of an edit, got {name!r}") from None
    return edits


def _traced(results: RunResults) -> Iterator[PartResults]:
    for part in results.parts:
        if part.planned.part.traced:
            yield part


@lru_cache(2)
def _shares(part: PartResults, used: bool = False) -> TargetShares:
    with Store.open(part.store) as store:
        return target_shares(store, part.protocol("detection_rate"), used=used)


def _plain(part: PartResults) -> TargetShares:
    return _shares(part).of(PLAIN)


def _figure(
    results: RunResults,
    part: PartResults,
    name: str,
    title: str,
    text: str,
    draw: Callable[[str], Figure],
    numbers: Mapping[str, pd.DataFrame],
    of: str = "",
) -> MadeFigure:
    """Return a figure with its numbers and a caption that says what it is of, by default the part's images."""
    return figure_of(results, part, name, title, text, of or _images_of(part), draw, numbers)


def _images_of(part: PartResults) -> str:
    images: pd.DataFrame = _shares(part).images
    plain = images[images["method"] == PLAIN]
    return (
        f"{part.title}: {plain['prompt'].nunique()} prompts, {len(plain)} plain images, "
        f"{int((~plain['found']).sum())} of which miss a target ({part.protocol('detection_rate')})."
    )
