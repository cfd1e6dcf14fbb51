"""Kills `attnreg run` again and again, at random moments, and checks that nothing was lost and nothing done twice.

Command: ``python benchmarks/run_kills.py`` (ten minutes on two cores). A child runs a small experiment of the emoji
world, in one process or with two workers, and dies by SIGKILL with all its workers; the next child goes on. In the end
the tables must be those of a run that nobody killed, to the last bit but for what was timed; no batch that was
finished may have been begun again, and each kill may have cost one batch a worker. Every pass of the network is counted
by a byte in a file. Ends with 1 if anything failed.
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


def check(out: Path, reference: Path, kills: int, workers: int) -> list[str]:
    """Return what is wrong with a run that was killed so often."""
    faults = []
    if not table_of(out).equals(table_of(reference)):
        faults.append("the table of methods differs")
    if not pd.read_pickle(out / "board.pickle").equals(pd.read_pickle(reference / "board.pickle")):
        faults.append("the scoreboard differs in some bit")
    (run_folder,) = (path for path in out.iterdir() if path.is_dir())
    begun = [line.split() for line in (out / "begun").read_text().splitlines()]
    again = sum(flag == "1" for _, flag in begun)
    batches = rows_of(run_folder).drop_duplicates("unit")
    twice = len(begun) - len(batches)
    planned, made = int(batches["passes"].sum()), (out / "passes").stat().st_size
    most = int(batches["passes"].max())
    print(
        f"  {len(batches)} batches, begun {len(begun)} times, {again} of them finished before; "
        f"{planned} passes planned, {made} made: {made - planned} more, a batch has at most {most}"
    )
    if again:
        faults.append(f"{again} finished batches were begun again")
    if twice > kills * workers:
        faults.append(f"{twice} batches were begun again after {kills} kills of {workers} workers")
    if not 0 <= made - planned <= kills * workers * most:
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
        kills = 0
        for _ in range(options.kills):
            with started(out, options.workers) as process:
                try:
                    process.wait(chance.uniform(0.1, 0.2 * seconds))
                except subprocess.TimeoutExpired:
                    kills += 1
        whole(out, options.workers)
        faults = check(out, reference, kills, max(options.workers, 1))
        print(f"{kills} kills, {len(faults)} faults")
        for fault in faults:
            print(f"  {fault}")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
