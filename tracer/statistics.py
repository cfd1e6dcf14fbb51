"""What is computed on the live attention maps, and dominance, which has its one definition here.

Conventions: probabilities are float32, after softmax, in [0, 1]; a map is one token's probabilities over the
pixels, row-major ``height * width``. Everything is vectorised and stays on the tensor's device.

Statistics of a map v (columns of the table ``head_stats``):
    mass      sum over pixels
    mean, std over pixels; std is the population's (divides by the number of pixels)
    vmax      largest value
    p50, p90, p99  quantiles with linear interpolation, as ``torch.quantile``
    entropy   of v / mass, in nats; NaN where the mass is 0
    cx, cy    centroid, in shares of the width and height (0.5 = middle); NaN where the mass is 0
    hist      pixels in each of 32 equal bins of sqrt(v); values above 1 count in the last. Histograms add.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tracer.words import Token

STATISTICS = ("mass", "mean", "std", "vmax", "p50", "p90", "p99", "entropy", "cx", "cy")
QUANTILES = (0.5, 0.9, 0.99)
BINS = 32
DOMINANCE_QUANTILE = 0.9  # phi(A, 0.9) of arXiv 2403.06381
# Words that name nothing one could look for in a picture; all others are content words.
JOINERS = frozenset(
    (
        "a", "an", "the", "and", "or", "but", "with", "without", "of", "in", "on", "at", "by", "to",
        "from", "for", "near", "beside", "behind", "between", "under", "over", "above", "below",
        "into", "onto", "as", "is", "are", "its", "their", "his", "her", "this", "that", "these",
        "those", "which",
    )
)  # fmt: skip


def ordered(maps: Float[Tensor, "*batch pixel"]) -> Float[Tensor, "*batch pixel"]:
    """Return each map's values in ascending order, which quantiles and histogram are read from."""
    if maps.device.type == "cpu":  # numpy's vectorised sort: 18 times as fast as torch's on rows of this length
        return torch.from_numpy(np.sort(maps.detach().numpy(), axis=-1))
    return maps.sort(-1).values


def map_statistics(
    maps: Float[Tensor, "*batch pixel"], height: int, width: int, values: Float[Tensor, "*batch pixel"] | None = None
) -> Float[Tensor, "*batch statistic"]:
    """Return the ten scalar statistics of each map, in the order of ``STATISTICS``.

    Args:
        maps: probabilities, float32; pixels are row-major.
        height: rows of the map.
        width: columns of the map; ``height * width`` pixels.
        values: the maps as `ordered` returns them, where that is there already.

    Raises:
        ValueError: the number of pixels is not ``height * width``.
    """
    if maps.shape[-1] != height * width:
        raise ValueError(f"maps must have height * width = {height * width} pixels, got {maps.shape[-1]}")
    values = ordered(maps) if values is None else values
    mass = maps.sum(-1)
    mean = mass / (height * width)
    std = (maps - mean[..., None]).square().mean(-1).sqrt()
    # H(v / mass) = ln mass - sum(v ln v) / mass: one pass, no normalised copy
    entropy = (mass.log() - torch.xlogy(maps, maps).sum(-1) / mass).clamp(min=0)
    grid = maps.unflatten(-1, (height, width))
    cx = (grid.sum(-2) * _centres(width, maps.device)).sum(-1) / mass
    cy = (grid.sum(-1) * _centres(height, maps.device)).sum(-1) / mass
    quantiles = [_quantile(values, q) for q in QUANTILES]
    return torch.stack([mass, mean, std, values[..., -1], *quantiles, entropy, cx, cy], dim=-1)


def _quantile(values: Float[Tensor, "*batch pixel"], q: float) -> Float[Tensor, "*batch"]:
    """Return a quantile of ordered values, with linear interpolation."""
    rank = q * (values.shape[-1] - 1)
    lower = int(rank)
    return torch.lerp(values[..., lower], values[..., min(lower + 1, values.shape[-1] - 1)], rank - lower)


def map_histograms(
    maps: Float[Tensor, "*batch pixel"], values: Float[Tensor, "*batch pixel"] | None = None
) -> Int[Tensor, "*batch bin"]:
    """Return how many pixels of each map fall in each of the 32 equal bins of sqrt(probability), int32.

    Args:
        maps: probabilities, float32.
        values: the maps as `ordered` returns them, where that is there already.
    """
    values = ordered(maps) if values is None else values
    edges = (torch.arange(1, BINS, device=maps.device) / BINS).square()  # exact in float32
    below = torch.searchsorted(values, edges.expand(*values.shape[:-1], -1).contiguous(), out_int32=True)
    zero = torch.zeros_like(below[..., :1])
    return torch.cat([zero, below, torch.full_like(zero, values.shape[-1])], -1).diff(dim=-1)


def is_content(word: str | None) -> bool:
    """Return whether the word may be compared in dominance: it has a letter or digit and is no joiner."""
    return word is not None and word.lower() not in JOINERS and any(c.isalnum() for c in word)


def whole_words(tokens: Sequence[Token]) -> dict[int, tuple[int, ...]]:
    """Return the token positions of each word of a prompt, by the word's ordinal."""
    words: dict[int, tuple[int, ...]] = {}
    for token in tokens:
        if token.word_index is not None:
            words[token.word_index] = (*words.get(token.word_index, ()), token.index)
    return words


def compared_words(tokens: Sequence[Token], targets: Sequence[Sequence[int]]) -> dict[int, tuple[int, ...]]:
    """Return the words whose dominance is compared, all their pieces, by the word's ordinal.

    Args:
        tokens: the prompt's tokens.
        targets: token positions of each target; a word is a target if any of its pieces is.

    Returns:
        The target words; all content words where there are no targets.
    """
    wanted = {position for positions in targets for position in positions}
    words = whole_words(tokens)
    chosen = {index: pieces for index, pieces in words.items() if wanted.intersection(pieces)}
    content = {token.word_index for token in tokens if is_content(token.word)}
    return chosen or {index: pieces for index, pieces in words.items() if index in content}


def dominance(
    probs: Float[Tensor, "*batch head pixel token"], words: Sequence[Sequence[int]]
) -> Float[Tensor, "*batch word"]:
    """Return each compared word's share of the attention at one layer and call; shares sum to 1.

    m_t is the mean over heads of the 0.9-quantile of word t's map, its pieces summed first; the share is
    m_t over the sum of m. The view ``dominance`` computes the same from the recorded quantiles.

    Source: arXiv 2403.06381, phi(A, 0.9); shares and ratio are Attnreg's.

    Args:
        probs: cross-attention after softmax, conditional half; in [0, 1].
        words: token positions of each word, as ``compared_words(...).values()`` gives them.

    Raises:
        ValueError: no words, or a word without positions.
    """
    if not words or not all(words):
        raise ValueError(f"words must name at least one position each, got {[list(w) for w in words]}")
    maps = torch.stack([word_map(probs, positions) for positions in words], dim=-2).float()
    m = maps.quantile(DOMINANCE_QUANTILE, dim=-1).mean(-2)
    return m / m.sum(-1, keepdim=True)


def dominance_ratio(shares: Float[Tensor, "*batch word"]) -> Float[Tensor, "*batch"]:
    """Return the largest share over the smallest: 1 where all words get the same attention."""
    return shares.amax(-1) / shares.amin(-1)


def word_map(probs: Float[Tensor, "*batch pixel token"], positions: Sequence[int]) -> Float[Tensor, "*batch pixel"]:
    """Return the map of a word: the sum of its pieces' columns, added in the order of the positions."""
    summed = probs[..., positions[0]]
    for position in positions[1:]:
        summed = summed + probs[..., position]
    return summed


def _centres(size: int, device: torch.device) -> Float[Tensor, " size"]:
    """Return the middles of ``size`` equal cells of [0, 1]."""
    return (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
