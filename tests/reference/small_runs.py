"""A small experiment on a model of random weights, judged by the emoji world's own evaluators."""

from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

from rich.console import Console

from analysis.experiments.experiment import Experiment, Part
from analysis.plan import animal_pairs
from analysis.running.run import How, RunResults, run
from regulate import METHODS, AttentionRegulation
from tracer.capture import Capture
from tracer.prompts import Prompt

PROMPTS = tuple(
    Prompt(f"pair-{number}", f"a {first} and a {second}", (first, second), "test")
    for number, (first, second) in enumerate([("cat", "dog"), ("lion", "bowl"), ("frog", "chair")])
)
HERE = How(workers=0)
KEPT = Capture(tokens="targets", heads="mean", steps=(0, 1, 3))
BEGUN = How(workers=0, shard=(1, 1), dry=True)  # a first call, for workers of one thread, whatever machine this is


def small(model: str) -> Experiment:
    """Return three prompts, two seeds, plain, regulation, and a method that has nothing to do."""
    methods = {"regulation": AttentionRegulation(iterations=2), "syngen": METHODS["syngen-fixed"]}
    part = Part("pairs", "Pairs", PROMPTS, methods, (0, 1), model, steps=2, batch=2)
    return Experiment("small", "Does it work?", (part,), ("method-table", "forest", "outcomes"))


def eight(model: str) -> Experiment:
    """Return eight prompts, with a method that moves latents by gradients: long enough to be interrupted."""
    one = small(model)
    methods = {**one.parts[0].methods, "attend": replace(METHODS["attend-and-excite-fixed"], refine_at=())}
    return changed(one, prompts=animal_pairs()[:8], steps=6, methods=methods)


def traced(model: str) -> Experiment:
    """Return four prompts under methods that act, have nothing to do, and cannot act; of two of them maps are kept."""
    methods = {
        "regulation": AttentionRegulation(iterations=2),
        "syngen": METHODS["syngen-fixed"],
        "dense": METHODS["dense-diffusion"],
    }
    kept = dict.fromkeys(("plain", "regulation"), KEPT)
    return changed(small(model), prompts=animal_pairs()[:4], steps=4, methods=methods, traced=kept)


def changed(experiment: Experiment, **facts: object) -> Experiment:
    """Return the experiment with another part."""
    return replace(experiment, parts=(replace(experiment.parts[0], **facts),))


def folder(out: Path) -> Path:
    """Return the only run in a folder."""
    (found,) = out.iterdir()
    return found


@dataclass
class Quiet:
    """Runs an experiment without a word, and keeps what would have been said."""

    said: str = ""

    def __call__(self, experiment: Experiment, out, how: How = HERE) -> RunResults | None:
        console = Console(file=StringIO(), width=200)
        try:
            return run(experiment, out, how, console)
        finally:
            self.said = console.file.getvalue()
