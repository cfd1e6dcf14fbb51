"""The explorer: choose an image, a word, layers, a head and a step, and see the attention at once.

    explorer = analysis.explore("run.duckdb")
    explorer                                        # in a cell of JupyterLab 4 or Notebook 7
    explorer.select(word="glasses", step=12)        # the same by code; explorer.selection says what is shown

Conventions: a choice is a dict of image, other (an image beside it, or None), word, layers, head (-1 for the mean),
step and phase. The page asks by setting it, and is answered with what it shows and nothing else: a map or two, a curve
per word, a matrix of heads and layers; or with why it cannot be shown. Where there are no widgets, a figure of the same
choice stands in its place.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import anywidget
import duckdb
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure
from PIL import Image

from analysis.explorer.facts import Traced, facts_of, listed, title_of
from analysis.explorer.given import Shown, numbers, png, whole
from analysis.explorer.slices import MEAN, Choice, Quantiles, quantiles
from analysis.explorer.still import still
from analysis.explorer.view import look
from analysis.figures.style import CellFigure
from tracer.rows import Phase
from tracer.store import Store

HERE = Path(__file__).parent
KEPT = 8  # images whose quantiles are remembered: some megabytes each of the largest models
NAMES = ("image", "other", "word", "layers", "head", "step", "phase")
WHOLE = ("image", "other", "head", "step")  # of them those that are whole numbers


class Explorer(anywidget.AnyWidget):
    """A trace to look into; made by `explore`.

    Attributes:
        selection: what is chosen; to be read, and set through `select`.
        choices: what there is to choose from.
        view: what is shown of it.
        pictures: the images beside the maps, as PNG.
        trouble: why the page's last wish was not answered; empty where it was.
    """

    _esm = HERE / "explorer.js"
    _css = HERE / "explorer.css"
    selection = traitlets.Dict().tag(sync=True)
    choices = traitlets.Dict().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    pictures = traitlets.Dict().tag(sync=True)
    trouble = traitlets.Unicode().tag(sync=True)

    def __init__(self, source: Store | Path, images: pd.DataFrame, pictures: Mapping[int, Shown]):
        """Show the first image; `images` is from `facts.listed`, pictures are by the images' numbers."""
        self._source, self._listed = source, images.set_index("image", drop=False)
        self._inside = duckdb.connect()  # an empty one: to make it takes four times as long as to open a trace in it
        self._titles = [[int(row["image"]), f"{row['image']}: {title_of(row)}"] for _, row in images.iterrows()]
        folder = (source.path if isinstance(source, Store) else source).parent
        files = {int(row.image): _file(folder, row.file) for row in images.itertuples(index=False)}
        self._files: dict[int, Shown | None] = files | dict(pictures)
        self._facts: dict[int, Traced] = {}
        self._read: dict[tuple[int, str], Quantiles] = {}
        self._sent: dict[int, bytes] = {}
        super().__init__()
        first = self._traced(int(images["image"].iloc[0]))
        self._show(_start(first, first))
        self.observe(self._asked, "selection")

    def select(self, **choice: Any) -> "Explorer":
        """Choose by code what is otherwise chosen in the page, and return the explorer itself, which a cell then shows.

        Args:
            choice: any of image, other, word, layers, head, step, phase; what is not named stays.

        Raises:
            ValueError: there is no such thing to choose; says what there is.
        """
        if unknown := set(choice) - set(NAMES):
            raise ValueError(f"a choice must name some of {', '.join(NAMES)}, got {', '.join(sorted(unknown))}")
        choice = {name: whole(value) if name in WHOLE else value for name, value in choice.items()}
        self._check_images(self.selection | choice)
        self._show(self._checked(self._mended(self.selection | choice, set(choice)) | choice))
        return self

    def _asked(self, change: dict[str, Any]) -> None:
        """Answer the page. What it asks for was offered to it, but the image may have changed meanwhile."""
        old, new = self.view.get("selection", {}), change["new"]
        if new == old or set(NAMES) - set(new):
            return
        self.trouble = ""
        try:
            self._show(self._mended(new, {name for name in NAMES if new[name] != old.get(name)}))
        except Exception as error:  # nobody hears what is raised here, and the page would stand still
            self.trouble = str(error) or type(error).__name__
            self.selection = old

    def _show(self, selection: dict[str, Any]) -> None:
        panes = [self._traced(selection["image"])]
        panes += [] if selection["other"] is None else [self._traced(selection["other"])]
        with _opened(self._source, self._inside) as store:
            read = [self._quantiles(store, pane, selection["phase"]) for pane in panes]
            self._seen = seen = look(store, read, selection["word"], _choice(selection))
        with self.hold_sync(), self.hold_trait_notifications():  # in this order it is one message, painted once
            self.choices = self._offered(panes, selection["layers"])
            for pane in panes:
                if pane.image not in self._sent:  # an image is packed once, not at every step that is looked at
                    self._sent[pane.image] = png(self._files[pane.image])
            self.pictures = {str(pane.image): self._sent[pane.image] for pane in panes}
            self.view = seen.message() | {"selection": selection}
            self.selection = selection

    def _traced(self, image: int) -> Traced:
        if image not in self._facts:
            with _opened(self._source, self._inside) as store:
                self._facts[image] = facts_of(store, self._listed.loc[image])
        return self._facts[image]

    def _quantiles(self, store: Store, traced: Traced, phase: Phase) -> Quantiles:
        key = (traced.image, phase)
        if key not in self._read:
            if len(self._read) == KEPT:
                del self._read[next(iter(self._read))]  # the one that was read first
            self._read[key] = quantiles(store, traced, phase)
        return self._read[key]

    def _offered(self, panes: Sequence[Traced], layers: str) -> dict[str, Any]:
        """Return what can be chosen, given the images: of two, the steps that both have."""
        first, steps = panes[0], set(panes[0].steps).intersection(*(pane.steps for pane in panes[1:]))
        return {
            "images": self._titles,
            "words": [[word.name, word.is_target] for word in first.words],
            "layers": list(first.groups),
            "heads": [head for head in first.heads if head < first.heads_of(layers)],
            "steps": sorted(steps),
            "phases": ["original", *(["edited"] if any(pane.edited for pane in panes) else [])],
        }

    def _panes(self, selection: dict[str, Any]) -> list[Traced]:
        return [self._traced(selection[name]) for name in ("image", "other") if selection[name] is not None]

    def _check_images(self, selection: dict[str, Any]) -> None:
        for name in ("image", "other"):
            if selection[name] not in list(self._listed.index) and (name == "image" or selection[name] is not None):
                raise ValueError(f"{name} must be one of {list(self._listed.index)}, got {selection[name]!r}")

    def _checked(self, selection: dict[str, Any]) -> dict[str, Any]:
        """Return a choice that is one, or say what there is."""
        self._check_images(selection)
        panes = self._panes(selection)
        offered = self._offered(panes, selection["layers"])
        selection = selection | {"word": panes[0].word(str(selection["word"])).name}
        for name, found in (("layers", "layers"), ("step", "steps"), ("phase", "phases")):
            if selection[name] not in offered[found]:
                raise ValueError(f"{name} must be one of {offered[found]}, got {selection[name]!r}")
        if selection["head"] not in (heads := _heads(panes[0], selection["layers"])):
            raise ValueError(
                f"head must be one of {heads} ({MEAN}: the mean) in layers {selection['layers']}, "
                f"got {selection['head']!r}"
            )
        return selection

    def _mended(self, selection: dict[str, Any], named: set[str]) -> dict[str, Any]:
        """Return a choice in which what its images do not have is what one starts with, but for what was named."""
        panes = self._panes(selection)
        offered, usual = self._offered(panes, selection["layers"]), _start(panes[0], panes[-1])
        lists = {"layers": offered["layers"], "step": offered["steps"], "phase": offered["phases"]}
        lists |= {"word": [word for word, _ in offered["words"]]}
        found = selection | {name: usual[name] for name, known in lists.items() if selection[name] not in known}
        if found["phase"] == "edited" and named & {"phase", "image", "other"}:  # else one may look where nothing was
            acting = next(pane for pane in reversed(panes) if pane.edited)
            if "layers" not in named and not acting.acted_on(found["layers"]):
                found["layers"] = next(layer.size for layer in acting.layers if layer.number in acting.edited_layers)
            if "step" not in named:
                found["step"] = min(acting.edited, key=lambda step: abs(step - found["step"]))
        return found if found["head"] in _heads(panes[0], found["layers"]) else found | {"head": usual["head"]}

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Return the widget, and beside it the figure that is shown where there are no widgets."""
        shown = super()._repr_mimebundle_(**kwargs)
        if shown is None:
            return None
        data, metadata = shown
        return data | {"image/png": cast(CellFigure, self.figure()).png()}, metadata

    def figure(self) -> Figure:
        """Return what is shown as a figure that does not move, to keep."""
        pictures = {int(image): png for image, png in self.pictures.items()}
        return still(self._seen, self.selection["word"], _choice(self.selection), pictures)


def explore(
    store: Store | str | Path,
    images: Sequence[int] | np.ndarray | pd.Series | int | np.integer | None = None,
    pictures: Mapping[int, Shown] | Sequence[Shown] | np.ndarray | None = None,
) -> Explorer:
    """Return a widget that shows the attention in a trace: maps over images, words over steps, heads by layers.

    Works in JupyterLab 4 and Notebook 7; elsewhere its cell shows a figure. Reads what it shows, never the whole file.
    ``explore(...).select(word="lion", other=1)`` chooses by code, ``.choices`` says from what, ``.figure()`` keeps it.

    Args:
        store: an open store, or the path of a trace, which is then opened for each answer and not held.
        images: numbers of those to choose from, in the view ``images``; None for all that are finished.
        pictures: the images themselves, by number, or a sequence in the order of ``images``: PIL images, paths, or
            arrays of height, width and channel, of bytes or of shares from 0 to 1. By default the files that the trace
            names.

    Raises:
        FileNotFoundError: there is no such trace.
        ValueError: no finished image is there, or not one that is asked for, or none is; or there are too few pictures.
    """
    if not isinstance(store, Store | str | Path):
        raise ValueError(f"store must be a Store or a path, got {type(store).__name__}; `attnreg import` joins traces")
    source = store if isinstance(store, Store) else Path(store)
    with _opened(source) as opened:
        found = listed(opened, None if images is None else numbers(images))
    if pictures is not None and not isinstance(pictures, Mapping):
        alone = isinstance(pictures, str | Path | Image.Image)
        if alone or len(pictures) != len(found):
            raise ValueError(
                f"pictures must be one for each of the images {found['image'].tolist()} (a recording adds to a trace "
                f"that is there), got {'one alone' if alone else len(pictures)}; say which they are of, as "
                "{number: picture}, or by images="
            )
        pictures = dict(zip(found["image"].tolist(), pictures, strict=True))
    return Explorer(source, found, pictures or {})


@contextmanager
def _opened(source: Store | Path, inside: duckdb.DuckDBPyConnection | None = None) -> Iterator[Store]:
    """Give the store that is open, or one for the moment: a trace that is looked into can be written meanwhile."""
    if isinstance(source, Store):
        yield source
        return
    with Store.open(source, inside) as store:
        yield store


def _file(folder: Path, name: object) -> Path | None:
    """Return where an image lies that a trace names, from the trace's own folder; None where it is not there."""
    if not isinstance(name, str) or not name:
        return None
    path = folder / name
    return path if path.is_file() else None


def _heads(traced: Traced, layers: str) -> list[int]:
    return [MEAN, *range(traced.heads_of(layers))]


def _start(traced: Traced, other: Traced) -> dict[str, Any]:
    """Return what is shown first: a target, or else the last word, at the middle step, in maps of about 16 pixels."""
    word = next((word for word in traced.words if word.is_target), traced.words[-1])
    sizes = [layer.size for layer in traced.layers]
    layers = min(sizes, key=lambda size: abs(int(size.split("x")[0]) - 16))
    steps = [step for step in traced.steps if step in other.steps] or list(traced.steps)
    return {
        "image": traced.image, "other": None, "word": word.name, "layers": layers, "head": MEAN,
        "step": steps[len(steps) // 2], "phase": "original",
    }  # fmt: skip


def _choice(selection: Mapping[str, Any]) -> Choice:
    return Choice(selection["layers"], selection["head"], selection["step"], selection["phase"])
