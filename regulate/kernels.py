"""The Gaussians that a bias map is made of (eq. 11 and 12 of arXiv 2403.06381).

Conventions: a map of ``height x width`` pixels is row-major; kernels are ordered by the row, then the column of their
centre. The released code knows square maps of at least 16 pixels a side, whose sigma is ``width // 16``; for smaller
ones and those that are not square sigma is ``max(1, min(height, width) // 16)``, which is our extension.
"""

import torch
from jaxtyping import Float
from torch import Tensor

GRIDS = ("inner", "whole")


def gaussian_kernels(height: int, width: int, grid: str = "inner") -> Float[Tensor, "kernel pixel"]:
    """Return the Gaussians of eq. 12.

    Args:
        height: of the map.
        width: of the map.
        grid: "inner" as released: centres at 2 sigma, 4 sigma, ... below the map's size, pixels counted from 0 (7x7
            kernels at 16x16, 3x3 at 8x8); "whole" as printed: r = size / (2 sigma) centres at 2 sigma, 4 sigma, ...
            up to the map's size, pixels counted from 1 (8x8 kernels at 16x16).

    Raises:
        ValueError: the map is too small to hold a centre, or there is no such grid.
    """
    if grid not in GRIDS:
        raise ValueError(f"grid must be one of {', '.join(GRIDS)}, got {grid!r}")
    sigma = max(1, min(height, width) // 16)
    down, across = (_along(size, sigma, grid) for size in (height, width))
    if not down.numel() or not across.numel():
        raise ValueError(f"maps must be large enough to hold a kernel, 3x3, got {height}x{width}")
    return torch.einsum("pi,qj->pqij", down, across).reshape(len(down) * len(across), height * width)


def _along(size: int, sigma: int, grid: str) -> Float[Tensor, "centre pixel"]:
    first, last = (0, size) if grid == "inner" else (1, size + 1)
    pixels = torch.arange(first, last).float()
    return torch.exp(-((pixels - torch.arange(2 * sigma, last, 2 * sigma)[:, None]) ** 2) / (2 * sigma**2))
