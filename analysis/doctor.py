"""Does this installation work, on this device, with this model? Asked once, and pasted when something fails.

doctor("emoji", "cuda")
"""

import importlib.metadata
import json
import os
import platform
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shutil import disk_usage
from typing import Any, Literal
from uuid import uuid4

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants, try_to_load_from_cache
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from analysis.self_check import Note, Unwell, check_maps, check_overhead, check_parity, check_plain, check_syncs
from metrics.machine import hardware
from tracer.folders import emoji_world
from tracer.hub import parts_of, without_vocabulary
from tracer.models import known_models, load_pipeline, model_name
from tracer.sites import attention_sites, checked_modules, denoiser, is_joint

Status = Literal["passed", "failed", "note"]
Precision = Literal["float32", "float16", "bfloat16"]
PACKAGES = ("attnreg", "diffusers", "transformers", "duckdb", "open_clip_torch", "numpy")
SDPA = {"flash": "flash_sdp_enabled", "memory-efficient": "mem_efficient_sdp_enabled", "cudnn": "cudnn_sdp_enabled",
        "math": "math_sdp_enabled"}  # fmt: skip
ROOM = 10**9  # bytes that a disk should have free
STEPS, FEWEST = 8, 4  # of the runs; with fewer, nothing is edited after the first step
COLOURS = {"passed": "green", "failed": "bold red", "note": "dim"}


@dataclass(frozen=True)
class Check:
    """One check: what it is called, how it ended, what was found, and where it raised, if it did."""

    name: str
    status: Status
    detail: str
    seconds: float
    traceback: str = ""


@dataclass(frozen=True)
class Report:
    """All checks, in the order in which they ran."""

    model: str
    device: str
    dtype: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")


def doctor(
    model: str | Path | DiffusionPipeline = "emoji",
    device: str | torch.device | None = None,
    out: Path | None = None,
    *,
    dtype: Precision = "float32",
    steps: int = STEPS,
    room: int = ROOM,
) -> Report:
    """Return what works on this machine and what does not; a check that raises is a failed one, the others still run.

    Args:
        model: a name as for `tracer.load_pipeline`, or a pipeline, which is taken where and as it is.
        device: where to run; by default a graphics card if there is one.
        out: a JSON file for the report, written whole or not at all.
        dtype: of a named model's weights.
        steps: of the runs.
        room: bytes that the disks of the working folder and of the hub's cache must have free.

    Raises:
        ValueError: `device` is none, there are too few steps, or `out` cannot be a file.
    """
    if steps < FEWEST:
        raise ValueError(f"steps must be at least {FEWEST}, got {steps}")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ValueError(f"the report must be a file in a folder that exists, got {out}")
    pipe = model if isinstance(model, DiffusionPipeline) else None
    place = _device(pipe.device if pipe is not None else device)
    checks = [_checked(name, ask) for name, ask in _facts(place, room).items()]
    if pipe is None:
        loaded: list[DiffusionPipeline] = []
        checks.append(_checked("model", lambda: _load(str(model), place, dtype, loaded)))
        pipe = loaded[0] if loaded else None
    checks += [_checked(name, ask) for name, ask in _runs(pipe, place, steps).items()]
    name = model_name(pipe) if isinstance(model, DiffusionPipeline) else str(model)
    report = Report(name, str(place), str(pipe.dtype).removeprefix("torch.") if pipe else dtype, tuple(checks))
    if out is not None:
        _write(report, out)
    return report


def as_table(report: Report) -> Table:
    """Return the report for the terminal."""
    title = f"{report.model} on {report.device}, {report.dtype}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for heading in ("check", "", "found"):
        table.add_column(heading, overflow="fold")
    for check in report.checks:
        table.add_row(Text(check.name), Text(check.status, style=COLOURS[check.status]), Text(check.detail))
    return table


def as_json(report: Report) -> str:
    """Return the report as JSON: that of the table, and of each failed check where it raised."""
    return json.dumps({"passed": not report.failed} | asdict(report), indent=2) + "\n"


def _facts(device: torch.device, room: int) -> dict[str, Callable[[], str]]:
    """Return the checks that need no model."""
    return {
        "versions": _versions,
        "system": _system,
        "device": partial(_device_works, device),
        "attention of torch": _sdpa,
        "hub cache": _hub,
        "known models": _known,
        "emoji world": lambda: str(emoji_world()),
        "disk of the working folder": partial(_disk, Path.cwd(), room),
        "disk of the hub cache": partial(_disk, Path(constants.HF_HUB_CACHE), room),
        "solver against float64": partial(check_parity, device),
    }


def _runs(pipe: DiffusionPipeline | None, device: torch.device, steps: int) -> dict[str, Callable[[], str]]:
    """Return the checks of a pipeline; without one, or for one that cannot be regulated, they only say so."""
    runs: dict[str, Callable[[DiffusionPipeline], str]] = {
        "attention of the model": _sites,
        "plain is stock diffusers": partial(check_plain, steps=steps),
        "maps add up to one": partial(check_maps, steps=steps),
        "waits for the device": partial(check_syncs, steps=steps),
        "overhead of regulation": partial(check_overhead, steps=steps, device=device),
    }
    if pipe is None:
        return {name: lambda: Note("not run, there is no model") for name in runs}
    if is_joint(denoiser(pipe)):
        for name in ("plain is stock diffusers", "waits for the device", "overhead of regulation"):
            runs[name] = lambda _: Note("not run, joint attention can be traced but not regulated")
    return {name: partial(run, pipe) for name, run in runs.items()}


def _checked(name: str, ask: Callable[[], str]) -> Check:
    start = time.perf_counter()
    status: Status = "failed"
    where = ""
    try:
        detail = ask()
        status = "note" if isinstance(detail, Note) else "passed"
    except Unwell as error:
        detail = str(error)
    except Exception as error:  # whatever it is, the other checks are worth having
        detail, where = f"{type(error).__name__}: {error}", traceback.format_exc()
    return Check(name, status, " ".join(detail.split()), round(time.perf_counter() - start, 3), where)


def _device(wanted: str | torch.device | None) -> torch.device:
    if wanted is None:
        cards = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
        return torch.device(next((name for name, there in cards.items() if there()), "cpu"))
    try:
        return torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(f"device must be one of torch's, 'cpu', 'cuda', 'cuda:1' or 'mps', got {wanted!r}") from error


def _versions() -> str:
    found, missing = [f"python {platform.python_version()}", f"torch {torch.__version__}"], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if others := [package for package in missing if package != "attnreg"]:
        raise Unwell(f"not installed: {', '.join(others)}; there are {', '.join(found)}")
    built = f"torch is built for CUDA {torch.version.cuda or 'no'}, ROCm {torch.version.hip or 'no'}"
    return f"{', '.join(found)}{'; attnreg runs from a checkout' if missing else ''}; {built}"


def _system() -> str:
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB of memory"
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()} processors"
    return Note(f"{platform.platform()}, {hardware('cpu')}, {threads}{memory}")


def _device_works(device: torch.device) -> str:
    """Compute something, and say what else there is."""
    others = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    seen = f"; graphics cards: {', '.join(others) or 'none'}"
    if device.type == "cuda" and not torch.cuda.is_available():
        build = torch.version.cuda or torch.version.hip
        raise Unwell(f"torch {torch.__version__} {'sees no card' if build else 'is built without CUDA and ROCm'}{seen}")
    if (torch.arange(4.0, device=device) @ torch.arange(4.0, device=device)).item() != 14:
        raise Unwell(f"{device} computes 0 + 1 + 4 + 9 wrong{seen}")
    if device.type != "cuda":
        return f"{device} computes{seen}"
    free, total = torch.cuda.mem_get_info(device)
    return f"{device} computes: {hardware(str(device))}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free{seen}"


def _sdpa() -> str:
    states = {name: getattr(torch.backends.cuda, ask)() for name, ask in SDPA.items()}
    chosen = os.environ.get("DIFFUSERS_ATTN_BACKEND")
    said = "enabled on cards: " + (", ".join(name for name, on in states.items() if on) or "none")
    return Note(said + (f"; DIFFUSERS_ATTN_BACKEND is {chosen}" if chosen else ""))


def _hub() -> str:
    mode = "offline, nothing is fetched" if constants.is_offline_mode() else "online"
    folder = Path(constants.HF_HUB_CACHE)
    return Note(f"{folder}{'' if folder.is_dir() else ' (not there)'}; {mode}")


def _known() -> str:
    return Note(", ".join(f"{name} {_cached(one.hub_id, one.revision)}" for name, one in known_models().items()))


def _cached(hub_id: str, revision: str) -> str:
    """Return how much of a model is on this machine."""
    if not hub_id:
        return "comes with attnreg"
    index = try_to_load_from_cache(hub_id, "model_index.json", constants.HF_HUB_CACHE, revision)
    if not isinstance(index, str):
        return "not cached"
    folder = Path(index).parent
    parts = parts_of(folder)
    wanted = [name for name, part in parts.items() if isinstance(part, list) and part[0] and name != "safety_checker"]
    lacking = [name for name in wanted if not _whole(folder / name)]
    vocabulary = without_vocabulary(folder, parts)
    lacking += [vocabulary] if vocabulary and vocabulary not in lacking else []
    return f"cached in part, without {' and '.join(lacking)}" if lacking else "cached"


def _whole(part: Path) -> bool:
    """Return whether a part of a pipeline is there, with weights if it is a network."""
    return any(part.glob("*.safetensors")) if (part / "config.json").is_file() else any(part.glob("*"))


def _disk(folder: Path, room: int) -> str:
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = disk_usage(there).free
    if free < room:
        raise Unwell(f"{free / 1e9:.2f} GB free, {room / 1e9:.2f} GB are needed: {there}")
    return f"{free / 1e9:.1f} GB free: {there}"


def _load(name: str, device: torch.device, dtype: Precision, into: list[DiffusionPipeline]) -> str:
    pipe = load_pipeline(name, device, getattr(torch, dtype))
    into.append(pipe)
    network = denoiser(pipe)
    size = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    parts = f"{type(pipe).__name__}, {type(network).__name__} of {size:.1f} million weights"
    return f"{model_name(pipe)}: {parts}, {type(pipe.scheduler).__name__}"


def _sites(pipe: DiffusionPipeline) -> str:
    model = denoiser(pipe)
    modules: Any = checked_modules(model, attention_sites(model))
    processors = [module.processor for module in modules.values()]
    backends = [str(getattr(p, "_attention_backend", None) or "native") for p in processors]
    kinds = Counter(f"{type(p).__name__} (backend {b})" for p, b in zip(processors, backends, strict=True))
    return f"{len(modules)} sites: " + ", ".join(f"{kind} x {count}" for kind, count in kinds.items())


def _write(report: Report, out: Path) -> None:
    draft = out.with_name(f".{out.name}.{uuid4().hex[:8]}.partial")
    try:
        draft.write_text(as_json(report), encoding="utf-8")
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
