"""What regulation costs a full-size model, in seconds, passes, memory, and operations.

Commands, each on an idle machine:

    python benchmarks/overhead.py --part seconds --family sd2     (ten minutes on two cores)
    python benchmarks/overhead.py --part memory --family sd2      (five minutes)
    python benchmarks/overhead.py --part emoji                    (two minutes; recording too)

Stable Diffusion's UNets at their true size with random weights, 512 pixels, guidance. Half of the steps are edited, as
in the paper's 25 of 50. A whole run's seconds differ by more than the method costs, so that the seconds of the edited
layers themselves are taken too, in the same runs: what they take more than in the plain run beside it is the method.
Plain is `Method()`, so that checking the prompt, once a call, is on both sides.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import torch
from diffusers import DiffusionPipeline
from full_size import PROMPT, pipeline

from regulate import METHODS, AttentionRegulation, Method, Request, applied, generate
from regulate.layers import chosen_sites
from tracer import Capture, Store, load_pipeline
from tracer.sites import attention_sites

TARGETS = ("cat", "glasses")
MOST, MOST_MEMORY = 1.5, 2.0  # percent over the plain run


class Clock:
    """Seconds in each edited layer, and passes of the UNet, while a block runs."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.passes = self.with_gradient = 0
        self._since: dict[str, float] = {}

    @contextmanager
    def on(self, pipe: DiffusionPipeline) -> Iterator["Clock"]:
        """Time the layers that regulation edits, whether it does or not."""
        with ExitStack() as stack:
            for site in chosen_sites(attention_sites(pipe.unet)):
                module = pipe.unet.get_submodule(site)

                def start(module: object, args: object, site: str = site) -> None:
                    self._since[site] = time.perf_counter()

                def stop(module: object, args: object, output: object, site: str = site) -> None:
                    self.seconds[site] += time.perf_counter() - self._since[site]

                stack.callback(module.register_forward_pre_hook(start).remove)
                stack.callback(module.register_forward_hook(stop).remove)
            stack.callback(pipe.unet.register_forward_pre_hook(self._passed).remove)
            yield self

    def _passed(self, module: object, args: object) -> None:
        self.passes += 1
        self.with_gradient += torch.is_grad_enabled()


def run(pipe: DiffusionPipeline, method: Method, steps: int) -> tuple[float, Clock]:
    """Return a generation's seconds, and its clock."""
    with Clock().on(pipe) as clock, applied(pipe, method, PROMPT, TARGETS) as block:
        start = time.perf_counter()
        pipe(
            PROMPT, num_inference_steps=steps, guidance_scale=7.5, generator=block.generators,
            output_type="latent", **block.call,
        )  # fmt: skip
        return time.perf_counter() - start, clock


def seconds(options: argparse.Namespace) -> int:
    """Time plain and regulated generations in turn, and print what regulation adds."""
    pipe = pipeline(options.family, options.thin)
    methods = {name: METHODS[name] for name in ("plain", *options.methods)}
    edited = sum(step < AttentionRegulation().until * options.steps for step in range(options.steps))
    for method in methods.values():
        run(pipe, method, 2)  # warm-up, layers' first passes included
    taken: dict[str, list[tuple[float, Clock]]] = {name: [] for name in methods}
    for _ in range(options.repeats):
        for name, method in methods.items():
            taken[name].append(run(pipe, method, options.steps))
    plain = taken.pop("plain")
    step = [whole / options.steps for whole, _ in plain]
    layers = len(plain[0][1].seconds)
    print(f"{options.family}: {options.steps} steps, {edited} edited, {layers} layers, {options.repeats} pairs, "
          f"{torch.get_num_threads()} threads; a plain step {median(step):.2f} s ({min(step):.2f} to {max(step):.2f}), "
          f"UNet passes {plain[0][1].passes}")  # fmt: skip
    worst = 0.0
    for name, runs in taken.items():
        ratio = [whole / base for (whole, _), (base, _) in zip(runs, plain, strict=True)]
        inside = [[sum(clock.seconds.values()) for _, clock in of] for of in (runs, plain)]
        extra = [more - base for more, base in zip(*inside, strict=True)]
        over = [100 * more / base for more, (base, _) in zip(extra, plain, strict=True)]
        print(f"{name}: whole runs {median(ratio):.3f} ({min(ratio):.3f} to {max(ratio):.3f}); UNet passes "
              f"{runs[0][1].passes}, {runs[0][1].with_gradient} of them with gradients")  # fmt: skip
        if isinstance(methods[name], AttentionRegulation):  # others have their cost elsewhere
            worst = max(worst, median(over))
            print(f"    in the layers {1e3 * median(extra) / edited / layers:.1f} ms an edited layer, overhead "
                  f"{median(over):.2f} % ({min(over):.2f} to {max(over):.2f})")  # fmt: skip
    print(f"verdict: {'holds' if worst <= MOST else 'FALLS SHORT'}: {worst:.2f} % (at most {MOST})")
    return int(worst > MOST)


def memory(options: argparse.Namespace) -> int:
    """Compare the peak of resident memory, each run in a process of its own."""
    peaks: dict[str, list[float]] = {"plain": [], "regulation": []}
    for _ in range(options.repeats):
        for name, found in peaks.items():
            command = [sys.executable, __file__, "--part", "peak", "--family", options.family, "--methods", name]
            told = subprocess.run([*command, *["--thin"] * options.thin], capture_output=True, text=True, check=True)
            found.append(float(told.stdout.split()[-1]))
    more = 100 * (median(peaks["regulation"]) / median(peaks["plain"]) - 1)
    for name, found in peaks.items():
        print(f"{name}: peak {median(found):.0f} MB ({min(found):.0f} to {max(found):.0f})")
    print(f"verdict: {'holds' if more <= MOST_MEMORY else 'FALLS SHORT'}: {more:.2f} % more (at most {MOST_MEMORY})")
    return int(more > MOST_MEMORY)


def peak(options: argparse.Namespace) -> int:
    """Print the peak of resident memory of two steps, the first of them edited; loading is left out (Linux)."""
    pipe = pipeline(options.family, options.thin)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    run(pipe, METHODS[options.methods[0]], 2)
    line = next(line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith("VmHWM"))
    print(int(line.split()[1]) / 1024)
    return 0


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes, the device's work included."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def emoji(options: argparse.Namespace) -> int:
    """Time recording and regulation on a small model, where they weigh most; `--model` takes any other."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(options.model, device)
    request = Request("a cat and a dog", ("cat", "dog"), tuple(range(4)))
    with tempfile.TemporaryDirectory() as folder, Store.create(Path(folder) / "trace.duckdb") as store:
        exact = Capture(tokens="all", precision="float32")
        variants: dict[str, Callable[[], object]] = {
            "plain": lambda: generate(pipe, request),
            "plain, traced": lambda: generate(pipe, request, Method(), store),
            "plain, traced, every token exactly": lambda: generate(pipe, request, Method(), store, exact),
            "regulation": lambda: generate(pipe, request, AttentionRegulation()),
        }
        for call in variants.values():
            call()  # warm-up
        found: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(options.repeats):
            for name, call in variants.items():
                found[name].append(timed(call))
    plain = found["plain"]
    print(f"4 images, {request.steps} steps, {options.repeats} repeats, {device}, "
          f"{torch.get_num_threads()} threads; plain runs {min(plain):.2f} to {max(plain):.2f} s")  # fmt: skip
    for name, taken in found.items():
        ratios = [one / base for one, base in zip(taken, plain, strict=True)]
        print(f"{name:36} {median(taken):7.2f} s   x {median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


def main() -> int:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"seconds": seconds, "memory": memory, "peak": peak, "emoji": emoji}
    parser.add_argument("--part", choices=parts, default="seconds")
    parser.add_argument("--family", choices=("sd1", "sd2"), default="sd2")
    parser.add_argument("--methods", nargs="+", default=["regulation"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--thin", action="store_true", help="a tenth of the channels, to try it out")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    return parts[options.part](options)


if __name__ == "__main__":
    sys.exit(main())
