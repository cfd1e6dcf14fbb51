"""Divide & Bind: every target's attention has strong edges somewhere, and a modifier's lies as its noun's does.

Source: arXiv 2307.10864, from the paper's formulas.

Conventions: those of `regulate.smoothing`. For the divergence maps are divided by their sum over the pixels; the
released code (AGPL, none of it is here) takes a softmax over the pixels, which is nearly flat.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from regulate.guidance import Guidance, ImageLoss, Look
from regulate.method import Subject, groups_for
from regulate.smoothing import chosen, finite_log, nothing, over_pixels, smoothed, words_only
from regulate.structure import Bound, bound

Word = tuple[int, ...]


def total_variation(maps: Float[Tensor, "*batch height width"]) -> Float[Tensor, "*batch"]:
    """Return the absolute differences of neighbours of each map: their mean down, and their mean across, added.

    The paper's total variation is the sum; means are what the released thresholds and step are of.
    """
    return maps.diff(dim=-2).abs().mean((-2, -1)) + maps.diff(dim=-1).abs().mean((-2, -1))


def attend_loss(maps: Float[Tensor, "token height width"], targets: Sequence[Word]) -> Float[Tensor, ""]:
    """Return the smallest total variation of a target, negated; of a word of several tokens the largest one counts.

    Raises:
        ValueError: a target has no token, or one beyond the maps.
    """
    if not targets:
        return nothing(maps)
    every = total_variation(maps)
    return -torch.stack([rows.amax() for rows in chosen(every, targets)]).amin()


def divergence(
    one: Float[Tensor, "*batch height width"], other: Float[Tensor, "*batch height width"]
) -> Float[Tensor, "*batch"]:
    """Return the Jensen-Shannon divergence (natural logarithm) of maps as distributions over the pixels.

    Logarithms are cut off at that of the type's epsilon, so that values and gradients are finite.
    """
    p, q = over_pixels(one), over_pixels(other)
    middle = finite_log((p + q) / 2)
    return (p * (finite_log(p) - middle) + q * (finite_log(q) - middle)).sum(-1) / 2


def bind_loss(maps: Float[Tensor, "token height width"], groups: Sequence[Bound]) -> Float[Tensor, ""]:
    """Return the divergence of noun and modifier, summed over all such pairs.

    The map of a word of several tokens is the sum of theirs, which is ours: the paper does not say.

    Raises:
        ValueError: a word has no token, or one beyond the maps.
    """
    pairs = [word for group in groups for modifier in group.modifiers for word in (group.noun, modifier)]
    if not pairs:
        return nothing(maps)
    sums = torch.stack([rows.sum(0) for rows in chosen(maps, pairs)])
    return divergence(sums[::2], sums[1::2]).sum()


def divide_and_bind_loss(
    maps: Float[Tensor, "token height width"], targets: Sequence[Word], groups: Sequence[Bound], weight: float
) -> Float[Tensor, ""]:
    """Return ``attend + weight * bind``."""
    return attend_loss(maps, targets) + weight * bind_loss(maps, groups)


@dataclass(frozen=True)
class DivideAndBind(Guidance):
    """The method's hyper-parameters beside those of `Guidance`.

    Maps are prepared as by Attend-and-Excite: a softmax of 100 times the attention over the tokens, smoothed.

    Attributes:
        refine_at: thresholds of the smallest total variation at steps 0, 10, 20 of 50.
        bind: weight of the divergence of modifiers from their nouns, 1 in the paper; the released code raises it with
            the steps, 1, 5 and 10.
        until_end: the softmax over the tokens ends before the end token, instead of before the last of the padding, as
            it should in Stable Diffusion 2.x, whose attention goes there.
        parser: of the prompt, see `structure.groups_of`, where the user gave no groups.
    """

    name: ClassVar[str] = "divide-and-bind"
    needs_targets: ClassVar[bool] = True
    refine_at: tuple[tuple[float, float | None], ...] = ((0.0, 0.05), (0.2, 0.2), (0.4, 0.3))
    scaled: bool = True
    needless: bool = False
    together: int | None = None
    bind: float = 1.0
    until_end: bool = False
    parser: str = "auto"

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if an image has no target."""
        if not all(subject.targets for subject in subjects):
            raise ValueError("Divide & Bind needs at least one target for every prompt")

    def loss_of(self, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss:
        """Return the loss of an image."""
        targets = [shifted(target.positions) for target in subject.targets]
        found = bound(pipe.tokenizer, subject.prompt, groups_for(subject, self.parser))
        groups = [Bound(shifted(g.noun), tuple(shifted(modifier) for modifier in g.modifiers)) for g in found]

        end = subject.end if self.until_end else None

        def loss(look: Look) -> Float[Tensor, ""]:
            return divide_and_bind_loss(smoothed(words_only(look.maps, end=end)), targets, groups, self.bind)

        return loss

    def reach_of(self, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss:
        """Return the smallest total variation of a target."""
        targets = [shifted(target.positions) for target in subject.targets]
        end = subject.end if self.until_end else None
        return lambda look: -attend_loss(smoothed(words_only(look.maps, end=end)), targets)


FIXED = DivideAndBind(until_end=True)


def shifted(word: Word) -> Word:
    """Return where a word's tokens are once the start token is left out."""
    return tuple(position - 1 for position in word)
