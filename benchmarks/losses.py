"""Does a guided method do what it is for, and is that what the emoji world needs? Its own loss, without it and with it.

Commands, after ``benchmarks/methods.py --part report`` (a quarter of an hour each on two cores):

    python benchmarks/losses.py --out runs/methods
    python benchmarks/losses.py --part gentler --out runs/methods

`gentler` tries smaller steps of the two that lost most, on the prompts that all were tuned on; they come on top of the
six settings that every method had, so that they stand in no table.

Of the losses: every twelfth benchmark prompt, four seeds. *Without*: the method's loss along the plain images' own
ways, which a step of size 0 leaves where they are. *With*: along the guided ones, before the move of a step, so that
only what earlier moves left of themselves counts. *AUC*: how well the loss of a plain image tells whether it misses a
target (0.5: chance); a method that lowers a loss that does not tell it mends nothing.
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from methods import CHOSEN, GUIDED, SEEDS, TUNE_SEEDS, hard_prompts, request
from rich.progress import track

from analysis.compare import compare
from analysis.evidence.statistics import cluster_auc
from analysis.plan import PLAIN
from regulate import Method, generate
from regulate.guidance import Guidance, ImageLoss, Look
from regulate.method import Subject
from regulate.shares import whole
from tracer import load_pipeline
from tracer.prompts import TEMPLATES, Prompt, load_prompts
from tracer.store import Store

EVERY = 12
BIND, PREDICATED = GUIDED["divide-and-bind"], GUIDED["predicated"]
GENTLER: dict[str, dict[str, Method]] = {
    "predicated": {
        f"{share} of the step": replace(PREDICATED, step_size=share * PREDICATED.step_size) for share in (0.2, 0.05)
    },
    "divide-and-bind": {
        "once a step": replace(BIND, refine_at=()),
        "0.3 of the step": replace(BIND, step_size=0.3 * BIND.step_size),
        "0.3 of the step, once a step": replace(BIND, step_size=0.3 * BIND.step_size, refine_at=()),
    },
}
FOUND = "SELECT prompt, seed, value FROM picture_values WHERE metric = 'detection_rate' AND method = $method"


def watched(method: Guidance, seen: list[tuple[int, float]]) -> Guidance:
    """Return a method that notes the step and the value of its loss whenever it asks for it."""

    def loss_of(self: Guidance, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss:
        loss = type(method).loss_of(method, pipe, subject)

        def noting(look: Look) -> torch.Tensor:
            value = loss(look)
            seen.append((look.step, float(value.detach())))
            return value

        return noting

    kind: Any = type(type(method).__name__, (type(method),), {"loss_of": loss_of})
    return kind(**{field.name: getattr(method, field.name) for field in fields(method)})


def entering(pipe: DiffusionPipeline, method: Guidance, prompt: Prompt, step: int) -> list[float]:
    """Return each image's loss when it enters a step, before it is moved there."""
    seen: list[tuple[int, float]] = []
    generate(pipe, request(prompt), watched(method, seen))
    return [value for at, value in seen if at == step][: len(SEEDS)]


def looked_at(pipe: DiffusionPipeline, name: str, prompts: list[Prompt], out: Path) -> pd.DataFrame:
    """Return a row per image, written too: its loss entering the last guided step, without and with the method."""
    method = CHOSEN[name]
    assert isinstance(method, Guidance)
    last = whole(method.until, request(prompts[0]).steps) - 1
    still = replace(method, step_size=0.0, refine_at=())
    rows = []
    for prompt in track(prompts, name):
        both = [entering(pipe, one, prompt, last) for one in (still, method)]
        rows += [
            {"prompt": prompt.text, "seed": seed, "step": last, "without": a, "with": b}
            for seed, a, b in zip(SEEDS, *both, strict=True)
        ]
    (out / "losses").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(out / "losses" / f"{name}.csv", index=False)
    return pd.DataFrame(rows)


def gentler(out: Path, names: list[str]) -> None:
    """Compare smaller steps with plain."""
    for name in names:
        if name in GENTLER:
            compare(hard_prompts(out), TUNE_SEEDS, GENTLER[name], out / "tune" / f"{name}-gentler")


def losses(out: Path, names: list[str]) -> None:
    """Print a line per guided method."""
    pipe, prompts = load_pipeline(), list(load_prompts(TEMPLATES)[::EVERY])
    with Store.open(out / "scores.duckdb") as store:
        found = store.sql(FOUND, {"method": PLAIN}).set_index(["prompt", "seed"])["value"]
    print("| method | step | loss without | with | fell, % of the images | AUC [95 %] | within a prompt | prompts |")
    print("|" + "---|" * 8)
    for name in names:
        rows = looked_at(pipe, name, prompts, out)
        missed = np.array([found[key] < 1 for key in zip(rows["prompt"], rows["seed"], strict=True)])
        auc = cluster_auc(rows["without"].to_numpy(), missed, rows["prompt"].to_numpy())
        over, within = auc.all.one(), auc.within.one()
        ends = [f"{one.estimate:.2f} [{one.low:.2f}, {one.high:.2f}]" for one in (over, within)]
        fell = 100 * (rows["with"] < rows["without"]).mean()
        print(f"| {name} | {rows['step'].iat[0]} | {median(rows['without']):.3f} | {median(rows['with']):.3f} "
              f"| {fell:.0f} | {' | '.join(ends)} | {int(auc.within.prompts)} |")  # fmt: skip


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("losses", "gentler"), default="losses")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--methods", nargs="+", default=list(GUIDED))
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    {"losses": losses, "gentler": gentler}[options.part](options.out, options.methods)


if __name__ == "__main__":
    main()
