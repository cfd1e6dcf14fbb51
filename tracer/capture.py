"""What of a generation is kept: which layers, steps, heads and tokens, and how exactly.

Conventions: layers, steps, tokens and halves are chosen for maps and statistics alike; heads, precision and resolution
concern the maps only, since statistics are taken from the live float32 map of each head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Literal, get_args

from tracer.rows import Branch, CallKind
from tracer.words import Target, Token

Precision = Literal["uint8", "float16", "float32", "none"]
Which = Literal["words", "targets", "all"]


@dataclass(frozen=True)
class Capture:
    """What is kept; the default is every layer, head and step, and every word.

    Attributes:
        layers: patterns of site names (``"up_blocks.1.*"``), or one of them.
        steps: sampling steps from 0 (``range(0, 50, 5)``); None for all.
        heads: "all", their "mean", or numbers.
        tokens: "words" keeps every token of a word, start and end, and the sum of the padding (in joint attention
            also what goes to the image), so that a pixel's row still adds up to one; "targets" only the tokens of
            target words; "all" each token of the sequence.
        precision: "uint8" is 64 levels of the square root between a map's smallest and largest value, off by at most
            1/63 of the largest; "float16" keeps what a half can hold, bit for bit; "float32" everything; "none" no
            map, statistics only.
        resolution: maps higher or wider than this are averaged down to it; None leaves them.
        branches: halves of the batch, "cond" and "uncond" (of the negative prompt).
        kinds: sampling passes, and those of a method's guidance or refinement.
        solves: also what the optimisation behind each edit did (table ``solves``).
    """

    layers: tuple[str, ...] | str = ("*",)
    steps: Sequence[int] | None = None
    heads: Literal["all", "mean"] | Sequence[int] = "all"
    tokens: Which = "words"
    precision: Precision = "uint8"
    resolution: int | None = None
    branches: tuple[Branch, ...] = ("cond",)
    kinds: tuple[CallKind, ...] = ("sample",)
    solves: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("branches", Branch), ("kinds", CallKind)):
            if not getattr(self, name) or set(getattr(self, name)) - set(get_args(allowed)):
                raise ValueError(f"{name} must be of {get_args(allowed)}, at least one, got {getattr(self, name)}")
        for name, allowed in (("precision", Precision), ("tokens", Which)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {get_args(allowed)}, got {getattr(self, name)!r}")
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"resolution must be at least 1 pixel, got {self.resolution}")
        if self.heads not in ("all", "mean"):
            object.__setattr__(self, "heads", _numbers("heads", self.heads))
        if self.steps is not None:
            object.__setattr__(self, "steps", _numbers("steps", self.steps))
        object.__setattr__(self, "layers", (self.layers,) if isinstance(self.layers, str) else tuple(self.layers))

    def sites(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Return which of a model's sites are kept.

        Raises:
            ValueError: none is.
        """
        chosen = tuple(site for site in sites if any(fnmatch(site, pattern) for pattern in self.layers))
        if not chosen:
            raise ValueError(f"no attention site fits layers={self.layers}; the model has {', '.join(sites)}")
        return chosen

    def wants(self, kind: CallKind, step: int) -> bool:
        """Return whether a pass is kept."""
        return kind in self.kinds and (self.steps is None or step in self.steps)

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size in which a map is kept: whole cells are averaged, so that it keeps its shape."""
        if self.resolution is None:
            return height, width
        cell = max(1, -(-max(height, width) // self.resolution))
        return -(-height // cell), -(-width // cell)

    def map_heads(self, heads: int) -> tuple[int | None, ...]:
        """Return the heads of whose maps a layer keeps a row; None stands for the mean of all."""
        if self.precision == "none":
            return ()
        if self.heads == "mean":
            return (None,)
        return tuple(range(heads)) if self.heads == "all" else tuple(h for h in self.heads if int(h) < heads)  # type: ignore[misc]

    def kept(self, tokens: Sequence[Token], targets: Sequence[Target], joint: bool) -> tuple[Token, ...]:
        """Return the tokens of a sequence that are kept, and after them the sums that are.

        Args:
            tokens: the whole sequence.
            targets: of the prompt, where it has any.
            joint: whether pixels attend to the image too.
        """
        if self.tokens == "targets":
            wanted = {position for target in targets for position in target.positions}
            return tuple(token for token in tokens if token.index in wanted)
        image = Token(len(tokens) + 1, None, "[image]", "image", None, None)
        if self.tokens == "all":
            return (*tokens, image) if joint else tuple(tokens)
        kept = [token for token in tokens if token.kind != "pad"]
        if len(kept) < len(tokens):
            kept.append(Token(len(tokens), None, "[padding]", "padsum", None, None))
        return (*kept, image) if joint else tuple(kept)


EVERYTHING = replace(Capture(), tokens="all", precision="float16")


def _numbers(name: str, values: Sequence[int] | str) -> tuple[int, ...]:
    numbers = tuple(values)
    if not numbers or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError(f"{name} must be whole numbers from 0, at least one, got {values!r}")
    return tuple(sorted(set(numbers)))  # type: ignore[arg-type]
