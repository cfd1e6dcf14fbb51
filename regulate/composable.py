"""Composable Diffusion: one noise prediction of several texts, each guided by itself.

Source: Liu et al., "Compositional Visual Generation with Composable Diffusion Models", arXiv 2206.01714, eq. 11, and
its code, commit 77af82b (MIT with restrictions on use), which diffusers has as the community pipeline
``composable_stable_diffusion``: one image a call, the concepts one after the other.

With the unconditional prediction e and each concept's e_i, the pipeline gets e + sum w_i (e_i - e). The whole prompt is
not among the concepts. The network's batch [unconditional, prompt] is widened to [unconditional, concepts] before a
pass and folded back after it, so that the pipeline's own guidance makes the sum.

Passes of the network: as many as steps, each over 1 + n rows an image in the place of 2.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn

from regulate.loop import rows_of
from regulate.method import ACTS, Composition, Kind, Method, Standing, Subject
from tracer.passes import Passes

_BETWEEN = re.compile(r"\s*\|\s*|\s+(?:and|with)\s+", re.IGNORECASE)  # AND is how others write it
EACH, SHARED = "guidance", "shared"


@dataclass(frozen=True)
class Composable(Method):
    """The method's hyper-parameters.

    Attributes:
        weight: w_i of every concept whose prompt gives none: "guidance", the call's guidance scale, as released, so
            that two concepts are guided twice as strongly; "shared", that scale over their number; or a number.
    """

    name: ClassVar[str] = "composable"
    kinds: ClassVar[tuple[Kind, ...]] = ("noise composition",)
    weight: str | float = EACH

    def __post_init__(self) -> None:
        if isinstance(self.weight, str) and self.weight not in (EACH, SHARED):
            raise ValueError(f"weight must be {EACH!r}, {SHARED!r} or a number, got {self.weight!r}")

    def standing(self, subject: Subject) -> Standing:
        """Return "no-op" for a prompt that is one concept, unless its user gave another text or a weight for it."""
        given = subject.given
        own = given.weights is not None or given.concepts not in (None, (subject.prompt,))
        return ACTS if own or len(concepts_of(subject)) > 1 else Standing("no-op", "it is one concept")

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if a prompt is given no concepts, or weights that do not fit them."""
        for subject in subjects:
            weights, concepts = subject.given.weights, concepts_of(subject)
            if subject.given.concepts == ():
                raise ValueError(f"concepts must be at least one, got none for {subject.prompt!r}")
            if weights is not None and len(weights) != len(concepts):
                raise ValueError(f"weights must be one for each of {concepts}, got {weights}")

    def interventions(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> tuple[Composition, ...]:
        """Return what composes one batch; nothing if each of its prompts is one concept."""
        if not any(self.standing(subject).verdict == "acts" for subject in subjects):
            return ()
        return (Composition(_Composer(self, pipe, subjects, passes).attached),)


FIXED = Composable(weight=SHARED)


def concepts_of(subject: Subject) -> tuple[str, ...]:
    """Return the texts that a prompt is made of: those given, else its parts between "|", "and" and "with"."""
    if subject.given.concepts is not None:
        return subject.given.concepts
    return tuple(part for part in _BETWEEN.split(subject.prompt.strip()) if part)


def composed(
    unconditional: Float[Tensor, "image channel height width"],
    concepts: Float[Tensor, "concept channel height width"],
    weights: Float[Tensor, " concept"],
    image_of: Int[Tensor, " concept"],
) -> Float[Tensor, "image channel height width"]:
    """Return e + sum w_i (e_i - e) of each image.

    Source: arXiv 2206.01714, eq. 11.

    Args:
        unconditional: e.
        concepts: e_i of all images.
        weights: w_i.
        image_of: the image that each concept belongs to.
    """
    away = weights[:, None, None, None] * (concepts - unconditional[image_of])
    return unconditional.index_add(0, image_of, away)


class _Composer:
    """The composition of one batch of images."""

    def __init__(self, method: Composable, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes):
        self.method, self.pipe, self.subjects, self.passes = method, pipe, subjects, passes
        plain = [method.standing(subject).verdict != "acts" for subject in subjects]
        self.concepts = [(s.prompt,) if alone else concepts_of(s) for s, alone in zip(subjects, plain, strict=True)]
        belongs = [image for image, own in enumerate(self.concepts) for _ in own]
        self.image_of = torch.tensor(belongs)
        self.plain = {image: belongs.index(image) for image, alone in enumerate(plain) if alone}
        self.texts: tuple[Tensor, Tensor | None] | None = None
        self.weights = torch.tensor(0.0)
        self.widened = False

    @contextmanager
    def attached(self, pipe: DiffusionPipeline, passes: Passes) -> Iterator[None]:
        """Compose while the block runs."""
        before = pipe.unet.register_forward_pre_hook(self.widen, with_kwargs=True)
        after = pipe.unet.register_forward_hook(self.fold)
        passes.composed = True
        try:
            yield
        finally:
            passes.composed = False
            before.remove()
            after.remove()

    def widen(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give the network each concept in the place of the prompt (a forward pre-hook)."""
        self.widened = self.passes.kind == "sample"
        if not self.widened:
            return None
        given = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
        sample, images = given.pop("sample"), len(self.subjects)
        if not self.passes.guided or len(sample) != 2 * images:
            raise ValueError(
                f"Composable Diffusion needs classifier-free guidance of {images} images, got a batch of {len(sample)};"
                " call the pipeline with guidance_scale above 1"
            )
        if self.passes.step == 0 or self.texts is None:
            self._begin(sample.device)
        assert self.texts is not None
        order = torch.cat([torch.arange(images, device=sample.device), images + self.image_of])
        given = rows_of(given, order, len(sample))
        text, pooled = self.texts
        given["encoder_hidden_states"] = torch.cat([given["encoder_hidden_states"][:images], text])
        if pooled is not None:
            added = given["added_cond_kwargs"]
            own = torch.cat([added["text_embeds"][:images], pooled])
            given["added_cond_kwargs"] = {**added, "text_embeds": own}
        return (sample[order], given.pop("timestep")), given

    def fold(self, unet: nn.Module, args: Any, output: Any) -> Any:
        """Return [unconditional, prompt], of which the pipeline's guidance makes the composition (a forward hook)."""
        if not self.widened:
            return None
        noise, images = output[0], len(self.subjects)
        plain = noise[:images]
        whole = composed(plain, noise[images:], self.weights.to(noise.dtype), self.image_of)
        prompted = plain + (whole - plain) / self.pipe.guidance_scale
        for image, row in self.plain.items():
            prompted[image] = noise[images + row]
        halves = torch.cat([plain, prompted])
        return (halves,) if isinstance(output, tuple) else type(output)(sample=halves)

    @torch.no_grad()
    def _begin(self, device: torch.device) -> None:
        """Encode the concepts, and put what stays the same on the device."""
        found = self.pipe.encode_prompt(
            prompt=[concept for own in self.concepts for concept in own],
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=getattr(self.pipe, "clip_skip", None),
        )
        self.texts = found[0], found[2] if len(found) > 2 else None  # SDXL's has a pooled text too
        scale = float(self.pipe.guidance_scale)
        each: list[float] = []
        for subject, own in zip(self.subjects, self.concepts, strict=True):
            usual = {EACH: scale, SHARED: scale / len(own)}.get(str(self.method.weight), self.method.weight)
            each += subject.given.weights or [float(usual)] * len(own)
        self.weights = torch.tensor(each, device=device)
        self.image_of = self.image_of.to(device)
