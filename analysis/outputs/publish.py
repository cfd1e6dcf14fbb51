"""A run's tables and figures as files, and its page: all made anew from what is stored, which takes no model.

Conventions: ``tables/<name>.csv``, ``.md``, ``.html``, ``.tex``; ``figures/<name>.pdf``, ``.svg``, ``.png``, and the
numbers behind it as ``.csv`` where no table has them; and ``index.html``. The same store gives the same bytes. Each
show stands alone: what the data do not allow is named on the page, with the reason, and the others are there.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from analysis.experiments.experiment import Part
from analysis.figures import files as figure_files
from analysis.outputs import dominance, method_results, pictures
from analysis.outputs.findings import findings
from analysis.outputs.made import Made, MadeFigure, MadeTable, NotMade
from analysis.page.gallery import Entry, Gallery, entries_of
from analysis.page.run_page import Drawing, Kind, Notice, RunPage, TableBlock, html_of_run
from analysis.paper import files as table_files
from analysis.plan import PLAIN
from analysis.running.results import PartResults
from analysis.running.run import RunResults
from metrics.protocols import DetectionProtocol
from tracer.store import Store

SHOWS: Mapping[str, Callable[[RunResults], Iterator[Made]]] = {
    "method-table": method_results.method_tables,
    "model-tables": method_results.model_tables,
    "set-table": method_results.set_tables,
    "forest": method_results.forests,
    "pareto": method_results.paretos,
    "outcomes": method_results.outcomes,
    "curves": method_results.curves,
    "thresholds": method_results.thresholds,
    "seeds": method_results.seeds,
    "grid": pictures.grids,
    "pairs": pictures.paired,
    "violins": pictures.violins,
    "maps": pictures.maps,
    "dominance": dominance.over_steps,
    "prediction": dominance.prediction,
    "heads": dominance.heads,
    "changes": dominance.changes,
    "companions": dominance.companions,
    "same-word": dominance.same_words,
    "pointing": dominance.pointing,
    "pointing-truth": dominance.pointing_truth,
    "dose": dominance.dose,
}
LARGEST_GALLERY = 20_000  # images on the page; of more, some prompts' are shown
UNFIT = (ValueError, LookupError)  # what data raise that are missing or do not fit; all else is the program's fault

Block = TableBlock | Drawing | Notice | str  # a string is a sentence of the findings


def publish(results: RunResults, console: Console | None = None) -> Path:
    """Write all that an experiment shows, and return the path of its page.

    Args:
        results: from `analysis.running.run.run`.
        console: where the tables are printed, and what cannot be made.

    Raises:
        ValueError: the experiment shows something that there is not.
    """
    if strangers := [name for name in results.experiment.shows if name not in SHOWS]:
        raise ValueError(f"shows must be some of {', '.join(SHOWS)}, got {', '.join(strangers)}")
    blocks = [block for name in results.experiment.shows for block in _blocks(results, name, console)]
    page = _page(results, [*_findings(results, console), *blocks])
    target, partial = results.run / "index.html", results.run / f".index.{os.getpid()}.partial"
    partial.write_text(html_of_run(page), encoding="utf-8")
    partial.replace(target)
    return target


def _blocks(results: RunResults, show: str, console: Console | None) -> Iterator[Block]:
    """Yield what a show puts on the page, its files written, and say of what it cannot make."""
    found = False
    try:
        for one in SHOWS[show](results):
            found = True
            yield _block(results.run, show, one, console)
    except UNFIT as error:
        yield _not_drawn(show, _reason(error), console)
    else:
        if not found:
            yield _not_drawn(show, "the run has nothing of that kind", console, "note")


def _findings(results: RunResults, console: Console | None) -> Iterator[Block]:
    try:
        yield from findings(results)
    except UNFIT as error:
        yield _not_drawn("findings", _reason(error), console)


def _block(run: Path, show: str, one: Made, console: Console | None) -> Block:
    if isinstance(one, NotMade):
        return _not_drawn(show, f"{one.what}: {one.reason}", console)
    try:
        if isinstance(one, MadeFigure):
            return _drawing(run, one)
        if console:
            console.print(table_files.markdown_of(one.table), markup=False, highlight=False, soft_wrap=True)
        return _table(run, one)
    except UNFIT as error:
        return _not_drawn(show, f"{one.title}: {_reason(error)}", console)


def _not_drawn(show: str, reason: str, console: Console | None, kind: Kind = "failure") -> Notice:
    text = f"not drawn: {show}: {reason}"
    if console:
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return Notice(kind, text)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__} {text}" if isinstance(error, KeyError | IndexError) else text


def _table(run: Path, one: MadeTable) -> TableBlock:
    files = table_files.write(one.table, run / "tables", one.name)
    links = {path.suffix[1:]: f"tables/{path.name}" for path in files if path.suffix != ".html"}
    return TableBlock(one.title, table_files.html_of(one.table), files=links)


def _drawing(run: Path, one: MadeFigure) -> Drawing:
    paths = figure_files.write(one.draw, run / "figures", one.name, one.numbers)
    files = {path.name.removeprefix(one.name).lstrip(".-"): path for path in paths}
    links = {form: f"figures/{path.name}" for form, path in files.items()}
    return Drawing(one.title, one.text, one.alternative, files["svg"].read_bytes(), links)


def _page(results: RunResults, blocks: Sequence[Block]) -> RunPage:
    experiment, gallery = results.experiment, _gallery(results)
    protocols = {
        metric: str(rows["protocol"].iat[0])
        for part in results.parts
        for metric, rows in part.values.groupby("metric", sort=False)
    }
    return RunPage(
        title=experiment.name,
        question=experiment.question,
        world=experiment.world,
        command=f"attnreg run {experiment.name}" + " --data FOLDER" * any(part.files for part in experiment.parts),
        digest=results.spec,
        findings=tuple(block for block in blocks if isinstance(block, str)),
        notices=(*_notices(results), *(b for b in blocks if isinstance(b, Notice)), *_left_out(gallery)),
        tables=tuple(block for block in blocks if isinstance(block, TableBlock)),
        drawings=tuple(block for block in blocks if isinstance(block, Drawing)),
        protocols=protocols,
        settings=dict(_settings(results)),
        gallery=gallery,
    )


def _notices(results: RunResults) -> Iterator[Notice]:
    for facts in results.failed.values():
        yield Notice("failure", f"{facts['method']} on “{facts['prompt']}”: {facts['error']}")
    for part in results.parts:
        for problem in part.problems:
            yield Notice("failure", f"{problem.path.name}: {problem.reason}")
        for method in part.not_applicable:
            yield Notice("not applicable", f"{part.title}: {method}, {part.planned.lacking[method]}")
        cells = part.images.drop_duplicates(["method", "prompt"])
        for method, count in Counter(cells.loc[cells["standing"] == "no-op", "method"]).items():
            total = int((cells["method"] == method).sum())
            yield Notice("no-op", f"{part.title}: {method} has nothing to do on {count} of {total} prompts")
        if part.untimed:
            count = part.images["prompt"].nunique()
            yield Notice(
                "note",
                f"{part.title}: costs of {part.untimed} of {count} prompts are left out for some methods, which were "
                f"timed on another machine, device or number of threads than {PLAIN}",
            )
        for note in part.planned.prompts.notes:
            yield Notice("note", f"{part.title}: {note}")
    for note in results.notes:
        yield Notice("note", note)


def _left_out(gallery: Gallery | None) -> Iterator[Notice]:
    if gallery and gallery.of:
        yield Notice(
            "note",
            f"the gallery shows {len(gallery.entries):,} of {gallery.of:,} images: of prompts spread evenly over the "
            "sets; all are in the run's folder",
        )


def _settings(results: RunResults) -> Iterator[tuple[str, str]]:
    for one in results.parts:
        part, before = one.planned.part, f"{one.title}: " if len(results.parts) > 1 else ""
        yield f"{before}model", one.planned.model[0]
        yield f"{before}prompts", f"{one.images['prompt'].nunique()}, {one.planned.prompts.source}"
        yield f"{before}sampler", f"{part.steps} steps, guidance {part.guidance:g}, seeds {seeds_in_words(part)}"
        for name in one.methods:
            method = part.methods[name]
            constants = ", ".join(f"{key} {value}" for key, value in method.parameters().items())
            yield f"{before}{name}", constants or ("stock diffusers" if name == PLAIN else method.name)


def seeds_in_words(part: Part) -> str:
    """Return a part's seeds as one reads them."""
    seeds = part.seeds
    if part.own_seeds:
        return f"{len(seeds)} a prompt, of its own: its place in the set"
    if len(seeds) > 1 and seeds == tuple(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _gallery(results: RunResults) -> Gallery | None:
    entries = [entry for part in results.parts for entry in _entries(part)]
    if not entries:
        return None
    shown = spread_entries(entries, LARGEST_GALLERY)
    methods = tuple(dict.fromkeys(name for part in results.parts for name in part.planned.part.methods))
    absent = {part.title: part.not_applicable for part in results.parts}
    total = len(entries) if len(shown) < len(entries) else 0
    return Gallery(tuple(shown), methods, PLAIN, not_applicable=absent, folder=results.run, of=total)


def spread_entries(entries: Sequence[Entry], most: int) -> Sequence[Entry]:
    """Return the entries of so many prompts, spread evenly over them, that no more than `most` are left."""
    prompts = list(dict.fromkeys(entry.row[:3] for entry in entries))
    if len(entries) <= most:
        return entries
    count = max(1, len(prompts) * most // len(entries))
    chosen = {prompts[place] for place in np.linspace(0, len(prompts) - 1, count).round().astype(int).tolist()}
    return [entry for entry in entries if entry.row[:3] in chosen][:most]


def _entries(part: PartResults) -> list[Entry]:
    readings = [protocol.name for protocol in part.protocols if isinstance(protocol, DetectionProtocol)]
    with Store.open(part.store) as store:
        return entries_of(store, readings[0] if readings else "", part.title, part.methods)
