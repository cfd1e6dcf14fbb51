"""The demo: one prompt, plain and regulated, over many seeds; traced, detected, drawn, and put on one page.

    demo("attnreg-demo")        # writes index.html, trace.duckdb, images/ and figures/

Which prompt and images are shown follows rules that know nothing of regulated images: see `RULE` and
`analysis.demo_page`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from diffusers import DiffusionPipeline
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from analysis.demo_page import QUERIES, Material, page_of
from analysis.folder import check_replaceable, whole_folder
from analysis.packing import pack
from analysis.report import Page, html_of
from analysis.score_images import score_images
from metrics.protocols import DetectionProtocol, emoji_detection
from metrics.weights import Detector, load_detector
from regulate import METHODS, Request, generate
from tracer.models import load_pipeline
from tracer.scenes import ANIMALS, OBJECTS
from tracer.store import Store
from tracer.words import targets_of

MAKER = "attnreg demo"
METHOD = "regulation"
PROMPT, TARGETS = "a cat and a lion", ("cat", "lion")  # chosen by data/emoji/make/first_pair.py
RULE = (
    "The prompt is the first of the benchmark's 66 animal pairs, in the benchmark's order, whose plain "
    "images miss an animal in at least half of the seeds 0 to 15. No regulated image was looked at for that."
)
GIVEN = "The prompt was given by whoever started the demo."
SEEDS = tuple(range(16))


@dataclass(frozen=True)
class Demo:
    """What the demo made: its folder, how many images had which outcome, and a row of numbers per method."""

    folder: Path
    counts: pd.Series
    numbers: pd.DataFrame


def demo(
    out: str | Path,
    prompt: str | None = None,
    targets: Sequence[str] = (),
    seeds: Sequence[int] = SEEDS,
    *,
    model: str = "emoji",
    protocol: DetectionProtocol | None = None,
    steps: int = 25,
    console: Console | None = None,
) -> Demo:
    """Generate a prompt's images with and without regulation, trace and detect, and write a page about it.

    Args:
        out: folder to write; a former demo there is replaced when the new one is whole.
        prompt: None for the default one, see `RULE`.
        targets: words of the prompt to regulate and look for; by default the emoji world's nouns in it.
        seeds: one image each per method.
        model: "emoji", a folder, or a hub id.
        protocol: of detection; by default the emoji world's for its model, else the released OWLv2's.
        steps: of the scheduler.
        console: where progress and the table at the end go.

    Raises:
        ValueError: targets none or not in the prompt, seeds none or repeated, or `out` not ours; nothing is written.
        FileNotFoundError: the model or the detector is not on this machine; nothing is written.
    """
    check_replaceable(out := Path(out), MAKER)
    console = console or Console()
    request = _request(prompt, tuple(targets), tuple(seeds), steps)
    with console.status("loading the generator and the detector"):
        pipe, detector = _loaded(request, model, protocol)
    with whole_folder(out, MAKER) as draft:
        recorded = draft / "recorded.duckdb"
        with Store.create(recorded) as store:
            page = page_of(_material(draft, store, pipe, detector, request, console), RULE if prompt is None else GIVEN)
        pack(recorded, draft / "trace.duckdb")
        recorded.unlink()
        _write_page(draft, page)
    _tell(console, out, page)
    return Demo(out, page.counts, page.numbers)


def _write_page(folder: Path, page: Page) -> None:
    (folder / "figures").mkdir()
    for plate in page.plates:
        (folder / "figures" / f"{plate.name}.png").write_bytes(plate.png)
    (folder / "index.html").write_text(html_of(page), encoding="utf-8")


def nouns_of(prompt: str) -> tuple[str, ...]:
    """Return the emoji world's nouns in a prompt, in its order, each once.

    Raises:
        ValueError: there is none.
    """
    words = [word.strip(".,;:!?").lower() for word in prompt.split()]
    found = tuple(dict.fromkeys(word for word in words if word in ANIMALS + OBJECTS))
    if not found:
        raise ValueError(f"no noun of the emoji world is in {prompt!r}: say which words to look for as targets")
    return found


def _request(prompt: str | None, targets: tuple[str, ...], seeds: tuple[int, ...], steps: int) -> Request:
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"seeds must be at least one, all different and not negative, got {list(seeds)}")
    if prompt is None:
        return Request(PROMPT, targets or TARGETS, seeds, steps)
    return Request(prompt, targets or nouns_of(prompt), seeds, steps)


def _loaded(request: Request, model: str, protocol: DetectionProtocol | None) -> tuple[DiffusionPipeline, Detector]:
    """Return generator and detector, if they know what they are asked for."""
    protocol = protocol or (emoji_detection() if model == "emoji" else DetectionProtocol())
    unknown = [target for target in request.targets if target.split()[-1].lower() not in ANIMALS + OBJECTS]
    if protocol.world == "emoji" and unknown:
        raise ValueError(
            f"the emoji world's detector does not know {', '.join(unknown)}; its nouns are "
            f"{', '.join(ANIMALS + OBJECTS)}"
        )
    pipe = load_pipeline(model)
    targets_of(pipe.tokenizer, request.prompt, request.targets)
    return pipe, load_detector(protocol)


def _material(
    folder: Path,
    store: Store,
    pipe: DiffusionPipeline,
    detector: Detector,
    request: Request,
    console: Console,
) -> Material:
    """Generate and detect; images are written, the rest goes into the store."""
    columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    runs: list[int] = []
    pictures: dict[tuple[str, int], np.ndarray] = {}
    with Progress(*columns, console=console) as progress:
        for name in ("plain", METHOD):
            task = progress.add_task(f"{name}: images", total=len(request.seeds))
            made = generate(
                pipe,
                request,
                METHODS[name],
                store,
                folder=folder / "images" / name,
                done=lambda images, task=task: progress.advance(task, images),
            )
            runs.append(cast(int, made.run_id))  # there is one, as there is a store
            places = [(sha, f"images/{name}/{seed}.png") for sha, seed in zip(made.sha256, request.seeds, strict=True)]
            store.add_images(runs[-1], dict(enumerate(places)))  # by their place in the finished folder
            looking = progress.add_task(f"{name}: detection", total=len(request.seeds))
            score_images(store, detector, dict(zip(made.sha256, made.images, strict=True)), request.targets)
            progress.update(looking, completed=len(request.seeds))
            pictures |= {(name, s): np.asarray(i) for s, i in zip(request.seeds, made.images, strict=True)}
    return Material(store, runs[0], runs[1], detector.protocol, request, pictures)


def _tell(console: Console, out: Path, page: Page) -> None:
    """Print the table of numbers, the outcomes and the queries."""
    numbers = page.numbers.drop(columns="images").astype(str)
    table = Table(title=f"“{page.prompt}”, {page.counts.sum()} seeds", title_justify="left", box=SIMPLE_HEAD)
    for column in numbers.columns:  # narrow enough for 80 characters
        heading, justify = column.replace(" ", "\n"), "left" if column == "method" else "right"
        table.add_column(heading, justify=justify, vertical="bottom", no_wrap=True)
    for row in numbers.itertuples(index=False):
        table.add_row(*row)
    console.print(table)
    console.print(", ".join(f"{name} {count}" for name, count in page.counts.items()) + " (images by outcome)")
    console.print(f"detection protocol {page.protocol}", highlight=False)
    console.print(f"\nThe page: {out / 'index.html'}", soft_wrap=True)
    console.print(f"Three queries to try next on {out / 'trace.duckdb'}:", soft_wrap=True)
    for query in QUERIES:
        console.print(f"\n-- {query.question}", style="dim")
        console.print(query.sql + ";", highlight=False, markup=False, soft_wrap=True)
