"""Folders of anybody's images to a table of scores: read, score what is new, compare.

    score_folders(["plain", "regulated"], "scores.duckdb")

Each folder is a method. Scores are kept in one file, beside the trace if that is given; a second call does only what
is new.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import pandas as pd
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from analysis.scoreboard import cells, lacking, pairwise, picture_values, scoreboard, unbalanced
from metrics.judging import tasks_protocol
from metrics.layouts import SUFFIXES, read_folder
from metrics.pictures import Layout, Picture, Problem
from metrics.protocols import ClipProtocol, FeatureProtocol, Protocol, World, known_protocols
from metrics.scoring import Report, score
from metrics.sets import score_set
from metrics.traced import pictures_of
from tracer.scores import local_path, pictures_in
from tracer.store import Store

DEFAULTS: dict[World, tuple[str, ...]] = {
    "emoji": ("emoji-owlv2", "emoji-clip-plain", "emoji-lpips"),
    "real": ("owlv2-base", "openai-b16-plain", "lpips-alex"),
}
FOR_SETS: dict[World, tuple[str, ...]] = {
    "emoji": ("emoji-features", "emoji-clip-plain"),
    "real": ("inception", "openai-l14-336-plain"),
}
EMOJI_SIDE = 64  # pixels
REFERENCE = "reference images"  # stands for a method's name


@dataclass(frozen=True)
class Scores:
    """What was scored.

    Attributes:
        table: from `analysis.scoreboard`; empty where no image could be scored.
        sets: a row per method and set metric: FID, KID, CMMD.
        problems: files that could not be read or asked about, and other things to know.
        report: what the scoring did.
    """

    table: pd.DataFrame
    sets: pd.DataFrame
    problems: tuple[Problem, ...]
    report: Report


def score_folders(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    layout: Layout | Literal["auto"] = "auto",
    prompts: Path | None = None,
    keys: Sequence[str] = (),
    world: World | None = None,
    baseline: str | None = None,
    reference: Path | None = None,
    allow_missing: bool = False,
    workers: int = 2,
    device: str | torch.device = "cpu",
    download: bool = False,
    console: Console | None = None,
) -> Scores:
    """Score folders of images, one per method, and compare them with the first.

    Args:
        folders: of images in one of the layouts of `metrics.layouts`; or traces, whose images are scored.
        out: file of the scores; one that is there is added to.
        layout: of the folders.
        prompts: a prompt file for all folders, in place of one in each.
        keys: of registered protocols; none for the world's defaults.
        world: of the images; None to take images of 64 pixels for the emoji world's.
        baseline: name of the method that others are compared with; None for the first folder's.
        reference: folder of images that sets are compared with by FID, KID and CMMD.
        allow_missing: where images are missing compare each method with the baseline on those that both have.
        workers: threads that read files ahead.
        device: where models run.
        download: fetch checkpoints that are not on this machine.
        console: where progress goes.

    Raises:
        ValueError: a folder is none or cannot be read, a key is unknown, or worlds are mixed.
        Unbalanced: methods lack pictures that others have, with the list of them; all that can be scored has been, and
            is kept.
        FileNotFoundError: a checkpoint is not on this machine; says what to download.
    """
    console = console or Console()
    pictures, problems = _read([Path(folder) for folder in folders], layout, prompts)
    methods = list(dict.fromkeys(picture.method for picture in pictures))
    first = baseline or methods[0]
    if first not in methods:
        raise ValueError(f"baseline must be one of {', '.join(methods)}, got {first!r}")
    chosen = chosen_protocols(keys, world or world_of(pictures), sets=reference is not None)
    references = reference_pictures(reference) if reference else []
    options = {"workers": workers, "device": device, "download": download}
    with Store.create(out) as store:
        report = score_pictures(store, pictures, chosen, first, console, options)
        sets = pd.DataFrame()
        if references:
            of_sets = [one for one in report.protocols if compares_sets(one)]
            seen = score_pictures(store, references, of_sets, first, console, options)
            problems += seen.problems
            sets = set_rows(store, pictures, references, of_sets)
        values = picture_values(store, report.protocols, methods, first)
    table = _board(values, methods, first, allow_missing) if len(values) else pd.DataFrame()
    return Scores(table, sets, (*problems, *report.problems), report)


def _board(values: pd.DataFrame, methods: Sequence[str], baseline: str, allow_missing: bool) -> pd.DataFrame:
    absent = lacking(values, methods, baseline)
    if absent and not allow_missing:
        raise unbalanced(absent)
    return pairwise(values, methods, baseline) if absent else scoreboard(cells(values, methods, baseline), baseline)


def chosen_protocols(keys: Sequence[str], world: World, sets: bool = False) -> list[Protocol]:
    """Return registered protocols by their keys, a world's defaults where none is given; with those for sets.

    Raises:
        ValueError: a key is unknown, or of the other world.
    """
    known = known_protocols() | {one.key: one for one in map(tasks_protocol, ("emoji", "real"))}
    wanted = [*(keys or DEFAULTS[world])]
    if sets and not set(keys) & set(FOR_SETS[world]):
        wanted += FOR_SETS[world]
    if unknown := [key for key in wanted if key not in known]:
        raise ValueError(f"protocol must be one of {', '.join(known)}, got {unknown[0]!r}")
    chosen = [known[key] for key in dict.fromkeys(wanted)]
    if strangers := [one.key for one in chosen if one.world != world]:
        raise ValueError(
            f"protocols must be of the {world} world, got {', '.join(strangers)}; say --world to change it"
        )
    return chosen


def compares_sets(protocol: Protocol) -> TypeGuard[FeatureProtocol | ClipProtocol]:
    """Return whether sets are compared by a protocol: any features, but only CMMD's own CLIP."""
    if isinstance(protocol, ClipProtocol):
        return protocol.key in FOR_SETS[protocol.world]
    return isinstance(protocol, FeatureProtocol)


def world_of(pictures: Sequence[Picture]) -> World:
    """Return "emoji" if the first image that can be read has the emoji world's size, else "real"."""
    for picture in pictures:
        try:
            with Image.open(picture.path) as image:
                return "emoji" if image.size == (EMOJI_SIDE, EMOJI_SIDE) else "real"
        except Exception:  # whatever a broken file makes of Pillow; scoring says why it cannot be read
            continue
    return "real"


def reference_pictures(folder: Path) -> list[Picture]:
    """Return the images of a folder and its folders, of which nothing else is known; hidden files are none.

    Raises:
        ValueError: there is no image.
    """
    files = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.name[0] != ".")
    paths = sorted(path for path in files if path.is_file())
    if not paths:
        raise ValueError(f"{folder} must hold images, got none")
    return [Picture(path, "", None, REFERENCE, str(path.relative_to(folder))) for path in paths]


def _read(
    folders: Sequence[Path], layout: Layout | Literal["auto"], prompts: Path | None
) -> tuple[list[Picture], list[Problem]]:
    pictures: list[Picture] = []
    problems: list[Problem] = []
    for folder in folders:
        if folder.is_file():
            with Store.open(folder) as trace:
                pictures += pictures_of(trace)
            continue
        read = read_folder(folder, layout, prompts)
        pictures += read.pictures
        problems += read.problems
    if not pictures:
        raise ValueError(f"{', '.join(map(str, folders))} must hold images, got none")
    return pictures, problems


def score_pictures(
    store: Store,
    pictures: Sequence[Picture],
    chosen: Sequence[Protocol],
    baseline: str,
    console: Console,
    options: Mapping[str, Any],
) -> Report:
    """Score pictures with a bar that says how far it is; `options` are those of `metrics.scoring.score`."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"scoring {pictures[0].method}"[:30], total=len(pictures))
        return score(
            store,
            pictures,
            chosen,
            baseline=baseline,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            **options,
        )


def set_rows(
    store: Store,
    pictures: Sequence[Picture],
    references: Sequence[Picture],
    chosen: Sequence[FeatureProtocol | ClipProtocol],
) -> pd.DataFrame:
    """Return a row per method and set metric; all pictures have been scored under the protocols."""
    known = pictures_in(store)

    def shas(of: Sequence[Picture]) -> list[str]:
        rows = [known[local_path(store, one.path), one.method] for one in of]
        return [row.image_sha256 for row in rows if row.image_sha256]

    there = shas(references)
    rows: list[dict[str, object]] = []
    for method in dict.fromkeys(picture.method for picture in pictures):
        mine = shas([one for one in pictures if one.method == method])
        for protocol in chosen:
            rows += [{"method": method, **asdict(row)} for row in score_set(store, mine, there, protocol)]
    return pd.DataFrame(rows)
