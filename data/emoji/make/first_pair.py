"""Choose the demo's prompt by its rule: the first animal pair that the generator misses in half of the seeds.

Command: ``python data/emoji/make/first_pair.py`` (two minutes; after the generator or the detector was trained). Writes
``data/emoji/sd/demo.json``; a test holds `analysis.demo.PROMPT` against it, and it against the weights that are there.
"""

import json
from pathlib import Path

from diffusers import DiffusionPipeline

from analysis.demo import SEEDS
from analysis.plan import animal_pairs
from analysis.workbench import fingerprint
from metrics.detection import detect, detection_rate
from metrics.weights import Detector, load_detector
from regulate import Request, generate
from tracer.models import load_pipeline
from tracer.prompts import Prompt

CARD = Path(__file__).resolve().parent.parent / "sd" / "demo.json"


def first_failing_pair(pipe: DiffusionPipeline, detector: Detector) -> Prompt:
    """Return the prompt that `analysis.demo.RULE` chooses for this generator and detector.

    Raises:
        LookupError: no pair fails as often.
    """
    for prompt in animal_pairs():
        images = generate(pipe, Request(prompt.text, prompt.targets, SEEDS)).images
        rate = detection_rate(detect(detector, images, [prompt.targets] * len(SEEDS)), detector.protocol.threshold)
        print(prompt.text, rate)
        if rate <= 0.5:
            return prompt
    raise LookupError("every pair is shown whole in more than half of the seeds")


def main() -> None:
    """Write the card."""
    pipe, detector = load_pipeline("emoji"), load_detector()
    chosen = first_failing_pair(pipe, detector)
    card = {"prompt": chosen.text, "targets": chosen.targets}
    card |= {"generator": fingerprint(pipe), "detector": detector.protocol.name}
    CARD.write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
