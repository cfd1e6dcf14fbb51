"""Every method and control in the emoji world: constants chosen with one budget, then all 276 benchmark prompts.

Commands (two cores; all go on where they were stopped; give several processes `--share i/n`):

    python benchmarks/methods.py --part tune --out runs/methods        (two hours: six settings of every method)
    python benchmarks/methods.py --part make --out runs/methods        (six hours: four seeds of every prompt)
    python benchmarks/methods.py --part report --out runs/methods      (two minutes: scores, table.csv, grid.png)

The six settings of each method are compared on the same 24 prompts, which are none of the benchmark's, with two seeds;
the best goes into `CHOSEN` by hand. Images lie as ``<method>/<prompt>/<seed>.png``.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from emoji_world import other_prompts

from analysis.compare import compare
from analysis.shards import read_shards
from regulate import FIXED, AttentionRegulation, Given, Method
from regulate.attend_and_excite import FIXED as ATTEND
from regulate.attention_regulation import RANDOM
from regulate.composable import Composable
from regulate.conform import FIXED as CONFORM
from regulate.controls import Boost, GuidanceScale
from regulate.dense_diffusion import DenseDiffusion
from regulate.divide_and_bind import DivideAndBind
from regulate.initno import InitNO
from regulate.layout import layout_of_prompt
from regulate.predicated import PredicatedDiffusion
from regulate.syngen import FIXED as SYNGEN
from regulate.t_sam import TSam
from tracer.prompts import Prompt

FINE = ("down_blocks.0.*", "up_blocks.1.*")  # the 16x16 maps, of as many pixels as Stable Diffusion's
TUNE_SEEDS = (1000, 1001)
GUIDED = {
    "attend-and-excite": ATTEND,
    "syngen": replace(SYNGEN, entities=True),
    "predicated": PredicatedDiffusion(),
    "t-sam": TSam(),
    "divide-and-bind": DivideAndBind(),
    "conform": CONFORM,
}
STEPS = {
    "attend-and-excite": (0.1, 0.3), "syngen": (0.1, 0.3), "predicated": (0.5, 2.0), "t-sam": (1.5, 5.0),
    "divide-and-bind": (2.0, 6.0), "conform": (0.4, 1.5),
}  # fmt: skip


def settings() -> dict[str, dict[str, Method]]:
    """Return six settings of every method, the published constants first.

    The emoji world's latents have a sixteenth of the numbers of Stable Diffusion's, so that a loss's gradient is longer
    on each of them: the two factors on the step are those with which one move changes a latent by about 0.02 and 0.06
    (root mean square), where the published step changes it by up to 0.2 (measured with `moves`).
    """
    found: dict[str, dict[str, Method]] = {}
    for name, method in GUIDED.items():
        low, high = (replace(method, step_size=factor * method.step_size) for factor in STEPS[name])
        found[name] = {"published": method, "low": low, "high": high, "low, 16x16": replace(low, layers=FINE)}
        if method.refine_at:
            once = {"low, once": replace(low, refine_at=()), "high, once": replace(high, refine_at=())}
            found[name] |= once
        else:
            found[name] |= {"high, 16x16": replace(high, layers=FINE), "low, until 0.25": replace(low, until=0.25)}
    regulation, boost, initno, dense = AttentionRegulation(), Boost(), InitNO(), DenseDiffusion()
    chosen = replace(regulation, layers=FINE, step_size=75.5, level=0.795, share=0.153, proportion=53.1,
                     theta_weight=0.0809, until=0.519, decay=0.918)  # fmt: skip
    return found | {
        "regulation": {
            "published": regulation, "fixed": FIXED, "fixed, 16x16": replace(FIXED, layers=FINE, step_size=25.0),
            "16x16": replace(regulation, layers=FINE), "an earlier search's": chosen,
            "step 25": replace(regulation, step_size=25.0),
        },
        "composable": {
            "published": Composable(), "shared": Composable("shared"),
            **{f"weight {weight}": Composable(weight) for weight in (1.5, 2.0, 3.5, 7.0)},
        },
        "dense-diffusion": {
            "published": dense, "until 0.5": replace(dense, until=0.5), "text 2": replace(dense, text=2.0),
            "own 0.6": replace(dense, own=0.6), "text 0.5": replace(dense, text=0.5),
            "prompt's own embeddings": replace(dense, phrases_alone=False),
        },
        "initno": {
            "published": initno, "rate 0.05": replace(initno, rate=0.05), "rate 0.002": replace(initno, rate=0.002),
            "divergence 0.01": replace(initno, divergence=0.01), "16x16": replace(initno, layers=FINE),
            "cross 0.5": replace(initno, cross=0.5),
        },
        "random-bias": {
            "published": RANDOM, "16x16": replace(RANDOM, layers=FINE), "until 0.25": replace(RANDOM, until=0.25),
            "all layers": replace(RANDOM, layers="*"), "decay 0.9": replace(RANDOM, decay=0.9),
            "ends edited": replace(RANDOM, ends_kept=False),
        },
        "boost": {
            "1": boost, "0.5": replace(boost, amount=0.5), "2": replace(boost, amount=2.0),
            "1, 16x16": replace(boost, layers=FINE), "1, all layers": replace(boost, layers="*"),
            "2, 16x16": replace(boost, amount=2.0, layers=FINE),
        },
        "guidance-scale": {f"{scale}": GuidanceScale(scale) for scale in (3.5, 6.0, 7.5, 10.0, 15.0, 20.0)},
    }  # fmt: skip


def hard_prompts(out: Path, count: int = 24) -> tuple[Prompt, ...]:
    """Return prompts that are none of the benchmark's, of those of which the plain model misses one image of two."""
    prompts = other_prompts(276)
    compare(prompts, TUNE_SEEDS, {}, out / "tune" / "plain")
    rows = read_shards(out / "tune" / "plain" / "rows")
    found = (rows["score"] > rows["threshold"]).groupby([rows["prompt"], rows["seed"]]).all()
    missed = set(found[~found].index.get_level_values("prompt"))
    hard = [prompt for prompt in prompts if prompt.text in missed]
    chance = np.random.default_rng(TUNE_SEEDS[0])
    return tuple(hard[index] for index in sorted(chance.permutation(len(hard))[:count]))


def tune(out: Path, only: list[str] | None) -> None:
    """Compare the settings, each method by itself."""
    prompts = hard_prompts(out)
    layouts = {one.text: Given(layout=layout_of_prompt(one.text, one.targets, 0)) for one in prompts}
    for name, methods in settings().items():
        if only is None or name in only:
            given = layouts if name == "dense-diffusion" else {}
            compare(prompts, TUNE_SEEDS, methods, out / "tune" / name, given=given)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("tune",), default="tune")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--methods", nargs="+")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    if options.part == "tune":
        tune(options.out, options.methods)


if __name__ == "__main__":
    main()
