"""The rows that describe a trace: what was run, on what, and what one pass of the model recorded.

Conventions: a row names no run, the store numbers runs; ``sample`` counts the images of a run from 0,
``call`` a sample's passes of the model from 0, ``layer`` the recorded sites in execution order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa

from tracer.statistics import is_content
from tracer.words import Target, Token

Branch = Literal["cond", "uncond"]
Phase = Literal["original", "edited"]
CallKind = Literal["sample", "guidance", "refine"]
Status = Literal["done", "failed"]


@dataclass(frozen=True)
class RunRow:
    """One run: a specification, executed once. ``guidance`` is the classifier-free guidance scale."""

    model: str
    spec_hash: str = ""
    pipeline: str = ""
    scheduler: str = ""
    n_steps: int | None = None
    guidance: float | None = None
    height: int | None = None  # of the image, pixels
    width: int | None = None
    dtype: str = ""
    method: str = "plain"
    method_params: Mapping[str, object] = field(default_factory=dict)  # JSON values
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleRow:
    """One image of a run."""

    sample: int
    prompt: str
    seed: int | None = None
    negative: str = ""
    targets: tuple[Target, ...] = ()
    prompt_id: str = ""


@dataclass(frozen=True)
class LayerRow:
    """One attention site: its dotted path in the model, the size of its maps, and of those that are kept."""

    layer: int
    path: str
    h: int
    w: int
    heads: int
    map_h: int | None = None
    map_w: int | None = None
    map_heads: int | None = None  # map rows per token

    @property
    def block(self) -> str:
        """The path's first part, "down_blocks"."""
        return self.path.split(".")[0]

    @property
    def block_idx(self) -> int:
        """The block's number among those of its name; 0 where it is the only one ("mid_block")."""
        number = self.path.split(".")[1:2]
        return int(number[0]) if number and number[0].isdigit() else 0


@dataclass(frozen=True)
class CallRow:
    """One pass of the model for one sample.

    ``halves`` are the branches that its batch held; ``edited`` the layers whose probabilities were replaced.
    """

    sample: int
    call: int
    kind: CallKind
    halves: tuple[Branch, ...]
    step: int
    timestep: float | None = None
    sigma: float | None = None
    wall_ms: float | None = None
    edited: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pass:
    """All that one pass of the model recorded, as the store writes it: in one transaction or not at all."""

    calls: Sequence[CallRow]
    stats: pa.Table
    maps: pa.Table  # no row where none is kept
    layers: Sequence[LayerRow] = ()  # given with a run's first pass only: until then their sizes are not known
    solves: pa.Table = field(default_factory=lambda: pa.table({}))  # no row where none is asked for


def token_rows(
    sample: SampleRow, branch: Branch, tokens: Sequence[Token], kept: Sequence[Token]
) -> list[dict[str, object]]:
    """Return the rows of ``tokens`` of one sample and branch; targets are words of the conditional one.

    Args:
        sample: the image.
        branch: its half of the batch.
        tokens: the prompt's sequence.
        kept: those that are recorded, and the sums that are, which the sequence does not hold.
    """
    targets = sample.targets if branch == "cond" else ()
    targeted = {position for target in targets for position in target.positions}
    recorded = {token.index for token in kept}
    extra = [token for token in kept if token.kind in ("padsum", "image")]
    return [
        {
            "sample": sample.sample,
            "branch": branch,
            "token": token.index,
            "token_id": token.token_id,
            "piece": token.piece,
            "word": token.word,
            "word_idx": token.word_index,
            "kind": token.kind,
            "encoder": token.encoder,
            "is_target": token.index in targeted,
            "is_content": is_content(token.word),
            "is_kept": token.index in recorded,
        }
        for token in [*tokens, *extra]
    ]
