"""The numbers of the authors' own solver of attention regulation; tests/golden/README.md says how they were made."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

FILE = Path(__file__).resolve().parent.parent / "golden" / "regulation.safetensors"


@dataclass(frozen=True)
class Step:
    """One denoising step of one image at one site; float64 arithmetic, kept as float32 but for `losses`.

    Attributes:
        scores: "head pixel token", scaled, before the softmax.
        theta: "head target kernel", where the descent starts; kernels row-major over (row of centres, column).
        losses: of the evaluations in turn, each a mean over heads; float64.
        losses_float32: the same from a run in float32, as the code was published.
        bias: "head target pixel", S of the best iterate, before memory and decay.
        probs: "head pixel token", edited, with memory and decay; tokens 0 and `end` are as they were.
    """

    scores: Tensor
    theta: Tensor
    losses: Tensor
    losses_float32: Tensor
    bias: Tensor
    probs: Tensor


FIELDS = tuple(field.name for field in fields(Step))


@dataclass(frozen=True)
class Case:
    """Steps 0, 1, 2, ... of one image: each remembers the optimum of the one before."""

    name: str
    height: int
    width: int
    positions: tuple[int, ...]
    end: int
    steps: tuple[Step, ...]


def cases(file: Path = FILE) -> list[Case]:
    """Return all cases of the file.

    Raises:
        ValueError: the file holds none.
    """
    with safe_open(file, "pt") as numbers:
        about = json.loads(numbers.metadata()["about"])
        found = []
        for name, setup in about["cases"].items():
            steps = tuple(
                Step(**{field: numbers.get_tensor(f"{name}/{step}/{field}") for field in FIELDS})
                for step in range(about["steps"])
            )
            size = setup["height"], setup["width"]
            found.append(Case(name, *size, tuple(setup["positions"]), setup["end"], steps))
    if not found or not all(case.steps for case in found):
        raise ValueError(f"a file of golden numbers must hold cases with steps, got {file}")
    return found
