"""What recording costs a full-size model, in time, memory and bytes, and what the writer sustains.

    python benchmarks/recording.py                       # twelve minutes on two cores
    python benchmarks/recording.py --part writer         # one part alone: generation, writer, memory, bytes
    python benchmarks/recording.py --part generation --family sd2 --repeats 4

generation  The UNet of Stable Diffusion 1.5 (or 2), random weights, 512 px, guidance, a prompt of 10 words: calls of
            the pipeline with and without `recording` (default: every layer, head, step and word), in turn in one
            process; medians of the ratio of each pair, and the spread of the plain calls, the machine's noise.
writer      The attention of SD 1.5 without the model (`full_size.taps`): what the writing thread does with a pass,
            alone on the machine, from the measured tensors to the committed transaction. A GPU step of 50 ms asks for
            20 passes a second.
memory      Resident memory over that before the recording, at its highest, while passes come as fast as they can:
            after 10, 50 and 200 of them, each in a process of its own.
bytes       What each precision takes on the disk, of the same maps in raw float16 (blocks of the maps' table, and the
            whole file with statistics); and its largest error, of the map's largest value.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from full_size import PATHS, PROMPT, pipeline, taps, tokens

from tracer import EVERYTHING, Capture, Recorder, Store, recording
from tracer.rows import RunRow, SampleRow
from tracer.words import Target
from tracer.writer import Writer

CAPTURES = {
    "default: every head, words, uint8": Capture(),
    "words, heads' mean": Capture(heads="mean"),
    "words, maps averaged down to 32": Capture(resolution=32),
    "two target words": Capture(tokens="targets"),
    "words, float16": Capture(precision="float16"),
    "statistics only": Capture(precision="none"),
    "everything: every token, float16": EVERYTHING,
    "every token, uint8": Capture(tokens="all"),
}
PASSES_A_SECOND = 20  # a GPU step of 50 ms


def fed(path: Path, capture: Capture, passes: int, before: Callable[[Recorder], None] = lambda recorder: None) -> float:
    """Record so many made-up passes, and return the seconds until they are on the disk."""
    targets = (Target("cat", (5,)), Target("glasses", (7,)))
    with Store.create(path) as store, Recorder(store, capture) as recorder:
        recorder.begin(RunRow("sd15"), [SampleRow(0, PROMPT, targets=targets)], {"cond": [tokens()]}, PATHS)
        before(recorder)
        started = time.perf_counter()
        for call, found in enumerate(taps(passes)):
            recorder.call(call, halves=("cond",))
            for tap in found:
                recorder(tap)
        recorder.images([("made up", "")])
        recorder.wait()
        return time.perf_counter() - started


def generation(family: str, steps: int, repeats: int, thin: bool) -> Iterator[str]:
    """Time calls of the pipeline with and without recording, in turn."""
    pipe = pipeline(family, thin)

    def draw() -> None:
        chance = torch.Generator().manual_seed(1)
        pipe(PROMPT, num_inference_steps=steps, guidance_scale=7.5, generator=chance, output_type="latent")

    draw()  # warm-up
    plain: list[float] = []
    traced: list[float] = []
    for repeat in range(repeats):
        order = [plain, traced] if repeat % 2 else [traced, plain]
        for seconds in order:
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                with nullcontext() if seconds is plain else recording(pipe, Path(folder) / "run.duckdb"):
                    draw()
                seconds.append(time.perf_counter() - started)  # the file's making and closing too
    ratios = [one / base for one, base in zip(traced, plain, strict=True)]
    yield f"| plain | {median(plain) / steps:.2f} s a step ({min(plain) / steps:.2f} to {max(plain) / steps:.2f}) | 1 |"
    yield (
        f"| recorded | {median(traced) / steps:.2f} s a step ({min(traced) / steps:.2f} to {max(traced) / steps:.2f}) "
        f"| {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
    )


@contextmanager
def timed_jobs() -> Iterator[list[float]]:
    """Run the writer's jobs at once, in the thread that hands them over, and note what each takes."""
    seconds: list[float] = []
    submit = Writer.submit

    def at_once(self: Writer, job: Callable[[], None]) -> None:
        started = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - started)

    Writer.submit = at_once  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        Writer.submit = submit  # type: ignore[method-assign]


def writer(passes: int) -> Iterator[str]:
    """Time what the writing thread does."""
    for name, capture in CAPTURES.items():
        with tempfile.TemporaryDirectory() as folder, timed_jobs() as seconds:
            fed(Path(folder) / "run.duckdb", capture, passes)
            each = sum(seconds) / passes
            megabytes = (Path(folder) / "run.duckdb").stat().st_size / 1e6
        enough = "yes" if each * PASSES_A_SECOND <= 1 else f"no, {1000 * each:.0f} ms a step"
        yield f"| {name} | {1000 * each:.0f} ms | {1 / each:.0f} | {enough} | {megabytes / passes:.2f} |"


def memory(passes: int) -> Iterator[str]:
    """Say how much more memory recording takes at its highest; in this process, which must be a fresh one."""
    process, highest, over = psutil.Process(), [0], threading.Event()
    for tap in next(taps(1)):  # torch's own first needs are not recording's
        tap.maps()

    def watch() -> None:
        while not over.wait(0.01):
            highest[0] = max(highest[0], process.memory_info().rss)

    base = [0]

    def begin(recorder: Recorder) -> None:
        base[0] = process.memory_info().rss
        threading.Thread(target=watch, daemon=True).start()

    with tempfile.TemporaryDirectory() as folder:
        fed(Path(folder) / "run.duckdb", Capture(), passes, begin)
    over.set()
    yield f"| {passes} | {(highest[0] - base[0]) / 2**20:.0f} MiB |"


def sizes(passes: int) -> Iterator[str]:
    """Weigh each precision, and compare its maps with the exact ones."""
    with tempfile.TemporaryDirectory() as folder:
        for tokens_ in ("words", "all"):
            exact = Path(folder) / "exact.duckdb"
            exact.unlink(missing_ok=True)
            fed(exact, Capture(tokens=tokens_, precision="float32"), passes)
            for precision in ("uint8", "float16", "float32"):
                path = Path(folder) / f"{tokens_}-{precision}.duckdb"
                fed(path, Capture(tokens=tokens_, precision=precision), passes)
                yield f"| {tokens_} | {precision} | {_weighed(path, exact)} |"
                path.unlink()


def _weighed(path: Path, exact: Path) -> str:
    with Store.open(path) as store, Store.open(exact) as other:
        table = store.verify()["table"].iloc[-1]
        raw = 2 * int(store.sql("SELECT sum(len(map)) n FROM attn")["n"][0])
        query = "SELECT count(DISTINCT block_id) * 262144 AS n FROM pragma_storage_info(?) WHERE persistent"
        blocks = int(store.sql(query, [table])["n"][0])
        worst = []
        for layer in (0, 2, 4, 6):
            for token in (0, 5):
                found, true = (one.maps(0, token, layers=layer) for one in (store, other))
                worst.append((np.abs(found - true).max((-1, -2)) / true.max((-1, -2))).max())
    return f"{blocks / raw:.3f} | {path.stat().st_size / raw:.3f} | {max(worst):.5f}"


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["generation", "writer", "memory", "bytes"])
    parser.add_argument("--family", choices=["sd1", "sd2"], default="sd1")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--thin", action="store_true", help="a tenth of the UNet's channels, to try things out")
    options = parser.parse_args()
    parts: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
        "generation": (
            "generation | median | ratio",
            lambda: generation(options.family, options.steps, options.repeats, options.thin),
        ),
        "writer": (
            "capture | writer, a pass | passes a second | keeps up with 50 ms | MB a pass",
            lambda: writer(options.passes),
        ),
        "memory": ("passes | more memory at the highest", lambda: memory(options.passes)),
        "bytes": (
            "tokens | precision | maps, of float16 | file with statistics | largest error, of the largest value",
            lambda: sizes(options.passes),
        ),
    }
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    for name, (head, lines) in parts.items():
        if options.part not in (None, name):
            continue
        print(f"\n| {head} |\n|{'---|' * (head.count('|') + 1)}", flush=True)
        if options.part is None and name == "memory":
            for passes in (10, 50, 200):
                command = [sys.executable, __file__, "--part", "memory", "--passes", str(passes)]
                print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            continue
        for line in lines():
            print(line, flush=True)


if __name__ == "__main__":
    main()
