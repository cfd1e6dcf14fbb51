"""What methods cost beside the baseline, as columns of a paper's table.

Conventions: a cost is a median ratio as in `analysis.costs`, of an experiment's batches; where all prompts have one
ratio, as counts of passes often do, there is no interval.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.costs import median_ratio
from analysis.paper.cells import Number


def cost_numbers(costs: pd.DataFrame, baseline: str) -> dict[str, dict[str, Number]]:
    """Return each method's cost columns, by metric; the baseline has none.

    Args:
        costs: a row per method and prompt of one batch; columns method, prompt_id, images, seconds, passes (of the
            network), gradient_passes (those of them with a gradient).
        baseline: the method whose batch of the same prompt each is compared with.

    Raises:
        ValueError: a method has a prompt twice; the baseline lacks one or takes no time; or a prompt's batches differ
            in size.
    """
    if costs.duplicated(["method", "prompt_id"]).any():
        raise ValueError("costs must have one row per method and prompt_id, got several")
    wide = costs.pivot(index="prompt_id", columns="method")
    if baseline not in wide["seconds"] or not bool((wide["seconds"][baseline] > 0).all()):
        raise ValueError(f"costs must have positive seconds of {baseline!r} for every prompt, got others")
    if (wide["images"].nunique(axis=1) > 1).any():
        raise ValueError("costs must be of batches of one size for each prompt, got several")
    found: dict[str, dict[str, Number]] = {}
    graded = bool((costs["gradient_passes"] > 0).any())
    for method in [name for name in costs["method"].unique() if name != baseline]:
        plain = wide.xs(baseline, axis=1, level="method")[wide["seconds"][method].notna()]
        ours = wide.xs(method, axis=1, level="method").loc[plain.index]
        found[method] = {
            "overhead": _ratio(ours["seconds"] / plain["seconds"], 1.0, int(ours["images"].sum())),
            "passes": _ratio(ours["passes"] / plain["passes"], 0.0, int(ours["images"].sum())),
        }
        if graded:
            ratios = ours["gradient_passes"] / plain["passes"]
            found[method]["gradient_passes"] = _ratio(ratios, 0.0, int(ours["images"].sum()))
    return found


def _ratio(ratios: pd.Series, less: float, images: int) -> Number:
    """Return the median ratio, less so much, with its interval over prompts where there are several values."""
    found = median_ratio(ratios.to_numpy(np.float64))
    facts = {"prompts": len(ratios), "images": images, "interval": "prompts"}
    if ratios.nunique() == 1:
        return Number(found.estimate - less, **facts)
    return Number(found.estimate - less, found.low - less, found.high - less, **facts)


def costs_note(costs: pd.DataFrame, found: Sequence[str], baseline: str) -> str:
    """Return what the caption says of cost columns; `found` are their metrics."""
    more = "; gradients: those of them with a gradient" if "gradient_passes" in found else ""
    return (
        f"Cost: median over {costs['prompt_id'].nunique()} prompts of a batch's ratio to that of {baseline}, with 95 % "
        f"intervals over prompts; overhead: time, less 1; passes: of the network{more}. LPIPS and costs are never bold."
    )
