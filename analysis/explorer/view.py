"""Everything that is shown of a choice, put together: for the page, and for the figure that stands in for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from analysis.explorer.facts import Traced, Word
from analysis.explorer.slices import Choice, Quantiles, word_map
from tracer.store import Store


@dataclass(frozen=True)
class Pane:
    """What is shown of one image.

    Attributes:
        traced: the image.
        word: of which the map is; None if the image's prompt does not have it.
        map: of it, or None.
        note: why there is no map.
        steps: of the curves.
        curves: each word's quantile at each step; a word's are NaN where nothing of it was recorded.
        matrix: the same at the step chosen, by layer and head.
    """

    traced: Traced
    word: Word | None
    map: Float32[np.ndarray, "height width"] | None
    note: str
    steps: tuple[int, ...]
    curves: Float32[np.ndarray, "step word"]
    matrix: Float32[np.ndarray, "word layer head"]

    @property
    def lines(self) -> list[tuple[Word, Float32[np.ndarray, " step"]]]:
        """The curves of the words that have one."""
        found = zip(self.traced.words, self.curves.T, strict=True)
        return [(word, line) for word, line in found if np.isfinite(line).any()]

    def message(self) -> dict[str, Any]:
        """Return it as the page takes it; the map's numbers are little-endian float32, row by row."""
        places = {word.place: index for index, word in enumerate(self.traced.words)}
        cells = np.full(self.matrix.shape[1:], np.nan) if self.word is None else self.matrix[places[self.word.place]]
        return {
            "image": self.traced.image,
            "title": self.traced.title,
            "note": self.note,
            "word": self.word and self.word.name,
            "map": b"" if self.map is None else self.map.astype("<f4").tobytes(),
            "height": 0 if self.map is None else self.map.shape[0],
            "width": 0 if self.map is None else self.map.shape[1],
            "steps": list(self.steps),
            "curves": [[word.name, word.is_target, _plain(line)] for word, line in self.lines],
            "rows": [[layer.path, layer.size] for layer in self.traced.layers],
            "matrix": [_plain(row) for row in cells],
        }


@dataclass(frozen=True)
class View:
    """What is shown of one image or two, and the scales that they share.

    Attributes:
        panes: of the images.
        map_top: upper end of the maps' scale, for all words and steps.
        curve_top: upper end of the curves' axis.
        cell_top: upper end of the matrix's scale, for all words.
    """

    panes: tuple[Pane, ...]
    map_top: float
    curve_top: float
    cell_top: float

    def message(self) -> dict[str, Any]:
        """Return it as the page takes it."""
        tops = {"map_top": self.map_top, "curve_top": self.curve_top, "cell_top": self.cell_top}
        return {"panes": [pane.message() for pane in self.panes]} | tops


def look(store: Store, images: Sequence[Quantiles], name: str, choice: Choice) -> View:
    """Return what is to be seen of a word in one image or two.

    Args:
        store: open store.
        images: one, or two, in the phase chosen.
        name: of the word.
        choice: layers, head, step, phase; of an image that does not have these layers or this step, there is a note.
    """
    panes = tuple(_pane(store, image, name, choice) for image in images)
    tops = [image.map_top(choice) for image in images]
    return View(panes, _top(tops), _top([pane.curves for pane in panes]), _top([pane.matrix for pane in panes]))


def _top(parts: Sequence[float | np.ndarray]) -> float:
    """Return the largest number of all, or 1 where there is none."""
    values = np.concatenate([np.ravel(part) for part in parts])
    return float(max(values[np.isfinite(values)], default=1.0))


def _pane(store: Store, image: Quantiles, name: str, choice: Choice) -> Pane:
    traced = image.traced
    word = next((word for word in traced.words if word.name.lower() == name.lower()), None)
    seen, note = None, f"its prompt has no {name!r}"
    if choice.layers not in traced.groups:
        note = f"it has no layers {choice.layers}"
    elif word is not None:
        try:
            seen, note = word_map(store, traced, word, choice), ""
        except LookupError as error:
            note = str(error.args[0])
    return Pane(traced, word, seen, note, image.steps, image.curves(choice), image.matrix(choice))


def _plain(values: np.ndarray) -> list[float | None]:
    """Return numbers as JSON can say them: what is not there is null."""
    return [round(value, 6) if math.isfinite(value) else None for value in values.tolist()]
