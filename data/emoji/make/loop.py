"""One training loop for every network of the emoji world: warm-up, decay, moving average, resume.

Conventions: a step's batch and noise come only from ``(seed, step)``, so that a training stopped at any
step and resumed takes the same steps as one that was never stopped. Checkpoints are safetensors.
"""

import csv
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    rate: float  # peak learning rate
    batch: int
    warmup: int = 100  # steps
    decay_from: float = 0.5  # share of the steps after which the rate falls
    final: float = 0.03  # rate at the end, as a share of the peak
    average: float = 0.999  # of the weights' moving average
    weight_decay: float = 0.01
    save_every: float = 120.0  # seconds
    seed: int = 1

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, flat, then a half cosine."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step / self.steps - self.decay_from) / (1 - self.decay_from)
        return self.rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(max(done, 0), 1))))


def train(
    model: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    schedule: Schedule,
    work: Path,
    until: int | None = None,
) -> dict[str, Tensor]:
    """Train in place and return the moving average of the weights; resume from `work` if it holds a checkpoint.

    Args:
        model: whose parameters are trained.
        loss_of: the loss of a step, given its number and a generator seeded for it.
        schedule: how long and how fast.
        work: folder of ``checkpoint.safetensors`` and ``loss.csv``.
        until: step to stop at before the schedule's end; another call goes on from there.
    """
    torch.set_flush_denormal(True)
    work.mkdir(parents=True, exist_ok=True)
    (work / "schedule.json").write_text(json.dumps(asdict(schedule), indent=1) + "\n")
    optimiser = torch.optim.AdamW(
        model.parameters(), schedule.rate, betas=(0.9, 0.98), weight_decay=schedule.weight_decay, fused=True
    )
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    start = _resume(model, optimiser, average, work)
    _cut_log(work, start)
    saved = begun = time.monotonic()
    recent: list[float] = []
    last = schedule.steps if until is None else until
    for step in range(start, last):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step)
        loss = loss_of(step, torch.Generator().manual_seed(schedule.seed * 1_000_003 + step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        weight = min(schedule.average, (step + 1) / (step + 10))
        for name, value in model.named_parameters():
            average[name].lerp_(value.detach(), 1 - weight)
        recent.append(loss.item())
        if (step + 1) % 20 == 0:
            _log(work, step + 1, sum(recent) / len(recent), time.monotonic() - begun)
            recent = []
            if time.monotonic() - saved > schedule.save_every:
                _save(model, optimiser, average, step + 1, work)
                saved = time.monotonic()
    if start < last:  # else another process may be reading the checkpoint
        _save(model, optimiser, average, last, work)
    return average


def _save(
    model: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor], step: int, work: Path
) -> None:
    tensors = {"step": torch.tensor(step)}
    for name, value in model.named_parameters():
        tensors[f"weight/{name}"] = value.detach().contiguous()
        tensors[f"average/{name}"] = average[name].contiguous()
        for key, state in optimiser.state.get(value, {}).items():  # frozen parameters have none
            tensors[f"{key}/{name}"] = state.contiguous()
    partial = work / "checkpoint.partial"
    save_file(tensors, partial)
    os.replace(partial, work / "checkpoint.safetensors")


@torch.no_grad()
def _resume(model: nn.Module, optimiser: torch.optim.Optimizer, average: dict[str, Tensor], work: Path) -> int:
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return 0
    tensors = load_file(path)
    for name, value in model.named_parameters():
        value.copy_(tensors[f"weight/{name}"])
        average[name].copy_(tensors[f"average/{name}"])
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if f"{key}/{name}" in tensors:
                optimiser.state[value][key] = tensors[f"{key}/{name}"].to(memory_format=torch.preserve_format)
    return int(tensors["step"])


def _cut_log(work: Path, step: int) -> None:
    """Drop what a training that was stopped has logged of steps past its checkpoint: they are taken again."""
    path = work / "loss.csv"
    if path.exists():
        title, *rows = path.read_text().splitlines(keepends=True)
        path.write_text(title + "".join(row for row in rows if int(row.split(",")[0]) <= step))


def _log(work: Path, step: int, loss: float, seconds: float) -> None:
    path = work / "loss.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "loss", "seconds"])
        writer.writerow([step, f"{loss:.6f}", f"{seconds:.1f}"])
