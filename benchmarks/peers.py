"""What tracing a full-size UNet costs and loses, beside public tracers of cross-attention.

    pip install --no-deps --target PEERS/daam daam==0.2.0
    pip install --no-deps --target PEERS/attention_map_diffusers attention_map_diffusers==1.0.0
    python benchmarks/peers.py --peers PEERS               # --thin: a tenth of the channels, to try things out

SD 1.5's UNet with random weights of a fixed seed, made here: 512 px, guidance (a batch of 2), 77 tokens; a small text
encoder and VAE; latents are not decoded. Maps are not flat, see `full_size`. A pixel says little of its neighbour, so
bytes on disk are those of noise. daam needs spaCy for its parsing of words alone: where it is missing, a mock stands
in. Linux only. MB are 10^6 bytes. What is measured:

seconds   in one process, each variant between two plain runs; ratios to their mean (plain: to the plain run before).
          From entering the variant's block to leaving it: ours makes, fills and closes its file.
peak      of resident memory over that before the block, less the same of the plain run; in a process of its own, on
          the thin UNet, where blocks of 1 MiB and more go back to the system at once.
held      when the pipeline has returned: storages of new tensors, and what DuckDB and Arrow hold; disk: at the end.
maps      counted one by one in the file or the tensors; a map is of one head and one token, or sum of tokens.
error     largest difference of any map from a double-precision softmax beside the layer, in a run of one step.
"""

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain, product
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import MagicMock

import pyarrow
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from full_size import pipeline
from torch import Tensor

from tracer import EVERYTHING, Capture, Store, attending, attention_sites, recording

PROMPT = "a cat and a dog on a red apple"  # each word is one token
HALVES = ("uncond", "cond")


Key = tuple[str, int | None, str, int, tuple[int, ...]]  # layer, step (None: added up), half, head, tokens (added up)
Kept = Iterator[tuple[Key, Tensor, str]]  # a map, "pixel", and as what it is kept
# An arm traces the pipeline, and yields what returns the maps once it has been left, and our store.
Arm = Callable[[StableDiffusionPipeline, Path], AbstractContextManager[tuple[Callable[[], Kept], Store | None]]]


def run(pipe: StableDiffusionPipeline, steps: int) -> Tensor:
    """Return the latents of one image."""
    chance = torch.Generator().manual_seed(1)
    return pipe(PROMPT, num_inference_steps=steps, guidance_scale=7.5, generator=chance, output_type="latent").images


@contextmanager
def eager(unet: UNet2DConditionModel) -> Iterator[dict[str, Tensor]]:
    """Compute each layer's maps by hand, "half head token pixel", from what the layer is called with."""
    names = {module: name for name, module in unet.named_modules() if name.endswith("attn2")}
    found: dict[str, Tensor] = {}

    def hook(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        both = module.to_q(args[0]), module.to_k(kwargs["encoder_hidden_states"])
        query, key = (part.double().unflatten(-1, (module.heads, -1)).transpose(1, 2) for part in both)
        found[names[module]] = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mT.float()

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in names]
    yield found
    for handle in handles:
        handle.remove()


def whole(layer: str, step: int | None, half: str, maps: Tensor, first: int = 0) -> Kept:
    """Yield the maps, "head token pixel", of every token and of the heads from number `first` on."""
    for head, token in product(range(maps.shape[0]), range(maps.shape[1])):
        yield (layer, step, half, first + head, (token,)), maps[head, token], str(maps.dtype).removeprefix("torch.")


@contextmanager
def ours(capture: Capture, pipe: StableDiffusionPipeline, folder: Path) -> Iterator[Any]:
    """Record what `capture` asks for."""
    with recording(pipe, folder / "trace.duckdb", capture) as session:
        yield lambda: read(folder / "trace.duckdb"), session.store


def read(file: Path) -> Kept:
    """Yield the maps of a trace, as `Store.maps` returns them."""
    with Store.open(file) as store:
        tokens = store.sql("SELECT token, branch::VARCHAR AS half, kind::VARCHAR AS kind, is_kept FROM tokens")
        layers = store.sql("SELECT path, map_h FROM layers ORDER BY layer")
        kind = str(store.sql("SELECT capture->>'precision' FROM runs").iloc[0, 0])
        pads = tuple(tokens["token"][tokens["kind"] == "pad"])
        for row, (size, same) in product(tokens[tokens["is_kept"]].itertuples(), layers.groupby("map_h")):
            added = pads if row.kind == "padsum" else (row.token,)
            every = torch.from_numpy(store.maps(0, int(row.token), size=int(size), branch=row.half)).flatten(-2)
            for step, layer, head in product(*map(range, every.shape[:3])):
                yield (same["path"].iloc[layer], step, row.half, head, added), every[step, layer, head], kind


@contextmanager
def listed(pipe: StableDiffusionPipeline, folder: Path) -> Iterator[Any]:
    """Keep every map of the conditional half in a list."""
    kept: list[tuple[str, int, Tensor]] = []

    def record(tap: Any, edited: object) -> None:
        kept.append((tap.site, tap.call, tap.probs(slice(len(tap.query) // 2, None))))

    with attending(pipe.unet, attention_sites(pipe.unet), record=record):
        yield lambda: (one for site, step, probs in kept for one in whole(site, step, "cond", probs[0].mT)), None


@contextmanager
def daam(save_heads: bool, pipe: StableDiffusionPipeline, folder: Path) -> Iterator[Any]:
    """Keep daam's sums, or with `save_heads` its files."""
    names = {id(module): name for name, module in pipe.unet.named_modules()}

    def summed() -> Kept:
        for (_, layer, head), maps in trace.all_heat_maps:
            yield from whole(names[id(trace.module[layer].module)], None, "cond", maps.flatten(1)[None], head)

    def saved() -> Kept:
        hooked = {names.get(id(one.module)) for one in trace.module}
        order = [site for site in attention_sites(pipe.unet) if site in hooked]
        for file, (at, half) in product(folder.glob("*.pt"), enumerate(HALVES)):
            step, layer = divmod(int(file.stem), len(order))
            yield from whole(order[layer], step, half, torch.load(file).unflatten(0, (2, -1))[at].mT)

    with sys.modules["daam"].trace(pipe, save_heads=save_heads, data_dir=str(folder)) as trace:
        yield saved if save_heads else summed, None


@contextmanager
def amd(pipe: StableDiffusionPipeline, folder: Path) -> Iterator[Any]:
    """Keep what attention_map_diffusers keeps of all steps and heads."""

    def blocks() -> Kept:
        steps = sorted({record.timestep for record in capture.records}, reverse=True)
        for record, (at, half) in product(capture.records, enumerate(HALVES)):
            yield from whole(record.layer_id[5:], steps.index(record.timestep), half, record.data[at].mT)  # "unet."

    make = sys.modules["attention_map_diffusers"].AttentionCapture
    with make(pipe, timesteps="all", heads="all", mode="exact") as capture:
        yield blocks, None


PEERS = ("daam", "attention_map_diffusers")
VARIANTS: dict[str, Arm] = {  # those of a peer begin with its name
    "plain": lambda pipe, folder: nullcontext((lambda: iter(()), None)), "float32 list": listed,
    "ours, default": partial(ours, Capture()), "ours, EVERYTHING": partial(ours, EVERYTHING),
    "daam": partial(daam, False), "daam, save_heads": partial(daam, True), "attention_map_diffusers, exact": amd,
}  # fmt: skip


def variants(folder: Path | None) -> list[str]:
    """Import the peers that are there, and return the variants that can be run."""
    if importlib.util.find_spec("spacy") is None:
        sys.modules["spacy"] = sys.modules["spacy.tokens"] = MagicMock()
    there = tuple(peer for peer in PEERS if folder and (folder / peer / peer).is_dir())
    for peer in there:
        sys.path.append(f"{folder}/{peer}")
        importlib.import_module(peer)
    return [name for name in VARIANTS if not name.startswith(PEERS) or name.startswith(there)]


def resident(key: str) -> int:
    """Return "VmRSS", or its peak "VmHWM", in bytes."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) * 1024


def held(store: Store | None) -> tuple[set[tuple[int, int]], int]:
    """Return address and bytes of each storage of a live tensor, and the bytes of DuckDB and Arrow."""
    gc.collect()
    alive = [thing.untyped_storage() for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    duckdb = store.sql("SELECT sum(memory_usage_bytes) FROM duckdb_memory()").iloc[0, 0] if store else 0
    return {(storage.data_ptr(), storage.nbytes()) for storage in alive}, pyarrow.total_allocated_bytes() + int(duckdb)


def measure(name: str, pipe: StableDiffusionPipeline, steps: int) -> dict[str, Any]:
    """Return what a variant takes and keeps; its process should do nothing else."""
    run(pipe, 1)
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        before, _ = held(None)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM is VmRSS again
        start = resident("VmRSS")
        with VARIANTS[name](pipe, Path(first)) as (maps, store):
            run(pipe, steps)
            after, buffers = held(store)
        peak, new = resident("VmHWM") - start, buffers + sum(size for _, size in after - before)
        disk = sum(file.stat().st_size for file in Path(first).rglob("*"))
        kept = [(key, kind) for key, _, kind in maps()]
        with eager(pipe.unet) as model, VARIANTS[name](pipe, Path(second)) as (maps, _):
            run(pipe, 1)
        told = facts(kept, maps(), model, steps) if kept else ("", "", "")
        return {"peak": peak, "held": new, "disk": disk, "facts": told}


def facts(kept: list[tuple[Key, str]], once: Kept, model: dict[str, Tensor], steps: int) -> tuple[str, str, str]:
    """Return which maps there are, and what the model's have that these have not."""
    layers, taken, halves, heads, columns = map(set, zip(*(key for key, _ in kept), strict=True))  # type: ignore
    missed = [maps.shape[-1] for layer, maps in model.items() if layer not in layers]
    merged, tokens = [len(column) for column in columns if len(column) > 1], set(chain(*columns))
    _, all_heads, all_tokens, _ = next(iter(model.values())).shape
    error = max(
        (model[layer][HALVES.index(half), head, list(added)].sum(0) - maps).abs().max().item()
        for (layer, _, half, head, added), maps, _ in once
    )
    loses = {
        f"{len(missed)} of {len(model)} layers, of {missed} pixels": missed,
        f"{steps} steps as {len(taken)}": len(taken) < steps,
        f"{all_heads} heads as {len(heads)}": len(heads) < all_heads,
        f"{sum(merged)} tokens as {len(merged)}": merged,
        f"{all_tokens - len(tokens)} tokens": len(tokens) < all_tokens,
    }
    grid = " x ".join(str(len(part)) for part in (layers, heads, taken, columns))
    lost = "; ".join([*(fact for fact, true in loses.items() if true), f"error {error:.1e}"])
    return f"{grid}: {len(kept)}", f"{kept[0][1]}, {' + '.join(sorted(halves))}", lost


def timed(name: str, pipe: StableDiffusionPipeline, steps: int) -> tuple[float, Tensor]:
    """Return the seconds of a step, and the latents."""
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with VARIANTS[name](pipe, Path(folder)):
            latents = run(pipe, steps)
        return (time.perf_counter() - start) / steps, latents


def rows(told: dict[str, dict[str, Any]], order: list[str], runs: list[tuple[float, Tensor]]) -> Iterator[str]:
    """Yield the table; even runs are plain ones."""
    yield "| | s/step | ratio | peak MB | held MB | disk MB | layers x heads x steps x tokens | as | loses | latents |"
    yield "|---" * 10 + "|"
    for name, got in told.items():
        mine = [at for at, one in enumerate(order) if one == name and at]
        near = [(runs[at - 1][0], runs[at + 1][0]) if at % 2 else (runs[at - 2][0],) for at in mine]
        ratios = sorted(runs[at][0] / mean(beside) for at, beside in zip(mine, near, strict=True))
        apart = max((runs[at][1] - runs[0][1]).abs().max().item() for at in mine)
        cells = [name, f"{median(runs[at][0] for at in mine):.2f}"]
        cells += [f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"]
        cells += [f"{size / 1e6:.1f}" for size in (got["peak"] - told["plain"]["peak"], got["held"], got["disk"])]
        cells += [*got["facts"], f"changed by {apart:.1e}" if apart else "same"]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure every variant and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--thin", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variant", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    names, pipe = variants(options.peers), pipeline(thin=options.thin)
    if options.variant:
        print(json.dumps(measure(options.variant, pipe, options.steps)))
        return
    for name in VARIANTS.keys() - names:
        print(f"{name}: skipped, its package is not in {options.peers}")
    told, limits = {}, {f"MALLOC_{what}_THRESHOLD_": str(2**20) for what in ("MMAP", "TRIM")}
    for name in names:
        # what is kept, held and written depends on the maps, which a thin UNet has of the same sizes
        command = [sys.executable, *sys.argv, "--variant", name, "--thin"]
        told[name] = json.loads(subprocess.check_output(command, env=os.environ | limits).splitlines()[-1])
    timed("plain", pipe, 1)  # warm-up
    order = ["plain", *(one for _ in range(options.repeats) for name in names[1:] for one in (name, "plain"))]
    runs = [timed(name, pipe, options.steps) for name in order]
    print(*rows(told, order, runs), sep="\n")


if __name__ == "__main__":
    main()
