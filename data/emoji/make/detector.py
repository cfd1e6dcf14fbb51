"""Train the emoji world's detector: OWLv2's architecture at 64 px, 8x8 boxes, text queries for 24 nouns.

Command: ``python data/emoji/make/detector.py`` (about half an hour on one core; resumes by itself), then
``python data/emoji/make/measure_detector.py``. Needs ``data/emoji/sd/vae``; writes ``data/emoji/owlv2``.
Learns from rendered scenes, half of them passed through the autoencoder, never from generated images.

The loss is ours, since transformers has none for OWLv2: the cell that holds the centre of a thing answers
to its noun (focal loss, arXiv 1708.02002), cells beside it are left alone, all others answer to nothing;
boxes by L1 and generalised IoU with the weights of DETR (arXiv 2005.12872).
"""

import argparse
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import tokenizer as emoji_tokenizer
import torch
from detector_data import Labels, Pixels, autoencoder, cached, decoded, fresh, rendered
from hard_scenes import NOUNS
from loop import Schedule, train
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss
from transformers import (
    CLIPTokenizer,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
)

from tracer.scenes import COLOURS, OBJECTS, SIZE, article

WORLD = Path(__file__).resolve().parent.parent
WORK = WORLD.parent.parent / "build" / "detector"
SCHEDULE = Schedule(steps=6_500, rate=1.2e-3, batch=32, warmup=150, decay_from=0.55, average=0.997, weight_decay=0.05)
RENDERED, DECODED = 24_000, 10_000  # pictures in the pools
RENDERED_ONLY = 500  # steps; then five of eight pictures are decoded ones, so more than half over all
FRESH_FROM, FRESH = 3_500, 6  # step from which so many of a batch are new even blends and single things
SEED = 77_000_000  # of the pools; `measure_detector.py` uses others
PATCH = 8
CELLS = SIZE // PATCH
WIDTH, LAYERS, TEXT_WIDTH = 128, 4, 128
RIDGE = 0.01  # of the text projection's closed form
BESIDE = 7.0  # pixels: a cell whose centre is nearer than this to a thing's is neither asked nor punished
FOCUS, BALANCE = 2.0, 0.35  # of the focal loss: exponent, weight of the positives
L1_WEIGHT, IOU_WEIGHT = 5.0, 2.0


def network(tokenizer: CLIPTokenizer) -> Owlv2ForObjectDetection:
    """Return the untrained detector; the library's own initial weights are too small to learn from."""
    heads = {"num_attention_heads": 4}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": TEXT_WIDTH, "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2, "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
        "image_size": SIZE, "patch_size": PATCH,
    }  # fmt: skip
    config = Owlv2Config(text_config=text | heads, vision_config=vision | heads, projection_dim=TEXT_WIDTH)
    model = Owlv2ForObjectDetection(config)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(model.owlv2.text_model.embeddings.token_embedding.weight, std=0.5)
    nn.init.normal_(model.owlv2.vision_model.embeddings.position_embedding.weight, std=0.1)
    nn.init.constant_(model.class_head.logit_scale.bias, 10.0)  # else logits stay in [-1, 1]
    nn.init.zeros_(model.class_head.logit_scale.weight)
    nn.init.zeros_(model.class_head.logit_shift.weight)
    nn.init.constant_(model.class_head.logit_shift.bias, -0.4)  # starts at a probability of about 1 %
    nn.init.zeros_(model.box_head.dense2.weight)
    return model


def phrases() -> tuple[list[str], list[int]]:
    """Return ways to ask for every noun, and the noun that each asks for; the detector's own counts most."""
    texts: list[str] = []
    nouns: list[int] = []
    for index, noun in enumerate(NOUNS):
        ways = [f"a photo of {article(noun)}"] * 6 + [article(noun), noun]
        if noun in OBJECTS:
            ways += [f"a photo of {article(f'{colour} {noun}')}" for colour in COLOURS]
        texts += ways
        nouns += [index] * len(ways)
    return texts, nouns


@torch.no_grad()
def fit_text(model: Owlv2ForObjectDetection, tokenizer: CLIPTokenizer) -> Tensor:
    """Set the text projection in closed form and return the query of every noun, "noun channel".

    The random text encoder stays as it is: 24 nouns need no more. Ridge regression sends all ways to ask
    for a noun to one direction, and the nouns to directions at right angles.
    """
    texts, nouns = phrases()
    pooled = model.owlv2.text_model(**tokenizer(texts, padding="max_length", return_tensors="pt")).pooler_output
    directions = nn.init.orthogonal_(torch.empty(TEXT_WIDTH, TEXT_WIDTH))[nouns]
    squares = pooled.T @ pooled + RIDGE * torch.eye(TEXT_WIDTH)
    model.owlv2.text_projection.weight.copy_(torch.linalg.solve(squares, pooled.T @ directions).T)
    model.owlv2.text_model.requires_grad_(False)
    model.owlv2.text_projection.requires_grad_(False)
    queries = model.owlv2.text_projection(pooled)[[nouns.index(index) for index in range(len(NOUNS))]]
    return F.normalize(queries, dim=-1)


class Pool:
    """Both pools, and how batches are drawn from them."""

    def __init__(self, work: Path, vae: Path):
        """Read the pools from `work`, or make them there when they are first needed."""
        self.makers: list[Callable[[], tuple[Pixels, Labels]]] = [
            cache(lambda: cached(work, "rendered", lambda: rendered(SEED, RENDERED))),
            cache(lambda: cached(work, "decoded", lambda: decoded(autoencoder(vae), SEED + 1, DECODED))),
        ]

    def draw(self, rng: np.random.Generator, sizes: tuple[int, int, int]) -> tuple[Tensor, np.ndarray]:
        """Return images "batch 3 height width" in [0, 1], moved, mirrored and spoiled, and their labels."""
        images, labels = [], []
        for make, size in zip([*self.makers, lambda: fresh(rng, sizes[-1])], sizes, strict=True):
            if size == 0:
                continue
            pixels, known = make()
            chosen = np.arange(size) if len(pixels) == size else np.sort(rng.integers(0, len(pixels), size))
            for index in chosen:
                image, label = moved(rng, pixels[index], known[index].copy())
                images.append(image)
                labels.append(label)
        return spoiled(rng, torch.from_numpy(np.stack(images))), np.stack(labels)


def moved(rng: np.random.Generator, image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture and its label row shifted as far as the things stay inside, and perhaps mirrored."""
    real = label[:, 0] >= 0
    boxes = label[real, 1:5]
    low = -boxes[:, :2].min(0) if len(boxes) else np.zeros(2)
    high = SIZE - boxes[:, 2:].max(0) if len(boxes) else np.zeros(2)
    dx, dy = (int(rng.integers(max(a, -8), min(b, 8) + 1)) for a, b in zip(low, high, strict=True))
    across, down = np.clip(np.arange(SIZE) - dx, 0, SIZE - 1), np.clip(np.arange(SIZE) - dy, 0, SIZE - 1)
    image = image[down][:, across]
    boxes = boxes + np.array([dx, dy, dx, dy], np.float32)
    if rng.random() < 0.5:
        image, boxes = image[:, ::-1], boxes * [-1, 1, -1, 1] + [SIZE, 0, SIZE, 0]
        boxes = boxes[:, [2, 1, 0, 3]]
    label[real, 1:5] = boxes
    return np.ascontiguousarray(image), label


def spoiled(rng: np.random.Generator, pixels: Tensor) -> Tensor:
    """Return pictures in [0, 1], some of them blurred, noisy, darker or lighter."""
    images = pixels.permute(0, 3, 1, 2).float() / 255
    count = len(images)
    blur = torch.from_numpy(rng.uniform(0, 1, count) * (rng.random(count) < 0.3)).float().view(-1, 1, 1, 1)
    images = torch.lerp(images, F.avg_pool2d(F.pad(images, (1, 1, 1, 1), "replicate"), 3, 1), blur)
    gain = torch.from_numpy(1 + rng.uniform(-0.12, 0.12, (count, 3, 1, 1))).float()
    strength = rng.uniform(0, 0.06, count) * (rng.random(count) < 0.4)
    noise = torch.from_numpy(rng.standard_normal(tuple(images.shape), dtype=np.float32))
    return (images * gain + torch.from_numpy(strength).float().view(-1, 1, 1, 1) * noise).clamp(0, 1)


def wanted(labels: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what every cell should say.

    Returns:
        class targets "batch cell noun" in {0, 1}, their weights "batch cell noun" in {0, 1},
        boxes "batch cell 4" (left, top, right, bottom in [0, 1]), their weights "batch cell" in [0, 1].
    """
    count, cells = len(labels), CELLS * CELLS
    answer = np.zeros((count, cells, len(NOUNS)), np.float32)
    weight, boxes = np.ones_like(answer), np.zeros((count, cells, 4), np.float32)
    box_weight = np.zeros((count, cells), np.float32)
    middle = np.stack(np.meshgrid(*(np.arange(CELLS) + 0.5,) * 2, indexing="xy"), -1).reshape(-1, 2) * PATCH
    for i, rows in enumerate(labels):
        for noun, *box, sure in sorted(rows[rows[:, 0] >= 0].tolist(), key=lambda row: row[-1]):
            noun, box = int(noun), np.array(box, np.float32)
            centre = (box[:2] + box[2:]) / 2
            if not sure:
                weight[i, (middle > box[:2]).all(1) & (middle < box[2:]).all(1), noun] = 0
                continue
            gap = np.abs(middle - centre).max(1)
            home, beside = int(gap.argmin()), gap < BESIDE
            weight[i, beside, noun] = 0
            weight[i, home, noun] = answer[i, home, noun] = 1
            beside &= box_weight[i] < 1
            boxes[i, beside], box_weight[i, beside] = box / SIZE, 0.3
            boxes[i, home], box_weight[i, home] = box / SIZE, 1
    return tuple(torch.from_numpy(a) for a in (answer, weight, boxes, box_weight))


def loss_of(model: Owlv2ForObjectDetection, queries: Tensor, pool: Pool, step: int) -> Tensor:
    """Return the loss of one step: classes, boxes and objectness."""
    late = SCHEDULE.batch * 5 // 8 if step >= RENDERED_ONLY else 0
    new = FRESH if step >= FRESH_FROM else 0
    images, labels = pool.draw(np.random.default_rng((SEED, step)), (SCHEDULE.batch - late - new, late, new))
    answer, weight, boxes, box_weight = wanted(labels)
    config = Owlv2ImageProcessor()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (config.image_mean, config.image_std))
    grid, _ = model.image_embedder((images - mean) / std)
    features = grid.flatten(1, 2)
    logits, _ = model.class_predictor(features, queries.expand(len(images), -1, -1))
    positives = answer.sum().clamp(min=1)
    classes = (focal(logits, answer) * weight).sum() / positives
    thing = F.binary_cross_entropy_with_logits(
        model.objectness_predictor(features), answer.amax(-1), weight.amin(-1).maximum(answer.amax(-1))
    )
    centre, extent = model.box_predictor(features, grid).split(2, -1)
    corners = torch.cat([centre - extent / 2, centre + extent / 2], -1)
    used = box_weight > 0
    apart = (corners - boxes).abs().sum(-1)[used]
    outside = generalized_box_iou_loss(corners[used], boxes[used])
    misplaced = (L1_WEIGHT * apart + IOU_WEIGHT * outside) * box_weight[used]
    placing = misplaced.sum() / box_weight.sum().clamp(min=1)
    return classes + 0.5 * placing + 0.1 * thing


def focal(logits: Tensor, answer: Tensor) -> Tensor:
    """Return the focal loss of every cell and noun."""
    cross = F.binary_cross_entropy_with_logits(logits, answer, reduction="none")
    miss = (logits.sigmoid() - answer).abs()
    return torch.where(answer > 0, BALANCE, 1 - BALANCE) * 4 * miss**FOCUS * cross


def main() -> None:
    """Train and save; the threshold is set by ``measure_detector.py``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--vae", type=Path, default=WORLD / "sd" / "vae")
    parser.add_argument("--out", type=Path, default=WORLD / "owlv2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = emoji_tokenizer.build(arguments.work / "tokenizer")
    torch.manual_seed(SCHEDULE.seed)  # only for the untrained weights
    model = network(tokenizer)
    queries = fit_text(model, tokenizer)
    pool = Pool(arguments.work, arguments.vae)
    average = train(model, lambda step, generator: loss_of(model, queries, pool, step), SCHEDULE, arguments.work)
    model.load_state_dict(average, strict=False)  # everything but buffers
    save(model, tokenizer, arguments.out)
    shutil.copy(arguments.work / "loss.csv", arguments.out / "loss.csv")


def save(model: Owlv2ForObjectDetection, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the folder that transformers loads: weights in float16, computing in float32."""
    model.half().save_pretrained(folder)
    images = Owlv2ImageProcessor(size={"height": SIZE, "width": SIZE})
    Owlv2Processor(images, tokenizer).save_pretrained(folder)
    config = folder / "config.json"
    text = config.read_text().replace('"dtype": "float16"', '"dtype": "float32"')
    partial = config.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, config)


if __name__ == "__main__":
    main()
