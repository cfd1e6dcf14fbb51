"""Images that are in memory, detected, and the scores written beside their trace."""

from collections.abc import Mapping, Sequence

from PIL import Image

from metrics.evaluator import Item
from metrics.evaluators import Detecting
from metrics.scoring import note
from metrics.weights import Detector
from tracer.scores import add_scores
from tracer.store import Store


def score_images(store: Store, detector: Detector, images: Mapping[str, Image.Image], targets: Sequence[str]) -> None:
    """Detect the targets in the images that have no detections of them yet, and write the scores.

    Args:
        store: open for writing.
        detector: from `metrics.weights.load_detector`.
        images: by their SHA-256.
        targets: object names, the same for all the images.
    """
    detecting = Detecting.loaded(detector)
    note(store, [detector.protocol])
    known = detecting.done(store)
    items = [Item(sha256, "", tuple(targets), image) for sha256, image in images.items()]
    missing = [item for item in items if (item.sha256, detecting.against(item)) not in known]
    add_scores(store, detecting.score(missing).rows)
