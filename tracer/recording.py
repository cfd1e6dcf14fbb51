"""Trace any pipeline in one line.

    with tracer.recording(pipe, "run.duckdb"):
        pipe("a cat and a dog")

The pipeline's own loop runs untouched and its images do not change by a bit. Each image is durable in the file when
its call returns. Calls of one specification (model, scheduler, steps, guidance, size, method) are one run in the file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn

from tracer.attention import attending
from tracer.calls import Call, calls_of
from tracer.capture import Capture
from tracer.models import model_name
from tracer.passes import Passes, following
from tracer.pictures import digest, write_image
from tracer.record import Recorder, Texts
from tracer.rows import RunRow, SampleRow
from tracer.sites import attention_sites, denoiser, is_joint
from tracer.store import Store
from tracer.tap import Edited, Tap
from tracer.texts import Texts as Sequences
from tracer.words import Span, Target

Save = Callable[[SampleRow, Image.Image], str]


@contextmanager
def recording(
    pipe: DiffusionPipeline,
    trace: str | Path | Store,
    capture: Capture | None = None,
    targets: Sequence[str | Span] = (),
    prompt: str | Sequence[str] | None = None,
    save: Save | str | Path | None = None,
) -> Iterator["Recording"]:
    """Record every text attention of every call of the pipeline inside the block.

    Args:
        pipe: a diffusers pipeline with a UNet with cross-attention, or SD3's or Flux's transformer.
        trace: a file, new or to be gone on with, or an open store, which stays open.
        capture: what is kept; by default every layer, head and step, and every word.
        targets: words that the images must show, of every prompt; by default those that a method acting on the
            pipeline was told.
        prompt: the text behind ``prompt_embeds``, where a call is given these.
        save: where finished images go, which the trace notes: a folder, for ``<run>-<image of the run>.png``, or a
            function that writes one and returns its path, from the trace's own folder.

    Raises:
        ValueError: before anything is hooked or written, if the model's attention cannot be tapped, no layer fits, or
            targets are one text; inside the block, if a target is not in the prompt or the text cannot be told.
        TraceBusy: the file is open for writing already.
        OSError: before a run begins, if there is hardly any room left on the disk; PermissionError if the folder or the
            file is read-only.
        TraceNotWritten: the trace could not be written, on a full disk for example; inside the block or at its end.
            Each image whose call returned is in the file, whole.
    """
    if isinstance(targets, str):
        raise ValueError(f"targets must be a list of words, got {targets!r}")
    chosen = Capture() if capture is None else capture
    model = denoiser(pipe)
    sites = chosen.sites(attention_sites(model))
    with ExitStack() as stack:
        passes = stack.enter_context(following(pipe))
        store = trace if isinstance(trace, Store) else stack.enter_context(Store.create(trace))
        session = Recording(pipe, store, chosen, passes, tuple(targets), prompt, save)
        stack.enter_context(session)
        stack.enter_context(attending(model, sites, record=session.record))
        stack.callback(model.register_forward_pre_hook(session.announce).remove)
        stack.enter_context(calls_of(pipe, session))
        yield session


class Recording:
    """A pipeline being recorded.

    Attributes:
        store: the open trace.
        run_id: number of the last run; None before the first.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        store: Store,
        capture: Capture,
        passes: Passes,
        targets: tuple[str | Span, ...],
        prompt: str | Sequence[str] | None,
        save: Save | str | Path | None,
    ):
        self.store, self.run_id = store, None
        self._pipe, self._passes, self._targets, self._save = pipe, passes, targets, save
        self._prompt = [prompt] if isinstance(prompt, str) else None if prompt is None else list(prompt)
        self._recorder = Recorder(store, capture)
        self._spec: RunRow | None = None
        self._seen = 0  # samples of the run
        self._call: Call | None = None
        self._samples: list[SampleRow] = []

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._recorder.__exit__(*exception)

    def began(self, call: Call) -> None:
        """Hear that the pipeline is called (`tracer.calls`)."""
        if call.prompts is None and self._prompt is None:
            raise ValueError(
                "a trace needs the prompt's text, got prompt_embeds alone; give the text to recording(prompt=...)"
            )
        if call.prompts is None:
            call.arguments["prompt"] = self._prompt
        for name in call.other_texts:
            raise ValueError(f"{name} must be left out or be the prompt itself: else one token would be of two words")
        self._call, self._samples = call, []
        self._passes.separate = call.separate

    def announce(self, model: nn.Module, args: Any) -> None:
        """Announce a pass that is about to start (a forward pre-hook)."""
        if self._call is None or self._passes.partial:
            return
        passes = self._passes
        if passes.composed:
            raise ValueError(
                f"{passes.method} gives the network other texts than the prompts, whose words a trace cannot tell"
            )
        if not self._samples:
            self._begin_batch(self._call)
        self._recorder.call(passes.step, passes.timestep, passes.sigma, passes.kind, passes.halves)

    def record(self, tap: Tap, edited: Edited | None) -> None:
        """Record one tap of an announced pass; what the model does outside a call of the pipeline is left alone."""
        if self._call is not None:
            self._recorder(tap, edited)

    def returned(self, call: Call, images: list[Any]) -> None:
        """Hear that the pipeline returned (`tracer.calls`)."""
        self._call = None
        if not self._samples:
            return  # the network was not called at all
        paths = [self._saved(sample, image) for sample, image in zip(self._samples, images, strict=True)]
        self._recorder.images([(digest(image), path) for image, path in zip(images, paths, strict=True)])
        self._recorder.wait()

    def _saved(self, sample: SampleRow, image: Any) -> str:
        """Write an image where it was asked for, and return its path as the trace notes it; "" for none."""
        if self._save is None or not isinstance(image, Image.Image):
            return ""
        if callable(self._save):
            return self._save(sample, image)
        path = write_image(image, Path(self._save) / f"{self.run_id}-{sample.sample}.png")
        return Path(os.path.relpath(path, self.store.path.parent)).as_posix()

    def failed(self, call: Call) -> None:
        """Hear that the pipeline raised (`tracer.calls`)."""
        self._call = None
        if self._recorder.running:
            self._recorder.end("failed")

    def _begin_batch(self, call: Call) -> None:
        text = self._passes.text
        assert text is not None
        sequences = Sequences(self._pipe, text.shape[1])
        spec = run_row(self._pipe, call, self._passes)
        new = not self._recorder.running or spec != self._spec
        first = 0 if new else self._seen
        prompts, negatives = call.prompts or [], call.negatives
        targets = self._targets_of(sequences, prompts)
        samples = [
            SampleRow(first + i, prompt, seed, negative, targets[i])
            for i, (prompt, seed, negative) in enumerate(zip(prompts, call.seeds, negatives, strict=True))
        ]
        texts: Texts = {"cond": [sequences.tokens(prompt) for prompt in prompts]}
        if "uncond" in self._recorder.capture.branches:
            texts["uncond"] = [sequences.tokens(negative) for negative in negatives]
        if new:
            if self._recorder.running:
                self._recorder.end()
            model = denoiser(self._pipe)
            self._spec = spec
            self.run_id = self._recorder.begin(spec, samples, texts, attention_sites(model), is_joint(model))
        else:
            self._recorder.batch(samples, texts)
        self._samples, self._seen = samples, first + len(samples)

    def _targets_of(self, sequences: Sequences, prompts: Sequence[str]) -> Sequence[tuple[Target, ...]]:
        """Return each image's targets: our own, else those that a method was told of as many images."""
        told = self._passes.targets
        if not self._targets and len(told) == len(prompts):
            return told
        return [sequences.targets(prompt, self._targets) for prompt in prompts]


def run_row(pipe: DiffusionPipeline, call: Call, passes: Passes) -> RunRow:
    """Return what a call runs, as the trace notes it; ``spec_hash`` is of all the rest."""
    height, width = _image_size(pipe, call, passes)
    row = RunRow(
        model=model_name(pipe),
        pipeline=type(pipe).__name__,
        scheduler=type(pipe.scheduler).__name__,
        n_steps=call.arguments.get("num_inference_steps"),
        guidance=call.guidance,
        height=height,
        width=width,
        dtype=str(pipe.dtype).removeprefix("torch."),
        method=passes.method,
        method_params=passes.method_params,
        versions={"torch": torch.__version__, "diffusers": diffusers.__version__},
    )
    facts = {key: value for key, value in vars(row).items() if key not in ("spec_hash", "versions")}
    text = json.dumps(facts, sort_keys=True, default=str)
    return replace(row, spec_hash=hashlib.blake2b(text.encode(), digest_size=8).hexdigest())


def _image_size(pipe: DiffusionPipeline, call: Call, passes: Passes) -> tuple[int, int]:
    """Return height and width in pixels."""
    factor = pipe.vae_scale_factor
    if passes.latent is not None:
        return passes.latent[0] * factor, passes.latent[1] * factor
    own = pipe.default_sample_size * factor  # Flux packs its latents into a row
    return call.arguments.get("height") or own, call.arguments.get("width") or own
