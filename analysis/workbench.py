"""A generator and a detector that work through a plan, and remember in a folder what is done."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from diffusers import DiffusionPipeline
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from analysis.plan import Plan
from analysis.shards import done, read_shards, write_shard
from metrics.detection import detect
from metrics.protocols import DetectionProtocol, emoji_detection
from metrics.weights import Detector, load_detector
from regulate import Given, Method, Request, generate
from regulate.applied import subjects_of
from tracer.models import load_pipeline
from tracer.prompts import Prompt
from tracer.scenes import is_seen
from tracer.words import targets_of


@dataclass(frozen=True)
class Workbench:
    """What makes and judges images, and the folder where the rows lie.

    Attributes:
        pipe: the generator.
        detector: that looks at its images.
        out: holds ``rows/*.parquet`` and tables.
        console: where progress goes.
        weights: fingerprint of the generator.
    """

    pipe: DiffusionPipeline
    detector: Detector
    out: Path
    console: Console
    weights: str

    @classmethod
    def loaded(
        cls,
        prompts: Sequence[Prompt],
        out: str | Path,
        model: str,
        protocol: DetectionProtocol | None,
        console: Console,
    ) -> "Workbench":
        """Return a workbench for these prompts; nothing is written yet.

        Raises:
            ValueError: a target is not in its prompt.
            FileNotFoundError: the model or the detector is not on this machine.
        """
        with console.status("loading the generator and the detector"):
            pipe = load_pipeline(model)
            detector = load_detector(protocol or (emoji_detection() if model == "emoji" else DetectionProtocol()))
        for prompt in prompts:
            targets_of(pipe.tokenizer, prompt.text, prompt.targets)
        return cls(pipe, detector, Path(out), console, fingerprint(pipe))

    def rows_of(self, plan: Plan) -> pd.DataFrame:
        """Do what of the plan is not done, and return its rows, in the order of its methods."""
        known = done(self.out / "rows", self.detector.protocol.name)
        specs = {
            name: {p.text: self._spec(plan, method, p) for p in plan.prompts} for name, method in plan.methods.items()
        }
        work: dict[tuple[str, str], tuple[Prompt, str, tuple[int, ...]]] = {}
        for prompt in plan.prompts:
            for name, by_prompt in specs.items():
                spec = by_prompt[prompt.text]  # one method under two names is done once
                missing = tuple(seed for seed in plan.seeds if (spec, prompt.text, seed) not in known)
                work.setdefault((spec, prompt.text), (prompt, name, missing))
        columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("images", total=sum(len(seeds) for _, _, seeds in work.values()))
            for (spec, _), (prompt, name, seeds) in work.items():
                if seeds:
                    self._do(plan, prompt, name, seeds, spec)
                    progress.advance(task, len(seeds))
        rows = read_shards(self.out / "rows")
        rows = rows[rows["seed"].isin(plan.seeds) & (rows["protocol"] == self.detector.protocol.name)]
        parts = []
        for name, by_prompt in specs.items():
            wanted = rows["prompt"].map(by_prompt) == rows["spec"]
            parts.append(rows[wanted].assign(method=name))
        return pd.concat(parts)

    def lacking(self, plan: Plan) -> dict[str, str]:
        """Return the methods that lack what they need for a prompt of the plan, with the reason."""
        found: dict[str, str] = {}
        for name, method in plan.methods.items():
            for prompt in plan.prompts:
                given = [plan.given.get(prompt.text, Given())]
                subject = subjects_of(self.pipe, [prompt.text], [prompt.targets], plan.seeds[:1], given)[0]
                standing = method.standing(subject)
                if standing.verdict == "n/a":
                    found.setdefault(name, f"{prompt.text!r}: {standing.reason}")
        return found

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Write a table beside the rows, whole or not at all."""
        partial = self.out / f"{name}.partial"
        table.to_csv(partial, index=False)
        partial.replace(self.out / name)

    def _do(self, plan: Plan, prompt: Prompt, name: str, seeds: tuple[int, ...], spec: str) -> None:
        """Make and judge one prompt's images under one method, and write their rows: the unit of work."""
        method, protocol = plan.methods[name], self.detector.protocol
        given = plan.given.get(prompt.text, Given())
        request = Request(prompt.text, prompt.targets, seeds, plan.steps, plan.guidance, batch=plan.batch, given=given)
        made = generate(self.pipe, request, method)
        found = detect(self.detector, made.images, [prompt.targets] * len(seeds), plan.batch)
        same = {
            "spec": spec,
            "method": name,
            "parameters": json.dumps(method.parameters(), sort_keys=True),
            "prompt_id": prompt.id,
            "prompt": prompt.text,
            "seen": is_seen(prompt.targets),
            "threshold": protocol.threshold,
            "protocol": protocol.name,
            "standing": made.standing.verdict,
        }
        rows = [
            same | {"seed": seed, "target": detection.target, "score": detection.score, "image_sha256": sha256}
            for seed, sha256, detections in zip(seeds, made.sha256, found, strict=True)
            for detection in detections
        ]
        write_shard(self.out / "rows", rows)

    def _spec(self, plan: Plan, method: Method, prompt: Prompt) -> str:
        facts = {
            "weights": self.weights,
            **sampler_of(self.pipe),
            "method": method.name,
            "parameters": method.parameters(),
            "steps": plan.steps,
            "guidance": plan.guidance,
            "batch": plan.batch,
        }
        given = plan.given.get(prompt.text, Given())
        if given != Given() and method != Method():
            facts["given"] = given.digest()
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def sampler_of(pipe: DiffusionPipeline) -> dict[str, object]:
    """Return the scheduler and its constants; not which of them are defaults, which processes list in other orders."""
    config = {name: value for name, value in pipe.scheduler.config.items() if name != "_use_default_values"}
    return {"scheduler": type(pipe.scheduler).__name__, "scheduler_config": config}


def fingerprint(pipe: DiffusionPipeline) -> str:
    """Return a hash of all the pipeline's weights and of its scheduler: another one for what makes other images."""
    digest = hashlib.blake2b(digest_size=8)
    scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    scheduler["_class_name"] = type(pipe.scheduler).__name__
    digest.update(json.dumps(scheduler, sort_keys=True, default=str).encode())
    for part, module in sorted(pipe.components.items()):
        if isinstance(module, nn.Module):
            for name, tensor in module.state_dict().items():
                digest.update(f"{part}.{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
