"""Attention regulation: raise every target word's attention by a smooth bias found by gradient descent.

Source: "Enhancing Semantic Fidelity in Text-to-Image Synthesis: Attention Regulation in Diffusion Models", arXiv
2403.06381, section 3.3; constants of the authors' released inference code (the `published` set), which the paper does
not print.

Conventions: scores and probabilities are float32, axes ``batch head target pixel`` inside the solver; a target here is
one token position; a loss is one number per batch and head.
"""

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regulate.method import AttentionEdit, Method, Subject
from tracer.passes import Passes
from tracer.sites import attention_sites
from tracer.tap import Edited, Tap


@dataclass(frozen=True)
class AttentionRegulation(Method):
    """Hyper-parameters of the `published` set; each default is the released code's.

    Attributes:
        layers: "last-down-first-up" (the paper's section 4.1), or patterns of site names (``"up_blocks.1.*"``).
        until: share of the steps that are edited, from the first (25 of 50).
        quantile: which quantile over the pixels is raised (eq. 9).
        level: what each target's quantile should reach (eq. 9).
        proportion: weight of the term that fixes each target's mean attention.
        share: a target's wanted mean is min(1, share * targets) / targets.
        theta_weight: weight of the mean square of theta.
        iterations: evaluations of the loss; the best iterate is kept.
        step_size: of gradient descent, on the loss of one head (eq. 13).
        memory: kappa, weight of the previous step's optimum (eq. 14), taken on S.
        decay: lambda, factor on S per step (eq. 15).
    """

    name: ClassVar[str] = "regulation"
    layers: str | tuple[str, ...] = "last-down-first-up"
    until: float = 0.5
    quantile: float = 0.9
    level: float = 0.9
    proportion: float = 80.0
    share: float = 0.2
    theta_weight: float = 0.09
    iterations: int = 20
    step_size: float = 100.0
    memory: float = 0.25
    decay: float = 0.99

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if an image has no target."""
        if not all(subject.targets for subject in subjects):
            raise ValueError("attention regulation needs at least one target for every prompt")

    def attention_edit(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> AttentionEdit | None:
        """Return the edit for one batch of images.

        Raises:
            ValueError: no site fits `layers`.
        """
        sites = chosen_sites(attention_sites(pipe.unet), self.layers)
        return AttentionEdit(sites, Regulator(self, subjects, passes, sites))


def chosen_sites(sites: tuple[str, ...], layers: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the sites of the last down block and first up block that attend to text, or those that fit a pattern.

    Raises:
        ValueError: none fits.
    """
    if layers == "last-down-first-up":
        last_down = [site.split(".attentions")[0] for site in sites if site.startswith("down_blocks")][-1:]
        first_up = [site.split(".attentions")[0] for site in sites if site.startswith("up_blocks")][:1]
        chosen = [site for site in sites if site.split(".attentions")[0] in last_down + first_up]
    else:
        patterns = (layers,) if isinstance(layers, str) else layers
        chosen = [site for site in sites if any(fnmatch(site, pattern) for pattern in patterns)]
    if not chosen:
        raise ValueError(f"no attention site fits layers={layers!r}; the model has {', '.join(sites)}")
    return tuple(chosen)


class Regulator:
    """The edit of one batch: what it optimises for, and the previous optimum at each site."""

    def __init__(
        self,
        method: AttentionRegulation,
        subjects: tuple[Subject, ...],
        passes: Passes,
        sites: tuple[str, ...],
    ):
        self.method, self.subjects, self.passes = method, subjects, passes
        self.order = {site: index for index, site in enumerate(sites)}
        self.memory: dict[str, Tensor] = {}
        tokens = [sorted({p for target in subject.targets for p in target.positions}) for subject in subjects]
        most = max(len(t) for t in tokens)
        self.positions = torch.tensor([t + [0] * (most - len(t)) for t in tokens])
        self.real = torch.tensor([[i < len(t) for i in range(most)] for t in tokens])
        self.ends = torch.tensor([[0, subject.end] for subject in subjects])

    def __call__(self, tap: Tap) -> Edited | None:
        """Return the regulated probabilities of the conditional rows, or None once the edited steps are over."""
        step, method = self.passes.step, self.method
        if step >= method.until * self.passes.steps:
            return None
        if step == 0:
            self.memory.pop(tap.site, None)
        scores = tap.scores(self.passes.rows)
        if len(scores) != len(self.subjects):
            raise ValueError(
                f"the batch holds {len(scores)} prompted images, the method was given {len(self.subjects)}"
            )
        positions, real = self.positions.to(scores.device), self.real.to(scores.device)
        kernels = gaussian_kernels(tap.height, tap.width).to(scores.device)
        theta = self._initial_theta(tap.site, scores.shape[1], len(kernels)).to(scores.device)
        best = solve(*reduced(scores, positions, real), kernels, theta, real, method) @ kernels
        before = self.memory.get(tap.site, theta @ kernels)
        self.memory[tap.site] = best
        bias = (method.memory * before + (1 - method.memory) * best) * method.decay**step
        probs = biased_probs(scores, bias, positions, real)
        fixed = _marked(self.ends.to(scores.device), scores.shape[-1])[:, None, None, :]
        return Edited(self.passes.rows, torch.where(fixed, tap.probs(self.passes.rows), probs))

    def _initial_theta(self, site: str, heads: int, kernels: int) -> Float[Tensor, "batch head target kernel"]:
        thetas = torch.zeros(len(self.subjects), heads, self.real.shape[1], kernels)
        for image, subject in enumerate(self.subjects):
            seed = (subject.seed * 1_000_003 + self.order[site]) * 1_009 + self.passes.step
            chance = torch.Generator().manual_seed(seed % 2**63)
            own = int(self.real[image].sum())  # so that an image's draw does not depend on its batch
            thetas[image, :, :own] = torch.rand(heads, own, kernels, generator=chance)
        return thetas


def gaussian_kernels(height: int, width: int) -> Float[Tensor, "kernel pixel"]:
    """Return the Gaussians of eq. 12, flattened row-major.

    Sigma is width // 16 as published; ours for maps that are smaller or not square: max(1, min(height, width) // 16).
    Centres stand at 2 sigma, 4 sigma, ... below the map's size on each axis (7x7 at 16x16, 3x3 at 8x8).
    """
    sigma = max(1, min(height, width) // 16)
    rows, columns = torch.arange(height).float(), torch.arange(width).float()
    down = torch.exp(-((rows - torch.arange(2 * sigma, height, 2 * sigma)[:, None]) ** 2) / (2 * sigma**2))
    across = torch.exp(-((columns - torch.arange(2 * sigma, width, 2 * sigma)[:, None]) ** 2) / (2 * sigma**2))
    return torch.einsum("pi,qj->pqij", down, across).reshape(len(down) * len(across), height * width)


def reduced(
    scores: Float[Tensor, "batch head pixel token"],
    positions: Int[Tensor, "batch target"],
    real: Bool[Tensor, "batch target"],
) -> tuple[Float[Tensor, "batch head target pixel"], Float[Tensor, "batch head pixel"]]:
    """Return the targets' scores and, per pixel, the log of the sum of exponentials of all other tokens.

    A bias on the targets changes nothing else in the softmax, so this is all that a solver needs. Targets that are
    not real (an image with fewer targets than others of its batch) get scores of minus infinity.
    """
    index = positions[:, None, :, None].expand(-1, scores.shape[1], -1, scores.shape[2])
    target_scores = scores.transpose(-1, -2).gather(2, index).masked_fill(~real[:, None, :, None], -torch.inf)
    is_target = (_marked(positions[..., None], scores.shape[-1]) & real[..., None]).any(1)
    return target_scores, scores.masked_fill(is_target[:, None, None, :], -torch.inf).logsumexp(-1)


def loss_and_gradient(
    target_scores: Float[Tensor, "batch head target pixel"],
    rest: Float[Tensor, "batch head pixel"],
    kernels: Float[Tensor, "kernel pixel"],
    theta: Float[Tensor, "batch head target kernel"],
    real: Bool[Tensor, "batch target"],
    method: AttentionRegulation,
) -> tuple[Float[Tensor, "batch head"], Float[Tensor, "batch head target kernel"]]:
    """Return every head's loss (eq. 8 and 9, `published` terms) and its gradient in theta, in closed form.

    The quantile is the linear interpolation of its two neighbouring order statistics, and so is its gradient.
    """
    pixels = kernels.shape[-1]
    count = real.sum(1).to(theta.dtype)[:, None, None]
    weight = real[:, None].to(theta.dtype) / count  # "batch 1 target": the mean over real targets
    wanted = (method.share * count).clamp(max=1) / count
    joint = torch.cat([target_scores + theta @ kernels, rest[:, :, None]], 2)
    probs = joint.softmax(2)[:, :, :-1]
    rank = method.quantile * (pixels - 1)
    top, where = probs.topk(pixels - int(rank), dim=-1)
    upper = rank - int(rank)
    gap = torch.lerp(top[..., -1], top[..., -2], upper) - method.level
    excess = probs.mean(-1) - wanted
    size = (theta.square() * weight[..., None]).sum((-1, -2)) / kernels.shape[0]
    loss = (weight * (gap.square() + method.proportion * excess.square())).sum(-1) + method.theta_weight * size
    slope = (2 * method.proportion / pixels * weight * excess)[..., None].expand_as(probs)
    pull = torch.stack([(1 - upper) * gap, upper * gap], -1) * 2 * weight[..., None]
    slope = slope.scatter_add(-1, where[..., [-1, -2]], pull)
    slope = probs * (slope - (probs * slope).sum(2, keepdim=True))
    decay = 2 * method.theta_weight / kernels.shape[0] * weight[..., None] * theta
    return loss, slope @ kernels.T + decay


def solve(
    target_scores: Float[Tensor, "batch head target pixel"],
    rest: Float[Tensor, "batch head pixel"],
    kernels: Float[Tensor, "kernel pixel"],
    theta: Float[Tensor, "batch head target kernel"],
    real: Bool[Tensor, "batch target"],
    method: AttentionRegulation,
) -> Float[Tensor, "batch head target kernel"]:
    """Return, per image, the theta of lowest mean loss over heads among the iterates of gradient descent (eq. 13)."""
    best = theta
    lowest = torch.full_like(theta[:, 0, 0, 0], torch.inf)
    for iteration in range(method.iterations):
        loss, gradient = loss_and_gradient(target_scores, rest, kernels, theta, real, method)
        mean = loss.mean(1)
        best = torch.where((mean < lowest)[:, None, None, None], theta, best)
        lowest = torch.minimum(mean, lowest)
        if iteration + 1 < method.iterations:
            theta = theta - method.step_size * gradient
    return best


def biased_probs(
    scores: Float[Tensor, "batch head pixel token"],
    bias: Float[Tensor, "batch head target pixel"],
    positions: Int[Tensor, "batch target"],
    real: Bool[Tensor, "batch target"],
) -> Float[Tensor, "batch head pixel token"]:
    """Return softmax(scores + S), S being the bias on the targets' tokens and zero on all others (eq. 10)."""
    index = positions[:, None, None, :].expand(*scores.shape[:3], -1)
    return scores.scatter_add(-1, index, (bias * real[:, None, :, None]).transpose(-1, -2)).softmax(-1)


def _marked(positions: Int[Tensor, "*batch chosen"], tokens: int) -> Bool[Tensor, "*batch token"]:
    return (positions[..., None] == torch.arange(tokens, device=positions.device)).any(-2)
