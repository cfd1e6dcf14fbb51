"""What every method and control costs in the emoji world: seconds, passes of the UNet, peaks of memory.

Commands (two cores, nothing else running; ten and five minutes):

    python benchmarks/method_costs.py --out runs/methods
    python benchmarks/method_costs.py --part memory --out runs/methods

The constants are those of ``benchmarks/methods.py``, whose report takes up what is written here.
"""

import argparse
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from methods import CHOSEN, SEEDS, request

from analysis.plan import PLAIN
from metrics.machine import counting
from metrics.overhead import OverheadProtocol, measure
from regulate import Method, generate
from tracer import load_pipeline
from tracer.prompts import TEMPLATES, Prompt, load_prompts


def cost(out: Path, names: list[str]) -> None:
    """Measure seconds and passes of each method on three prompts, in turn, alone on the machine."""
    pipe, prompts = load_pipeline(), load_prompts(TEMPLATES)[::100]
    known = {prompt.text: prompt for prompt in prompts}
    runs = {name: partial(_made, pipe, known, CHOSEN[name]) for name in names if name != PLAIN}
    graph = {}
    for name in names:
        with counting(pipe.unet) as count:
            for prompt in prompts:
                generate(pipe, request(prompt), CHOSEN[name])
        graph[name] = count.with_gradient / len(prompts)
    protocol = OverheadProtocol("emoji", world="emoji", repeats=2, warmup=0, batch=len(SEEDS), steps=25)
    plain = partial(_made, pipe, known, Method())
    with counting(pipe.unet) as passes:
        rows = measure(plain, runs, list(known), np.random.default_rng(0), protocol, passes)
    table = pd.DataFrame([asdict(row) | {"with gradient": graph[row.method]} for row in rows])
    table = table.drop(columns=["protocol", "load", "peak_bytes"])  # one process keeps what its hungriest method took
    table.to_csv(out / "cost.csv", index=False)
    print(table[["method", "overhead", "seconds", "passes", "with gradient"]].round(3).to_string())


def _made(pipe: DiffusionPipeline, known: dict[str, Prompt], method: Method, text: str, seed: int) -> None:
    generate(pipe, request(known[text]), method)


def memory(out: Path, names: list[str]) -> None:
    """Measure the peak of resident memory while a batch of four is made, each method in a process of its own."""
    rows = []
    for name in names:
        command = [sys.executable, __file__, "--part", "peak", "--methods", name]
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"method": name, "peak_mb": float(told.stdout.split()[-1])})
        print(rows[-1])
    pd.DataFrame(rows).to_csv(out / "memory.csv", index=False)


def peak(out: Path, names: list[str]) -> None:
    """Print the peak of resident memory of one batch, in MB; loading is left out (Linux)."""
    pipe, prompt = load_pipeline(), load_prompts(TEMPLATES)[100]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    generate(pipe, request(prompt), CHOSEN[names[0]])
    line = next(line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith("VmHWM"))
    print(int(line.split()[1]) * 1024 / 1e6)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("cost", "memory", "peak"), default="cost")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--methods", nargs="+", default=list(CHOSEN))
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    {"cost": cost, "memory": memory, "peak": peak}[options.part](options.out, options.methods)


if __name__ == "__main__":
    main()
