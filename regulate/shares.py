"""Shares of the steps: how many of them a method acts on.

Conventions: products of a share and a number of steps are rounded to nine digits before they are rounded to a step,
since 0.28 of 25 is a little more than 7 to a machine.
"""

import math


def whole(share: float, steps: int) -> int:
    """Return how many whole steps a share of them is: half of PNDM's 51 are 25, as in Attend-and-Excite's code."""
    return math.floor(round(share * steps, 9))


def begun(share: float, steps: int) -> int:
    """Return how many steps a share of them is, one that is only begun included: half of 25 are 13."""
    return math.ceil(round(share * steps, 9))
