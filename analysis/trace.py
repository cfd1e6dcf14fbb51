"""Images of a prompt, traced into a file: what ``attnreg trace`` does."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from rich.console import Console
from rich.progress import track

from tracer.capture import Capture
from tracer.models import load_pipeline
from tracer.pictures import write_image
from tracer.recording import recording

EMOJI = {"num_inference_steps": 25, "guidance_scale": 5.0}  # what its generator was measured with


@dataclass(frozen=True)
class Drawing:
    """How images are made; what is None is left to the pipeline.

    Attributes:
        seeds: one image each.
        steps: of the scheduler.
        guidance: scale of classifier-free guidance.
        negative: negative prompt.
        height: in pixels.
        width: in pixels.
        batch: images in one call of the pipeline.
    """

    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    guidance: float | None = None
    negative: str | None = None
    height: int | None = None
    width: int | None = None
    batch: int = 4


def trace(
    prompt: str,
    out: Path,
    drawing: Drawing | None = None,
    capture: Capture | None = None,
    targets: Sequence[str] = (),
    model: str | DiffusionPipeline = "emoji",
    images: Path | None = None,
    console: Console | None = None,
) -> int | None:
    """Make a prompt's images, record them in the trace `out`, and return the run's number there.

    Args:
        prompt: of all images.
        out: trace file, new or to be gone on with.
        drawing: how the images are made.
        capture: what is kept of them; by default every layer, head, step and word.
        targets: words that the images must show.
        model: a name for `load_pipeline`, or a pipeline.
        images: folder for ``<seed>.png``; None to keep no picture.
        console: shows the progress; None shows nothing.

    Raises:
        ValueError: a target is not in the prompt, the prompt is too long, or no layer fits.
        FileNotFoundError: there is no such model, or the folder of `out` does not exist.
    """
    drawing = Drawing() if drawing is None else drawing
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(model, device) if isinstance(model, str) else model
    options = _options(pipe, drawing, model)
    save = None if images is None else lambda sample, image: write_image(image, images / f"{sample.seed}.png")
    starts: Any = range(0, len(drawing.seeds), drawing.batch)
    starts = starts if console is None else track(starts, "images", console=console)
    with recording(pipe, out, capture, targets, save=save) as session:
        for start in starts:
            seeds = drawing.seeds[start : start + drawing.batch]
            # on the CPU: the same noise on every device
            chance = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
            pipe(prompt, num_images_per_prompt=len(seeds), generator=chance, **options)  # pyright: ignore
    return session.run_id


def _options(pipe: DiffusionPipeline, drawing: Drawing, model: str | DiffusionPipeline) -> dict[str, Any]:
    """Return what the pipeline is called with, beside prompt and seeds."""
    given = {
        "num_inference_steps": drawing.steps,
        "guidance_scale": drawing.guidance,
        "negative_prompt": drawing.negative,
        "height": drawing.height,
        "width": drawing.width,
    }
    wanted = (EMOJI if model == "emoji" else {}) | {name: value for name, value in given.items() if value is not None}
    takes = signature(type(pipe).__call__).parameters
    if unknown := sorted(set(wanted) - set(takes)):
        raise ValueError(f"{type(pipe).__name__} takes no {', '.join(unknown)}")
    return wanted
