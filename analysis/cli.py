"""The command line: each command reads its options, calls one public function, and says errors in a line."""

from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from diffusers.utils.logging import disable_progress_bar as disable_diffusers_bars
from rich.console import Console
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

from analysis.cli_doctor import health
from analysis.cli_methods import catalogue
from analysis.cli_runs import runs
from analysis.cli_scores import scores
from analysis.cli_traces import traces
from analysis.compare import compare as compare_methods
from analysis.demo import demo as make_demo
from analysis.method_list import known
from analysis.outputs.two_runs import compare_runs
from analysis.plain_errors import plainly
from analysis.plan import animal_pairs, halves
from analysis.search import search_and_test as search_variants

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Trace cross-attention in text-to-image models, regulate it, and measure whether that helped.",
)
app.add_typer(traces)
app.add_typer(scores)
app.add_typer(health)
app.add_typer(catalogue)
app.add_typer(runs)
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Seeds = Annotated[int, typer.Option(help="How many seeds, counting from 0.", min=1)]
Model = Annotated[str, typer.Option(help="A short name (emoji, sd15, ...), a folder, or a hub id[@revision].")]


class Pairs(StrEnum):
    """Which of the 66 animal pairs are compared."""

    ALL = "all"
    TUNE = "tune"
    TEST = "test"


def _show_version(wanted: bool) -> bool:
    if wanted:
        try:
            typer.echo(f"attnreg {version('attnreg')}")
        except PackageNotFoundError:
            typer.echo("attnreg (not installed, run from a checkout)")
        raise typer.Exit
    return wanted  # what a callback returns is the option's value


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Keep other libraries' progress bars out of our own."""
    disable_diffusers_bars()
    disable_transformers_bars()


@app.command()
def demo(
    out: Out = Path("attnreg-demo"),
    prompt: Annotated[str | None, typer.Option(help="A prompt of your own.")] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="A word of the prompt to regulate and look for; repeatable.")
    ] = None,
    seeds: Seeds = 16,
    model: Model = "emoji",
) -> None:
    """Generate one prompt with and without regulation, trace it, and write a page that shows both."""
    with plainly():
        make_demo(out, prompt, target or (), range(seeds), model=model)


@app.command()
def compare(
    runs_given: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of two runs of `attnreg run`, to set side by side.", metavar="[RUN RUN]"),
    ] = None,
    out: Out = Path("runs/compare"),
    seeds: Seeds = 16,
    pairs: Annotated[Pairs, typer.Option(help="All 66 animal pairs, or one half of them.")] = Pairs.ALL,
    method: Annotated[list[str] | None, typer.Option(help="Its name, see `attnreg methods`; repeatable.")] = None,
    search: Annotated[
        bool, typer.Option("--search", help="Search hyper-parameters on the tune half, test on the other.")
    ] = False,
    model: Model = "emoji",
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Of two runs: compare on the images that there are.")
    ] = False,
) -> None:
    """Measure whether methods help, over animal pairs and seeds; or set two runs side by side."""
    prompts = animal_pairs()
    with plainly():
        if runs_given:
            if len(runs_given) != 2:
                raise ValueError(f"two runs can be compared, got {len(runs_given)}")
            compare_runs(*runs_given, Console(), allow_missing)
            return
        methods = {name: known(name).method for name in method or ["regulation"]}
        if search and len(methods) > 1:
            raise ValueError(f"--search is of one --method, got {', '.join(methods)}")
        if search and pairs is not Pairs.ALL:
            raise ValueError(f"--search splits all pairs by itself, got --pairs {pairs.value} too")
        if search:
            search_variants(prompts, range(seeds), out, base=next(iter(methods.values())), model=model)
        else:
            chosen = prompts if pairs is Pairs.ALL else halves(prompts)[pairs is Pairs.TEST]
            compare_methods(chosen, range(seeds), methods, out, model=model)
