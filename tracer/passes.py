"""Where a pipeline's own denoising loop stands, read from outside at every forward pass of its network.

Conventions: a step is one sampling pass, counted from 0 since the scheduler's last `set_timesteps` (PNDM makes 51 of
them for 50 timesteps, Heun 99); rows are the batch rows that carry the prompt: the second half of [unconditional,
conditional] under guidance, else all. A pass is a sampling pass unless it is marked, or computes gradients: then it is
of a method's guidance, and does not count as a step.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from tracer.rows import Branch, CallKind
from tracer.sites import denoiser
from tracer.words import Target

_PASSES = "_attnreg_passes"  # the network's attribute that holds the count while somebody follows it


class Passes:
    """The forward pass that is running, or that ran last.

    Attributes:
        kind: a sampling pass, or one that guidance or refinement adds.
        partial: some layers are left out, so that nothing of it can be recorded.
        step: sampling passes since the schedule was set, from 0; -1 before the first. Of a pass of guidance, that of
            the sampling pass which it serves, if it is marked so.
        steps: how many there will be.
        halves: what the batch holds, in its order: ("uncond", "cond"), or one of them alone.
        rows: the batch rows that carry the prompt.
        timestep: the scheduler's, as a number.
        sigma: noise level of this step where the scheduler has one, else None.
        text: the text embeddings of this pass, "batch token channel".
        latent: height and width of the latent where the network is given it as a grid.
        separate: the pipeline evaluates the halves one after the other (Flux's true guidance), not in one batch.
        composed: the network is given other texts than the prompts, so that its attention cannot be recorded.
        method: what acts on the pipeline, and with which parameters; whoever applies it says so.
        targets: of each image, which it was told that it must show; empty where nobody said.
    """

    def __init__(self, pipe: DiffusionPipeline):
        self._pipe = pipe
        self._schedule: Tensor | None = None
        self._timesteps: list[float] = []
        self._sigmas: list[float] | None = None
        self._marked: tuple[CallKind, bool] | None = None
        self._sampled_passes = 0  # since the schedule was set
        self._negative_next = False  # the pass to come is the negative prompt's own
        self.kind: CallKind = "sample"
        self.partial = False
        self.step, self.steps = -1, 0
        self.halves: tuple[Branch, ...] = ("cond",)
        self.rows = slice(None)
        self.text: Tensor | None = None
        self.latent: tuple[int, int] | None = None
        self.separate = False
        self.composed = False
        self.method = "plain"
        self.method_params: Mapping[str, object] = {}
        self.targets: tuple[tuple[Target, ...], ...] = ()

    @property
    def guided(self) -> bool:
        """Whether the batch is [unconditional, conditional]."""
        return len(self.halves) == 2

    @contextmanager
    def marked(self, kind: CallKind, ahead: bool = False) -> Iterator[None]:
        """Take the passes of this block for guidance or refinement: of the step that ran last, or of the next."""
        marked: tuple[CallKind, bool] = (kind, ahead)
        before, self._marked = self._marked, marked
        try:
            yield
        finally:
            self._marked = before

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a forward pass that is about to start (a forward pre-hook with keyword arguments)."""
        schedule = self._pipe.scheduler.timesteps
        if schedule is not self._schedule:  # set_timesteps makes a new tensor each time
            self._read_schedule(schedule)
        self.partial = kwargs.get("skip_layers") is not None  # SD3's skip-layer guidance
        extra = torch.is_grad_enabled() or self.partial
        usual: CallKind = "guidance" if extra else "sample"
        self.kind, ahead = self._marked or (usual, False)
        self.text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        sample = args[0] if args else kwargs["sample"] if "sample" in kwargs else kwargs["hidden_states"]
        self.latent = (sample.shape[-2], sample.shape[-1]) if sample.ndim == 4 else None
        self.halves = ("cond",)
        if self.kind == "sample":
            self._sampled_passes += not self._negative_next
            self.halves = self._sampled()
        self.step = self._sampled_passes - 1 + ahead
        self.rows = slice(len(sample) // 2 if self.guided else 0, len(sample))

    def _sampled(self) -> tuple[Branch, ...]:
        """Return the halves of a sampling pass."""
        if getattr(self._pipe, "do_classifier_free_guidance", False):
            return ("uncond", "cond")
        negative = self._negative_next
        self._negative_next = self.separate and not negative
        return ("uncond",) if negative else ("cond",)

    def _read_schedule(self, schedule: Tensor) -> None:
        self._schedule, self._sampled_passes, self._negative_next = schedule, 0, False
        self.steps = self._pipe.num_timesteps or len(schedule)
        self._timesteps = [float(t) for t in schedule.tolist()[-self.steps :]]  # image-to-image skips the first
        sigmas = getattr(self._pipe.scheduler, "sigmas", None)
        noise = None if sigmas is None else sigmas.tolist()[-self.steps - 1 :]
        self._sigmas = noise if noise is not None and len(noise) == self.steps + 1 else None

    @property
    def timestep(self) -> float:
        """The timestep of the running pass."""
        return self._timesteps[max(0, min(self.step, len(self._timesteps) - 1))]

    @property
    def sigma(self) -> float | None:
        """The noise level of the running pass, or None where the scheduler keeps none."""
        return None if self._sigmas is None else self._sigmas[max(0, min(self.step, len(self._sigmas) - 1))]


@contextmanager
def following(pipe: DiffusionPipeline) -> Iterator[Passes]:
    """Follow the pipeline's loop while the block runs; nothing of it remains afterwards.

    Blocks inside one another share one count.

    Raises:
        ValueError: the pipeline has neither a UNet nor a transformer.
    """
    model = denoiser(pipe)
    if (outer := getattr(model, _PASSES, None)) is not None:
        yield outer
        return
    passes = Passes(pipe)
    handle = model.register_forward_pre_hook(passes.begin, with_kwargs=True)
    setattr(model, _PASSES, passes)
    try:
        yield passes
    finally:
        handle.remove()
        delattr(model, _PASSES)
