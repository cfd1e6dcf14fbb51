"""What an experiment is to do: prompts, seeds and methods.

Conventions: a plan's first method is stock diffusers, named "plain"; every other one is compared with it on
the same prompts and seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from regulate import Given, Method
from tracer.prompts import Prompt, attend_and_excite_templates
from tracer.scenes import is_seen

PLAIN = "plain"
SPLIT_SEED = 2403_06381


@dataclass(frozen=True)
class Plan:
    """Every prompt with every seed under every method.

    Attributes:
        prompts: all different.
        seeds: of each prompt.
        methods: by name; "plain" is added in front where it is missing.
        steps: of the scheduler.
        guidance: scale of classifier-free guidance.
        batch: images in one call of the pipeline; part of the specification, as it moves the last bits.
        given: what else is known of a prompt, by its text: groups, a layout, concepts.
    """

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    methods: Mapping[str, Method]
    steps: int = 25
    guidance: float = 5.0
    batch: int = 8
    given: Mapping[str, Given] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Put "plain" first, and refuse what is no plan."""
        if not self.prompts or len({prompt.text for prompt in self.prompts}) != len(self.prompts):
            raise ValueError(f"prompts must be at least one and all different, got {len(self.prompts)}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be at least one, all different, not negative, got {self.seeds}")
        if self.methods.get(PLAIN, Method()) != Method():
            raise ValueError(f"the method named {PLAIN!r} must be stock diffusers, got {self.methods[PLAIN]}")
        object.__setattr__(self, "methods", {PLAIN: Method()} | dict(self.methods))

    @property
    def images(self) -> int:
        """How many images the plan asks for."""
        return len(self.prompts) * len(self.seeds) * len(self.methods)


def animal_pairs() -> tuple[Prompt, ...]:
    """Return the benchmark's 66 prompts "a cat and a dog", in its order."""
    return tuple(prompt for prompt in attend_and_excite_templates() if prompt.id.startswith("animals-"))


def halves(prompts: Sequence[Prompt]) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Return the tune half and the test half of some prompts, each in the order given.

    The rule: the pairs that training scenes showed and those that they did not are shuffled, each by
    themselves, with a fixed seed; every second one is for tuning. So the halves have equally many unseen
    pairs, give or take one.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    tune: set[str] = set()
    for seen in (True, False):
        ids = sorted(prompt.id for prompt in prompts if is_seen(prompt.targets) == seen)
        tune.update(rng.permutation(ids)[::2] if seen else rng.permutation(ids)[1::2])
    return (
        tuple(prompt for prompt in prompts if prompt.id in tune),
        tuple(prompt for prompt in prompts if prompt.id not in tune),
    )
