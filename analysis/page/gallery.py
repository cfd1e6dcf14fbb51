"""All images of a run side by side: what the gallery of a run's page shows.

Conventions:
    A row of the gallery is a prompt and a seed, and has an image per method. Rows follow the order in which sets and
    prompts first come among the entries, then the seed.
    Boxes are (left, top, right, bottom) in pixels of the image.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tracer.store import Store

Box = tuple[float, float, float, float]
Row = tuple[str, str, str, int | None]  # set, prompt's id, prompt, seed

# One row per picture; its verdicts as JSON, in the order of its targets.
_PICTURES = """
SELECT coalesce(p.prompt_id, ''), coalesce(p.prompt, ''), coalesce(p.tag, ''), p.seed, p.method, p.path,
       (SELECT json_group_array(json_array(v.target, v.found, v.score, v.box))
        FROM (FROM verdicts v WHERE v.image_sha256 = p.image_sha256 AND v.protocol = $protocol
              AND v.against = array_to_string(list_sort(p.targets), ', ')
              ORDER BY list_position(p.targets, v.target)) v)
FROM pictures p WHERE list_contains($methods, p.method) AND p.error IS NULL
ORDER BY p.prompt_id, p.prompt, p.seed, p.path"""


@dataclass(frozen=True)
class Verdict:
    """What the detector says of one target in one image.

    Attributes:
        target: the thing asked for.
        found: whether it counts as found.
        score: the detector's.
        box: its best box for the target, None if it has none.
    """

    target: str
    found: bool
    score: float | None = None
    box: Box | None = None


@dataclass(frozen=True)
class Entry:
    """An image of the gallery.

    Attributes:
        prompt_set: the set's display name.
        prompt_id: the prompt's id in its set.
        prompt: its text.
        kind: the kind of prompt, such as "animals-objects"; "" if there are none.
        seed: of the image.
        method: that made it.
        image: its file.
        verdicts: one for each target, none if nothing was asked of the detector.
    """

    prompt_set: str
    prompt_id: str
    prompt: str
    kind: str
    seed: int | None
    method: str
    image: Path
    verdicts: tuple[Verdict, ...] = ()

    @property
    def row(self) -> Row:
        """The row of the gallery that it belongs to."""
        return self.prompt_set, self.prompt_id, self.prompt, self.seed


@dataclass(frozen=True)
class Gallery:
    """The images of a run.

    Attributes:
        entries: at most one for each set, prompt, seed and method.
        methods: in the order of the page.
        baseline: the method that the others are held against.
        names: display names of methods, for those that have one.
        not_applicable: a set's methods that cannot be used on it.
        folder: where the page will lie; images that are not shown as they are link from there to their files.
        of: how many images there are, if these are some of them; 0 if they are all.
    """

    entries: tuple[Entry, ...]
    methods: tuple[str, ...]
    baseline: str = "plain"
    names: Mapping[str, str] = field(default_factory=dict)
    not_applicable: Mapping[str, Collection[str]] = field(default_factory=dict)
    folder: Path | None = None
    of: int = 0

    def __post_init__(self) -> None:
        """Check that every image has one place.

        Raises:
            ValueError: there is no image, a method is not listed, or two images have the same place.
        """
        if not self.entries:
            raise ValueError("entries must hold at least one image, got none; a page may go without a gallery")
        if unknown := ({entry.method for entry in self.entries} | {self.baseline}) - set(self.methods):
            raise ValueError(f"methods must name all methods of the images and the baseline, got no {min(unknown)!r}")
        places: set[tuple[Row, str]] = set()
        for entry in self.entries:
            if (entry.row, entry.method) in places:
                raise ValueError(f"entries must have one image of a place, got two of {entry.method}, {entry.row}")
            places.add((entry.row, entry.method))

    def rows(self) -> dict[Row, dict[str, Entry]]:
        """Return the rows in order, each with its images by method."""
        rows: dict[Row, dict[str, Entry]] = {}
        for entry in self.entries:
            rows.setdefault(entry.row, {})[entry.method] = entry
        sets = {prompt_set: place for place, prompt_set in enumerate(dict.fromkeys(row[0] for row in rows))}
        prompts = {prompt: place for place, prompt in enumerate(dict.fromkeys(row[:3] for row in rows))}
        order = sorted(rows, key=lambda row: (sets[row[0]], prompts[row[:3]], -1 if row[3] is None else row[3]))
        return {row: rows[row] for row in order}


def entries_of(store: Store, protocol_name: str, prompt_set: str, methods: Sequence[str]) -> list[Entry]:
    """Return the scored pictures of a store, with a reading's verdicts on those that have them.

    Args:
        store: with scored pictures, whose paths are relative to its folder.
        protocol_name: of a reading.
        prompt_set: the display name of the set that the prompts are of.
        methods: whose pictures.
    """
    with closing(store.cursor()) as cursor:
        rows = cursor.execute(_PICTURES, {"protocol": protocol_name, "methods": list(methods)}).fetchall()
    folder = store.path.resolve().parent
    return [
        Entry(prompt_set, prompt_id, prompt, kind, seed, method, folder / path, _verdicts(said))
        for prompt_id, prompt, kind, seed, method, path, said in rows
    ]


def _verdicts(said: str | None) -> tuple[Verdict, ...]:
    verdicts = json.loads(said or "[]")
    return tuple(Verdict(name, found, score, tuple(box) if box else None) for name, found, score, box in verdicts)
