"""Where a pipeline's own denoising loop stands, read from outside at every forward pass of its UNet.

Conventions: a step is one sampling pass of the UNet, counted from 0 since the scheduler's last `set_timesteps`
(PNDM makes 51 of them for 50 timesteps, Heun 99); rows are the batch rows that carry the prompt: the second half of
[unconditional, conditional] under guidance, else all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn


class Passes:
    """The forward pass that is running, or that ran last.

    Attributes:
        step: sampling passes since the schedule was set, from 0; -1 before the first.
        steps: how many there will be.
        guided: whether the batch is [unconditional, conditional].
        rows: the batch rows that carry the prompt.
        timestep: the scheduler's, as a number.
        sigma: noise level of this step where the scheduler has one, else None.
        text: the text embeddings of this pass, "batch token channel".
    """

    def __init__(self, pipe: DiffusionPipeline):
        self._pipe = pipe
        self._schedule: Tensor | None = None
        self._timesteps: list[float] = []
        self._sigmas: list[float] | None = None
        self.step, self.steps = -1, 0
        self.guided, self.rows = False, slice(None)
        self.text: Tensor | None = None

    def begin(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a forward pass that is about to start (a forward pre-hook with keyword arguments)."""
        schedule = self._pipe.scheduler.timesteps
        if schedule is not self._schedule:  # set_timesteps makes a new tensor each time
            self._read_schedule(schedule)
        self.step += 1
        sample = args[0] if args else kwargs["sample"]
        self.text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        self.guided = bool(self._pipe.do_classifier_free_guidance)
        self.rows = slice(len(sample) // 2 if self.guided else 0, len(sample))

    def _read_schedule(self, schedule: Tensor) -> None:
        self._schedule, self.step = schedule, -1
        self.steps = self._pipe.num_timesteps or len(schedule)
        self._timesteps = [float(t) for t in schedule.tolist()[-self.steps :]]  # image-to-image skips the first
        sigmas = getattr(self._pipe.scheduler, "sigmas", None)
        noise = None if sigmas is None else sigmas.tolist()[-self.steps - 1 :]
        self._sigmas = noise if noise is not None and len(noise) == self.steps + 1 else None

    @property
    def timestep(self) -> float:
        """The timestep of the running pass."""
        return self._timesteps[min(self.step, len(self._timesteps) - 1)]

    @property
    def sigma(self) -> float | None:
        """The noise level of the running pass, or None where the scheduler keeps none."""
        return None if self._sigmas is None else self._sigmas[min(self.step, len(self._sigmas) - 1)]


@contextmanager
def following(pipe: DiffusionPipeline) -> Iterator[Passes]:
    """Follow the pipeline's loop while the block runs; nothing of it remains afterwards.

    Raises:
        ValueError: the pipeline has no UNet.
    """
    unet = getattr(pipe, "unet", None)
    if unet is None:
        raise ValueError(f"pipe must be a pipeline with a UNet, got {type(pipe).__name__}")
    passes = Passes(pipe)
    handle = unet.register_forward_pre_hook(passes.begin, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()
