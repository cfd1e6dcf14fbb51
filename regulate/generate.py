"""Generate images with a method, and trace them, in one call: for scripts and experiments."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image

from regulate.applied import Wanted, applied, standings_of, subjects_of, wanted_of
from regulate.method import ACTS, Given, Method, Standing
from tracer.capture import Capture
from tracer.pictures import digest, write_image
from tracer.recording import recording
from tracer.shown import images_html
from tracer.store import Store

_TRACE = "<code>generate(..., trace=store)</code> keeps their attention too"


@dataclass(frozen=True)
class Request:
    """What to generate.

    Attributes:
        prompt: of all the images.
        targets: words of the prompt that must be seen; "auto" for its nouns, see `regulate.nouns.auto_targets`.
        seeds: one per image; the same seed gives the same initial noise whatever the batch or device.
        steps: of the scheduler; 25 for the emoji world's DPM-Solver, 50 in the paper.
        guidance: scale of classifier-free guidance; up to 1 switches it off.
        negative: negative prompt.
        height: of the image in pixels, or None for the model's own.
        width: likewise.
        batch: images in one call of the pipeline.
        given: what else is known of the prompt: its groups, its layout, its concepts.
    """

    prompt: str
    targets: Wanted
    seeds: tuple[int, ...] = (0,)
    steps: int = 25
    guidance: float = 5.0
    negative: str = ""
    height: int | None = None
    width: int | None = None
    batch: int = 8
    given: Given = field(default_factory=Given)


@dataclass(frozen=True)
class Generated:
    """What was made.

    Attributes:
        images: in the order of the seeds.
        sha256: their hashes.
        run_id: the run's number in the trace, if there is one.
        standing: whether the method had anything to do: with "no-op" the images are the plain ones.
    """

    images: list[Image.Image] = field(repr=False)
    sha256: list[str] = field(repr=False)
    run_id: int | None = None
    standing: Standing = ACTS

    def _repr_html_(self) -> str:
        acted = self.standing == ACTS
        title = "images" if acted else f"{self.standing.verdict}, these are the plain images: {self.standing.reason}"
        traced = "<code>analysis.explore(store)</code> shows their trace" if self.run_id else _TRACE
        return images_html(self.images, title, f"<code>.images</code> holds them; {traced}")


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
        capture: what the trace keeps; by default every layer, head, step and word of the conditional half.
        folder: where the images are written as ``<seed>.png``, each whole or not at all.
        done: called after each batch with the number of its images.

    Raises:
        NotApplicable: the method lacks what it needs for the prompt; nothing is written then.
        ValueError: a target is not in the prompt, or the prompt is too long; likewise.
    """
    method = method or Method()
    if not request.seeds or request.batch < 1:
        raise ValueError(f"a request needs seeds and a batch of at least 1, got {request.seeds}, {request.batch}")
    request = replace(request, targets=wanted_of(request.prompt, request.targets))
    subjects = subjects_of(pipe, [request.prompt], [request.targets], request.seeds, [request.given])
    standing = standings_of(method, subjects)[0]
    kinds = set() if trace is None else set((capture or Capture()).kinds) - {"sample"}
    if kinds and not method.whole_batches and min(request.batch, len(request.seeds)) > 1:
        raise ValueError(
            f"{method.name} makes passes of some images of a batch, of which a trace cannot keep {', '.join(kinds)}; "
            "give the method together=None, or the request batch=1"
        )
    images: list[Image.Image] = []
    with ExitStack() as stack:
        traced = None
        if trace is not None:
            save = None if folder is None else lambda sample, image: write_image(image, folder / f"{sample.seed}.png")
            traced = stack.enter_context(recording(pipe, trace, capture, request.targets, save=save))
        for start in range(0, len(request.seeds), request.batch):
            seeds = request.seeds[start : start + request.batch]
            batch = _one_batch(pipe, request, method, seeds)
            if folder is not None and traced is None:
                for image, seed in zip(batch, seeds, strict=True):
                    write_image(image, folder / f"{seed}.png")
            images += batch
            done(len(batch))
    run_id = None if traced is None else traced.run_id
    return Generated(images, [digest(image) for image in images], run_id, standing)


def _one_batch(pipe: DiffusionPipeline, request: Request, method: Method, seeds: tuple[int, ...]) -> list[Image.Image]:
    with applied(pipe, method, request.prompt, request.targets, seeds, given=request.given) as run:
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
