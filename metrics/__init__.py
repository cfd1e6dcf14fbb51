"""Measure whether an image shows what its prompt names.

detect(load_detector(), images, targets)   every target's best score and box
found, detection_rate                      what they come to under the detector's protocol
Protocol                                   checkpoint, threshold, query and assignment: a number's meaning
"""

from metrics.detection import Detection, detect, detection_rate, found
from metrics.weights import Protocol, load_detector

__all__ = ["Detection", "Protocol", "detect", "detection_rate", "found", "load_detector"]
