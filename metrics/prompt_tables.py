"""What a prompt file says of the pictures in a folder: which prompts there are, or which prompt each file has.

Conventions:
    A row needs a text. Its columns, all others being kept as they are in `metadata`:
        text      "text" or "prompt"
        id        "id" or "prompt_id"; without one the text is its own id
        file      "file" or "file_name", relative to the folder of pictures
        targets   JSON Lines: a list of strings; CSV: names with ";" between them; or the classes of GenEval's "include"
        seed, method, tag
    Kinds of file: ``.jsonl`` (the form of `tracer.prompts`, GenEval's ``evaluation_metadata.jsonl``, and the
    ``metadata.jsonl`` of Hugging Face's imagefolder), ``.csv`` with a line of headings, and ``.txt``, a prompt a line.
    Targets that a file gives are final, also if it gives none. Only of rows that do not speak of them, prompts of
    the Attend-and-Excite benchmark get theirs by rule.
"""

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracer.folders import shipped
from tracer.scenes import ANIMALS, COLOURS, OBJECTS

FOUND_BY_ITSELF = ("prompts.csv", "prompts.jsonl", "metadata.jsonl", "metadata.csv")
SHORTEST_CUT = 24  # characters that a cut-off prompt must still have to be recognised
_ALIASES = {"prompt": "text", "prompt_id": "id", "file_name": "file"}
_NOUN = rf"an? (?:(?:{'|'.join(COLOURS)}) )?({'|'.join((*ANIMALS, *OBJECTS))})"
_TEMPLATE = re.compile(rf"{_NOUN} (?:and|with) {_NOUN}")


@dataclass(frozen=True)
class Row:
    """A prompt, or a picture if `file` names one; None where the file says nothing."""

    text: str
    id: str
    targets: tuple[str, ...] | None = None
    file: str | None = None
    seed: int | None = None
    method: str | None = None
    tag: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    where: str = ""


class PromptTable:
    """The rows of a prompt file, and ways to find the one that a name means."""

    def __init__(self, rows: Sequence[Row] = (), name: str = ""):
        self.rows, self.name = tuple(rows), name
        self.by_id = {row.id: row for row in rows}
        self._by_text: dict[str, list[Row]] = defaultdict(list)
        self._by_key: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            self._by_text[row.text].append(row)
            self._by_key[key_of(row.text)].append(row)

    def __bool__(self) -> bool:
        """Return whether there is a prompt file with rows."""
        return bool(self.rows)

    @property
    def names_files(self) -> bool:
        """Whether the rows are pictures."""
        return any(row.file is not None for row in self.rows)

    def of_text(self, text: str) -> Row | None:
        """Return the row of a text; of several rows what they agree on, with the text as their id."""
        return _agreed(self._by_text.get(text, ()))

    def match(self, name: str, place: int | None = None) -> Row | None:
        """Return the row whose text a file or folder is named after, None if there is none or more than one.

        The name may be the text, the text with other signs than letters and digits replaced or left out, or the
        beginning of either. Order decides only between texts that the name fits alike.

        Args:
            name: of the folder or file, without seed and suffix.
            place: the row that it should be if pictures were made in the order of the rows.
        """
        if name in self._by_text:
            return self.of_text(name)
        key = key_of(name)
        fitting = list(self._by_key.get(key, ()) if key else ())
        if not fitting and len(name) >= SHORTEST_CUT and key:
            fitting = [row for whole, rows in self._by_key.items() if whole.startswith(key) for row in rows]
        if len({row.text for row in fitting}) > 1 and place is not None and place < len(self.rows):
            fitting = [row for row in fitting if row is self.rows[place]]
        return _agreed(fitting) if len({row.text for row in fitting}) == 1 else None


def read_prompt_table(path: Path) -> PromptTable:
    """Return a prompt file's rows; `path` may be the bare name of one of ``data/prompts``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is of another kind, a row has no text, a field is of a wrong kind, or an id comes twice.
    """
    if not path.exists() and path.name == str(path) and not path.suffix:
        path = shipped("prompts") / f"{path}.jsonl"
    kinds = {".jsonl": _json_rows, ".csv": _csv_rows, ".txt": _text_rows}
    if path.suffix.lower() not in kinds:
        raise ValueError(f"prompts must be a file of {', '.join(kinds)}, got {path}")
    rows = [_row(raw, where) for raw, where in kinds[path.suffix.lower()](path)]
    pictures = any(row.file is not None for row in rows)
    seen: dict[str, Row] = {}
    for row in rows:
        first = seen.setdefault(row.id, row)
        same_prompt = first.text == row.text and (pictures or (row.id == row.text and first.targets == row.targets))
        if first is not row and not same_prompt:
            raise ValueError(f"{row.where}: an id must be unique, got {row.id!r} as in {first.where}")
    return PromptTable(rows if pictures else list(seen.values()), path.name)


def find_prompt_file(root: Path) -> Path | None:
    """Return the prompt file that lies in a folder of pictures, None if there is none.

    Raises:
        ValueError: there are two.
    """
    found = [root / name for name in FOUND_BY_ITSELF if (root / name).is_file()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"{root} must hold one prompt file, got {names}: say which with prompts=")
    return found[0] if found else None


def template_targets(prompt: str) -> tuple[str, ...]:
    """Return the two nouns of a prompt of the Attend-and-Excite benchmark's templates, () for any other prompt.

    Source: Attend-and-Excite (arXiv 2301.13826), section 5: "a X and a Y", "a X with a O", "a C O and a C O".
    """
    match = _TEMPLATE.fullmatch(prompt)
    nouns = match.groups() if match else ()
    return nouns if len(set(nouns)) == 2 else ()


def classes_of(include: object, where: str) -> tuple[str, ...]:
    """Return the classes of GenEval's "include", each once, in its order.

    Raises:
        ValueError: it is no list of objects with a class.
    """
    if not isinstance(include, list):
        raise ValueError(f"{where}: include must be a list, got {include!r}")
    classes = [item.get("class") if isinstance(item, dict) else None for item in include]
    return tuple(dict.fromkeys(_text(name, "an item's class", where) for name in classes))


def key_of(text: str) -> str:
    """Return a text's letters and digits alone, in one case: what survives in a file's name."""
    return "".join(filter(str.isalnum, text.casefold()))


def _agreed(rows: Sequence[Row]) -> Row | None:
    if len(rows) < 2:
        return rows[0] if rows else None
    targets = {row.targets for row in rows}
    return Row(rows[0].text, rows[0].text, targets.pop() if len(targets) == 1 else None)


def _json_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        where = f"{path.name}, line {number}"
        if line.strip():
            try:
                raw = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: a line must be one JSON object, got {line[:80]!r} ({error})") from None
            if not isinstance(raw, dict):
                raise ValueError(f"{where}: a line must be one JSON object, got {line[:80]!r}")
            yield raw, where


def _csv_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for raw in reader:
                where = f"{path.name}, line {reader.line_num}"
                if None in raw or None in raw.values():
                    raise ValueError(f"{where}: a line must have as many fields as the headings, got {raw}")
                yield {name: value for name, value in raw.items() if value or name in ("text", "prompt")}, where
        except csv.Error as error:
            raise ValueError(f"{path.name}, line {reader.line_num}: must be CSV ({error})") from None


def _text_rows(path: Path) -> Iterable[tuple[dict[str, Any], str]]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [({"text": line.rstrip("\r")}, f"{path.name}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]


def _row(raw: dict[str, Any], where: str) -> Row:
    fields = {_ALIASES.get(name, name): value for name, value in raw.items()}
    if len(fields) < len(raw):
        raise ValueError(f"{where}: a column must not come under two names, got {', '.join(raw)}")
    text = _text(fields.pop("text", None), "text", where)
    given = {name: fields.pop(name, None) for name in ("id", "file", "method", "tag")}
    known = {name: _text(value, name, where) for name, value in given.items() if value is not None}
    seed, targets = fields.pop("seed", None), fields.pop("targets", None)
    if targets is None and "include" in fields:
        targets = list(classes_of(fields["include"], where))
    if isinstance(targets, str):
        targets = [name.strip() for name in targets.split(";") if name.strip()]
    if targets is not None and not (isinstance(targets, list) and all(isinstance(name, str) for name in targets)):
        raise ValueError(f"{where}: targets must be a list of strings, got {targets!r}")
    return Row(
        text=text,
        targets=None if targets is None else tuple(targets),
        seed=_seed(seed, where),
        metadata=fields,
        where=where,
        **({"id": text} | known),
    )


def _text(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} must be a string, got {value!r}")
    return value


def _seed(value: object, where: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,30}", value.strip()):
        return int(value)
    raise ValueError(f"{where}: seed must be a whole number, got {value!r}")
