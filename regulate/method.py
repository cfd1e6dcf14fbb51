"""What a method is: frozen hyper-parameters, and how it acts on a run.

There are three kinds of intervention (attention edit, latent guidance, noise composition); this file names what every
method shares. State that belongs to one generation lives in what `attention_edit` returns, never in the method.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar

from diffusers import DiffusionPipeline

from tracer.passes import Passes
from tracer.tap import Edit
from tracer.words import Target


@dataclass(frozen=True)
class Subject:
    """One image of a batch: what its prompt must show, where its text ends, and its seed.

    Attributes:
        targets: the words to regulate, with their token positions.
        end: position of the prompt's (first) end token.
        seed: of the image's initial noise.
    """

    targets: tuple[Target, ...]
    end: int
    seed: int


@dataclass(frozen=True)
class AttentionEdit:
    """The attention sites that a method edits, and its edit."""

    sites: tuple[str, ...]
    edit: Edit


@dataclass(frozen=True)
class Method:
    """Stock diffusers: the method that changes nothing, and the base of those that do."""

    name: ClassVar[str] = "plain"

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if the method cannot act on these subjects; called before anything is hooked or written."""

    def attention_edit(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> AttentionEdit | None:
        """Return the edit for one batch of images in pipeline order, or None for no edit of attention."""
        return None

    def parameters(self) -> dict[str, object]:
        """Return the hyper-parameters, as they go into the trace and the run's identity."""
        return asdict(self)
