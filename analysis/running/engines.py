"""Who does the jobs: this process, or several of this machine; another engine has the same form (`ray_engine`).

Conventions: an engine is called with jobs and returns when each of their units is done or noted as failed. It calls
`tick` now and then, in the calling thread. Nothing passes between workers but files, so a worker that dies loses the
batch it was at, which another one makes again; a batch that kills one after the other is noted as failed. A worker that
gives up gets no more jobs, and what it was at goes to the others.
"""

import atexit
import logging
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
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.utils.logging import disable_progress_bar as disable_diffusers_bars
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

from analysis.running.ledger import left_of, write_failure
from analysis.running.units import Job, Unit
from analysis.running.worker import Setup, Unfit, Worker, failure_facts

Engine = Callable[[Sequence[Job], Setup, Callable[[], None]], None]
EVERY = 0.5  # seconds between two looks at what is done
TRIES = 3  # of one batch, by workers that die at it; and of one seat, at which they die before they have begun
IN_A_ROW = 3  # batches that kill all who try them, with nothing done in between: then it is not the batches

_logger = logging.getLogger(__name__)


class WorkersDied(RuntimeError):
    """Workers died, one after the other, whatever they were given."""


@runtime_checkable
class Seat(Protocol):
    """A place where a worker sits; when it dies, another one takes it."""

    def begun(self) -> Future[Any]:
        """Return what is done when the worker that sits there is ready for jobs: a cluster may have no room yet."""
        ...

    def submit(self, job: Job) -> Future[int]:
        """Let the worker do a job."""
        ...

    def died(self, error: BaseException) -> bool:
        """Return whether an error means that the worker died; if so, seat another."""
        ...


def here(jobs: Sequence[Job], setup: Setup, tick: Callable[[], None]) -> None:
    """Do the jobs in this process, one after the other.

    Raises:
        Unfit: it cannot.
    """
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
            deal(seats, jobs, setup.run, tick)
        finally:
            for seat in seats:
                seat.pool.shutdown(wait=True, cancel_futures=True)

    return engine


def on_card(setup: Setup, place: int) -> Setup:
    """Return what the worker at a place is told: "cuda" means the cards in turn."""
    if setup.device != "cuda" or not torch.cuda.device_count():
        return setup
    return replace(setup, device=f"cuda:{place % torch.cuda.device_count()}")


def deal(seats: Sequence[Seat], jobs: Sequence[Job], run: Path, tick: Callable[[], None]) -> None:
    """Give each worker that is ready and idle the next job until none is left; one whose worker died is done again.

    Args:
        seats: whose workers have begun, or will.
        jobs: in order.
        run: folder of the run: a batch at which `TRIES` workers died is noted as failed there.
        tick: is called now and then.

    Raises:
        WorkersDied: that happened `IN_A_ROW` times with no batch done in between, or no seat has a worker that can
            work.
    """
    Dealing(seats, jobs, run).until_done(tick)


class Dealing:
    """Who is ready, who is at what, and what is left."""

    def __init__(self, seats: Sequence[Seat], jobs: Sequence[Job], run: Path):
        self.queue, self.run = [(job, 0) for job in jobs], run
        self.beginning = {seat.begun(): (seat, 0) for seat in seats}
        self.idle: list[Seat] = []
        self.running: dict[Future[int], tuple[Seat, Job, int]] = {}
        self.in_a_row = 0

    def until_done(self, tick: Callable[[], None]) -> None:
        """Deal until no job is left; seats whose workers have not begun by then are not waited for."""
        while self.queue or self.running:
            while self.queue and self.idle:
                seat, (job, tries) = self.idle.pop(0), self.queue.pop(0)
                self.running[seat.submit(job)] = seat, job, tries
            finished, _ = wait([*self.running, *self.beginning], EVERY, FIRST_COMPLETED)
            tick()
            for future in finished:
                if future in self.beginning:
                    self._has_begun(future)
                else:
                    self._has_done(future)

    def _has_begun(self, future: Future[Any]) -> None:
        seat, tries = self.beginning.pop(future)
        error = future.exception()
        if error is None:
            self.idle.append(seat)
            return
        if not seat.died(error):
            raise error
        if tries + 1 < TRIES:
            self.beginning[seat.begun()] = seat, tries + 1
        else:
            self._one_fewer(f"no worker lives long enough to begin: {error}", error)

    def _has_done(self, future: Future[int]) -> None:
        seat, job, tries = self.running.pop(future)
        error = future.exception()
        if error is None:
            self.in_a_row = 0
            self.idle.append(seat)
            return
        left = left_of(self.run, job)
        if len(left) < len(job):
            tries = self.in_a_row = 0  # it was at work before
        if isinstance(error, Unfit):
            self._put_back(left, tries)
            self._one_fewer(f"no worker can work: {error.args[0]}", error)  # Ray's str() of it is its traceback
            return
        if not seat.died(error):
            raise error
        self.beginning[seat.begun()] = seat, 0
        if tries + 1 < TRIES:
            self._put_back(left, tries + 1)
            return
        self.in_a_row += 1
        give_up(self.run, left[0], error)
        if self.in_a_row == IN_A_ROW:
            raise WorkersDied(
                f"{TRIES} workers died at the same batch, {IN_A_ROW} times, the last of {job[0].prompt.text!r}; is "
                "there enough memory?"
            ) from error
        self._put_back(left[1:], 0)

    def _put_back(self, job: Job, tries: int) -> None:
        if job:
            self.queue.insert(0, (job, tries))

    def _one_fewer(self, why: str, error: BaseException) -> None:
        """Go on without a seat; without any, end."""
        if self.queue and not (self.beginning or self.idle or self.running):
            raise WorkersDied(why) from error
        _logger.warning("one worker fewer: %s", why.partition(": ")[2])


def give_up(run: Path, unit: Unit, error: BaseException) -> None:
    """Note a unit that workers died at as failed."""
    told = f"{TRIES} workers died at it, one after the other; is there enough memory?"
    write_failure(run, unit.key, failure_facts(unit, f"{type(error).__name__}: {told}", str(error)))


class _Process:
    """A process of its own, so that one that dies takes no other with it."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self.pool = self._begun()

    def begun(self) -> Future[Any]:
        ready: Future[None] = Future()  # a pool takes jobs at once
        ready.set_result(None)
        return ready

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
