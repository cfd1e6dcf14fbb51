"""A finished run, with traces, and all that is shown of it."""

import pytest
import small_runs

from analysis.running.run import RunResults


@pytest.fixture(scope="session")
def results(tiny_model, tmp_path_factory) -> RunResults:
    return small_runs.Quiet()(small_runs.traced(tiny_model), tmp_path_factory.mktemp("runs"))
