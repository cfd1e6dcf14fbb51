"""A finished run, with traces, and all that is shown of it."""

import pytest
import small_runs

from analysis.plan import animal_pairs
from analysis.running.run import RunResults
from regulate import METHODS, AttentionRegulation
from tracer.capture import Capture

KEPT = Capture(tokens="targets", heads="mean", steps=(0, 1, 3))


@pytest.fixture(scope="session")
def results(tiny_model, tmp_path_factory) -> RunResults:
    methods = {
        "regulation": AttentionRegulation(iterations=2),
        "syngen": METHODS["syngen-fixed"],
        "dense": METHODS["dense-diffusion"],
    }
    facts = {"prompts": animal_pairs()[:4], "steps": 4, "methods": methods}
    experiment = small_runs.changed(small_runs.small(tiny_model), **facts)
    experiment = small_runs.changed(experiment, traced={"plain": KEPT, "regulation": KEPT})
    return small_runs.Quiet()(experiment, tmp_path_factory.mktemp("runs"))
