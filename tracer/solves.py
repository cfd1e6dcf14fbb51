"""What the optimisation behind an edit did, on its way to the table ``solves``: one row per image, layer and head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped
from torch import Tensor

# The columns beside the keys. loss_start, loss_kept: at the first iterate and at the kept one; coverage, proportion,
# deviation: the latter's terms, with their weights; distance: ||A' - A|| of the optimum; kept: which iterate it was.
COLUMNS = ("loss_start", "loss_kept", "coverage", "proportion", "deviation", "distance", "kept")


@dataclass(frozen=True)
class Solved:
    """The optimisations of one layer in one pass, one per image and head.

    Attributes:
        layer: the site's number.
        samples: numbers of the images.
        columns: by name, see `COLUMNS`.
    """

    layer: int
    samples: tuple[int, ...]
    columns: Mapping[str, Shaped[Tensor, "sample head"]]

    def on_cpu(self) -> "Solved":
        """Return the same on the CPU; from CUDA the copies may be under way until an event says otherwise."""
        moved = {name: column.to("cpu", non_blocking=column.is_cuda) for name, column in self.columns.items()}
        return replace(self, columns=moved)


def solves_table(call: int, solved: Sequence[Solved]) -> pa.Table:
    """Return the rows of ``solves`` of one pass."""
    return pa.concat_tables([_table(call, part) for part in solved]) if solved else pa.table({})


def _table(call: int, part: Solved) -> pa.Table:
    shape = part.columns["kept"].shape
    sample, head = (place.ravel() for place in np.indices(shape))
    keys = {
        "sample": np.asarray(part.samples, np.uint16)[sample],
        "call": np.full(len(sample), call, np.uint16),
        "layer": np.full(len(sample), part.layer, np.uint16),
        "head": head.astype(np.uint16),
    }
    return pa.table(keys | {name: part.columns[name].numpy().ravel() for name in COLUMNS})
