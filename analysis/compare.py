"""Does regulation help? The same prompts and seeds with and without it, detected, and compared.

    compare(animal_pairs(), range(16), {"published": AttentionRegulation()}, "runs/compare")
    search(animal_pairs(), range(16), "runs/search")

Work to do is what is planned minus what is done: both resume after they were killed, with nothing done twice.
Time: 0.65 s an image on two cores; 66 pairs x 16 seeds x 2 methods in 23 minutes, a search in 75.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis.comparison import as_table, summary
from analysis.plan import PLAIN, Plan, halves, search_grid
from analysis.workbench import Workbench
from metrics.protocols import DetectionProtocol
from regulate import AttentionRegulation, Method
from tracer.prompts import Prompt

FINALISTS = 4  # variants of a search that get all the seeds; the first round uses a quarter of them


@dataclass(frozen=True)
class Found:
    """What a search found: the tune half's rates, the chosen variant, and its comparison on the test half."""

    chosen: str
    tuned: pd.DataFrame
    tested: pd.DataFrame


def compare(
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    methods: Mapping[str, Method],
    out: str | Path,
    *,
    model: str = "emoji",
    protocol: DetectionProtocol | None = None,
    steps: int = 25,
    console: Console | None = None,
) -> pd.DataFrame:
    """Return how often each method shows all targets, beside stock diffusers; see `comparison.summary`.

    Args:
        prompts: with their targets.
        seeds: of each prompt, the same for every method.
        methods: by name; stock diffusers is added as "plain".
        out: folder of the rows (``rows/*.parquet``) and of ``summary.csv``; work done there is kept.
        model: "emoji", a folder, or a hub id.
        protocol: of detection; by default the emoji world's for its model, else the released OWLv2's.
        steps: of the scheduler.
        console: where progress and the table go.

    Raises:
        ValueError: the plan is none, or a target is not in its prompt; nothing is written then.
        FileNotFoundError: the model or the detector is not on this machine; likewise.
    """
    console = console or Console()
    plan = Plan(tuple(prompts), tuple(seeds), methods, steps)
    bench = Workbench.loaded(prompts, out, model, protocol, console)
    lines = summary(bench.rows_of(plan))
    bench.write("summary.csv", lines)
    console.print(as_table(lines, f"{len(plan.prompts)} prompts x {len(plan.seeds)} seeds"))
    return lines


def search(
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    out: str | Path,
    *,
    model: str = "emoji",
    protocol: DetectionProtocol | None = None,
    steps: int = 25,
    console: Console | None = None,
) -> Found:
    """Search the grid of variants on half of the prompts, and compare the best one on the other half.

    Every variant of `plan.search_grid` runs on the tune half (`plan.halves`) with a quarter of the seeds, the four best
    with all. The best of these runs beside the published constants on the test half, which nothing was chosen on.

    Args:
        prompts: with their targets; both halves together.
        seeds: of each prompt.
        out: as in `compare`; the tables are ``tune.csv`` and ``test.csv``.
        model: as in `compare`.
        protocol: as in `compare`.
        steps: as in `compare`.
        console: where progress and the tables go.

    Raises:
        ValueError: as in `compare`, or too few prompts to halve. FileNotFoundError: as in `compare`.
    """
    tune, test = halves(prompts)
    if not tune or not test:
        raise ValueError(f"prompts must be enough for two halves, got {len(prompts)}")
    bench = Workbench.loaded(prompts, out, model, protocol, console := console or Console())
    tuned = _tuned(bench, tune, tuple(seeds), steps)
    (chosen,) = _best(tuned, 1)
    methods = {"published": AttentionRegulation(), chosen: search_grid()[chosen]}
    tested = summary(bench.rows_of(Plan(test, tuple(seeds), methods, steps)))
    for name, lines in (("tune", tuned), ("test", tested)):
        bench.write(f"{name}.csv", lines)
        console.print(as_table(lines, f"{name} half, {len(seeds)} seeds"))
    console.print(f"chosen on the tune half: {chosen}")
    return Found(chosen, tuned, tested)


def _tuned(bench: Workbench, prompts: tuple[Prompt, ...], seeds: tuple[int, ...], steps: int) -> pd.DataFrame:
    """Return the summary of the finalists with all seeds; the first round chose them with a quarter of these."""
    grid = search_grid()
    first = Plan(prompts, seeds[: max(1, len(seeds) // 4)], grid, steps)
    finalists = _best(summary(bench.rows_of(first)), FINALISTS)
    second = Plan(prompts, seeds, {name: grid[name] for name in finalists}, steps)
    return summary(bench.rows_of(second))


def _best(lines: pd.DataFrame, count: int) -> list[str]:
    """Return the methods of highest rate over all pairs; of equal ones the first of the grid."""
    rates = lines[(lines["pairs"] == "all") & (lines["method"] != PLAIN)]
    return list(rates.sort_values("rate", ascending=False, kind="stable")["method"][:count])
