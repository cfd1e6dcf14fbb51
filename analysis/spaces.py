"""What of each method is searched: which fields, over which values.

Conventions: the steps of latent guidance span about two decades around the released ones, other fields what could make
sense of them; layers are the emoji world's, where of two resolutions the 8x8 one is the default. A search of another
model names its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from regulate import Method
from regulate.layers import LAST_DOWN_FIRST_UP, LAST_DOWN_SIZE


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high`, evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool = False


Space = Mapping[str, Range | Mapping[str, object]]  # a field of the method: its range, or its values by name

FINE = ("down_blocks.0.*", "up_blocks.1.*")
EDITED = {"8x8": LAST_DOWN_FIRST_UP, "16x16": FINE, "all": "*"}
SEEN = {"8x8": LAST_DOWN_SIZE, "16x16": FINE}
UNTIL = Range(0.1, 0.6)

REGULATION: Space = {
    "layers": EDITED,
    "step_size": Range(3.0, 200.0, log=True),
    "level": Range(0.3, 0.95),
    "share": Range(0.05, 0.4),
    "proportion": Range(4.0, 400.0, log=True),
    "theta_weight": Range(0.005, 1.0, log=True),
    "until": UNTIL,
    "decay": Range(0.8, 1.0),
}
_STEP, _ONCE = Range(1.0, 100.0, log=True), {"as released": ((0.0, 0.05), (0.2, 0.5), (0.4, 0.8)), "never": ()}
GUIDED: Space = {"layers": SEEN, "step_size": _STEP, "until": UNTIL}
SPACES: dict[str, Space] = {
    "regulation": REGULATION,
    "composable": {"weight": Range(1.0, 10.0)},
    "syngen": GUIDED,
    "dense-diffusion": {"text": Range(0.2, 3.0), "own": Range(0.0, 1.0), "until": UNTIL, "size": Range(0.0, 1.0)},
    "attend-and-excite": {**GUIDED, "step_size": Range(0.5, 40.0, log=True), "refine_at": _ONCE},
    "predicated": {**GUIDED, "leak": Range(0.0, 1.0)},
    "conform": {**GUIDED, "temperature": Range(0.1, 1.0), "refinements": {"0": 0, "5": 5, "20": 20}},
    "t-sam": {**GUIDED, "power": Range(1.0, 6.0)},
    "divide-and-bind": {**GUIDED, "bind": Range(0.1, 10.0, log=True)},
    "initno": {"layers": SEEN, "rate": Range(1e-3, 1e-1, log=True), "divergence": Range(1e-4, 1e-2, log=True)},
    "boost": {"layers": EDITED, "amount": Range(0.1, 4.0), "until": UNTIL},
    "guidance-scale": {"scale": Range(1.5, 20.0)},
}


def space_of(method: Method) -> Space:
    """Return what of a method is searched.

    Raises:
        ValueError: there is no space for it; name one.
    """
    if method.name not in SPACES:
        raise ValueError(f"space must be named for {method.name!r}; known are those of {', '.join(SPACES)}")
    return SPACES[method.name]
