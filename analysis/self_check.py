"""Small runs that tell whether a pipeline can be traced and regulated on this machine, and solved on its device.

Conventions: each returns what was found, in a line, and raises `Unwell` where that is not as it should be. All make one
image of one prompt; chance comes from fixed seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from analysis.host_sync import HostSyncs, cuda_sync_warnings
from metrics.machine import counting, timed
from regulate import METHODS, AttentionRegulation, Method, Request, applied, generate
from regulate.kernels import gaussian_kernels
from regulate.objective import Objective, bias_of, problem_of, solve
from regulate.softmax import biased, members_of, reduced
from tracer.attention import attending
from tracer.capture import Capture
from tracer.recording import recording
from tracer.sites import denoiser
from tracer.store import Store
from tracer.tap import Edited, Replaced, Tap

PROMPT, TARGETS, SEED = "a cat and a dog", ("cat", "dog"), 7
HEADS, SIDE, TOKENS, CHOSEN = 20, 16, 77, (2, 5)  # Stable Diffusion 2's geometry, two targets
LOSS_BOUND, PROBS_BOUND = 1e-5, 1e-4  # relative; absolute
SUM_BOUND = 1e-4  # of a pixel's attention over all tokens, off from one
REPEATS = 3
SUMS = """
SELECT count(*) AS pixels, max(abs(total - 1)) AS off, bool_and(isfinite(total)) AS finite FROM (
    SELECT sum(value::DOUBLE) AS total
    FROM (SELECT call, layer, head, unnest(map) AS value, generate_subscripts(map, 1) AS pixel FROM maps_f32)
    GROUP BY call, layer, head, pixel)
"""


class Unwell(RuntimeError):
    """A check ran to its end and found something wrong."""


class Note(str):
    """What a check found that is neither right nor wrong."""


@dataclass(frozen=True)
class Solved:
    """What the solver made of the fixed problem, in float64 on the CPU.

    Attributes:
        loss: of the kept iterate, mean over heads.
        kept: its number.
        probs: after the edit.
    """

    loss: float
    kept: int
    probs: Float[Tensor, "batch head token pixel"]


def check_plain(pipe: DiffusionPipeline, steps: int) -> str:
    """Compare an image made under `Method()` with that of the untouched pipeline, bit for bit, and look at its values.

    Raises:
        Unwell: they differ, or the image holds no numbers or one single colour.
    """
    stock = _image(pipe, steps)
    with applied(pipe, Method(), PROMPT, TARGETS, [SEED]):
        ours = _image(pipe, steps)
    if not np.isfinite(stock).all() or stock.min() == stock.max():
        raise Unwell(f"the untouched pipeline makes no image: values from {stock.min()} to {stock.max()}; try float32")
    if not np.array_equal(stock, ours):
        again = np.array_equal(stock, _image(pipe, steps))
        why = "" if again else ", but neither does the untouched pipeline repeat itself on this device"
        raise Unwell(f"{(stock != ours).sum()} of {stock.size} values differ, by up to {abs(stock - ours).max()}{why}")
    return f"{stock.size} values of an image of {stock.shape[1]}x{stock.shape[0]} pixels, {steps} steps, all equal"


def check_maps(pipe: DiffusionPipeline, steps: int) -> str:
    """Record an image into a new trace: is the trace whole, and does every pixel's attention add up to one?

    Raises:
        Unwell: one of them is not so.
    """
    capture = Capture(steps=[0], precision="float32")
    with TemporaryDirectory(prefix="attnreg-doctor-") as folder, Store.create(Path(folder) / "run.duckdb") as store:
        with recording(pipe, store, capture):
            _image(pipe, steps)
        tables = store.verify()
        pixels, off, finite = store.sql(SUMS).iloc[0].tolist()
    if not len(tables) or not all(tables["whole"]):
        held = "; ".join(f"{row.rows} of {row.expected} rows of {row.table}" for row in tables.itertuples())
        raise Unwell(f"the trace is not whole: {held}")
    if not (finite and off <= SUM_BOUND):
        raise Unwell(f"attention of a pixel is off from one by up to {off:.1e}, allowed are {SUM_BOUND:.0e}")
    rows = ", ".join(f"{row.rows} rows of {row.table}" for row in tables.itertuples() if row.rows)
    return f"{pixels} sums off from one by at most {off:.1e}; whole: {rows}"


def check_parity(device: torch.device) -> str:
    """Hold the solver on this device in float32 against the same in float64 on the CPU, on a fixed random problem.

    Raises:
        Unwell: kept loss or probabilities are further apart than rounding explains.
    """
    ours, exact = solved(device, torch.float32), solved(torch.device("cpu"), torch.float64)
    loss = abs(ours.loss - exact.loss) / exact.loss
    probs = (ours.probs - exact.probs).abs().max().item()
    said = (
        f"kept loss {ours.loss:.6f}, off by {loss:.1e} of it (allowed {LOSS_BOUND:.0e}); iteration {ours.kept} kept "
        f"({exact.kept}); probabilities off by {probs:.1e} (allowed {PROBS_BOUND:.0e})"
    )
    if not (loss <= LOSS_BOUND and probs <= PROBS_BOUND):  # NaN is not either
        raise Unwell(f"{said}; float32 products are of precision {torch.get_float32_matmul_precision()!r}")
    return said


def solved(device: torch.device, dtype: torch.dtype) -> Solved:
    """Return what the solver makes of the fixed problem on a device in a precision; the inputs are the same in all."""
    chance, objective = torch.Generator().manual_seed(4), Objective()
    scores = 2 * torch.randn(1, HEADS, TOKENS, SIDE**2, generator=chance)
    scores[:, :, 0] += 6  # a start token takes most
    kernels = gaussian_kernels(SIDE, SIDE)
    start = torch.rand(len(CHOSEN), HEADS, len(kernels), generator=chance)
    scores, kernels, start = (tensor.to(device, dtype) for tensor in (scores, kernels, start))
    members = members_of([[[token] for token in CHOSEN]], TOKENS, device)
    problem = problem_of(reduced(scores, members), kernels, members.weights(HEADS).to(dtype), objective)
    solution = solve(problem, start, objective, 1)
    probs = biased(scores, bias_of(solution.theta, kernels), members)
    loss = solution.terms.loss[1].cpu().double().mean().item()
    return Solved(loss, int(solution.kept), probs.cpu().double())


def check_syncs(pipe: DiffusionPipeline, steps: int) -> str:
    """Count what waits for the device, or copies, inside the edits of a regulated image after its first step.

    Raises:
        Unwell: there is something.
    """
    found: list[str] = []
    calls = 0
    with applied(pipe, Method(), PROMPT, TARGETS, [SEED]) as run:
        (edit,) = AttentionRegulation().interventions(pipe, run.subjects, run.passes)

        def watched(tap: Tap) -> Edited | Replaced | None:
            nonlocal calls
            if run.passes.step == 0:  # what a layer needs is put on the device
                return edit.edit(tap)
            with HostSyncs() as syncs, cuda_sync_warnings(tap.query.device) as said:
                edited = edit.edit(tap)
            found.extend([*syncs.found, *said])
            calls += edited is not None
            return edited

        with attending(denoiser(pipe), edit.sites, edit=watched):
            _image(pipe, steps)
    if found or not calls:
        kinds = "; ".join(f"{kind} ({found.count(kind)} times)" for kind in dict.fromkeys(found))
        raise Unwell(f"{len(found)} in {calls} edits: {kinds}" if found else "nothing was edited after the first step")
    return f"0 in {calls} edits"


def check_overhead(pipe: DiffusionPipeline, steps: int, device: torch.device) -> str:
    """Time plain and regulated images in turn, three of each after a warm-up.

    Raises:
        Unwell: regulation needs another number of passes of the network than the plain pipeline.
    """
    request = Request(PROMPT, TARGETS, (SEED,), steps)
    runs: list[Callable[[], Any]] = [partial(generate, pipe, request, METHODS[key]) for key in ("plain", "regulation")]
    for run in runs:
        run()
    taken: list[list[float]] = [[], []]
    passes = [0, 0]
    with counting(denoiser(pipe)) as count:
        for repeat in range(REPEATS):
            for which in (1, 0) if repeat % 2 else (0, 1):
                timing = timed(runs[which], str(device), count, perf_counter)
                taken[which].append(timing.seconds)
                passes[which] = timing.passes
    if passes[0] != passes[1]:
        raise Unwell(f"regulation takes {passes[1]} passes of the network, the plain pipeline {passes[0]}")
    plain, regulated = taken
    ratios = [after / before for before, after in zip(plain, regulated, strict=True)]
    said = f"{median(regulated) / median(plain):.2f} times the plain time ({min(ratios):.2f} to {max(ratios):.2f}): "
    said += f"{median(regulated):.3f} s for {median(plain):.3f} s, medians of {REPEATS}; {passes[0]} passes in both"
    return Note(said + "; noisy, the machine has other work") if max(ratios) > 1.25 * min(ratios) else said


def _image(pipe: DiffusionPipeline, steps: int) -> Float[np.ndarray, "height width channel"]:
    generator = torch.Generator("cpu").manual_seed(SEED)  # the same noise on every device
    made = pipe(PROMPT, num_inference_steps=steps, generator=generator, output_type="np")  # pyright: ignore[reportCallIssue]
    return made.images[0]
