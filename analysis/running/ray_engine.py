"""Jobs on the workers of a Ray cluster that is there already: an actor each, with a pipeline of its own.

Conventions: the run's folder is on a disk that all machines see, under the same path. Ray is an extra:
``pip install attnreg[ray]``.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from analysis.running.engines import Engine, deal
from analysis.running.units import Job
from analysis.running.worker import Setup, Worker

PATIENCE = 60.0  # seconds without any worker, after which it is said what is waited for

_logger = logging.getLogger(__name__)


def on_ray(workers: int, address: str = "auto") -> Engine:
    """Return an engine of so many Ray actors; one that dies is begun anew, and its job done again.

    A cluster that has room for fewer is used as it is: an actor gets jobs when it is there.

    Args:
        workers: actors; each reserves the CPUs of its threads, or a graphics card where models run on one.
        address: of the cluster; "local" begins one on this machine.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is to be no worker.
    """
    ray = _ray()
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")

    def engine(jobs: Sequence[Job], setup: Setup, tick: Callable[[], None]) -> None:
        needs = needs_of(setup.device, setup.threads)
        with _connected(ray, address):
            actor = ray.remote(**needs)(Worker)
            seats = [_Actor(ray, lambda: actor.remote(setup)) for _ in range(min(workers, len(jobs)))]
            try:
                deal(seats, jobs, setup.run, telling(ray, seats, needs, tick))
            finally:
                for seat in seats:  # also those that the cluster never had room for
                    ray.kill(seat.handle)

    return engine


def room(address: str, device: str, threads: int | None) -> int:
    """Return how many workers a cluster has room for when nothing else runs on it.

    Args:
        address: of the cluster; "local" begins one on this machine.
        device: where models run.
        threads: of a worker on the CPU.

    Raises:
        ImportError: Ray is not installed.
        ValueError: there is room for none.
    """
    ray = _ray()
    with _connected(ray, address):
        there = ray.cluster_resources()
    ((needed, each),) = needs_of(device, threads).items()
    kind = {"num_gpus": "GPU", "num_cpus": "CPU"}[needed]
    count = int(there.get(kind, 0) // each)
    if count < 1:
        raise ValueError(
            f"workers must be given for a cluster without room for one, got {there.get(kind, 0):g} {kind}, where each "
            f"needs {each}"
        )
    return count


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("the engine 'ray' needs Ray: pip install 'attnreg[ray]'") from error
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Have a connection to the cluster: one that is there already, or one for this block."""
    if ray.is_initialized():
        yield
        return
    ray.init(address=address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def needs_of(device: str, threads: int | None) -> dict[str, int]:
    """Return what an actor reserves."""
    return {"num_gpus": 1} if device.startswith("cuda") else {"num_cpus": threads or 1}


def telling(
    ray: Any,
    seats: "Sequence[_Actor]",
    needs: dict[str, int],
    tick: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], None]:
    """Return what ticks, and says once if no worker has begun yet: without room for one that may last for ever."""
    since, over = clock(), False

    def watched() -> None:
        nonlocal over
        tick()
        over = over or any(seat.ready and seat.ready.done() for seat in seats)
        if over or clock() - since < PATIENCE:
            return
        over, found = True, ray.available_resources()
        free = {name: found.get(name, 0) for name in ("CPU", "GPU")}
        _logger.warning("no worker has begun: each needs %s, the cluster has %s free; still waiting", needs, free)

    return watched


class _Actor:
    """An actor, and another one when it died: one that Ray itself begins anew refuses jobs until it is there."""

    def __init__(self, ray: Any, begin: Callable[[], Any]):
        self.ray, self.begin = ray, begin
        self.handle = begin()
        self.ready: Future[Any] | None = None

    def begun(self) -> Future[Any]:
        self.ready = ready = self.handle.__ray_ready__.remote().future()
        return ready

    def submit(self, job: Job) -> Future[int]:
        return self.handle.do.remote(job).future()

    def died(self, error: BaseException) -> bool:
        known = self.ray.exceptions
        deaths = known.RayActorError, known.OutOfMemoryError, known.NodeDiedError, known.WorkerCrashedError
        if not isinstance(error, deaths):
            return False
        self.handle = self.begin()
        return True
