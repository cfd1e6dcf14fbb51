"""A small experiment, and who runs it."""

import pytest
import small_runs

from analysis.experiments.experiment import Experiment
from analysis.running import worker


@pytest.fixture
def small(tiny_model) -> Experiment:
    return small_runs.small(tiny_model)


@pytest.fixture
def quiet() -> small_runs.Quiet:
    return small_runs.Quiet()


@pytest.fixture
def made(monkeypatch) -> list[tuple[str, str, tuple[int, ...]]]:
    """What is generated in this process from here on: method, prompt, seeds."""
    calls = []
    original = worker.generate

    def counted(pipe, request, method, *more):
        calls.append((method.name, request.prompt, request.seeds))
        return original(pipe, request, method, *more)

    monkeypatch.setattr(worker, "generate", counted)
    return calls
