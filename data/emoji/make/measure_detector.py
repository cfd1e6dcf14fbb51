"""Set the threshold of the emoji world's detector and measure it on held-out scenes.

Command: ``python data/emoji/make/measure_detector.py`` (about five minutes on one core). Writes
``protocol.json`` (template, threshold, hash of the weights) and ``card.json`` into ``data/emoji/owlv2``.

Calibration and test scenes come from their own seeds, half of them passed through the autoencoder.
Recall: each thing of a scene, all its nouns asked together. False positives: each noun that is not there,
asked alone, which is stricter than together. Blends show 35 to 65 % of one animal, the rest of another.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from alterations import BLENDS, UNTRAINED_BLENDS
from detector_data import autoencoder, stacked, through
from hard_scenes import NOUNS, Picture
from held_out import altered_things, blends, mixtures, scenes
from torch import Tensor
from torchvision.ops import box_iou

from metrics.detection import Boxes, Detection, found, look, score_targets
from metrics.protocols import Assignment, DetectionProtocol
from metrics.weights import Detector, load_detector

WORLD = Path(__file__).resolve().parent.parent
TEMPLATE = "a photo of a {obj}"
CALIBRATION, TEST = 88_000_000, 99_000_000  # seeds
SCENES = 1_000  # of each split; the test has as many of seen and of unseen pairs
TRIALS = 6  # blends of every pair of animals and kind
TARGETS = {"recall": 0.98, "false_positives": 0.02, "iou": 0.7, "blends_as_both": 0.05}


@dataclass(frozen=True)
class Sample:
    """One picture after all, what is in it, and what the detector says of every noun."""

    words: tuple[str, ...]
    corners: Tensor
    boxes: Boxes

    def only(self, words: tuple[str, ...]) -> Boxes:
        """Return what the detector says if just these nouns are asked; their scores stay as they are."""
        columns = [NOUNS.index(word) for word in words]
        return replace(
            self.boxes,
            targets=words,
            queries=tuple(self.boxes.queries[c] for c in columns),
            logits=self.boxes.logits[:, columns],
        )

    def ask(self, words: tuple[str, ...], assignment: Assignment = "argmax") -> tuple[Detection, ...]:
        """Return the detections of these nouns."""
        return score_targets(self.only(words), assignment)


def samples(detector: Detector, pictures: Sequence[Picture], vae: Path | None, seed: int) -> list[Sample]:
    """Return what the detector says of pictures, a random half of them passed through the autoencoder."""
    pixels, labels = stacked(pictures)
    if vae is not None:
        chosen = np.random.default_rng(seed).random(len(pixels)) < 0.5
        part, ones = pixels[chosen], np.ones(int(chosen.sum()), np.float32)
        pixels[chosen] = through(autoencoder(vae), part, part, ones, 0 * ones, seed)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    result = []
    for boxes, rows in zip(look(detector, images, [NOUNS] * len(images), batch=64), labels, strict=True):
        rows = rows[rows[:, 0] >= 0]
        result.append(Sample(tuple(NOUNS[int(n)] for n in rows[:, 0]), torch.from_numpy(rows[:, 1:5]), boxes))
    return result


def present(of: Sequence[Sample]) -> np.ndarray:
    """Return the score of every thing that is there, its picture's nouns asked together."""
    return np.array([detection.score for sample in of for detection in sample.ask(sample.words)])


def absent(of: Sequence[Sample]) -> np.ndarray:
    """Return the score "picture noun" of every noun that is not there, asked alone; NaN where it is there."""
    scores = np.stack([sample.boxes.logits.amax(0).sigmoid().numpy() for sample in of])
    for row, sample in zip(scores, of, strict=True):
        row[[NOUNS.index(word) for word in sample.words]] = np.nan
    return scores


def weaker(of: Sequence[Sample], pairs: Sequence[tuple[str, str]], assignment: Assignment = "argmax") -> np.ndarray:
    """Return the lower of both animals' scores in each blend: both count if it is above the threshold."""
    asked = zip(of, pairs, strict=True)
    return np.array([min(d.score for d in sample.ask(pair, assignment)) for sample, pair in asked])


def false_rates(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Return each noun's share of pictures without it in which it is found."""
    return (scores > threshold).sum(0) / (~np.isnan(scores)).sum(0)


def calibrated(detector: Detector, vae: Path) -> float:
    """Return the threshold whose smallest margin to the targets, in units of the targets, is largest."""
    known = samples(detector, scenes(CALIBRATION, SCENES, seen=True), vae, CALIBRATION)
    pictures, pairs = blends(CALIBRATION, BLENDS, 2)
    both = weaker(samples(detector, pictures, vae, CALIBRATION + 1), pairs)
    there, gone = present(known), absent(known)
    grid = np.arange(2, 96) / 100
    margins = []
    for level in grid:
        recall = ((there > level).mean() - TARGETS["recall"]) / (1 - TARGETS["recall"])
        wrong = 1 - false_rates(gone, level).max() / TARGETS["false_positives"]
        blend = 1 - (both > level).mean() / TARGETS["blends_as_both"]
        margins.append(min(recall, wrong, blend))
    best = np.array(margins) >= max(margins) - 1e-9
    return float(np.round(np.median(grid[best]), 2))


def located(of: Sequence[Sample], threshold: float) -> tuple[float, float]:
    """Return the mean IoU of found things, and the share of two-thing pictures whose two boxes are apart."""
    overlaps, apart = [], []
    for sample in of:
        answers = sample.ask(sample.words)
        for detection, corners in zip(answers, sample.corners, strict=True):
            if detection.box is not None and detection.score > threshold:
                overlaps.append(box_iou(torch.tensor([detection.box]), corners[None]).item())
        if len(answers) == 2:
            boxes = [torch.tensor([d.box or (0.0, 0.0, 0.0, 0.0)]) for d in answers]
            apart.append(found(answers, threshold) and box_iou(*boxes).item() < 0.5)
    return float(np.mean(overlaps)), float(np.mean(apart))


def of_scenes(of: Sequence[Sample], threshold: float) -> dict[str, float | int | str]:
    """Return what the card says of a set of scenes."""
    wrong = false_rates(absent(of), threshold)
    iou, apart = located(of, threshold)
    return {
        "pictures": len(of),
        "things": len(present(of)),
        "recall": share(present(of) > threshold),
        "false_positives_mean": round(float(wrong.mean()), 4),
        "false_positives_worst_noun": round(float(wrong.max()), 4),
        "worst_noun": NOUNS[int(wrong.argmax())],
        "mean_iou": round(iou, 3),
        "two_things_both_found_apart": round(apart, 4),
    }


def of_blends(of: Sequence[Sample], pairs: Sequence[tuple[str, str]], threshold: float) -> dict[str, float | int]:
    """Return the shares of blends that count as both animals, by assignment, and as one."""
    card: dict[str, float | int] = {"pictures": len(of)}
    for assignment in ("argmax", "independent", "distinct"):
        card[f"both_{assignment}"] = share(weaker(of, pairs, assignment) > threshold)
    asked = zip(of, pairs, strict=True)
    card["one_argmax"] = share([sum(d.score > threshold for d in s.ask(p)) == 1 for s, p in asked])
    return card


def share(flags: Sequence[bool] | np.ndarray) -> float:
    """Return the share of true ones, to four places."""
    return round(float(np.mean(flags)), 4)


def measured(detector: Detector, vae: Path, threshold: float) -> dict[str, object]:
    """Return the card's numbers, all from the test seeds."""
    card: dict[str, object] = {}
    for name, seen, seed in (("seen_pairs", True, TEST), ("unseen_pairs", False, TEST + 1)):
        card[name] = of_scenes(samples(detector, scenes(seed, SCENES, seen), vae, seed), threshold)
    sets = {
        "blends": blends(TEST + 2, BLENDS, TRIALS),
        "blends_of_untrained_kinds": blends(TEST + 3, UNTRAINED_BLENDS, TRIALS),
    }
    for name, (pictures, pairs) in sets.items():
        card[name] = of_blends(samples(detector, pictures, vae, TEST + 4), pairs, threshold)
    pictures, pairs = mixtures(autoencoder(vae), TEST + 5, 4)
    card["blends_of_latents"] = of_blends(samples(detector, pictures, None, 0), pairs, threshold)
    things = samples(detector, altered_things(TEST + 6, SCENES), vae, TEST + 6)
    card["altered_things"] = {"pictures": len(things), "recall": share(present(things) > threshold)}
    return card


def main() -> None:
    """Calibrate, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=WORLD / "owlv2")
    parser.add_argument("--vae", type=Path, default=WORLD / "sd" / "vae")
    arguments = parser.parse_args()
    weights = hashlib.sha256((arguments.folder / "model.safetensors").read_bytes()).hexdigest()
    protocol = DetectionProtocol(str(arguments.folder), template=TEMPLATE, world="emoji", weights=weights)
    detector = load_detector(protocol)
    threshold = calibrated(detector, arguments.vae)
    stored = {"template": TEMPLATE, "threshold": threshold, "assignment": "argmax", "weights": weights}
    (arguments.folder / "protocol.json").write_text(json.dumps(stored, indent=1) + "\n")
    card = {
        "protocol": replace(protocol, threshold=threshold).name,
        "threshold": threshold,
        "parameters": sum(p.numel() for p in detector.model.parameters()),
        "targets": TARGETS,
        **measured(detector, arguments.vae, threshold),
    }
    (arguments.folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
