"""Where the prompts of sets come from: files of other projects, the web, the emoji world's words.

Conventions: files are read as their owners publish them, and nothing of them comes with Attnreg. Chance comes from a
numpy generator of an explicit seed. Every error names the file, and where in it.
Sources: Attend-and-Excite (arXiv 2301.13826); MS-COCO captions (arXiv 1504.00325), https://cocodataset.org
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np

from metrics.prompt_tables import template_targets
from regulate.nouns import Words, is_shown, names_something, ruled_nouns, written
from tracer.prompts import Prompt, attend_and_excite_templates
from tracer.scenes import ANIMALS, COLOURS, OBJECTS, WORN, article, sample_words
from tracer.words import places_of

OFFICIAL_URL = "https://github.com/AttendAndExcite/Attend-and-Excite/files/11336216/a.e_prompts.txt"
KINDS = {"animals": 66, "animals_objects": 144, "objects": 66}  # of the benchmark's prompts
MOST_BYTES = 8 * 2**20  # of a file that is fetched
PATIENCE = 30  # seconds without an answer
THREES = (7, 250)  # of DenseDiffusion's prompts, how many have three things; the others have two
MOST_DRAWN = 5000


class Captioned(NamedTuple):
    """A photograph of COCO and one of its captions."""

    image_id: int
    file: str
    caption: str


def fetched(url: str, sha256: str, cache: Path | None = None) -> Path:
    """Return a file of the web in the cache, fetched if it is not there; checked before it is written, and when found.

    Args:
        url: http or https.
        sha256: of the file's bytes, in hexadecimal.
        cache: folder, made if it is not there; None for ``attnreg/prompts`` in the user's own cache folder.

    Raises:
        FileNotFoundError: it cannot be fetched.
        ValueError: the address or the checksum is none, or the file has another checksum or is too large.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"url must begin with http:// or https://, got {url!r}")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    folder = own_cache() if cache is None else cache
    kept = folder / f"{sha256.lower()[:16]}-{PurePosixPath(urlsplit(url).path).name or 'prompts'}"
    if kept.is_file() and hashlib.sha256(kept.read_bytes()).hexdigest() == sha256.lower():
        return kept
    try:
        with urlopen(url, timeout=PATIENCE) as answer:
            content = answer.read(MOST_BYTES + 1)
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f"{url} could not be fetched: {error}. Where there is a network, fetch it and give the file as path="
        ) from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"{url} must have at most {MOST_BYTES:,} bytes, got more; nothing was kept")
    if (met := hashlib.sha256(content).hexdigest()) != sha256.lower():
        raise ValueError(f"{url} must have the SHA-256 {sha256.lower()}, got {met}; nothing was kept")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fetched-", dir=folder) as unfinished:
        whole = Path(unfinished) / "whole"
        whole.write_bytes(content)
        whole.replace(kept)
    return kept


def own_cache() -> Path:
    """Return the folder for prompt files in the user's cache folder, which ``XDG_CACHE_HOME`` names."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnreg" / "prompts"


def benchmark_prompts(path: Path) -> tuple[Prompt, ...]:
    """Return the prompts of a file in the form of Attend-and-Excite's; ids are the kind and a number.

    Args:
        path: JSON, an object of lists ``animals``, ``animals_objects``, ``objects``, of texts, or of objects that have
            theirs under "prompt" as some copies do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another form, or a text is not of the benchmark's templates.
    """
    found = read_json(path)
    if not is_benchmark(found):
        raise ValueError(f"{path} must be a JSON object of the lists {', '.join(KINDS)}, got {str(found)[:80]}")
    prompts: list[Prompt] = []
    for kind in KINDS:
        for number, entry in enumerate(found[kind]):
            text = entry.get("prompt") if isinstance(entry, dict) else entry
            targets = template_targets(text) if isinstance(text, str) else ()
            if not targets:
                raise ValueError(f"{path}, {kind}, {number}: must be a text such as 'a X and a C O', got {entry!r}")
            prompts.append(Prompt(f"{kind}-{number:03}", text, targets, "attend-and-excite"))
    return tuple(prompts)


def is_benchmark(found: object) -> bool:
    """Return whether the content of a JSON file has the form of Attend-and-Excite's prompts."""
    return isinstance(found, dict) and set(found) == set(KINDS) and all(isinstance(v, list) for v in found.values())


def sampled_captions(path: Path, count: int, seed: int) -> list[Captioned]:
    """Return a random sample of COCO's photographs, each with one of its captions, by image id.

    The sample depends on what the file says and on the seed, not on the order in which the file says it; a smaller
    one is a part of a larger one. No two captions are the same: of two photographs that have nothing else to say, the
    one that is drawn later is passed over. White space in captions is evened.

    Args:
        path: such as ``captions_val2014.json``.
        count: photographs, at least 1.
        seed: of the sample, 0 or more.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another form, or has not so many photographs with captions that differ.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"count must be at least 1 and seed 0 or more, got {count} and {seed}")
    files, captions = _coco(path)
    ids = sorted(captions)
    rng = np.random.default_rng(seed)
    order, first = rng.permutation(len(ids)), rng.random(len(ids))
    sample: dict[str, Captioned] = {}
    for place in order:
        own = captions[ids[place]]
        begin = int(first[place] * len(own))
        free = (text for text in own[begin:] + own[:begin] if text.casefold() not in sample)
        if len(sample) < count and (text := next(free, None)) is not None:
            sample[text.casefold()] = Captioned(ids[place], files[ids[place]], text)
    if len(sample) < count:
        raise ValueError(f"count must be at most {len(sample)}, the photographs of {path} to tell apart, got {count}")
    return sorted(sample.values())


def is_coco(found: object) -> bool:
    """Return whether the content of a JSON file has the form of COCO's captions."""
    return isinstance(found, dict) and all(isinstance(found.get(part), list) for part in ("images", "annotations"))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}") from error


def heads_of(caption: str, phrases: Sequence[str]) -> tuple[str, ...]:
    """Return the head noun of each phrase, as `tracer.words` reads targets, in prompt order.

    A phrase describes one thing, so its head is the end of its first run of content words ("a *cat* on a leash"), or,
    where that is joined by a bare "and", of the run behind ("a black and white *cat*"); what no image shows is passed
    over ("a piece of *cake*"). No grammar is asked, so that every installation finds the same. Of phrases that
    are the same, the second means the second place where it stands.

    Args:
        caption: the text as the pipeline gets it.
        phrases: parts of it, whole words; the phrase "" has no head.

    Raises:
        ValueError: a phrase is not in the caption, or has no word that can name a thing.
    """
    words = Words(caption)
    starts: list[int] = []
    taken: set[tuple[int, int]] = set()
    for phrase in filter(None, phrases):
        span = next((place for place in places_of(caption, phrase) if place not in taken), None)
        if span is None:
            raise ValueError(f"phrase {phrase!r} must stand in the prompt, got {caption!r}")
        taken.add(span)
        starts.append(span[0] + _head(caption[slice(*span)]))
    numbers = [next(i for i, (_, end) in enumerate(words.spans) if start < end) for start in starts]
    return tuple(written(words, (number, number)) for number in sorted(set(numbers)))


def drawn_texts(count: int, seed: int) -> dict[str, tuple[str, ...]]:
    """Return texts of the emoji world and what they name; see `analysis.prompts.sets.emoji_layouts`.

    Raises:
        ValueError: count is not 1 to 5,000, or the seed is negative.
    """
    if not 1 <= count <= MOST_DRAWN or seed < 0:
        raise ValueError(f"count must be 1 to {MOST_DRAWN} and seed 0 or more, got {count} and {seed}")
    rng, barred = np.random.default_rng(seed), {prompt.text for prompt in attend_and_excite_templates()}
    drawn: dict[str, tuple[str, ...]] = {}
    while len(drawn) < count:
        threes, of = THREES
        more = (len(drawn) + 1) * threes // of > len(drawn) * threes // of
        words = sample_words(rng, 3 if more else 2, seen_only=False)
        words = tuple(sorted(words, key=lambda word: word in OBJECTS))
        phrases = [article(word if word in ANIMALS else f"{rng.choice(list(COLOURS))} {word}") for word in words]
        first = "with" if words[0] in ANIMALS and words[1] in WORN else "and"
        text = " and ".join((f"{phrases[0]} {first} {phrases[1]}", *phrases[2:]))
        if text not in barred:
            drawn.setdefault(text, words)
    return drawn


def _head(phrase: str) -> int:
    """Return where in a phrase its head noun begins."""
    words = Words(phrase)
    ends = [last for _, last in ruled_nouns(words)]
    shown = [last for last in ends if is_shown(words, (last, last))]
    shown = shown or ends or [n for n, text in enumerate(words.texts) if names_something(text)]
    if not shown:
        raise ValueError(f"a phrase must hold a word that names a thing, got {phrase!r}")
    head, *others = shown
    for other in others:
        if words.after(head) == "and" and all(names_something(text) for text in words.texts[head + 2 : other + 1]):
            head = other
    return words.spans[head][0]


def _coco(path: Path) -> tuple[Mapping[int, str], Mapping[int, list[str]]]:
    """Return the file of every photograph, and its captions in the order of their ids, if it has any."""
    found = read_json(path)
    if not is_coco(found):
        raise ValueError(f"{path} must be a JSON object of the lists images, annotations, got {str(found)[:80]}")
    files: dict[int, str] = {}
    for number, image in enumerate(found["images"]):
        own, file = _fields(image, {"id": int, "file_name": str}, f"{path}, images, {number}")
        if own in files:
            raise ValueError(f"{path}, images, {number}: an id must be unique, got {own} again")
        files[own] = file
    captions: dict[int, list[tuple[int, str]]] = defaultdict(list)
    kinds = {"id": int, "image_id": int, "caption": str}
    for number, annotation in enumerate(found["annotations"]):
        own, image_id, caption = _fields(annotation, kinds, f"{path}, annotations, {number}")
        if image_id not in files:
            raise ValueError(f"{path}, annotations, {number}: image_id must be one of the images, got {image_id}")
        if text := " ".join(caption.split()):
            captions[image_id].append((own, text))
    return files, {image: [text for _, text in sorted(own)] for image, own in captions.items()}


def _fields(entry: Any, kinds: Mapping[str, type], where: str) -> list[Any]:
    values = [entry.get(name) for name in kinds] if isinstance(entry, dict) else [None] * len(kinds)
    if not all(type(value) is kind for value, kind in zip(values, kinds.values(), strict=True)):
        wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
        raise ValueError(f"{where}: must have {wanted}, got {str(entry)[:200]}")
    return values
