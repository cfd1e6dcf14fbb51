"""One batch, and one pass of the model over it while it is being recorded.

Conventions: under guidance the rows of a pass are [unconditional, conditional], else conditional only;
samples lie in the order of the conditional rows.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from tracer.arrow import maps_table, stats_table
from tracer.capture import Capture
from tracer.columns import Columns, columns_of
from tracer.measure import Measured, measured
from tracer.rows import Branch, CallKind, CallRow, LayerRow, Pass, Phase, SampleRow
from tracer.solves import Solved, solves_table
from tracer.store import Pending
from tracer.tap import Edited, Tap
from tracer.words import Token
from tracer.writer import Job


@dataclass(frozen=True)
class Batch:
    """The images of one call of the pipeline, in its order, and what their columns are."""

    samples: tuple[SampleRow, ...]
    columns: dict[Branch, Columns]

    def rows(self, halves: Sequence[Branch]) -> dict[Branch, slice]:
        """Return the rows of each half that a pass has."""
        size = len(self.samples)
        return {half: slice(at * size, (at + 1) * size) for at, half in enumerate(halves)}

    def check(self, tap: Tap, halves: Sequence[Branch], branches: Sequence[Branch]) -> None:
        """Raise ValueError if the tap's batch or its tokens are not this batch's."""
        rows = len(self.samples) * len(halves)
        if tap.query.shape[0] != rows:
            raise ValueError(f"the batch must be of {rows} rows ({' and '.join(halves)}), got {tap.query.shape[0]}")
        for branch in branches:
            if (given := self.columns[branch].length) != tap.tokens:
                raise ValueError(f"{branch} token sequences must be {tap.tokens} long, got {given}")


@dataclass
class Announced:
    """A pass of the model: what was said of it before it began, and what has been measured since."""

    number: int
    kind: CallKind
    halves: tuple[Branch, ...]
    step: int
    timestep: float | None
    sigma: float | None
    batch: Batch
    capture: Capture
    started: float = field(default_factory=time.perf_counter)
    layers: set[int] = field(default_factory=set)  # recorded so far
    edited: dict[int, list[int]] = field(default_factory=dict)  # sample -> layers
    measured: list[Measured] = field(default_factory=list)
    solved: list[Solved] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether anything of the pass is to be kept."""
        return self.capture.wants(self.kind, self.step) and bool(set(self.halves) & set(self.capture.branches))

    def layer_of(self, number: int, tap: Tap) -> LayerRow:
        """Return the site's row."""
        heads, (height, width) = tap.query.shape[1], self.capture.map_size(tap.height, tap.width)
        kept = len(self.capture.map_heads(heads))
        return LayerRow(number, tap.site, tap.height, tap.width, heads, height, width, kept)

    def take(self, tap: Tap, edited: Edited | None, layer: LayerRow) -> None:
        """Measure one tap, and what an edit put in its place.

        Raises:
            ValueError: the tap's batch or tokens are not the batch's, or the edit is not of conditional rows.
        """
        branches: list[Branch] = [branch for branch in self.capture.branches if branch in self.halves]
        self.batch.check(tap, self.halves, branches)
        with torch.no_grad():
            for branch, rows in self.batch.rows(self.halves).items():
                if branch in branches:
                    columns = self.batch.columns[branch]
                    self._measure(tap.maps(rows, columns.select), columns, (layer, branch, "original"))
            if edited is not None and "cond" in branches:
                self._take_edit(layer, edited)
        self.layers.add(layer.layer)

    def _take_edit(self, layer: LayerRow, edited: Edited) -> None:
        cond = self.batch.rows(self.halves)["cond"]
        start, stop, _ = edited.rows.indices(cond.stop)
        if start < cond.start or len(edited.probs) != stop - start:
            raise ValueError(
                f"an edit must be of rows {cond.start} to {cond.stop}, got {start} to {stop} "
                f"with {len(edited.probs)} of probabilities"
            )
        first = start - cond.start
        numbers = tuple(sample.sample for sample in self.batch.samples[first : stop - cond.start])
        for sample in numbers:
            self.edited.setdefault(sample, []).append(layer.layer)
        if self.capture.solves and edited.solved is not None:
            self.solved.append(Solved(layer.layer, numbers, edited.solved()))
        columns = self.batch.columns["cond"].part(first, stop - cond.start)
        self._measure(columns.select(edited.probs.float().transpose(-1, -2)), columns, (layer, "cond", "edited"), first)

    def _measure(
        self,
        maps: Float[Tensor, "sample head column pixel"],
        columns: Columns,
        where: tuple[LayerRow, Branch, Phase],
        first: int = 0,
    ) -> None:
        """Measure the maps of the batch's samples from number `first` on."""
        if not maps.numel():  # of this prompt nothing is kept
            return
        numbers = tuple(sample.sample for sample in self.batch.samples[first : first + len(maps)])
        self.measured.append(measured(maps, columns, numbers, where, self.capture))

    def handed_over(self, pending: Pending, layers: Sequence[LayerRow]) -> Job:
        """Start the copies to the CPU, and return the job that writes the pass."""
        copied: list[torch.cuda.Event] = []
        live = [part.statistics for part in self.measured] + [part.columns["kept"] for part in self.solved]
        devices = {tensor.device for tensor in live if tensor.is_cuda}
        parts, solved = [part.on_cpu() for part in self.measured], [part.on_cpu() for part in self.solved]
        self.measured.clear()
        self.solved.clear()
        for device in devices:
            copied.append(torch.cuda.Event())
            copied[-1].record(torch.cuda.current_stream(device))
        calls = [self._row(sample.sample) for sample in self.batch.samples]
        return partial(_write, pending, calls, layers, parts, solved, copied)

    def _row(self, sample: int) -> CallRow:
        wall_ms = 1000 * (time.perf_counter() - self.started)
        edited = tuple(self.edited.get(sample, ()))
        facts = (self.number, self.kind, self.halves, self.step, self.timestep, self.sigma)
        return CallRow(sample, *facts, wall_ms=wall_ms, edited=edited)


def batch_of(
    samples: Sequence[SampleRow], texts: Mapping[Branch, Sequence[Sequence[Token]]], capture: Capture, joint: bool
) -> Batch:
    """Return the batch of these samples.

    Raises:
        ValueError: there is not one token sequence for each sample and recorded branch, or they are not all
            of one length, or there is no sample.
    """
    if not samples:
        raise ValueError("samples must be at least 1, got none")
    columns: dict[Branch, Columns] = {}
    wanted: set[Branch] = {"cond", *capture.branches}
    for branch in wanted:
        sequences = texts.get(branch, ())
        if len(sequences) != len(samples):
            raise ValueError(
                f"tokens must be one sequence per sample, {len(samples)}, for {branch}, got {len(sequences)}"
            )
        columns[branch] = columns_of(
            sequences, [kept_of(*both, branch, capture, joint) for both in zip(samples, sequences, strict=True)]
        )
    return Batch(tuple(samples), columns)


def kept_of(
    sample: SampleRow, tokens: Sequence[Token], branch: Branch, capture: Capture, joint: bool
) -> tuple[Token, ...]:
    """Return what is recorded of a sample's sequence; targets are words of the conditional one."""
    return capture.kept(tokens, sample.targets if branch == "cond" else (), joint)


def _write(
    pending: Pending,
    calls: Sequence[CallRow],
    layers: Sequence[LayerRow],
    measured: Sequence[Measured],
    solved: Sequence[Solved],
    copied: Sequence[torch.cuda.Event],
) -> None:
    """Write one pass; runs in the writing thread."""
    for event in copied:
        event.synchronize()
    number = calls[0].call
    tables = stats_table(number, measured), maps_table(number, measured)
    pending.add(Pass(calls, *tables, layers, solves_table(number, solved)))
