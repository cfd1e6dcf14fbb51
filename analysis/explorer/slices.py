"""What is shown of a choice: one map, a curve per word, a matrix of heads and layers. Only this image's rows are read.

Conventions: maps are the conditional half's raw probabilities, means over the heads and layers chosen, not
renormalised. Curves and the matrix are the 0.9-quantile over a map's pixels, which says how much attention a word gets
where it gets most (the objective of arXiv 2403.06381), averaged over heads and layers. One scale serves all words,
steps and images that are compared, so that what looks like more is more.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from analysis.explorer.facts import Traced, Word
from tracer.rows import Phase
from tracer.store import Store

MEAN = -1  # in the place of a head's number: all of them

_QUANTILES = (
    "SELECT c.step, s.word_idx AS word, s.layer, s.head, avg(s.p90) AS p90, avg(s.vmax) AS top "
    "FROM head_stats s JOIN calls c USING (run_id, sample, call) WHERE s.run_id = ? AND s.sample = ? "
    "AND s.branch = 'cond' AND s.word_idx IS NOT NULL AND c.kind = 'sample' AND s.phase = ? "
    "GROUP BY c.step, s.word_idx, s.layer, s.head"
)


@dataclass(frozen=True)
class Choice:
    """What is looked at.

    Attributes:
        layers: a path, or the size of the maps of all that are meant.
        head: number, or `MEAN`.
        step: of the sampler.
        phase: as the model computed it, or as a method left it.
    """

    layers: str
    head: int = MEAN
    step: int = 0
    phase: Phase = "original"


@dataclass(frozen=True)
class Quantiles:
    """The numbers of all maps of an image in one phase, which every curve and matrix is cut from.

    Attributes:
        traced: the image.
        steps: at which something was recorded, ascending.
        p90: 0.9-quantile of each map, NaN where none was recorded; axes as `steps`, `Traced.words`, `Traced.layers`,
            and the heads of the layer that has most.
        top: the largest value of each map.
    """

    traced: Traced
    steps: tuple[int, ...]
    p90: Float32[np.ndarray, "step word layer head"]
    top: Float32[np.ndarray, "step word layer head"]

    def curves(self, choice: Choice) -> Float32[np.ndarray, "step word"]:
        """Return each word's quantile at each step, the mean over the layers and heads chosen."""
        return _mean(self._chosen(self.p90, choice))

    def map_top(self, choice: Choice) -> float:
        """Return what no map of this choice's layers and head exceeds, at any step, of any word; NaN for none."""
        tops = _mean(self._chosen(self.top, choice))
        return float(np.nanmax(tops)) if np.isfinite(tops).any() else float("nan")

    def matrix(self, choice: Choice) -> Float32[np.ndarray, "word layer head"]:
        """Return each word's quantile in each layer and head, at the step chosen."""
        if choice.step not in self.steps:
            return np.full(self.p90.shape[1:], np.nan, np.float32)
        return self.p90[self.steps.index(choice.step)]

    def _chosen(self, values: np.ndarray, choice: Choice) -> np.ndarray:
        numbers = [layer.number for layer in self.traced.groups.get(choice.layers, ())]
        kept = values[:, :, [layer.number in numbers for layer in self.traced.layers]]
        return kept if choice.head == MEAN else kept[..., choice.head : choice.head + 1]


def word_map(store: Store, traced: Traced, word: Word, choice: Choice) -> Float32[np.ndarray, "height width"]:
    """Return a word's map.

    Raises:
        LookupError: it was not recorded; says why.
    """
    if not traced.has_maps:
        raise LookupError("this trace keeps statistics only, no maps")
    if choice.head >= (count := traced.heads_of(choice.layers)):
        raise LookupError(f"layers {choice.layers} have heads 0 to {count - 1}")
    if choice.head != MEAN and choice.head not in traced.heads:
        raise LookupError(f"no maps of head {choice.head} are kept")
    if choice.phase == "edited" and not traced.acted_on(choice.layers):
        raise LookupError(f"nothing was edited in layers {choice.layers}")
    if choice.phase == "edited" and choice.step not in traced.edited:
        raise LookupError(f"nothing was edited at step {choice.step}")
    numbers = [layer.number for layer in traced.groups[choice.layers]]
    image = (traced.run_id, traced.sample)
    (maps,) = store.maps(image, word.name, steps=choice.step, layers=numbers, phase=choice.phase)
    heads = slice(None) if choice.head == MEAN else [traced.heads.index(choice.head)]
    return maps[:, heads].mean((0, 1), dtype=np.float32)


def quantiles(store: Store, traced: Traced, phase: Phase) -> Quantiles:
    """Read the quantiles of an image: some numbers a map, not the maps."""
    words, layers = [word.place for word in traced.words], [layer.number for layer in traced.layers]
    found = store.sql(_QUANTILES, [traced.run_id, traced.sample, phase])
    found = found[found["word"].isin(words)]
    steps = np.unique(found["step"])
    place = (
        np.searchsorted(steps, found["step"]), np.searchsorted(words, found["word"]),
        np.searchsorted(layers, found["layer"]), found["head"].to_numpy(),
    )  # fmt: skip
    shape = (len(steps), len(words), len(layers), max(layer.heads for layer in traced.layers))
    p90, top = (np.full(shape, np.nan, np.float32) for _ in range(2))
    p90[place], top[place] = found["p90"], found["top"]
    return Quantiles(traced, tuple(steps.tolist()), p90, top)


def _mean(values: Float32[np.ndarray, "step word layer head"]) -> Float32[np.ndarray, "step word"]:
    """Return the mean over layers and heads of what is there; NaN where nothing is."""
    there = np.isfinite(values)
    total, count = np.where(there, values, 0).sum((2, 3)), there.sum((2, 3), dtype=np.float32)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
