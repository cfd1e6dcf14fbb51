"""How any folder of pictures is written: names that every file system takes, whole folders, nothing lost on the way."""

import hashlib
import re
import secrets
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from metrics.decoding import decode
from metrics.pictures import Picture
from tracer.prompts import Prompt

LONGEST_NAME = 200  # bytes of 255, which leaves room for what users append
_DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))}
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')


def folder_names(prompts: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """Return each prompt's folder: itself where every file system takes it and tells it from the others.

    File systems may take "A" for "a", and a letter with an accent for the letter and the accent.
    """
    names: dict[str, str] = {}
    taken = set(reserved)
    for prompt in prompts:
        if prompt in names:
            continue
        hashed = hashlib.sha256(prompt.encode()).hexdigest()
        candidates = [prompt] if _is_safe(prompt) else []
        candidates += [f"{_beginning(prompt)}-{hashed[:length]}" for length in (8, 16, 64)]
        names[prompt] = next(name for name in candidates if _seen_as(name) not in taken)
        taken.add(_seen_as(names[prompt]))
    return names


def _is_safe(name: str) -> bool:
    short = 0 < len(name.encode()) <= LONGEST_NAME
    ends = name.strip() == name and name[:1] != "." and name[-1:] != "."
    plain = not _FORBIDDEN.search(name) and name.isprintable() and unicodedata.is_normalized("NFC", name)
    return short and ends and plain and name.split(".")[0].strip().lower() not in _DEVICES


def _seen_as(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _beginning(prompt: str) -> str:
    words = re.findall(r"[a-z0-9]+", unicodedata.normalize("NFKD", prompt[:200]).lower())
    return "-".join(words)[:60].rstrip("-") or "prompt"


@contextmanager
def whole_folder(root: Path) -> Iterator[Path]:
    """Yield a folder beside `root` that takes its place when the block ends well, and is gone if it does not."""
    final = root.resolve()
    if final.exists() and not (final.is_dir() and not any(final.iterdir())):
        raise ValueError(f"root must be a new or an empty folder, got {root}")
    partial = final.parent / f".{secrets.token_hex(8)}.partial"
    partial.mkdir(parents=True)
    try:
        yield partial
        if final.exists():
            final.rmdir()
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def grouped(pictures: Sequence[Picture], name: Callable[[Picture], str]) -> list[list[Picture]]:
    """Return the pictures of each folder, `name` telling which belong together.

    Raises:
        ValueError: there is no picture or more than one method, an id has two prompts, a prompt two lists of targets,
            or a seed is negative or comes twice.
    """
    methods = sorted({picture.method for picture in pictures})
    if len(methods) != 1:
        raise ValueError(f"pictures must be of one method, got {', '.join(methods) or 'no picture'}")
    groups: dict[str, list[Picture]] = defaultdict(list)
    texts: dict[str, str] = {}
    for picture in pictures:
        groups[name(picture)].append(picture)
        if texts.setdefault(picture.prompt_id, picture.prompt) != picture.prompt:
            raise ValueError(f"prompt_id must stand for one prompt, got {picture.prompt_id!r} for two")
    for group in groups.values():
        first, seeds = group[0], {}
        for picture in group:
            if picture.targets != first.targets:
                raise ValueError(f"targets must be one prompt's, got others for {first.path} than {picture.path}")
            if picture.seed is not None and seeds.setdefault(picture.seed, picture) is not picture:
                raise ValueError(f"seed must be unique, got {seeds[picture.seed].path} and {picture.path}")
            if picture.seed is not None and picture.seed < 0:
                raise ValueError(f"seed must not be negative, got {picture.seed} of {picture.path}")
    return list(groups.values())


def numbered(group: Sequence[Picture]) -> list[tuple[Picture, int]]:
    """Return a prompt's pictures with their seeds, in order; one without a seed gets the lowest free number."""
    taken = {picture.seed for picture in group}
    free = (number for number in count() if number not in taken)
    pairs = [(picture, next(free) if picture.seed is None else picture.seed) for picture in group]
    return sorted(pairs, key=lambda pair: pair[1])


def copied(picture: Picture, folder: Path, name: str, suffixes: Sequence[str]) -> str:
    """Copy an image file into a folder, as PNG if its kind is not among the suffixes, and return its new name.

    Raises:
        FileNotFoundError: the image is not there.
        BadImage: it must be rewritten and cannot be read.
    """
    suffix = picture.path.suffix.lower().replace("jpeg", "jpg")
    if suffix in suffixes:
        shutil.copyfile(picture.path, folder / f"{name}{suffix}")
        return f"{name}{suffix}"
    decode(picture.path).image.save(folder / f"{name}.png")
    return f"{name}.png"


def prompts_of(groups: Iterable[Sequence[Picture]]) -> tuple[Prompt, ...]:
    """Return the prompts of pictures, each id once."""
    pictures = {picture.prompt_id: picture for group in groups for picture in group}
    return tuple(
        Prompt(picture.prompt_id, picture.prompt, picture.targets, str(picture.metadata.get("source", "")))
        for picture in pictures.values()
    )
