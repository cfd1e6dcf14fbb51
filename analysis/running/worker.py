"""Who makes the images: a process that loads a model once, and does unit after unit.

Conventions: first the images, then the trace, last the unit's own file: who finds that finds the rest. A unit that
fails is noted with its traceback, and the next one is done. A worker that cannot load its model, or at which batch
after batch fails, gives up: that is no batch's failure, and others may fare better.
"""

import os
import platform
import shutil
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import torch
from diffusers import DiffusionPipeline

from analysis.running.ledger import FAILURES, left_of, write_failure, write_unit
from analysis.running.units import Job, Unit
from metrics.machine import Timing, counting, timed
from regulate import Request, generate
from regulate.generate import Generated
from tracer.database import TraceBusy
from tracer.models import load_pipeline
from tracer.pictures import write_image
from tracer.sites import denoiser
from tracer.store import Store

TRACES = "traces"
IN_A_ROW = 10  # batches that fail at a worker with none done in between: then it is not the batches


class Unfit(RuntimeError):
    """A worker cannot work, whatever it is given; its only argument says why."""


@dataclass(frozen=True)
class Setup:
    """What every worker is told.

    Attributes:
        run: folder of the run.
        device: where models run.
        threads: that a worker computes with on the CPU; None to leave them as they are.
    """

    run: Path
    device: str = "cpu"
    threads: int | None = None


class Worker:
    """Does jobs; keeps the pipeline of the last model."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self._loaded: tuple[tuple[str, str], DiffusionPipeline] | None = None
        self._failed = 0  # in a row
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        torch.set_flush_denormal(True)  # numbers that are almost zero cost the CPU a hundred times the others

    def do(self, job: Job) -> int:
        """Do what of a job is neither done nor failed, and return how many units that were.

        Raises:
            Unfit: the model cannot be loaded here; or `IN_A_ROW` batches failed, which are noted.
        """
        left = left_of(self.setup.run, job)
        for unit in left:
            self._pipe(unit.model, unit.dtype)  # outside of what a batch can fail at
            try:
                self._do(unit)
                self._failed = 0
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                write_failure(self.setup.run, unit.key, failure_facts(unit, said, traceback.format_exc()))
                self._failed += 1
                if self._failed >= IN_A_ROW:
                    raise Unfit(
                        f"{IN_A_ROW} batches failed in a row on {self._place}, the last with {said}; "
                        f"{self.setup.run / FAILURES} says more, --retry tries again"
                    ) from error
        return len(left)

    def _do(self, unit: Unit) -> None:
        pipe, run = self._pipe(unit.model, unit.dtype), self.setup.run
        draft = None if unit.capture is None else _draft(run, unit.key)
        found: list[Generated] = []
        with counting(denoiser(pipe)) as count:
            make = partial(_generated, pipe, unit, draft, found)
            timing = timed(make, self.setup.device, lambda: count.passes, time.perf_counter)
        paths = [f"{unit.folder}/{seed}.png" for seed in unit.seeds]
        for image, path in zip(found[0].images, paths, strict=True):
            write_image(image, run / path)
        if draft is not None:
            _finish(draft, found[0], paths)
        write_unit(run, unit.key, self._rows(unit, found[0], paths, timing, count.with_gradient))

    def _rows(
        self, unit: Unit, made: Generated, paths: list[str], timing: Timing, gradient_passes: int
    ) -> list[dict[str, object]]:
        same = {
            "unit": unit.key, "part": unit.part, "method": unit.name, "prompt_id": unit.prompt.id,
            "prompt": unit.prompt.text, "images": len(unit.seeds),
            "seconds": timing.seconds, "traced": unit.capture is not None, "passes": timing.passes,
            "gradient_passes": gradient_passes, "peak_bytes": timing.peak_bytes,
            "device": self.setup.device, "threads": torch.get_num_threads(), "host": platform.node(),
        }  # fmt: skip
        each = zip(unit.seeds, paths, made.sha256, strict=True)
        return [same | {"seed": seed, "image": path, "image_sha256": sha256} for seed, path, sha256 in each]

    def _pipe(self, model: str, dtype: str) -> DiffusionPipeline:
        if self._loaded is None or self._loaded[0] != (model, dtype):
            self._loaded = None  # room for the next one
            try:
                self._loaded = (model, dtype), load_pipeline(model, self.setup.device, getattr(torch, dtype))
            except Exception as error:
                raise Unfit(
                    f"model {model!r} cannot be loaded on {self._place}: {type(error).__name__}: {error}"
                ) from error
        return self._loaded[1]

    @property
    def _place(self) -> str:
        return f"{self.setup.device} of {platform.node()}"


def _generated(pipe: DiffusionPipeline, unit: Unit, draft: Path | None, found: list[Generated]) -> None:
    asked = unit.prompt.text, unit.prompt.targets, unit.seeds, unit.steps, unit.guidance
    request = Request(*asked, batch=len(unit.seeds), given=unit.given)
    if draft is None:
        found.append(generate(pipe, request, unit.method))
        return
    with Store.create(draft) as store:
        found.append(generate(pipe, request, unit.method, store, unit.capture))


def _draft(run: Path, key: str) -> Path:
    """Return where a unit's trace is written, with nothing left there of a worker that was killed."""
    folder = run / TRACES
    folder.mkdir(parents=True, exist_ok=True)
    for name in {path.name.partition(".duckdb")[0] for path in folder.glob(f".{key}.*")}:
        if not _is_written(folder / f"{name}.duckdb"):
            for old in folder.glob(f"{name}.*"):
                shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    return folder / f".{key}.{uuid4().hex[:8]}.duckdb"


def _is_written(draft: Path) -> bool:
    """Return whether a process has a trace open: another call may be making the same unit, on another machine."""
    try:
        with Store.open(draft):
            return False
    except TraceBusy:
        return True
    except Exception:  # whatever a file that was cut short makes of DuckDB
        return False


def _finish(draft: Path, made: Generated, paths: list[str]) -> None:
    """Note in a trace where its images lie, and put it in its place."""
    if not draft.is_file():  # an empty one would be made
        raise FileNotFoundError(f"{draft} was taken away while the images were made")
    with Store.create(draft) as store:
        named = enumerate(zip(made.sha256, paths, strict=True))
        store.add_images(made.run_id or 1, dict(named))
    draft.replace(draft.with_name(f"{draft.name.split('.')[1]}.duckdb"))


def failure_facts(unit: Unit, error: str, told: str) -> dict[str, object]:
    """Return what is noted of a unit that failed: what it was, what went wrong, and all that was told of that."""
    return {
        "part": unit.part, "method": unit.name, "prompt_id": unit.prompt.id, "prompt": unit.prompt.text,
        "seeds": list(unit.seeds), "error": error, "traceback": told, "host": platform.node(), "process": os.getpid(),
    }  # fmt: skip
