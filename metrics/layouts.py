"""Folders of pictures, in the layouts of other projects, as one list: which prompt, seed and method each has.

Conventions:
    A folder holds one method's pictures. The method is what the files say (SynGen's names, a "method" column), else
    what is asked for, else the folder's name. Pictures are known by (prompt_id, seed, method), and sorted so.
    `prompt_id` is the id in the prompt file; without one GenEval's folder number, else the prompt itself.
    Nothing is decoded here, see ``metrics/decoding.py``. What is skipped is said in `problems`, with the reason.
    Hidden files, and files that are no images, are passed over. Detection has no say in targets: a picture
    without any is kept.
Layouts:
    plain              <prompt_id>_<seed>.png, <prompt_id>/<seed>.png or <prompt_id>.png and a prompt file; or any
                       names, if the file gives them. A prompt file is one of ``metrics/prompt_tables.py``.
    geneval            <number>/metadata.jsonl and <number>/samples/<seed>.png; grid.png is passed over.
    t2i-compbench      samples/<prompt>_<six digits>.png, or the same without samples/. The prompt ends at the last "_",
                       where their own scripts stop at the first. The number runs through the whole folder.
    attend-and-excite  <prompt>/<seed>.png, and <prompt>.png for a grid, which is passed over. A folder's true
                       prompt is looked up in prompts.json ({folder: prompt}), which our writer adds.
    syngen             <prompt>/<model>_<seed>.jpg, the model being the method.
    In the last three a name is the prompt; with a prompt file it is matched with the prompts there, so that signs
    that no file name can hold come back.
Source: djghosh13/geneval ``evaluation/evaluate_images.py``; Karine-Huang/T2I-CompBench
    ``GORS_finetune/inference_eval.py``; yuval-alaluf/Attend-and-Excite ``run.py``;
    RoyiRa/Linguistic-Binding-in-Diffusion-Models ``automatic_evaluation.py``.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from metrics.layout_readers import READERS, Listing, fits
from metrics.pictures import Folder, Layout, Picture, Problem
from metrics.prompt_tables import FOUND_BY_ITSELF, PromptTable, find_prompt_file, read_prompt_table

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
FOLDER_NAMES = "prompts.json"
NO_TARGETS = "no targets: give them in the prompt file"
LOOKED_FOR: dict[Layout, str] = {
    "plain": f"a prompt file (given, or {', '.join(FOUND_BY_ITSELF)}) that names the images, or whose ids they bear",
    "geneval": "<number>/metadata.jsonl with <number>/samples/<number>.png",
    "t2i-compbench": "samples/<prompt>_<six digits>.png",
    "attend-and-excite": "<prompt>/<seed>.png",
    "syngen": "<prompt>/<model>_<seed>.jpg",
}


def read_folder(
    root: Path, layout: Layout | Literal["auto"] = "auto", prompts: Path | None = None, method: str | None = None
) -> Folder:
    """Return the pictures of a folder.

    Args:
        root: one method's folder.
        layout: or "auto" for the one that fits.
        prompts: a prompt file, in place of one in the folder (prompts or metadata, .csv or .jsonl).
        method: of pictures whose files name none; None for the folder's name.

    Raises:
        FileNotFoundError: there is no such prompt file.
        ValueError: there is no such folder, no image or no usable one in it, no layout fits or several do, or a prompt
            file or prompts.json is not of its form.
    """
    if not root.is_dir():
        raise ValueError(f"root must be a folder, got {root}")
    listed = list(_images(root))
    images = tuple(image for image in listed if _is_text(image))
    if not images:
        raise ValueError(f"{root} must hold images ({', '.join(sorted(SUFFIXES))}), got none")
    source = prompts or find_prompt_file(root)
    table = read_prompt_table(source) if source else PromptTable()
    listing = Listing(root, images, table, _folder_names(root))
    chosen = _fitting(listing) if layout == "auto" else layout
    read = tuple(dict.fromkeys(READERS[chosen](listing)))
    pictures = [item for item in read if isinstance(item, Picture)]
    problems = [item for item in read if isinstance(item, Problem)]
    problems += [Problem(root / image, "its name must be UTF-8") for image in listed if not _is_text(image)]
    named = [replace(item, method=item.method or method or root.resolve().name) for item in pictures]
    kept, twice = _without_duplicates(sorted(named, key=_order))
    problems += twice
    if not kept:
        first = "; ".join(f"{problem.path}: {problem.reason}" for problem in problems[:3])
        raise ValueError(f"{root} must hold a picture whose prompt is known, got none as {chosen}: {first}")
    bare = sum(not picture.targets for picture in kept)
    if bare:
        problems.append(Problem(root, f"{bare} of {len(kept)} pictures have {NO_TARGETS}"))
    return Folder(root, chosen, tuple(kept), tuple(problems))


def _fitting(listing: Listing) -> Layout:
    """Return the one layout that the images speak for."""
    if listing.table.names_files:
        return "plain"
    signs: dict[Layout, PurePosixPath] = {}
    for image in listing.images:
        for layout in fits(listing, image):
            signs.setdefault(layout, image)
    if not signs:
        sought = "; ".join(f"{name}: {form}" for name, form in LOOKED_FOR.items())
        raise ValueError(
            f"{listing.root} must be in a known layout, got images such as {listing.images[0]}. Looked for {sought}. "
            "A name of one word is not taken for a prompt: say layout= if it is one"
        )
    if len(signs) > 1:
        found = " and ".join(f"{name} ({image})" for name, image in signs.items())
        raise ValueError(f"{listing.root} must be in one layout, got {found}: say which with layout=")
    return next(iter(signs))


def _images(root: Path) -> Iterator[PurePosixPath]:
    """Yield the images in a folder and its folders, hidden ones left out, in order of their paths."""
    found, been = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in been:  # through a link, which may lead in a ring
            folders.clear()
            continue
        been.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        paths = [Path(folder, name) for name in files if name[0] != "."]
        found += [path for path in paths if path.suffix.lower() in SUFFIXES]
    yield from sorted(PurePosixPath(path.relative_to(root).as_posix()) for path in found)


def _is_text(image: PurePosixPath) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in str(image))  # how Python shows bytes that are no text


def _folder_names(root: Path) -> dict[str, str] | None:
    """Return what prompts.json says of folders, None if it is another project's file of this name."""
    path = root / FOLDER_NAMES
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, {{folder: prompt}}, got {error}") from None
    if not isinstance(names, dict) or not all(isinstance(prompt, str) for prompt in names.values()):
        return None
    return names


def _order(picture: Picture) -> tuple[str, str, bool, int, str]:
    return picture.prompt_id, picture.method, picture.seed is None, picture.seed or 0, str(picture.path)


def _without_duplicates(pictures: list[Picture]) -> tuple[list[Picture], list[Problem]]:
    """Return the first picture of each prompt, seed and method, and a problem for each later one."""
    first: dict[object, Picture] = {}
    twice = []
    for picture in pictures:
        seed = picture.path if picture.seed is None else picture.seed
        kept = first.setdefault((picture.prompt_id, seed, picture.method), picture)
        if kept is not picture:
            same = f"prompt {picture.prompt_id[:60]!r}, seed {picture.seed} and method {picture.method!r}"
            twice.append(Problem(picture.path, f"is a second picture of {same}: {kept.path} is kept"))
    return list(first.values()), twice
