"""Does regulation mend neglect in the emoji world? All 276 benchmark prompts, eight seeds, plain and regulated.

Commands (two cores; both go on where they were stopped):

    python benchmarks/emoji_world.py --part choose --out runs/emoji-choice    (an hour: constants, on other prompts)
    python benchmarks/emoji_world.py --out runs/emoji-world                   (half an hour a method: the comparison)

The second writes the images as ``<method>/<prompt>/<seed>.png``, ``scores.duckdb``, ``results.csv``, ``cases.png``: the
prompts on which the chosen constants gained most, in the middle, and lost most; no selection by eye.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from analysis import search
from analysis.compare import compare
from analysis.score_folders import score_folders
from analysis.scoreboard import cells, picture_values, scoreboard
from metrics import known_protocols
from regulate import FIXED, AttentionRegulation, Method, Request, generate
from tracer import load_pipeline
from tracer.prompts import TEMPLATES, Prompt, load_prompts
from tracer.scenes import COLOURS, OBJECTS, article, is_seen
from tracer.store import Store

SEEDS, OTHER_SEEDS = tuple(range(8)), tuple(range(1000, 1008))
FINE = ("down_blocks.0.*", "up_blocks.1.*")  # the 16x16 maps, of as many pixels as Stable Diffusion's edited ones
METHODS: dict[str, Method] = {
    "plain": Method(),
    "published": AttentionRegulation(),
    # the best of `--part choose`, its numbers rounded to three digits
    "chosen": AttentionRegulation(
        layers=FINE,
        step_size=75.5,
        level=0.795,
        share=0.153,
        proportion=53.1,
        theta_weight=0.0809,
        until=0.519,
        decay=0.918,
    ),
}
METHODS["chosen, when dominant"] = replace(METHODS["chosen"], when="dominant")
KEYS = ("emoji-owlv2", "emoji-lpips")
EACH = 3  # best, middle and worst prompts in the figure


def other_prompts(count: int = 24, seed: int = 11) -> tuple[Prompt, ...]:
    """Return prompts that are none of the benchmark's: pairs of its nouns the other way round, with other colours."""
    chance = np.random.default_rng(seed)

    def coloured(noun: str) -> str:
        return f"{list(COLOURS)[chance.integers(len(COLOURS))]} {noun}" if noun in OBJECTS else noun

    benchmark, found = load_prompts(TEMPLATES), []
    for prompt in benchmark:
        first, second = prompt.targets
        later, sooner = article(coloured(second)), article(coloured(first))
        found.append(Prompt(f"tune-{prompt.id}", f"{later} and {sooner}", (second, first), "tune"))
    assert not {prompt.text for prompt in found} & {prompt.text for prompt in benchmark}
    return tuple(found[index] for index in sorted(chance.permutation(len(found))[:count]))


def choose(out: Path) -> None:
    """Search constants on other prompts, and compare a few by hand with what the search found."""
    prompts = other_prompts()
    found = search(prompts, OTHER_SEEDS, out, trials=14)
    by_hand: dict[str, Method] = {
        "searched": found.method,
        "searched, fixed, step 25": replace(
            found.method, pieces="shared", average="running", ends_kept=False, step_size=25.0
        ),
        "fixed, 8x8": FIXED,
        "fixed, 16x16, step 25": replace(FIXED, layers=FINE, step_size=25.0),
        "fixed, 16x16, step 6": replace(FIXED, layers=FINE, step_size=6.0),
    }
    compare(prompts, OTHER_SEEDS, by_hand, out)


def make(out: Path, names: list[str], prompts: tuple[Prompt, ...]) -> None:
    """Generate what is not there yet; a prompt's seeds are one batch, made whole or again."""
    pipe = load_pipeline()
    for name in names:
        facts = out / name / "parameters.json"
        facts.parent.mkdir(parents=True, exist_ok=True)
        wanted = json.dumps(METHODS[name].parameters(), indent=1)
        if facts.is_file() and facts.read_text() != wanted:
            raise ValueError(f"{facts.parent} holds images of other constants; give another --out")
        facts.write_text(wanted)
    for name, prompt in track([(name, prompt) for name in names for prompt in prompts], "prompts"):
        folder = out / name / prompt.text
        if not all((folder / f"{seed}.png").is_file() for seed in SEEDS):
            generate(pipe, Request(prompt.text, prompt.targets, SEEDS), METHODS[name], folder=folder)


def values_of(out: Path, names: list[str]) -> pd.DataFrame:
    """Return the detection and LPIPS of every image, scored where they are not yet."""
    folders = [out / name for name in names]
    score_folders(folders, out / "scores.duckdb", keys=KEYS, world="emoji", baseline="plain", console=Console())
    with Store.open(out / "scores.duckdb") as store:
        protocols = [known_protocols()[key] for key in KEYS]
        return picture_values(store, protocols, names, "plain")


def results(values: pd.DataFrame, names: list[str], prompts: tuple[Prompt, ...]) -> pd.DataFrame:
    """Return a row per method and kind of pairs."""
    seen = {prompt.text: is_seen(prompt.targets) for prompt in prompts}
    parts = {"all": values, "seen": values[values["prompt"].map(seen)], "unseen": values[~values["prompt"].map(seen)]}
    tables = []
    for kind, part in parts.items():
        table = scoreboard(cells(part, names, "plain"), "plain").assign(pairs=kind)
        wide = part[part["metric"] == "detection_rate"].pivot_table(
            index=["prompt", "seed"], columns="method", values="value"
        )
        table["images won"] = [(wide[name] > wide["plain"]).mean() for name in table["method"]]
        table["images lost"] = [(wide[name] < wide["plain"]).mean() for name in table["method"]]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def cases(out: Path, values: pd.DataFrame, name: str) -> None:
    """Draw the prompts of largest gain, in the middle, and of largest loss, every seed; orange frames: not found."""
    found = values[values["metric"] == "detection_rate"].set_index(["method", "prompt", "seed"])["value"]
    gain = (found[name] - found["plain"]).groupby("prompt").mean().sort_values(kind="stable", ascending=False)
    middle = len(gain) // 2 - EACH // 2
    groups = {"gained most": gain.index[:EACH], "the middle": gain.index[middle : middle + EACH]}
    groups["lost most"] = gain.index[-EACH:]
    rows = [(title, prompt) for title, chosen in groups.items() for prompt in chosen]
    count = len(SEEDS)
    ratios = [1.0] * count + [0.25] + [1.0] * count  # a gap between the methods
    figure, axes = plt.subplots(
        len(rows), len(ratios), figsize=(13, 0.82 * len(rows) + 0.5), gridspec_kw={"width_ratios": ratios}
    )
    for line, (title, prompt) in zip(axes, rows, strict=True):
        line[count].set_axis_off()
        for place, axis in enumerate([*line[:count], *line[count + 1 :]]):
            method, seed = ("plain", name)[place // count], SEEDS[place % count]
            axis.imshow(Image.open(out / method / prompt / f"{seed}.png"))
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(edgecolor="#009e73" if found[method, prompt, seed] else "#d55e00", linewidth=1.6)
        line[0].set_ylabel(
            f"{title}\n{prompt}\n{count * gain[prompt]:+.0f} of {count}",
            rotation=0,
            ha="right",
            va="center",
            fontsize=7,
        )
    for place, label in ((0, "plain"), (count + 1, name)):
        axes[0, place].set_title(
            f"{label}, seeds 0 to 7 (orange frame: a target was not found)", loc="left", fontsize=8
        )
    figure.subplots_adjust(left=0.13, right=0.995, top=0.96, bottom=0.01, wspace=0.06, hspace=0.04)
    figure.savefig(out / "cases.png", dpi=110)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("choose", "compare"), default="compare")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-world"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--only-make", action="store_true", help="generate, and leave the rest for later")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    prompts = load_prompts(TEMPLATES)
    if options.part == "choose":
        choose(options.out)
        return
    if "plain" not in options.methods:
        parser.error("--methods must have plain among them, which the others are compared with")
    make(options.out, options.methods, prompts)
    if not options.only_make:
        values = values_of(options.out, options.methods)
        table = results(values, options.methods, prompts)
        table.to_csv(options.out / "results.csv", index=False)
        pd.set_option("display.width", 200, "display.max_columns", 30)
        print(table.drop(columns=["protocol", "interval"]).round(4).to_string())
        cases(options.out, values, "chosen" if "chosen" in options.methods else options.methods[-1])


if __name__ == "__main__":
    main()
