"""Whether one target takes the attention from the others, judged while an image is being made.

Dominance is that of `tracer.statistics`: a word's share is the mean over heads of its map's 0.9-quantile, over the sum
of this over all targets; the ratio is the largest share over the smallest. Here it is the geometric mean of the ratios
of the layers and steps that were watched.

Conventions: tensors are "target row pixel" as in `regulate.softmax`, a row being one head of one image. The judgement
is a tensor on the model's device: nothing waits for it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tracer.statistics import DOMINANCE_QUANTILE


def log_quantiles(
    probs: Float[Tensor, "target row pixel"], real: Bool[Tensor, "batch target"]
) -> Float[Tensor, "batch target"]:
    """Return the logarithm of what a layer gives each target: the mean over heads of its map's 0.9-quantile.

    Args:
        probs: attention of each target, its pieces summed.
        real: which targets each image has; of others the number means nothing.
    """
    rank = DOMINANCE_QUANTILE * (probs.shape[2] - 1)
    top = probs.topk(probs.shape[2] - int(rank), dim=2).values
    of_head = torch.lerp(top[..., -1], top[..., -2], rank - int(rank))
    return of_head.unflatten(1, (len(real), -1)).mean(2).T.log()


def log_ratio(probs: Float[Tensor, "target row pixel"], real: Bool[Tensor, "batch target"]) -> Float[Tensor, " batch"]:
    """Return the logarithm of each image's dominance ratio at one layer and step, from what `log_quantiles` takes."""
    logs = log_quantiles(probs, real)
    return logs.masked_fill(~real, -torch.inf).amax(1) - logs.masked_fill(~real, torch.inf).amin(1)


class Watch:
    """What has been seen of each image's dominance so far."""

    def __init__(self, ratio: float):
        """Judge by this ratio."""
        self.ratio = ratio
        self._sum: Tensor | None = None
        self._seen = 0

    def see(self, log_ratios: Float[Tensor, " batch"]) -> None:
        """Take the ratios of one layer and step."""
        self._sum = log_ratios if self._sum is None else self._sum + log_ratios
        self._seen += 1

    def dominant(self) -> Bool[Tensor, " batch"]:
        """Return which images showed dominance.

        Raises:
            ValueError: nothing has been seen: no step was watched.
        """
        if self._sum is None:
            raise ValueError("dominance must be watched for at least one step before the first that is edited")
        return (self._sum / self._seen).exp() > self.ratio
