"""How long a trace takes to answer, as it grows from one image to a hundred.

    python benchmarks/queries.py --figure queries.png    # ten minutes on two cores, 12 GB in --folder

Traces have the geometry of Stable Diffusion 1.5 at 512 px: 16 layers of 8 heads, maps of 64, 32, 16 and 8 pixels, 50
passes an image, the default capture, a prompt of ten words (13 tokens are kept). One image is recorded by the real
recorder, from made-up attention (`full_size.taps`). The others are copies of it, made inside DuckDB, each with a number
of its own, image after image, its rows in the recorded order and in groups of 2048: what counts here is how many rows
there are and where they lie, not what they say.

A time is that of the call to `Store` that a user makes, to the DataFrame or array in hand: the median of repeats, with
the smallest and largest. It is warm: every query has run before, so that what it reads is in memory, and unpacking and
the query itself remain. Queries take turns. Those about one image ask for the last one, by the word "cat" and step 25;
they should take as long in a trace of a hundred images as in a trace of one.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import duckdb
import matplotlib as mpl
import numpy as np
import torch
from full_size import PATHS, PROMPT, taps, tokens
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tracer import Recorder, Store
from tracer.rows import RunRow, SampleRow

COUNTS = (1, 3, 10, 30, 100)
PASSES, STEP = 50, 25
WARM_UP = 2  # rounds that are not counted
COPIED = ("samples", "tokens", "calls", "head_stats", "maps")
# Okabe and Ito's; the marker says it again
COLOURS, MARKERS = {True: "#0072b2", False: "#d55e00"}, {True: "o", False: "s"}

DOMINANCE = "SELECT step, word, avg(share) AS share FROM dominance GROUP BY step, word ORDER BY step, word"
TOKENS = "SELECT step, label, avg(share) AS share, avg(p90) AS p90, avg(entropy) AS entropy FROM token_steps"
GROUPED = "GROUP BY step, label ORDER BY step, label"


@dataclass(frozen=True)
class Query:
    """A question to a trace.

    Attributes:
        name: in the table.
        label: in the figure.
        one: whether it is about one image.
        ask: puts it to a store, about the image of that number.
    """

    name: str
    label: str
    one: bool
    ask: Callable[[Store, int], object]


@dataclass(frozen=True)
class Trace:
    """What was measured on a trace: its size, and the milliseconds of each repeat of each of ``QUERIES``."""

    images: int
    megabytes: float
    rows: int  # of statistics and of maps
    times: Sequence[Sequence[float]]


def all_of(name: str, label: str, sql: str) -> Query:
    """Return a question about every image."""
    return Query(name, label, False, lambda store, last: store.sql(sql))


def last_of(name: str, label: str, sql: str) -> Query:
    """Return a question about one image, whose number takes the place of the ``?``."""
    return Query(name, label, True, lambda store, last: store.sql(sql, [last]))


QUERIES = (
    all_of("`dominance`: every image, step, layer and word", "dominance, every row", "FROM dominance"),
    all_of("`dominance`: mean by step and word", "dominance by step and word", DOMINANCE),
    all_of("`dominance`: one step", "dominance at one step", f"FROM dominance WHERE step = {STEP}"),
    all_of("`token_steps`: every token, mean by step", "every token by step", f"{TOKENS} {GROUPED}"),
    Query("`Store.verify()`", "verify", False, lambda store, last: store.verify()),
    last_of("`dominance`: every step, layer and word", "dominance of an image",
            "FROM dominance WHERE run_id = 1 AND sample = ?"),
    last_of("`token_steps`: every token, by step", "every token of an image",
            f"{TOKENS} WHERE run_id = 1 AND sample = ? {GROUPED}"),
    last_of("`word_map`: a word's mean map at a step, 16 x 16", "a word's mean map at a step",
            f"FROM word_map(?, 'cat', {STEP}, 16)"),
    Query("`Store.maps`: a word's 2000 maps of 16 x 16, every step", "a word's maps, every step", True,
          lambda store, last: store.maps(last, "cat", size=16)),
    Query("`Store.maps`: the same at one step, 40 maps", "a word's maps at a step", True,
          lambda store, last: store.maps(last, "cat", steps=STEP, size=16)),
)  # fmt: skip


def record(path: Path) -> None:
    """Record one image into a new trace."""
    with Store.create(path) as store, Recorder(store) as recorder:
        recorder.begin(RunRow("Stable Diffusion 1.5"), [SampleRow(0, PROMPT)], {"cond": [tokens()]}, PATHS)
        for call, found in enumerate(taps(PASSES)):
            recorder.call(call, halves=("cond",))
            for tap in found:
                recorder(tap)
        recorder.images([("", "")])
        recorder.end()


def copy(path: Path, samples: range) -> None:
    """Add copies of the first image, each in a transaction of its own."""
    with Store.create(path) as store, closing(store.cursor()) as cursor:
        for sample in samples:
            cursor.begin()
            for table in COPIED:
                rows = f"SELECT * REPLACE ({sample} AS sample) FROM {table} WHERE sample = 0"
                cursor.execute(f"INSERT INTO {table} {rows}")
            cursor.commit()
        cursor.execute("CHECKPOINT trace")


def measure(path: Path, images: int, repeats: int) -> Trace:
    """Ask every question in turn, several times over."""
    times: list[list[float]] = [[] for _ in QUERIES]
    with Store.open(path) as store:
        check = store.verify()
        if not check["whole"].all():
            raise RuntimeError(f"the copied trace is not whole: {check}")
        for turn in range(WARM_UP + repeats):
            for taken, query in zip(times, QUERIES, strict=True):
                started = time.perf_counter()
                query.ask(store, images - 1)
                if turn >= WARM_UP:
                    taken.append((time.perf_counter() - started) * 1000)
    return Trace(images, path.stat().st_size / 1e6, int(check["rows"].sum()), times)


def table(traces: Sequence[Trace]) -> str:
    """Return the Markdown table: a row per question, a column per trace, medians with smallest and largest."""
    heads = ["milliseconds", *(f"{trace.images} image{'s' * (trace.images > 1)}" for trace in traces)]
    rows = [heads, ["---"] * len(heads)]
    for one, title in ((False, "**about every image**"), (True, "**about one image**")):
        rows.append([title, *("" for _ in traces)])
        for number, query in enumerate(QUERIES):
            if query.one == one:
                rows.append([query.name, *(spread(trace.times[number]) for trace in traces)])
    rows.append(["file, MB", *(f"{trace.megabytes:,.0f}" for trace in traces)])
    rows.append(["rows of statistics and maps", *(f"{trace.rows:,}" for trace in traces)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def spread(times: Sequence[float]) -> str:
    """Return the median, and in brackets the smallest and largest."""
    return f"{median(times):,.0f} ({min(times):,.0f} to {max(times):,.0f})"


def draw(traces: Sequence[Trace]) -> Figure:
    """Return the figure: medians against the number of images, both logarithmic, a line per question."""
    figure = Figure((6.75, 4.2), layout="constrained")
    axes = figure.subplots()
    images = [trace.images for trace in traces]
    ends: dict[str, tuple[float, str]] = {}
    for number, query in enumerate(QUERIES):
        middles = [median(trace.times[number]) for trace in traces]
        colour = COLOURS[query.one]
        axes.plot(images, middles, color=colour, marker=MARKERS[query.one], markersize=3.5, linewidth=1.1)
        ends[query.label] = (middles[-1], colour)
    axes.set(xscale="log", yscale="log", xlabel="images in the trace", ylabel="time to answer, ms")
    axes.set_xticks(images, [f"{count}" for count in images])
    axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.grid(axis="y", color="#e3e3e3", linewidth=0.6)
    axes.set_axisbelow(True)
    for one, text in ((False, "■ about every image"), (True, "● about one image")):
        axes.text(0.01, 0.99 - 0.055 * one, text, transform=axes.transAxes, va="top", color=COLOURS[one])
    label(axes, images[-1], ends)
    return figure


def label(axes: Axes, at: float, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write each line's name behind its end, moved apart where two would overlap."""
    low, high = np.log10(axes.get_ylim())
    gap = 0.042 * (high - low)
    names = sorted(ends, key=lambda name: ends[name][0])
    wanted = np.log10([ends[name][0] for name in names])
    heights = wanted.copy()
    for _ in range(200):  # each overlapping pair gives way by the same amount
        for lower in range(len(names) - 1):
            push = (gap - (heights[lower + 1] - heights[lower])) / 2
            heights[lower : lower + 2] += (-max(push, 0), max(push, 0))
    for name, height in zip(names, heights, strict=True):
        value, colour = ends[name]
        axes.annotate(
            name,
            (at, value),
            (at * 1.35, 10**height),
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),  # from the middle of the name's left edge
            },
        )


def main() -> None:
    """Build the traces, put the questions, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=COUNTS, help="ascending")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--folder", type=Path, help="where the trace lies meanwhile; by default the system's")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # of the recording; queries use all that there are
    traces: list[Trace] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "trace.duckdb"
        record(path)
        have = 1
        for images in sorted(options.images):
            copy(path, range(have, images))
            traces.append(measure(path, images, options.repeats))
            have = images
    print(f"duckdb {duckdb.__version__}, {options.repeats} repeats; median (smallest to largest)\n\n{table(traces)}")
    if options.figure:
        style = {"font.size": 8, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False}
        with mpl.rc_context(style):
            draw(traces).savefig(options.figure, dpi=200)


if __name__ == "__main__":
    main()
