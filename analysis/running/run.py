"""`attnreg run`: an experiment from its plan to its scores, gone on with from wherever it was stopped.

    run(EXPERIMENTS["emoji-table1"], "runs")

Work to do is what is planned minus what is done, seen from the files of the run's folder, which is named after the hash
of its specification. What failed is kept apart, and tried again when that is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from rich.console import Console

from analysis.experiments.experiment import Experiment
from analysis.running.generation import generate_left, jobs_of
from analysis.running.how import How, check_device, first_threads, scoring_device
from analysis.running.ledger import FAILURES, done, failures, forget_failures, rows_of
from analysis.running.lost import forget_lost
from analysis.running.missing import WHOLE_LIST, BatchesFailed, Incomplete, incomplete, listed, missing_cells
from analysis.running.planning import check_scoring, draw_reference, prompts_of, reference_of
from analysis.running.results import PartResults, part_results
from analysis.running.specification import begin, folder_name, specification
from analysis.running.units import Planned, digest_of, planned
from analysis.workbench import fingerprint
from metrics.evaluator import EMOJI_SIZE
from tracer.models import load_pipeline, model_name
from tracer.sites import denoiser


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
        ValueError: a prompt, a target, a method, or a model in the experiment's world does not fit, or the device is
            none of this machine's; nothing is generated then.
        Incomplete: cells are missing that are to be compared, or images are not as they were made; all that could be
            made is there. `BatchesFailed`, which is one, where that is the reason, and of a shard.
        OSError: the run would take more disk than it may, or than there is.
        FileNotFoundError: a model, an evaluator or a folder of references is not on this machine; nothing is generated
            then.
        Unfit, WorkersDied: no worker can work, or workers die one after the other; what they had made is there.
    """
    how, console = how or How(), console or Console()
    check_device(how)
    with console.status("loading models and prompts"):
        parts = _planned(experiment, how.data)
        spec = specification(experiment, parts)
        folder = Path(out) / folder_name(experiment, spec)
        reference = reference_of(experiment, how.data, folder)
        check_scoring(experiment, parts, reference)
    begun = begin(folder, spec, first_threads(how))
    notes = [f"since this run was begun: {change}" for change in begun.changes]
    _tell(console, experiment, folder, parts, notes)
    _check_whole(parts, how, folder)
    failed = _made(folder, parts, how, begun.threads, console)
    if how.dry or how.shard:
        return None
    there = done(folder)
    absent = [line for one in parts for line in missing_cells(one, there)]
    if absent and not how.allow_missing:
        raise incomplete(absent, folder, bool(failed))
    ledger = rows_of(folder)
    draw_reference(experiment, folder)  # here, where it is needed: shards run at the same time, in the same folder
    device = scoring_device(how)
    found = [part_results(folder, experiment, one, ledger, reference, device, console) for one in parts]
    unscored = [line for part in found for line in part.unscored]
    if unscored and not how.allow_missing:
        raise Incomplete(f"{listed(unscored, folder)}; --allow-missing compares each method on what it has")
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


def _made(
    folder: Path, parts: Sequence[Planned], how: How, threads: int | None, console: Console
) -> dict[str, dict[str, object]]:
    """Make what of this call is not there yet, and return what failed of it, now or before."""
    if threads != (asked := first_threads(how)):
        said = f"threads of a worker: {threads}, as in this run's first call; this one would have taken {asked}"
        console.print(f"  {said}", highlight=False)
    jobs = jobs_of(parts, how.shard)
    keys = {unit.key for job in jobs for unit in job}
    if how.retry:
        forget_failures(folder, keys)
    for line in forget_lost(folder, keys):
        console.print(f"made again: {line}", style="yellow", markup=False)
    generate_left(folder, jobs, how, threads, console)
    failed = {key: facts for key, facts in failures(folder).items() if key in keys}
    if how.shard and failed and not how.dry:
        raise BatchesFailed(f"{len(failed)} batches failed; {folder / FAILURES} says why, --retry tries again")
    return failed


def _check_whole(parts: Sequence[Planned], how: How, folder: Path) -> None:
    """Refuse a method that can act on some prompts of a part and not on others, before anything is made."""
    (folder / WHOLE_LIST).unlink(missing_ok=True)  # an earlier call's
    everything = {key for one in parts for key in one.units}
    absent = [line for one in parts for line in missing_cells(one, everything)]
    if absent and not how.allow_missing:
        raise Incomplete(
            f"{listed(absent, folder)}; --allow-missing compares each method on the prompts that it can act on"
        )
