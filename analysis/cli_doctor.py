"""The command that says whether this installation works."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from analysis.doctor import FEWEST, STEPS, Precision, as_table
from analysis.doctor import doctor as examine
from analysis.plain_errors import plainly

health = typer.Typer()


class Dtype(StrEnum):
    """Of a model's weights."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


@health.command()
def doctor(
    model: Annotated[str, typer.Option(help="A short name, a folder in diffusers' layout, or a hub id.")] = "emoji",
    device: Annotated[str | None, typer.Option(help="Where to run; a graphics card if there is one.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the model's weights.")] = Dtype.FLOAT32,
    steps: Annotated[int, typer.Option(help="Of the images that are made.", min=FEWEST)] = STEPS,
    json: Annotated[Path | None, typer.Option(help="File for the report, with where a check raised.")] = None,
) -> None:
    """Check versions, models, disk, and a few small runs on this device; exit status 1 if a check fails."""
    with plainly():
        report = examine(model, device, json, dtype=cast(Precision, dtype.value), steps=steps)
    Console().print(as_table(report))
    if report.failed:
        raise typer.Exit(1)
