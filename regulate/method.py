"""What a method is: frozen hyper-parameters, and how it intervenes in a run.

There are few kinds of intervention, and which of them a method is describes it. State that belongs to one generation
lives in what `interventions` returns, never in the method.

    attention edit       scores of chosen attention sites, conditional half only
    latent guidance      latents before a step: a loss on the maps, its gradient through the network
    initial noise        latents before the first step
    noise composition    the noise prediction
    arguments            what the pipeline is called with
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from regulate.layout import Layout
from regulate.loop import Moment
from regulate.structure import Group, groups_of, parser_used
from tracer.attention import attending
from tracer.passes import Passes
from tracer.tap import Edit
from tracer.words import Target

Kind = Literal["attention edit", "latent guidance", "initial noise", "noise composition", "arguments"]


@dataclass(frozen=True)
class Given:
    """What a prompt's user says of it beside its text and targets; what is None is found from the text, if it can be.

    Attributes:
        groups: its nouns with their modifiers.
        layout: which part of the picture shows which phrase.
        concepts: the texts that it is made of, for Composable Diffusion.
        weights: of these; one below 0 leads away from its concept.
    """

    groups: tuple[Group, ...] | None = None
    layout: Layout | None = None
    concepts: tuple[str, ...] | None = None
    weights: tuple[float, ...] | None = None

    def digest(self) -> str:
        """Return a fingerprint, for a run's identity."""
        facts = [self.groups, self.layout and self.layout.digest(), self.concepts, self.weights]
        return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Subject:
    """One image of a batch: what its prompt must show, where its text ends, and its seed.

    Attributes:
        targets: the words that must be seen, with their token positions.
        end: position of the prompt's (first) end token.
        seed: of the image's initial noise.
        prompt: the text.
        given: what else is known of it.
    """

    targets: tuple[Target, ...]
    end: int
    seed: int
    prompt: str = ""
    given: Given = field(default_factory=Given)


def groups_for(subject: Subject, parser: str = "auto") -> tuple[Group, ...]:
    """Return the nouns of an image's prompt with their modifiers: those given, else those that a parser finds.

    Raises:
        ValueError: there is no such parser.
        ImportError: parser is "spacy", and spaCy is not installed.
    """
    given = subject.given.groups
    return _parsed(subject.prompt, parser) if given is None else given


@cache
def _parsed(prompt: str, parser: str) -> tuple[Group, ...]:
    return groups_of(prompt, parser, shown=True)


@dataclass(frozen=True)
class Standing:
    """Whether a method can do anything for a prompt.

    Attributes:
        verdict: "acts"; "no-op", the images will be the plain ones; "n/a", it lacks what it needs.
        reason: why not; empty where it acts.
    """

    verdict: Literal["acts", "no-op", "n/a"] = "acts"
    reason: str = ""


ACTS = Standing()


@dataclass(frozen=True)
class AttentionEdit:
    """An edit of chosen attention sites.

    Attributes:
        sites: of text attention, or of self-attention.
        edit: what is put in its place.
    """

    kind: ClassVar[Kind] = "attention edit"
    sites: tuple[str, ...]
    edit: Edit

    def attached(self, pipe: DiffusionPipeline, passes: Passes) -> AbstractContextManager[None]:
        """Edit the sites while the block runs."""
        return attending(pipe.unet, self.sites, edit=self.edit)


@dataclass(frozen=True)
class TextEdit:
    """A change of the prompts' embeddings in every pass.

    Attributes:
        replaced: is given those of the rows that carry the prompts, and returns others.
    """

    kind: ClassVar[Kind] = "attention edit"
    replaced: Callable[[Float[Tensor, "batch token channel"]], Float[Tensor, "batch token channel"]]

    @contextmanager
    def attached(self, pipe: DiffusionPipeline, passes: Passes) -> Iterator[None]:
        """Give the network other embeddings while the block runs."""

        def before(unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
            text = given["encoder_hidden_states"].clone()
            text[passes.rows] = self.replaced(text[passes.rows])
            return (given.pop("sample"), given.pop("timestep")), given | {"encoder_hidden_states": text}

        handle = pipe.unet.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class LatentUpdate:
    """A change of the latents before sampling passes.

    Attributes:
        kind: "initial noise" or "latent guidance".
        update: is told of each pass that is about to start, and returns the latents to take, or None to leave them.
    """

    kind: Literal["initial noise", "latent guidance"]
    update: Callable[[Moment], Tensor | None]


@dataclass(frozen=True)
class Composition:
    """A change of the network's passes that makes one noise prediction of several."""

    kind: ClassVar[Kind] = "noise composition"
    attach: Callable[[DiffusionPipeline, Passes], AbstractContextManager[None]]

    def attached(self, pipe: DiffusionPipeline, passes: Passes) -> AbstractContextManager[None]:
        """Compose while the block runs."""
        return self.attach(pipe, passes)


@dataclass(frozen=True)
class Arguments:
    """Arguments of the pipeline's call that a method sets, whatever the user gave."""

    kind: ClassVar[Kind] = "arguments"
    values: Mapping[str, Any]


Intervention = AttentionEdit | TextEdit | LatentUpdate | Composition | Arguments


@dataclass(frozen=True)
class Method:
    """Stock diffusers: the method that changes nothing, and the base of those that do.

    Attributes:
        name: in traces and tables.
        kinds: of its interventions.
        edits_guidance: whether its edits act in the extra passes of a guidance too, not in sampling passes alone.
        needs_targets: whether it acts on targets, and has nothing to do for a prompt without any.
    """

    name: ClassVar[str] = "plain"
    kinds: ClassVar[tuple[Kind, ...]] = ()
    edits_guidance: ClassVar[bool] = False
    needs_targets: ClassVar[bool] = False

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if the method cannot act on these subjects; called before anything is hooked or written."""

    def standing(self, subject: Subject) -> Standing:
        """Return whether the method has anything to do for an image: "no-op" without a target, where it acts on these.

        To ask for a single such prompt is an error all the same, see `check`; in a set of thousands it is no reason to
        refuse the others.
        """
        if self.needs_targets and not subject.targets:
            return Standing("no-op", "it has no target")
        return ACTS

    def interventions(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> tuple[Intervention, ...]:
        """Return what acts on one batch of images, in pipeline order.

        Args:
            pipe: that makes them.
            subjects: what is known of each image, in order.
            passes: of the network, as the pipeline goes on.
        """
        return ()

    @property
    def whole_batches(self) -> bool:
        """Whether all its passes are of all the images of a batch, as a trace of them must be."""
        return True

    def gradient_passes(self, steps: int, images: int = 1) -> tuple[int, int]:
        """Return how many passes of the network with gradients a batch takes at least and at most, beside its steps."""
        return 0, 0

    def parameters(self) -> dict[str, object]:
        """Return the hyper-parameters, as they go into the trace and the run's identity: the parser that is used."""
        known: dict[str, object] = asdict(self)
        return known | {"parser": parser_used(str(known["parser"]))} if "parser" in known else known
