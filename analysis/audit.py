"""A person against the detector: which images somebody looks at, and the sheet that they fill in.

    make_audit(store, Path("audit"), "owlv2-base#1f0c2d9a@0.10,argmax")     # then open audit/index.html
    agreement(store, read_labels(Path("audit")), "owlv2-base#1f0c2d9a@0.10,argmax", np.random.default_rng(0))

Conventions:
    The sheet is blind: neither its page nor its names and order tell an image's method, seed, file or verdict.
    A stratum is a method's images that the detector calls complete (all targets found), or those that it does not.
    Half of the images come from each verdict, spread evenly over the methods, as far as there are. Within a stratum all
    images are equally likely: a comb of even steps, begun at random, goes along them, prompt by prompt, so that prompts
    are as different as they can be without favouring those with few images.
    An image that several methods share (by its pixels and targets) is shown once, and drawn for the first of them.
Source: Madow and Madow, On the theory of systematic sampling, Ann. Math. Statist. 15 (1944).
"""

import base64
import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from analysis.folder import whole_folder
from metrics.decoding import decode
from tracer.pictures import digest
from tracer.store import Store

MAKER = "audit"
SIDE = 512  # pixels on the screen to which a smaller image is enlarged
LABELS, ITEMS, FACTS = "labels.csv", "items.csv", "audit.json"
README = """\
1. Open index.html in a browser. Nothing is sent anywhere: all of it stays on this machine.
2. For each picture say of each word whether the thing is there: yes, no, or cannot tell.
3. Say yes if you recognise the thing, also if it is partly hidden or badly drawn: how fine it is does not matter.
4. Two things melted into one: say yes only to the word that you would call it by, or cannot tell.
5. You may stop at any time; then press "save labels.csv" and put that file into this folder, in place of the empty one.
6. Without the page's buttons: write yes, no or unsure into the column "shown" of labels.csv; do not look at items.csv.
"""

Key = tuple[str, tuple[str, ...]]  # what an image is known by: its SHA-256, and the targets asked of it, sorted
Stratum = tuple[str, bool]  # a method, and whether the detector calls its images complete


@dataclass(frozen=True)
class Judged:
    """A picture of the table, its targets in sorted order, and whether the detector found each."""

    path: str
    method: str
    prompt: str
    image_sha256: str
    targets: tuple[str, ...]
    found: tuple[bool, ...]

    @property
    def stratum(self) -> Stratum:
        """Its method, and whether all targets were found."""
        return self.method, all(self.found)


def make_audit(
    store: Store,
    out: Path,
    protocol_name: str,
    *,
    images: int = 100,
    seed: int = 0,
    methods: Sequence[str] | None = None,
) -> Path:
    """Draw images for a person to look at, and write the folder with the sheet.

    Args:
        store: with scored pictures.
        out: the folder; a former sheet in it is replaced unless somebody has filled it in.
        protocol_name: of a reading, whose verdicts the images are drawn by.
        images: how many, or all if there are fewer.
        seed: of the draw.
        methods: to draw from, None for all.

    Raises:
        ValueError: there are no such verdicts, fewer than two images are asked for, a picture is no longer what was
            scored, or `out` holds labels or anything else than a former sheet.
    """
    for file in sorted(out.glob("*.csv")):
        if any(row.get("shown") for row in rows_of(file)):
            raise ValueError(f"out must hold no labels that would be lost, got {file}; give another folder")
    pictures = judged(store, protocol_name, methods)
    rng = np.random.default_rng(seed)
    chosen = draw(pictures, images, rng)
    targets = [[str(name) for name in rng.permutation(picture.targets)] for picture in chosen]
    shas = [picture.image_sha256 for picture in chosen]
    shown = [_pixels(store, picture) for picture in chosen]
    facts = _facts(pictures, chosen) | {"protocol": protocol_name, "seed": seed, "images_asked_for": images}
    with whole_folder(out, MAKER) as draft:
        (draft / "index.html").write_text(_page(shown, targets, shas), encoding="utf-8")
        asked = [(number, name, "") for number, names in enumerate(targets, 1) for name in names]
        _write(draft / LABELS, ("item", "target", "shown"), asked)
        _write(draft / ITEMS, ("item", "image_sha256"), list(enumerate(shas, 1)))
        (draft / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (draft / "README.txt").write_text(README, encoding="utf-8")
    return out


def judged(store: Store, protocol_name: str, methods: Sequence[str] | None = None) -> list[Judged]:
    """Return the pictures that have verdicts under a reading, with these.

    Args:
        store: with scored pictures.
        protocol_name: the reading's name.
        methods: whose pictures, None for all.

    Raises:
        ValueError: the store has no such reading or method, or no verdict of it.
    """
    with closing(store.cursor()) as cursor:
        known = [row[0] for row in cursor.execute("SELECT name FROM readings ORDER BY name").fetchall()]
        if protocol_name not in known:
            raise ValueError(
                f"protocol_name must be one of {', '.join(known) or 'none that are stored'}, got {protocol_name!r}"
            )
        rows = cursor.execute(
            "SELECT p.path, p.method, any_value(concat(p.prompt_id, ' ', p.prompt)), p.image_sha256, "
            "list(v.target ORDER BY v.target), list(v.found ORDER BY v.target) "
            "FROM pictures p JOIN verdicts v USING (image_sha256) "
            "WHERE v.protocol = ? AND len(p.targets) > 0 AND v.against = array_to_string(list_sort(p.targets), ', ') "
            "GROUP BY p.path, p.method, p.image_sha256 ORDER BY p.path",
            [protocol_name],
        ).fetchall()
    pictures = [Judged(*row[:4], tuple(row[4]), tuple(row[5])) for row in rows]
    there = {picture.method for picture in pictures}
    if unknown := set(methods or ()) - there:
        raise ValueError(f"methods must have verdicts, got none of {', '.join(sorted(unknown))}")
    if not pictures:
        raise ValueError(f"the store must hold verdicts of pictures under {protocol_name}, got none")
    return [picture for picture in pictures if methods is None or picture.method in methods]


def images_of(pictures: Sequence[Judged]) -> dict[Key, list[Judged]]:
    """Return the different images, each with the pictures that show it, the first method's first."""
    images: dict[Key, list[Judged]] = {}
    for picture in sorted(pictures, key=lambda one: (one.method, one.path)):
        images.setdefault((picture.image_sha256, picture.targets), []).append(picture)
    return images


def strata_of(images: Mapping[Key, Sequence[Judged]]) -> dict[Stratum, int]:
    """Return how many of the different images each stratum has."""
    return dict(sorted(Counter(same[0].stratum for same in images.values()).items()))


def draw(pictures: Sequence[Judged], images: int, rng: np.random.Generator) -> list[Judged]:
    """Return images to be looked at, in random order; how they are drawn says the module.

    Raises:
        ValueError: fewer than two images are asked for.
    """
    if images < 2:
        raise ValueError(f"images must be at least 2, one of each verdict, got {images}")
    groups: dict[Stratum, list[Judged]] = {}
    for same in images_of(pictures).values():
        groups.setdefault(same[0].stratum, []).append(same[0])
    order = {prompt: rng.random() for prompt in sorted({picture.prompt for picture in pictures})}
    begin, chosen = rng.random(), []
    verdicts = [[groups[s] for s in sorted(groups) if s[1] == verdict] for verdict in (False, True)]
    halves = _spread(images, [sum(map(len, group)) for group in verdicts], rng)
    for strata, half in zip(verdicts, halves, strict=True):
        for members, count in zip(strata, _spread(half, [len(group) for group in strata], rng), strict=True):
            lots = rng.random(len(members))
            ranked = [
                members[i] for i in sorted(range(len(members)), key=lambda i: (order[members[i].prompt], lots[i]))
            ]
            begin = (begin + 1 / len(groups)) % 1  # combs that interlock meet different prompts
            chosen += [ranked[int((tooth + begin) * len(ranked) / count)] for tooth in range(count)]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _spread(total: int, sizes: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Return how many come from each group: one after the other in turn, as long as a group has any."""
    given, turn, left = [0] * len(sizes), rng.permutation(len(sizes)), min(total, sum(sizes))
    while left:
        for group in turn:
            if left and given[group] < sizes[group]:
                given[group], left = given[group] + 1, left - 1
    return given


def _facts(pictures: Sequence[Judged], chosen: Sequence[Judged]) -> dict[str, object]:
    """Return how the images were drawn, but of none what it is."""
    drawn = Counter(picture.stratum for picture in chosen)
    strata = [
        {"method": s[0], "complete": s[1], "images": count, "drawn": drawn[s]}
        for s, count in strata_of(images_of(pictures)).items()
    ]
    return {"pictures": len(pictures), "images_drawn": len(chosen), "strata": strata}


def _pixels(store: Store, picture: Judged) -> Image.Image:
    image = decode(store.path.resolve().parent / picture.path).image
    if digest(image) != picture.image_sha256:
        raise ValueError(f"{picture.path} must be the picture that was scored, got other pixels; score it again")
    return image


def _page(images: Sequence[Image.Image], targets: Sequence[Sequence[str]], shas: Sequence[str]) -> str:
    items = []
    for image, names in zip(images, targets, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(image)).save(buffer, format="PNG")  # anew: a file's metadata may name its maker
        source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        factor = max(1, SIDE // max(image.size))
        items.append({"source": source, "width": image.width * factor, "enlarged": factor > 1, "targets": names})
    environment = Environment(
        loader=PackageLoader("analysis"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sheet = hashlib.sha256(repr((shas, targets)).encode()).hexdigest()[:12]  # a browser keeps answers under this name
    return environment.get_template("audit.html").render(items=items, sheet=sheet, total=sum(map(len, targets)))


def rows_of(file: Path) -> list[dict[str, str]]:
    """Return the rows of a sheet's file.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it has no column "item".
    """
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        rows = list(reader)
        if "item" not in (reader.fieldnames or ()):
            raise ValueError(
                f"{file} must begin with its columns, item first, parted by commas, got {reader.fieldnames}"
            )
        return rows


def _write(file: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines, lineterminator="\n").writerows([columns, *rows])
