"""Several methods at once, where that makes sense.

combined(InitNO(), AttentionRegulation())      regulation after an optimised initial noise
combined(DenseDiffusion(), AttendAndExcite())  a layout, and maps refined as the layout lets them be
"""

from collections import Counter
from dataclasses import dataclass
from math import inf

from diffusers import DiffusionPipeline

from regulate.guidance import Guidance
from regulate.method import ACTS, Arguments, AttentionEdit, Intervention, Method, Standing, Subject
from tracer.passes import Passes

_ONCE = {
    "latent guidance": "each would move the latents by a gradient that the other's move has made stale",
    "initial noise": "the second would undo what the first has found",
    "noise composition": "the batch can be widened once",
}
_IN_PROMPT = ("attention edit", "latent guidance")


@dataclass(frozen=True)
class Combined(Method):
    """Several methods, of which each does what it does alone.

    Initial noise is found first, whatever the order. Latent guidance sees edited attention, if the edit acts in the
    passes that guidance makes: DenseDiffusion's does, regulation's is of sampling passes only.

    Attributes:
        methods: two or more.
    """

    methods: tuple[Method, ...] = ()

    def __post_init__(self) -> None:
        kinds = Counter(kind for method in self.methods for kind in dict.fromkeys(method.kinds))
        if len(self.methods) < 2 or any(isinstance(method, Combined) for method in self.methods):
            raise ValueError(f"methods must be two or more, none of them combined already, got {self.methods}")
        names = " and ".join(method.name for method in self.methods)
        for kind, reason in _ONCE.items():
            if kinds[kind] > 1:
                raise ValueError(f"{names} cannot be combined, for both are of {kind}: {reason}")
        if kinds["noise composition"] and any(kinds[kind] for kind in _IN_PROMPT):
            raise ValueError(
                f"{names} cannot be combined: composition gives the network the concepts' texts, in which the words "
                "of the prompt do not have the places that the other method knows"
            )
        object.__setattr__(self, "name", "+".join(method.name for method in self.methods))
        object.__setattr__(self, "kinds", tuple(kinds))

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if one of the methods cannot act on these subjects."""
        for method in self.methods:
            method.check(subjects)

    def standing(self, subject: Subject) -> Standing:
        """Return "n/a" if one of the methods lacks what it needs, "no-op" if none has anything to do."""
        each = [method.standing(subject) for method in self.methods]
        for standing in each:
            if standing.verdict == "n/a":
                return standing
        if any(standing.verdict == "acts" for standing in each):
            return ACTS
        return Standing("no-op", "; ".join(standing.reason for standing in each))

    def interventions(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> tuple[Intervention, ...]:
        """Return all that act on one batch.

        Raises:
            ValueError: two of them edit one site, or set one argument of the pipeline; or the batch is edited in passes
                of guidance too, which looks at a part of it at a time.
        """
        one_by_one = [m for m in self.methods if isinstance(m, Guidance) and (m.together or inf) < len(subjects)]
        if one_by_one and any(method.edits_guidance for method in self.methods):
            raise ValueError(
                f"{self.name}: the edit is of a whole batch, {one_by_one[0].name} looks at {one_by_one[0].together} of "
                f"{len(subjects)} images at a time; give it together=None"
            )
        every = tuple(one for method in self.methods for one in method.interventions(pipe, subjects, passes))
        edited = Counter(site for one in every if isinstance(one, AttentionEdit) for site in one.sites)
        given = Counter(name for one in every if isinstance(one, Arguments) for name in one.values)
        if twice := [name for name, count in (edited + given).items() if count > 1]:
            raise ValueError(f"{self.name} cannot be combined, for both would set {', '.join(twice)}")
        return every

    @property
    def whole_batches(self) -> bool:
        """Whether the passes of each are of all the images of a batch."""
        return all(method.whole_batches for method in self.methods)

    def gradient_passes(self, steps: int, images: int = 1) -> tuple[int, int]:
        """Return how many passes with gradients a batch takes at least and at most."""
        least, most = zip(*(method.gradient_passes(steps, images) for method in self.methods), strict=True)
        return sum(least), sum(most)

    def parameters(self) -> dict[str, object]:
        """Return the hyper-parameters of each, by name; "boost#2" is the second of that name."""
        found: dict[str, object] = {}
        for index, method in enumerate(self.methods):
            number = 1 + sum(other.name == method.name for other in self.methods[:index])
            found[method.name if number == 1 else f"{method.name}#{number}"] = method.parameters()
        return found


def combined(*methods: Method) -> Combined:
    """Return the methods as one.

    Raises:
        ValueError: there are fewer than two, or they cannot act together; the reason is said.
    """
    return Combined(methods)
