"""On which device, by whom, with how many threads."""

import pytest

from analysis.running.how import How, check_device, scoring_device


def test_a_device_of_a_cluster_need_not_be_here_and_scores_are_made_on_the_cpu_then():
    how = How(engine="ray", device="meta")
    check_device(how)
    assert scoring_device(how) == "cpu"
    assert scoring_device(How()) == "cpu"
    with pytest.raises(ValueError, match="device must be one that torch can compute on here, got 'meta'"):
        check_device(How(device="meta"))
