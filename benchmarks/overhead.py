"""What recording and regulation cost, as ratios to the plain pipeline, interleaved in one process.

Command: ``python benchmarks/overhead.py`` (two minutes on two cores). Prints medians over repeats, the ratio
of each run to the plain run beside it, and the spread of the plain runs, which is the machine's noise.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from regulate import AttentionRegulation, Method, Request, generate
from tracer import Capture, Store, load_pipeline


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes, the device's work included."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Time the variants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=4)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(options.model, device)
    request = Request("a cat and a dog", ("cat", "dog"), tuple(range(options.images)))
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "trace.duckdb") as store:
        exact = Capture(tokens="all", precision="float32")
        variants: dict[str, Callable[[], object]] = {
            "plain": lambda: generate(pipe, request),
            "plain, traced": lambda: generate(pipe, request, Method(), store),
            "plain, traced, every token exactly": lambda: generate(pipe, request, Method(), store, exact),
            "regulation": lambda: generate(pipe, request, AttentionRegulation()),
        }
        for run in variants.values():
            run()  # warm-up
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(options.repeats):
            for name, run in variants.items():
                seconds[name].append(timed(run))
    plain = seconds["plain"]
    print(f"{options.images} images, {request.steps} steps, {options.repeats} repeats, {device}, "
          f"{torch.get_num_threads()} threads; plain runs {min(plain):.2f} to {max(plain):.2f} s")  # fmt: skip
    for name, taken in seconds.items():
        ratios = [one / base for one, base in zip(taken, plain, strict=True)]
        print(f"{name:36} {median(taken):7.2f} s   x {median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
