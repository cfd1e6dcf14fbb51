"""Measure what the generator draws: single things, pairs seen and unseen in training, and dominance.

Command: ``python data/emoji/make/measure_generator.py`` (resumes by itself). Every image is judged by the emoji world's
own detector under its stored protocol. Writes ``data/emoji/sd/card.json`` and prints it.
"""

import argparse
import csv
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from metrics.detection import detect
from metrics.weights import Detector, load_detector
from regulate import Method, Request, applied
from tracer.attention import Edited, Tap
from tracer.prompts import Prompt, attend_and_excite_templates
from tracer.scenes import ANIMALS, OBJECTS, article, is_seen
from tracer.statistics import compared_words, dominance, dominance_ratio
from tracer.words import targets_of, tokens_of

WORLD = Path(__file__).resolve().parent.parent
SINGLE_SEEDS = 42  # x 24 nouns = 1,008 images
PAIR_SEEDS = 4  # x 276 prompts = 1,104 images
FIELDS = ("kind", "prompt", "seed", "found", "wanted", "seen", "dominance")


def prompts(single_seeds: int, pair_seeds: int) -> Iterator[tuple[str, Prompt, int]]:
    """Yield (kind, prompt, number of seeds) of all that is drawn."""
    for noun in ANIMALS + OBJECTS:
        yield "single", Prompt(noun, article(noun), (noun,), "single"), single_seeds
    for prompt in attend_and_excite_templates():
        yield prompt.id.rsplit("-", 1)[0], prompt, pair_seeds


class DominanceMeter:
    """Records, for each image, the mean over layers and steps of the second half of log(dominance ratio)."""

    def __init__(self, pipe: StableDiffusionPipeline, prompt: Prompt, steps: int):
        tokens = tokens_of(pipe.tokenizer, prompt.text)
        found = targets_of(pipe.tokenizer, prompt.text, prompt.targets)
        self.words = list(compared_words(tokens, [target.positions for target in found]).values())
        self.from_call = steps // 2
        self.logs: list[torch.Tensor] = []

    def __call__(self, tap: Tap, edited: Edited | None) -> None:
        """Take note of one tap."""
        if tap.call >= self.from_call:
            rows = slice(len(tap.query) // 2, len(tap.query))
            self.logs.append(dominance_ratio(dominance(tap.probs(rows), self.words)).log())

    def ratios(self) -> list[float]:
        """Return every image's geometric mean of the ratio."""
        return torch.stack(self.logs).mean(0).exp().tolist()


def measured(
    pipe: StableDiffusionPipeline,
    detector: Detector,
    prompt: Prompt,
    kind: str,
    seeds: list[int],
    guidance: float,
) -> list[dict[str, object]]:
    """Return one row per image of a prompt."""
    request = Request(prompt.text, prompt.targets, tuple(seeds), guidance=guidance)
    meter = DominanceMeter(pipe, prompt, request.steps)
    record = meter if kind != "single" else None
    with applied(pipe, Method(), prompt.text, prompt.targets, seeds, record=record) as run:
        images = pipe(
            prompt.text,
            num_images_per_prompt=len(seeds),
            generator=run.generators,
            guidance_scale=guidance,
            num_inference_steps=request.steps,
        ).images
    ratios = meter.ratios() if record else [1.0] * len(seeds)
    threshold = detector.protocol.threshold
    rows = []
    for seed, found, ratio in zip(seeds, detect(detector, images, [prompt.targets] * len(seeds)), ratios, strict=True):
        count = sum(one.score > threshold for one in found)
        values = (
            kind,
            prompt.text,
            seed,
            count,
            len(prompt.targets),
            is_seen(prompt.targets),
            f"{ratio:.4f}",
        )
        rows.append(dict(zip(FIELDS, values, strict=True)))
    return rows


def summary(rows: list[dict[str, str]]) -> dict[str, dict[str, float | None]]:
    """Return, for each kind and seen or unseen pairs, images, share with all found, and median dominance ratio."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["kind"], []).append(row)
        if row["wanted"] != "1":
            groups.setdefault("pairs", []).append(row)
            groups.setdefault("pairs seen" if row["seen"] == "True" else "pairs unseen", []).append(row)
    result = {}
    for name, group in groups.items():
        whole = [row["found"] == row["wanted"] for row in group]
        result[name] = {"images": len(group), "all_found": round(sum(whole) / len(group), 4)}
        if name != "single":
            for label, state in (("dominance_found", True), ("dominance_missed", False)):
                ratios = [float(r["dominance"]) for r, w in zip(group, whole, strict=True) if w == state]
                result[name][label] = round(float(torch.tensor(ratios).median()), 3) if ratios else None
    return result


def main() -> None:
    """Draw what is missing, judge it, and write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=WORLD / "sd")
    parser.add_argument("--work", type=Path, default=WORLD.parent.parent / "build" / "generator-measured.csv")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--single-seeds", type=int, default=SINGLE_SEEDS)
    parser.add_argument("--pair-seeds", type=int, default=PAIR_SEEDS)
    parser.add_argument("--share", default="0/1", help="i/n: draw only every n-th prompt from the i-th on")
    options = parser.parse_args()
    part, parts = (int(number) for number in options.share.split("/"))
    torch.set_flush_denormal(True)
    pipe = StableDiffusionPipeline.from_pretrained(options.model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    detector = load_detector()
    known: list[dict[str, str]] = []
    if options.work.exists():
        with options.work.open(newline="") as file:
            known = list(csv.DictReader(file))
    done = {(row["prompt"], int(row["seed"])) for row in known}
    for kind, prompt, seeds in list(prompts(options.single_seeds, options.pair_seeds))[part::parts]:
        todo = [seed for seed in range(seeds) if (prompt.text, seed) not in done]
        for start in range(0, len(todo), 16):
            rows = measured(pipe, detector, prompt, kind, todo[start : start + 16], options.guidance)
            with options.work.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerows(rows)
            known += [{key: str(value) for key, value in row.items()} for row in rows]
    card = {
        "date": date.today().isoformat(),
        "guidance": options.guidance,
        "detector": detector.protocol.name,
    }
    card |= {"measured": summary(known)}
    (options.model / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
