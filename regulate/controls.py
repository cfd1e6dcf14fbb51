"""Controls: what must be beaten before an effect is credited to an optimisation.

    Boost            a constant on the target words' scores, on the layers and steps that regulation edits
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

from regulate.layers import LAST_DOWN_FIRST_UP, chosen_sites
from regulate.method import Arguments, AttentionEdit, Kind, Method, Subject
from regulate.shares import begun
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
