"""Who does the jobs: this process, or several of this machine; another engine has the same form (`ray_engine`).

Conventions: an engine is called with jobs and returns when each of their units is done or noted as failed. It calls
`tick` now and then, in the calling thread. Nothing passes between workers but files, so a worker that dies loses the
batch it was at, which another one makes again.
"""

import atexit
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from diffusers.utils.logging import disable_progress_bar as disable_diffusers_bars
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

from analysis.running.units import Job
from analysis.running.worker import Setup, Worker

Engine = Callable[[Sequence[Job], Setup, Callable[[], None]], None]
EVERY = 0.5  # seconds between two looks at what is done
TRIES = 3  # of one job, by workers that die at it


class WorkersDied(RuntimeError):
    """Workers died, one after the other, at the same job."""


@runtime_checkable
class Seat(Protocol):
    """A place where a worker sits; when it dies, another one takes it."""

    def submit(self, job: Job) -> Future[int]:
        """Let the worker do a job."""
        ...

    def died(self, error: BaseException) -> bool:
        """Return whether an error means that the worker died; if so, seat another."""
        ...


def here(jobs: Sequence[Job], setup: Setup, tick: Callable[[], None]) -> None:
    """Do the jobs in this process, one after the other."""
    with _settings_kept():
        worker = Worker(setup)
        for job in jobs:
            worker.do(job)
            tick()


def local(workers: int) -> Engine:
    """Return an engine of so many processes of this machine.

    Raises:
        ValueError: there is to be none.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")

    def engine(jobs: Sequence[Job], setup: Setup, tick: Callable[[], None]) -> None:
        seats = [_Process(on_card(setup, place)) for place in range(min(workers, len(jobs)))]
        try:
            deal(seats, jobs, tick)
        finally:
            for seat in seats:
                seat.pool.shutdown(wait=True, cancel_futures=True)

    return engine


def on_card(setup: Setup, place: int) -> Setup:
    """Return what the worker at a place is told: "cuda" means the cards in turn."""
    if setup.device != "cuda" or not torch.cuda.device_count():
        return setup
    return replace(setup, device=f"cuda:{place % torch.cuda.device_count()}")


def deal(seats: Sequence[Seat], jobs: Sequence[Job], tick: Callable[[], None]) -> None:
    """Give each idle worker the next job until none is left; a job whose worker died is done again.

    Raises:
        WorkersDied: `TRIES` workers died at one job.
    """
    queue, idle = [(job, 0) for job in jobs], list(seats)
    running: dict[Future[int], tuple[Seat, Job, int]] = {}
    while queue or running:
        while queue and idle:
            seat, (job, tries) = idle.pop(), queue.pop(0)
            running[seat.submit(job)] = seat, job, tries
        finished, _ = wait(running, EVERY, FIRST_COMPLETED)
        tick()
        for future in finished:
            seat, job, tries = running.pop(future)
            error = future.exception()
            if error is not None and not seat.died(error):
                raise error
            if error is not None and tries + 1 == TRIES:
                raise WorkersDied(
                    f"{TRIES} workers died at the same job, of {job[0].prompt.text!r}; is there enough memory?"
                ) from error
            if error is not None:
                queue.insert(0, (job, tries + 1))
            idle.append(seat)


class _Process:
    """A process of its own, so that one that dies takes no other with it."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self.pool = self._begun()

    def submit(self, job: Job) -> Future[int]:
        return self.pool.submit(_do, self.setup, job)

    def died(self, error: BaseException) -> bool:
        if not isinstance(error, BrokenProcessPool):
            return False
        self.pool.shutdown(wait=True)
        self.pool = self._begun()
        return True

    def _begun(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")  # a fork would share torch's locks, and cannot have a card
        return ProcessPoolExecutor(1, spawn, _begin)


def _do(setup: Setup, job: Job) -> int:
    return _worker(setup).do(job)


@cache
def _worker(setup: Setup) -> Worker:
    """Return this process's worker, which keeps its model."""
    return Worker(setup)


def _begin() -> None:
    """Make this process one of a run's: it shows no bars of its own, and ends when its parent was killed."""
    disable_diffusers_bars()
    disable_transformers_bars()
    atexit.register(_leave)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    """Wait for the parent's end, and end then: this process would wait for work for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _leave() -> None:
    """End at once: what was made is in whole files, and libraries that are taken apart complain about each other."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Put back what a worker sets for its whole process."""
    threads, flushed = torch.get_num_threads(), (torch.tensor([1e-40]) * 0.5).item() == 0
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)
