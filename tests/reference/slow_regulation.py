"""Attention regulation as the paper and its released code state it: one image, one head, autograd, nothing hoisted.

Written from the formulas of arXiv 2403.06381 (eq. 8 to 15) and the constants of the `published` set. Slow and plain;
`regulate.attention_regulation` is held to it.
"""

import math

import torch
from torch import Tensor


def bias_map(theta: Tensor, height: int, width: int) -> Tensor:
    """Return S (target, height * width) for one head; theta is (target, rows of centres, columns of centres)."""
    sigma = max(1, min(height, width) // 16)
    maps = []
    for weights in theta:
        total = torch.zeros(height, width, dtype=theta.dtype)
        for p in range(weights.shape[0]):
            for q in range(weights.shape[1]):
                down = (torch.arange(height, dtype=theta.dtype) - 2 * sigma * (p + 1)) ** 2
                across = (torch.arange(width, dtype=theta.dtype) - 2 * sigma * (q + 1)) ** 2
                total = total + weights[p, q] * torch.exp(-(down[:, None] + across[None]) / (2 * sigma**2))
        maps.append(total.flatten())
    return torch.stack(maps)


def attention(scores: Tensor, bias: Tensor, positions: list[int]) -> Tensor:
    """Return softmax(scores + S) for one head, "pixel token"."""
    added = torch.zeros_like(scores)
    for target, position in enumerate(positions):
        added[:, position] = bias[target]
    return (scores + added).softmax(-1)


def loss(scores: Tensor, theta: Tensor, positions: list[int], height: int, width: int) -> Tensor:
    """Return E plus the weight on theta for one head (eq. 8 and 9 with the released code's terms)."""
    probs = attention(scores, bias_map(theta, height, width), positions)
    wanted = min(1.0, 0.2 * len(positions)) / len(positions)
    coverage = sum((probs[:, p].quantile(0.9) - 0.9) ** 2 for p in positions) / len(positions)
    proportion = sum((probs[:, p].mean() - wanted) ** 2 for p in positions) / len(positions)
    return coverage + 80 * proportion + 0.09 * theta.square().mean()


def solve(scores: Tensor, theta: Tensor, positions: list[int], height: int, width: int) -> tuple[Tensor, list[float]]:
    """Return one image's best theta "head target row column" of 20 evaluations, and the mean losses over heads."""
    losses, best = [], theta
    for iteration in range(20):
        theta = theta.detach().requires_grad_()
        per_head = [loss(s, t, positions, height, width) for s, t in zip(scores, theta, strict=True)]
        mean = sum(per_head) / len(per_head)
        losses.append(float(mean.detach()))
        if losses[-1] == min(losses):
            best = theta.detach()
        (gradient,) = torch.autograd.grad(mean, theta)
        if iteration < 19:
            theta = theta - 100 * len(per_head) * gradient  # the loss is a mean over heads
    return best, losses


def edit(
    scores: Tensor,
    theta: Tensor,
    memory: Tensor | None,
    positions: list[int],
    end: int,
    step: int,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return one image's edited probabilities "head pixel token" and the optimum that the next step remembers."""
    best, _ = solve(scores, theta, positions, *size)
    optimum = torch.stack([bias_map(head, *size) for head in best])
    before = torch.stack([bias_map(head, *size) for head in theta]) if memory is None else memory
    bias = (0.25 * before + 0.75 * optimum) * math.pow(0.99, step)
    probs = torch.stack([attention(s, b, positions) for s, b in zip(scores, bias, strict=True)])
    unedited = scores.softmax(-1)
    for special in (0, end):
        probs[:, :, special] = unedited[:, :, special]
    return probs, optimum
