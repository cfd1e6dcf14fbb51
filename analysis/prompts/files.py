"""A prompt set, and the sets in files that hold a prompt a line: GenEval's, T2I-CompBench's, and anybody's own.

Conventions: a set's texts are all different, and so are its ids; what is known beside text and targets is kept by the
prompt's text. Columns are those of `metrics.prompt_tables`. Targets are what the file names; where it names none,
"given" leaves it at that (but for prompts of Attend-and-Excite's templates, whose nouns are known) and "auto" takes
the prompt's nouns, see `regulate.nouns`.
Sources: GenEval (arXiv 2310.11513), https://github.com/djghosh13/geneval; T2I-CompBench (arXiv 2307.06350),
https://github.com/Karine-Huang/T2I-CompBench
"""

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metrics.prompt_tables import Row, read_prompt_table, template_targets
from regulate.method import Given
from regulate.nouns import PARSERS, auto_targets
from regulate.structure import parser_used
from tracer.prompts import Prompt
from tracer.words import place_of, places_of

MODES = ("given", "auto")  # of targets


@dataclass(frozen=True)
class PromptSet:
    """Prompts to make images of, and what methods and judges are told of them.

    Attributes:
        name: short, of letters, digits and hyphens; a file's is its stem.
        title: as tables print it.
        prompts: at least one; ids and texts all different.
        given: what methods may know of a prompt, by its text.
        digest: a fingerprint of all that reaches a model or a judge; the order of the prompts does not.
        source: where the prompts are from, for people.
        notes: what a reader of its tables should know.
        tags: a prompt's kind, by its text, as `metrics.pictures.Picture` has it.
        metadata: what else a judge needs, by the prompt's text, as `metrics.pictures.Picture` has it.

    Raises:
        ValueError: there is no prompt, two have one text or one id, a target is not in its prompt or named twice, or
            something is said of a text that is not in the set.
    """

    name: str
    title: str
    prompts: tuple[Prompt, ...]
    given: Mapping[str, Given] = field(default_factory=dict, hash=False)
    digest: str = field(init=False)
    source: str = ""
    notes: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError(f"the set {self.name!r} must hold at least one prompt, got none")
        for what in ("text", "id"):
            twice = _repeated(getattr(prompt, what) for prompt in self.prompts)
            if twice:
                raise ValueError(f"the set {self.name!r} must hold every {what} once, got again: {_some(twice)}")
        for prompt in self.prompts:
            _check_targets(prompt)
        texts = {prompt.text for prompt in self.prompts}
        for known in (self.given, self.tags, self.metadata):
            if strange := [text for text in known if text not in texts]:
                raise ValueError(f"the set {self.name!r} must speak of its own prompts, got {_some(strange)}")
        facts = sorted((prompt.id, self._facts(prompt)) for prompt in self.prompts)
        content = json.dumps(facts, sort_keys=True).encode()
        object.__setattr__(self, "digest", hashlib.blake2b(content, digest_size=8).hexdigest())

    def _facts(self, prompt: Prompt) -> list[Any]:
        given = self.given.get(prompt.text, Given()).digest()
        about = self.tags.get(prompt.text, ""), self.metadata.get(prompt.text, {})
        return [prompt.text, list(prompt.targets), given, about[0], dict(about[1])]


def geneval(path: str | Path) -> PromptSet:
    """Return the prompts of GenEval's ``evaluation_metadata.jsonl``; targets are its classes as the prompts say them.

    Ids are the numbers of GenEval's folders, and the metadata is the whole record, as its scores need it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has no prompt, tag or "include", or a prompt comes twice.
    """
    path = Path(path)
    rows = read_prompt_table(path).rows
    for row in rows:
        if not row.tag or "include" not in row.metadata:
            raise ValueError(f"{row.where}: must have tag and include, as GenEval's lines do, got {row.text!r}")
    numbered = [replace(row, id=f"{number:05}") for number, row in enumerate(rows)]
    made = _of_rows("geneval", f"GenEval ({len(rows)})", numbered, path, "given", "auto")
    whole = {row.text: {"tag": row.tag, "prompt": row.text, **row.metadata} for row in rows}
    return replace(made, metadata=whole)


def compbench(path: str | Path, targets: str = "given", parser: str = "auto") -> PromptSet:
    """Return one of T2I-CompBench's files ``<kind>_val.txt``, whose kind is the tag.

    Args:
        path: of the file, a prompt a line.
        targets: "given" for none, or "auto".
        parser: see `regulate.nouns.auto_targets`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, or an option is unknown.
    """
    path = Path(path)
    kind = path.stem.removesuffix("_val").removesuffix("_train")
    table = read_prompt_table(path).rows
    none = () if targets == "given" else None  # the nouns of a few prompts that are like a template's would mislead
    rows = [replace(row, id=f"{kind}-{n:03}", tag=kind, targets=none) for n, row in enumerate(table)]
    name = f"t2i-compbench-{kind.replace('_', '-')}"
    return _of_rows(name, f"T2I-CompBench, {kind.replace('_', ' ')} ({len(rows)})", rows, path, targets, parser)


def prompt_file(path: str | Path, targets: str = "given", parser: str = "auto") -> PromptSet:
    """Return the prompts of a JSON Lines, CSV or text file, whose columns are those of `metrics.prompt_tables`.

    A prompt without an id gets one that is made of its text, and stays the same wherever it stands.

    Args:
        path: of the file.
        targets: of prompts whose line has none, "given" or "auto".
        parser: see `regulate.nouns.auto_targets`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, a prompt comes twice, a target is not in its prompt, a line has a seed
            or a method, or an option is unknown.
    """
    path = Path(path)
    rows = read_prompt_table(path).rows
    for row in rows:
        if row.seed is not None or row.method is not None:
            raise ValueError(f"{row.where}: a prompt must have no seed and no method of its own, got {row.text!r}")
    named = [replace(row, id=_id_of(row.text)) if row.id == row.text else row for row in rows]
    return _of_rows(path.stem, path.stem, named, path, targets, parser)


def _of_rows(name: str, title: str, rows: Sequence[Row], path: Path, targets: str, parser: str) -> PromptSet:
    """Return the set of a prompt table's rows."""
    _check_once(path)
    found = namer(targets, parser)
    prompts, renamed = [], 0
    for row in rows:
        own = found(row.text) if row.targets is None else tuple(_in_prompt(row.text, name) for name in row.targets)
        renamed += row.targets is not None and own != row.targets
        prompts.append(Prompt(row.id, row.text, own, str(row.metadata.get("source", name))))
    tags = {row.text: row.tag for row in rows if row.tag}
    metadata = {row.text: about for row in rows if (about := _about(row))}
    notes = remarks(prompts, targets, parser)
    notes += (f"{renamed} prompts name a target in the plural; it is written as they do",) if renamed else ()
    return PromptSet(name, title, tuple(prompts), {}, path.name, notes, tags, metadata)


def namer(targets: str, parser: str) -> Callable[[str], tuple[str, ...]]:
    """Return what finds the targets of a prompt whose source names none.

    Raises:
        ValueError: there is no such way or parser.
        ImportError: targets is "auto", parser "spacy", and spaCy or an English model of it is not installed.
    """
    if targets not in MODES:
        raise ValueError(f"targets must be one of {', '.join(MODES)}, got {targets!r}")
    if parser not in PARSERS:
        raise ValueError(f"parser must be one of {', '.join(PARSERS)}, got {parser!r}")
    used = parser_used(parser) if targets == "auto" else ""

    def found(text: str) -> tuple[str, ...]:
        if template_targets(text) or not used:
            return template_targets(text)
        try:
            return auto_targets(text, used)
        except ValueError:  # no noun in it
            return ()

    return found


def remarks(prompts: Sequence[Prompt], targets: str, parser: str) -> tuple[str, ...]:
    """Return what a reader should know of targets that were found, or were not."""
    none = sum(not prompt.targets for prompt in prompts)
    notes = (f"{none} of {len(prompts)} prompts have no targets: detection leaves them out",) if none else ()
    if targets == "auto":
        way = "spaCy" if parser_used(parser) == "spacy" else "a plain rule that knows no grammar"
        notes += (f"targets that the source does not name were found by {way}",)
    return notes


def _about(row: Row) -> dict[str, Any]:
    """Return what else a judge is told of a row."""
    about = {name: value for name, value in row.metadata.items() if name != "source"}
    return about | {"file": row.file} if row.file is not None else about


def _check_once(path: Path) -> None:
    """Refuse a file that holds a prompt twice, which a prompt table takes for one."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            entries: list[Any] = list(csv.DictReader(file))
        else:
            lines = [line.rstrip("\r") for line in file.read().split("\n") if line.strip()]
            entries = [json.loads(line) if path.suffix.lower() == ".jsonl" else {"text": line} for line in lines]
    if twice := _repeated(entry["text"] if "text" in entry else entry["prompt"] for entry in entries):
        raise ValueError(f"{path.name} must hold every prompt once, got again: {_some(twice)}")


def _in_prompt(prompt: str, name: str) -> str:
    """Return the name of a class as the prompt writes it: GenEval's "a photo of two clocks" names the class "clock".

    Source: GenEval, ``prompts/create_prompts.py``, which adds "es" to what ends in "s" and "s" to all else.
    """
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    return plural if not places_of(prompt, name) and places_of(prompt, plural) else name


def _id_of(text: str) -> str:
    words = "-".join(re.findall(r"\w+", text.casefold()))
    return f"{words[:40].rstrip('-')}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}"


def _check_targets(prompt: Prompt) -> None:
    places: dict[tuple[int, int], str] = {}
    for target in prompt.targets:
        try:
            place = place_of(prompt.text, target)
        except ValueError as error:
            raise ValueError(f"prompt {prompt.id!r}, {prompt.text!r}: {error}") from None
        if place in places:
            raise ValueError(
                f"prompt {prompt.id!r}, {prompt.text!r}: a target must be named once, got {target!r} again"
            )
        places[place] = target


def _repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return ", ".join(map(repr, texts[:5])) + more
