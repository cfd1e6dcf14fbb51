"""Train the emoji world's CLIP: open_clip's layout at 64 px, the world's own words, captions that differ in a word.

Command: ``python data/emoji/make/clip.py`` (about ten minutes of a free core; resumes by itself), then
``python data/emoji/make/measure_clip.py``. Needs ``data/emoji/sd/vae`` and ``data/emoji/owlv2``; writes
``data/emoji/clip``.
Learns from rendered scenes, half of them passed through the autoencoder, never from generated images.

The loss is CLIP's (arXiv 2103.00020), with wrong captions and wrong pictures made for each right one, as in NegCLIP
(arXiv 2210.01936): a batch holds twins, scenes that differ in one thing, and every picture also has captions with
one change. Captions that say the same count as neither right nor wrong. So that so few pictures are enough, the
cells of the picture are asked as well for the thing and the colour that they show; that layer is not kept. The
image tower starts from the detector's, as OWLv2's own started from CLIP's: the two do not err independently.
"""

import argparse
import json
import math
import shutil
from functools import cache, partial
from pathlib import Path

import numpy as np
import open_clip
import tokenizer as emoji_tokenizer
import torch
from detector import moved, spoiled
from detector_data import autoencoder, cached
from evaluator_scenes import HUES, as_things, captioned_as, contrasts, decoded, key_of, on_cells, twins
from hard_scenes import NOUNS
from loop import Schedule, train
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from tracer.scenes import SIZE

WORLD = Path(__file__).resolve().parent.parent
WORK = WORLD.parent.parent / "build" / "clip"
# the rate never falls: the average of the weights does what its fall would do
SCHEDULE = Schedule(steps=940, rate=6e-4, batch=32, warmup=100, decay_from=0.999, average=0.995, weight_decay=0.05)
RENDERED, DECODED = 9_000, 3_500  # pairs of twins in the pools
RENDERED_ONLY = 250  # steps; then five of eight pictures are decoded ones, so more than half over all
WRONG = 2  # captions with one change for each picture
TEMPLATED = 6  # each so many steps, captions stand in the 80 templates that ensembles are taken over
SEED = 78_000_000  # of the pools; `measure_clip.py` uses others
PATCH, WIDTH, LAYERS, EMBED = 8, 128, 4, 192  # the first three are the detector's
NOTHING = 0.1  # weight of a cell that shows nothing
MIDDLES = np.stack(np.meshgrid(*(np.arange(SIZE // PATCH) + 0.5,) * 2, indexing="xy"), -1).reshape(-1, 2) * PATCH


def config(words: int) -> dict[str, dict[str, object]]:
    """Return the content of ``open_clip_config.json`` for a vocabulary of so many tokens."""
    size = {"width": WIDTH, "mlp_ratio": 2.0}
    vision = {"image_size": SIZE, "patch_size": PATCH, "layers": LAYERS, "head_width": 32, "pool_type": "avg"} | size
    text = {
        "context_length": 48, "vocab_size": words, "heads": 4, "layers": 2,
        "hf_tokenizer_name": "emoji",  # not looked up: open_clip takes the tokenizer of the folder itself
    } | size  # fmt: skip
    images = {
        "mean": OPENAI_DATASET_MEAN,
        "std": OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    model = {"embed_dim": EMBED, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    return {"model_cfg": model, "preprocess_cfg": images}


@torch.no_grad()
def start_from(detector: Path, visual: nn.Module) -> None:
    """Copy the detector's image tower into open_clip's, which names the same weights otherwise."""
    old = load_file(detector / "model.safetensors")
    old = {name.removeprefix("owlv2.vision_model."): value.float() for name, value in old.items()}
    new = {
        "class_embedding": old["embeddings.class_embedding"],
        "positional_embedding": old["embeddings.position_embedding.weight"],
        "conv1.weight": old["embeddings.patch_embedding.weight"],
        "proj": visual.proj,
    }
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for kind in ("weight", "bias"):
        new |= {f"ln_pre.{kind}": old[f"pre_layernorm.{kind}"], f"ln_post.{kind}": old[f"post_layernorm.{kind}"]}
        for layer in range(LAYERS):
            here, there = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            new |= {f"{here}.{name}.{kind}": old[f"{there}.{other}.{kind}"] for name, other in names.items()}
            parts = [old[f"{there}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            new[f"{here}.attn.in_proj_{kind}"] = torch.cat(parts)
    visual.load_state_dict(new)


class Pool:
    """Twins as rendered and as decoded, and how batches are drawn from them."""

    def __init__(self, work: Path, vae: Path):
        """Read the pools from `work`, or make them there when they are first needed."""
        drawn, passed = partial(twins, SEED, RENDERED), partial(twins, SEED + 1, DECODED)
        self.makers = [
            cache(lambda: cached(work, "rendered", drawn)),
            cache(lambda: cached(work, "decoded", lambda: decoded(autoencoder(vae), SEED + 1, passed, noisy=True))),
        ]

    def draw(self, rng: np.random.Generator, sizes: tuple[int, int]) -> tuple[Tensor, np.ndarray]:
        """Return images "batch 3 height width" in [0, 1], moved, mirrored and spoiled, and their labels."""
        images, labels = [], []
        for make, size in zip(self.makers, sizes, strict=True):
            if size == 0:
                continue
            pixels, known = make()
            for pair in rng.integers(0, len(pixels) // 2, size // 2):
                for index in (2 * pair, 2 * pair + 1):
                    image, label = moved(rng, pixels[index], known[index].copy())
                    images.append(image)
                    labels.append(label)
        return spoiled(rng, torch.from_numpy(np.stack(images))), np.stack(labels)


def templated(rng: np.random.Generator, text: str, wild: bool) -> str:
    """Return a caption as it is or, now and then, in one of the templates of CLIP's own ensemble."""
    if not wild:
        return f"a photo of {text}" if rng.random() < 0.1 else text
    template = OPENAI_IMAGENET_TEMPLATES[int(rng.integers(len(OPENAI_IMAGENET_TEMPLATES)))]
    return template(text).replace("a a", "a").replace("the a", "a")  # as Attend-and-Excite repairs the articles


def texts_of(rng: np.random.Generator, labels: np.ndarray, wild: bool) -> tuple[list[str], Tensor]:
    """Return the pictures' captions, then `WRONG` wrong ones for each, and which "picture text" not to count.

    A text is not counted for a picture if it says the same as the picture's own caption and is not it.
    """
    things = [as_things(rows) for rows in labels]
    named = things + [other for own in things for other in contrasts(rng, own, WRONG)]
    keys = [key_of(one) for one in named]
    same = np.array([[key == own for key in keys] for own in keys[: len(things)]])
    same[np.arange(len(things)), np.arange(len(things))] = False
    return [templated(rng, captioned_as(rng, one), wild) for one in named], torch.from_numpy(same)


def embedded(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Return what `encode_text` returns, without working through the padding."""
    length = tokens.shape[1]
    states = model.token_embedding(tokens) + model.positional_embedding[:length]
    states = model.ln_final(model.transformer(states, attn_mask=model.attn_mask[:length, :length]))
    return states[torch.arange(len(tokens)), tokens.argmax(-1)] @ model.text_projection


def loss_of(parts: nn.ModuleDict, tokenizer: CLIPTokenizer, pool: Pool, step: int) -> Tensor:
    """Return the loss of one step: pictures and captions, and what the cells show."""
    rng = np.random.default_rng((SEED, step))
    late = SCHEDULE.batch * 5 // 8 if step >= RENDERED_ONLY else 0
    images, labels = pool.draw(rng, (SCHEDULE.batch - late, late))
    texts, same = texts_of(rng, labels, wild=step % TEMPLATED == TEMPLATED - 1)
    model = parts["clip"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    pooled, cells = model.visual((images - mean) / std)
    tokens = tokenizer(texts, padding=True, return_tensors="pt", truncation=False, verbose=False)["input_ids"]
    scale = model.logit_scale.clamp(max=math.log(100)).exp()
    scores = scale * F.normalize(pooled, dim=-1) @ F.normalize(embedded(model, tokens), dim=-1).T
    scores = scores.masked_fill(same, -torch.inf)
    right = torch.arange(len(images))
    matching = F.cross_entropy(scores, right) + F.cross_entropy(scores[:, : len(images)].T, right)
    return matching / 2 + shown(parts["cells"](cells), labels)


def shown(answers: Tensor, labels: np.ndarray) -> Tensor:
    """Return the loss of asking every cell, "batch cell answer", for its noun and its colour."""
    nouns, colours = (torch.from_numpy(a).flatten() for a in on_cells(labels, MIDDLES))
    weight = torch.ones(len(NOUNS) + 1)
    weight[-1] = NOTHING
    of_nouns, of_colours = answers.flatten(0, 1).split([len(NOUNS) + 1, len(HUES) + 1], -1)
    return F.cross_entropy(of_nouns, nouns, weight) + 0.5 * F.cross_entropy(of_colours, colours)


def main() -> None:
    """Train and save; ``measure_clip.py`` measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--vae", type=Path, default=WORLD / "sd" / "vae")
    parser.add_argument("--detector", type=Path, default=WORLD / "owlv2")
    parser.add_argument("--out", type=Path, default=WORLD / "clip")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # the autoencoder slows down without
    tokenizer = emoji_tokenizer.build(arguments.work / "tokenizer")
    torch.manual_seed(SCHEDULE.seed)  # only for the untrained weights
    model = open_clip.CLIP(**config(len(tokenizer))["model_cfg"])
    start_from(arguments.detector, model.visual)
    model.visual.output_tokens = True
    parts = nn.ModuleDict({"clip": model, "cells": nn.Linear(WIDTH, len(NOUNS) + len(HUES) + 2)})
    pool = Pool(arguments.work, arguments.vae)
    average = train(parts, lambda step, generator: loss_of(parts, tokenizer, pool, step), SCHEDULE, arguments.work)
    weights = {name.removeprefix("clip."): value for name, value in average.items() if name.startswith("clip.")}
    save(weights, len(tokenizer), arguments.out)
    shutil.copy(arguments.work / "loss.csv", arguments.out / "loss.csv")


def save(weights: dict[str, Tensor], words: int, folder: Path) -> None:
    """Write the folder that open_clip loads: weights in float16, which it copies into float32."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config(words), indent=1) + "\n")
    save_file(
        {name: value.half().contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors"
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(WORLD / "sd" / "tokenizer" / name, folder / name)


if __name__ == "__main__":
    main()
