"""The command that lists the methods."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from analysis.method_list import as_sheet, as_table, method_table
from analysis.plain_errors import plainly

catalogue = typer.Typer()


@catalogue.command("methods")
def methods_command(
    name: Annotated[str | None, typer.Argument(help="Tell all of one method, its constants too.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for the whole table.")] = None,
) -> None:
    """List the methods: mechanism, needs, passes of the network; of one, its constants, source and licence too."""
    with plainly():
        Console().print(as_table() if name is None else as_sheet(name), highlight=False)
        if csv is not None:
            method_table().to_csv(csv, index=False)
