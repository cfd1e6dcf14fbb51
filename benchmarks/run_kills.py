"""Kills `attnreg run` again and again, at random moments, and checks that nothing was lost and nothing done twice.

Command: ``python benchmarks/run_kills.py`` (ten minutes on two cores). A child runs a small experiment of the emoji
world, in one process or with two workers, and dies by SIGKILL with all its workers; the next child goes on. In the end
the tables must be those of a run that nobody killed, to the last bit but for what was timed; no batch that was
finished may have been begun again, and a kill may cost the batches that were being made at that moment, at most one a
worker, and no more passes than those have. Some kills must fall into a batch. Every pass of the network is counted by a
byte in a file. Ends with 1 if anything failed.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from rich.console import Console

from analysis.experiments.experiment import Experiment, Part
from analysis.outputs.publish import publish
from analysis.running import engines, worker
from analysis.running.ledger import done, rows_of
from analysis.running.run import How, run
from regulate import METHODS
from tracer.capture import Capture
from tracer.prompts import TEMPLATES
from tracer.sites import denoiser

NAMES = ("regulation", "attend-and-excite-fixed", "syngen-fixed")
PART = Part(
    "templates", "A&E-style (12)", TEMPLATES, {name: METHODS[name] for name in NAMES}, (0, 1, 2, 3), spread=12,
    steps=10, traced={"regulation": Capture(precision="none", tokens="targets")},
)  # fmt: skip
EXPERIMENT = Experiment("kills", "Does it go on?", (PART,), ("method-table", "forest", "outcomes"))
TIMED = ("overhead",)  # metrics that are seconds


def child(out: Path, workers: int) -> None:
    """Run the experiment and write what it shows."""
    results = run(EXPERIMENT, out, How(workers=workers), Console(quiet=True))
    assert results is not None
    publish(results)
    boards = pd.concat([part.board for part in results.parts])
    boards.to_pickle(out / "board.pickle")  # bits, not digits; read by this script only


class Counting(worker.Worker):
    """A worker that notes every batch that it begins, and every pass of the network."""

    def _do(self, unit: worker.Unit) -> None:
        began = unit.key in done(self.setup.run)
        note(self.setup.run.parent / "begun", f"{unit.key} {int(began)}\n")
        handle = denoiser(self._pipe(unit.model, unit.dtype)).register_forward_pre_hook(
            lambda *_: note(self.setup.run.parent / "passes", ".")
        )
        try:
            super()._do(unit)
        finally:
            handle.remove()


engines.Worker = Counting  # in processes that are spawned too: they import this file


def note(path: Path, text: str) -> None:
    """Append to a file, at once."""
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(file, text.encode())
    os.close(file)


@contextmanager
def started(out: Path, workers: int):
    """Begin a child, in a group of its own."""
    command = [sys.executable, __file__, "--child", str(out), "--workers", str(workers)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr and not process.stderr.closed:
            process.stderr.read()  # which ends when the last of its workers is dead


def whole(out: Path, workers: int) -> float:
    """Let a child come to its end, and return how many seconds that took."""
    start = time.monotonic()
    with started(out, workers) as process:
        _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"the child failed:\n{said.decode()}")
    return time.monotonic() - start


def table_of(out: Path) -> pd.DataFrame:
    """Return all numbers of the table of methods but those that are seconds."""
    (run_folder,) = (path for path in out.iterdir() if path.is_dir())
    table = pd.read_csv(run_folder / "tables" / "methods.csv", dtype=str)
    return table[~table["metric"].isin(TIMED)].reset_index(drop=True)


def lines_of(path: Path) -> list[str]:
    """Return a file's lines; none of one that nobody began."""
    return path.read_text().splitlines() if path.is_file() else []


def cut_off(out: Path, before: int) -> list[str]:
    """Return the batches that a child was at when it was killed: those it had begun, less those that are done.

    Args:
        out: where it ran.
        before: lines of the file of what was begun when the child was started.
    """
    begun = [line.split()[0] for line in lines_of(out / "begun")[before:]]
    there = {key for folder in out.iterdir() if folder.is_dir() for key in done(folder)}
    return [key for key in begun if key not in there]


def check(out: Path, reference: Path, cut: list[list[str]], workers: int) -> list[str]:
    """Return what is wrong with a run of which so many children were killed, each at these batches."""
    faults = []
    if not table_of(out).equals(table_of(reference)):
        faults.append("the table of methods differs")
    if not pd.read_pickle(out / "board.pickle").equals(pd.read_pickle(reference / "board.pickle")):
        faults.append("the scoreboard differs in some bit")
    (run_folder,) = (path for path in out.iterdir() if path.is_dir())
    begun = [line.split() for line in (out / "begun").read_text().splitlines()]
    again = sum(flag == "1" for _, flag in begun)
    batches = rows_of(run_folder).drop_duplicates("unit")
    twice, lost = len(begun) - len(batches), [key for keys in cut for key in keys]
    planned, made = int(batches["passes"].sum()), (out / "passes").stat().st_size
    most = int(batches.set_index("unit")["passes"].reindex(lost).sum())  # of the batches that were lost
    print(
        f"  {len(batches)} batches, begun {len(begun)} times, {again} of them finished before; "
        f"{planned} passes planned, {made} made: {made - planned} more; "
        f"the {len(lost)} batches that kills fell into have {most}"
    )
    if again:
        faults.append(f"{again} finished batches were begun again")
    if twice != len(lost) or max(map(len, cut), default=0) > workers:
        faults.append(
            f"{twice} batches were begun again after kills of {workers} workers at {list(map(len, cut))} batches"
        )
    if not lost:
        faults.append("no kill fell into a batch: nothing was tried")
    if not 0 <= made - planned <= most:
        faults.append(f"{made - planned} passes more than planned")
    return faults


def main() -> int:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.workers)
        return 0
    chance = random.Random(options.seed)
    with TemporaryDirectory() as kept:
        reference, out = Path(kept, "whole"), Path(kept, "killed")
        reference.mkdir()
        out.mkdir()
        seconds = whole(reference, options.workers)
        print(f"a run that nobody kills: {seconds:.0f} s")
        latest = seconds * (0.4 if options.workers else 0.2)  # workers of their own take as long again to begin
        cut: list[list[str]] = []
        for _ in range(options.kills):
            before, killed = len(lines_of(out / "begun")), False
            with started(out, options.workers) as process:
                try:
                    process.wait(chance.uniform(0.1, latest))
                except subprocess.TimeoutExpired:
                    killed = True
            if killed:  # and dead by now
                cut.append(cut_off(out, before))
        whole(out, options.workers)
        faults = check(out, reference, cut, max(options.workers, 1))
        print(f"{len(cut)} kills, {len(faults)} faults")
        for fault in faults:
            print(f"  {fault}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
