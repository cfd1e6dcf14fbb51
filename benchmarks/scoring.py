"""Scoring against a plain loop over the same models, and a second call against the first.

Commands, on two cores:
    python benchmarks/scoring.py                      the emoji world, 512 images (five minutes)
    python benchmarks/scoring.py --size full --images 4 --repeats 1
                                                      networks of the released sizes, random weights, 512 pixels

The plain loop opens an image, asks every model in batches by the libraries' own calls, and keeps the numbers in a list:
no store, no hashes, no threads. It runs at the batch size that was best for it in a first round; both load their models
in each round. Loop, scoring and second call take turns; printed are medians, the ratio of each scoring to the loop
beside it, and the spread of the loop, which is the noise.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1
from torchvision.transforms.functional import to_tensor
from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

from metrics.lpips_score import load_lpips
from metrics.pictures import Picture
from metrics.protocols import ClipProtocol, DetectionProtocol, LpipsProtocol, emoji_clip, emoji_detection, emoji_lpips
from metrics.scoring import score
from tracer.folders import emoji_world
from tracer.scenes import caption, render, sample_scene
from tracer.store import Store

Protocols = tuple[DetectionProtocol, ClipProtocol, LpipsProtocol]


@dataclass(frozen=True)
class Bench:
    """Images of two methods, and how they are scored."""

    pictures: list[Picture]
    protocols: Protocols


def pictures(folder: Path, count: int, side: int) -> list[Picture]:
    """Write rendered scenes of a plain and another method as PNG files."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count // 2):
        scene = sample_scene(rng, count=2)
        for method in ("plain", "other"):
            path = folder / method / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(render(scene)).resize((side, side)).save(path)
            targets = tuple(thing.word for thing in scene.things)
            made.append(Picture(path, caption(scene.things), number, method, f"p{number}", targets))
    return sorted(made, key=lambda one: one.method, reverse=True)


def full_size(folder: Path) -> Protocols:
    """Write networks of the released sizes with random weights, in the layouts of the released ones."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(emoji_world() / "sd" / "tokenizer", local_files_only=True)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"max_position_embeddings": tokenizer.model_max_length} | ends
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "image_size": 960,
        "patch_size": 16,
    }
    owl = Owlv2ForObjectDetection(Owlv2Config(text_config=text, vision_config=vision, projection_dim=512))
    owl.save_pretrained(folder / "owlv2")
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 960, "width": 960}), tokenizer).save_pretrained(folder / "owlv2")
    config = open_clip.get_model_config("ViT-B-16-quickgelu")
    config["text_cfg"] |= {"hf_tokenizer_name": "tokenizer", "vocab_size": len(tokenizer), "context_length": 16}
    (folder / "clip").mkdir()
    save_file(open_clip.CLIP(**config).state_dict(), folder / "clip" / "open_clip_model.safetensors")
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    preprocess = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    whole = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "clip" / "open_clip_config.json").write_text(json.dumps(whole))
    tokenizer.save_pretrained(folder / "clip")
    (folder / "features").mkdir()
    save_file(squeezenet1_1(weights=None).features.state_dict(), folder / "features" / "model.safetensors")
    names = [str(folder / name) for name in ("owlv2", "clip", "features")]
    return (
        DetectionProtocol(names[0]),
        ClipProtocol(names[1], pretrained=None),
        LpipsProtocol(names[2], net="squeeze", heads=False),
    )


@torch.inference_mode()
def plain_loop(bench: Bench, batch: int) -> None:
    """Load the models and score all images as a script would, by the libraries' own calls."""
    detection, clip, lpips = bench.protocols
    owl = Owlv2ForObjectDetection.from_pretrained(detection.checkpoint, dtype=torch.float32).eval()
    processor = Owlv2Processor.from_pretrained(detection.checkpoint)
    name = f"local-dir:{clip.checkpoint}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, require_pretrained=True)
    tokenizer, distance = open_clip.get_tokenizer(name), load_lpips(lpips).model
    plain = {(one.prompt, one.seed): one.path for one in bench.pictures if one.method == "plain"}
    kept = []
    for start in range(0, len(bench.pictures), batch):
        part = bench.pictures[start : start + batch]
        images = [Image.open(one.path).convert("RGB") for one in part]
        queries = [[detection.query(target) for target in one.targets] for one in part]
        outputs = owl(**processor(text=queries, images=images, return_tensors="pt"))
        sizes = [image.size[::-1] for image in images]
        kept += processor.post_process_grounded_object_detection(outputs, 0.1, sizes, queries)
        seen = model.eval().encode_image(torch.stack([preprocess(image) for image in images]), normalize=True)
        read = model.encode_text(tokenizer([one.prompt for one in part]), normalize=True)
        kept += (seen * read).sum(-1).tolist()
        pairs = [(i, plain[one.prompt, one.seed]) for i, one in zip(images, part, strict=True) if one.method != "plain"]
        if pairs:
            ones = torch.stack([to_tensor(image) for image, _ in pairs])
            others = torch.stack([to_tensor(Image.open(path).convert("RGB")) for _, path in pairs])
            kept += distance(ones, others, normalize=True).flatten().tolist()


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rounds(bench: Bench, sizes: Sequence[int], repeats: int, folder: Path) -> None:
    """Find the loop's best batch, then take turns, and print."""
    plain_loop(bench, sizes[0])  # warm-up
    first = {size: timed(lambda size=size: plain_loop(bench, size)) for size in sizes}
    best = min(first, key=lambda size: first[size])
    print("plain loop by batch size: " + ", ".join(f"{size}: {taken:.2f} s" for size, taken in first.items()))
    taken: dict[str, list[float]] = {"loop": [], "first": [], "second": []}
    for number in range(repeats):
        taken["loop"].append(timed(lambda: plain_loop(bench, best)))
        with Store.create(folder / f"{number}.duckdb") as store:
            for name in ("first", "second"):
                taken[name].append(timed(lambda store=store: score(store, bench.pictures, bench.protocols)))
    report(taken, best, len(bench.pictures))


def report(taken: dict[str, list[float]], best: int, images: int) -> None:
    """Print medians, ratios and noise."""
    loop, first, second = taken["loop"], taken["first"], taken["second"]
    ratios = [one / base for one, base in zip(first, loop, strict=True)]
    faster = [one / two for one, two in zip(first, second, strict=True)]
    print(f"{images} images, {len(loop)} rounds, {torch.get_num_threads()} threads; the loop's best batch is {best}")
    print(f"plain loop   {median(loop):8.2f} s  ({min(loop):.2f} to {max(loop):.2f})")
    spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
    print(f"score()      {median(first):8.2f} s  x {median(ratios):.3f} of the loop {spread}")
    spread = f"({min(faster):.0f} to {max(faster):.0f})"
    print(f"second call  {median(second):8.3f} s  {median(faster):.0f} times faster {spread}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("emoji", "full"), default="emoji")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = options.size == "emoji"
        protocols = (emoji_detection(), emoji_clip(), emoji_lpips()) if small else full_size(folder)
        bench = Bench(pictures(folder, options.images, 64 if small else 512), protocols)
        rounds(bench, (1, 8, 16, 32, 64) if small else (1, 2), options.repeats, folder)


if __name__ == "__main__":
    main()
