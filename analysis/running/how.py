"""How an experiment is run: on which device, by whom, how much of it, and within which limits."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from analysis.running.engines import Engine, here, local


@dataclass(frozen=True)
class How:
    """How an experiment is run; nothing of this changes its results.

    Attributes:
        workers: processes; 0 to work in this one, None for one a core, or one a graphics card.
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


def workers_of(how: How) -> int:
    """Return how many processes work beside this one; 0 for none."""
    if how.workers is not None:
        return how.workers
    return max(torch.cuda.device_count(), 1) if how.device.startswith("cuda") else os.cpu_count() or 1


def threads_of(how: How, workers: int) -> int | None:
    """Return with how many threads each computes on the CPU; None to leave them as they are."""
    if how.engine == "ray" and how.device == "cpu":
        return 1  # the CPU that an actor reserves; how many this machine has says nothing of the cluster's
    return None if how.device != "cpu" or workers == 0 else max(1, (os.cpu_count() or 1) // workers)


def engine_of(how: How, workers: int) -> Engine:
    """Return who does the jobs."""
    if how.engine == "ray":
        from analysis.running.ray_engine import on_ray

        return on_ray(max(workers, 1), how.address)
    return local(workers) if workers else here
