"""The method that `slow_guidance` spells out, for the engine: a literal loss on the maps of two targets."""

from dataclasses import dataclass
from typing import ClassVar

import slow_guidance as slow
from diffusers import DiffusionPipeline
from torch import Tensor

from regulate.guidance import Guidance, ImageLoss, Look
from regulate.method import Subject


@dataclass(frozen=True)
class Literal(Guidance):
    """Latent guidance by `slow_guidance.loss_of`, without needless passes.

    Attributes:
        times: factor on the loss; 0 for one that moves nothing.
    """

    name: ClassVar[str] = "literal"
    step_size: float = 20_000.0  # the loss is flat: means of single tokens' attention
    scaled: bool = True
    needless: bool = False
    together: int | None = None
    times: float = 1.0

    def loss_of(self, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss:
        """Return the loss of an image, of the first tokens of its first two targets."""
        places = [target.positions[0] for target in subject.targets]
        loss = slow.loss_of(dict(zip(places, slow.WEIGHTS.values(), strict=False)))

        def of_look(look: Look) -> Tensor:
            return self.times * loss(look.maps)

        return of_look
