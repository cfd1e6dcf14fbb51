"""`attnreg run`: an experiment from its plan to its scores, gone on with from wherever it was stopped.

    run(EXPERIMENTS["emoji-table1"], "runs")

Work to do is what is planned minus what is done, seen from the files of the run's folder, which is named after the hash
of its specification. What failed is kept apart, and tried again when that is asked for.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from shutil import disk_usage
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from rich.console import Console

from analysis.experiments.experiment import Experiment
from analysis.running.engines import Engine, here, local
from analysis.running.estimate import estimate, first_units, in_words, size_of
from analysis.running.ledger import done, failures, forget_failures, rows_of
from analysis.running.planning import draw_reference, prompts_of, reference_of
from analysis.running.progress import generating
from analysis.running.results import Incomplete, PartResults, missing_cells, part_results
from analysis.running.specification import begin, folder_name, specification
from analysis.running.units import Job, Planned, Unit, digest_of, planned
from analysis.running.worker import Setup
from analysis.workbench import fingerprint
from metrics.evaluator import EMOJI_SIZE
from tracer.models import load_pipeline, model_name
from tracer.sites import denoiser

SHOWN = 10  # missing cells that an error names


@dataclass(frozen=True)
class How:
    """How an experiment is run; nothing of this changes its results.

    Attributes:
        workers: processes; 0 to work in this one, None for one a core, or one a graphics card.
        device: where models run; "cuda" deals the cards out to the workers.
        engine: "local", or "ray" on a cluster that is there.
        address: of the Ray cluster.
        shard: (i, n): only the i-th of n parts of the prompts, counted from 1, and only their images.
        dry: only the plan, a few timed images, and what that lets expect.
        retry: try again what failed before.
        allow_missing: compare method by method on what there is, with the numbers shown.
        disk: bytes that the run may take; None for no limit but the disk.
        data: folder of the prompt files and images that an experiment names and that do not come with Attnreg.
    """

    workers: int | None = None
    device: str = "cpu"
    engine: Literal["local", "ray"] = "local"
    address: str = "auto"
    shard: tuple[int, int] | None = None
    dry: bool = False
    retry: bool = False
    allow_missing: bool = False
    disk: int | None = None
    data: Path = Path("data")

    def __post_init__(self) -> None:
        """Refuse a shard that is none."""
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise ValueError(f"a shard must be i/n with i from 1 to n, got {self.shard[0]}/{self.shard[1]}")


@dataclass(frozen=True)
class RunResults:
    """A run that is done.

    Attributes:
        experiment: what was run.
        run: its folder.
        spec: digest of its specification.
        parts: what is known of each, in order.
        failed: what went wrong, by unit.
        notes: what else to know.
    """

    experiment: Experiment
    run: Path
    spec: str
    parts: tuple[PartResults, ...]
    failed: dict[str, dict[str, object]]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"RunResults({self.experiment.name!r}, run={self.run.name!r}, failed={len(self.failed)})"

    def _repr_html_(self) -> str:
        columns = ["method", "metric", "value", "difference", "difference_low", "difference_high", "p_holm", "images"]
        tables = [
            f"<p>{escape(one.planned.part.title)}</p>{one.board.reindex(columns=columns).round(4).to_html(index=False)}"
            for one in self.parts
        ]
        head = f"<p><b>{escape(self.experiment.name)}</b>: {escape(self.experiment.question)}</p>"
        lost = f"<p>{len(self.failed)} batches failed; <code>.failed</code> says why</p>" if self.failed else ""
        after = "<p><code>analysis.outputs.publish.publish(results)</code> writes the page, its figures and tables</p>"
        return head + lost + "".join(tables) + after


def run(
    experiment: Experiment, out: str | Path = "runs", how: How | None = None, console: Console | None = None
) -> RunResults | None:
    """Run an experiment as far as it is not done, and return its results; None after a dry run or a shard.

    Args:
        experiment: what to run.
        out: the run's folder is made in this one.
        how: workers, engine, limits.
        console: where the plan and progress go.

    Raises:
        ValueError: a prompt, a target, a method, or a model in the experiment's world does not fit; nothing is
            generated then.
        Incomplete: cells are missing that are to be compared; all that could be made is there.
        OSError: the run would take more disk than it may, or than there is.
        FileNotFoundError: a model or an evaluator is not on this machine.
    """
    how, console = how or How(), console or Console()
    with console.status("loading models and prompts"):
        parts = _planned(experiment, how.data)
    spec = specification(experiment, parts)
    folder = Path(out) / folder_name(experiment, spec)
    notes = [f"since this run was begun: {change}" for change in begin(folder, spec)]
    _tell(console, experiment, folder, parts, notes)
    reference = reference_of(experiment, how.data, folder)
    _check_whole(parts, how)
    if how.retry:
        forget_failures(folder)
    _generate(folder, parts, how, console)
    if how.dry or how.shard:
        return None
    there, failed = done(folder), failures(folder)
    absent = [line for one in parts for line in missing_cells(one, there)]
    if absent and not how.allow_missing:
        raise _incomplete(absent, folder, bool(failed))
    ledger = rows_of(folder)
    draw_reference(experiment, folder)  # here, where it is needed: shards run at the same time, in the same folder
    found = [part_results(folder, experiment, one, ledger, reference, how.device, console) for one in parts]
    unscored = [line for part in found for line in part.unscored]
    if unscored and not how.allow_missing:
        raise Incomplete(f"{_listed(unscored)}; --allow-missing compares each method on what it has")
    return RunResults(experiment, folder, digest_of(spec), tuple(found), failed, tuple(notes))


def _planned(experiment: Experiment, data: Path) -> list[Planned]:
    """Plan all parts; a model is loaded once if parts that share it follow one another."""
    sets = [prompts_of(part, data) for part in experiment.parts]  # a missing file is said before a model is fetched
    found: list[Planned] = []
    loaded, pipe, model = None, None, ("", "")
    for part, prompts in zip(experiment.parts, sets, strict=True):
        if pipe is None or loaded != (part.model, part.dtype):
            loaded, pipe = (part.model, part.dtype), load_pipeline(part.model, dtype=getattr(torch, part.dtype))
            model = model_name(pipe), fingerprint(pipe)
            _check_world(experiment, pipe, model[0])
        found.append(planned(part, prompts, pipe, model))
    return found


def _check_world(experiment: Experiment, pipe: DiffusionPipeline, model: str) -> None:
    """Refuse a model whose images the experiment's evaluators do not know: their scores would look like any others.

    A model of the emoji world has images of its size; one that was trained anew is known by that.
    """
    side = (getattr(denoiser(pipe).config, "sample_size", None) or pipe.default_sample_size) * pipe.vae_scale_factor
    fits = (side, side) == EMOJI_SIZE if experiment.world == "emoji" else model != "emoji"
    if not fits:
        raise ValueError(
            f"an experiment of world {experiment.world!r} must have a model of that world, got {model!r}, whose images "
            f"are {side} pixels wide; give the experiment the model's world, 'emoji' or 'real', which names its "
            "evaluators"
        )


def _tell(
    console: Console, experiment: Experiment, folder: Path, parts: Sequence[Planned], notes: Sequence[str]
) -> None:
    console.print(f"[bold]{experiment.name}[/bold]: {experiment.question}")
    for one in parts:
        batches, prompts = one.units, len({cell.prompt.id for cell in one.cells})
        images = sum(len(unit.seeds) for unit in batches.values())
        console.print(
            f"  {one.part.title}: {prompts} prompts x {len(one.part.seeds)} seeds x {len(one.part.methods)} methods "
            f"({', '.join(one.part.methods)}): {images} images in {len(batches)} batches, on {one.model[0]}",
            highlight=False,
        )
        for method, reason in one.lacking.items():
            console.print(f"    {method} is n/a: {reason}", highlight=False)
    for note in notes:
        console.print(f"  beware: {note}", highlight=False)
    console.print(f"  folder {folder}", highlight=False, soft_wrap=True)


def _check_whole(parts: Sequence[Planned], how: How) -> None:
    """Refuse a method that can act on some prompts of a part and not on others, before anything is made."""
    everything = {key for one in parts for key in one.units}
    absent = [line for one in parts for line in missing_cells(one, everything)]
    if absent and not how.allow_missing:
        raise Incomplete(f"{_listed(absent)}; --allow-missing compares each method on the prompts that it can act on")


def _generate(folder: Path, parts: Sequence[Planned], how: How, console: Console) -> None:
    jobs = [job for one in parts for job in one.jobs if how.shard is None or _mine(job, how.shard)]
    over = done(folder) | set(failures(folder))
    jobs = [job for job in (tuple(unit for unit in job if unit.key not in over) for job in jobs) if job]
    left = [unit for job in jobs for unit in job]
    if how.dry:
        jobs = [(unit,) for unit in first_units(left)]
    workers = _workers(how)
    setup = Setup(folder.resolve(), how.device, _threads(how, workers))  # workers may be in another folder

    def check(waiting: Sequence[Unit]) -> None:
        _check_disk(folder, left if how.dry else waiting, how)

    check(left)
    if jobs:
        with generating(folder, [unit for job in jobs for unit in job], workers or 1, console, check) as tick:
            _engine(how, workers)(jobs, setup, tick)
    if how.dry:
        left = [unit for unit in left if unit.key not in done(folder)]
        expected = estimate(folder, rows_of(folder), left, workers or 1)
        console.print(
            f"left: {expected.images} images in {expected.units} batches, about {in_words(expected.seconds)} with "
            f"{workers or 1} workers, {(expected.image_bytes + expected.trace_bytes) / 1e6:.0f} MB",
            highlight=False,
        )
    for facts in failures(folder).values():
        console.print(
            f"failed: {facts['method']} on {facts['prompt']!r}: {facts['error']}", style="yellow", markup=False
        )


def _mine(job: Job, shard: tuple[int, int]) -> bool:
    """Deal jobs out by a hash of their prompt, so that a shard is the same whatever is done already."""
    return int(digest_of({"part": job[0].part, "prompt": job[0].prompt.id}), 16) % shard[1] == shard[0] - 1


def _workers(how: How) -> int:
    if how.workers is not None:
        return how.workers
    return max(torch.cuda.device_count(), 1) if how.device.startswith("cuda") else os.cpu_count() or 1


def _threads(how: How, workers: int) -> int | None:
    if how.engine == "ray" and how.device == "cpu":
        return 1  # the CPU that an actor reserves; how many this machine has says nothing of the cluster's
    return None if how.device != "cpu" or workers == 0 else max(1, (os.cpu_count() or 1) // workers)


def _engine(how: How, workers: int) -> Engine:
    if how.engine == "ray":
        from analysis.running.ray_engine import on_ray

        return on_ray(max(workers, 1), how.address)
    return local(workers) if workers else here


def _check_disk(folder: Path, left: Sequence[Unit], how: How) -> None:
    """Refuse to go on with what would not fit, judged by the images and traces that are there.

    Raises:
        OSError: more is needed than the run may take, or than the disk has.
    """
    needed = estimate(folder, rows_of(folder), left, 1)
    more = needed.image_bytes + needed.trace_bytes
    there = sum(map(size_of, folder.rglob("*")))
    asked = f"the run has {there / 1e9:.2f} GB and needs about {more / 1e9:.2f} more"
    if how.disk is not None and there + more > how.disk:
        raise OSError(f"{asked}; --disk allows {how.disk / 1e9:.2f}")
    if more > (free := disk_usage(folder).free):
        raise OSError(f"{asked}, where {free / 1e9:.2f} are free")


def _incomplete(absent: Sequence[str], folder: Path, failed: bool) -> Incomplete:
    again = f"; {folder / 'failures'} says why, --retry tries again" if failed else ""
    return Incomplete(f"{_listed(absent)}{again}; --allow-missing compares each method on what it has")


def _listed(absent: Sequence[str]) -> str:
    more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
    return f"cells are missing: {'; '.join(absent[:SHOWN])}{more}"
