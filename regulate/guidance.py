"""Latent guidance: before a step the latents are moved against the gradient of a loss on the attention maps.

One engine for Attend-and-Excite and those that came after it; a method is its loss and its constants. Source of the
schedule: Attend-and-Excite (arXiv 2301.13826), algorithm 1, and its code, commit 163efdf, as
diffusers ships it: the authors' own makes two more passes without gradients at every move of a refinement.

Conventions: a share of the steps is rounded down, so that half of PNDM's 51 are the first 25. An image's loss sees that
image alone, so that it does not depend on its batch.

Passes of the network, all of an image's: as many sampling passes as steps, and with gradients, for n steps:
    mended       one for each altered step, n * until; at each refined step one more per move, at most `refinements`
    as released  n, also where nothing is done with it; at each refined step that misses its threshold, one per move and
                 one more (the first repeats the one just made, the last looks at the result)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool, Float
from torch import Tensor

from regulate.layers import LAST_DOWN_SIZE, sites_of_one_size
from regulate.looking import Looker, frozen
from regulate.loop import Moment
from regulate.method import Kind, LatentUpdate, Method, Subject
from regulate.shares import whole
from tracer.passes import Passes
from tracer.sites import attention_sites


@dataclass(frozen=True)
class Look:
    """What a loss sees of one image.

    Attributes:
        maps: each token's, mean over heads and layers.
        before: those of the step before, without a graph; None at the first.
        step: that is about to be made.
        steps: of the schedule.
    """

    maps: Float[Tensor, "token height width"]
    before: Float[Tensor, "token height width"] | None
    step: int
    steps: int


ImageLoss = Callable[[Look], Float[Tensor, ""]]


@dataclass(frozen=True)
class Guidance(Method, ABC):
    """The schedule of latent guidance.

    Attributes:
        layers: "last-down-size", or patterns of site names; see `layers.sites_of_one_size`.
        step_size: alpha, on the loss of one image.
        shrinks: alpha falls as the root of a line from 1 to 0.5 over all the steps.
        until: share of the steps before which the latents are moved once.
        refine_at: shares of the steps at which they are moved repeatedly, with the threshold to reach there; None to
            move as often as allowed.
        refinements: moves at such a step, at most.
        scaled: whether the extra passes see latents as the scheduler scales them, which matters for Euler and the like.
        needless: whether to make the passes of released code that mended code leaves out: one at every step, used or
            not; one before the first move of a refinement, one after the last. The loss is then looked at before each
            move, not after it.
        together: images in one extra pass; None for all of the batch.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("latent guidance",)
    layers: str | tuple[str, ...] = LAST_DOWN_SIZE
    step_size: float = 20.0
    shrinks: bool = True
    until: float = 0.5
    refine_at: tuple[tuple[float, float | None], ...] = ()
    refinements: int = 20
    scaled: bool = False
    needless: bool = True
    together: int | None = 1

    def __post_init__(self) -> None:
        if not 0 <= self.until <= 1 or not all(0 <= share <= 1 for share, _ in self.refine_at):
            raise ValueError(f"until and refine_at must be shares from 0 to 1, got {self.until}, {self.refine_at}")
        if self.refinements < 0 or (self.together is not None and self.together < 1):
            raise ValueError(
                f"refinements must be at least 0, together 1 or more, got {self.refinements}, {self.together}"
            )
        if self.needless and self.together != 1:
            raise ValueError(f"together must be 1 with needless passes, as in released code, got {self.together}")

    @abstractmethod
    def loss_of(self, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss:
        """Return the loss of an image."""

    def reach_of(self, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss | None:
        """Return what an image's thresholds are compared with, larger being better; None for 1 - loss."""
        return None

    def interventions(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> tuple[LatentUpdate, ...]:
        """Return the guide of one batch.

        Raises:
            ValueError: no site fits `layers`.
        """
        return (LatentUpdate("latent guidance", Guide(self, pipe, subjects, passes)),)

    @property
    def whole_batches(self) -> bool:
        """Whether its passes are of all the images of a batch."""
        return self.together is None

    def gradient_passes(self, steps: int, images: int = 1) -> tuple[int, int]:
        """Return how many passes a batch takes at least, if all thresholds are reached at once, and at most."""
        altered = range(whole(self.until, steps))
        refined = {whole(share, steps): threshold for share, threshold in self.refine_at if whole(share, steps) < steps}
        looks = steps if self.needless else len({*altered, *refined})
        most = self.refinements + (self.needless and self.refinements > 0)
        always = sum(threshold is None for threshold in refined.values())
        groups = -(-images // (self.together or images))
        return groups * (looks + always * most), groups * (looks + len(refined) * most)

    def step_at(self, step: int, steps: int) -> float:
        """Return alpha of a step."""
        return self.step_size * math.sqrt(1 - 0.5 * step / max(1, steps - 1)) if self.shrinks else self.step_size

    def threshold_at(self, step: int, steps: int) -> tuple[bool, float | None]:
        """Return whether a step is refined, and its threshold."""
        found = {whole(share, steps): threshold for share, threshold in self.refine_at}
        return step in found, found.get(step)


@dataclass(frozen=True)
class _Seen:
    """Latents, and the losses that they have, with the graph between the two; and what thresholds are compared with."""

    latents: Float[Tensor, "image channel height width"]
    losses: Float[Tensor, " image"]
    reached: Float[Tensor, " image"]

    @cached_property
    def gradient(self) -> Float[Tensor, "image channel height width"]:
        """The losses' gradient; the graph is gone once it was asked for."""
        (gradient,) = torch.autograd.grad(self.losses.sum(), self.latents)
        return gradient

    def moved(self, size: float) -> Float[Tensor, "image channel height width"]:
        """Return the latents moved against the gradient."""
        return self.latents.detach() - size * self.gradient


class Guide:
    """The guidance of one batch of images."""

    def __init__(self, method: Guidance, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes):
        sites = sites_of_one_size(pipe.unet, attention_sites(pipe.unet), method.layers)
        self.method, self.unet = method, pipe.unet
        self.look = Looker(pipe, passes, sites, scaled=method.scaled)
        known: dict[Subject, ImageLoss] = {}  # images of one prompt share what is found out of it
        for subject in subjects:
            if (unseeded := replace(subject, seed=0)) not in known:
                known[unseeded] = method.loss_of(pipe, subject)
        self.losses = [known[replace(subject, seed=0)] for subject in subjects]
        self.reaches = [method.reach_of(pipe, subject) for subject in subjects]
        self.idle = [method.standing(subject).verdict != "acts" for subject in subjects]
        self.before: list[Tensor | None] = [None] * len(subjects)
        self.maps: list[Tensor | None] = [None] * len(subjects)

    def __call__(self, moment: Moment) -> Tensor | None:
        """Return the latents to take into a step; None to leave them as they are."""
        method, images = self.method, len(self.losses)
        if len(moment.latents) != images:
            raise ValueError(f"the pipeline was called for {len(moment.latents)} images, the block for {images}")
        altered = moment.step < whole(method.until, moment.steps)
        refined, _ = method.threshold_at(moment.step, moment.steps)
        looked = method.needless or ((altered or refined) and not all(self.idle))
        if moment.step == 0 or not looked:
            self.before = [None] * images
        if not looked:
            return None
        parts = []
        with frozen(self.unet):
            for start in range(0, images, method.together or images):
                rows = slice(start, min(images, start + (method.together or images)))
                parts.append(self._moved(moment, rows, altered, refined))
        self.before = list(self.maps)
        return torch.cat(parts) if altered or refined else None

    def _moved(self, moment: Moment, rows: slice, altered: bool, refined: bool) -> Tensor:
        """Return some images' latents after the moves of a step."""
        here, size = moment.of(rows), self.method.step_at(moment.step, moment.steps)
        seen = self._seen(here, here.latents.float(), rows)
        if refined:
            seen = (self._refined_as_released if self.method.needless else self._refined)(here, seen, rows, size)
        return seen.moved(size) if altered else seen.latents.detach()

    def _seen(self, here: Moment, latents: Tensor, rows: slice, refining: bool = False) -> _Seen:
        latents = latents.detach().requires_grad_()
        maps = self.look(here, latents, "refine" if refining else "guidance").text
        losses, reached = [], []
        with torch.autocast(latents.device.type, enabled=False):  # or products of maps would be in half precision
            for offset, image in enumerate(range(rows.start, rows.stop)):
                self.maps[image] = maps[offset].detach()
                look = Look(maps[offset], self.before[image], here.step, here.steps)
                reach = self.reaches[image]
                losses.append(maps[offset].sum() * 0 if self.idle[image] else self.losses[image](look))
                reached.append(1 - losses[-1].detach() if reach is None else reach(look).detach())
        return _Seen(latents, torch.stack(losses), torch.stack(reached))

    def _unmet(self, here: Moment, seen: _Seen) -> Bool[Tensor, " image"]:
        _, threshold = self.method.threshold_at(here.step, here.steps)
        return seen.reached < (torch.inf if threshold is None else threshold)

    def _refined(self, here: Moment, seen: _Seen, rows: slice, size: float) -> _Seen:
        """Move those that miss the threshold, until none does, none can be moved or they were moved often enough."""
        for _ in range(self.method.refinements):
            unmet = self._unmet(here, seen)
            if not unmet.any():  # waits for the device, which is about to make a whole pass
                break
            latents = torch.where(unmet[:, None, None, None], seen.moved(size), seen.latents.detach())
            if torch.equal(latents, seen.latents):  # a loss without a slope: so would be every further move
                break
            seen = self._seen(here, latents, rows, refining=True)
        return seen

    def _refined_as_released(self, here: Moment, seen: _Seen, rows: slice, size: float) -> _Seen:
        """Do the same with the passes of the released code, which looks at a loss before it moves on from it."""
        latents, moves = seen.latents, 0
        while moves < self.method.refinements and bool(self._unmet(here, seen).any()):
            moves += 1
            seen = self._seen(here, latents, rows, refining=True)
            latents = seen.moved(size)
        return seen if not moves else self._seen(here, latents, rows, refining=True)
