"""Kills a tracing process again and again, at random moments, and checks that its file kept what was finished.

Command: ``python benchmarks/kills.py`` (ten minutes on two cores). A child traces the emoji world's images into a file;
it dies by SIGKILL, the file is opened and checked, and the next child goes on with it. Half of the kills fall at any
moment, the others soon after a chosen stage of the writing began. After every kill: the file opens, an image that
the child said was finished is there, once, with every pass, statistic and map, and so is whatever else is marked as
done. Of each file a batch is made anew in the end, and must agree in every bit. Ends with 1 if anything failed.
"""

import argparse
import functools
import json
import mmap
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from diffusers import DiffusionPipeline

from tracer import EVERYTHING, Capture, Store, load_pipeline, recording
from tracer.pictures import digest

PROMPT = "a cat and a dog"
KEPT = {"words": 8, "all": 16}  # tokens of the prompt of which there are rows
HEADS = 22  # of all layers of the emoji world's UNet
BOTH = Capture(tokens="all", precision="float16", branches=("cond", "uncond"))  # several transactions in an image
CAPTURES = (Capture(), Capture(), EVERYTHING, BOTH)
MAPS = ("maps", "maps_f16", "maps_f32")
# What the file goes through; close is the checkpoint of a file's last store.
STAGES = ("create", "add_run", "add_samples", "add_passes", "add_images", "end_run", "close")
MAIN, WRITER, DRAWING = 0, 1, 2  # places in the page that a child shares with its parent
SOON = 0.03  # seconds; a stage takes 5 to 100 ms

COUNTS = f"""
SELECT i.run_id, i.sample, i.seed, i.image_sha256, r.n_steps, r.capture->>'tokens' AS tokens,
       json_array_length(r.capture->'branches') AS branches, coalesce(l.heads, 0) AS heads,
       coalesce(c.n, 0) AS calls, coalesce(s.n, 0) AS stats, coalesce(m.n, 0) AS maps
FROM images i JOIN runs r USING (run_id)
LEFT JOIN (SELECT run_id, sum(heads) AS heads FROM layers GROUP BY ALL) l USING (run_id)
LEFT JOIN (SELECT run_id, sample, count(*) AS n FROM calls GROUP BY ALL) c USING (run_id, sample)
LEFT JOIN (SELECT run_id, sample, count(*) AS n FROM head_stats GROUP BY ALL) s USING (run_id, sample)
LEFT JOIN (SELECT run_id, sample, count(*) AS n FROM
           ({" UNION ALL ".join(f"SELECT run_id, sample FROM {table}" for table in MAPS)}) GROUP BY ALL) m
    USING (run_id, sample)
WHERE i.done ORDER BY i.seed, i.run_id
"""


@dataclass(frozen=True)
class Batch:
    """One call of the pipeline; once acknowledged, with its place in the file and its images' SHA-256."""

    first: int  # seed of the first image
    images: int
    steps: int
    guidance: float
    capture: int
    run_id: int = 0
    hashes: tuple[str, ...] = ()

    def drawn(self, pipe: Any) -> list[str]:
        """Make the images, and return their SHA-256."""
        seeds = range(self.first, self.first + self.images)
        output = pipe(
            PROMPT,
            num_inference_steps=self.steps,
            num_images_per_prompt=self.images,
            guidance_scale=self.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        )
        return [digest(image) for image in output.images]


@dataclass
class Tally:
    """What has happened so far."""

    kills: int = 0
    files: int = 0
    acknowledged: int = 0
    done: int = 0
    unfinished: int = 0
    fell: Counter[str] = field(default_factory=Counter)
    beside: Counter[str] = field(default_factory=Counter)
    replayed: int = 0
    faults: int = 0


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a child, and return its process id; DuckDB is never opened in the parent, which forks again."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    _run_and_leave(work)


def _run_and_leave(work: Callable[[], None]) -> NoReturn:
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def answered(question: Callable[[], Any]) -> Any:
    """Return what a function returns (JSON) in a child of its own; None if it raises there."""
    reading, writing = os.pipe()
    child = forked(lambda: _write_line(writing, question()))
    os.close(writing)
    with open(reading, encoding="utf-8") as answer:
        text = answer.read()
    return json.loads(text) if os.waitpid(child, 0)[1] == 0 else None


def _write_line(to: int, row: Any) -> None:
    os.write(to, (json.dumps(row) + "\n").encode())


def mark_stages(page: mmap.mmap) -> None:
    """Let the store say in the shared page which stage each of its two threads is in."""

    def marked(method: Callable[..., Any], number: int) -> Callable[..., Any]:
        @functools.wraps(method)
        def stage(*args: Any, **kwargs: Any) -> Any:
            thread = MAIN if threading.current_thread() is threading.main_thread() else WRITER
            before, page[thread] = page[thread], number
            try:
                return method(*args, **kwargs)
            finally:
                page[thread] = before

        return stage

    for number, name in enumerate(STAGES, 1):
        setattr(Store, name, marked(getattr(Store, name), number))


def trace(pipe: DiffusionPipeline, path: Path, chance: random.Random, told: int, page: mmap.mmap) -> None:
    """Go on with the file: the images that are not done yet, without end; tell of each batch that is finished."""
    mark_stages(page)
    with Store.create(path) as store:
        first = int(store.sql("SELECT count(*) AS n FROM images WHERE done")["n"][0])
    while True:
        capture = chance.randrange(len(CAPTURES))
        with recording(pipe, path, CAPTURES[capture]) as session:
            for _ in range(chance.randint(1, 5)):
                guidance = chance.choice((5.0, 5.0, 7.5))  # another one is another run
                batch = Batch(first, chance.randint(1, 4), chance.randint(2, 6), guidance, capture)
                page[DRAWING] = 1
                hashes = batch.drawn(pipe)
                _write_line(told, asdict(batch) | {"run_id": session.run_id, "hashes": hashes})
                first += batch.images


def kill(child: int, page: mmap.mmap, chance: random.Random) -> str:
    """Kill the child at a random moment, and return what it was doing then."""
    aim = chance.choice(STAGES) if chance.random() < 0.5 else None
    if aim != "create":
        _until(lambda: page[DRAWING] == 1, child)
        time.sleep(chance.uniform(0, 3))
    if aim is not None:
        number = STAGES.index(aim) + 1
        _until(lambda: number in (page[MAIN], page[WRITER]), child)
        time.sleep(chance.uniform(0, SOON))
    os.kill(child, signal.SIGKILL)
    if (status := os.waitpid(child, 0)[1]) != signal.SIGKILL:
        raise ChildProcessError(f"the tracing process ended by itself, with status {status}")
    stages = [("writer: " if thread else "") + STAGES[page[thread] - 1] for thread in (WRITER, MAIN) if page[thread]]
    return " + ".join(stages) or ("passes of the model" if page[DRAWING] else "before the first image")


def _until(seen: Callable[[], bool], child: int, seconds: float = 20) -> None:
    """Wait until `seen`, or the child is dead, or the time is over."""
    end, ended = time.monotonic() + seconds, os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not seen() and time.monotonic() < end and os.waitid(os.P_PID, child, ended) is None:
        time.sleep(0.0005)


def looked_at(path: Path, batches: list[Batch], writing: bool) -> dict[str, Any]:
    """Open the file, check it, and return how many images it holds and what is wrong with it."""
    with Store.create(path) if writing else Store.open(path) as store:
        rows = store.sql(COUNTS)
        checked, total = store.verify(), len(store.sql("FROM samples"))
    faults = [f"verify finds {row}" for row in checked[~checked["whole"]].to_dict("records")]
    for row in rows.itertuples():
        expected = row.n_steps * HEADS * KEPT[row.tokens] * row.branches
        if (row.heads, row.calls, row.stats, row.maps) != (HEADS, row.n_steps, expected, expected):
            faults.append(f"done but not whole: {row}")
    if rows["seed"].tolist() != list(range(len(rows))):
        faults.append(f"the seeds of done images must be all different and without a gap, got {rows['seed'].tolist()}")
    there = Counter(zip(rows["run_id"], rows["seed"], rows["image_sha256"], strict=True))
    for batch in batches:
        for i, sha256 in enumerate(batch.hashes):
            if there[batch.run_id, batch.first + i, sha256] != 1:
                faults.append(f"image {i} of {batch} was finished, and is not there")
    return {"done": len(rows), "unfinished": total - len(rows), "faults": faults}


def replayed(pipe: DiffusionPipeline, path: Path, batch: Batch) -> list[str]:
    """Make a batch of the file anew, and return the tables that differ from it in any bit."""
    fresh = path.with_name("fresh.duckdb")
    fresh.unlink(missing_ok=True)
    with recording(pipe, fresh, CAPTURES[batch.capture]):
        same = tuple(batch.drawn(pipe)) == batch.hashes
    faults = [] if same else [f"the images of {batch} differ"]
    with Store.open(path) as store:
        store.attach(fresh, "fresh")
        samples = "SELECT min(sample) FROM samples WHERE run_id = $run AND seed = $first AND image_sha256 IS NOT NULL"
        where = {"run": batch.run_id, "first": batch.first, "last": batch.images - 1}
        for table in ("head_stats", *MAPS):
            old = (
                f"SELECT * EXCLUDE (run_id) REPLACE ((sample - ({samples}))::USMALLINT AS sample) FROM trace.{table} "
                f"WHERE run_id = $run AND sample BETWEEN ({samples}) AND ({samples}) + $last"
            )
            new = f"SELECT * EXCLUDE (run_id) FROM fresh.{table}"
            both = f"SELECT count(*) AS n FROM (({old} EXCEPT ALL {new}) UNION ALL ({new} EXCEPT ALL {old}))"
            if store.sql(both, where)["n"][0]:
                faults.append(f"{table} of {batch} differs")
    return faults


def one_kill(pipe: DiffusionPipeline, path: Path, batches: list[Batch], tally: Tally, chance: random.Random) -> None:
    """Trace and kill; what the child acknowledged is added to `batches`."""
    own, page = random.Random(chance.getrandbits(64)), mmap.mmap(-1, 8)
    reading, writing = os.pipe()
    child = forked(lambda: trace(pipe, path, own, writing, page))
    os.close(writing)
    tally.fell[kill(child, page, chance)] += 1
    tally.kills += 1
    with open(reading, encoding="utf-8") as lines:
        new = [json.loads(line) for line in lines]
    batches += [Batch(**row | {"hashes": tuple(row["hashes"])}) for row in new]
    tally.acknowledged += sum(row["images"] for row in new)
    tally.beside.update(re.sub("[0-9a-f]{32}", "#", f.name.replace(path.name, "*")) for f in path.parent.iterdir())


def one_file(pipe: DiffusionPipeline, path: Path, tally: Tally, chance: random.Random, kills: int) -> None:
    """Kill processes that trace into a file, check it after each, and add to `tally` what was found."""
    batches: list[Batch] = []
    found: dict[str, Any] = {"done": 0, "unfinished": 0}
    for _ in range(kills):
        one_kill(pipe, path, batches, tally, chance)
        if not path.exists() and not batches:
            continue  # killed before there was a file
        # Every other time the next child is the first to open it for writing.
        for writes in (False, True)[: chance.randint(1, 2)]:
            answer = answered(lambda writes=writes: looked_at(path, batches, writes))
            found = answer or {"faults": ["it could not be read"]}
            faults = [f"kill {tally.kills}, {path}, writing={writes}: {fault}" for fault in found["faults"]]
            print(*faults, sep="\n", end="\n" * bool(faults), flush=True)
            tally.faults += len(faults)
    if batches:
        answer = answered(lambda: replayed(pipe, path, chance.choice(batches)))
        print(*(faults := answer or ["a batch could not be made anew"] * (answer is None)), sep="\n", end="")
        tally.replayed, tally.faults = tally.replayed + 1, tally.faults + len(faults)
    tally.files, tally.done = tally.files + 1, tally.done + found.get("done", 0)
    tally.unfinished += found.get("unfinished", 0)


def main() -> None:
    """Kill as often as asked, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as torch: a fork does not take other threads along
    torch.set_num_threads(1)
    pipe, chance, tally = load_pipeline(), random.Random(options.seed), Tally()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        while tally.kills < options.kills:
            path = Path(folder) / str(tally.files) / "trace.duckdb"
            path.parent.mkdir()
            one_file(pipe, path, tally, chance, min(chance.randint(4, 12), options.kills - tally.kills))
            print(f"{tally.kills} kills, {tally.files} files, {tally.faults} faults", file=sys.stderr, flush=True)
            if not tally.faults:  # a file at fault is kept to be looked at
                shutil.rmtree(path.parent)
    print(f"seed {options.seed}: {tally.kills} kills, {tally.files} files, {tally.faults} faults")
    print(f"images: {tally.acknowledged} acknowledged, {tally.done} done, {tally.unfinished} begun and cut off")
    print(f"batches made anew and equal to the last bit: {tally.replayed}")
    for title, counts in (("where the kills fell", tally.fell), ("what lay there then", tally.beside)):
        print(f"{title}:", *(f"  {count:3}  {name}" for name, count in counts.most_common()), sep="\n")
    sys.exit(tally.faults > 0)


if __name__ == "__main__":
    main()
