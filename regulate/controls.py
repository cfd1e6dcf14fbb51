"""Controls: what must be beaten before an effect is credited to an optimisation.

    Boost            a constant on the target words' scores, on the layers and steps that regulation edits
    Balance          dominance itself, made smaller or larger: targets are given more alike, or less
    GuidanceScale    plain sampling, guided more strongly
    RANDOM           regulation with the random bias that its optimisation starts from (`attention_regulation`)
The fourth, the best of n seeds at as many passes of the network, is a choice among plain images: `analysis.best_of`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from regulate.dominance import log_quantiles
from regulate.layers import LAST_DOWN_FIRST_UP, chosen_sites
from regulate.method import Arguments, AttentionEdit, Kind, Method, Subject
from regulate.shares import begun
from regulate.softmax import Members, biased, members_of, reduced
from tracer.passes import Passes
from tracer.sites import attention_sites
from tracer.tap import Edited, Tap


@dataclass(frozen=True)
class Boost(Method):
    """A constant is added to the target words' scores.

    Attributes:
        amount: before the softmax; 1 multiplies a word's odds by e.
        layers: as `AttentionRegulation` has them.
        per_transformer: likewise.
        until: share of the steps that are edited.
    """

    name: ClassVar[str] = "boost"
    kinds: ClassVar[tuple[Kind, ...]] = ("attention edit",)
    needs_targets: ClassVar[bool] = True
    amount: float = 1.0
    layers: str | tuple[str, ...] = LAST_DOWN_FIRST_UP
    per_transformer: int | None = 1
    until: float = 0.5

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if an image has no target."""
        if not all(subject.targets for subject in subjects):
            raise ValueError("a boost needs at least one target for every prompt")

    def interventions(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> tuple[AttentionEdit, ...]:
        """Return the edit of one batch."""
        columns: dict[int, Tensor] = {}

        def edit(tap: Tap) -> Edited | None:
            if passes.kind != "sample" or passes.step >= begun(self.until, passes.steps):
                return None
            scores = tap.scores(passes.rows)
            if scores.shape[-1] not in columns:
                columns[scores.shape[-1]] = _columns(subjects, scores.shape[-1]).to(scores.device)
            return Edited(passes.rows, (scores + self.amount * columns[scores.shape[-1]]).softmax(-1))

        chosen = chosen_sites(attention_sites(pipe.unet), self.layers, self.per_transformer)
        return (AttentionEdit(chosen, edit),)


def _columns(subjects: tuple[Subject, ...], tokens: int) -> Float[Tensor, "image 1 1 token"]:
    columns = torch.zeros(len(subjects), 1, 1, tokens)
    for image, subject in enumerate(subjects):
        columns[image, ..., [position for target in subject.targets for position in target.positions]] = 1
    return columns


@dataclass(frozen=True)
class Balance(Method):
    """What a layer gives the targets is made more alike, or less, by a constant on each target's scores.

    Dominance is that of `regulate.dominance`: a target's share of the sum of m over all targets, m being the mean over
    heads of its map's 0.9-quantile. At every step and layer anew the constants bring the shares to those whose
    logarithms differ ``1 - strength`` times as much, and leave the sum what it is.

    Attributes:
        strength: 0 changes nothing, 1 makes targets equal, below 0 the dominant one is given still more.
        layers: as `AttentionRegulation` has them.
        until: share of the steps that are edited.
        rounds: of the search for the constants, each of which adds what log m still lacks. If targets had hardly any
            attention, one would do; with six a strength of 1 leaves shares of 0.506 and 0.494 in the emoji world.
    """

    name: ClassVar[str] = "balance"
    kinds: ClassVar[tuple[Kind, ...]] = ("attention edit",)
    needs_targets: ClassVar[bool] = True
    strength: float = 1.0
    layers: str | tuple[str, ...] = "*"
    until: float = 1.0
    rounds: int = 6

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if an image has fewer than two targets, of which none can dominate."""
        if not all(len(subject.targets) > 1 for subject in subjects):
            raise ValueError("a balance needs at least two targets for every prompt")

    def interventions(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> tuple[AttentionEdit, ...]:
        """Return the edit of one batch."""
        words = [[list(target.positions) for target in subject.targets] for subject in subjects]
        known: dict[int, Members] = {}

        def edit(tap: Tap) -> Edited | None:
            if passes.kind != "sample" or passes.step >= begun(self.until, passes.steps):
                return None
            scores = tap.scores(passes.rows).transpose(-1, -2)
            if scores.shape[2] not in known:
                known[scores.shape[2]] = members_of(words, scores.shape[2], scores.device)
            balanced = _balanced(scores, known[scores.shape[2]], self.strength, self.rounds)
            return Edited(passes.rows, balanced.transpose(-1, -2))

        return (AttentionEdit(chosen_sites(attention_sites(pipe.unet), self.layers, None), edit),)


def _balanced(
    scores: Float[Tensor, "batch head token pixel"], members: Members, strength: float, rounds: int
) -> Float[Tensor, "batch head token pixel"]:
    real, parts = members.real[..., 0], reduced(scores, members)
    bias = torch.zeros_like(parts.odds)
    logs = log_quantiles(parts.probs()[:-1], real).masked_fill(~real, 0)
    shares = ((1 - strength) * logs).masked_fill(~real, -torch.inf).log_softmax(1)
    wanted = shares + logs.masked_fill(~real, -torch.inf).logsumexp(1, keepdim=True)
    for _ in range(rounds):
        lacks = (wanted - logs).masked_fill(~real, 0)
        bias = bias + lacks.T.repeat_interleave(scores.shape[1], 1)[..., None]
        logs = log_quantiles(parts.probs(bias)[:-1], real).masked_fill(~real, 0)
    return biased(scores, bias, members)


@dataclass(frozen=True)
class GuidanceScale(Method):
    """Classifier-free guidance of another scale, whatever the call says.

    Attributes:
        scale: in the emoji world 5 is usual, 7.5 with Stable Diffusion.
    """

    name: ClassVar[str] = "guidance-scale"
    kinds: ClassVar[tuple[Kind, ...]] = ("arguments",)
    scale: float = 10.0

    def interventions(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> tuple[Arguments, ...]:
        """Return the argument."""
        return (Arguments({"guidance_scale": self.scale}),)
