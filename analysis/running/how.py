"""How an experiment is run: on which device, by whom, how much of it, and within which limits."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from analysis.running.engines import Engine, here, local


@dataclass(frozen=True)
class How:
    """How an experiment is run.

    Images do not depend on who makes them. By rounding they depend on the kind of device, and on the CPU on how many
    threads a worker computes with; methods that move latents by gradients let rounding grow. So a run keeps the number
    of its first call, whoever goes on with it: one with `shard` and on Ray, else the cores shared out to the workers,
    and in this process what torch is set to.

    Attributes:
        workers: processes; 0 to work in this one, None for as many as there are cores for, or graphics cards, on this
            machine or the cluster.
        device: where models run; "cuda" deals the cards out to the workers.
        engine: "local", or "ray" on a cluster that is there.
        address: of the Ray cluster.
        shard: (i, n): only the i-th of n parts of the prompts, counted from 1, and only their images.
        dry: only the plan, a few timed images, and what that lets expect.
        retry: try again what failed before.
        allow_missing: compare method by method on what there is, with the numbers shown.
        disk: bytes that the run may take; None for no limit but the disk.
        data: folder of the prompt files and images that an experiment names and that do not come with Attnreg.
    """

    workers: int | None = None
    device: str = "cpu"
    engine: Literal["local", "ray"] = "local"
    address: str = "auto"
    shard: tuple[int, int] | None = None
    dry: bool = False
    retry: bool = False
    allow_missing: bool = False
    disk: int | None = None
    data: Path = Path("data")

    def __post_init__(self) -> None:
        """Refuse a device or a shard that is none."""
        try:
            torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"device must be one of torch's, such as 'cpu' or 'cuda', got {self.device!r}") from None
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise ValueError(f"a shard must be i/n with i from 1 to n, got {self.shard[0]}/{self.shard[1]}")


def check_device(how: How) -> None:
    """Refuse a device that no worker of this machine could compute on, before anything is made.

    Raises:
        ValueError: torch cannot compute on it.
    """
    if how.engine == "local" and (reason := _why_not(how.device)):
        raise ValueError(f"device must be one that torch can compute on here, got {how.device!r}: {reason}")


def scoring_device(how: How) -> str:
    """Return where this process scores: on the workers' device if it is here, which a cluster's head may lack."""
    return "cpu" if _why_not(how.device) else how.device


def _why_not(device: str) -> str | None:
    """Return why torch cannot compute on a device of this machine; None if it can."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without it
        return str(error).partition("\n")[0]
    return None


def first_threads(how: How) -> int | None:
    """Return with how many threads a worker computes on the CPU if this is a run's first call; None on other devices.

    A job of an array and a Ray actor count on one core: how many this machine has says nothing of the others.
    """
    if torch.device(how.device).type != "cpu":
        return None
    if how.engine == "ray" or how.shard is not None:
        return 1
    if how.workers == 0:
        return torch.get_num_threads()
    cores = os.cpu_count() or 1
    return max(1, cores // (how.workers or cores))


def workers_of(how: How, threads: int | None) -> int:
    """Return how many processes work beside this one, with so many threads each; 0 for none.

    Raises:
        ImportError: Ray is to do the work and is not installed.
        ValueError: its cluster has no room for a worker.
    """
    if how.workers is not None:
        return max(how.workers, 1) if how.engine == "ray" else how.workers
    if how.engine == "ray":
        from analysis.running.ray_engine import room

        return room(how.address, how.device, threads)
    if how.device.startswith("cuda"):
        return max(torch.cuda.device_count(), 1)
    return max(1, (os.cpu_count() or 1) // (threads or 1))


def engine_of(how: How, workers: int) -> Engine:
    """Return who does the jobs."""
    if how.engine == "ray":
        from analysis.running.ray_engine import on_ray

        return on_ray(workers, how.address)
    return local(workers) if workers else here
