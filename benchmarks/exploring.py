"""How long the explorer takes to answer, and how much of a trace it reads.

    python benchmarks/exploring.py                (two minutes on two cores)

A trace of ten images of the emoji world (25 steps, every layer, head and word, 8 bits), half plain and half regulated.
An answer is what happens in Python between the page's question and the message that goes back to it: two hundred
choices, each with one thing changed (word, step, layers, head, image, a second image beside), drawn from a seed. The
trace is asked through an open store and by its path, which is opened anew for every answer, in turn. The target is
100 ms. What is read is what the process asks of the operating system.
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import torch

from analysis import explore
from analysis.explorer.widget import Explorer
from regulate import METHODS, Request, generate
from tracer import Store, load_pipeline

TARGET = 0.1  # seconds
IMAGES = 10


def trace_in(folder: Path) -> Path:
    """Make the trace of ten images."""
    path, pipe = folder / "trace.duckdb", load_pipeline()
    with Store.create(path) as store:
        request = Request("a cat and a lion", ("cat", "lion"), tuple(range(IMAGES // 2)))
        for method in (None, METHODS["regulation"]):
            generate(pipe, request, method, trace=store, folder=folder)
    return path


def choices(explorer: Explorer, chance: random.Random, count: int) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield what is asked for: what is changed, and the whole choice."""
    for _ in range(count):
        offered = explorer.choices
        images = [number for number, _ in offered["images"]]
        name, found = chance.choice(
            [
                ("word", [word for word, _ in offered["words"]]),
                ("step", offered["steps"]),
                ("layers", offered["layers"]),
                ("head", [-1, *offered["heads"]]),
                ("image", images),
                ("other", [None, *images]),
            ]
        )
        others = [one for one in found if one != explorer.selection[name]]  # the same again would not be asked
        yield name, explorer.selection | {name: chance.choice(others)}


def answers(explorer: Explorer, chance: random.Random, count: int) -> list[tuple[str, float]]:
    """Ask as the page does, and return what was changed and the seconds of each answer."""
    found = []
    for name, choice in choices(explorer, chance, count):
        start = time.perf_counter()
        explorer.selection = choice
        found.append((name, time.perf_counter() - start))
    return found


def bytes_read() -> int:
    """Return what this process has asked the system to read, in bytes (Linux)."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["rchar"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", type=int, default=200)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    with TemporaryDirectory() as folder:
        path = trace_in(Path(folder))
        size = path.stat().st_size
        with Store.open(path) as store:
            shown = {"open store": explore(store), "by its path": explore(path)}
            chances = {how: random.Random(0) for how in shown}
            for how, explorer in shown.items():
                answers(explorer, chances[how], 10)  # not counted
            seconds: dict[str, list[tuple[str, float]]] = {how: [] for how in shown}
            read = dict.fromkeys(shown, 0)
            for _ in range(4):
                for how, explorer in shown.items():
                    before = bytes_read()
                    seconds[how] += answers(explorer, chances[how], options.choices // 4)
                    read[how] += bytes_read() - before
    print(f"trace of {size / 1e6:.1f} MB")
    for how, found in seconds.items():
        print(f"{how}: {read[how] / len(found) / 1e6:.2f} MB read for an answer")
        told(how, [taken for _, taken in found])
        for name in sorted({name for name, _ in found}):
            told(f"  {name}", [taken for changed, taken in found if changed == name])


def told(what: str, seconds: list[float]) -> None:
    """Print a line: the median, the 95th percentile and the longest."""
    most = quantiles(seconds, n=20)[-1]
    late = sum(taken > TARGET for taken in seconds)
    print(
        f"{what:14} {len(seconds):4} answers: median {1000 * median(seconds):5.1f} ms, "
        f"95 % within {1000 * most:5.1f} ms, longest {1000 * max(seconds):5.1f} ms, {late} above {1000 * TARGET:.0f} ms"
    )


if __name__ == "__main__":
    main()
