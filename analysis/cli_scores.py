"""The commands about scores: score images, list protocols, hand images on in other layouts, check by eye."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
import typer
from rich.console import Console

from analysis.agreement import agreement, as_table
from analysis.audit import make_audit
from analysis.hand_on import hand_on
from analysis.labels import add_labels, read_labels
from analysis.method_list import known
from analysis.plain_errors import plainly
from analysis.plan import PLAIN, animal_pairs
from analysis.price import price
from analysis.score_folders import score_folders
from analysis.score_table import print_scores
from metrics.protocols import World, known_protocols
from regulate import METHODS
from tracer.store import Store

scores = typer.Typer()
File = Annotated[Path, typer.Argument(help="File of scores.", metavar="SCORES")]


class In(StrEnum):
    """In which layout a folder of images is."""

    AUTO = "auto"
    PLAIN = "plain"
    GENEVAL = "geneval"
    T2I_COMPBENCH = "t2i-compbench"
    ATTEND_AND_EXCITE = "attend-and-excite"
    SYNGEN = "syngen"


class As(StrEnum):
    """In which layout images are handed on."""

    GENEVAL = "geneval"
    ATTEND_AND_EXCITE = "attend-and-excite"


class Of(StrEnum):
    """Which world images are of."""

    EMOJI = "emoji"
    REAL = "real"


@scores.command("score")
def score_command(
    folders: Annotated[list[Path], typer.Argument(help="Folders of images, one per method; or traces.")],
    out: Annotated[
        Path | None, typer.Option(help="File of the scores, new or added to: scores.duckdb, or the one trace given.")
    ] = None,
    layout: Annotated[In, typer.Option(help="Of the folders.")] = In.AUTO,
    prompts: Annotated[Path | None, typer.Option(help="Prompt file, in place of one in each folder.")] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="A registered protocol; repeatable.")] = None,
    world: Annotated[Of | None, typer.Option(help="Of the images; images of 64 px are taken for emoji.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Method to compare with; by default the first.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Folder of images for FID, KID and CMMD.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Compare each method with the baseline on what both have.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Threads that read files ahead.", min=1)] = 2,
    device: Annotated[str, typer.Option(help="Where models run.")] = "cpu",
    download: Annotated[bool, typer.Option("--download", help="Fetch checkpoints that are not here.")] = False,
) -> None:
    """Score images of any methods, in any of the usual layouts, and compare them; resumes."""
    console = Console()
    out = out or (folders[0] if len(folders) == 1 and folders[0].is_file() else Path("scores.duckdb"))
    with plainly():
        made = score_folders(
            folders,
            out,
            layout=cast(Literal["auto"], layout.value),
            prompts=prompts,
            keys=protocol or (),
            world=cast(World, world.value) if world else None,
            baseline=baseline,
            reference=reference,
            allow_missing=allow_missing,
            workers=workers,
            device=device,
            download=download,
            console=console,
        )
        print_scores(console, made.table, made.sets, made.problems)
        console.print(f"{made.report.worked} of {made.report.pictures} images worked on; scores in {out}")


@scores.command("protocols")
def protocols_command() -> None:
    """List the protocols that scores can be asked for under."""
    for key, one in known_protocols().items():
        facts = ", ".join(f"{name} {value}" for name, value in one.facts.items() if value not in (None, ""))
        typer.echo(f"{key}: {one.name}\n    {facts}")


@scores.command("hand-on")
def hand_on_command(
    file: File,
    out: Annotated[Path, typer.Argument(help="Folder to write, which must not exist.")],
    layout: Annotated[As, typer.Option("--as", help="Whose layout.")],
    method: Annotated[str | None, typer.Option(help="Of which method, where there are several.")] = None,
) -> None:
    """Write scored images and their results as another project's scripts do."""
    with plainly(), Store.open(file) as store:
        hand_on(store, out, layout.value, method)


@scores.command("audit")
def audit_command(
    file: File,
    out: Annotated[Path, typer.Option(help="Folder of the sheet.")] = Path("audit"),
    images: Annotated[int, typer.Option(help="How many to look at.", min=1)] = 100,
    protocol: Annotated[str | None, typer.Option(help="Name of the reading, where there are several.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.", min=0)] = 0,
    labels: Annotated[Path | None, typer.Option(help="A filled labels.csv: compare the detector with it.")] = None,
    person: Annotated[str, typer.Option(help="Who filled it.")] = "person",
) -> None:
    """Draw images for a person to label, blind; with --labels, hold the detector against the person."""
    console = Console()
    with plainly():
        if labels is None:
            with Store.open(file) as store:
                made = make_audit(store, out, _reading(store, protocol), images=images, seed=seed)
            console.print(f"open {made / 'index.html'}, label, and save labels.csv", highlight=False, soft_wrap=True)
            return
        with Store.create(file) as store:
            given = read_labels(labels, out, person)
            found = agreement(store, given, _reading(store, protocol), np.random.default_rng(seed))
            kept = add_labels(store, given)
        console.print(as_table(found))
        console.print(f"the labels are in {file} as {kept}", highlight=False, soft_wrap=True)


@scores.command("overhead")
def overhead_command(
    model: Annotated[str, typer.Option(help="'emoji', a folder in diffusers' layout, or a hub id.")] = "emoji",
    prompts: Annotated[int, typer.Option(help="How many of the benchmark's animal pairs.", min=1, max=66)] = 10,
    repeats: Annotated[int, typer.Option(help="Timed runs of each prompt and method.", min=2)] = 3,
    steps: Annotated[int, typer.Option(help="Of the scheduler.", min=1)] = 25,
    batch: Annotated[int, typer.Option(help="Images in one call of the pipeline.", min=1)] = 1,
    method: Annotated[list[str] | None, typer.Option(help="Its name; repeatable. By default all of them.")] = None,
    device: Annotated[str, typer.Option(help="Where the pipeline runs.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="CSV file for the rows.")] = None,
) -> None:
    """Measure what every method costs beside the untouched pipeline, in time, passes and memory."""
    with plainly():
        methods = {name: known(name).method for name in method or METHODS if name != PLAIN}
        options = {"steps": steps, "batch": batch, "repeats": repeats, "device": device, "out": out}
        price(model, methods, animal_pairs()[:prompts], **options)


def _reading(store: Store, name: str | None) -> str:
    """Return the reading that is asked for, or the only one.

    Raises:
        ValueError: there is no such one, or several.
    """
    known = store.sql("SELECT name FROM readings ORDER BY name")["name"].tolist()
    if name is not None and name in known:
        return name
    if name is None and len(known) == 1:
        return known[0]
    raise ValueError(f"--protocol must be one of {', '.join(known) or 'none, as nothing was detected'}, got {name}")
