"""The other two sets of attention regulation, one image, one head, autograd, all tokens: `paper` and `fixed`.

Written from eq. 8 to 15 of arXiv 2403.06381; a word is a list of token positions that share one S.
"""

import torch
from slow_regulation import bias_map
from torch import Tensor


def whole_grid(theta: Tensor, height: int, width: int) -> Tensor:
    """Return S (target, pixel) as printed: r = size / (2 sigma) centres, pixels counted from 1."""
    sigma = max(1, min(height, width) // 16)
    maps = []
    for weights in theta:
        total = torch.zeros(height, width, dtype=theta.dtype)
        for p in range(1, weights.shape[0] + 1):
            for q in range(1, weights.shape[1] + 1):
                for i in range(1, height + 1):
                    across = (torch.arange(1, width + 1, dtype=theta.dtype) - 2 * sigma * q) ** 2
                    kernel = torch.exp(-((i - 2 * sigma * p) ** 2 + across) / (2 * sigma**2))
                    total[i - 1] = total[i - 1] + weights[p - 1, q - 1] * kernel
        maps.append(total.flatten())
    return torch.stack(maps)


def probs_of(scores: Tensor, bias: Tensor, words: list[list[int]]) -> Tensor:
    """Return softmax(scores + S), "pixel token"."""
    added = torch.zeros_like(scores)
    for word, positions in enumerate(words):
        for position in positions:
            added[:, position] = added[:, position] + bias[word]
    return (scores + added).softmax(-1)


def word_maps(probs: Tensor, words: list[list[int]]) -> list[Tensor]:
    return [probs[:, positions].sum(-1) for positions in words]


def fixed_loss(scores: Tensor, theta: Tensor, words: list[list[int]], height: int, width: int) -> Tensor:
    """Return the released loss with words as targets."""
    maps = word_maps(probs_of(scores, bias_map(theta, height, width), words), words)
    wanted = min(1.0, 0.2 * len(words)) / len(words)
    coverage = sum((m.quantile(0.9) - 0.9) ** 2 for m in maps) / len(words)
    proportion = sum((m.mean() - wanted) ** 2 for m in maps) / len(words)
    return coverage + 80 * proportion + 0.09 * theta.square().mean()


def paper_loss(
    products: Tensor, theta: Tensor, words: list[list[int]], height: int, width: int, scale: float, alpha: float
) -> Tensor:
    """Return eq. 8 and 9 of unscaled scores: A' = softmax((QK^T + S) * scale)."""
    bias = whole_grid(theta, height, width)
    edited = probs_of(products * scale, bias * scale, words)
    maps, mu = word_maps(edited, words), min(1.0, 0.2 * len(words)) / len(words)
    coverage = sum((m.quantile(0.9) - 0.9) ** 2 for m in maps) / len(words)
    proportion = sum((m.sum() - mu * height * width) ** 2 for m in maps) / len(words)
    change = edited - (products * scale).softmax(-1)
    return coverage + alpha * proportion + 0.1 * torch.linalg.vector_norm(change)
