"""What attention regulation optimises, and how: the loss, its gradient in closed form, and the descent.

Source: arXiv 2403.06381, eq. 8 to 13, and the constants of the released code, which the paper does not print.

Conventions: float32 whatever the model's type, all heads and all images at once; "target row kernel" for theta, a row
being one head of one image. A loss is one number per row. Nothing here waits for the device: no number is read.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regulate.softmax import Members, Reduced, reduced


@dataclass(frozen=True)
class Objective:
    """The loss and its descent; the defaults are the released code's.

    Attributes:
        quantile: which quantile over the pixels is raised (eq. 9), between 0 and 1.
        level: what each target's quantile should reach (eq. 9).
        proportion: weight of the term that fixes each target's mean attention: 80 in the code, alpha in eq. 9.
        proportion_of: "mean": squares of mean attention, as released; "sum": of sums over the pixels, as printed.
        share: a target's wanted mean, mu, is min(1, share * targets) / targets.
        theta_weight: weight of the mean square of theta, which the code has in the place of beta.
        deviation: beta of eq. 8, weight of ``||A' - A||_2`` over all pixels and tokens of a head.
        iterations: evaluations of the loss; the best iterate is kept.
        step_size: of gradient descent, on the loss of one head (eq. 13).
        small_steps: on maps of fewer than 256 pixels the step is scaled by (pixels / 256)^2. A kernel covers a larger
            share of a smaller map, so that the proportion term curves more; the released step only leaps about there.
    """

    quantile: float = 0.9
    level: float = 0.9
    proportion: float = 80.0
    proportion_of: str = "mean"
    share: float = 0.2
    theta_weight: float = 0.09
    deviation: float = 0.0
    iterations: int = 20
    step_size: float = 100.0
    small_steps: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile must be between 0 and 1, got {self.quantile}")
        if self.proportion_of not in ("mean", "sum"):
            raise ValueError(f"proportion_of must be 'mean' or 'sum', got {self.proportion_of!r}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")


@dataclass(frozen=True)
class Problem:
    """One layer's optimisation, and what of it stays the same from one evaluation to the next.

    Attributes:
        reduced: the scores.
        kernels: what theta is multiplied with.
        weights: of the targets in a mean over those of an image, 0 for one that is not there.
        wanted: mean attention that each target should have, mu.
        shares: of the quantile's upper and lower neighbour in it.
        before: attention at a bias of zero; None where no term asks for it.
    """

    reduced: Reduced
    kernels: Float[Tensor, "kernel pixel"]
    weights: Float[Tensor, "target row 1"]
    wanted: Float[Tensor, "1 row 1"]
    shares: Float[Tensor, " 2"]
    before: Float[Tensor, "all row pixel"] | None = None


def problem_of(
    reduced: Reduced,
    kernels: Float[Tensor, "kernel pixel"],
    weights: Float[Tensor, "target row 1"],
    objective: Objective,
) -> Problem:
    """Return the optimisation of one layer; `reduced` needs its spread where the objective has a deviation term."""
    count = weights.ne(0).sum(0, keepdim=True)
    wanted = (objective.share * count).clamp(max=1) / count
    rank = objective.quantile * (kernels.shape[1] - 1)
    shares = torch.full_like(kernels[0, :2], rank - int(rank))
    shares[1:] = 1 - rank + int(rank)
    return Problem(reduced, kernels, weights, wanted, shares, reduced.probs() if objective.deviation else None)


class Terms(NamedTuple):
    """The terms of the loss with their weights, one number per row (a head of an image)."""

    coverage: Float[Tensor, "*iteration row"]
    proportion: Float[Tensor, "*iteration row"]
    size: Float[Tensor, "*iteration row"]
    deviation: Float[Tensor, "*iteration row"]

    @property
    def loss(self) -> Float[Tensor, "*iteration row"]:
        """Their sum."""
        return self.coverage + self.proportion + self.size + self.deviation


class State(NamedTuple):
    """What the loss at a theta is made of."""

    theta: Float[Tensor, "*iteration target row kernel"]
    gap: Float[Tensor, "*iteration target row 1"]  # of the quantile to its level
    excess: Float[Tensor, "*iteration target row 1"]  # of the mean attention over the wanted one
    change: Float[Tensor, "*iteration row"]  # ||A' - A||, 0 where the objective does not ask for it


class Solution(NamedTuple):
    """What a descent did; an image's iterate is kept by the mean loss over its heads.

    Attributes:
        theta: of the kept iterates.
        kept: their numbers, one per image.
        terms: of the loss at the start and at what was kept.
    """

    theta: Float[Tensor, "target row kernel"]
    kept: Int[Tensor, " image"]
    terms: Terms


def bias_of(
    theta: Float[Tensor, "target row kernel"], kernels: Float[Tensor, "kernel pixel"]
) -> Float[Tensor, "target row pixel"]:
    """Return S (eq. 11)."""
    return (theta.flatten(0, 1) @ kernels).unflatten(0, theta.shape[:2])


def gradient(
    problem: Problem, theta: Float[Tensor, "target row kernel"], objective: Objective
) -> tuple[State, Float[Tensor, "target row kernel"]]:
    """Return the gradient in theta of every row's loss, in closed form, and what the loss is made of.

    With p the attention of the targets and of the rest, and g = dL/dp: dL/dS = p * (g - sum p * g). The quantile is
    the linear interpolation of its two neighbouring order statistics, and so is its gradient.
    """
    o, kernels, weights = objective, problem.kernels, problem.weights
    pixels = kernels.shape[1]
    every = problem.reduced.probs(bias_of(theta, kernels))
    probs = every[:-1]
    excess = probs.mean(2, keepdim=True) - problem.wanted
    pull = probs * (weights * excess * (2 * _alpha(o, pixels) / pixels))  # p * g, term by term
    top, place = probs.topk(pixels - int(o.quantile * (pixels - 1)), dim=2)  # down to the lower neighbour
    parts = top[..., -2:] * problem.shares
    gap = parts.sum(2, keepdim=True) - o.level
    pull = pull.scatter_add(2, place[..., -2:], parts * (weights * gap * 2))
    total, change = pull.sum(0), torch.zeros_like(gap[0, :, 0])
    if o.deviation:
        change, away = _change(problem, every)
        pull, total = pull + o.deviation * away[:-1], total + o.deviation * away.sum(0)
    slope = torch.addcmul(pull, probs, total, value=-1)
    decay = theta * (weights * (2 * o.theta_weight / len(kernels)))
    whole = torch.addmm(decay.flatten(0, 1), slope.flatten(0, 1), kernels.T).view_as(theta)
    return State(theta, gap, excess, change), whole


def terms(problem: Problem, state: State, objective: Objective) -> Terms:
    """Return the terms of every row's loss (eq. 8 and 9), at one theta or at many."""
    weights, (kernels, pixels) = problem.weights, problem.kernels.shape
    return Terms(
        (weights * state.gap.square()).sum((-3, -1)),
        _alpha(objective, pixels) * (weights * state.excess.square()).sum((-3, -1)),
        objective.theta_weight / kernels * (weights * state.theta.square()).sum((-3, -1)),
        objective.deviation * state.change,
    )


def solve(problem: Problem, theta: Float[Tensor, "target row kernel"], objective: Objective, images: int) -> Solution:
    """Return, per image, the theta of lowest mean loss over heads among the iterates of gradient descent (eq. 13).

    The start is one of them: what is kept is never worse. Of equal ones the first is kept.
    """
    step = objective.step_size * (min(1.0, problem.kernels.shape[1] / 256) ** 2 if objective.small_steps else 1.0)
    states: list[State] = []
    for _ in range(objective.iterations):
        state, slope = gradient(problem, theta, objective)
        states.append(state)
        theta = torch.sub(theta, slope, alpha=step)  # the last one is not evaluated
    path = State(*(torch.stack(parts) for parts in zip(*states, strict=True)))
    every = terms(problem, path, objective)
    losses = every.loss.unflatten(1, (images, -1)).mean(2).nan_to_num(torch.inf)
    kept = losses.argmin(0)
    rows = kept.repeat_interleave(theta.shape[1] // images, output_size=theta.shape[1])
    ends = torch.stack([torch.zeros_like(rows), rows])
    chosen = path.theta.gather(0, rows[None, None, :, None].expand(1, *theta.shape))[0]
    return Solution(chosen, kept, Terms(*(part.gather(0, ends) for part in every)))


def optimum(
    scores: Float[Tensor, "batch head token pixel"],
    members: Members,
    kernels: Float[Tensor, "kernel pixel"],
    weights: Float[Tensor, "target row 1"],
    start: Float[Tensor, "target row kernel"],
    objective: Objective,
) -> Solution:
    """Return what `solve` finds for one layer's scores; as one function, so that it compiles as one graph."""
    parts = reduced(scores, members, spread=bool(objective.deviation))
    return solve(problem_of(parts, kernels, weights, objective), start, objective, len(scores))


def distance(parts: Reduced, bias: Float[Tensor, "target row pixel"]) -> Float[Tensor, " row"]:
    """Return ``||A' - A||_2`` of every row, over all pixels and tokens.

    Raises:
        ValueError: the scores were reduced without their spread.
    """
    if parts.spread is None:
        raise ValueError("the distance needs the scores reduced with their spread")
    return (parts.spread * (parts.probs(bias) - parts.probs()).square()).sum((0, 2)).sqrt()


def _alpha(objective: Objective, pixels: int) -> float:
    return objective.proportion * (pixels**2 if objective.proportion_of == "sum" else 1)


def _change(
    problem: Problem, every: Float[Tensor, "all row pixel"]
) -> tuple[Float[Tensor, " row"], Float[Tensor, "all row pixel"]]:
    """Return ``||A' - A||`` and p * g of it; both are 0 where nothing has changed."""
    spread, before = problem.reduced.spread, problem.before
    assert spread is not None and before is not None  # noqa: PT018 # see problem_of
    change = every - before
    spread = spread * change
    norm = (spread * change).sum((0, 2)).sqrt()
    return norm, every * spread / norm.clamp_min(torch.finfo(norm.dtype).tiny)[:, None]
