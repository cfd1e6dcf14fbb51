"""What images and maps look like: grids, pairs, violins, maps over steps, chosen by rules that are said.

Conventions: prompts are spread evenly over the set; seeds are counted from the first. Of traced images the one of the
lowest seed that misses a target is shown, and the one of the lowest seed that shows all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from analysis import tables
from analysis.evidence.tables import TARGET_WORDS
from analysis.figures.attention import dominance_violins
from analysis.figures.pictures import maps_over_steps, method_grid, pairs
from analysis.figures.style import Picture
from analysis.outputs.made import Made, MadeFigure, NotMade, figure_of
from analysis.plan import PLAIN
from analysis.running.results import PartResults
from analysis.running.run import RunResults
from tracer.store import Store

PROMPTS, SEEDS, PAIRS = 5, 2, 12  # that a figure shows
FOUND = """
SELECT p.method, p.prompt, p.seed, v.target, v.found, v.box[1] AS "left", v.box[2] AS top, v.box[3] AS "right",
       v.box[4] AS bottom
FROM pictures p JOIN verdicts v USING (image_sha256)
WHERE v.protocol = $protocol AND v.against = array_to_string(list_sort(p.targets), ', ')
ORDER BY p.method, p.prompt, p.seed, v.target"""
TRACED = """
SELECT run_id, sample, method, prompt, seed, found
FROM samples JOIN runs USING (run_id) JOIN outcomes USING (run_id, sample)
WHERE protocol = $protocol ORDER BY method, prompt, seed"""
# A row per traced image and word of a target that is not found in it.
MISSING = f"""
SELECT run_id, sample, word_idx, target FROM ({TARGET_WORDS}) WHERE NOT found ORDER BY run_id, sample, word_idx"""

Key = tuple[str, str, int]


def grids(results: RunResults) -> Iterator[Made]:
    """Yield the same prompts and seeds under every method, as Figure 4, without and with the detector's boxes."""
    for part in results.parts:
        prompts = list(dict.fromkeys(part.images["prompt"]))
        places = np.unique(np.linspace(0, len(prompts) - 1, min(PROMPTS, len(prompts))).round().astype(int))
        seeds = {prompt: sorted(rows["seed"].unique())[:SEEDS] for prompt, rows in part.images.groupby("prompt")}
        columns = [(prompts[place], int(seed)) for place in places for seed in seeds[prompts[place]]]
        there = set(part.images[["method", "prompt", "seed"]].itertuples(index=False, name=None))
        shown = [(method, *column) for method in part.methods for column in columns if (method, *column) in there]
        pictures = _pictures(results.run, part, shown)
        yield _figure(
            results, part, "grid", "The same noise under every method",
            "Prompts are spread evenly over the set; frames, and words below an image, name what is not found in it.",
            partial(method_grid, pictures, _found(part)),
        )  # fmt: skip
        yield _figure(
            results, part, "grid-boxes", "Where the detector found the targets",
            "The same images, with the box of each target that counts as found.",
            partial(method_grid, pictures, _found(part), boxes=True),
        )  # fmt: skip


def paired(results: RunResults) -> Iterator[Made]:
    """Yield plain images beside those of each method, as Figure 1, of prompts and seeds that both have."""
    for part in results.parts:
        keys = {str(name): rows[["prompt", "seed"]] for name, rows in part.images.groupby("method")}
        for method in part.methods:
            if method == PLAIN:
                continue
            if not {PLAIN, method} <= keys.keys() or (both := keys[PLAIN].merge(keys[method])).empty:
                yield NotMade(f"{part.title}, {PLAIN} and {method}", "they have no prompt and seed in common")
                continue
            some = both.groupby("prompt", sort=False).head(max(1, PAIRS // both["prompt"].nunique()))  # of each as many
            shown = [
                (name, *key) for name in (PLAIN, method) for key in some[:PAIRS].itertuples(index=False, name=None)
            ]
            pictures = _pictures(results.run, part, shown)
            yield _figure(
                results, part, f"pairs-{method.replace(' ', '-')}", f"{PLAIN} and {method}",
                f"Left the plain image, right that of {method}, from the same noise.",
                partial(pairs, pictures, _found(part)),
            )  # fmt: skip


def violins(results: RunResults) -> Iterator[Made]:
    """Yield how much attention each word gets in an image that fails and in one that succeeds, as Figure 2."""
    for part in _traced(results):
        protocol = part.protocol("detection_rate")
        with Store.open(part.store) as store:
            traced = store.sql(TRACED, {"protocol": protocol})
            plain = traced[traced["method"] == PLAIN]
            if plain.empty:
                raise LookupError(f"{part.title}: no {PLAIN} image is traced and judged")
            chosen = plain.drop_duplicates("found").sort_values("found", ignore_index=True)
            steps = sorted(part.planned.part.traced[PLAIN].steps or (0,))
            layer, heads = tables.most_attended_layer(store, int(chosen.at[0, "run_id"]), steps[-1])
            values = pd.concat(
                tables.violin_values(store, int(row.run_id), [int(row.sample)], layer, steps).assign(sample=place)
                for place, row in enumerate(chosen.itertuples())
            )
            words = store.sql(MISSING, {"protocol": protocol})
        words = words.merge(chosen[["run_id", "sample"]].reset_index(names="place"), on=["run_id", "sample"])
        missing = words[["place", "word_idx", "target"]].rename(columns={"place": "sample"})
        keys = [(PLAIN, row.prompt, int(row.seed)) for row in chosen.itertuples()]
        pictures = dict(enumerate(_pictures(results.run, part, keys).values()))
        titles = {place: _title(place, int(seed), missing) for place, seed in enumerate(chosen["seed"])}
        name = layer.removesuffix(".attn2")
        yield _figure(
            results, part, "violins", "How much attention each word gets",
            f"Probabilities over the pixels of {name}, {heads} heads pooled, conditional half, not renormalised; the "
            "layer gives the targets most attention. Arrows mark the words of a target that the image misses.",
            partial(dominance_violins, values, missing, pictures, titles),
        )  # fmt: skip


def maps(results: RunResults) -> Iterator[Made]:
    """Yield the targets' maps over steps, as the model has them and as each method leaves them, as Figure 3."""
    for part in _traced(results):
        edited = [method for method in part.planned.part.traced if method in part.methods and method != PLAIN]
        if not edited:
            continue
        with Store.open(part.store) as store:
            rows = _shared(store.sql(TRACED, {"protocol": part.protocol("detection_rate")}), (PLAIN, *edited))
            layers = tables.edited_layers(store, int(rows.at[edited[0], "run_id"]))
            steps = sorted(part.planned.part.traced[PLAIN].steps or (0,))
            found = pd.concat(
                tables.overlay_maps(store, int(row.run_id), [int(row.sample)], layers, steps)
                for row in rows.itertuples()
            )
        seed = int(rows.at[PLAIN, "seed"])
        keys = [(method, str(rows.at[PLAIN, "prompt"]), seed) for method in (PLAIN, *edited)]
        pictures = dict(zip((PLAIN, *edited), _pictures(results.run, part, keys).values(), strict=True))
        yield _figure(
            results, part, "maps", "Where the targets' maps lie, step by step",
            f"Seed {seed}; mean over the {len(layers)} edited layers and their heads, on one scale. Where a method "
            "edits, its maps after the edit are shown.",
            partial(maps_over_steps, found, pictures, steps),
        )  # fmt: skip


def _traced(results: RunResults) -> Iterator[PartResults]:
    return (part for part in results.parts if PLAIN in part.planned.part.traced)


def _shared(traced: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Return a row for each method, by its name: of the lowest seed that all have, and plain misses a target in if any.

    Raises:
        LookupError: no prompt and seed is traced and judged under all methods.
    """
    mine = traced[traced["method"].isin(methods)]
    count = mine.groupby(["seed", "prompt"])["method"].nunique()
    common = mine.set_index(["seed", "prompt"]).loc[count.index[count == len(methods)]]
    if common.empty:
        raise LookupError(f"no image is traced and judged under all of {', '.join(methods)}")
    plain = common[common["method"] == PLAIN].sort_values("found", kind="stable")
    return common.loc[[plain.index[0]]].reset_index().set_index("method").loc[list(methods)]


def _title(sample: int, seed: int, missing: pd.DataFrame) -> str:
    absent = dict.fromkeys(missing.loc[missing["sample"] == sample, "target"])  # a target may be of several words
    return f"seed {seed}: " + (",\n".join(f"no {target}" for target in absent) or "all found")


def _found(part: PartResults) -> pd.DataFrame:
    with Store.open(part.store) as store:
        return store.sql(FOUND, {"protocol": part.protocol("detection_rate")})


def _pictures(run: Path, part: PartResults, keys: Sequence[Key]) -> Mapping[Key, Picture]:
    paths = part.images.set_index(["method", "prompt", "seed"])["image"]
    return {key: np.asarray(Image.open(run / paths[key]).convert("RGB")) for key in keys}


def _figure(
    results: RunResults, part: PartResults, name: str, title: str, text: str, draw: Callable[[str], Figure]
) -> MadeFigure:
    return figure_of(results, part, name, title, text, f"{part.title}. {text}", draw)
