"""Draw what the detector accepts and what it rejects of the generator's images, for a person to judge the judge.

Command: ``python data/emoji/make/contact_sheet.py`` (two minutes on two cores). Writes
``data/emoji/owlv2/contact-sheet.png``: left the accepted images of lowest score, right the rejected ones of highest
score, so that both sides are what lies nearest to the threshold; every image says what was asked for and the score.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from analysis.plan import animal_pairs
from metrics.detection import detect, found
from metrics.weights import load_detector
from regulate import Request, generate
from tracer.models import load_pipeline
from tracer.prompts import Prompt
from tracer.scenes import ANIMALS, OBJECTS, article

WORLD = Path(__file__).resolve().parent.parent
SEEDS = (100, 101, 102, 103)  # none of those that the card is measured on
COLUMNS, ROWS = 6, 9  # of each side
SIDE, LABEL, GAP = 96, 24, 6  # pixels


@dataclass(frozen=True)
class Judged:
    """An image, what was asked for, and the detector's answer."""

    image: Image.Image
    targets: tuple[str, ...]
    score: float
    accepted: bool


def judged() -> list[Judged]:
    """Return images of every noun alone and of every second pair of animals."""
    pipe, detector = load_pipeline("emoji"), load_detector()
    single = [Prompt(noun, article(noun), (noun,), "single") for noun in ANIMALS + OBJECTS]
    answers = []
    for prompt in (*single, *animal_pairs()[::2]):
        images = generate(pipe, Request(prompt.text, prompt.targets, SEEDS)).images
        detections = detect(detector, images, [prompt.targets] * len(SEEDS))
        for image, one in zip(images, detections, strict=True):
            score = min(detection.score for detection in one)
            answers.append(Judged(image, prompt.targets, score, found(one, detector.protocol.threshold)))
    return answers


def sheet(answers: list[Judged]) -> Image.Image:
    """Return the contact sheet."""
    sides = [sorted((one for one in answers if one.accepted == flag), key=lambda one: one.score) for flag in (1, 0)]
    sides[1].reverse()
    width = COLUMNS * (SIDE + GAP)
    canvas = Image.new("RGB", (2 * width + 4 * GAP, ROWS * (SIDE + LABEL + GAP) + 30), "white")
    draw = ImageDraw.Draw(canvas)
    names = "accepted, lowest scores first", "rejected, highest scores first"
    for place, (side, name) in enumerate(zip(sides, names, strict=True)):
        left = GAP + place * (width + 2 * GAP)
        draw.text((left, 8), f"{name} ({len(side)} of {len(answers)})", "black")
        for index, one in enumerate(side[: COLUMNS * ROWS]):
            x, y = left + index % COLUMNS * (SIDE + GAP), 30 + index // COLUMNS * (SIDE + LABEL + GAP)
            canvas.paste(one.image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (x, y))
            draw.text((x, y + SIDE + 1), f"{' + '.join(one.targets)}\n{one.score:.2f}", "black", spacing=1)
    return canvas


def main() -> None:
    """Draw, judge and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WORLD / "owlv2" / "contact-sheet.png")
    sheet(judged()).save(parser.parse_args().out)


if __name__ == "__main__":
    main()
