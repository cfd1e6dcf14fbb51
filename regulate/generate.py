"""Generate images with a method, and trace them, in one call: for scripts and experiments."""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch.utils.hooks import RemovableHandle

from regulate.applied import applied, subjects_of
from regulate.method import Method
from tracer.attention import cross_attention_sites
from tracer.folders import emoji_world
from tracer.passes import Passes
from tracer.record import Recorder
from tracer.rows import Capture, RunRow, SampleRow
from tracer.store import Store
from tracer.words import targets_of, tokens_of


@dataclass(frozen=True)
class Request:
    """What to generate.

    Attributes:
        prompt: of all the images.
        targets: words of the prompt that must be seen.
        seeds: one per image; the same seed gives the same initial noise whatever the batch or device.
        steps: of the scheduler; 25 for the emoji world's DPM-Solver, 50 in the paper.
        guidance: scale of classifier-free guidance; up to 1 switches it off.
        negative: negative prompt.
        height: of the image in pixels, or None for the model's own.
        width: likewise.
        batch: images in one call of the pipeline.
    """

    prompt: str
    targets: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    steps: int = 25
    guidance: float = 5.0
    negative: str = ""
    height: int | None = None
    width: int | None = None
    batch: int = 8


@dataclass(frozen=True)
class Generated:
    """The images in the order of the seeds, their hashes, and the run's number in the trace, if there is one."""

    images: list[Image.Image]
    sha256: list[str]
    run_id: int | None = None


def generate(
    pipe: DiffusionPipeline,
    request: Request,
    method: Method | None = None,
    trace: Store | None = None,
    capture: Capture | None = None,
    folder: Path | None = None,
    done: Callable[[int], object] = lambda images: None,
) -> Generated:
    """Return the images of a request under a method; the denoising loop is the pipeline's own.

    Args:
        pipe: a text-to-image pipeline with a UNet.
        request: what to generate.
        method: how; None or `Method()` is stock diffusers, bit for bit.
        trace: a store that takes every cross-attention map of every pass, as one run.
        capture: what the trace keeps; by default the conditional half, exactly.
        folder: where the images are written as ``<seed>.png``, each whole or not at all.
        done: called after each batch with the number of its images.

    Raises:
        ValueError: a target is not in the prompt, or the prompt is too long; nothing is written then.
    """
    method = method or Method()
    if not request.seeds or request.batch < 1:
        raise ValueError(f"a request needs seeds and a batch of at least 1, got {request.seeds}, {request.batch}")
    method.check(subjects_of(pipe, [request.prompt], [request.targets], request.seeds))
    images: list[Image.Image] = []
    tracing = nullcontext() if trace is None else _Tracing(pipe, request, method, trace, capture)
    with tracing as tracing_run:
        for start in range(0, len(request.seeds), request.batch):
            seeds = request.seeds[start : start + request.batch]
            batch = _one_batch(pipe, request, method, seeds, tracing_run)
            paths = [""] * len(batch) if folder is None else _written(batch, seeds, folder)
            if tracing_run is not None:
                tracing_run.recorder.images([(digest(i), p) for i, p in zip(batch, paths, strict=True)])
            images += batch
            done(len(batch))
    run_id = None if tracing_run is None else tracing_run.run_id
    return Generated(images, [digest(image) for image in images], run_id)


def digest(image: Image.Image) -> str:
    """Return the SHA-256 of an image's size and RGB pixels: the same however the file was compressed."""
    return hashlib.sha256(str(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()


def _one_batch(
    pipe: DiffusionPipeline,
    request: Request,
    method: Method,
    seeds: tuple[int, ...],
    tracing: "_Tracing | None",
) -> list[Image.Image]:
    if tracing is not None:
        tracing.next_batch(seeds)
    recorder = None if tracing is None else tracing.recorder
    with applied(pipe, method, request.prompt, request.targets, seeds, record=recorder) as run:
        handle = None if tracing is None else tracing.announce(run.passes)
        try:
            return pipe(  # pyright: ignore[reportCallIssue] # the base class has no __call__
                request.prompt,
                negative_prompt=request.negative,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                height=request.height,
                width=request.width,
                num_images_per_prompt=len(seeds),
                generator=run.generators,
                **run.call,
            ).images
        finally:
            if handle is not None:
                handle.remove()


def _written(images: list[Image.Image], seeds: tuple[int, ...], folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for image, seed in zip(images, seeds, strict=True):
        path, partial = folder / f"{seed}.png", folder / f".{seed}.partial.png"
        image.save(partial)
        partial.replace(path)
        paths.append(str(path))
    return paths


class _Tracing:
    """One run in the trace: its samples by batch, and the announcement of every pass."""

    def __init__(
        self, pipe: DiffusionPipeline, request: Request, method: Method, store: Store, capture: Capture | None
    ):
        self.pipe, self.request, self.method = pipe, request, method
        self.recorder = Recorder(store, capture)
        self.run_id: int | None = None
        self.seen = 0

    def __enter__(self) -> "_Tracing":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.recorder.__exit__(*exception)

    def next_batch(self, seeds: tuple[int, ...]) -> None:
        """Tell the recorder which images come next."""
        request, tokenizer = self.request, self.pipe.tokenizer
        targets = targets_of(tokenizer, request.prompt, request.targets)
        samples = [
            SampleRow(self.seen + i, request.prompt, seed, request.negative, targets) for i, seed in enumerate(seeds)
        ]
        tokens = [tokens_of(tokenizer, request.prompt)] * len(seeds)
        negative = [tokens_of(tokenizer, request.negative)] * len(seeds)
        uncond = negative if "uncond" in self.recorder.capture.branches else ()
        if self.run_id is None:
            sites = cross_attention_sites(self.pipe.unet)
            self.run_id = self.recorder.begin(self._row(), samples, tokens, sites, uncond)
        else:
            self.recorder.batch(samples, tokens, uncond)
        self.seen += len(seeds)

    def announce(self, passes: Passes) -> RemovableHandle:
        """Announce every pass to the recorder before it happens."""
        return self.pipe.unet.register_forward_pre_hook(
            lambda unet, args: self.recorder.call(passes.step, passes.timestep, passes.sigma, guided=passes.guided)
        )

    def _row(self) -> RunRow:
        pipe, request = self.pipe, self.request
        factor = pipe.vae_scale_factor * pipe.unet.config.sample_size
        name = str(pipe.name_or_path or "unnamed")  # a path, if it was loaded from one
        model = "emoji" if Path(name) == emoji_world() / "sd" else name
        spec = {"model": model, "method": self.method.name, "parameters": self.method.parameters()} | asdict(request)
        return RunRow(
            model=model,
            spec_hash=hashlib.blake2b(json.dumps(spec, sort_keys=True).encode(), digest_size=8).hexdigest(),
            pipeline=type(pipe).__name__,
            scheduler=type(pipe.scheduler).__name__,
            n_steps=request.steps,
            guidance=request.guidance,
            height=request.height or factor,
            width=request.width or factor,
            dtype=str(pipe.unet.dtype).removeprefix("torch."),
            method=self.method.name,
            method_params=self.method.parameters(),
            versions={"torch": torch.__version__, "diffusers": diffusers.__version__},
        )
