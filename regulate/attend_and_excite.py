"""Attend-and-Excite: every target word must be attended to strongly somewhere.

Source: Chefer et al., "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image Diffusion Models", arXiv
2301.13826, algorithm 1; code (MIT) commit 163efdf, as diffusers 0.42 ships it in its deprecated pipelines.

`AttendAndExcite()` does what that pipeline does, its needless passes included. `FIXED` leaves these out, scales latents
as the scheduler wants it, looks at all pieces of a word, and cuts the text at its end, where Stable Diffusion 2's
attention otherwise goes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from regulate.guidance import Guidance, ImageLoss, Look
from regulate.method import Subject
from regulate.smoothing import smoothed, words_only


@dataclass(frozen=True)
class AttendAndExcite(Guidance):
    """The method's hyper-parameters beside those of `Guidance`; each default is the released code's.

    Attributes:
        refine_at: thresholds 0.05, 0.5, 0.8 at steps 0, 10, 20 of 50: a target's largest attention should reach them.
        until_end: the softmax over the tokens ends before the end token, instead of before the last of the padding.
        pieces: of a word of several tokens: "all", each of them is a target; "strongest", the one attended to most.
    """

    name: ClassVar[str] = "attend-and-excite"
    needs_targets: ClassVar[bool] = True
    refine_at: tuple[tuple[float, float | None], ...] = ((0.0, 0.05), (0.2, 0.5), (0.4, 0.8))
    until_end: bool = False
    pieces: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pieces not in ("all", "strongest"):
            raise ValueError(f"pieces must be 'all' or 'strongest', got {self.pieces!r}")

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if an image has no target."""
        if not all(subject.targets for subject in subjects):
            raise ValueError("Attend-and-Excite needs at least one target for every prompt")

    def loss_of(self, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss:
        """Return the loss of an image."""
        words = [target.positions for target in subject.targets]
        if self.pieces == "all":
            words = [(position,) for positions in words for position in positions]
        end = subject.end if self.until_end else None

        def loss(look: Look) -> Float[Tensor, ""]:
            return attend_and_excite_loss(look.maps, words, end)

        return loss


def attend_and_excite_loss(
    maps: Float[Tensor, "token height width"], words: list[tuple[int, ...]], end: int | None = None
) -> Float[Tensor, ""]:
    """Return the largest over the words of max(0, 1 - largest attention to the word), between 0 and 1.

    Source: arXiv 2301.13826, eq. 1; before it, attention times 100 goes through a softmax over the tokens without the
    start token, and is smoothed (section 3.1).

    Args:
        maps: attention to each token, between 0 and 1.
        words: positions of each word's pieces, of which the most attended to counts.
        end: position of the end token, if the softmax ends before it.
    """
    shares = smoothed(words_only(maps, end=end))
    strongest = [torch.stack([shares[position - 1].amax() for position in word]).amax() for word in words]
    return (1 - torch.stack(strongest)).clamp(min=0).amax()


FIXED = AttendAndExcite(scaled=True, needless=False, together=None, until_end=True, pieces="strongest")
