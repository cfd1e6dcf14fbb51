"""What identifies a run: all that its images depend on, and what its folder is named after.

Conventions: ``spec.json`` says it; ``env.json``, which is no part of it, says on what it was begun, and with how many
threads its workers compute on the CPU.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from analysis.experiments.experiment import Experiment
from analysis.running.ledger import rows_of, write_text
from analysis.running.units import Planned, digest_of, fitting

LIBRARIES = ("attnreg", "diffusers", "duckdb", "lpips", "open_clip_torch", "torch", "torch-fidelity", "transformers")
MAKERS = ("regulate", "tracer")  # our packages that images are made by


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
    """Return on what a run is made: libraries, our own code, and the machine."""
    return {
        "code": _code(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.platform(),
        "graphics": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


@dataclass(frozen=True)
class Begun:
    """What is known of a run's first call.

    Attributes:
        threads: that each of the run's workers computes with on the CPU; None if this call is for another device.
        changes: how this environment differs from the one that the run was begun in.
    """

    threads: int | None
    changes: tuple[str, ...]


def begin(run: Path, spec: Mapping[str, Any], threads: int | None) -> Begun:
    """Make a run's folder, or find it, and return what is known of its first call.

    Args:
        run: its folder.
        spec: what identifies it.
        threads: that a worker would compute with on the CPU if this call were the first; None on other devices.

    Raises:
        ValueError: the folder holds a run of another specification.
    """
    run.mkdir(parents=True, exist_ok=True)
    known, about, now = run / "spec.json", run / "env.json", environment()
    text = _json(spec)
    if not known.is_file():
        write_text(about, _json(now | ({} if threads is None else {"threads": threads})))
        write_text(known, text)
    if known.read_text(encoding="utf-8") != text:
        raise ValueError(f"{run} holds a run of another specification; give another folder")
    before = json.loads(about.read_text(encoding="utf-8"))
    if threads is not None and "threads" not in before:
        before |= {"threads": _usual_threads(run) or threads}
        write_text(about, _json(before))
    return Begun(None if threads is None else before["threads"], tuple(_changes(before, now)))


def _usual_threads(run: Path) -> int | None:
    """Return with how many threads the batches of a run were made that does not say so; None if there are none."""
    rows = rows_of(run)
    found = rows.loc[rows["device"] == "cpu", "threads"].mode()
    return int(found.iat[0]) if len(found) else None


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name, new in now["versions"].items():
        if (old := before["versions"].get(name)) != new:
            yield f"{name} {old} -> {new}"
    if before.get("code", now["code"]) != now["code"]:
        yield f"the code of {' or '.join(MAKERS)} has changed"


def _code() -> str:
    """Return a hash of the sources that make images, in a checkout and in an installed wheel alike."""
    found = hashlib.blake2b(digest_size=8)
    for package in MAKERS:
        folder = Path(str(files(package)))
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{package}/{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return found.hexdigest()


def _json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1, sort_keys=True, default=str) + "\n"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
