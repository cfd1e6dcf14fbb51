"""Scoring images: what is planned minus what is done, batch by batch, into one store.

    with Store.create("scores.duckdb") as store:
        report = score(store, read_folder("images").pictures, [known_protocols()["emoji-owlv2"]])

Conventions: work is done in batches that depend on the pictures alone, and each is written in one transaction. So a
scoring that was killed goes on where it was, and ends with the same bits. A picture that cannot be read or asked
about is a problem that names its file; the rest is scored.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from metrics.evaluator import Evaluator, Item
from metrics.evaluators import evaluator
from metrics.pictures import Picture, Problem
from metrics.protocols import DetectionProtocol, Protocol, installed
from metrics.shelf import Entry, batches, entries_of, opened
from tracer.scores import ProtocolRow, ReadingRow, Written, add_protocols, write
from tracer.store import Store

PIXELS = 2**23  # of the pictures in a transaction: 32 of 512 pixels a side
MOST = 256  # pictures in a transaction
Progress = Callable[[int, int], None]  # pictures done, and all


@dataclass(frozen=True)
class Report:
    """What a scoring did.

    Attributes:
        pictures: how many were asked for.
        worked: how many of them were read in this call; the rest was known.
        problems: what could not be read or asked about, and why.
        protocols: under which the scores are stored, with the hashes of the weights.
    """

    pictures: int
    worked: int
    problems: tuple[Problem, ...]
    protocols: tuple[Protocol, ...]


def score(
    store: Store,
    pictures: Sequence[Picture],
    protocols: Sequence[Protocol],
    *,
    baseline: str | None = "plain",
    workers: int = 2,
    device: str | torch.device = "cpu",
    download: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Score pictures under some protocols, as far as the store has no scores of them yet.

    Args:
        store: open for writing.
        pictures: of any methods; all different files.
        protocols: of images or of features; at least one.
        baseline: the method whose picture of the same prompt and seed LPIPS compares with.
        workers: threads that read files ahead.
        device: where models run.
        download: fetch checkpoints that are not on this machine.
        progress: called at the start and after every batch.

    Raises:
        FileNotFoundError: a checkpoint is not on this machine; nothing is written then.
        ValueError: no picture or protocol, a file twice, or a checkpoint is another one than its protocol says.
    """
    _check(pictures, protocols)
    evaluators = [evaluator(protocol, device, download) for protocol in protocols]
    note(store, [one.protocol for one in evaluators])
    entries = entries_of(store, pictures, baseline)
    parts, done = batches(entries, PIXELS, MOST), {one.fingerprint: one.done(store) for one in evaluators}
    left = [not all(_finished(entry, evaluators, done) for entry in part) for part in parts]
    waiting = [part for part, something in zip(parts, left, strict=True) if something]
    problems = [_unread(e) for part, more in zip(parts, left, strict=True) if not more for e in part if e.row.error]
    finished = len(entries) - sum(map(len, waiting))
    reads = [any(_reads(entry, evaluators, done) for entry in part) for part in waiting]
    if progress:
        progress(finished, len(entries))
    with ThreadPoolExecutor(1) as writer:  # a batch is written while the next one is looked at, and no later
        pending = writer.submit(int)
        for part in opened(waiting, reads, workers):
            written, said = _work(part, evaluators, done)
            pending.result()
            pending = writer.submit(write, store, written)
            problems += said
            finished += len(part)
            if progress:
                progress(finished, len(entries))
        pending.result()
    worked = sum(map(len, waiting))
    return Report(len(entries), worked, tuple(problems), tuple(one.protocol for one in evaluators))


def note(store: Store, protocols: Sequence[Protocol]) -> None:
    """Write what protocols stand for, and how detections are read under them."""
    rows = [
        ProtocolRow(
            one.fingerprint,
            type(one).__name__,
            one.world,
            one.facts,
            {library: installed(library) for library in one.LIBRARIES},
        )
        for one in protocols
    ]
    readings = [
        ReadingRow(one.name, one.fingerprint, one.threshold, one.assignment)
        for one in protocols
        if isinstance(one, DetectionProtocol)
    ]
    known = store.sql("SELECT protocol AS name FROM protocols UNION ALL SELECT name FROM readings")["name"]
    if not {*(row.protocol for row in rows), *(row.name for row in readings)} <= set(known):
        add_protocols(store, rows, readings)


def _check(pictures: Sequence[Picture], protocols: Sequence[Protocol]) -> None:
    if not pictures or not protocols:
        raise ValueError(f"pictures and protocols must be at least one, got {len(pictures)} and {len(protocols)}")
    paths = sorted(os.path.abspath(picture.path) for picture in pictures)
    if twice := [one for one, other in pairwise(paths) if one == other]:
        raise ValueError(f"pictures must be different files, got {twice[0]} twice")


def _finished(entry: Entry, evaluators: Sequence[Evaluator], done: dict[str, set[tuple[str, str]]]) -> bool:
    """Return whether nothing is left to do for a picture."""
    if not entry.known:
        return False
    if entry.row.error:
        return True
    return entry.read and not any(_missing(one, entry.item, done) for one in evaluators)


def _reads(entry: Entry, evaluators: Sequence[Evaluator], done: dict[str, set[tuple[str, str]]]) -> bool:
    """Return whether a picture's pixels are needed for what is left to do."""
    unknown = not entry.read and not (entry.known and entry.row.error)
    return unknown or any(_missing(one, entry.item, done) and one.reads(entry.item) for one in evaluators)


def _missing(one: Evaluator, item: Item, done: dict[str, set[tuple[str, str]]]) -> bool:
    against = one.against(item)
    return against is not None and (item.sha256, against) not in done[one.fingerprint]


def _work(
    part: Sequence[tuple[Entry, Item | None]],
    evaluators: Sequence[Evaluator],
    done: dict[str, set[tuple[str, str]]],
) -> tuple[Written, list[Problem]]:
    """Score one batch; return what is to be written, and what went wrong."""
    problems = [_unread(entry) for entry, item in part if item is None]
    read = [(entry.picture.path, item) for entry, item in part if item is not None]
    rows, vectors = [], {}
    for one in evaluators:
        if not any(_missing(one, item, done) for _, item in read):
            continue
        able, said = _able(one, read)
        problems += said
        if able:
            scored = one.score(able)
            rows += scored.rows
            vectors |= scored.vectors
    return Written(rows, vectors, [entry.row for entry, _ in part]), problems


def _able(one: Evaluator, read: Sequence[tuple[Path, Item]]) -> tuple[list[Item], list[Problem]]:
    """Return the images that an evaluator can score, and what it refuses or remarks."""
    asked = [(path, item, one.refuses(item)) for path, item in read if one.against(item) is not None]
    able = [(path, item) for path, item, reason in asked if not reason]
    remarks = one.remarks([item for _, item in able])
    said = [(path, reason) for path, _, reason in asked if reason]
    said += [(path, remark) for (path, _), remark in zip(able, remarks, strict=True) if remark]
    return [item for _, item in able], [Problem(path, f"{one.fingerprint}: {text}") for path, text in said]


def _unread(entry: Entry) -> Problem:
    return Problem(entry.picture.path, entry.row.error or "could not be read")
