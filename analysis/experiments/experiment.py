"""What an experiment is: models, prompt sets and methods, what is traced and scored, and what is shown of it.

Conventions: frozen data, no code runs here. A part is one model on one prompt set; its methods share prompts, seeds,
steps and guidance, and the first is stock diffusers, "plain".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from analysis.plan import PLAIN
from metrics.protocols import World
from regulate import Method
from tracer.capture import Capture
from tracer.prompts import Prompt

DTYPES = ("float32", "float16", "bfloat16")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Part:
    """One model on one prompt set under some methods.

    Attributes:
        name: of its folder: small letters, digits, ``.``, ``_``, ``-``.
        title: as tables and figures print it.
        prompts: a prompt set by name, or the path of its file; or prompts, whose texts are their ids.
        methods: by name; "plain" is added in front where it is missing.
        seeds: of each prompt, the same for all.
        own_seeds: no two prompts have a seed in common: each one's are moved on by its place in the set. For sets of
            one image a prompt, which would all be made from the same noise.
        model: a short name, a folder, or a hub id.
        dtype: of its weights, one of `DTYPES`; half precision is for graphics cards.
        steps: of the scheduler.
        guidance: scale of classifier-free guidance.
        batch: images in one call of the pipeline, all of one prompt.
        spread: only so many of the prompts, spread evenly over the set; None for all.
        options: of the prompt set.
        files: options of the prompt set that are files, by their names in the user's folder of data.
        traced: what is kept of the attention, by method.
    """

    name: str
    title: str
    prompts: str | tuple[Prompt, ...]
    methods: Mapping[str, Method]
    seeds: tuple[int, ...]
    model: str = "emoji"
    dtype: str = "float32"
    steps: int = 25
    guidance: float = 5.0
    batch: int = 4
    spread: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    traced: Mapping[str, Capture] = field(default_factory=dict)
    own_seeds: bool = False

    def __post_init__(self) -> None:
        """Put "plain" first, and refuse what cannot be run."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a part's name must be small letters, digits, '.', '_' and '-', got {self.name!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be at least one, all different, not negative, got {self.seeds}")
        if self.batch < 1 or self.steps < 1 or (self.spread is not None and self.spread < 1):
            raise ValueError(
                f"batch, steps and spread must be at least 1, got {self.batch}, {self.steps}, {self.spread}"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.methods.get(PLAIN, Method()) != Method():
            raise ValueError(f"the method named {PLAIN!r} must be stock diffusers, got {self.methods[PLAIN]}")
        object.__setattr__(self, "methods", {PLAIN: Method()} | dict(self.methods))
        if strangers := set(self.traced) - set(self.methods):
            raise ValueError(f"traced must be some of {', '.join(self.methods)}, got {', '.join(sorted(strangers))}")

    def seeds_at(self, place: int) -> tuple[int, ...]:
        """Return the seeds of the prompt at a place of its set, counted from 0."""
        return tuple(seed + place * (max(self.seeds) + 1) for seed in self.seeds) if self.own_seeds else self.seeds


@dataclass(frozen=True)
class Experiment:
    """What one command runs.

    Attributes:
        name: as the command line takes it.
        question: that it answers, in a sentence.
        parts: in the order of the tables.
        shows: names of what is made of the results, see `analysis.outputs`.
        protocols: keys of registered protocols; none for the world's defaults.
        reference: a folder of real images that sets are compared with; "" for none.
        world: of models and evaluators.
        takes: machine and time, as measured; what it is good to know before.
    """

    name: str
    question: str
    parts: tuple[Part, ...]
    shows: tuple[str, ...]
    protocols: tuple[str, ...] = ()
    reference: str = ""
    world: World = "emoji"
    takes: str = ""

    def __post_init__(self) -> None:
        """Refuse parts that would share a folder."""
        names = [part.name for part in self.parts]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"parts must be at least one, with names of their own, got {names}")
