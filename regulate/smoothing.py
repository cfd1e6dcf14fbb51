"""What the losses on cross-attention maps share: words only, the 3x3 kernel, chosen rows, maps as distributions.

Sources: the softmax over the words and the kernel are those of Attend-and-Excite, arXiv 2301.13826, released code
@163efdf (MIT).

Conventions: `maps` are the probabilities of one image, "token height width": the start token, the words, the end token,
padding. Positions are Python numbers, and rows are taken as views by them: an index tensor would have to be copied to
the device, and the host would wait for it at every step.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_CENTRE = 1 / (1 + 2 / math.e)  # exp(-(x / (2 * 0.5))^2) at -1, 0, 1, normalised to sum 1: deviation 0.5 * sqrt(2)
_SIDE = _CENTRE / math.e


def words_only(
    maps: Float[Tensor, "token height width"], scale: float = 100.0, end: int | None = None
) -> Float[Tensor, "word height width"]:
    """Return the maps of the words, as a softmax over them alone; a word's position is its token's less 1.

    Args:
        maps: of all tokens.
        scale: what the maps are multiplied by before the softmax.
        end: position of the end token; None: only the first and the last token are left out, padding counts as words.

    Raises:
        ValueError: the end token leaves no word, or is beyond the maps.
    """
    last = len(maps) - 1 if end is None else end
    if not 1 < last < len(maps):
        raise ValueError(f"end must be between 2 and {len(maps) - 1}, the last token's position, got {last}")
    return (maps[1:last] * scale).softmax(0)


def smoothed(maps: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch height width"]:
    """Return the maps smoothed by the 3x3 kernel, reflected at their edges.

    Raises:
        ValueError: a side has only one pixel, and nothing to reflect.
    """
    if min(maps.shape[-2:]) < 2:
        raise ValueError(f"maps must have at least 2 pixels a side to be smoothed, got {tuple(maps.shape[-2:])}")
    for dim in (-2, -1):
        size = maps.shape[dim]
        before = torch.cat([maps.narrow(dim, 1, 1), maps.narrow(dim, 0, size - 1)], dim)
        after = torch.cat([maps.narrow(dim, 1, size - 1), maps.narrow(dim, size - 2, 1)], dim)
        maps = _CENTRE * maps + _SIDE * (before + after)
    return maps


def chosen(maps: Float[Tensor, "token ..."], words: Sequence[Sequence[int]]) -> list[Float[Tensor, "_ ..."]]:
    """Return the rows of each word, in its order.

    All words at once: the gradient of taking the maps apart is as large as all of them.

    Raises:
        ValueError: a word has no token, or one that is not among the maps.
    """
    for word in words:
        if not word or not all(0 <= position < len(maps) for position in word):
            raise ValueError(f"positions must be some of 0 to {len(maps) - 1}, got {list(word)}")
    rows = maps.unbind()
    return [torch.stack([rows[position] for position in word]) for word in words]


def over_pixels(maps: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch pixel"]:
    """Return each map as a distribution over its pixels; one that is 0 everywhere stays so."""
    flat = maps.flatten(-2)
    return flat / flat.sum(-1, keepdim=True).clamp_min(torch.finfo(flat.dtype).eps)


def finite_log(probs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the logarithm of probabilities; below the type's epsilon that of epsilon, without a gradient."""
    return probs.clamp_min(torch.finfo(probs.dtype).eps).log()


def nothing(maps: Float[Tensor, "token height width"]) -> Float[Tensor, ""]:
    """Return the loss of nothing to compare: 0, with a gradient of 0."""
    return maps[:0].sum()
