"""What methods cost: the overhead protocol of `metrics.overhead` on a pipeline, and its table.

price("emoji", {"regulation": AttentionRegulation()})
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from metrics.machine import counting
from metrics.overhead import Overhead, OverheadProtocol, measure
from regulate import Given, Method, Request, generate
from regulate.applied import subjects_of
from regulate.layout import layout_of_prompt
from tracer.models import load_pipeline
from tracer.prompts import Prompt
from tracer.sites import denoiser

SEED = 2403_06381


def price(
    model: str,
    methods: Mapping[str, Method],
    prompts: Sequence[Prompt],
    *,
    steps: int = 25,
    batch: int = 1,
    repeats: int = 3,
    device: str = "cpu",
    out: Path | None = None,
    console: Console | None = None,
) -> list[Overhead]:
    """Return what each method costs beside the untouched pipeline, and print it; methods that need more are left out.

    Args:
        model: "emoji", a folder, or a hub id.
        methods: by name.
        prompts: with their targets; ten or more for a useful interval.
        steps: of the scheduler.
        batch: images in one call of the pipeline.
        repeats: timed runs of each prompt and method.
        device: where the pipeline runs.
        out: a CSV file for the rows.
        console: where the table goes.

    Raises:
        ValueError: there is no prompt or method, or a target is not in its prompt. FileNotFoundError: no such model.
    """
    pipe = load_pipeline(model, device)
    console = console or Console()
    known = {prompt.text: prompt for prompt in prompts}
    given = {text: _given(model, prompt) for text, prompt in known.items()}
    methods = _applicable(pipe, methods, prompts, given, console)
    network = denoiser(pipe)

    def run(method: Method | None) -> Callable[[str, int], object]:
        def images(text: str, seed: int) -> object:
            seeds = tuple(range(seed * batch, (seed + 1) * batch))
            request = Request(text, known[text].targets, seeds, steps, batch=batch, given=given[text])
            return generate(pipe, request, method)

        return images

    asked = {"repeats": repeats, "device": device, "batch": batch, "steps": steps}
    protocol = OverheadProtocol(model, world="emoji" if model == "emoji" else "real", **asked, **_facts(pipe))
    runs = {name: run(method) for name, method in methods.items()}
    with counting(network) as passes:
        rows = measure(run(None), runs, list(known), np.random.default_rng(SEED), protocol, passes)
    console.print(as_table(rows))
    if out is not None:
        _write(rows, out)
    return rows


def _given(model: str, prompt: Prompt) -> Given:
    """Return what else is known of a prompt: in the emoji world a layout, so that all methods can be measured."""
    return Given(layout=layout_of_prompt(prompt.text, prompt.targets, 0) if model == "emoji" else None)


def _applicable(
    pipe: DiffusionPipeline,
    methods: Mapping[str, Method],
    prompts: Sequence[Prompt],
    given: Mapping[str, Given],
    console: Console,
) -> dict[str, Method]:
    """Return the methods that have what they need; say which have not, and which would do nothing."""
    found = {}
    for name, method in methods.items():
        subjects = [subjects_of(pipe, [p.text], [p.targets], [0], [given[p.text]])[0] for p in prompts]
        standings = [method.standing(subject) for subject in subjects]
        idle = [standing for standing in standings if standing.verdict != "acts"]
        if idle:
            console.print(f"{name}: {idle[0].verdict} for {len(idle)} of {len(prompts)} prompts, {idle[0].reason}")
        if not any(standing.verdict == "n/a" for standing in standings):
            found[name] = method
    return found


def _facts(pipe: DiffusionPipeline) -> dict[str, Any]:
    """Return what of the protocol the pipeline says."""
    dtype = next(denoiser(pipe).parameters()).dtype
    return {"dtype": str(dtype).removeprefix("torch."), "scheduler": type(pipe.scheduler).__name__}


def as_table(rows: Sequence[Overhead]) -> Table:
    """Return the rows for the terminal."""
    protocol = rows[0].protocol
    table = Table(title="Overhead: (T - T0) / T0", title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.caption_justify = "left"
    table.caption = f"{protocol.name}\n{protocol.hardware}, {protocol.threads} threads; memory: {rows[0].memory}"
    table.add_column("method")
    for heading in ("overhead, % [95 %]", "T, s", "T0, s", "passes", "of T0", "memory, MB", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        ends = "" if row.low is None or row.high is None else f" [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        counted = [f"{value:.1f}" if value is not None else "-" for value in (row.passes, row.baseline_passes)]
        cells = [f"{100 * row.overhead:.1f}{ends}", f"{row.seconds:.3f}", f"{row.baseline_seconds:.3f}", *counted]
        table.add_row(row.method, *cells, f"{row.peak_bytes / 1e6:.0f}", "noisy" if row.noisy else "")
    return table


def _write(rows: Sequence[Overhead], out: Path) -> None:
    partial = out.with_name(f".{out.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        lines = [asdict(row) | {"protocol": row.protocol.name} for row in rows]
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    partial.replace(out)
