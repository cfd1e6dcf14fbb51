"""From what is done to what is known: pictures by method, their scores, their traces in one file, their costs.

Conventions: a part's scores and traces are in ``<part>.duckdb`` in the run's folder. A method that had nothing to do
for a prompt has copies of the plain images there, so that each method's folder is whole.
"""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from uuid import uuid4

import pandas as pd
from rich.console import Console

from analysis.costs import paired_costs
from analysis.experiments.experiment import Experiment
from analysis.plan import PLAIN
from analysis.running.lost import is_whole, refuse_changed
from analysis.running.planning import references
from analysis.running.units import Cell, Planned, file_name, fitting
from analysis.running.worker import TRACES
from analysis.score_folders import chosen_protocols, compares_sets, score_pictures, set_rows
from analysis.scoreboard import cells, lacking, pairwise, picture_values, scoreboard
from metrics.pictures import Picture, Problem
from metrics.protocols import Protocol
from tracer.merge import Part, merge
from tracer.store import Store


@dataclass(frozen=True, eq=False)
class PartResults:
    """What is known of a part.

    Attributes:
        planned: the part, its prompts, its cells.
        store: file of scores and traces.
        methods: those with images, in order.
        images: a row per method, prompt and seed: method, prompt_id, prompt, seed, image (path from the run's folder),
            image_sha256, standing ("acts" or "no-op").
        values: from the view ``picture_values``, on what was scored.
        costs: a row per method and prompt that was timed: method, prompt_id, images, seconds, passes, gradient_passes,
            peak_bytes.
        untimed: prompts of which costs are left out, as methods were timed on different machines, devices or numbers of
            threads.
        sets: a row per method and set metric; empty without reference images.
        protocols: of the scores.
        problems: images that could not be scored, and other things to know.
    """

    planned: Planned
    store: Path
    methods: tuple[str, ...]
    images: pd.DataFrame
    values: pd.DataFrame
    costs: pd.DataFrame
    untimed: int
    sets: pd.DataFrame
    protocols: tuple[Protocol, ...]
    problems: tuple[Problem, ...]

    @property
    def title(self) -> str:
        """As tables and figures print it."""
        return self.planned.part.title

    @property
    def not_applicable(self) -> tuple[str, ...]:
        """Methods that cannot act on any of the prompts."""
        return tuple(name for name in self.planned.part.methods if name not in self.methods)

    @cached_property
    def whole(self) -> bool:
        """Whether all methods have all prompts and seeds, and every image has its scores."""
        counts = self.images.groupby("method").size()
        return len(set(counts)) == 1 and set(counts.index) == set(self.methods) and not self.unscored

    @cached_property
    def unscored(self) -> tuple[str, ...]:
        """What is missing of the scores that other methods have: a line per metric, method and prompt."""
        lines = lacking(self.values, self.methods, PLAIN)
        return tuple(f"{self.planned.part.name}: {line}" for line in lines)

    @cached_property
    def board(self) -> pd.DataFrame:
        """The methods' means and differences; where pictures are missing, on what each shares with plain."""
        if self.whole:
            return scoreboard(cells(self.values, self.methods, PLAIN, len(self.methods) == 1), PLAIN)
        return pairwise(self.values, self.methods, PLAIN)

    def protocol(self, metric: str) -> str:
        """Return the name of the protocol that a metric's values are of.

        Raises:
            LookupError: there are none of it.
        """
        names = self.values.loc[self.values["metric"] == metric, "protocol"].unique()
        if not len(names):
            raise LookupError(f"{self.title} has no {metric}")
        return str(names[0])


def part_results(
    run: Path,
    experiment: Experiment,
    one: Planned,
    ledger: pd.DataFrame,
    reference: Path | None,
    device: str,
    console: Console,
) -> PartResults:
    """Score what is new of a part, and return what is known of it.

    Args:
        run: folder of the run.
        experiment: says under which protocols.
        one: the part.
        ledger: rows of all units that are done.
        reference: folder of images that sets are compared with: those that the prompts name, else all; None for none.
        device: where evaluators run.
        console: where progress goes.

    Raises:
        Incomplete: images are not as they were made.
    """
    methods = fitting(one)
    images = _images(run, one, ledger)
    chosen = chosen_protocols(experiment.protocols, experiment.world, sets=reference is not None)
    pictures = _pictures(run, one, images)
    file = run / f"{one.part.name}.duckdb"
    with Store.create(file) as store:
        merge(store, _traces(run, one))
        report = score_pictures(store, pictures, chosen, PLAIN, console, {"device": device})
        refuse_changed(run, store, images)
        sets = pd.DataFrame()
        if reference:
            there = references(one, reference)
            judged = [protocol for protocol in report.protocols if compares_sets(protocol)]
            score_pictures(store, there, judged, PLAIN, console, {"device": device})
            sets = set_rows(store, pictures, there, judged)
        values = picture_values(store, report.protocols, methods, PLAIN)
    costs, untimed = _costs(one, ledger)
    return PartResults(one, file, methods, images, values, costs, untimed, sets, report.protocols, report.problems)


def _images(run: Path, one: Planned, ledger: pd.DataFrame) -> pd.DataFrame:
    """Return a row per image of every cell that is done, each in its own method's folder."""
    by_unit = {str(key): rows for key, rows in ledger.groupby("unit")}
    found = []
    for cell in one.cells:
        if not cell.units or any(unit.key not in by_unit for unit in cell.units):
            continue
        for unit in cell.units:
            for row in by_unit[unit.key].itertuples(index=False):
                path = _own(run, one, cell, str(row.image))
                same = {
                    "method": cell.method,
                    "prompt_id": cell.prompt.id,
                    "prompt": cell.prompt.text,
                    "seed": row.seed,
                }
                same |= {"image": path, "image_sha256": row.image_sha256, "standing": cell.standing.verdict}
                found.append(same)
    columns = ["method", "prompt_id", "prompt", "seed", "image", "image_sha256", "standing"]
    return pd.DataFrame(found, columns=columns)


def _own(run: Path, one: Planned, cell: Cell, path: str) -> str:
    """Return where a cell's image lies, copied there if another cell made it."""
    folder = f"images/{one.part.name}/{file_name(cell.method)}/{file_name(cell.prompt.id)}"
    mine = f"{folder}/{Path(path).name}"
    if mine != path and not is_whole(run / mine):
        (run / folder).mkdir(parents=True, exist_ok=True)
        partial = run / folder / f".{Path(path).name}.{uuid4().hex[:8]}.partial"
        shutil.copyfile(run / path, partial)
        partial.replace(run / mine)
    return mine


def _pictures(run: Path, one: Planned, images: pd.DataFrame) -> list[Picture]:
    targets = {prompt.text: prompt.targets for prompt in one.prompts.prompts}
    tags, metadata = one.prompts.tags, one.prompts.metadata
    return [
        Picture(
            run / row.image, row.prompt, int(row.seed), row.method, row.prompt_id, targets[row.prompt],
            tags.get(row.prompt, ""), metadata.get(row.prompt, {}),
        )
        for row in images.itertuples(index=False)
    ]  # fmt: skip


def _traces(run: Path, one: Planned) -> dict[str, Part]:
    traced = [unit for unit in one.units.values() if unit.capture is not None]
    parts = {unit.key: Part(run / TRACES / f"{unit.key}.duckdb", unit.name) for unit in traced}
    return {key: part for key, part in parts.items() if part.path.is_file()}


def _costs(one: Planned, ledger: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return what each method took for a prompt's images, and of how many prompts that is left out, as `paired_costs`.

    Cells of which a batch is missing, whose sum would be too small, and those that were traced meanwhile have no costs.
    """
    timed = ledger[~ledger["traced"]].dropna(subset="seconds").drop_duplicates("unit")
    there = set(timed["unit"])
    whole = [
        cell for cell in one.cells if cell.standing.verdict == "acts" and all(unit.key in there for unit in cell.units)
    ]
    acting = {unit.key: cell.method for cell in whole for unit in cell.units}
    batches = timed[timed["unit"].isin(list(acting))]
    return paired_costs(batches.assign(method=batches["unit"].map(acting)), PLAIN)
