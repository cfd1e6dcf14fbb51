"""SynGen: a modifier's attention is where its noun's is, and where no other word's is.

Source: arXiv 2306.08877; the formulas as in the released code @50b8eab.

Conventions: those of `regulate.smoothing`. D is the symmetric Kullback-Leibler divergence, the mean of both directions,
of two tokens' maps as distributions over the pixels. The divergence of words of several tokens is the largest one of
their tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from regulate.guidance import Guidance, ImageLoss
from regulate.method import ACTS, Standing, Subject, groups_for
from regulate.smoothing import chosen, finite_log, nothing, over_pixels
from regulate.structure import Bound, bound


def divergences(maps: Float[Tensor, "word height width"]) -> Float[Tensor, "word word"]:
    """Return D of every two maps.

    Logarithms are cut off at that of the type's epsilon, so that D is finite where a probability is 0, and at most
    about ``-log(epsilon)``: 16 in float32, 36 in float64.
    """
    probs = over_pixels(maps)
    logs = finite_log(probs)
    # D = (p - q) . (log p - log q) / 2: what all logarithms share cancels, and is taken off before it can round
    products = probs @ (logs - logs.mean(0)).T
    own = products.diagonal()
    return (own[:, None] + own - products - products.T) / 2


def syngen_loss(
    maps: Float[Tensor, "token height width"], groups: Sequence[Bound], words: Sequence[int]
) -> Float[Tensor, ""]:
    """Return the loss: over all pairs of a noun and a modifier, their D, less that to the words outside of the group.

    With ``away(x)`` the mean of D(x, u) over the words u outside of x's group (0 if there is none), a pair adds
    ``D(noun, modifier) - (away(noun) + away(modifier)) / 2``; a group without modifiers adds ``-away(noun)``.

    Args:
        maps: of all tokens.
        groups: nouns and their modifiers.
        words: the positions of all tokens of the prompt, start, end and padding left out.

    Raises:
        ValueError: a token of a group is not among the words, or a word not among the tokens.
    """
    if not groups:
        return nothing(maps)
    place = {position: number for number, position in enumerate(dict.fromkeys(words))}
    if missing := {p for group in groups for word in (group.noun, *group.modifiers) for p in word} - place.keys():
        raise ValueError(f"words must hold every token of the groups, got none at {sorted(missing)}")
    every = divergences(chosen(maps, [list(place)])[0])
    losses: list[Tensor] = []
    for group in groups:
        parts = [[place[position] for position in word] for word in (group.noun, *group.modifiers)]
        inside = {number for part in parts for number in part}
        outside = [number for number in place.values() if number not in inside]
        to_all = torch.stack([rows.amax(0) for rows in chosen(every, parts)])
        away = chosen(to_all.T, [outside])[0].mean(0) if outside else to_all[:, :0].sum(1)
        if not group.modifiers:
            losses.append(-away[0])
        else:
            to_noun = chosen(to_all[1:].T, parts[:1])[0].amax(0)
            losses.append((to_noun - (away[0] + away[1:]) / 2).sum())
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class SynGen(Guidance):
    """The method's hyper-parameters beside those of `Guidance`; each default is the released code's.

    Attributes:
        step_size: 20 at every step.
        entities: nouns without modifiers count too, with ``-away(noun)``. As released they do not, so that prompts
            like "a cat and a dog" are left alone.
        parser: of the prompt, see `structure.groups_of`, where the user gave no groups.
    """

    name: ClassVar[str] = "syngen"
    shrinks: bool = False
    needless: bool = False
    entities: bool = False
    parser: str = "auto"

    def standing(self, subject: Subject) -> Standing:
        """Return "no-op" for a prompt without a noun that has a modifier."""
        if any(group.modifiers or self.entities for group in groups_for(subject, self.parser)):
            return ACTS
        return Standing("no-op", "no noun of it has a modifier" if not self.entities else "it has no noun")

    def loss_of(self, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss:
        """Return the loss of an image."""
        found = bound(pipe.tokenizer, subject.prompt, groups_for(subject, self.parser))
        groups = [group for group in found if group.modifiers or self.entities]
        words = range(1, subject.end)
        return lambda look: syngen_loss(look.maps, groups, words)


FIXED = SynGen(scaled=True, together=None)
