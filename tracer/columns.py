"""Which columns a batch's maps are taken apart into: tokens, sums of tokens, whole words.

Conventions: columns of tokens (and of the sums that stand beside them) come first, those of words of several pieces,
which exist for statistics only, after them. Samples need not have equally many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from tracer.statistics import whole_words
from tracer.words import Token

IMAGE = (-1,)  # the source of what is left when all tokens are taken from one
Source = tuple[int, ...]  # the token positions whose maps a column adds up; IMAGE; () where the sample has no such


@dataclass(frozen=True)
class Columns:
    """What the columns of a batch's maps are.

    Attributes:
        length: tokens of a sequence, the same for each sample.
        tokens: columns that are tokens or sums of them; the rest are words of several pieces.
        sources: for each sample and column, what it is the sum of.
        numbers: the token's number in the trace; -1 for a word's sum.
        words: the word whose whole map a column is, by its ordinal; -1 where it is none.
    """

    length: int
    tokens: int
    sources: tuple[tuple[Source, ...], ...]
    numbers: Int[np.ndarray, "sample column"]
    words: Int[np.ndarray, "sample column"]

    @property
    def present(self) -> np.ndarray:
        """Whether the sample has the column."""
        return np.array([[bool(source) for source in sample] for sample in self.sources], bool)

    def part(self, start: int, stop: int) -> "Columns":
        """Return the columns of the samples ``start`` to ``stop``, exclusive."""
        chosen = slice(start, stop)
        return Columns(self.length, self.tokens, self.sources[chosen], self.numbers[chosen], self.words[chosen])

    def select(self, maps: Float[Tensor, "sample head token pixel"]) -> Float[Tensor, "sample head column pixel"]:
        """Return the columns of all tokens' maps, a copy; what a sample does not have is zero."""
        wide = maps.new_zeros(*maps.shape[:2], len(self.sources[0]), maps.shape[-1])
        start = 0
        for sources, same in groupby(self.sources):  # images of one prompt are taken together
            stop = start + len(list(same))
            _take(maps[start:stop], wide[start:stop], sources)
            start = stop
        return wide


def columns_of(sequences: Sequence[Sequence[Token]], kept: Sequence[Sequence[Token]]) -> Columns:
    """Return what the columns of a batch are.

    Args:
        sequences: each sample's whole token sequence.
        kept: those tokens of it, and sums, that are recorded, see `Capture.kept`.

    Raises:
        ValueError: the sequences are not all of one length.
    """
    lengths = {len(sequence) for sequence in sequences} or {0}
    if len(lengths) > 1:
        raise ValueError(f"token sequences must be of one length, got {sorted(lengths)}")
    words = [whole_words(sequence) for sequence in sequences]
    split = [_split(whole, tokens) for whole, tokens in zip(words, kept, strict=True)]
    tokens, more = (max((len(sample) for sample in part), default=0) for part in (kept, split))
    numbers = np.full((len(sequences), tokens + more), -1, np.int32)
    ordinals = np.full((len(sequences), tokens + more), -1, np.int16)
    sources: list[list[Source]] = [[()] * (tokens + more) for _ in sequences]
    for sample, sequence in enumerate(sequences):
        single = {pieces[0]: word for word, pieces in words[sample].items() if len(pieces) == 1}
        for column, token in enumerate(kept[sample]):
            numbers[sample, column] = token.index
            ordinals[sample, column] = single.get(token.index, -1)
            sources[sample][column] = _source(token, sequence)
        for column, (word, pieces) in enumerate(split[sample].items(), start=tokens):
            ordinals[sample, column], sources[sample][column] = word, pieces
    return Columns(lengths.pop(), tokens, tuple(map(tuple, sources)), numbers, ordinals)


def _split(words: Mapping[int, Source], kept: Sequence[Token]) -> dict[int, Source]:
    """Return the words of several pieces that are kept whole."""
    positions = {token.index for token in kept}
    return {word: pieces for word, pieces in words.items() if len(pieces) > 1 and positions.issuperset(pieces)}


def _source(token: Token, sequence: Sequence[Token]) -> Source:
    if token.kind == "padsum":
        return tuple(other.index for other in sequence if other.kind == "pad")
    return IMAGE if token.kind == "image" else (token.index,)


def _take(maps: Tensor, wide: Tensor, sources: Sequence[Source]) -> None:
    """Fill the columns of samples that have the same ones."""
    column = 0
    while column < len(sources):
        source, run = sources[column], 1
        if source == IMAGE:
            wide[:, :, column] = (1 - maps.sum(2)).clamp_(min=0)
        elif len(source) == 1:
            while column + run < len(sources) and sources[column + run] == (source[0] + run,):
                run += 1  # neighbours are copied together
            wide[:, :, column : column + run] = maps[:, :, source[0] : source[0] + run]
        else:
            for start, stop in _stretches(source):
                wide[:, :, column] += maps[:, :, start:stop].sum(2)
        column += run


def _stretches(positions: Source) -> list[tuple[int, int]]:
    """Return neighbouring positions as (start, stop)."""
    found: list[tuple[int, int]] = []
    for position in positions:
        if found and found[-1][1] == position:
            found[-1] = (found[-1][0], position + 1)
        else:
            found.append((position, position + 1))
    return found
