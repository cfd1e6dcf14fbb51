"""The unit of work: one prompt's images under one method, as one batch; known by a hash of all that makes them.

Conventions: a unit is done or not, never half: it is made again as a whole. Two cells of the plan that ask for the same
images, such as a method that has nothing to do and "plain", are one unit. A job is all units of one prompt, the methods
one after the other on one worker, so that their times can be compared in pairs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from diffusers import DiffusionPipeline

from analysis.experiments.experiment import Part
from analysis.plan import PLAIN
from analysis.prompts.sets import PromptSet
from analysis.workbench import sampler_of
from regulate import Given, Method
from regulate.applied import subjects_of
from regulate.method import ACTS, Standing
from tracer.capture import Capture
from tracer.prompts import Prompt

LONGEST_NAME = 80  # of a folder, in bytes


@dataclass(frozen=True)
class Unit:
    """One batch to be made.

    Attributes:
        key: hash of all that its images depend on, and of what is traced.
        part: name of the part.
        name: of the method, the first one that asks for these images.
        method: that makes them.
        model: that makes them.
        dtype: of the model's weights.
        prompt: of all of them.
        given: what else is known of the prompt.
        seeds: one per image.
        steps: of the scheduler.
        guidance: scale.
        capture: what is traced; None for nothing.
    """

    key: str
    part: str
    name: str
    method: Method
    model: str
    dtype: str
    prompt: Prompt
    given: Given
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    capture: Capture | None

    @property
    def folder(self) -> str:
        """Where its images lie, from the run's folder."""
        return f"images/{self.part}/{file_name(self.name)}/{file_name(self.prompt.id)}"


Job = tuple[Unit, ...]


@dataclass(frozen=True)
class Cell:
    """A method on a prompt: the units that make its images, or why there are none."""

    method: str
    prompt: Prompt
    standing: Standing
    units: tuple[Unit, ...] = ()


@dataclass(frozen=True)
class Planned:
    """A part with its prompts, and everything that is to be made for it.

    Attributes:
        part: that was planned.
        prompts: its prompt set.
        model: what the trace calls the model, and a hash of its weights.
        cells: of every method and prompt, prompt by prompt.
    """

    part: Part
    prompts: PromptSet
    model: tuple[str, str]
    cells: tuple[Cell, ...] = field(repr=False)

    @property
    def units(self) -> dict[str, Unit]:
        """Every unit once, by key, in the order of the work."""
        return {unit.key: unit for cell in self.cells for unit in cell.units}

    @property
    def jobs(self) -> list[Job]:
        """The units prompt by prompt."""
        jobs: dict[str, list[Unit]] = {}
        for unit in self.units.values():
            jobs.setdefault(unit.prompt.id, []).append(unit)
        return [tuple(job) for job in jobs.values()]

    @property
    def lacking(self) -> dict[str, str]:
        """The methods that lack what they need for some prompt, with the first reason."""
        found: dict[str, str] = {}
        for cell in self.cells:
            if cell.standing.verdict == "n/a":
                found.setdefault(cell.method, f"{cell.prompt.text!r}: {cell.standing.reason}")
        return found


def planned(part: Part, prompts: PromptSet, pipe: DiffusionPipeline, model: tuple[str, str]) -> Planned:
    """Return what is to be made for a part.

    Args:
        part: one model on one prompt set.
        prompts: the set.
        pipe: the model, for its tokenizer and its sampler.
        model: its name and a hash of its weights and scheduler.

    Raises:
        ValueError: a target is not in its prompt, a prompt is too long, or a method refuses one.
    """
    sampler = sampler_of(pipe)
    cells, places = [], {prompt.id: place for place, prompt in enumerate(prompts.prompts)}
    for prompt in spread(prompts.prompts, part.spread):
        given, seeds = prompts.given.get(prompt.text, Given()), part.seeds_at(places[prompt.id])
        subject = subjects_of(pipe, [prompt.text], [prompt.targets], seeds[:1], [given])
        for name, method in part.methods.items():
            standing = method.standing(subject[0])
            if standing.verdict == "acts":
                method.check(subject)
            facts = {"weights": model[1]} | sampler
            units = _units(part, name, method, prompt, given, seeds, standing, facts)
            cells.append(Cell(name, prompt, standing, units if standing.verdict != "n/a" else ()))
    return Planned(part, prompts, model, _shared(cells))


def fitting(one: Planned) -> tuple[str, ...]:
    """Return the methods that can act on at least one of a part's prompts, or have nothing to do on it."""
    able = {cell.method for cell in one.cells if cell.standing.verdict != "n/a"}
    return tuple(name for name in one.part.methods if name in able)


def spread(prompts: Sequence[Prompt], count: int | None) -> Sequence[Prompt]:
    """Return so many of the prompts, spread evenly from the first to the last; all of them for None or for more."""
    if count is None or count >= len(prompts):
        return prompts
    places = np.linspace(0, len(prompts) - 1, count).round().astype(int)
    return [prompts[place] for place in places.tolist()]


def _units(
    part: Part,
    name: str,
    method: Method,
    prompt: Prompt,
    given: Given,
    seeds_of_all: Sequence[int],
    standing: Standing,
    facts: Mapping[str, Any],
) -> tuple[Unit, ...]:
    capture = part.traced.get(name)
    if standing != ACTS:  # the images are the plain ones
        name, method = PLAIN, Method()
    given = Given() if method == Method() else given
    model = str(Path(part.model).resolve()) if Path(part.model).exists() else part.model  # workers may be elsewhere
    asked = (model, part.dtype, prompt, given)
    found = []
    for start in range(0, len(seeds_of_all), part.batch):
        seeds = tuple(seeds_of_all[start : start + part.batch])
        known = {
            "part": part.name, "method": method.name, "parameters": method.parameters(), "prompt": asdict(prompt),
            "given": given.digest(), "seeds": seeds, "steps": part.steps, "guidance": part.guidance,
            "capture": capture and asdict(capture),
        }  # fmt: skip
        key = digest_of(known | dict(facts))
        found.append(Unit(key, part.name, name, method, *asked, seeds, part.steps, part.guidance, capture))
    return tuple(found)


def _shared(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Return the cells such that those which ask for the same images share one unit, named after the first."""
    first: dict[str, Unit] = {}
    return tuple(
        Cell(cell.method, cell.prompt, cell.standing, tuple(first.setdefault(unit.key, unit) for unit in cell.units))
        for cell in cells
    )


def digest_of(facts: Mapping[str, Any]) -> str:
    """Return a hash of facts that JSON can say; of others, of how they print."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_name(text: str) -> str:
    """Return a text as the name of a file or folder: the same for the same text, another for another."""
    name = quote(text, safe=" ,'+-_=()[]")
    if name.strip(" .") == name and name and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME].strip(' .%')}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
