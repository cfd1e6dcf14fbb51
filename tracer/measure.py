"""What is taken from the probabilities of one attention site: statistics, and the maps themselves.

Conventions: a column is a token of the sequence or, after the tokens, a word of several pieces, whose map is
the pieces' sum. Everything stays on the tensors' device until `Measured.on_cpu`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from tracer.rows import Branch, LayerRow, Phase, Precision
from tracer.statistics import map_histograms, map_statistics, whole_words, word_map
from tracer.words import Token


@dataclass(frozen=True)
class Columns:
    """What the columns of a batch's maps are.

    Attributes:
        tokens: tokens of a sequence, the same for each sample.
        split: for each sample, the positions of each word of several pieces.
        words: the word whose whole map a column is, by its ordinal; -1 where it is none.
        present: whether the sample has the column: not all have equally many split words.
    """

    tokens: int
    split: tuple[tuple[tuple[int, ...], ...], ...]
    words: Int[np.ndarray, "sample column"]
    present: Bool[np.ndarray, "sample column"]

    def part(self, start: int, stop: int) -> "Columns":
        """Return the columns of the samples ``start`` to ``stop``, exclusive."""
        return Columns(self.tokens, self.split[start:stop], self.words[start:stop], self.present[start:stop])


@dataclass(frozen=True)
class Measured:
    """One layer's maps of some samples in one pass, with their statistics."""

    layer: LayerRow
    branch: Branch
    phase: Phase
    samples: tuple[int, ...]
    columns: Columns
    statistics: Float[Tensor, "sample head column statistic"]
    histograms: Int[Tensor, "sample head column bin"]
    maps: Shaped[Tensor, "sample head token pixel"]  # float32, or uint8 codes

    def on_cpu(self) -> "Measured":
        """Return the same on the CPU; from CUDA the copies may be under way until an event says otherwise."""
        # From CUDA this copies into pinned memory beside the generation; from elsewhere it would not be safe.
        statistics, histograms, maps = (
            tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in (self.statistics, self.histograms, self.maps)
        )
        return replace(self, statistics=statistics, histograms=histograms, maps=maps)


def columns_of(sequences: Sequence[Sequence[Token]]) -> Columns:
    """Return what the columns of a batch with these token sequences are.

    Raises:
        ValueError: the sequences are not all of one length.
    """
    lengths = {len(sequence) for sequence in sequences} or {0}
    if len(lengths) > 1:
        raise ValueError(f"token sequences must be of one length, got {sorted(lengths)}")
    tokens = lengths.pop()
    words = [whole_words(sequence) for sequence in sequences]
    split = [{i: pieces for i, pieces in sample.items() if len(pieces) > 1} for sample in words]
    width = tokens + max((len(sample) for sample in split), default=0)
    numbers = np.full((len(words), width), -1, np.int16)
    present = np.zeros((len(words), width), bool)
    for sample, (whole, parts) in enumerate(zip(words, split, strict=True)):
        present[sample, : tokens + len(parts)] = True
        numbers[sample, tokens : tokens + len(parts)] = list(parts)
        for number, pieces in whole.items():
            if len(pieces) == 1:
                numbers[sample, pieces[0]] = number
    return Columns(tokens, tuple(tuple(sample.values()) for sample in split), numbers, present)


def with_words(
    maps: Float[Tensor, "sample head token pixel"], columns: Columns
) -> Float[Tensor, "sample head column pixel"]:
    """Return a contiguous copy of the maps, with those of split words after the tokens'."""
    extra = columns.present.shape[1] - columns.tokens
    samples, heads, tokens, pixels = maps.shape
    wide = maps.new_zeros(samples, heads, tokens + extra, pixels)
    wide[:, :, :tokens] = maps
    for sample, split in enumerate(columns.split):
        for place, positions in enumerate(split, start=tokens):
            wide[sample, :, place] = word_map(maps[sample].transpose(-1, -2), positions)
    return wide


def eight_bit(maps: Float[Tensor, "*axes"]) -> UInt8[Tensor, "*axes"]:
    """Return ``round(255 * sqrt(v))``: decoded as ``(q / 255)^2`` off by at most 0.00392, for v in [0, 1]."""
    return (maps.sqrt() * 255).round_().clamp_(0, 255).to(torch.uint8)


def measure(
    probs: Float[Tensor, "sample head pixel token"],
    columns: Columns,
    size: tuple[int, int],
    precision: Precision,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return statistics, histograms and maps of some samples' probabilities, as `Measured` holds them.

    Args:
        probs: after softmax (or an edit), in [0, 1].
        columns: of these samples.
        size: height and width of the maps.
        precision: "float32" keeps maps as they are, "uint8" as `eight_bit` codes.
    """
    maps = with_words(probs.transpose(-1, -2).float(), columns)
    kept = maps[:, :, : columns.tokens]
    kept = eight_bit(kept) if precision == "uint8" else kept.contiguous()
    return map_statistics(maps, *size), map_histograms(maps), kept
