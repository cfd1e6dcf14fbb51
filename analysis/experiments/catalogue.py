"""Every experiment by its name."""

from analysis.experiments import emoji, paper
from analysis.experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {one.name: one for one in (*emoji.EXPERIMENTS, *paper.EXPERIMENTS)}


def experiment(name: str) -> Experiment:
    """Return an experiment.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"an experiment must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    return EXPERIMENTS[name]
