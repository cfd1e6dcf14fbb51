"""What there is to choose of a traced image: its words, layers, heads and steps. Only small tables are read.

Conventions: a word is known by its place in the prompt and named as `Store.maps` takes it, so that the second "cat" is
"cat#2". A choice of layers is one layer's path, or "16x16" for all whose maps have that size.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from tracer.store import Store


@dataclass(frozen=True)
class Word:
    """A word of the prompt.

    Attributes:
        place: in the prompt, counted from 0.
        name: as `Store.maps` takes it.
        is_target: whether the image must show it.
    """

    place: int
    name: str
    is_target: bool


@dataclass(frozen=True)
class Layer:
    """A layer that was recorded.

    Attributes:
        number: in the order of execution.
        path: of its module.
        heads: of its attention.
        size: of these maps, "16x16".
    """

    number: int
    path: str
    heads: int
    size: str


@dataclass(frozen=True)
class Traced:
    """An image of a trace, and all that can be chosen of it.

    Attributes:
        image: its number in the view `images`.
        run_id: of the run that made it.
        sample: of that run.
        title: method, seed and prompt.
        words: that were recorded, in order.
        layers: in the order of execution.
        heads: numbers of those whose maps were kept; empty where only their mean was, or none.
        steps: at which something was recorded.
        edited: steps at which a method replaced some probabilities.
        edited_layers: numbers of the layers in which it did.
        has_maps: whether maps were kept, not statistics alone.
    """

    image: int
    run_id: int
    sample: int
    title: str
    words: tuple[Word, ...]
    layers: tuple[Layer, ...]
    heads: tuple[int, ...]
    steps: tuple[int, ...]
    edited: tuple[int, ...]
    edited_layers: tuple[int, ...]
    has_maps: bool

    @property
    def groups(self) -> dict[str, tuple[Layer, ...]]:
        """The choices of layers: all of a size, then each by itself."""
        sizes = {layer.size: tuple(one for one in self.layers if one.size == layer.size) for layer in self.layers}
        return sizes | {layer.path: (layer,) for layer in self.layers}

    def heads_of(self, layers: str) -> int:
        """How many heads all of these layers have."""
        return min((layer.heads for layer in self.groups.get(layers, self.layers)), default=0)

    def acted_on(self, layers: str) -> bool:
        """Whether a method replaced probabilities in some of these layers."""
        return any(layer.number in self.edited_layers for layer in self.groups.get(layers, ()))

    def word(self, name: str) -> Word:
        """Return a word by its name.

        Raises:
            ValueError: it was not recorded of this image.
        """
        for word in self.words:
            if word.name.lower() == name.lower():
                return word
        raise ValueError(f"word must be one that was recorded, {', '.join(w.name for w in self.words)}, got {name!r}")


def listed(store: Store, images: Sequence[int] | None = None) -> pd.DataFrame:
    """Return the images of a trace to choose from: columns image, run_id, sample, prompt, seed, method, file.

    Raises:
        ValueError: there is none, or one that is asked for is not there.
    """
    found = store.sql(
        "SELECT image, run_id, sample, prompt, seed, method, file FROM images "
        "WHERE done AND (? OR list_contains(?::BIGINT[], image)) ORDER BY image",
        [images is None, list(images or ())],
    )
    if images is not None and (absent := sorted(set(images) - set(found["image"]))):
        raise ValueError(f"images must be numbers of finished images of the view images, got {absent}")
    if found.empty:
        raise ValueError(f"a trace must have a finished image to be explored, {store.path} has none")
    return found


def title_of(row: pd.Series) -> str:
    """Return an image's name: method, seed, where it is known, and prompt of a row of `listed`."""
    seed = "" if row["seed"] is pd.NA or row["seed"] is None else f", seed {row['seed']}"
    return f"{row['method'] or 'plain'}{seed}: {row['prompt']}"


def facts_of(store: Store, row: pd.Series) -> Traced:
    """Return what can be chosen of an image.

    Args:
        store: open store.
        row: of `listed`.

    Raises:
        ValueError: no word of it was recorded.
    """
    key = [int(row["run_id"]), int(row["sample"])]
    words = store.sql(
        "SELECT word_idx, word, is_target, is_kept FROM words WHERE run_id = ? AND sample = ? AND branch = 'cond' "
        "ORDER BY word_idx",
        key,
    )
    if not bool(words["is_kept"].to_numpy().any()):
        raise ValueError(f"a trace must have recorded words to be explored, image {row['image']} has none")
    layers = store.sql("SELECT layer, path, heads, map_h, map_w FROM layers WHERE run_id = ? ORDER BY layer", key[:1])
    calls = store.sql(
        "SELECT step, edited FROM calls WHERE run_id = ? AND sample = ? AND kind = 'sample' "
        "AND list_contains(halves, 'cond'::branch) ORDER BY step",
        key,
    )
    capture = json.loads(store.sql("SELECT capture FROM runs WHERE run_id = ?", key[:1]).at[0, "capture"])
    found = tuple(
        Layer(row.layer, row.path, row.heads, f"{row.map_h}x{row.map_w}") for row in layers.itertuples(index=False)
    )
    return Traced(
        int(row["image"]), key[0], key[1],
        title_of(row),
        _words(words), found, _heads(capture, found),
        tuple(int(step) for step in calls["step"].unique()),
        tuple(int(step) for step in calls.loc[calls["edited"].map(len) > 0, "step"].unique()),
        tuple(sorted({int(layer) for layers in calls["edited"] for layer in layers})),
        capture["precision"] != "none",
    )  # fmt: skip


def _words(rows: pd.DataFrame) -> tuple[Word, ...]:
    """Return the words that were recorded, named by their number among all of the prompt, as the store counts them."""
    seen: Counter[str] = Counter()
    found = []
    for row in rows.itertuples(index=False):
        seen[row.word.lower()] += 1
        number = seen[row.word.lower()]
        name = row.word if number == 1 else f"{row.word}#{number}"
        if row.is_kept:
            found.append(Word(int(row.word_idx), name, bool(row.is_target)))
    return tuple(found)


def _heads(capture: dict[str, object], layers: Sequence[Layer]) -> tuple[int, ...]:
    kept = capture["heads"]
    if capture["precision"] == "none" or kept == "mean" or not layers:
        return ()
    most = max(layer.heads for layer in layers)
    return tuple(range(most)) if kept == "all" else tuple(int(head) for head in kept)  # pyright: ignore
