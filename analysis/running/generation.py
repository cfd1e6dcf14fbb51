"""What of a run is not there yet is made: by an engine, with a bar, within the disk it may take."""

from collections.abc import Sequence
from pathlib import Path
from shutil import disk_usage

from rich.console import Console

from analysis.running.estimate import estimate, first_units, in_words, size_of
from analysis.running.how import How, engine_of, workers_of
from analysis.running.ledger import done, failures, left_of, rows_of
from analysis.running.progress import generating
from analysis.running.units import Job, Planned, Unit, digest_of
from analysis.running.worker import Setup


def jobs_of(parts: Sequence[Planned], shard: tuple[int, int] | None) -> list[Job]:
    """Return the jobs of all parts, or of a shard of them."""
    return [job for one in parts for job in one.jobs if shard is None or _mine(job, shard)]


def _mine(job: Job, shard: tuple[int, int]) -> bool:
    """Deal jobs out by a hash of their prompt, so that a shard is the same whatever is done already."""
    return int(digest_of({"part": job[0].part, "prompt": job[0].prompt.id}), 16) % shard[1] == shard[0] - 1


def generate_left(folder: Path, jobs: Sequence[Job], how: How, threads: int | None, console: Console) -> None:
    """Make what of some jobs is neither done nor failed; after a dry run, say what is left.

    Args:
        folder: of the run.
        jobs: of this call.
        how: workers, engine, limits.
        threads: of a worker on the CPU.
        console: where progress and failures are shown.

    Raises:
        OSError: more disk is needed than the run may take, or than there is.
    """
    mine = {unit.key for job in jobs for unit in job}
    jobs = [job for job in (left_of(folder, job) for job in jobs) if job]
    left = [unit for job in jobs for unit in job]
    if how.dry:
        jobs = [(unit,) for unit in first_units(left)]
    workers = workers_of(how, threads) if jobs else 1  # a cluster is asked only if there is something to do
    setup = Setup(folder.resolve(), how.device, threads)  # workers may be in another folder

    def check(waiting: Sequence[Unit]) -> None:
        check_disk(folder, left if how.dry else waiting, how)

    check(left)
    if jobs:
        with generating(folder, [unit for job in jobs for unit in job], workers or 1, console, check) as tick:
            engine_of(how, workers)(jobs, setup, tick)
    if how.dry:
        _tell_left(folder, left, workers or 1, console)
    for facts in (facts for key, facts in failures(folder).items() if key in mine):
        console.print(
            f"failed: {facts['method']} on {facts['prompt']!r}: {facts['error']}", style="yellow", markup=False
        )


def _tell_left(folder: Path, left: Sequence[Unit], workers: int, console: Console) -> None:
    there = done(folder)
    expected = estimate(folder, rows_of(folder), [unit for unit in left if unit.key not in there], workers)
    console.print(
        f"left: {expected.images} images in {expected.units} batches, about {in_words(expected.seconds)} with "
        f"{workers} workers, {expected.bytes / 1e6:.0f} MB",
        highlight=False,
    )


def check_disk(folder: Path, left: Sequence[Unit], how: How) -> None:
    """Refuse to go on with what would not fit, judged by the images and traces that are there.

    Traces count twice: when all is made they are copied into one file, which this looks ahead to.

    Raises:
        OSError: more is needed than the run may take, or than the disk has.
    """
    more = estimate(folder, rows_of(folder), left, 1).bytes
    there = sum(map(size_of, folder.rglob("*")))
    asked = f"the run has {there / 1e9:.2f} GB and needs about {more / 1e9:.2f} more"
    if how.disk is not None and there + more > how.disk:
        raise OSError(f"{asked}; --disk allows {how.disk / 1e9:.2f}")
    if more > (free := disk_usage(folder).free):
        raise OSError(f"{asked}, where {free / 1e9:.2f} are free")
