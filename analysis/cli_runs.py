"""The commands about experiments: list them, run one."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.console import Console

from analysis.experiments.catalogue import EXPERIMENTS, experiment
from analysis.experiments.experiment import Experiment
from analysis.outputs.publish import publish
from analysis.plain_errors import plainly
from analysis.running.missing import BatchesFailed
from analysis.running.run import How
from analysis.running.run import run as run_experiment

runs = typer.Typer()


class On(StrEnum):
    """Who does the work."""

    LOCAL = "local"
    RAY = "ray"


@runs.command("run")
def run_command(
    name: Annotated[str, typer.Argument(help="See `attnreg experiments`.", metavar="EXPERIMENT")],
    out: Annotated[Path, typer.Option(help="The run's folder is made in this one.")] = Path("runs"),
    data: Annotated[Path, typer.Option(help="Folder of prompt files and images that do not come with Attnreg.")] = Path(
        "data"
    ),
    dry: Annotated[bool, typer.Option("--dry-run", help="Show the plan, time a few images, say what is left.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes; by default one a core or graphics card, of the cluster with Ray; 0: none but this.", min=0
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where models run.")] = "cpu",
    engine: Annotated[On, typer.Option(help="Processes of this machine, or a Ray cluster that is there.")] = On.LOCAL,
    address: Annotated[str, typer.Option(help="Of the Ray cluster.")] = "auto",
    shard: Annotated[str | None, typer.Option(help="i/n: only the images of this part of the prompts.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what failed before.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Compare each method with plain on what both have.")
    ] = False,
    disk: Annotated[float | None, typer.Option(help="Gigabytes that the run may take.")] = None,
) -> None:
    """Run an experiment: images, traces, scores, tables, figures, a page; resumes where it was stopped.

    Exit status 1 if batches failed, 2 if it cannot be run or its methods cannot be compared.
    """
    with plainly():
        how = How(
            workers=workers,
            device=device,
            engine=cast(Literal["local", "ray"], engine.value),
            address=address,
            shard=_shard(shard),
            dry=dry,
            retry=retry,
            allow_missing=allow_missing,
            disk=None if disk is None else int(disk * 1e9),
            data=data,
        )
        raise typer.Exit(_run(experiment(name), out, how))


@runs.command("experiments")
def experiments_command() -> None:
    """List the experiments: what each asks, and what it takes."""
    for name, one in EXPERIMENTS.items():
        typer.echo(f"{name}: {one.question}")
        for part in one.parts:
            methods = f"{len(part.methods)} method{'s' * (len(part.methods) > 1)}"
            typer.echo(f"    {part.title}: {len(part.seeds)} seeds a prompt, {methods}, {part.model}")
        if one.takes:
            typer.echo(f"    {one.takes}")


def _run(one: Experiment, out: Path, how: How) -> int:
    """Run an experiment, write its page, and return the exit status."""
    console = Console()
    try:
        results = run_experiment(one, out, how, console)
    except BatchesFailed as error:
        typer.echo(f"attnreg: {error}", err=True)
        return 1
    if results is None:
        return 0
    page = publish(results, console)
    console.print(f"The page: {page}", soft_wrap=True, highlight=False)
    return 1 if results.failed else 0


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal()):
        raise ValueError(f"--shard must be i/n, such as 2/8, got {text!r}")
    return int(first), int(last)
