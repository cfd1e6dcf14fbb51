"""The tasks of `metrics.composition` as a metric of images: one detector, one way to tell colours, one row per image.

Conventions: rows of the table `scores` are called as the tasks are ("owl-count"), 1 if the image does what its record
asks, else 0; `query` is what is wrong. The image is held against its record, the metadata that GenEval has of it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from metrics import clip_score, weights
from metrics.composition import COLOURS as GENEVAL_COLOURS
from metrics.composition import EMOJI_TASKS, TASKS, ColourOf, TaskProtocol, clip_colours, judge, queries_of
from metrics.detection import look
from metrics.evaluator import Evaluator, Item, Scored
from metrics.protocols import RELEASED, ClipProtocol, DetectionProtocol, Protocol, emoji_clip, emoji_detection
from metrics.weights import Detector
from tracer.scenes import COLOURS
from tracer.scores import ScoreRow
from tracer.store import Store


@dataclass(frozen=True)
class JudgingProtocol(Protocol):
    """What a task's answer depends on.

    Attributes:
        detector: finds things; its own threshold and assignment play no part.
        colours: tells the colours of what was found.
        tasks: how boxes become things, and things an answer.
    """

    detector: DetectionProtocol = field(default_factory=DetectionProtocol)
    colours: ClipProtocol = field(default_factory=ClipProtocol)
    tasks: TaskProtocol = field(default_factory=TaskProtocol)

    LIBRARIES: ClassVar = ("torch", "torchvision", "transformers", "open_clip_torch")

    @property
    def facts(self) -> dict[str, object]:
        """As in `Protocol`."""
        return {
            "kind": type(self).__name__,
            "world": self.world,
            "detector": self.detector.facts,
            "colours": self.colours.facts,
            "tasks": asdict(self.tasks),
        }


def tasks_protocol(world: str) -> JudgingProtocol:
    """Return a world's protocol of tasks: "emoji-tasks", or "owl-tasks" with GenEval's CLIP for colours."""
    if world == "emoji":
        own = emoji_detection(), emoji_clip(), EMOJI_TASKS
        return JudgingProtocol("owlv2", None, None, "emoji", "emoji-tasks", *own)
    detector, colours = RELEASED["owlv2-base"], RELEASED["openai-l14-plain"]
    if not isinstance(detector, DetectionProtocol) or not isinstance(colours, ClipProtocol):
        raise TypeError("the released protocols must be a detector's and a CLIP's")
    return JudgingProtocol("owlv2", key="owl-tasks", detector=detector, colours=colours)


class Judging(Evaluator):
    """The tasks; as in `metrics.evaluator.Evaluator`."""

    protocol: JudgingProtocol
    load = staticmethod(weights.load_detector)
    batch = 8

    def __init__(self, protocol: JudgingProtocol, device: str | torch.device = "cpu", download: bool = False):
        """See the class."""
        detector = replace(protocol.detector, weights=weights.weights_of(protocol.detector, download))
        colours = replace(protocol.colours, weights=clip_score.weights_of(protocol.colours, download))
        self.protocol = replace(protocol, detector=detector, colours=colours)
        self.options = {"device": device, "download": download}
        self._model = None

    @staticmethod
    def weights_of(protocol: Any, download: bool) -> str:
        """Return the hash of the detector's weights."""
        return weights.weights_of(protocol.detector, download)

    @property
    def model(self) -> Detector:
        """The detector, loaded when it is first asked for."""
        if self._model is None:
            self._model = self.load(self.protocol.detector, **self.options)
        return self._model

    @cached_property
    def colour_of(self) -> ColourOf:
        """What tells colours, loaded when it is first asked for."""
        known = tuple(COLOURS) if self.protocol.world == "emoji" else GENEVAL_COLOURS
        return clip_colours(clip_score.load_clip(self.protocol.colours, **self.options), known)

    def refuses(self, item: Item) -> str | None:
        """Return what is wrong with the picture's record."""
        if reason := super().refuses(item):
            return reason
        try:
            queries_of(json.loads(item.metadata))
        except ValueError as error:
            return str(error)
        return None

    def against(self, item: Item) -> str | None:
        """Return the record, if the picture has one."""
        return item.metadata if '"include"' in item.metadata else None

    def done(self, store: Store) -> set[tuple[str, str]]:
        """As in `Evaluator`."""
        return set().union(*(self.rows_of(store, task) for task in TASKS.values()))

    def score(self, items: Sequence[Item]) -> Scored:
        """As in `Evaluator`."""
        records = [json.loads(item.metadata) for item in items]
        images = [item.pixels for item in items]
        looked = look(self.model, images, [queries_of(record) for record in records], self.batch)
        rows = []
        for item, record, boxes in zip(items, records, looked, strict=True):
            colours = self.colour_of if any("color" in clause for clause in record["include"]) else None
            said = judge(record, boxes, self.protocol.tasks, item.pixels, colours)
            told = {"value": float(said.correct), "against": item.metadata, "query": said.reason or None}
            rows.append(ScoreRow(item.sha256, self.fingerprint, said.task, **told))
        return Scored(rows)
