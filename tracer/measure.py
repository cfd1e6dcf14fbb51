"""What is taken from the probabilities of one attention site: statistics, and the maps themselves.

Conventions: a column is what one row of the trace shows: a token, a sum of tokens (the padding), what is left for the
image in joint attention, or, after these, a word of several pieces, whose map is the pieces' sum. Everything stays on
the tensors' device until `Measured.on_cpu`.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tracer.capture import Capture
from tracer.columns import Columns
from tracer.rows import Branch, LayerRow, Phase
from tracer.statistics import map_histograms, map_statistics, ordered

LEVELS = 63  # of an 8-bit code: DuckDB packs numbers up to 63 into 6 bits, 0.38 of a half; 255 would take 0.50


@dataclass(frozen=True)
class Measured:
    """One layer's maps of some samples in one pass, with their statistics.

    Attributes:
        layer: the site.
        branch: half of the batch.
        phase: the model's own maps, or those of an edit.
        samples: their numbers.
        columns: what the columns are.
        statistics: of each column.
        histograms: likewise.
        maps: of the columns that are tokens or sums of them, codes or values; None where none are kept.
        code: smallest square root of each map, and the size of a level; None where maps are no codes.
        heads: of the maps' second axis; None stands for the mean of all.
    """

    layer: LayerRow
    branch: Branch
    phase: Phase
    samples: tuple[int, ...]
    columns: Columns
    statistics: Float[Tensor, "sample head column statistic"]
    histograms: Int[Tensor, "sample head column bin"]
    maps: Shaped[Tensor, "sample maphead mapcolumn mappixel"] | None
    code: Float[Tensor, "sample maphead mapcolumn 2"] | None
    heads: tuple[int | None, ...] = ()

    def on_cpu(self) -> "Measured":
        """Return the same on the CPU; from CUDA the copies may be under way until an event says otherwise."""
        # From CUDA this copies into pinned memory beside the generation; from elsewhere it would not be safe.
        moved = {
            name: tensor.to("cpu", non_blocking=tensor.is_cuda)
            for name in ("statistics", "histograms", "maps", "code")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **moved)


def measured(
    maps: Float[Tensor, "sample head column pixel"],
    columns: Columns,
    samples: tuple[int, ...],
    where: tuple[LayerRow, Branch, Phase],
    capture: Capture,
) -> Measured:
    """Return what is kept of some samples' maps at one layer.

    Args:
        maps: probabilities, float32, in [0, 1], as `Columns.select` makes them.
        columns: of these samples.
        samples: their numbers.
        where: layer, branch and phase.
        capture: what is to be kept of the maps.
    """
    layer = where[0]
    values = ordered(maps)
    statistics = map_statistics(maps, layer.h, layer.w, values)
    kept, code = None, None
    heads = capture.map_heads(layer.heads)
    if heads and columns.tokens:
        kept = pooled(_of_heads(maps[:, :, : columns.tokens], heads), (layer.h, layer.w), capture)
        if capture.precision == "uint8":
            kept, code = eight_bit(kept)
        elif capture.precision == "float16":
            kept = kept.half().view(torch.int16)  # the bits: no half-precision number goes into DuckDB
        else:
            kept = kept.contiguous()
    return Measured(*where, samples, columns, statistics, map_histograms(maps, values), kept, code, heads)


def _of_heads(maps: Tensor, heads: tuple[int | None, ...]) -> Tensor:
    if heads == (None,):
        return maps.mean(1, keepdim=True)
    return maps if len(heads) == maps.shape[1] else maps[:, list(heads)]  # pyright: ignore[reportArgumentType]


def pooled(
    maps: Float[Tensor, "sample head column pixel"], size: tuple[int, int], capture: Capture
) -> Float[Tensor, "sample head column mappixel"]:
    """Return maps in the size in which they are kept: means over whole cells, so that rows still add up as they did."""
    small = capture.map_size(*size)
    if small == size:
        return maps
    cell = -(-max(size) // capture.resolution) if capture.resolution else 1
    grid = maps.reshape(-1, 1, *size)
    means = avg_pool2d(grid, cell, ceil_mode=True, count_include_pad=False)
    return means.reshape(*maps.shape[:-1], small[0] * small[1])


def eight_bit(
    maps: Float[Tensor, "*axes pixel"],
) -> tuple[UInt8[Tensor, "*axes pixel"], Float[Tensor, "*axes 2"]]:
    """Return codes q from 0 to 63, and (low, step) of each map: its values are ``(low + step * q)^2``.

    A value v is off by at most ``step * sqrt(v) + step^2 / 4``, which is at most 1/63 of the map's largest value.
    """
    roots = maps.sqrt()
    low, high = roots.amin(-1, keepdim=True), roots.amax(-1, keepdim=True)
    step = (high - low) / LEVELS
    codes = ((roots - low) / step.clamp(min=torch.finfo(torch.float32).tiny)).round_().clamp_(0, LEVELS)
    return codes.to(torch.uint8), torch.cat([low, step], -1)
