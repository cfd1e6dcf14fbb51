"""The metrics of images at work, one class each: detection, CLIP score, LPIPS, and features for sets.

Conventions: rows of the table `scores`, see `tracer.scores`:
    detection_argmax, detection_independent, detection_distinct   a target's best score under an assignment, in [0, 1]
    clip_cos                the raw cosine of image and prompt, in [-1, 1]; clip_half: of image and a half of the prompt
    lpips, lpips-tiny       the distance to the plain image of the same prompt and seed, at least 0
Features have no row: sets are compared by them. Vectors of images and texts are kept under the fingerprint of the
network that made them, so that another prompt or another way to combine texts costs no image pass.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from metrics import clip_score, detection, features, lpips_score, weights
from metrics.evaluator import Evaluator, Item, Scored, Vectors
from metrics.judging import Judging, JudgingProtocol
from metrics.protocols import (
    ASSIGNMENTS,
    ClipProtocol,
    DetectionProtocol,
    FeatureProtocol,
    LpipsProtocol,
    Protocol,
)
from tracer.scores import ScoreRow
from tracer.store import Store


class Detecting(Evaluator):
    """OWLv2, all three assignments from one pass."""

    protocol: DetectionProtocol
    weights_of = staticmethod(weights.weights_of)
    load = staticmethod(weights.load_detector)

    @property
    def batch(self) -> int:
        """Images in a pass: the emoji world's are small."""
        return 32 if self.protocol.world == "emoji" else 8

    def against(self, item: Item) -> str | None:
        """Return the targets that are asked for together: they compete for boxes."""
        return ", ".join(sorted(item.targets)) if item.targets else None

    def refuses(self, item: Item) -> str | None:
        """Return why the detector cannot be asked for the targets."""
        new = [name for name in item.targets if name not in self.refused]
        self.refused |= {name: self._refused(name) for name in new}
        twice = "its targets must be different" if len(set(item.targets)) < len(item.targets) else None
        return super().refuses(item) or twice or next(filter(None, map(self.refused.get, item.targets)), None)

    def done(self, store: Store) -> set[tuple[str, str]]:
        """As in `Evaluator`."""
        return self.rows_of(store, "detection_argmax")

    def score(self, items: Sequence[Item]) -> Scored:
        """As in `Evaluator`."""
        looked = detection.look(self.model, [i.pixels for i in items], [i.targets for i in items], self.batch)
        rows = []
        for item, boxes in zip(items, looked, strict=True):
            for assignment in ASSIGNMENTS:
                rows += self._rows(item, detection.score_targets(boxes, assignment), f"detection_{assignment}")
        return Scored(rows)

    @cached_property
    def refused(self) -> dict[str, str | None]:
        """Why the detector cannot be asked for a name."""
        return {}

    def _refused(self, name: str) -> str | None:
        try:
            detection.check_targets(self.model, [name])
        except ValueError as error:
            return str(error)
        return None

    def _rows(self, item: Item, found: Sequence[detection.Detection], metric: str) -> list[ScoreRow]:
        names = {"protocol": self.fingerprint, "metric": metric, "against": self.against(item) or ""}
        return [
            ScoreRow(item.sha256, value=one.score, target=one.target, query=one.query, box=one.box, **names)
            for one in found
        ]


class Clipping(Evaluator):
    """CLIP: cosine of image and prompt. Images without a prompt are embedded only, for sets."""

    protocol: ClipProtocol
    weights_of = staticmethod(clip_score.weights_of)
    load = staticmethod(clip_score.load_clip)
    batch = 32

    def __init__(self, protocol: ClipProtocol, device: str | torch.device = "cpu", download: bool = False):
        super().__init__(protocol, device, download)
        self.kept: set[tuple[str, str]] = set()
        self.cut: dict[str, bool] = {}  # by prompt

    @cached_property
    def tower(self) -> str:
        """What the vectors of images are kept under."""
        return self.protocol.tower

    def remarks(self, items: Sequence[Item]) -> list[str | None]:
        """Return of which images CLIP reads only the beginning of the prompt."""
        new = [text for text in dict.fromkeys(item.prompt for item in items) if text and text not in self.cut]
        self.cut |= dict(zip(new, clip_score.truncated(self.model, new), strict=True)) if new else {}
        said = "its prompt is longer than CLIP reads, and was cut"
        return [said if self.cut.get(item.prompt) else None for item in items]

    def against(self, item: Item) -> str | None:
        """Return the prompt."""
        return item.prompt

    def done(self, store: Store) -> set[tuple[str, str]]:
        """As in `Evaluator`; notes which vectors are kept, and reads them when they are needed."""
        networks = [self.fingerprint, self.tower]
        kept = store.sql("SELECT item, protocol FROM embeddings WHERE protocol IN (?, ?)", networks)
        self.kept = set(kept.itertuples(index=False, name=None))
        vectors = "SELECT item, protocol, vector FROM embeddings WHERE protocol IN (?, ?)"
        self.read = lambda: store.sql(vectors, networks)
        embedded = {(item, "") for item, of in self.kept if of == self.tower}
        return self.rows_of(store, "clip_cos") | embedded

    @cached_property
    def known(self) -> Vectors:
        """The vectors that are kept, by item and network."""
        rows = self.read() if self.kept else pd.DataFrame(columns=["item", "protocol", "vector"])
        return {(item, of): np.asarray(vector, np.float32) for item, of, vector in rows.itertuples(index=False)}

    def reads(self, item: Item) -> bool:
        """Return whether the image has no vector yet."""
        return (item.sha256, self.tower) not in self.kept

    def score(self, items: Sequence[Item]) -> Scored:
        """As in `Evaluator`."""
        unseen = {item.sha256: item.pixels for item in items if self.reads(item)}
        texts = list(dict.fromkeys(text for item in items for text in self._texts(item)))
        unread = [text for text in texts if (text, self.fingerprint) not in self.known]
        new: Vectors = {}
        if unseen:
            seen = clip_score.embed_images(self.model, list(unseen.values()), self.batch)
            new |= {(name, self.tower): v.numpy() for name, v in zip(unseen, seen, strict=True)}
        if unread:
            read = clip_score.embed_texts(self.model, unread)
            new |= {(text, self.fingerprint): v.numpy() for text, v in zip(unread, read, strict=True)}
        self.known.update(new)
        self.kept.update(new)
        return Scored([row for item in items if item.prompt for row in self._rows(item)], new)

    def _texts(self, item: Item) -> list[str]:
        halves = clip_score.halves(item.prompt) if self.protocol.ensemble == "ae80" else None
        return [text for text in (item.prompt, *(halves or ())) if text]

    def _rows(self, item: Item) -> list[ScoreRow]:
        whole, *parts = self._texts(item)
        names = [("clip_cos", "", whole), *(("clip_half", part, part) for part in dict.fromkeys(parts))]
        return [
            ScoreRow(item.sha256, self.fingerprint, metric, self._cosine(item, text), target, item.prompt)
            for metric, target, text in names
        ]

    def _cosine(self, item: Item, text: str) -> float:
        image, words = self.known[item.sha256, self.tower], self.known[text, self.fingerprint]
        return clip_score.clip_cos(torch.from_numpy(image)[None], torch.from_numpy(words)[None]).item()


class Comparing(Evaluator):
    """LPIPS to the plain image of the same prompt and seed."""

    protocol: LpipsProtocol
    weights_of = staticmethod(lpips_score.weights_of)
    load = staticmethod(lpips_score.load_lpips)
    batch = 32

    def against(self, item: Item) -> str | None:
        """Return the plain image; there is none for the plain image itself."""
        return item.reference.sha256 if item.reference else None

    def refuses(self, item: Item) -> str | None:
        """Return why the two cannot be compared."""
        if (reason := super().refuses(item)) or item.reference is None or self.protocol.resolution:
            return reason
        size, other = item.pixels.size, item.reference.pixels.size
        return None if size == other else f"its size is {size}, that of its plain image {other}"

    def done(self, store: Store) -> set[tuple[str, str]]:
        """As in `Evaluator`."""
        return self.rows_of(store, lpips_score.metric_name(self.protocol))

    def score(self, items: Sequence[Item]) -> Scored:
        """As in `Evaluator`."""
        pairs = [(item, item.reference) for item in items if item.reference]
        images, references = [item.pixels for item, _ in pairs], [reference.pixels for _, reference in pairs]
        values = lpips_score.distances(self.model, images, references, self.batch)
        name = lpips_score.metric_name(self.protocol)
        return Scored(
            [
                ScoreRow(item.sha256, self.fingerprint, name, value, against=reference.sha256)
                for (item, reference), value in zip(pairs, values.tolist(), strict=True)
            ]
        )


class Describing(Evaluator):
    """Features by which sets of images are compared."""

    protocol: FeatureProtocol
    weights_of = staticmethod(features.weights_of)
    load = staticmethod(features.load_features)
    batch = 32

    def against(self, item: Item) -> str | None:
        """Features are of the image alone."""
        return ""

    def done(self, store: Store) -> set[tuple[str, str]]:
        """As in `Evaluator`."""
        known = store.sql("SELECT item FROM embeddings WHERE protocol = ?", [self.fingerprint])
        return {(item, "") for item in known["item"]}

    def score(self, items: Sequence[Item]) -> Scored:
        """As in `Evaluator`."""
        made = features.extract(self.model, [item.pixels for item in items], self.batch)
        named = zip(items, np.asarray(made, np.float32), strict=True)
        return Scored(vectors={(item.sha256, self.fingerprint): vector for item, vector in named})


KINDS: Mapping[type[Protocol], type[Evaluator]] = {
    DetectionProtocol: Detecting,
    ClipProtocol: Clipping,
    LpipsProtocol: Comparing,
    FeatureProtocol: Describing,
    JudgingProtocol: Judging,
}


def evaluator(protocol: Protocol, device: str | torch.device = "cpu", download: bool = False) -> Evaluator:
    """Return what scores images under a protocol.

    Raises:
        TypeError: nothing does. FileNotFoundError, ValueError: as in `Evaluator`.
    """
    kind = KINDS.get(type(protocol))
    if kind is None:
        raise TypeError(
            f"protocol must be one of {', '.join(k.__name__ for k in KINDS)}, got {type(protocol).__name__}"
        )
    return kind(protocol, device, download)
