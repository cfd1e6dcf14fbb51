"""Figures of results: how much better, at what cost, how sure, and on which seeds.

Conventions: frames are `analysis.scoreboard`'s, `board` with a row per metric and method, `values` with a row per
picture and metric. Whiskers and bands are 95 % intervals.
    caption  printed below: where prompt set, protocol and world belong.
    width    `style.WIDTH` or `NARROW`, inches, else a ValueError; a narrow figure prints fewer numbers.
    methods  of the whole experiment, in order: a method then looks the same in figures that lack others, too.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.costs import relative_costs
from analysis.figures import style
from analysis.figures.style import NARROW, WIDTH, styled
from analysis.scoreboard import Cells, cells

BASELINE = "plain"
SURE = 0.05  # a p-value below it is called significant
WIDE = 50  # largest to smallest value of a parameter, above which its axis is logarithmic, 0 apart
ROW = 0.2  # inches of a method's row
TIMES = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
COLOURS = style.OUTCOME_COLOURS | {"both fail": "#e3e6e8"}
HATCHES = {"lost": 4 * "x", "both found": "", "won": "////", "both fail": ""}  # in the order of the bars


@styled
def forest(board: pd.DataFrame, metric: str, caption: str = "", width: float = WIDTH) -> Figure:
    """Return every method's paired difference to the baseline; a filled one is significant by Holm over the board.

    Raises:
        ValueError: the board has no differences of that metric, or has the metric under several protocols.
    """
    rows, measure = _of_metric(board, metric), style.measure_of(metric)
    plain, rows = rows[rows["method"] == BASELINE], rows[rows["method"] != BASELINE]
    if plain.empty or rows.empty or "difference" not in rows or rows["difference"].isna().to_numpy().any():
        raise ValueError(f"metric must be one in which methods are compared with {BASELINE}, got {metric!r}")
    figure, axes = style.panel(ROW * len(rows) + 0.85, width, caption)
    axes.axvline(0, color="0.5", linewidth=0.6)
    ends = [rows[f"difference{end}"].to_numpy() * measure.scale for end in ("", "_low", "_high")]
    for row, (middle, low, high, p) in enumerate(zip(*ends, rows["p_holm"], strict=True)):
        axes.plot([low, high], [row, row], color=style.INK, linewidth=1)
        face = style.INK if p < SURE else "white"
        axes.plot(middle, row, "o", color=style.INK, markersize=4.5, markerfacecolor=face)
    style.rows_down(axes, list(rows["method"]))
    what = f"{measure.title} ({measure.text(plain['value'].item())}{measure.unit and ' ' + measure.unit})"
    points, key = ", points" * (measure.unit == "%"), f"whiskers: 95 %; filled: p < {SURE:g} by Holm"
    style.label_x(axes, f"difference to {BASELINE}'s {what}{points}", key)
    signs = [[style.signed(value, measure.digits) for value in end] for end in ends]
    numbers = {"difference [95 %]": [f"{a} [{b}, {c}]" for a, b, c in zip(*signs, strict=True)]}
    if "images" in rows and len(set(rows["images"])) > 1:  # each on the images that it shares with the baseline
        numbers["n"] = [f"{count}" for count in rows["images"]]
    numbers["p (Holm)"] = ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in rows["p_holm"]]
    style.columns_beside(axes, {"": signs[0]} if width == NARROW else numbers)
    return figure


@styled
def pareto(
    board: pd.DataFrame,
    costs: pd.DataFrame,
    by: str = "seconds",
    metric: str = "detection_rate",
    caption: str = "",
    width: float = WIDTH,
    methods: Sequence[str] = (),
) -> Figure:
    """Return what each method reaches against what it costs, `by` seconds or passes as in `relative_costs`.

    A step joins the methods than which no other is both cheaper and better; their markers are filled. Methods without
    costs are left out.

    Raises:
        ValueError: as in `relative_costs`, or the board lacks the metric or has it under several protocols.
    """
    measure, rows = style.measure_of(metric), _of_metric(board, metric).set_index("method")
    price = relative_costs(costs, by)
    order = [method for method in rows.index if method in price.index]
    rows, price, looks = rows.loc[order], price.loc[order], style.looks(methods or order, BASELINE)
    points = np.column_stack([price["value"], rows["value"] * measure.scale])
    best = style.front(points)
    figure, axes = style.panel(3.2, width, caption)
    steps = points[best].repeat(2, 0)
    lines = [np.column_stack([steps[1:, 0], steps[:-1, 1]])]  # across, then up
    axes.plot(*lines[0].T, color="0.8", linewidth=1.5, zorder=0)
    for place, (method, (x, y)) in enumerate(zip(order, points, strict=True)):
        look = looks[method]
        low, high = rows.loc[method, ["value_low", "value_high"]].to_numpy(np.float64) * measure.scale
        left, right = price.loc[method, ["value_low", "value_high"]]
        for line in ([[x, low], [x, high]], [[left, y], [right, y]]):
            lines.append(np.array(line))
            axes.plot(*lines[-1].T, color=look.colour, linewidth=0.7, alpha=0.6)
        face = look.colour if place in best else "white"
        axes.plot(x, y, look.marker, color=look.colour, markerfacecolor=face, markersize=5)
    what = {"seconds": "time", "passes": "passes of the network"}[by]
    axes.set(xscale="log", ylabel=measure.label)
    style.label_x(axes, f"{what}, times {BASELINE}", "whiskers: 95 %; filled: nothing is both cheaper and better")
    axes.set_xlim(price["value_low"].min() / 1.15, price["value_high"].max() * 1.25)
    axes.xaxis.set(major_locator=FixedLocator(TIMES), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda times, _: f"{times:g}"))
    axes.margins(y=0.12)
    style.settle(figure)
    style.name_points(axes, points, order, lines)
    return figure


@styled
def threshold_curves(
    scores: pd.DataFrame, threshold: float, caption: str = "", width: float = WIDTH, methods: Sequence[str] = ()
) -> Figure:
    """Return each method's detection rate at every threshold of the detector, with the protocol's own marked.

    Args:
        scores: columns method, prompt, seed, target, score; an image counts if all its scores are above the threshold.
        threshold: the protocol's; the axis ends at five times that, at 1 or at the highest score.
        caption: see above.
        width: see above.
        methods: see above.

    Raises:
        ValueError: a score is missing, or methods lack images that others have.
    """
    least = scores.groupby(["prompt", "seed", "method"])["score"].min()  # without the missing ones, which are refused
    wide = pd.DataFrame(least.unstack("method"))[list(scores["method"].unique())]
    if np.isnan(wide.to_numpy()).any() or scores["score"].isna().to_numpy().any():
        raise ValueError("scores must be whole, and of the same prompts and seeds for all methods")
    figure, axes = style.panel(2.6 if width == WIDTH else 2.6 + 0.14 * len(wide.columns), width, caption)
    grid = np.linspace(0, min(1, 5 * threshold, 1.05 * wide.max(axis=None)), 201)
    looks = style.looks(methods or list(wide), BASELINE)
    rates = (wide > threshold).mean().sort_values(ascending=False, kind="stable") * 100
    axes.axvline(threshold, color="0.6", linewidth=0.6)
    for place, (method, rate) in enumerate(rates.items()):
        look, curve = looks[method], (wide[method].to_numpy()[:, None] > grid).mean(0) * 100
        marks = {"marker": look.marker, "markersize": 3.5, "markevery": (5 + 3 * place, 40), "linewidth": 1}
        axes.plot(grid, curve, color=look.colour, linestyle=look.dash, label=f"{method}  {rate:.1f}", **marks)
    axes.set(xlim=(0, grid[-1]), ylim=(0, 100), xlabel="threshold of the detector", ylabel="detection rate, %")
    place = "outside right center" if width == WIDTH else "outside upper left"
    figure.legend(loc=place, title=f"%, at {threshold:g}", frameon=False, alignment="left", handlelength=3)
    return figure


@styled
def seed_strips(
    values: pd.DataFrame, metric: str, caption: str = "", width: float = WIDTH, methods: Sequence[str] = ()
) -> Figure:
    """Return each seed's mean over the prompts, by method: a dot a seed.

    The band is where 95 % of the dots would lie if no seed were better than another, from how much images of one prompt
    differ. It lies around the dots' own mean, which makes it narrower: of S seeds by sqrt(1 - 1 / S).

    Raises:
        ValueError: prompts do not all have the same two or more seeds, or the metric is under several protocols.
    """
    part, measure = _cells(values, metric, methods), style.measure_of(metric)
    if not part.crossed:
        raise ValueError("values must have the same seeds, at least 2, for at least 2 prompts")
    figure, axes = style.panel(ROW * len(part.by_method) + 0.85, width, caption)
    numbers: dict[str, list[str]] = {"mean": [], "seeds from, to": []}
    for row, matrix in enumerate(part.by_method.values()):
        means, mean = matrix.mean(0) * measure.scale, matrix.mean() * measure.scale
        own = 1 - 1 / matrix.shape[1]
        reach = 1.96 * measure.scale * np.sqrt(own * matrix.var(1, ddof=1).mean() / len(matrix))
        axes.plot([mean - reach, mean + reach], [row, row], color=style.HUE, linewidth=7, solid_capstyle="butt")
        axes.plot([mean, mean], [row - 0.35, row + 0.35], color=style.INK, linewidth=1)
        axes.plot(means, np.full(len(means), row), "o", color=style.INK, markersize=3.5, alpha=0.6, markeredgewidth=0)
        numbers["mean"].append(f"{mean:.{measure.digits}f}")
        numbers["seeds from, to"].append(f"{means.min():.{measure.digits}f}, {means.max():.{measure.digits}f}")
    style.rows_down(axes, list(part.by_method))
    style.label_x(axes, measure.label, "a dot: a seed; band: where 95 % of them would lie if none were better")
    style.columns_beside(axes, {"mean": numbers["mean"]} if width == NARROW else numbers)
    return figure


@styled
def outcome_bars(values: pd.DataFrame, caption: str = "", width: float = WIDTH, methods: Sequence[str] = ()) -> Figure:
    """Return how many images each method lost and won against the baseline's of the same prompt and seed.

    From the left: lost, both found, won, both fail. So the first two are the baseline's rate, at the line, and the two
    in the middle the method's.

    Raises:
        ValueError: detection rates are under several protocols, or those of the baseline or of any other are missing.
    """
    shown = _cells(values, "detection_rate", methods).by_method
    if BASELINE not in shown or len(shown) < 2:
        raise ValueError(f"values must have detection rates of {BASELINE} and of another method, got {list(shown)}")
    plain, others = shown[BASELINE] > 0.5, {name: grid > 0.5 for name, grid in shown.items() if name != BASELINE}
    figure, axes = style.panel(ROW * len(others) + 0.95, width, caption)
    for row, found in enumerate(others.values()):
        start, masks = 0.0, (plain & ~found, plain & found, ~plain & found, ~plain & ~found)
        for (kind, hatch), mask in zip(HATCHES.items(), masks, strict=True):
            share, count, colour = 100 * mask.mean(), int(mask.sum()), COLOURS[kind]
            axes.barh(row, share, 0.75, start, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
            if share > 1.4 * len(str(count)) * WIDTH / width:
                options = {"ha": "center", "va": "center_baseline", "fontsize": 6.5}
                options |= {"color": "0.2" if kind == "both fail" else "white"}
                options |= {"bbox": {"facecolor": colour, "edgecolor": "none", "pad": 0.6}}
                axes.text(start + share / 2, row, str(count), **options)
            start += share
    axes.axvline(100 * plain.mean(), color="black", linewidth=0.8)
    style.rows_down(axes, list(others))
    axes.set_xlim(0, 100)
    style.label_x(axes, f"share of {plain.size} images, % (line: {BASELINE}'s rate)")
    keys = [Patch(facecolor=COLOURS[kind], hatch=HATCHES[kind], edgecolor="white", label=kind) for kind in HATCHES]
    figure.legend(handles=keys, loc="outside upper center", ncols=4 if width == WIDTH else 2, frameon=False)
    return figure


@styled
def sweep(
    table: pd.DataFrame,
    x: str,
    label: str,
    metric: str = "detection_rate",
    default: float | None = None,
    caption: str = "",
    width: float = NARROW,
    methods: Sequence[str] = (),
) -> Figure:
    """Return a metric along one parameter, with intervals; the baseline is a band, across all if it has no value of it.

    Values of several orders of magnitude stand on a logarithmic axis, 0 at its left.

    Args:
        table: columns method, `x`, value, value_low, value_high; of the baseline one row without `x`, or several with.
        x: the column of the parameter.
        label: of the axis.
        metric: what the values are.
        default: a setting to mark.
        caption: see above.
        width: see above.
        methods: see above.

    Raises:
        ValueError: no method but the baseline has a row with a value of `x`.
    """
    measure, every = style.measure_of(metric), list(table["method"].unique())
    if not set(table.loc[table[x].notna(), "method"]) - {BASELINE}:
        raise ValueError(f"table must have rows of a method other than {BASELINE} with {x}, got {every}")
    figure, axes = style.panel(2.4, width, caption)
    looks, along = style.looks(methods or every, BASELINE), table[x].dropna()
    for method in every:
        rows, look = table[table["method"] == method].sort_values(x), looks[method]
        middle, low, high = (rows[name].to_numpy() * measure.scale for name in ("value", "value_low", "value_high"))
        if method == BASELINE:
            span = [along.min(), along.max()] if rows[x].isna().to_numpy().all() else rows[x]
            low, middle, high = (np.resize(end, len(span)) for end in (low, middle, high))
            axes.fill_between(span, low, high, color="0.88", linewidth=0)
            axes.plot(span, middle, color="0.35", linewidth=1, label=method)
            continue
        axes.vlines(rows[x], low, high, color=look.colour, linewidth=0.8)
        options = {"color": look.colour, "linestyle": look.dash, "linewidth": 1, "markersize": 4}
        axes.plot(rows[x], middle, marker=look.marker, label=method, **options)
    places = sorted(set(along.tolist()))
    least = min((place for place in places if place > 0), default=1.0)
    if places[-1] > WIDE * least:
        axes.set_xscale("symlog", linthresh=least)
    axes.xaxis.set(major_locator=FixedLocator(places), minor_locator=NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if default is not None:
        axes.axvline(default, color="0.6", linewidth=0.6, label="default")
    axes.set(xlabel=label, ylabel=measure.label)
    figure.legend(loc="outside upper left", ncols=2 if width == NARROW else 4, frameon=False)
    return figure


def _of_metric(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the rows of one metric, which must be under one protocol."""
    part = rows.loc[rows["metric"] == metric]
    if len(protocols := part["protocol"].unique()) != 1:
        raise ValueError(f"metric must be there under one protocol, got {metric!r} under {list(protocols)}")
    return part


def _cells(values: pd.DataFrame, metric: str, methods: Sequence[str]) -> Cells:
    """Return a metric's matrices, of the methods that have it, in order; the baseline is the first if no one says."""
    part = _of_metric(values, metric)
    there = sorted(part["method"].unique(), key=lambda name: name != BASELINE)
    (found,) = cells(part, [name for name in methods or there if name in there], BASELINE)
    return found
