"""Measure whether images show what their prompts name, how close they stay, and what that costs.

known_protocols()                          the registered protocols: what a number means
read_folder(folder)                        anybody's images, with their prompts, seeds and targets
score(store, pictures, protocols)          detection, CLIP score, LPIPS and features, as far as they are not there yet
score_set(store, images, references, ...)  FID and KID, or CMMD
detect(load_detector(), images, targets)   every target's best score and box, without a store
found, detection_rate                      what they come to at a threshold
DetectionProtocol                          a protocol of your own
"""

from metrics.detection import Detection, detect, detection_rate, found
from metrics.layouts import read_folder
from metrics.protocols import DetectionProtocol, known_protocols
from metrics.scoring import score
from metrics.sets import score_set
from metrics.weights import load_detector

__all__ = [
    "Detection",
    "DetectionProtocol",
    "detect",
    "detection_rate",
    "found",
    "known_protocols",
    "load_detector",
    "read_folder",
    "score",
    "score_set",
]
