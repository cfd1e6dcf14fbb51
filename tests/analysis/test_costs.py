"""What methods cost beside the baseline: only where both were timed on one machine."""

import pandas as pd
import pytest

from analysis.costs import paired_costs


def batches(*rows):
    """One batch each of method, prompt, seconds, host, device, threads."""
    frame = pd.DataFrame(rows, columns=["method", "prompt_id", "seconds", "host", "device", "threads"])
    return frame.assign(images=2, passes=10, gradient_passes=1, peak_bytes=frame["seconds"].astype(int))


def pairs(costs):
    return dict(zip(zip(costs["method"], costs["prompt_id"], strict=True), costs["seconds"], strict=True))


def test_batches_of_a_cell_are_added():
    rows = [
        (method, "a", seconds, "h", "cpu", 1) for method, seconds in [("plain", 1.0), ("plain", 2.0), ("slow", 9.0)]
    ]
    costs, left_out = paired_costs(batches(*rows))
    assert left_out == 0
    assert costs.to_dict("list") == {
        "method": ["plain", "slow"], "prompt_id": ["a", "a"], "images": [4, 2], "seconds": [3.0, 9.0],
        "passes": [20, 10], "gradient_passes": [2, 1], "peak_bytes": [2, 9],
    }  # fmt: skip


@pytest.mark.parametrize("place", [("other", "cpu", 1), ("h", "cuda:0", 1), ("h", "cpu", 2)])
def test_a_ratio_is_between_batches_of_one_machine_device_and_number_of_threads(place):
    here = ("h", "cpu", 1)
    rows = [("plain", "a", 1.0, *here), ("slow", "a", 3.0, *here), ("slower", "a", 5.0, *place)]
    rows += [("plain", "b", 1.0, *place), ("slow", "b", 4.0, *place)]
    costs, left_out = paired_costs(batches(*rows))
    assert pairs(costs) == {("plain", "a"): 1, ("slow", "a"): 3, ("plain", "b"): 1, ("slow", "b"): 4}
    assert left_out == 1


def test_a_cell_that_was_timed_in_two_places_has_no_costs_and_without_plain_nothing_has():
    here, there = ("h", "cpu", 1), ("other", "cpu", 1)
    rows = [("plain", "a", 1.0, *here), ("slow", "a", 3.0, *here), ("slow", "a", 3.0, *there)]
    rows += [("plain", "b", 1.0, *here), ("plain", "b", 1.0, *there), ("slow", "b", 4.0, *there)]
    rows += [("slow", "c", 4.0, *there)]
    costs, left_out = paired_costs(batches(*rows))
    assert pairs(costs) == {("plain", "a"): 1}
    assert left_out == 2


def test_nothing_timed_is_no_cost():
    costs, left_out = paired_costs(batches())
    assert (len(costs), left_out) == (0, 0)
