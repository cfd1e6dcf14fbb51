"""One text attention as it happens: its scores, its probabilities, its maps.

Conventions: `scores` are before softmax and scaled, `probs` after it; axes ``batch head pixel token``; pixels are
row-major over ``height x width`` of the map; a `map` is a token's probabilities over the pixels, so that maps have the
axes ``batch head token pixel``. In joint attention (SD3, Flux) a pixel's tokens add up to its share for the text, less
than one: the rest goes to the image itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

CHUNK = 2**24  # scores of joint attention computed at a time, 64 MB
Select = Callable[[Float[Tensor, "rows head token pixel"]], Float[Tensor, "rows head column pixel"]]


@dataclass(frozen=True)
class Tap:
    """One text attention.

    Attributes:
        site: dotted path of the attention module.
        call: forward pass of the model since the block was entered, from 0.
        height: of the map, in pixels of this layer.
        width: of the map; ``height * width`` is the number of queries.
        query: of the image, as given to the attention function.
        key: all keys; in joint attention those of the image too.
        value: likewise.
        scale: factor on the dot products.
        mask: additive or boolean mask that the model itself passes, or None.
        text: where among the keys of joint attention the text lies; None where all keys are the text's.
    """

    site: str
    call: int
    height: int
    width: int
    query: Float[Tensor, "batch head pixel channel"]
    key: Float[Tensor, "batch head key channel"]
    value: Float[Tensor, "batch head key channel"]
    scale: float
    mask: Tensor | None = None
    text: slice | None = None
    _known: "_Results" = field(init=False, default_factory=lambda: _Results(), compare=False, repr=False)
    _products: "_Results" = field(init=False, default_factory=lambda: _Results(), compare=False, repr=False)

    @property
    def joint(self) -> bool:
        """Whether the keys are of image and text."""
        return self.text is not None

    @property
    def tokens(self) -> int:
        """How many tokens the text has."""
        return len(range(*self._text.indices(self.key.shape[-2])))

    @property
    def _text(self) -> slice:
        return slice(None) if self.text is None else self.text

    def scores(self, rows: slice = slice(None)) -> Float[Tensor, "rows head pixel token"]:
        """Return the scaled scores of some rows of the batch, float32, before softmax."""
        start, stop, _ = rows.indices(len(self.query))
        products = self._products.get(start, stop)
        if products is None:  # an edit that asks for them will ask for the maps too
            products = self._products.put(start, stop, self._scores(rows))
        return products[..., self._text, :].transpose(-1, -2)

    def probs(self, rows: slice = slice(None)) -> Float[Tensor, "rows head pixel token"]:
        """Return the probabilities of some rows of the batch, float32."""
        return self.maps(rows).transpose(-1, -2)

    def maps(self, rows: slice = slice(None), select: Select | None = None) -> Float[Tensor, "rows head column pixel"]:
        """Return the probabilities as maps, float32, those of all tokens or what `select` makes of them.

        Args:
            rows: of the batch.
            select: applied to the maps of some of the pixels at a time, so that what is not wanted takes no room.
        """
        if self.joint and select is not None:
            return torch.cat([select(part) for part in self._joint_maps(rows)], -1)
        start, stop, _ = rows.indices(len(self.query))
        known = self._known.get(start, stop)
        if known is None:
            if self.joint:
                known = torch.cat(list(self._joint_maps(rows)), -1)
            else:
                products = self._products.get(start, stop)
                known = (self._scores(rows) if products is None else products).softmax(-2)
            self._known.put(start, stop, known)
        return known if select is None else select(known)

    def _joint_maps(self, rows: slice) -> Iterator[Float[Tensor, "rows head token pixels"]]:
        """Yield the text's part of a softmax over all keys, for a few pixels at a time."""
        size = self.query[rows].shape
        step = max(1, CHUNK // (size[0] * size[1] * self.key.shape[-2]))
        for at in range(0, size[2], step):
            scores = self._scores(rows, slice(at, at + step))
            yield (scores[..., self._text, :] - scores.logsumexp(-2, keepdim=True)).exp()

    def _scores(self, rows: slice, pixels: slice = slice(None)) -> Float[Tensor, "rows head key pixels"]:
        # keys by pixels: each token's map lies in one piece, and the softmax over tokens runs along whole pixels
        scores = self.key[rows].float() @ self.query[rows][:, :, pixels].float().transpose(-1, -2) * self.scale
        if self.mask is None:
            return scores
        mask = self.mask.expand(len(self.query), *self.mask.shape[1:])[rows].transpose(-1, -2)
        mask = mask if mask.shape[-1] == 1 else mask[..., pixels]
        return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()


class _Results:
    """What was computed of a tap, by rows; one who wants gradients is not given what was computed without."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, bool], Tensor] = {}

    def get(self, start: int, stop: int) -> Tensor | None:
        graph = self._found.get((start, stop, True))
        return graph if graph is not None or torch.is_grad_enabled() else self._found.get((start, stop, False))

    def put(self, start: int, stop: int, result: Tensor) -> Tensor:
        self._found[start, stop, torch.is_grad_enabled()] = result
        return result


@dataclass(frozen=True)
class Edited:
    """What an edit puts in the place of some rows' attention.

    Attributes:
        rows: of the batch.
        probs: in their place; they need not add up to one.
        solved: what an optimisation behind it did, computed when asked for: the columns of `tracer.solves`.
    """

    rows: slice
    probs: Float[Tensor, "rows head pixel token"]
    solved: Callable[[], dict[str, Shaped[Tensor, "rows head"]]] | None = None


@dataclass(frozen=True)
class Replaced:
    """What an edit of self-attention puts in the place of some rows' attention: its result, as it has no map to show.

    Attributes:
        rows: of the batch.
        output: weighted values, in their place.
    """

    rows: slice
    output: Float[Tensor, "rows head pixel channel"]


Edit = Callable[[Tap], Edited | Replaced | None]
Record = Callable[[Tap, Edited | None], None]
