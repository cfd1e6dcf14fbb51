"""Prompts with their target words, and the Attend-and-Excite benchmark's templates.

Conventions: a target is written as `tracer.words` reads it; a prompt's id is stable and unique in its
file; files are JSON Lines, one prompt a line, UTF-8.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from tracer.folders import shipped
from tracer.scenes import ANIMALS, COLOURS, OBJECTS, WORN, article

TEMPLATES = "attend-and-excite-templates"
COLOUR_SEED = 2301_13826
_FIELDS = {"id", "text", "targets", "source"}


@dataclass(frozen=True)
class Prompt:
    """A text for the model, the words in it that the image must show, and where it comes from."""

    id: str
    text: str
    targets: tuple[str, ...]
    source: str


def load_prompts(path: Path | str) -> tuple[Prompt, ...]:
    """Return the prompts of a JSON Lines file, or of one of ``data/prompts`` by its bare name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no prompt, or two prompts have the same id.
    """
    path = Path(path)
    if not path.exists() and path.name == str(path) and not path.suffix:
        path = shipped("prompts") / f"{path}.jsonl"
    prompts: dict[str, Prompt] = {}
    lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would split within a text, at U+0085
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompt = _parsed(line, f"{path.name}, line {number}")
            if prompt.id in prompts:
                raise ValueError(f"{path.name}, line {number}: an id must be unique, got {prompt.id!r} again")
            prompts[prompt.id] = prompt
    return tuple(prompts.values())


def save_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write prompts as JSON Lines, as `load_prompts` reads them."""
    lines = [json.dumps(asdict(prompt), ensure_ascii=False) for prompt in prompts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def attend_and_excite_templates(seed: int = COLOUR_SEED) -> tuple[Prompt, ...]:
    """Return the benchmark's 276 prompts: 66 "animals", 144 "animals_objects", 66 "objects".

    The nouns and templates are the benchmark's; the colours, of which it holds one frozen draw, are our
    own draw, so 102 of the texts are the benchmark's word for word and 174 differ in their colours.

    Source: Attend-and-Excite (arXiv 2301.13826), section 5; "a" mended to "an" where it must be.

    Args:
        seed: of the colours.
    """
    rng = np.random.default_rng(seed)
    texts = {"animals": [], "animals_objects": [], "objects": []}
    for first, second in combinations(ANIMALS, 2):
        texts["animals"].append((f"{article(first)} and {article(second)}", (first, second)))
    for animal in ANIMALS:
        for thing in OBJECTS:
            worn = thing in WORN
            phrase = article(thing if worn else _coloured(rng, thing))
            text = f"{article(animal)} {'with' if worn else 'and'} {phrase}"
            texts["animals_objects"].append((text, (animal, thing)))
    for first, second in combinations(OBJECTS, 2):
        text = " and ".join(article(_coloured(rng, thing)) for thing in (first, second))
        texts["objects"].append((text, (first, second)))
    return tuple(
        Prompt(f"{kind}-{number:03}", text, targets, TEMPLATES)
        for kind, entries in texts.items()
        for number, (text, targets) in enumerate(entries)
    )


def _coloured(rng: np.random.Generator, thing: str) -> str:
    return f"{list(COLOURS)[rng.integers(len(COLOURS))]} {thing}"


def _parsed(line: str, where: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: a line must be one JSON object, got {line!r} ({error})") from None
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise ValueError(f"{where}: a prompt must have the fields {', '.join(sorted(_FIELDS))}, got {line}")
    targets = entry.pop("targets")
    texts = [*targets, *entry.values()] if isinstance(targets, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: targets must be a list of strings and the rest strings, got {line}")
    return Prompt(targets=tuple(targets), **entry)
