"""The softmax over tokens, reduced to what a bias on a few of them can change.

A bias S on the targets' tokens changes nothing else in the softmax, so that each pixel's other tokens are one number:
the logarithm of the sum of their exponentials. A solver then works on targets + 1 numbers a pixel instead of on all
tokens.

Conventions: a target is one or several token positions that share a bias; its attention is their sum. `scores` here lie
tokens first, "batch head token pixel". Reduced tensors are "target row pixel": a row is one head of one image, images
first; their last target, where they have one more than there are, stands for all other tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Members:
    """Which tokens each target of each image has; images with fewer targets, targets with fewer tokens are filled up.

    Attributes:
        positions: of the tokens; 0 where there is none.
        real: whether there is one.
        tokens: marks the tokens of all targets.
    """

    positions: Int[Tensor, "batch target piece"]
    real: Bool[Tensor, "batch target piece"]
    tokens: Bool[Tensor, "batch token"]

    @property
    def count(self) -> Int[Tensor, " batch"]:
        """How many targets each image has."""
        return self.real[..., 0].sum(1)

    def weights(self, heads: int) -> Float[Tensor, "target row 1"]:
        """Return each target's weight in a mean over its image's targets; 0 for one that is not there."""
        weights = self.real[..., 0] / self.count[:, None]
        return weights.float().T.repeat_interleave(heads, 1)[..., None]


def members_of(targets: Sequence[Sequence[Sequence[int]]], tokens: int, device: torch.device) -> Members:
    """Return the members of each image's targets.

    Args:
        targets: for each image, for each of its targets, the token positions.
        tokens: length of the sequence.
        device: where to put them.

    Raises:
        ValueError: an image has no target, or a position is beyond the sequence or taken twice.
    """
    most, pieces = max(len(t) for t in targets), max((len(p) for t in targets for p in t), default=0)
    positions = torch.zeros(len(targets), most, pieces, dtype=torch.long)
    real = torch.zeros(len(targets), most, pieces, dtype=torch.bool)
    marked = torch.zeros(len(targets), tokens, dtype=torch.bool)
    for image, of_image in enumerate(targets):
        flat = [position for one in of_image for position in one]
        if not flat or len(set(flat)) != len(flat) or max(flat) >= tokens:
            raise ValueError(f"targets must be different tokens below {tokens}, at least one, got {of_image}")
        marked[image, flat] = True
        for number, one in enumerate(of_image):
            positions[image, number, : len(one)] = torch.tensor(one)
            real[image, number, : len(one)] = True
    return Members(positions.to(device), real.to(device), marked.to(device))


@dataclass(frozen=True)
class Reduced:
    """Scores over tokens as a bias on the targets sees them.

    Attributes:
        odds: each target's score (log of the sum over its tokens) less that of all other tokens together.
        spread: of a target's attention over its tokens, and of the rest's over all others: the sum of squares of their
            shares of it, at a bias of zero. A change of the target's attention by d changes its tokens by
            ``spread * d**2`` in squares. None unless asked for.
    """

    odds: Float[Tensor, "target row pixel"]
    spread: Float[Tensor, "all row pixel"] | None = None

    def probs(self, bias: Float[Tensor, "target row pixel"] | None = None) -> Float[Tensor, "all row pixel"]:
        """Return the attention of each target under a bias, and as the last that of all other tokens."""
        odds = self.odds if bias is None else self.odds + bias
        return torch.cat([odds, odds.new_zeros(1, *odds.shape[1:])]).softmax(0)


def reduced(scores: Float[Tensor, "batch head token pixel"], members: Members, spread: bool = False) -> Reduced:
    """Return the scores of one layer, reduced; with their spread if that is asked for."""
    targets = scores.gather(2, _index(members, scores)).unflatten(2, members.positions.shape[1:])
    targets = targets.masked_fill(~members.real[:, None, :, :, None], -torch.inf)
    each = targets.logsumexp(3) if targets.shape[3] > 1 else targets[:, :, :, 0]
    others = scores.masked_fill(members.tokens[:, None, :, None], -torch.inf)
    top = others.amax(2, keepdim=True)  # of the others alone: their sum is at least one, however far a target leads
    exps = others.sub_(top).exp_()
    rest = exps.sum(2, keepdim=True)
    odds = _rows_first(each - top - rest.log())
    if not spread:
        return Reduced(odds)
    # where a target is not there, its attention stays 0, and so does what its spread is multiplied with
    of_targets = ((2 * targets).logsumexp(3) - 2 * each.masked_fill(each.isneginf(), 0)).exp()
    of_rest = exps.square().sum(2, keepdim=True) / rest.square()
    return Reduced(odds, _rows_first(torch.cat([of_targets, of_rest], 2)))


def biased(
    scores: Float[Tensor, "batch head token pixel"], bias: Float[Tensor, "target row pixel"], members: Members
) -> Float[Tensor, "batch head token pixel"]:
    """Return softmax(scores + S), S being the bias on the targets' tokens and zero on all others (eq. 10)."""
    batch, heads = scores.shape[:2]
    added = bias.unflatten(1, (batch, heads)).permute(1, 2, 0, 3)[:, :, :, None] * members.real[:, None, :, :, None]
    return scores.scatter_add(2, _index(members, scores), added.flatten(2, 3)).softmax(2)


def _index(members: Members, scores: Tensor) -> Int[Tensor, "batch head chosen pixel"]:
    return members.positions.flatten(1)[:, None, :, None].expand(-1, scores.shape[1], -1, scores.shape[3])


def _rows_first(tensor: Float[Tensor, "batch head target pixel"]) -> Float[Tensor, "target row pixel"]:
    return tensor.permute(2, 0, 1, 3).flatten(1, 2).contiguous()
