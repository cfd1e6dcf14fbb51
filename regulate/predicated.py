"""Predicated Diffusion: a prompt as propositions, attention as the degree to which a pixel fulfils a predicate.

Source: arXiv 2311.16117.

Conventions: those of `regulate.smoothing`; a map of a word of several tokens is the sum of its tokens' maps, at most 1,
which is ours: the paper has words of one token. Attention is from 0 to 1 with both ends: each logarithm's argument x is
``epsilon + (1 - epsilon) x`` with the epsilon of the type, so that values and gradients are finite, and the gradient at
the ends still points the right way, which that of a clamped argument would not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from regulate.guidance import Guidance, ImageLoss
from regulate.method import Subject, groups_for
from regulate.smoothing import chosen, nothing
from regulate.structure import Bound, bound, owners_of
from tracer.words import positions_of

Word = tuple[int, ...]


def word_maps(
    maps: Float[Tensor, "token height width"], words: Sequence[Word]
) -> dict[Word, Float[Tensor, "height width"]]:
    """Return each word's map: the sum of its tokens' maps, at most 1."""
    words = list(dict.fromkeys(words))
    sums = (rows.sum(0) for rows in chosen(maps, words))
    # not clamp_max, which has no gradient at exactly 1
    return {word: total.masked_fill(total > 1, 1) for word, total in zip(words, sums, strict=True)}


def exists(word: Float[Tensor, "*word height width"]) -> Float[Tensor, ""]:
    """Return the loss of "there is one": ``-log(1 - prod(1 - A))``, the product over the pixels; summed over words."""
    eps = torch.finfo(word.dtype).eps
    absent = torch.log1p((eps - 1) * word).sum((-2, -1))  # log of the product
    return -(eps + (eps - 1) * absent.expm1()).log().sum()


def implies(one: Float[Tensor, "*pair height width"], other: Float[Tensor, "*pair height width"]) -> Float[Tensor, ""]:
    """Return the loss of "each of the one is of the other": ``-sum log(1 - A (1 - B))``; summed over pairs."""
    return _refuted(one * (1 - other))


def excludes(one: Float[Tensor, "*pair height width"], other: Float[Tensor, "*pair height width"]) -> Float[Tensor, ""]:
    """Return the loss of "none of the one is of the other", ``implies(one, not other)``; summed over pairs.

    It is ``-sum log(1 - A B)``, the same for the other and the one.
    """
    return _refuted(one * other)


def predicated_loss(
    maps: Float[Tensor, "token height width"],
    nouns: Sequence[Word],
    groups: Sequence[Bound],
    owners: Sequence[tuple[Word, Word]] = (),
    leak: float = 0.3,
) -> Float[Tensor, ""]:
    """Return the loss, a sum of

    - ``exists(noun)`` for each of `nouns`;
    - ``implies(modifier, noun) + implies(noun, modifier)`` for each pair of a group: one-to-one correspondence;
    - ``leak * excludes(noun, other)`` for each noun of a group and each modifier that only other groups have ("the cat
      and the dog are red" share theirs): once, not once for every modifier of the noun, and not once more for the
      modifier, since it is symmetric;
    - ``implies(owned, owner)`` for each pair of `owners`: possession.

    Args:
        maps: of all tokens.
        nouns: the tokens of each word that should be there.
        groups: nouns and their modifiers.
        owners: pairs of what is owned and who owns it.
        leak: weight of what keeps modifiers off other groups' nouns.

    Raises:
        ValueError: a word has no token, or one beyond the maps.
    """  # noqa: D415 # the sentence is the list's too
    pairs = [(group.noun, modifier) for group in groups for modifier in group.modifiers]
    strange = [
        (one.noun, modifier)
        for one, other in permutations(groups, 2)
        for modifier in other.modifiers
        if modifier not in one.modifiers
    ]
    wanted = [*pairs, *((modifier, noun) for noun, modifier in pairs), *owners]
    known = word_maps(maps, [*nouns, *(word for pair in (*wanted, *strange) for word in pair)])
    loss = nothing(maps)
    if nouns:
        loss = loss + exists(torch.stack([known[noun] for noun in nouns]))
    for weight, fault, sides in ((1.0, implies, wanted), (leak, excludes, strange)):
        if sides:
            loss = loss + weight * fault(*(torch.stack([known[w] for w in side]) for side in zip(*sides, strict=True)))
    return loss


def _refuted(degrees: Float[Tensor, "*pair height width"]) -> Float[Tensor, ""]:
    return -torch.log1p((torch.finfo(degrees.dtype).eps - 1) * degrees).sum()


@dataclass(frozen=True)
class PredicatedDiffusion(Guidance):
    """The method's hyper-parameters beside those of `Guidance`. There is no released code; the step size is ours.

    Attributes:
        leak: weight of what keeps a modifier off other nouns, 0.3 in the paper.
        possession: whether "a bear with a crown" says that the crown is within the bear.
        parser: of the prompt, see `structure.groups_of`, where the user gave no groups.
    """

    name: ClassVar[str] = "predicated"
    needs_targets: ClassVar[bool] = True
    shrinks: bool = False
    scaled: bool = True
    needless: bool = False
    together: int | None = None
    leak: float = 0.3
    possession: bool = True
    parser: str = "auto"

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if an image has no target."""
        if not all(subject.targets for subject in subjects):
            raise ValueError("Predicated Diffusion needs at least one target for every prompt")

    def loss_of(self, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss:
        """Return the loss of an image."""
        words = groups_for(subject, self.parser)
        pairs = owners_of(subject.prompt, words) if self.possession else ()
        owners = [tuple(positions_of(pipe.tokenizer, subject.prompt, word) for word in pair) for pair in pairs]
        groups = bound(pipe.tokenizer, subject.prompt, words)
        nouns = [target.positions for target in subject.targets]
        return lambda look: predicated_loss(look.maps, nouns, groups, owners, self.leak)  # pyright: ignore
