"""One batch, and one pass of the model over it while it is being recorded.

Conventions: under guidance the rows of a pass are [unconditional, conditional], else conditional only;
samples lie in the order of the conditional rows.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from tracer.arrow import maps_table, stats_table
from tracer.attention import Edited, Tap
from tracer.measure import Columns, Measured, columns_of, measure
from tracer.rows import Branch, CallKind, CallRow, Capture, LayerRow, Pass, Phase, SampleRow
from tracer.store import Store
from tracer.words import Token
from tracer.writer import Job


@dataclass(frozen=True)
class Batch:
    """The images of one call of the pipeline, in its order, and what their token columns are."""

    samples: tuple[SampleRow, ...]
    columns: dict[Branch, Columns]

    def rows(self, guided: bool) -> dict[Branch, slice]:
        """Return the rows of each half that a pass has."""
        size = len(self.samples)
        both: dict[Branch, slice] = {"uncond": slice(0, size), "cond": slice(size, 2 * size)}
        return both if guided else {"cond": slice(0, size)}

    def check(self, tap: Tap, guided: bool, branches: Sequence[Branch]) -> None:
        """Raise ValueError if the tap's batch or its tokens are not this batch's."""
        rows, length = len(self.samples) * (2 if guided else 1), tap.key.shape[-2]
        if tap.query.shape[0] != rows:
            raise ValueError(f"the batch must be of {rows} rows (guided={guided}), got {tap.query.shape[0]}")
        for branch in branches:
            if (given := self.columns[branch].tokens) != length:
                raise ValueError(f"{branch} token sequences must be {length} long, got {given}")


@dataclass
class Announced:
    """A pass of the model: what was said of it before it began, and what has been measured since."""

    number: int
    kind: CallKind
    guided: bool
    step: int
    timestep: float | None
    sigma: float | None
    batch: Batch
    capture: Capture
    started: float = field(default_factory=time.perf_counter)
    layers: set[int] = field(default_factory=set)  # recorded so far
    edited: dict[int, list[int]] = field(default_factory=dict)  # sample -> layers
    measured: list[Measured] = field(default_factory=list)

    def take(self, tap: Tap, edited: Edited | None, layer: LayerRow) -> None:
        """Measure one tap, and what an edit put in its place.

        Raises:
            ValueError: the tap's batch or tokens are not the batch's, or the edit is not of conditional rows.
        """
        self.batch.check(tap, self.guided, self.capture.branches)
        with torch.no_grad():
            for branch, rows in self.batch.rows(self.guided).items():
                if branch in self.capture.branches:
                    self._measure(layer, branch, "original", tap.probs(rows))
            if edited is not None and "cond" in self.capture.branches:
                self._take_edit(layer, edited)
        self.layers.add(layer.layer)

    def _take_edit(self, layer: LayerRow, edited: Edited) -> None:
        cond = self.batch.rows(self.guided)["cond"]
        start, stop, _ = edited.rows.indices(cond.stop)
        if start < cond.start or len(edited.probs) != stop - start:
            raise ValueError(
                f"an edit must be of rows {cond.start} to {cond.stop}, got {start} to {stop} "
                f"with {len(edited.probs)} of probabilities"
            )
        first = start - cond.start
        for sample in self.batch.samples[first : stop - cond.start]:
            self.edited.setdefault(sample.sample, []).append(layer.layer)
        self._measure(layer, "cond", "edited", edited.probs, first)

    def _measure(
        self,
        layer: LayerRow,
        branch: Branch,
        phase: Phase,
        probs: Float[Tensor, "sample head pixel token"],
        first: int = 0,
    ) -> None:
        """Measure the probabilities of the batch's samples from number `first` on."""
        columns = self.batch.columns[branch].part(first, first + len(probs))
        numbers = tuple(sample.sample for sample in self.batch.samples[first : first + len(probs)])
        taken = measure(probs, columns, (layer.h, layer.w), self.capture.precision)
        self.measured.append(Measured(layer, branch, phase, numbers, columns, *taken))

    def handed_over(self, store: Store, run_id: int, layers: Sequence[LayerRow]) -> Job:
        """Start the copies to the CPU, and return the job that writes the pass."""
        copied: list[torch.cuda.Event] = []
        devices = {part.maps.device for part in self.measured if part.maps.is_cuda}
        measured = [part.on_cpu() for part in self.measured]
        self.measured.clear()
        for device in devices:
            copied.append(torch.cuda.Event())
            copied[-1].record(torch.cuda.current_stream(device))
        calls = [self._row(sample.sample) for sample in self.batch.samples]
        return partial(_write, store, run_id, calls, layers, measured, copied)

    def _row(self, sample: int) -> CallRow:
        wall_ms = 1000 * (time.perf_counter() - self.started)
        edited = tuple(self.edited.get(sample, ()))
        facts = (self.number, self.kind, self.guided, self.step, self.timestep, self.sigma)
        return CallRow(sample, *facts, wall_ms=wall_ms, edited=edited)


def batch_of(
    samples: Sequence[SampleRow],
    tokens: Sequence[Sequence[Token]],
    uncond: Sequence[Sequence[Token]],
    branches: Sequence[Branch],
) -> Batch:
    """Return the batch of these samples.

    Raises:
        ValueError: there is not one token sequence for each sample and recorded branch, or they are not all
            of one length, or there is no sample.
    """
    size = len(samples)
    if not size or len(tokens) != size:
        raise ValueError(f"tokens must be one sequence per sample, {size} (at least 1), got {len(tokens)}")
    wanted = size if "uncond" in branches else 0
    if len(uncond) != wanted:
        raise ValueError(f"uncond_tokens must be {wanted} for {branches}, got {len(uncond)}")
    return Batch(tuple(samples), {"cond": columns_of(tokens), "uncond": columns_of(uncond)})


def _write(
    store: Store,
    run_id: int,
    calls: Sequence[CallRow],
    layers: Sequence[LayerRow],
    measured: Sequence[Measured],
    copied: Sequence[torch.cuda.Event],
) -> None:
    """Write one pass; runs in the writing thread."""
    for event in copied:
        event.synchronize()
    number = calls[0].call
    store.add_pass(run_id, Pass(calls, stats_table(number, measured), maps_table(number, measured), layers))
