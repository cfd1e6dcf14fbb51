"""Computational overhead: the time that a method adds to the plain pipeline's, (T - T0) / T0.

Conventions:
    A run is a call with a prompt and a seed that makes one batch of images. Text encoding and decoding are inside it,
    loading a model and writing a file are not; that is up to the caller. A prompt has one seed in all runs, so its
    repeats are the same work, and what they differ by is the machine.
    Times are seconds of one run. A prompt's time is the median over its repeats; T is the median over prompts.
    Runs of all methods are interleaved, there and back ("ABBA"): a machine that slows down slows all of them alike.
    T0 is the untouched pipeline. A method that must see probabilities cannot use fused attention: to tell what that
    alone costs, give the pipeline with a processor that only looks as one more method.
What memory means, and how the network's passes are counted: ``metrics/machine.py``.
Source: arXiv 2403.06381, section 4, which takes means over images; `of_means` is that.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float

from metrics.machine import Memory, Timing, hardware, load_average, timed
from metrics.protocols import Protocol

BASELINE = "plain"
DRAWS = 10_000
CONFIDENCE = 0.95

Run = Callable[[str, int], object]
Order = Literal["ABBA", "AB"]


@dataclass(frozen=True)
class OverheadProtocol(Protocol):
    """Under which conditions was measured. `measure` fills in what is None, and refuses what is not so.

    Attributes:
        checkpoint: the model that makes the images.
        repeats: timed runs of each prompt and method, at least 2: one says nothing of the noise.
        warmup: untimed runs of each method before.
        order: "ABBA" there and back, "AB" always there.
        prompts: how many.
        device: "cpu", "cuda" or "cuda:1".
        hardware: the processor's or the card's name.
        threads: that torch computes with on the CPU.
        dtype: of the network's weights.
        batch: images of one run.
        steps: sampling steps of one image.
        scheduler: its class.
        attention: what computes attention in the plain pipeline.
        compiled: whether the network went through torch.compile.
        noise_bound: a view: spread of the plain repeats, as a share of their median, above which a row is noisy.
    """

    repeats: int = 3
    warmup: int = 3
    order: Order = "ABBA"
    prompts: int | None = None
    device: str = "cpu"
    hardware: str | None = None
    threads: int | None = None
    dtype: str = "float32"
    batch: int = 1
    steps: int = 50
    scheduler: str = ""
    attention: str = "sdpa"
    compiled: bool = False
    noise_bound: float = 0.1

    LIBRARIES: ClassVar = ("torch", "diffusers")
    VIEWS: ClassVar = ("noise_bound",)

    def __post_init__(self) -> None:
        """Refuse what cannot be a protocol."""
        for field, least in (("repeats", 2), ("warmup", 0), ("batch", 1), ("steps", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"{field} must be at least {least}, got {getattr(self, field)}")
        if self.order not in ("ABBA", "AB"):
            raise ValueError(f"order must be ABBA or AB, got {self.order!r}")
        if self.noise_bound <= 0:
            raise ValueError(f"noise_bound must be positive, got {self.noise_bound}")

    @property
    def name(self) -> str:
        """As in `Protocol`, e.g. "sd15#1f0c2d9a: 10 prompts x 3, cuda, float16, batch 1, 50 steps"."""
        size = f"{'?' if self.prompts is None else self.prompts} prompts x {self.repeats}"
        return f"{self.fingerprint}: {size}, {self.device}, {self.dtype}, batch {self.batch}, {self.steps} steps"


@dataclass(frozen=True)
class Overhead:
    """What one method costs.

    Attributes:
        method: its name.
        overhead: T / T0 - 1: 0 is free, 1 is twice the time.
        low: lower end of its 95 % interval, from a bootstrap over prompts that keeps both times of a prompt together;
            None for one prompt.
        high: upper end of it.
        of_means: the same ratio of means over prompts, which costly prompts move.
        seconds: T.
        baseline_seconds: T0.
        iqr: distance of the quartiles of all its runs, in seconds.
        p95: 95th percentile of all its runs, in seconds.
        process_seconds: T, as the time that this process had the CPU: the machine's other work is not in it.
        passes: passes of the network in a run, mean over all; each goes over the whole batch. None if not counted.
        baseline_passes: the same of the plain pipeline.
        peak_bytes: of memory, the most of all its runs.
        memory: what that means.
        load: the machine's load average over a minute, before and after; None where there is none.
        spread: of the plain repeats: (longest - shortest) / median, the median over prompts.
        noisy: whether that is above the protocol's bound.
        protocol: conditions, complete.
    """

    method: str
    overhead: float
    low: float | None
    high: float | None
    of_means: float
    seconds: float
    baseline_seconds: float
    iqr: float
    p95: float
    process_seconds: float
    passes: float | None
    baseline_passes: float | None
    peak_bytes: int
    memory: Memory
    load: tuple[float, float] | None
    spread: float
    noisy: bool
    protocol: OverheadProtocol


def measure(
    baseline: Run,
    methods: Mapping[str, Run],
    prompts: Sequence[str],
    rng: np.random.Generator,
    protocol: OverheadProtocol | None = None,
    count_passes: Callable[[], int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Overhead]:
    """Return what each method costs beside the plain pipeline, one row a method.

    Args:
        baseline: makes images of a prompt and a seed by the untouched pipeline.
        methods: the same by each method.
        prompts: what to make images of, each with its place in the list as seed; ten or more for a useful interval.
        rng: where the bootstrap's chance comes from.
        protocol: conditions, `OverheadProtocol()` by default.
        count_passes: the network's passes so far, e.g. what `metrics.machine.counting` yields.
        clock: seconds, rising.

    Raises:
        ValueError: no prompts or methods, a method with the plain pipeline's name, conditions that are not so, or
            plain runs that take no time.
    """
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts must be a list of at least one, got {prompts!r}")
    if not methods or BASELINE in methods:
        raise ValueError(f"methods must be at least one, none of them called {BASELINE!r}, got {list(methods)}")
    protocol = complete(protocol or OverheadProtocol(), len(prompts))
    runs = {BASELINE: baseline, **methods}
    for run in runs.values():
        for index in range(protocol.warmup):
            run(prompts[index % len(prompts)], index % len(prompts))
    before = load_average()
    timings: dict[str, list[Timing]] = {name: [] for name in runs}
    for seed, name in schedule(list(runs), protocol):
        timings[name].append(timed(partial(runs[name], prompts[seed], seed), protocol.device, count_passes, clock))
    after = load_average()
    load = None if before is None or after is None else (before, after)
    return [_row(name, timings, protocol, rng, load, count_passes is not None) for name in methods]


def schedule(names: Sequence[str], protocol: OverheadProtocol) -> Iterator[tuple[int, str]]:
    """Yield the prompt's number and the method's name of every run, in the order of the runs."""
    for round_ in range((protocol.prompts or 0) * protocol.repeats):
        back = protocol.order == "ABBA" and round_ % 2
        for name in reversed(names) if back else names:
            yield round_ // protocol.repeats, name


def complete(protocol: OverheadProtocol, prompts: int) -> OverheadProtocol:
    """Return the protocol with what is so on this machine.

    Raises:
        ValueError: it says otherwise.
    """
    found = {"prompts": prompts, "hardware": hardware(protocol.device), "threads": torch.get_num_threads()}
    for field, value in found.items():
        if getattr(protocol, field) not in (None, value):
            raise ValueError(f"{field} must be {value!r} as it is here, got {getattr(protocol, field)!r}")
    return replace(protocol, **found)


def paired_interval(
    seconds: Float[np.ndarray, " prompt"], baseline: Float[np.ndarray, " prompt"], rng: np.random.Generator
) -> tuple[float, float]:
    """Return the 95 % percentile interval of the ratio of medians - 1, prompts drawn with both of their times."""
    drawn = rng.integers(0, len(seconds), (DRAWS, len(seconds)))
    ratios = np.median(seconds[drawn], axis=1) / np.median(baseline[drawn], axis=1) - 1
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _row(
    name: str,
    timings: Mapping[str, list[Timing]],
    protocol: OverheadProtocol,
    rng: np.random.Generator,
    load: tuple[float, float] | None,
    counted: bool,
) -> Overhead:
    mine, plain = timings[name], timings[BASELINE]
    shape = (protocol.prompts or 0, protocol.repeats)
    times, base = (np.array([t.seconds for t in of]).reshape(shape) for of in (mine, plain))
    if (base <= 0).any():
        raise ValueError(f"plain runs must take time, got {base.min()} seconds by the clock")
    each, base_each = np.median(times, axis=1), np.median(base, axis=1)
    busy = np.median(np.array([t.process_seconds for t in mine]).reshape(shape), axis=1)
    low, high = paired_interval(each, base_each, rng) if len(each) > 1 else (None, None)
    spread = float(np.median(np.ptp(base, axis=1) / base_each))
    passes, base_passes = (float(np.mean([t.passes for t in of])) if counted else None for of in (mine, plain))
    quartiles = np.quantile(times, [0.25, 0.75])
    return Overhead(
        method=name,
        overhead=float(np.median(each) / np.median(base_each) - 1),
        low=low,
        high=high,
        of_means=float(each.mean() / base_each.mean() - 1),
        seconds=float(np.median(each)),
        baseline_seconds=float(np.median(base_each)),
        iqr=float(quartiles[1] - quartiles[0]),
        p95=float(np.quantile(times, 0.95)),
        process_seconds=float(np.median(busy)),
        passes=passes,
        baseline_passes=base_passes,
        peak_bytes=max(t.peak_bytes for t in mine),
        memory=mine[0].memory,
        load=load,
        spread=spread,
        noisy=spread > protocol.noise_bound,
        protocol=protocol,
    )
