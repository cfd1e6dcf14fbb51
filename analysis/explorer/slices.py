"""What is shown of a choice: one map, a curve per word, a matrix of heads and layers. Only these rows are read.

Conventions: maps are the conditional half's raw probabilities, means over the heads and layers chosen, not
renormalised. Curves and the matrix are the 0.9-quantile over a map's pixels, which says how much attention a word gets
where it gets most (the objective of arXiv 2403.06381), averaged over heads and layers. One scale serves all words,
steps and images that are compared, so that what looks like more is more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float32

from analysis.explorer.facts import Layer, Traced, Word
from tracer.rows import Phase
from tracer.store import Store

MEAN = -1  # in the place of a head's number: all of them

_WHERE = (
    "FROM head_stats s JOIN calls c USING (run_id, sample, call) WHERE s.run_id = $run AND s.sample = $sample "
    "AND s.branch = 'cond' AND s.word_idx IS NOT NULL AND c.kind = 'sample' AND s.phase = $phase "
)
_CURVES = (
    f"SELECT c.step, s.word_idx, avg(s.p90) AS value, avg(s.vmax) AS top {_WHERE}"
    "AND list_contains($layers::USMALLINT[], s.layer) AND ($head = -1 OR s.head = $head) "
    "GROUP BY c.step, s.word_idx ORDER BY c.step, s.word_idx"
)
_MATRIX = f"SELECT c.step, s.word_idx, s.layer, s.head, s.p90 AS value {_WHERE}AND c.step = $step"


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


def word_map(store: Store, traced: Traced, word: Word, choice: Choice) -> Float32[np.ndarray, "height width"]:
    """Return a word's map.

    Raises:
        LookupError: it was not recorded; says why.
    """
    if not traced.has_maps:
        raise LookupError("this trace keeps statistics only, no maps")
    if choice.head != MEAN and choice.head not in traced.heads:
        raise LookupError(f"no maps of head {choice.head} are kept")
    if choice.phase == "edited" and not traced.acted_on(choice.layers):
        raise LookupError(f"nothing was edited in layers {choice.layers}")
    if choice.phase == "edited" and choice.step not in traced.edited:
        raise LookupError(f"nothing was edited at step {choice.step}")
    numbers = [layer.number for layer in traced.groups[choice.layers]]
    maps = store.maps((traced.run_id, traced.sample), word.name, steps=choice.step, layers=numbers, phase=choice.phase)[
        0
    ]
    heads = slice(None) if choice.head == MEAN else [traced.heads.index(choice.head)]
    return maps[:, heads].mean((0, 1), dtype=np.float32)


def curves(store: Store, traced: Traced, choice: Choice) -> pd.DataFrame:
    """Return a row per (step, word_idx): value, the mean 0.9-quantile, and top, the mean of the largest pixels."""
    return store.sql(
        _CURVES, _asked(traced, choice) | {"layers": _numbers(traced.groups[choice.layers]), "head": choice.head}
    )


def matrix(store: Store, traced: Traced, choice: Choice) -> pd.DataFrame:
    """Return a row per (word_idx, layer, head) of a step: value, the 0.9-quantile."""
    return store.sql(_MATRIX, _asked(traced, choice) | {"step": choice.step})


def _asked(traced: Traced, choice: Choice) -> dict[str, object]:
    return {"run": traced.run_id, "sample": traced.sample, "phase": choice.phase}


def _numbers(layers: Sequence[Layer]) -> list[int]:
    return [layer.number for layer in layers]
