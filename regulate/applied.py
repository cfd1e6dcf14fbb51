"""A method on a pipeline that its user already has, for the length of a block; the denoising loop stays diffusers'.

with applied(pipe, AttentionRegulation(), "a cat and a dog", ["cat", "dog"], seeds=[7]) as run:
    images = pipe("a cat and a dog", generator=run.generators, **run.call).images
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from regulate.loop import calling, steering
from regulate.method import Arguments, Given, Intervention, LatentUpdate, Method, Standing, Subject
from regulate.nouns import auto_targets
from tracer.attention import attending
from tracer.passes import Passes, following
from tracer.sites import attention_sites
from tracer.tap import Record
from tracer.words import targets_of, tokens_of

AUTO: Literal["auto"] = "auto"


class NotApplicable(ValueError):
    """A method lacks what it needs for a prompt, such as a layout."""


Wanted = Sequence[str] | Literal["auto"]


@dataclass(frozen=True)
class Run:
    """What a block under a method offers.

    Attributes:
        call: keyword arguments that the pipeline call must be given; none of the methods here needs any.
        passes: where the denoising loop stands.
        generators: one CPU generator per image, made from the seeds: the same noise on every device.
        subjects: one per image, in pipeline order.
        standings: whether the method has anything to do for each image.
    """

    passes: Passes
    subjects: tuple[Subject, ...]
    generators: list[torch.Generator]
    standings: tuple[Standing, ...] = ()
    call: dict[str, Any] = field(default_factory=dict)


def subjects_of(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    targets: Sequence[Wanted],
    seeds: Sequence[int],
    given: Sequence[Given] = (),
) -> tuple[Subject, ...]:
    """Return one subject per image: images of a prompt follow one another, as pipelines lay them out.

    Raises:
        ValueError: a target is not in its prompt, a prompt is too long, or the numbers do not fit together.
    """
    if len(prompts) != len(targets):
        raise ValueError(f"targets must be given for each of the {len(prompts)} prompts, got {len(targets)} lists")
    if not prompts or len(seeds) % len(prompts) or not seeds:
        raise ValueError(f"seeds must be one per image of each prompt, got {len(seeds)} for {len(prompts)} prompts")
    given = given or [Given()] * len(prompts)
    if len(given) != len(prompts):
        raise ValueError(f"given must be one for each of the {len(prompts)} prompts, got {len(given)}")
    subjects = []
    for index, seed in enumerate(seeds):
        which = index * len(prompts) // len(seeds)
        found = targets_of(pipe.tokenizer, prompts[which], wanted_of(prompts[which], targets[which]))
        end = next(t.index for t in tokens_of(pipe.tokenizer, prompts[which]) if t.kind == "eos")
        subjects.append(Subject(found, end, seed, prompts[which], given[which]))
    return tuple(subjects)


def wanted_of(prompt: str, targets: Wanted) -> tuple[str, ...]:
    """Return the targets as named, or the prompt's nouns for "auto".

    Raises:
        ValueError: the prompt has no noun.
    """
    return auto_targets(prompt) if targets == AUTO else tuple(targets)


@contextmanager
def applied(
    pipe: DiffusionPipeline,
    method: Method,
    prompt: str | Sequence[str],
    targets: Wanted | Sequence[Wanted],
    seeds: Sequence[int] | int = (0,),
    record: Record | None = None,
    given: Given | Sequence[Given] = (),
) -> Iterator[Run]:
    """Let a method act on every call of the pipeline inside the block; nothing of it remains afterwards.

    Args:
        pipe: a diffusers pipeline with a UNet.
        method: what to apply; `Method()` changes nothing.
        prompt: the prompt, or several, that the pipeline will be called with.
        targets: words of the prompt, see `tracer.words`, or "auto" for its nouns (`regulate.nouns`); one list, or
            "auto", per prompt if there are several.
        seeds: one per image, images of one prompt together (``num_images_per_prompt``); a number for one image.
        record: is shown every text attention of every cross-attention site, see `tracer.attention.attending`.
        given: what else is known of the prompt, or of each: its groups, its layout, its concepts.

    Raises:
        NotApplicable: before anything is hooked, if the method lacks what it needs for a prompt.
        ValueError: before anything is hooked, if a target is not in its prompt or a prompt is too long; inside the
            block, if the pipeline is called with another prompt than the one given.
    """
    if getattr(pipe, "unet", None) is None:
        raise ValueError(f"pipe must be a pipeline with a UNet, got {type(pipe).__name__}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if isinstance(targets, str) and targets != AUTO:
        raise ValueError(f"targets must be a list of words or 'auto', got {targets!r}")
    wanted: list[Wanted] = [targets] if isinstance(prompt, str) else list(targets)  # pyright: ignore
    wanted = [AUTO] * len(prompts) if targets == AUTO else wanted
    each = [given] if isinstance(given, Given) else list(given)
    seeds = (seeds,) if isinstance(seeds, int) else seeds
    subjects = subjects_of(pipe, prompts, wanted, seeds, each)
    standings = standings_of(method, subjects)
    with following(pipe) as passes, ExitStack() as stack:
        guard = _PromptGuard(pipe, prompts, len(seeds) // len(prompts), passes)
        stack.callback(pipe.unet.register_forward_pre_hook(guard).remove)
        stack.enter_context(_named(passes, method, subjects))
        interventions = method.interventions(pipe, subjects, passes)
        if record is not None and "noise composition" in method.kinds:
            raise ValueError(f"{method.name} gives the network other texts than the prompts, which cannot be recorded")
        if record is not None:
            stack.enter_context(attending(pipe.unet, attention_sites(pipe.unet), record=record))
        for context in attachments(pipe, interventions, passes):
            stack.enter_context(context)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        yield Run(passes, subjects, generators, standings)


def standings_of(method: Method, subjects: tuple[Subject, ...]) -> tuple[Standing, ...]:
    """Return whether a method has anything to do for each image.

    Raises:
        NotApplicable: it lacks what it needs for one of them.
        ValueError: it cannot act on them for another reason, or is no method.
    """
    if not isinstance(method, Method):
        named = f"{method.__name__}()" if isinstance(method, type) else f"METHODS[{method!r}]"
        raise ValueError(f"method must be one, as {named} may be, got {method!r}")
    standings = tuple(method.standing(subject) for subject in subjects)
    for subject, standing in zip(subjects, standings, strict=True):
        if standing.verdict == "n/a":
            raise NotApplicable(f"{method.name} cannot be applied to {subject.prompt!r}: {standing.reason}")
    method.check(subjects)
    return standings


def attachments(
    pipe: DiffusionPipeline, interventions: Sequence[Intervention], passes: Passes
) -> Iterator[AbstractContextManager[None]]:
    """Yield the blocks in which the interventions act: changes of the noise come before those that guidance makes."""
    updates = [one for one in interventions if isinstance(one, LatentUpdate)]
    if updates:
        updates.sort(key=lambda one: one.kind != "initial noise")
        yield steering(pipe, [one.update for one in updates])
    for one in interventions:
        if isinstance(one, Arguments):
            yield calling(pipe, one.values)
        elif not isinstance(one, LatentUpdate):
            yield one.attached(pipe, passes)


@contextmanager
def _named(passes: Passes, method: Method, subjects: Sequence[Subject]) -> Iterator[None]:
    """Say, to whoever follows the same passes, which method acts on them, and what each image must show."""
    before = passes.method, passes.method_params, passes.targets
    passes.method, passes.method_params = method.name, method.parameters()
    passes.targets = tuple(subject.targets for subject in subjects)
    try:
        yield
    finally:
        passes.method, passes.method_params, passes.targets = before


class _PromptGuard:
    """Compares the text embeddings of a call's first pass, of guidance too, with those of the prompts announced."""

    def __init__(self, pipe: DiffusionPipeline, prompts: list[str], images: int, passes: Passes):
        self.pipe, self.prompts, self.images, self.passes = pipe, prompts, images, passes
        self.expected: Tensor | None = None
        self.checked = False

    def __call__(self, unet: nn.Module, args: Any) -> None:
        sampling = self.passes.kind == "sample"
        if self.passes.step != 0 or self.passes.text is None or (self.checked and not sampling):
            return
        text = self.passes.text[self.passes.rows]
        expected = self._announced(text.device)
        if not sampling:  # guidance comes first, perhaps of some images at a time
            expected = expected[: len(text)]
        self.checked = not sampling
        if text.shape != expected.shape:
            raise ValueError(f"the pipeline was called for {len(text)} images, the block for {len(expected)}")
        if not torch.allclose(text.float(), expected.float(), atol=1e-3, rtol=1e-2):
            raise ValueError(f"the pipeline was called with another prompt than {self.prompts}")

    @torch.no_grad()
    def _announced(self, device: torch.device) -> Tensor:
        if self.expected is None:  # by name: SDXL's has a second prompt in between
            embeddings: Tensor = self.pipe.encode_prompt(
                prompt=self.prompts,
                device=device,
                num_images_per_prompt=self.images,
                do_classifier_free_guidance=False,
                clip_skip=getattr(self.pipe, "clip_skip", None),
            )[0]
            self.expected = embeddings
        return self.expected
