"""What identifies a run: all that its images depend on, and what its folder is named after.

Conventions: ``spec.json`` says it; ``env.json``, which is no part of it, says on what it was begun.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from analysis.experiments.experiment import Experiment
from analysis.running.units import Planned, digest_of, fitting

LIBRARIES = ("attnreg", "diffusers", "duckdb", "lpips", "open_clip_torch", "torch", "torch-fidelity", "transformers")


def specification(experiment: Experiment, parts: Sequence[Planned]) -> dict[str, Any]:
    """Return all that a run's images and scores depend on, as JSON has it."""
    return {
        "experiment": experiment.name,
        "protocols": list(experiment.protocols),
        "reference": experiment.reference,
        "world": experiment.world,
        "parts": [_part(one) for one in parts],
    }


def _part(one: Planned) -> dict[str, Any]:
    part = one.part
    acting = {name: part.methods[name] for name in fitting(one)}  # what can act on no prompt makes no image
    return {
        "name": part.name, "title": part.title, "model": one.model[0], "weights": one.model[1], "dtype": part.dtype,
        "prompts": one.prompts.name, "prompts_digest": one.prompts.digest, "spread": part.spread,
        "methods": {name: {"method": method.name} | method.parameters() for name, method in acting.items()},
        "seeds": list(part.seeds), "steps": part.steps, "guidance": part.guidance, "batch": part.batch,
        "traced": {name: asdict(capture) for name, capture in part.traced.items()},
    } | ({"own_seeds": True} if part.own_seeds else {})  # fmt: skip


def folder_name(experiment: Experiment, spec: Mapping[str, Any]) -> str:
    """Return the name of a run's folder."""
    return f"{experiment.name}-{digest_of(spec)[:10]}"


def environment() -> dict[str, Any]:
    """Return on what a run is made: libraries and machine."""
    return {
        "versions": {name: _version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.platform(),
        "graphics": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def begin(run: Path, spec: Mapping[str, Any]) -> list[str]:
    """Make a run's folder, or find it, and return how this environment differs from the one it was begun in.

    Raises:
        ValueError: the folder holds a run of another specification.
    """
    run.mkdir(parents=True, exist_ok=True)
    known, now = run / "spec.json", environment()
    text = json.dumps(spec, indent=1, sort_keys=True, default=str) + "\n"
    if known.is_file():
        if known.read_text(encoding="utf-8") != text:
            raise ValueError(f"{run} holds a run of another specification; give another folder")
        before = json.loads((run / "env.json").read_text(encoding="utf-8"))["versions"]
        return [
            f"{name} {before.get(name)} -> {new}" for name, new in now["versions"].items() if before.get(name) != new
        ]
    for file, content in (("env.json", json.dumps(now, indent=1) + "\n"), ("spec.json", text)):
        partial = run / f".{file}.{os.getpid()}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(run / file)
    return []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
