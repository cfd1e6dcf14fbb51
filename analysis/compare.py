"""Does regulation help? The same prompts and seeds with and without it, detected, and compared.

    compare(animal_pairs(), range(16), {"published": AttentionRegulation()}, "runs/compare")

Work to do is what is planned minus what is done: it resumes after it was killed, with nothing done twice.
Time: 0.65 s an image on two cores; 66 pairs x 16 seeds x 2 methods in 23 minutes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis.comparison import Compared, summary, tell
from analysis.plan import Plan
from analysis.workbench import Workbench
from metrics.protocols import DetectionProtocol
from regulate import Given, Method
from tracer.prompts import Prompt


def compare(
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    methods: Mapping[str, Method],
    out: str | Path,
    *,
    model: str = "emoji",
    protocol: DetectionProtocol | None = None,
    steps: int = 25,
    given: Mapping[str, Given] | None = None,
    console: Console | None = None,
) -> Compared:
    """Return how often each method shows all targets, beside stock diffusers.

    A method that lacks what it needs for one of the prompts has a row that says "n/a" and why, and no numbers.

    Args:
        prompts: with their targets.
        seeds: of each prompt, the same for every method.
        methods: by name; stock diffusers is added as "plain".
        out: folder of the rows (``rows/*.parquet``) and of ``summary.csv``; work done there is kept.
        model: "emoji", a folder, or a hub id.
        protocol: of detection; by default the emoji world's for its model, else the released OWLv2's.
        steps: of the scheduler.
        given: what else is known of a prompt, by its text; see `analysis.plan.Plan`.
        console: where progress and the table go; in a notebook the cell shows the table alone.

    Raises:
        ValueError: the plan is none, or a target is not in its prompt; nothing is written then.
        FileNotFoundError: the model or the detector is not on this machine; likewise.
    """
    console = console or Console()
    plan = Plan(tuple(prompts), tuple(seeds), methods, steps, given=given or {})
    bench = Workbench.loaded(prompts, out, model, protocol, console)
    lacking = bench.lacking(plan)
    plan = replace(plan, methods={name: one for name, one in plan.methods.items() if name not in lacking})
    lines = summary(bench.rows_of(plan))
    missing = [{"method": name, "pairs": "all", "standing": f"n/a, {reason}"} for name, reason in lacking.items()]
    lines = pd.concat([lines, pd.DataFrame(missing)], ignore_index=True) if missing else lines
    bench.write("summary.csv", lines)
    return tell(console, Compared(lines, f"{len(plan.prompts)} prompts x {len(plan.seeds)} seeds", Path(out)))
