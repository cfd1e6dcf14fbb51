"""A person's answers about a sheet of images: read from its file, and stored as verdicts.

Conventions: an answer is yes, no, unsure, or "" for none yet; `analysis/audit.py` says how the images were chosen.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from analysis.audit import FACTS, ITEMS, LABELS, Key, Stratum, rows_of
from tracer.scores import ProtocolRow, ScoreRow, add_protocols, add_scores
from tracer.store import Store

WORDS = ("yes", "no", "unsure")


@dataclass(frozen=True)
class Label:
    """What a person said of one target: yes, no, unsure, or "" for nothing yet."""

    item: int
    image_sha256: str
    target: str
    shown: str


@dataclass(frozen=True)
class Labels:
    """A person's answers, and how the images were drawn that they are about.

    Attributes:
        rows: by item.
        person: who answered.
        protocol: name of the reading whose verdicts were drawn from.
        strata: how many images each stratum has.
    """

    rows: tuple[Label, ...]
    person: str
    protocol: str
    strata: Mapping[Stratum, int]

    @property
    def fingerprint(self) -> str:
        """Under which a person's verdicts are stored, e.g. "person:anna#1f0c2d9a"."""
        said = sorted((row.image_sha256, row.target, row.shown) for row in self.rows)
        return f"person:{self.person}#{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:8]}"

    def by_image(self) -> dict[Key, tuple[str, ...]]:
        """Return the answers of each image, in the order of its sorted targets."""
        items: dict[int, dict[str, str]] = {}
        for row in self.rows:
            items.setdefault(row.item, {})[row.target] = row.shown
        shas = {row.item: row.image_sha256 for row in self.rows}
        return {(shas[item], tuple(sorted(said))): tuple(said[t] for t in sorted(said)) for item, said in items.items()}


def read_labels(path: Path, folder: Path | None = None, person: str = "somebody") -> Labels:
    """Return what a person filled in.

    Args:
        path: the sheet's folder, or a file like its labels.csv.
        folder: of the sheet, if the file does not lie in it.
        person: who answered: letters, digits, "-", "_".

    Raises:
        FileNotFoundError: a file of the sheet is missing.
        ValueError: an item or word is unknown, a target is there twice, nothing is filled in, or a name is odd.
    """
    if not person.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"person must be of letters, digits, - and _, got {person!r}")
    file = path / LABELS if path.is_dir() else path
    folder = folder or file.parent
    shas = {row["item"]: row["image_sha256"] for row in rows_of(folder / ITEMS)}
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    rows: dict[tuple[int, str], Label] = {}
    for line, row in enumerate(rows_of(file), 2):
        item, target, shown = (str(row.get(name) or "").strip() for name in ("item", "target", "shown"))
        shown = shown.lower()
        where = f"{file.name}, line {line}:"
        if item not in shas:
            raise ValueError(f"{where} item must be one of {ITEMS}, 1 to {len(shas)}, got {item!r}")
        if shown not in (*WORDS, ""):
            raise ValueError(f"{where} shown must be {', '.join(WORDS)} or empty, got {shown!r}")
        if (int(item), target) in rows:
            raise ValueError(f"{where} a target must be there once, got {target!r} of item {item} twice")
        rows[int(item), target] = Label(int(item), shas[item], target, shown)
    if not any(row.shown for row in rows.values()):
        raise ValueError(f"{file} must hold at least one answer in its column shown, got none")
    strata = {(one["method"], one["complete"]): one["images"] for one in facts["strata"]}
    return Labels(tuple(rows[key] for key in sorted(rows)), person, facts["protocol"], strata)


def add_labels(store: Store, labels: Labels) -> str:
    """Write a person's verdicts beside the detector's, and return the protocol that the view `verdicts` has them under.

    An image counts by all its targets together, so one of which a target is unsure or not answered is left out.

    Raises:
        ValueError: the store does not know the reading that the images were drawn by.
    """
    worlds = store.sql("SELECT world FROM protocols JOIN readings USING (protocol) WHERE name = ?", [labels.protocol])
    if worlds.empty:
        raise ValueError(f"the store must know what {labels.protocol} stands for, got nothing of it")
    facts = {"person": labels.person, "drawn_by": labels.protocol}
    row = ProtocolRow(labels.fingerprint, "Person", worlds["world"].iat[0], facts, {})
    scores = [
        ScoreRow(sha256, row.protocol, "found", float(word == "yes"), target, ", ".join(targets))
        for (sha256, targets), shown in labels.by_image().items()
        for target, word in zip(targets, shown, strict=True)
        if all(each in ("yes", "no") for each in shown)
    ]
    add_protocols(store, [row])
    add_scores(store, scores, replace=True)
    return row.protocol
