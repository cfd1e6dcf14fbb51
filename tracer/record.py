"""The recorder: every attention map of every pass, measured live and handed to the writing thread.

    with Store.create("run.duckdb") as store, Recorder(store) as recorder:
        recorder.begin(run, samples, {"cond": tokens}, sites)
        with attending(pipe.unet, sites, record=recorder):
            ...                                      # recorder.call(...) before each pass of the model
        recorder.images([(sha256, path), ...])
        recorder.end()

`tracer.recording` does all of this for a pipeline.

Conventions: samples are given in the order of the batch's conditional rows, several images of one prompt
included. Phase ``original`` is always what the model itself computed; ``edited`` is there too wherever an
edit replaced a row's probabilities. Statistics come from the live float32 tensors, never from 8-bit codes.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import duckdb

from tracer.batch import Announced, Batch, batch_of, kept_of
from tracer.capture import Capture
from tracer.rows import Branch, CallKind, LayerRow, RunRow, SampleRow, Status, token_rows
from tracer.store import Pending, Store
from tracer.tap import Edited, Tap
from tracer.words import Token
from tracer.writer import TraceNotWritten, Writer

Texts = Mapping[Branch, Sequence[Sequence[Token]]]  # of each half that is recorded, one whole sequence per sample


@dataclass
class _Run:
    """A run while it is open."""

    run_id: int
    numbers: dict[str, int]  # path of a layer that is kept -> its number
    joint: bool
    batch: Batch
    pending: Pending
    writer: Writer = field(default_factory=Writer)
    layers: dict[int, LayerRow] = field(default_factory=dict)  # with their sizes, known from the first pass on
    layers_written: bool = False
    current: Announced | None = None

    def check_pass(self) -> None:
        """Raise ValueError if the pass announced last was to be kept and has not recorded each layer."""
        if self.current is not None and self.current.wanted and len(self.current.layers) != len(self.numbers):
            missed = [path for path, number in self.numbers.items() if number not in self.current.layers]
            raise ValueError(f"pass {self.current.number} must record every layer, got nothing of {missed}")


class Recorder:
    """Records the taps of `attending` into a store; one run at a time, any number of batches in it."""

    def __init__(self, store: Store, capture: Capture | None = None):
        """Record into `store` what `capture` asks for."""
        self.store = store
        self.capture = Capture() if capture is None else capture
        self._open: _Run | None = None

    @property
    def running(self) -> bool:
        """Whether a run is open."""
        return self._open is not None

    def __enter__(self) -> "Recorder":
        """Return the recorder itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End a run that is still open: as failed when the block raises, else as done."""
        if self._open is not None:
            self.end("done" if kind is None else "failed")

    def begin(
        self,
        run: RunRow,
        samples: Sequence[SampleRow],
        texts: Texts,
        layers: Sequence[str],
        joint: bool = False,
    ) -> int:
        """Open a run with its first batch, and return its number.

        Args:
            run: what is run.
            samples: the first batch, see `batch`.
            texts: each prompt's whole token sequence, padding included; the negative prompts' too, where the
                unconditional half is recorded.
            layers: paths of the model's sites, in execution order, of which the capture chooses.
            joint: whether the model's pixels attend to the image too (SD3, Flux).

        Raises:
            ValueError: a run is open already, there is no layer, or the batch is not whole, see `batch`;
                nothing is written then.
        """
        if self._open is not None:
            raise ValueError(f"begin() must come after end(), got it while run {self._open.run_id} is open")
        if not layers or len(set(layers)) != len(layers):
            raise ValueError(f"layers must be at least one and all different, got {list(layers)}")
        chosen = self.capture.sites(layers)
        numbers = {path: number for number, path in enumerate(layers) if path in chosen}
        batch = batch_of(samples, texts, self.capture, joint)
        run_id = self.store.add_run(run, self.capture)
        self._open = _Run(run_id, numbers, joint, batch, Pending(self.store, run_id))
        try:
            self._add_samples(samples, texts)
        except BaseException:
            self.end("failed")
            raise
        return run_id

    def batch(self, samples: Sequence[SampleRow], texts: Texts) -> None:
        """Announce the next batch of the open run: the images that the next call of the pipeline makes.

        Raises:
            ValueError: there is not one token sequence per sample and recorded half, they are not all of one length,
                the batch before is not whole, or no run is open.
        """
        run = self._run()
        run.check_pass()
        batch = batch_of(samples, texts, self.capture, run.joint)
        self._add_samples(samples, texts)
        run.batch, run.current = batch, None

    def _add_samples(self, samples: Sequence[SampleRow], texts: Texts) -> None:
        run, tokens = self._run(), []
        for branch in texts:
            for sample, sequence in zip(samples, texts[branch], strict=True):
                kept = kept_of(sample, sequence, branch, self.capture, run.joint)
                tokens += token_rows(sample, branch, sequence, kept)
        self.store.add_samples(run.run_id, samples, tokens)

    def call(
        self,
        step: int,
        timestep: float | None = None,
        sigma: float | None = None,
        kind: CallKind = "sample",
        halves: tuple[Branch, ...] = ("uncond", "cond"),
    ) -> None:
        """Announce a pass of the model, before it happens.

        Args:
            step: sampling step, from 0.
            timestep: the scheduler's, of the model's training schedule.
            sigma: noise level, where the scheduler has one.
            kind: a sampling pass, or one that guidance or refinement adds.
            halves: what the batch holds, in its order.

        Raises:
            ValueError: the pass before did not record each layer, or no run is open.
            TraceNotWritten: the writing thread failed.
        """
        run = self._run()
        run.writer.check()
        run.check_pass()
        number = 0 if run.current is None else run.current.number + 1
        run.current = Announced(number, kind, halves, step, timestep, sigma, run.batch, self.capture)

    def __call__(self, tap: Tap, edited: Edited | None = None) -> None:
        """Record one tap; this is the `record` that `attending` calls.

        Raises:
            ValueError: the pass was not announced, or its batch, tokens or map sizes are not as announced.
            TraceNotWritten: the writing thread failed.
        """
        run = self._run()
        if (layer := run.numbers.get(tap.site)) is None:
            return
        current = run.current
        if current is not None and not current.wanted:
            return
        if current is None or layer in current.layers:
            raise ValueError(f"each pass must be announced by call(), got an unannounced one at {tap.site}")
        row = current.layer_of(layer, tap)
        if run.layers.setdefault(layer, row) != row:
            raise ValueError(f"a layer's maps must keep their size, got {row} after {run.layers[layer]}")
        current.take(tap, edited, row)
        if len(current.layers) == len(run.numbers):
            layers = () if run.layers_written else tuple(run.layers.values())
            run.writer.submit(current.handed_over(run.pending, layers))
            run.layers_written = True

    def images(self, images: Sequence[tuple[str, str]]) -> None:
        """Note the batch's finished images, each as (SHA-256, path), in the order of the samples.

        What was recorded of them is on the disk before they are noted: an image with a hash is a whole one.

        Raises:
            ValueError: the last pass did not record each layer, there are not as many as samples in the batch, or no
                run is open.
            TraceNotWritten: the writing thread failed.
        """
        run = self._run()
        if len(images) != len(run.batch.samples):
            raise ValueError(f"images must be one per sample, {len(run.batch.samples)}, got {len(images)}")
        rows = {sample.sample: image for sample, image in zip(run.batch.samples, images, strict=True)}
        run.check_pass()
        run.writer.submit(run.pending.flush)
        run.writer.submit(partial(self.store.add_images, run.run_id, rows))

    def wait(self) -> None:
        """Wait until all that was handed over is on the disk.

        Raises:
            TraceNotWritten: the writing thread failed.
        """
        self._run().writer.wait()

    def end(self, status: Status = "done") -> None:
        """Write all that waits, mark the run, and make the file whole.

        Raises:
            ValueError: the last pass did not record each layer (the run is marked failed), or no run is open.
            TraceNotWritten: the writing thread failed (likewise), or the disk is full.
        """
        run = self._run()
        try:
            if status == "done":
                run.check_pass()
                run.writer.submit(run.pending.flush)
                run.writer.close()
                run.writer.check()
                self.store.end_run(run.run_id, "done")
        except BaseException:
            status = "failed"
            raise
        finally:
            self._open = None
            with suppress(TraceNotWritten):
                run.writer.submit(run.pending.flush)  # of a run that failed too, what is whole is kept
            run.writer.close()
            if status == "failed":
                # the error that ended the run is the one to be seen
                with suppress(duckdb.Error, OSError, TraceNotWritten):
                    self.store.end_run(run.run_id, "failed")

    def _run(self) -> _Run:
        if self._open is None:
            raise ValueError("a run must be open: call begin() first")
        return self._open
