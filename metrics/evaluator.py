"""One protocol at work: what the scoring of images asks of each of its metrics.

Conventions: an evaluator loads its model when the first image needs it, so that a store that is complete costs none.
Rows and vectors are those of `tracer.scores`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from tracer.scores import ScoreRow
from tracer.store import Store

EMOJI_SIZE = (64, 64)

Vectors = dict[tuple[str, str], Float32[np.ndarray, " channel"]]


@dataclass(frozen=True)
class Item:
    """One image to be scored: what is known of it, and its pixels where an evaluator needs them."""

    sha256: str
    prompt: str
    targets: tuple[str, ...] = ()
    image: Image.Image | None = None
    reference: "Item | None" = None  # the plain image of the same prompt and seed
    metadata: str = "{}"  # JSON

    @property
    def pixels(self) -> Image.Image:
        """The image.

        Raises:
            ValueError: it was not read.
        """
        if self.image is None:
            raise ValueError(f"image {self.sha256[:8]} was not read")
        return self.image


@dataclass(frozen=True)
class Scored:
    """What an evaluator made of some images."""

    rows: list[ScoreRow] = field(default_factory=list)
    vectors: Vectors = field(default_factory=dict)


class Evaluator(ABC):
    """One protocol at work.

    Args:
        protocol: what is asked.
        device: where the model runs.
        download: fetch a checkpoint that is not on this machine.

    Raises:
        FileNotFoundError: the checkpoint is not on this machine; says what to download.
        ValueError: it is another one than the protocol says.
    """

    def __init__(self, protocol: Any, device: str | torch.device = "cpu", download: bool = False):
        self.protocol = replace(protocol, weights=self.weights_of(protocol, download))
        self.options = {"device": device, "download": download}
        self._model = None

    @classmethod
    def loaded(cls, model: Any) -> "Evaluator":
        """Return the evaluator of a model that is loaded already, under the protocol that it carries."""
        one = cls.__new__(cls)
        one.protocol, one._model = model.protocol, model
        return one

    @staticmethod
    @abstractmethod
    def weights_of(protocol: Any, download: bool) -> str:
        """Return the hash of the protocol's weights."""

    @staticmethod
    @abstractmethod
    def load(protocol: Any, device: str | torch.device, download: bool) -> Any:
        """Return the protocol's model."""

    @property
    def model(self) -> Any:
        """The model, loaded when it is first asked for."""
        if self._model is None:
            self._model = self.load(self.protocol, **self.options)
        return self._model

    @cached_property  # hundreds of times asked for, and it looks into every library's metadata
    def fingerprint(self) -> str:
        """What goes with every row."""
        return self.protocol.fingerprint

    def refuses(self, item: Item) -> str | None:
        """Return why this image cannot be scored, None if it can: emoji evaluators know nothing but the emoji world."""
        if self.protocol.world == "emoji" and item.image and item.image.size != EMOJI_SIZE:
            return f"the emoji world's images are of {EMOJI_SIZE} pixels, got {item.image.size}"
        return None

    def remarks(self, items: Sequence[Item]) -> list[str | None]:
        """Return what is to be known about each image's score, None if nothing is."""
        return [None] * len(items)

    @abstractmethod
    def against(self, item: Item) -> str | None:
        """Return what the image is held against; None if this evaluator has nothing to say of it."""

    @abstractmethod
    def done(self, store: Store) -> set[tuple[str, str]]:
        """Return the (image, against) that the store has scores of."""

    def reads(self, item: Item) -> bool:
        """Return whether the image's pixels are needed."""
        return True

    @abstractmethod
    def score(self, items: Sequence[Item]) -> Scored:
        """Return the rows of images, in passes of a fixed size."""

    def rows_of(self, store: Store, metric: str) -> set[tuple[str, str]]:
        """Return the (image, against) that have a row of a metric."""
        query = "SELECT DISTINCT image_sha256, against FROM scores WHERE protocol = ? AND metric = ?"
        return set(store.sql(query, [self.fingerprint, metric]).itertuples(index=False, name=None))
