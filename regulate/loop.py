"""The latents of a pipeline's own loop, in the hands of a method just before each sampling pass.

Nothing of the loop is rewritten. The pipeline tells its latents itself: before the first step through its own
``prepare_latents``, later through ``callback_on_step_end``. They are changed in place just before the network is
called, and its input is made of them anew, as the scheduler scales it. So step 0 is a step like any other, a user's own
callback is called as ever, and the network's further inputs (SDXL's) are those of the very pass.

PNDM's second pass and Heun's second stage start from a sample that the scheduler keeps: a change before them moves only
the noise prediction. Attend-and-Excite's code does so with PNDM, and so do we; before a second stage nothing is done.
UniPC's corrector, DPM-Solver's single-step form and PNDM with Runge-Kutta steps do so at most steps: a warning says so.

Conventions: a step is one of the schedule's: PNDM's second pass is one, a second stage (Heun) is of the step before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from inspect import signature
from typing import Any
from warnings import warn

import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverSinglestepScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from jaxtyping import Float, Int
from torch import Tensor, nn

from tracer.calls import overriding


@dataclass(frozen=True)
class Moment:
    """A sampling pass that is about to start.

    Attributes:
        latents: as the scheduler will get them, one per image.
        timestep: as the network will get it.
        step: that is about to be made, counted from 0 in each call.
        steps: how many there will be.
        inputs: what the network will be given beside the two, for the rows that carry the prompts.
        scale: what the scheduler makes of latents before the network sees them.
    """

    latents: Float[Tensor, "batch channel height width"]
    timestep: Tensor | float | int
    step: int
    steps: int
    inputs: Mapping[str, Any]
    scale: Callable[[Tensor], Tensor]

    def of(self, rows: slice) -> "Moment":
        """Return what concerns some of the images."""
        count = len(self.latents)
        return replace(
            self,
            latents=self.latents[rows],
            timestep=rows_of(self.timestep, rows, count),
            inputs=rows_of(self.inputs, rows, count),
        )


Update = Callable[[Moment], Tensor | None]


@contextmanager
def steering(pipe: DiffusionPipeline, updates: Sequence[Update]) -> Iterator[None]:
    """Let `updates`, one after the other, change the latents before every sampling pass while the block runs.

    Raises:
        ValueError: before anything is hooked, if the pipeline is not one that makes images of texts with a UNet; inside
            the block, if it changes its latents by itself between two steps.
    """
    wanted = signature(type(pipe).__call__).parameters
    fitting = hasattr(pipe, "prepare_latents") and "callback_on_step_end" in wanted and getattr(pipe, "unet", None)
    if not fitting or {"image", "mask_image"} & set(wanted):
        raise ValueError(
            f"latents can be guided in pipelines that make images of texts alone with a UNet, got {type(pipe).__name__}"
        )
    if _keeps_samples(pipe.scheduler):
        warn(
            f"{type(pipe.scheduler).__name__} goes on from samples that it keeps, so that most moves of the latents "
            "change the noise prediction only; DDIM, DPM-Solver (multistep) and Euler take them whole",
            stacklevel=2,
        )
    loop = _Loop(pipe, updates)
    with overriding(pipe, __call__=loop.call(type(pipe)), prepare_latents=loop.preparing(type(pipe))):
        handle = pipe.unet.register_forward_pre_hook(loop.before, prepend=True, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _keeps_samples(scheduler: object) -> bool:
    """Return whether most steps start from a sample of the scheduler's own, not from the latents that it is given."""
    if isinstance(scheduler, UniPCMultistepScheduler | SASolverScheduler):
        return True
    if isinstance(scheduler, DPMSolverSinglestepScheduler):
        return scheduler.config.solver_order > 1  # pyright: ignore[reportAttributeAccessIssue]
    return isinstance(scheduler, PNDMScheduler) and not scheduler.config.skip_prk_steps  # pyright: ignore


@contextmanager
def calling(pipe: DiffusionPipeline, values: Mapping[str, Any]) -> Iterator[None]:
    """Let every call of the pipeline have these arguments while the block runs, whatever it is given.

    Raises:
        ValueError: before anything is changed, if the pipeline does not know one of them.
    """
    own: Any = type(pipe).__call__
    if unknown := set(values) - set(signature(own).parameters):
        raise ValueError(f"{type(pipe).__name__} cannot be called with {', '.join(sorted(unknown))}")

    @wraps(own)
    def called(self: DiffusionPipeline, *args: Any, **kwargs: Any) -> Any:
        bound = signature(own).bind(self, *args, **kwargs)
        bound.arguments.update(values)
        return own(*bound.args, **bound.kwargs)

    with overriding(pipe, __call__=called):
        yield


class _Loop:
    """One pipeline's latents, and where its loop stands."""

    def __init__(self, pipe: DiffusionPipeline, updates: Sequence[Update]):
        self.pipe, self.updates = pipe, updates
        self.latents: Tensor | None = None
        self.step, self.busy = -1, False

    def preparing(self, own: Any) -> Callable[..., Tensor]:
        """Return the pipeline's own ``prepare_latents``, which tells us what it returned."""

        @wraps(own.prepare_latents)
        def prepared(pipe: DiffusionPipeline, *args: Any, **kwargs: Any) -> Tensor:
            latents: Tensor = own.prepare_latents(pipe, *args, **kwargs)
            self.latents, self.step = latents, -1
            return latents

        return prepared

    def call(self, own: Any) -> Callable[..., Any]:
        """Return the pipeline's own ``__call__``, whose callback tells us the latents at the end of every step."""

        @wraps(own.__call__)
        def called(pipe: DiffusionPipeline, *args: Any, **kwargs: Any) -> Any:
            bound = signature(own.__call__).bind(pipe, *args, **kwargs)
            bound.apply_defaults()
            theirs = bound.arguments["callback_on_step_end"]
            named = bound.arguments["callback_on_step_end_tensor_inputs"]
            if isinstance(theirs, PipelineCallback | MultiPipelineCallbacks):
                named = theirs.tensor_inputs
            bound.arguments["callback_on_step_end"] = _AtEnd(self, theirs, named)
            bound.arguments["callback_on_step_end_tensor_inputs"] = [*dict.fromkeys(["latents", *named])]
            try:
                return own.__call__(*bound.args, **bound.kwargs)
            finally:
                self.latents = None

        return called

    def before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Change the latents, and the input that was made of them (a forward pre-hook, the first of all)."""
        if self.busy or self.latents is None or torch.is_grad_enabled():
            return None
        if not getattr(self.pipe.scheduler, "state_in_first_order", True):
            return None
        self.step += 1
        given = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
        sample, timestep, images = given.pop("sample"), given.pop("timestep"), len(self.latents)
        if self.step == 0 and not torch.equal(sample[-images:], self._scaled(self.latents, timestep)):
            raise ValueError(f"{type(self.pipe).__name__} gives its network other latents than it prepared")
        moved = self._updated(sample, timestep, given)
        if moved is None:
            return None
        self.latents.copy_(moved)
        copies = [self._scaled(self.latents, timestep)] * (len(sample) // images)
        return (torch.cat(copies), timestep), given

    def _updated(self, sample: Tensor, timestep: Any, given: dict[str, Any]) -> Tensor | None:
        assert self.latents is not None
        rows, count = slice(len(sample) - len(self.latents), None), len(sample)
        moment = Moment(
            latents=self.latents,
            timestep=rows_of(timestep, rows, count),
            step=self.step,
            steps=self._steps(),
            inputs=rows_of(given, rows, count),
            scale=lambda latents: self._scaled(latents, timestep),
        )
        found = None
        self.busy = True
        try:
            for update in self.updates:
                if (moved := update(moment)) is not None:
                    found = moved.detach().to(self.latents.dtype)
                    moment = replace(moment, latents=found)
        finally:
            self.busy = False
        return found

    def _steps(self) -> int:
        passes, scheduler = self.pipe.num_timesteps, self.pipe.scheduler
        return -(-passes // scheduler.order) if hasattr(scheduler, "state_in_first_order") else passes

    def _scaled(self, latents: Tensor, timestep: Any) -> Tensor:
        first = timestep[0] if isinstance(timestep, Tensor) and timestep.ndim else timestep
        return self.pipe.scheduler.scale_model_input(latents, first)


@dataclass(frozen=True)
class _AtEnd:
    """A pipeline's callback: the user's own, if there is one, and then what tells the loop the latents."""

    loop: _Loop
    theirs: Callable[..., Any] | None
    named: Sequence[str]

    def __call__(self, pipe: DiffusionPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = {}
        if self.theirs is not None:
            changed = dict(self.theirs(pipe, step, timestep, {name: tensors[name] for name in self.named}))
        latents: Tensor = changed.get("latents", tensors["latents"])
        if self.theirs is not None and not isinstance(self.theirs, _AtEnd):
            latents = changed["latents"] = (
                latents.clone()
            )  # the user may keep the others, and ours are changed in place
        self.loop.latents = latents
        return changed


def rows_of(value: Any, rows: slice | Int[Tensor, " row"], count: int) -> Any:
    """Return some rows of whatever has one for each of the batch's `count`; anything else as it is."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == count else value
    if isinstance(value, Mapping):
        return {name: rows_of(part, rows, count) for name, part in value.items()}
    return type(value)(rows_of(part, rows, count) for part in value) if isinstance(value, tuple | list) else value
