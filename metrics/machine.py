"""What a run takes of the machine: seconds, passes of the network, memory.

Conventions:
    Memory on a graphics card, the most that torch held of it during a run, the model included (max_memory_allocated).
    On the CPU, the most that this process held resident during a run (Linux: VmHWM, set back before each run), all
    that it held before included; where it cannot be set back, the most since the process began. Memory once freed
    may stay resident, so a method that follows a hungrier one may show less growth than alone.
    A pass is one call of the network, over a whole batch: with guidance, of both halves at once.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

try:
    import resource
except ImportError:  # Windows
    resource = None

Memory = Literal["allocated in a run", "resident in a run", "resident since the process began", "not known here"]


@dataclass(frozen=True)
class Timing:
    """What was seen of one run."""

    seconds: float
    process_seconds: float
    passes: int
    peak_bytes: int
    memory: Memory


class Count:
    """How often a network ran, and how often with gradients, which is dearer."""

    def __init__(self):
        self.passes = 0
        self.with_gradient = 0

    def __call__(self) -> int:
        """Return the passes so far."""
        return self.passes


@contextmanager
def counting(module: nn.Module) -> Iterator[Count]:
    """Count the forward passes that a network begins while the block runs; nothing of it remains afterwards."""
    count = Count()

    def note(*_: object) -> None:
        count.passes += 1
        count.with_gradient += torch.is_grad_enabled()

    handle = module.register_forward_pre_hook(note)
    try:
        yield count
    finally:
        handle.remove()


def hardware(device: str) -> str:
    """Return the name of the card or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def timed(
    run: Callable[[], object], device: str, count_passes: Callable[[], int] | None, clock: Callable[[], float]
) -> Timing:
    """Return what one run takes, the card's work included."""
    reset = _reset_peak(device)
    passes = count_passes() if count_passes else 0
    _synchronize(device)
    busy, start = time.process_time(), clock()
    run()
    _synchronize(device)
    seconds, busy = clock() - start, time.process_time() - busy
    passes = count_passes() - passes if count_passes else 0
    return Timing(seconds, busy, passes, *_peak(device, reset))


def _synchronize(device: str) -> None:
    """Wait for the card, which computes behind the call's back."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: str) -> bool:
    """Begin to look for the most memory anew; return whether that could be done."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM is VmRSS again
    except OSError:
        return False
    return True


def _peak(device: str, reset: bool) -> tuple[int, Memory]:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device), "allocated in a run"
    if reset:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(peak) * 1024, "resident in a run"
    if resource is None:
        return 0, "not known here"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "resident since the process began"


def load_average() -> float | None:
    """Return the load average over a minute, None where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
