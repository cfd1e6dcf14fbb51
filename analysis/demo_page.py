"""What the demo's page shows, from the trace: which images, which figures, which numbers.

The images whose attention is shown are chosen by a rule: the plain image of the lowest seed that misses a
target, and the one of the lowest seed that shows all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from scipy.stats import binomtest

from analysis import tables
from analysis.figures.attention import Picture, attention_overlays, comparison_grid, dominance_violins
from analysis.report import Page, Plate, Query, listed, png_of
from metrics.protocols import DetectionProtocol
from regulate import Request
from tracer.store import Store

CHOICE = (
    "The attention shown below is that of two plain images: the first seed, counting up, whose image misses "
    "a target, and the first whose image shows all of them."
)
ALL_SEEDS = (
    "The shares above are over all {count} seeds, {first} to {last}, whichever method they favour; every one "
    "of those images is shown."
)
QUERIES = (
    Query(
        "Which seeds does regulation win, and which does it lose?",
        """\
SELECT seed, bool_or(found) FILTER (method = 'plain') AS plain,
       bool_or(found) FILTER (method = 'regulation') AS regulation
FROM samples JOIN runs USING (run_id) JOIN outcomes USING (run_id, sample)
GROUP BY seed ORDER BY seed""",
    ),
    Query(
        "From which step on does one target dominate, in plain images that miss something and in others?",
        """\
SELECT step, median(ratio) FILTER (NOT found) AS something_missing,
       median(ratio) FILTER (found) AS all_found
FROM dominance_ratio JOIN runs USING (run_id) JOIN outcomes USING (run_id, sample)
WHERE method = 'plain' AND phase = 'original'
GROUP BY step ORDER BY step""",
    ),
    Query(
        "Which heads look hardest at a target, and what does the edit make of that?",
        """\
SELECT path, head, word, round(avg(p90) FILTER (phase = 'original'), 3) AS original,
       round(avg(p90) FILTER (phase = 'edited'), 3) AS edited
FROM stats JOIN runs USING (run_id)
WHERE method = 'regulation' AND branch = 'cond' AND is_target AND whole_word
GROUP BY ALL HAVING edited IS NOT NULL ORDER BY original DESC LIMIT 10""",
    ),
)


@dataclass(frozen=True)
class Material:
    """A finished demo: its trace, and what is in it.

    Attributes:
        store: holds both runs, their maps and their detections.
        plain: number of the plain run.
        regulated: number of the regulated run.
        protocol: of the detections.
        request: that both runs answer.
        pictures: the images, by (method, seed).
    """

    store: Store
    plain: int
    regulated: int
    protocol: DetectionProtocol
    request: Request
    pictures: Mapping[tuple[str, int], Picture]

    @property
    def runs(self) -> tuple[int, int]:
        """The two runs."""
        return self.plain, self.regulated


def page_of(material: Material, rule: str) -> Page:
    """Return the page about a demo; `rule` says how the prompt was chosen."""
    seeds, store = sorted(material.request.seeds), material.store
    outcomes = tables.outcomes(store, *material.runs, material.protocol.name)
    found = tables.detections(store, material.runs, material.protocol.name)
    chosen = tables.first_seeds(store, material.plain, material.protocol.name)
    late = _last_edited_step(material)
    return Page(
        prompt=material.request.prompt,
        targets=material.request.targets,
        selection=(rule, ALL_SEEDS.format(count=len(seeds), first=seeds[0], last=seeds[-1]), CHOICE),
        emoji=material.protocol.world == "emoji",
        counts=tables.shares(outcomes["outcome"]),
        plates=(
            _grid(material, found, outcomes),
            _violins(material, found, chosen, late),
            _overlays(material, chosen, late),
        ),
        numbers=numbers_of(material, found, outcomes, late),
        protocol=material.protocol.name,
        queries=QUERIES,
        settings=_settings(material, late),
    )


def numbers_of(material: Material, found: pd.DataFrame, outcomes: pd.DataFrame, late: int) -> pd.DataFrame:
    """Return a row per method, as it is printed: images, how many show all, mean scores, dominance ratios."""
    ratios = tables.dominance_by_outcome(material.store, material.runs, material.protocol.name, late)
    rows = []
    for method, column in (("plain", "baseline"), (_method(material), "method")):
        shown, count = int(outcomes[column].sum()), len(outcomes)
        interval = binomtest(shown, count).proportion_ci(method="wilson")
        row = {"method": method, "images": count}
        row["all found"] = f"{shown} ({shown / count:.0%}) [{interval.low:.0%}, {interval.high:.0%}]"
        for target in material.request.targets:
            scores = found.loc[(found["method"] == method) & (found["target"] == target), "score"]
            row[f"{target} score"] = f"{scores.mean():.2f}"
        for flag, name in ((False, "missing"), (True, "found")):
            ratio = ratios.loc[(ratios["method"] == method) & (ratios["found"] == flag), "ratio"]
            row[f"dominance, {name}"] = f"{ratio.item():.2f}" if len(ratio) else "-"
        rows.append(row)
    return pd.DataFrame(rows)


def _grid(material: Material, found: pd.DataFrame, outcomes: pd.DataFrame) -> Plate:
    return Plate(
        "comparison",
        "Every seed, plain above regulated",
        "Boxes and scores are the detector's. An image framed in orange misses what is named below it.",
        f"Pairs of images of {len(outcomes)} seeds: "
        + "; ".join(f"seed {row.seed} {row.outcome}" for row in outcomes.itertuples()),
        png_of(comparison_grid(found, outcomes, material.pictures)),
    )


def _violins(material: Material, found: pd.DataFrame, chosen: Mapping[bool, int], late: int) -> Plate:
    seeds = material.request.seeds
    shown = [sample for flag in (False, True) if (sample := chosen.get(flag)) is not None]
    missing = found[(found["run_id"] == material.plain) & ~found["found"]]
    layer, heads = tables.most_attended_layer(material.store, material.plain, late)
    titles = {}
    for sample in shown:
        absent = list(missing.loc[missing["sample"] == sample, "target"])
        titles[sample] = f"seed {seeds[sample]}: " + (f"no {' and no '.join(absent)}" if absent else "all found")
    values = tables.violin_values(material.store, material.plain, shown, layer, sorted({0, late}))
    pictures = {sample: material.pictures["plain", seeds[sample]] for sample in shown}
    caption = (
        f"{layer.removesuffix('.attn2')}, {heads} heads pooled, conditional half of the plain run.\n"
        "Raw probabilities: start, end and padding hidden, not renormalised; "
        "maps stored in 64 levels each (±1/63 of their largest value)."
    )
    absent = {frozenset({True}): "No plain image misses a target, so there is no failed one to show. "}
    absent |= {frozenset({False}): "No plain image shows all targets, so there is no successful one to show. "}
    return Plate(
        "violins",
        "How much attention each word gets",
        absent.get(frozenset(chosen), "")
        + "One shape per word: its attention probabilities over the pixels of one layer, at the first step "
        f"and at step {late}, the last that regulation would edit. Bars stand at the smallest, middle and "
        "largest value; an arrow marks a target that the image does not show. The layer is the one that gives "
        f"the targets most attention at step {late}, over the plain images of all seeds.",
        "Violins of attention probability by word: " + "; ".join(titles.values()),
        png_of(dominance_violins(values, missing[["sample", "word_idx"]], pictures, titles, caption)),
    )


def _overlays(material: Material, chosen: Mapping[bool, int], late: int) -> Plate:
    sample = chosen.get(False, chosen.get(True, 0))
    seed, last = material.request.seeds[sample], material.request.steps - 1
    layers = tables.edited_layers(material.store, material.regulated)
    steps = sorted({0, late // 3, 2 * late // 3, late, last})
    maps = [tables.overlay_maps(material.store, run, [sample], layers, steps) for run in material.runs]
    pictures = {name: material.pictures[name, seed] for name in ("plain", _method(material))}
    names = ", ".join(dict.fromkeys(layer.split(".attentions")[0] for layer in layers))
    return Plate(
        "overlays",
        f"Where seed {seed} looks for each target",
        "The targets' maps over the finished images. Regulation is shown twice: what the model itself "
        "computed, and what the edit put in its place. All maps share one scale.",
        f"Maps of {listed(material.request.targets)} for seed {seed} at steps {listed([*map(str, steps)])}",
        png_of(
            attention_overlays(
                pd.concat(maps),
                pictures,
                f"Mean over the {len(layers)} edited layers ({names}) and their heads.",
            )
        ),
    )


def _settings(material: Material, late: int) -> dict[str, str]:
    run = material.store.sql("FROM runs WHERE run_id = ?", [material.regulated]).iloc[0]
    parameters = json.loads(run["method_params"])
    return {
        "Generator": f"{run['model']} ({run['pipeline']})",
        "Sampler": f"{run['scheduler']}, {run['n_steps']} steps, guidance {run['guidance']:g}",
        "Regulation": ", ".join(f"{name} {value}" for name, value in parameters.items()),
        "Dominance ratio": f"on the model's own maps at step {late}",
        "Versions": ", ".join(f"{name} {version}" for name, version in json.loads(run["versions"]).items()),
    }


def _method(material: Material) -> str:
    return str(material.store.sql("SELECT method FROM runs WHERE run_id = ?", [material.regulated]).iat[0, 0])


def _last_edited_step(material: Material) -> int:
    query = "SELECT max(step) FROM calls WHERE run_id = ? AND len(edited) > 0"
    return int(material.store.sql(query, [material.regulated]).iat[0, 0])
