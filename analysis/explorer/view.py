"""Everything that is shown of a choice, put together: for the page, and for the figure that stands in for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from analysis.explorer.facts import Traced, Word
from analysis.explorer.slices import Choice, curves, matrix, word_map
from tracer.store import Store


@dataclass(frozen=True)
class Pane:
    """What is shown of one image.

    Attributes:
        traced: the image.
        word: of which the map is; None if the image's prompt does not have it.
        map: of it, or None.
        note: why there is no map.
        curves: a row per step and word: value and top.
        matrix: a row per word, layer and head: value.
    """

    traced: Traced
    word: Word | None
    map: Float32[np.ndarray, "height width"] | None
    note: str
    curves: pd.DataFrame
    matrix: pd.DataFrame

    def message(self) -> dict[str, Any]:
        """Return it as the page takes it; the map's numbers are little-endian float32, row by row."""
        steps, heads = sorted(self.curves["step"].unique().tolist()), max(layer.heads for layer in self.traced.layers)
        by_step = self.curves.pivot(index="word_idx", columns="step", values="value")
        mine = self.matrix[self.matrix["word_idx"] == (-1 if self.word is None else self.word.place)]
        cells = mine.pivot(index="layer", columns="head", values="value")
        cells = cells.reindex(index=[layer.number for layer in self.traced.layers], columns=range(heads))
        return {
            "image": self.traced.image,
            "title": self.traced.title,
            "note": self.note,
            "word": self.word and self.word.name,
            "map": b"" if self.map is None else self.map.astype("<f4").tobytes(),
            "height": 0 if self.map is None else self.map.shape[0],
            "width": 0 if self.map is None else self.map.shape[1],
            "steps": steps,
            "curves": [
                [word.name, word.is_target, _plain(by_step.loc[word.place])]
                for word in self.traced.words
                if word.place in by_step.index
            ],
            "rows": [[layer.path, layer.size] for layer in self.traced.layers],
            "matrix": [_plain(row) for _, row in cells.iterrows()],
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


def look(store: Store, images: Sequence[Traced], name: str, choice: Choice) -> View:
    """Return what is to be seen of a word in one image or two.

    Args:
        store: open store.
        images: one, or two.
        name: of the word.
        choice: layers, head, step, phase; of an image that does not have these layers or this step, there is a note.
    """
    panes = tuple(_pane(store, traced, name, choice) for traced in images)
    lines = [pane.curves for pane in panes]
    cells = [pane.matrix["value"] for pane in panes]
    return View(panes, _top([one["top"] for one in lines]), _top([one["value"] for one in lines]), _top(cells))


def _top(parts: Sequence[pd.Series]) -> float:
    """Return the largest number of all, or 1 where there is none."""
    return float(max((part.max() for part in parts if len(part)), default=1.0))


def _pane(store: Store, traced: Traced, name: str, choice: Choice) -> Pane:
    word = next((word for word in traced.words if word.name.lower() == name.lower()), None)
    empty = pd.DataFrame({"step": [], "word_idx": [], "layer": [], "head": [], "value": [], "top": []})
    if choice.layers not in traced.groups:
        return Pane(traced, word, None, f"it has no layers {choice.layers}", empty, empty)
    seen, note = None, f"its prompt has no {name!r}"
    if word is not None:
        try:
            seen, note = word_map(store, traced, word, choice), ""
        except LookupError as error:
            note = str(error.args[0])
    return Pane(traced, word, seen, note, curves(store, traced, choice), matrix(store, traced, choice))


def _plain(values: pd.Series) -> list[float | None]:
    """Return numbers as JSON can say them: what is not there is null."""
    return [None if pd.isna(value) else round(float(value), 6) for value in values]
