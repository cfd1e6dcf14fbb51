"""Detections as rows of the store, so that every figure about them is a query.

Conventions: rows of ``scores`` under the detector's protocol, one set per image and target:
    detection  the best box's score for the target, in [0, 1]
    found      1 if that is above the protocol's threshold, else 0; with the empty target: 1 if all are found
    box_left, box_top, box_right, box_bottom  the box, in pixels; absent where there is no box
An image is known by its SHA-256 (`tracer.pictures.digest`), so the same picture is looked at once.
"""

from collections.abc import Mapping, Sequence

from PIL import Image

from metrics.detection import Detection, detect, found
from metrics.weights import Detector
from tracer.rows import ScoreRow
from tracer.store import Store

EDGES = ("box_left", "box_top", "box_right", "box_bottom")


def score_images(store: Store, detector: Detector, images: Mapping[str, Image.Image], targets: Sequence[str]) -> None:
    """Detect the targets in the images that have no detections of them yet, and write the scores.

    Args:
        store: open for writing.
        detector: from `metrics.weights.load_detector`.
        images: by their SHA-256.
        targets: object names, the same for all the images.
    """
    protocol = detector.protocol
    known = store.sql(
        "SELECT image_sha256 FROM scores WHERE protocol = ? AND metric = 'detection' "
        "AND list_contains(?, target) GROUP BY image_sha256 HAVING count(*) = ?",
        [protocol.name, list(targets), len(targets)],
    )
    missing = [sha256 for sha256 in images if sha256 not in set(known["image_sha256"])]
    looked_at = detect(detector, [images[sha256] for sha256 in missing], [targets] * len(missing))
    rows: list[ScoreRow] = []
    for sha256, detections in zip(missing, looked_at, strict=True):
        rows += detection_rows(sha256, detections, protocol.name, protocol.threshold)
    store.add_scores(rows)


def detection_rows(sha256: str, detections: Sequence[Detection], protocol: str, threshold: float) -> list[ScoreRow]:
    """Return the rows of one image, as the module's conventions list them."""
    rows = [ScoreRow(sha256, protocol, "found", float(found(detections, threshold)))]
    for detection in detections:
        numbers = {"detection": detection.score, "found": float(found([detection], threshold))}
        numbers |= dict(zip(EDGES, detection.box or (), strict=False))
        rows += [ScoreRow(sha256, protocol, name, value, detection.target) for name, value in numbers.items()]
    return rows
