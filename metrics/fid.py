"""How far a set of images is from a reference set, by their features: FID, KID and CMMD.

Conventions:
    Features are "batch channel", one row an image: `metrics.features.extract`, or for CMMD image embeddings of CLIP
    ViT-L/14 at 336 px. All arithmetic is in float64. Lower is nearer; no unit.
    Which images meet which is not looked at: the sets are compared, not pairs.
Metrics:
    fid     |m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)) of means and covariances (arXiv 1706.08500). Biased upwards by
            about 1/N: only values at one N compare, and N should exceed the number of channels several times.
    kid     squared MMD with the kernel (x.y / channels + 1)^3 (arXiv 1801.01401). Unbiased at every N, so that it
            may be negative.
    cmmd_u  1000 times the squared MMD of embeddings of length 1 with a Gaussian kernel, sigma 10 (arXiv 2401.09603),
            by the unbiased U-statistic.
    cmmd_v  the same by the V-statistic, as published: biased upwards by about 1000 (2 - 2 E k) / N, which at
            some thousand images is as much as what methods differ by.
Intervals, and what to beware of at these N, are in ``metrics/set_scores.py``.
Source: FID by torch-fidelity 0.4; MMD by Gretton et al. 2012, JMLR 13, equations 3 and 5.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

SIGMA, SCALE = 10, 1000  # of CMMD
ROWS = 1024  # of a kernel matrix that are held at once

Matrix = Float[np.ndarray | Tensor, "batch channel"]
References = Float[np.ndarray | Tensor, "reference channel"]
Rng = np.random.Generator | np.random.RandomState  # the latter to draw what torch-fidelity draws
Rows = Float[np.ndarray, "batch channel"]
Others = Float[np.ndarray, "reference channel"]
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def fid(features: Matrix, references: References, *, allow_unequal: bool = False) -> float:
    """Return the Fréchet distance, by torch-fidelity.

    With fewer images than channels its eigenvalues round: by up to 1e-6 of the trace, also below zero. For 2048
    channels they take a core some eight seconds; `frechet` is the fast way to the same number.

    Args:
        features: of the images.
        references: of the images they are compared with.
        allow_unequal: accept sets of different sizes, whose biases differ.

    Raises:
        ValueError: less than two images, unequal numbers of images or of channels, or a feature that is no number.
    """
    x, y = matrices(features, references)
    if len(x) != len(y) and not allow_unequal:
        raise ValueError(f"references must be as many as features unless allowed, got {len(x)} and {len(y)}")
    one, other = (fid_features_to_statistics(torch.from_numpy(part)) for part in (x, y))
    return fid_statistics_to_metric(one, other, verbose=False)[KEY_METRIC_FID]


def fid_extrapolated(
    features: Matrix, references: References, rng: Rng, sizes: int = 15, smallest: int | None = None
) -> float:
    """Return what FID tends to with ever more images: the intercept of a line in 1/N through FIDs of random subsets.

    Both sets are thinned to the same N; the paper thins the generated one alone. Near a line only if the smallest
    N exceeds the number of channels well.

    Source: Chong and Forsyth 2020, arXiv 1911.07023 (FID infinity).

    Args:
        features: of the images.
        references: of the images they are compared with.
        rng: draws the subsets.
        sizes: how many N, evenly spaced up to the smaller set's.
        smallest: the least N, by default half of the greatest.

    Raises:
        ValueError: as in `fid`, or there are no two sizes.
    """
    x, y = matrices(features, references)
    most = min(len(x), len(y))
    least = max(2, most // 2) if smallest is None else smallest
    if sizes < 2 or not 2 <= least < most:
        raise ValueError(f"sizes must be two or more from 2 to {most}, got {sizes} from {least}")
    counts = np.linspace(least, most, sizes).astype(int)
    drawn = [(rng.choice(len(x), n, replace=False), rng.choice(len(y), n, replace=False)) for n in counts]
    values = [frechet(x[rows], y[others]) for rows, others in drawn]
    return float(np.polyfit(1 / counts, values, 1)[1])


def kid(
    features: Matrix, references: References, rng: Rng, subsets: int = 100, subset_size: int | None = None
) -> tuple[float, float]:
    """Return mean and deviation of KID over random subsets, as it is usually reported.

    The deviation is that of a subset's value, neither the mean's error nor, if the subset is the whole set, above 0.
    With ``numpy.random.RandomState(2020)`` the subsets are those of torch-fidelity.

    Args:
        features: of the images.
        references: of the images they are compared with.
        rng: draws the subsets.
        subsets: how many.
        subset_size: images in each, by default 1000 or as many as there are.

    Raises:
        ValueError: as in `kid_unbiased`, no subsets, or larger ones than the sets.
    """
    x, y = matrices(features, references)
    most = min(len(x), len(y))
    size = min(1000, most) if subset_size is None else subset_size
    if subsets < 1 or not 2 <= size <= most:
        raise ValueError(f"subset_size must lie in 2 to {most} of at least one subset, got {size} of {subsets}")
    values = squared_mmd(cubic, x, y, *memberships(rng, (len(x), len(y)), (size, size), subsets))
    return float(values.mean()), float(values.std())


def kid_unbiased(features: Matrix, references: References) -> float:
    """Return KID of all images at once: the estimate of least variance, unbiased, possibly negative.

    Raises:
        ValueError: less than two images, unequal numbers of channels, or a feature that is no number.
    """
    x, y = matrices(features, references)
    return float(squared_mmd(cubic, x, y, np.ones((len(x), 1)), np.ones((len(y), 1)))[0])


def kid_permutation(features: Matrix, references: References, rng: Rng, permutations: int = 1000) -> float:
    """Return the p-value of "both sets have one distribution": the share of random divisions with a KID as high.

    Images must be independent: of many seeds of few prompts the p-value is too small.

    Raises:
        ValueError: as in `kid_unbiased`, or no permutations.
    """
    x, y = matrices(features, references)
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    pooled = np.concatenate([x, y])
    first = np.zeros((len(pooled), permutations + 1))
    first[: len(x), 0] = 1  # the division as it is
    for column in first.T[1:]:
        column[rng.choice(len(pooled), len(x), replace=False)] = 1
    values = squared_mmd(cubic, pooled, pooled, first, 1 - first)
    return float((values >= values[0] - 1e-12 * abs(values[0])).mean())


def cmmd(image_embeddings: Matrix, reference_embeddings: References, biased: bool = False) -> float:
    """Return CMMD: by the U-statistic (``cmmd_u``), or by the published, biased V-statistic (``cmmd_v``).

    Source: arXiv 2401.09603; sayakpaul/cmmd-pytorch f7673a9, ``distance.py``, is ``biased=True``.

    Args:
        image_embeddings: of CLIP, brought to length 1 here.
        reference_embeddings: of the images they are compared with.
        biased: whether an image is compared with itself too.

    Raises:
        ValueError: as in `kid_unbiased`, or an embedding is zero.
    """
    x, y = (units(part) for part in matrices(image_embeddings, reference_embeddings))
    return float(squared_mmd(gaussian, x, y, np.ones((len(x), 1)), np.ones((len(y), 1)), biased)[0])


def matrices(features: Matrix, references: References, least: int = 2) -> tuple[Rows, Others]:
    """Return both sets in float64.

    Raises:
        ValueError: less than `least` images, unequal numbers of channels, or a feature that is no number.
    """
    x, y = (torch.as_tensor(part).detach().cpu().double().numpy() for part in (features, references))
    if min(len(x), len(y)) < least:
        raise ValueError(f"features and references must be of {least} images at least, got {len(x)} and {len(y)}")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"references must have the channels of features {x.shape[1:]}, got {y.shape[1:]}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features and references must be finite, got NaN or infinity")
    return x, y


def units(embeddings: Matrix) -> Rows:
    """Return embeddings of length 1.

    Raises:
        ValueError: one is zero.
    """
    x = np.asarray(embeddings)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError("embeddings must have a length above 0, got a zero row")
    return x / lengths


def frechet(x: Rows, y: Others) -> float:
    """Return the distance of `fid` without covariances: fast, and exact, where there are less images than channels.

    With centred rows X and Y, tr sqrt(S1 S2) is the sum of the singular values of X Y' / sqrt((n - 1)(m - 1)).
    """
    one, other = ((part - part.mean(0)) / np.sqrt(len(part) - 1) for part in (x, y))
    trace = np.square(one).sum() + np.square(other).sum()
    thin = [np.asarray(np.linalg.qr(part, mode="r")) if len(part) > part.shape[1] else part for part in (one, other)]
    shared = np.linalg.svd(thin[0] @ thin[1].T, compute_uv=False).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + trace - 2 * shared)


def squared_mmd(
    kernel: Kernel,
    x: Rows,
    y: Others,
    first: Float[np.ndarray, "batch subset"],
    second: Float[np.ndarray, "reference subset"],
    biased: bool = False,
) -> Float[np.ndarray, " subset"]:
    """Return the squared MMD of many subsets, with every kernel value computed once.

    Args:
        kernel: of two matrices, all rows with all rows.
        x: features of the one set.
        y: of the other.
        first: 1 where a row of x belongs to a column's subset, else 0.
        second: the same of y.
        biased: the V-statistic, in which an image meets itself too.
    """
    m, n = first.sum(0), second.sum(0)
    less = 0 if biased else 1
    own = _sums(kernel, x, x, first, first, biased) / (m * (m - less))
    others = _sums(kernel, y, y, second, second, biased) / (n * (n - less))
    return own + others - 2 * _sums(kernel, x, y, first, second, True) / (m * n)


def cubic(x: Rows, y: Others) -> Float[np.ndarray, "batch reference"]:
    """Return the kernel of KID."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Rows, y: Others) -> Float[np.ndarray, "batch reference"]:
    """Return the kernel of CMMD, already scaled."""
    squares = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
    return SCALE * np.exp(-squares / (2 * SIGMA**2))


def memberships(
    rng: Rng, counts: tuple[int, int], sizes: tuple[int, int], subsets: int
) -> tuple[Float[np.ndarray, "batch subset"], Float[np.ndarray, "reference subset"]]:
    """Return subsets drawn from two sets as columns of 0 and 1, in the order in which torch-fidelity draws them."""
    columns = tuple(np.zeros((count, subsets)) for count in counts)
    for index in range(subsets):
        for column, count, size in zip(columns, counts, sizes, strict=True):
            column[rng.choice(count, size, replace=False), index] = 1
    return columns[0], columns[1]


def _sums(
    kernel: Kernel, x: np.ndarray, y: np.ndarray, first: np.ndarray, second: np.ndarray, diagonal: bool
) -> np.ndarray:
    total = np.zeros(first.shape[1])
    for start in range(0, len(x), ROWS):
        values = kernel(x[start : start + ROWS], y)
        if not diagonal:
            rows = np.arange(len(values))
            values[rows, start + rows] = 0
        total += (first[start : start + ROWS] * (values @ second)).sum(0)
    return total
