"""CONFORM: the maps of one object's words are alike, over the last steps too, and unlike those of other objects.

Source: arXiv 2312.06059; the formula as in the released code @4ad0e37 (MIT).

Conventions: those of `regulate.smoothing`. The members of a class are a group's tokens, now and in the step before.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, softplus

from regulate.guidance import Guidance, ImageLoss
from regulate.method import ACTS, Standing, Subject, groups_for
from regulate.shares import whole
from regulate.smoothing import chosen, nothing, smoothed
from regulate.structure import bound


def conform_loss(
    maps: Float[Tensor, "token height width"],
    groups: Sequence[Sequence[int]],
    before: Float[Tensor, "token height width"] | None,
    temperature: float = 0.5,
) -> Float[Tensor, ""]:
    """Return the NT-Xent loss of the smoothed maps; 0 if no two members share a class, or there is one class only.

    With s the cosine similarity over the temperature, every ordered pair (a, p) of one class loses
    ``-log(exp(s_ap) / (exp(s_ap) + sum exp(s_an)))``, n being the members of all other classes; the mean over all
    pairs is returned.

    Args:
        maps: of all tokens.
        groups: the tokens of each class.
        before: maps of the step before, whose same tokens join the classes; they stay as they are, without a gradient.
        temperature: above 0.

    Raises:
        ValueError: the temperature is not above 0, or a group has no token, or one beyond the maps.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    times = 1 if before is None else 2
    sizes = [times * len(group) for group in groups]
    pairs = sum(size * (size - 1) for size in sizes)
    if len(groups) < 2 or not pairs:
        return nothing(maps)
    steps = [maps] if before is None else [maps, before.detach()]
    by_step = [chosen(step, groups) for step in steps]
    members = torch.cat([rows for of_group in zip(*by_step, strict=True) for rows in of_group])
    similar = normalize(smoothed(members).flatten(1), dim=1)
    similar = similar @ similar.T / temperature
    loss, start = nothing(maps), 0
    for size in sizes:  # the members of a class stand together
        rows, end = similar[start : start + size], start + size
        others = torch.cat([rows[:, :start], rows[:, end:]], 1).logsumexp(1, keepdim=True)
        each = softplus(others - rows[:, start:end])
        loss = loss + each.tril(-1).sum() + each.triu(1).sum()
        start = end
    return loss / pairs


def distinct(groups: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return the groups without tokens that several of them have: they cannot be like one and unlike the other."""
    counts = Counter(position for group in groups for position in dict.fromkeys(group))
    kept = [tuple(position for position in dict.fromkeys(group) if counts[position] == 1) for group in groups]
    return [group for group in kept if group]


@dataclass(frozen=True)
class Conform(Guidance):
    """The method's hyper-parameters beside those of `Guidance`; each default is the released notebook's.

    The released pipeline's own defaults are others: 25 steps of 50, and a softmax over the tokens.

    Attributes:
        until: 30 steps of 50.
        refine_at: at steps 0, 10, 20 of 50 the latents are moved 20 times, whatever the loss.
        temperature: of the cosine similarities.
        parser: of the prompt, see `structure.groups_of`, where the user gave no groups; a noun and its modifiers are
            one class, which the released code has its user name by token numbers.
    """

    name: ClassVar[str] = "conform"
    refine_at: tuple[tuple[float, float | None], ...] = ((0.0, None), (0.2, None), (0.4, None))
    until: float = 0.6
    temperature: float = 0.5
    parser: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def gradient_passes(self, steps: int, images: int = 1) -> tuple[int, int]:
        """Return how many passes a batch takes at least, if all its nouns are bare single tokens, and at most.

        Such prompts have no pair of one class before there is a step before, and nothing is moved at the first.
        """
        least, most = super().gradient_passes(steps, images)
        flat = not self.needless and any(whole(share, steps) == 0 for share, _ in self.refine_at)
        groups = -(-images // (self.together or images))
        return least - flat * groups * self.refinements, most

    def standing(self, subject: Subject) -> Standing:
        """Return "no-op" for a prompt with fewer than two nouns: there is nothing that they could be unlike."""
        if len(groups_for(subject, self.parser)) > 1:
            return ACTS
        return Standing("no-op", "it has fewer than two nouns")

    def loss_of(self, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss:
        """Return the loss of an image."""
        found = bound(pipe.tokenizer, subject.prompt, groups_for(subject, self.parser))
        groups = distinct([[p for word in (*group.modifiers, group.noun) for p in word] for group in found])
        return lambda look: conform_loss(look.maps, groups, look.before, self.temperature)


FIXED = Conform(scaled=True, needless=False, together=None)
