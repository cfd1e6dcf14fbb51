"""What a picture to be measured is: an image file, the prompt it was made from, its seed and method.

Conventions: a picture is known by (prompt_id, seed, method); a prompt has the same prompt_id in every method's folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Layout = Literal["plain", "geneval", "t2i-compbench", "attend-and-excite", "syngen"]


@dataclass(frozen=True)
class Picture:
    """An image file, and what it should show.

    Attributes:
        path: of the file.
        prompt: the text it was made from.
        seed: or the number that stands for it in the layout; None if the prompt file names a file without a seed.
        method: what made it.
        prompt_id: the same for the same prompt in every method's folder.
        targets: the objects that detection looks for; none, and detection is not scored.
        tag: the prompt's kind, e.g. GenEval's "two_object".
        metadata: all else that its files say, as JSON has it: in GenEval's layout the whole of metadata.jsonl.
    """

    path: Path
    prompt: str
    seed: int | None
    method: str
    prompt_id: str
    targets: tuple[str, ...] = ()
    tag: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Problem:
    """A file that was skipped, or something else that its user should know, and the reason."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Folder:
    """What a folder holds."""

    root: Path
    layout: Layout
    pictures: tuple[Picture, ...]
    problems: tuple[Problem, ...] = ()
