"""The commands about traces: make one, see what it holds, ask it, move it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from analysis.answers import Form, ask
from analysis.info import info as info_of
from analysis.plain_errors import plainly
from analysis.trace import Drawing
from analysis.trace import trace as make_trace
from tracer.capture import EVERYTHING, Capture
from tracer.parquet import export_parquet, import_parquet
from tracer.store import Store

traces = typer.Typer()
File = Annotated[Path, typer.Argument(help="Trace file.", metavar="FILE")]


class Tokens(StrEnum):
    """Which tokens are kept."""

    WORDS = "words"
    TARGETS = "targets"
    ALL = "all"


class Precision(StrEnum):
    """How exactly maps are kept."""

    UINT8 = "uint8"
    FLOAT16 = "float16"
    FLOAT32 = "float32"
    NONE = "none"


class Heads(StrEnum):
    """Whether maps are kept of each head."""

    ALL = "all"
    MEAN = "mean"


@traces.command()
def trace(
    prompt: Annotated[str, typer.Argument(help="What the images show.")],
    out: Annotated[Path, typer.Option(help="Trace file, new or to be gone on with.")] = Path("trace.duckdb"),
    model: Annotated[str, typer.Option(help="'emoji', a folder in diffusers' layout, or a hub id.")] = "emoji",
    target: Annotated[list[str] | None, typer.Option(help="A word that must be seen; repeatable.")] = None,
    seeds: Annotated[int, typer.Option(help="How many images, seeds counting from --seed.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Of the scheduler; the model's own by default.", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    batch: Annotated[int, typer.Option(help="Images in one call of the pipeline.", min=1)] = 4,
    images: Annotated[Path | None, typer.Option(help="Folder for the pictures.")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Pattern of layers ('up_blocks.1.*'); repeatable.")] = None,
    every: Annotated[int, typer.Option(help="Keep every so-manieth step.", min=1)] = 1,
    heads: Annotated[Heads, typer.Option(help="Maps of each head, or their mean.")] = Heads.ALL,
    tokens: Annotated[
        Tokens, typer.Option(help="Words, start, end and the padding's sum; or fewer; or all.")
    ] = Tokens.WORDS,
    precision: Annotated[Precision, typer.Option(help="Of the maps; none keeps statistics only.")] = Precision.UINT8,
    resolution: Annotated[int | None, typer.Option(help="Average larger maps down to this.", min=1)] = None,
    both: Annotated[bool, typer.Option("--both", help="Record the negative prompt's half too.")] = False,
    everything: Annotated[bool, typer.Option("--everything", help="Every token, in half precision.")] = False,
) -> None:
    """Make images of a prompt and record where every head of every layer looked, at every step."""
    with plainly():
        size = max(1000, steps or 0)
        capture = Capture(
            layers=tuple(layers or ("*",)),
            steps=None if every == 1 else range(0, size, every),
            heads=heads.value,
            tokens=EVERYTHING.tokens if everything else tokens.value,
            precision=EVERYTHING.precision if everything else precision.value,
            resolution=resolution,
            branches=("cond", "uncond") if both else ("cond",),
        )
        drawing = Drawing(tuple(range(seed, seed + seeds)), steps, guidance, negative, height, width, batch)
        make_trace(prompt, out, drawing, capture, target or (), model, images, Console(stderr=True))
        typer.echo(f"{out}; see `attnreg info {out}`")


@traces.command()
def info(file: File) -> None:
    """Say what a trace holds, what it takes, and whether all of it is there."""
    with plainly():
        typer.echo(info_of(file))


@traces.command()
def sql(
    file: File,
    query: Annotated[str, typer.Argument(help="One SQL statement; tables and views are those of tracer/*.sql.")],
    form: Annotated[Form, typer.Option("--format", help="How the answer is written.")] = Form.TABLE,
    out: Annotated[Path | None, typer.Option(help="File for the answer.")] = None,
    attach: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE of another trace, to be compared; repeatable.")
    ] = None,
) -> None:
    """Ask a trace a question; it is opened read-only, and the query reaches no other file."""
    with plainly():
        pairs = [one.partition("=") for one in attach or ()]
        if wrong := [one for one, pair in zip(attach or (), pairs, strict=True) if not (pair[0] and pair[2])]:
            raise ValueError(f"--attach must be NAME=FILE, got {', '.join(wrong)}")
        typer.echo(ask(file, query, form, out, {name: Path(path) for name, _, path in pairs}))


@traces.command()
def export(file: File, folder: Annotated[Path, typer.Argument(help="Folder to make.")]) -> None:
    """Write a trace as a folder of Parquet files."""
    with plainly(), Store.open(file) as store:
        export_parquet(store, folder)


@traces.command(name="import")
def import_(
    file: File, folders: Annotated[list[Path], typer.Argument(help="Folders that `attnreg export` made.")]
) -> None:
    """Add exported traces to a trace file, new or old."""
    with plainly():
        runs = import_parquet(folders, file)
        typer.echo(f"{file}: {len(runs)} runs added, numbers {', '.join(map(str, runs))}")
