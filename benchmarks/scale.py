"""How long tables and dominance take on a million scores and a thousand traced images, and how much memory.

    python benchmarks/scale.py                 (three minutes on two cores, 1 GB in --folder)

Scores: six methods on 276 prompts with 158 seeds, two targets, CLIP and LPIPS of each image, 1,002,984 rows; made
up inside DuckDB from hashes. What is timed is what `attnreg run` does with them: the view `picture_values`, the search
for missing cells, the scoreboard with its tests, the table of methods, and what the forest takes from it. Targets: 5 s,
2 GB. And the curves of thresholds, from the scores to the figure.

Traces: one image of the emoji world, 25 steps, all heads, recorded by the real recorder, and 999 copies of it with
values of their own, half of them of failed images; and 20 images of Stable Diffusion 1.5's shape, 50 steps, copied
likewise. What is timed: reading the targets' shares, the table of dominance by outcome, and the figure. Targets: 10 s,
2 GB. Each is done in a process of its own; memory is the most that it held resident.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from queries import record

from analysis.evidence.figures import dominance_over_steps
from analysis.evidence.questions import dominance_by_outcome
from analysis.evidence.tables import target_shares
from analysis.experiments.experiment import Experiment, Part
from analysis.outputs.made import Made, MadeFigure
from analysis.outputs.publish import SHOWS
from analysis.plan import PLAIN
from analysis.prompts.files import PromptSet
from analysis.running.results import PartResults
from analysis.running.run import RunResults
from analysis.running.units import Planned
from analysis.scoreboard import picture_values
from metrics.protocols import DetectionProtocol, known_protocols
from metrics.scoring import note
from regulate import Method, Request, generate
from tracer.capture import Capture
from tracer.models import load_pipeline
from tracer.prompts import Prompt
from tracer.store import Store

METHODS = (PLAIN, *(f"method {number}" for number in range(1, 6)))
PROMPTS, SEEDS = 276, 158
KEYS = ("emoji-owlv2", "emoji-clip-plain", "emoji-lpips")
COPIED = ("tokens", "calls", "head_stats")

PICTURES = """
INSERT INTO pictures BY NAME
SELECT m || '/' || p || '/' || s || '.png' AS path, m AS method, 'p' || p AS prompt_id, 'prompt ' || p AS prompt,
       s AS seed, ['cat', 'dog'] AS targets, '' AS tag, '{}' AS metadata, 1 AS bytes, 1 AS changed_ns, 64 AS width,
       64 AS height, md5(m || '/' || p || '/' || s) AS image_sha256, [] AS notes
FROM (SELECT unnest($methods) AS m), range($prompts) AS t(p), range($seeds) AS u(s)"""
# A number from 0 to 1 that is the same for the same picture and what is asked.
CHANCE = "(hash(image_sha256, {}) % 1000000) / 1e6"
SCORES = f"""
INSERT INTO scores BY NAME
SELECT image_sha256, $owl AS protocol, 'detection_argmax' AS metric, t AS target, 'cat, dog' AS against,
       {CHANCE.format("t")} AS value FROM pictures, (SELECT unnest(['cat', 'dog']) AS t)
UNION ALL BY NAME
SELECT image_sha256, $clip AS protocol, 'clip_cos' AS metric, '' AS target, prompt AS against,
       0.7 + 0.1 * {CHANCE.format("'c'")} AS value FROM pictures
UNION ALL BY NAME
SELECT p.image_sha256, $lpips AS protocol, 'lpips-tiny' AS metric, '' AS target, b.image_sha256 AS against,
       (hash(p.image_sha256) % 1000) / 1e3 AS value
FROM pictures p JOIN pictures b ON b.prompt = p.prompt AND b.seed = p.seed AND b.method = 'plain'
WHERE p.method <> 'plain'"""


IMAGES = "SELECT method, prompt_id, prompt, seed, path AS image, image_sha256, 'acts' AS standing FROM pictures"
COSTS = ("method", "prompt_id", "images", "seconds", "passes", "gradient_passes", "peak_bytes")


def make_scores(path: Path, seeds: int) -> int:
    """Write a file of made-up scores, and return how many."""
    protocols = [known_protocols()[key] for key in KEYS]
    owl, clip, lpips = (protocol.fingerprint for protocol in protocols)
    with Store.create(path) as store:
        note(store, protocols)
        with store.transaction() as cursor:
            cursor.execute(PICTURES, {"methods": list(METHODS), "prompts": PROMPTS, "seeds": seeds})
            cursor.execute(SCORES, {"owl": owl, "clip": clip, "lpips": lpips})
        return int(store.sql("SELECT count(*) AS n FROM scores").at[0, "n"])


def tables(path: Path) -> None:
    """Do what a run does with its scores before anything is drawn."""
    results = results_of(path)
    if not results.parts[0].whole:
        raise ValueError(f"{path} must be whole, got gaps")
    shown(results, "method-table")
    shown(results, "forest")


def curves(path: Path) -> None:
    """Draw the curves of thresholds."""
    (one,) = shown(results_of(path), "thresholds")
    if isinstance(one, MadeFigure):
        one.draw().savefig(path.with_suffix(".png"))


def shown(results: RunResults, name: str) -> list[Made]:
    """Return what is made of one show."""
    return list(SHOWS[name](results))


def results_of(path: Path) -> RunResults:
    """Return the made-up scores as a run has them."""
    protocols = tuple(known_protocols()[key] for key in KEYS)
    with Store.open(path) as store:
        values = picture_values(store, protocols, METHODS, PLAIN)
        images = store.sql(IMAGES)
    prompts = PromptSet("made-up", "made up", (Prompt("p0", "prompt 0", (), "made up"),))
    part = Part("made-up", "made up", prompts.prompts, dict.fromkeys(METHODS, Method()), tuple(range(SEEDS)))
    planned, costs = Planned(part, prompts, ("emoji", ""), ()), pd.DataFrame(columns=list(COSTS))
    found = PartResults(planned, path, METHODS, images, values, costs, 0, pd.DataFrame(), protocols, ())
    experiment = Experiment("made-up", "How long does it take?", (part,), ())
    return RunResults(experiment, path.parent, "", (found,), {}, ())


def make_emoji(path: Path, images: int) -> None:
    """Trace one image of the emoji world, and copy it."""
    request = Request("a cat and a dog", ("cat", "dog"))
    with Store.create(path) as store:
        generate(load_pipeline(), request, None, store, Capture(precision="none"))
    multiply(path, images)


def make_large(path: Path, images: int) -> None:
    """Record one image of Stable Diffusion 1.5's shape, and copy it."""
    record(path)
    with Store.create(path) as store, store.transaction() as cursor:
        cursor.execute("""UPDATE samples SET targets = '[{"text": "cat", "positions": [5]},
                          {"text": "glasses", "positions": [7]}]'""")
        cursor.execute("UPDATE tokens SET is_target = token IN (5, 7)")
        cursor.execute("DELETE FROM maps")  # the figure asks for none
    multiply(path, images)


def multiply(path: Path, images: int) -> None:
    """Copy the first image, four to a prompt, each with values of its own, and give all of them verdicts."""
    protocol = known_protocols()["emoji-owlv2"]
    assert isinstance(protocol, DetectionProtocol)
    with Store.create(path) as store, closing(store.cursor()) as cursor:
        note(store, [protocol])
        names = [row[0] for row in cursor.execute("SELECT t->>'text' FROM (SELECT unnest(from_json(targets, "
                                                  "'[\"JSON\"]')) AS t FROM samples)").fetchall()]  # fmt: skip
        cursor.execute("UPDATE samples SET image_sha256 = md5('0'), prompt = 'prompt 0', seed = 0")
        for sample in range(1, images):
            cursor.begin()
            cursor.execute(
                "INSERT INTO samples SELECT * REPLACE (? AS sample, md5(?::VARCHAR) AS image_sha256, ? AS prompt, "
                "? AS seed) FROM samples WHERE sample = 0",
                [sample, sample, f"prompt {sample // 4}", sample % 4],
            )
            for table in COPIED:
                value = ""
                if table == "head_stats":  # up to a fifth more or less
                    value = f", (p90 * (0.8 + 0.4 * (hash({sample}, head, layer, token) % 1000) / 1e3))::FLOAT AS p90"
                cursor.execute(
                    f"INSERT INTO {table} SELECT * REPLACE ({sample} AS sample{value}) FROM {table} WHERE sample = 0"
                )
            cursor.commit()
        cursor.begin()
        cursor.execute(
            "INSERT INTO scores BY NAME SELECT image_sha256, ? AS protocol, 'detection_argmax' AS metric, t AS target, "
            "? AS against, (sample % 2)::DOUBLE AS value FROM samples, (SELECT unnest(?) AS t)",
            [protocol.fingerprint, ", ".join(sorted(names)), names],
        )
        cursor.commit()


def dominance(path: Path) -> None:
    """Do what the figure of dominance asks for."""
    with Store.open(path) as store:
        shares = target_shares(store, known_protocols()["emoji-owlv2"].name)
    dominance_over_steps(dominance_by_outcome(shares), "made up").savefig(path.with_suffix(".png"))


def timed(work: Callable[[Path], None], path: Path, repeats: int) -> tuple[list[float], float]:
    """Return the seconds of each repeat, and the most memory in GB, each repeat in a process of its own."""
    found = []
    for _ in range(repeats):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(_measured, (work, path)))
    return [seconds for seconds, _ in found], max(memory for _, memory in found)


def _measured(work: Callable[[Path], None], path: Path) -> tuple[float, float]:
    start = time.perf_counter()
    work(path)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Make the files, time the work, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile; by default the system's")
    parser.add_argument("--images", type=int, nargs=2, default=(1000, 20), help="of the emoji world, of SD 1.5's shape")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the made-up scores")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as kept:
        folder = Path(kept)
        rows = make_scores(folder / "scores.duckdb", options.seeds)
        make_emoji(folder / "emoji.duckdb", options.images[0])
        make_large(folder / "large.duckdb", options.images[1])
        work = {
            f"tables, {rows:,} scores": (tables, folder / "scores.duckdb"),
            f"curves of thresholds, {rows:,} scores": (curves, folder / "scores.duckdb"),
            f"dominance, {options.images[0]:,} emoji images": (dominance, folder / "emoji.duckdb"),
            f"dominance, {options.images[1]} images of SD 1.5's shape": (dominance, folder / "large.duckdb"),
        }
        print("| | seconds, median (smallest to largest) | memory, GB | file, MB |\n|---|---|---|---|")
        for name, (do, path) in work.items():
            seconds, memory = timed(do, path, options.repeats)
            spread = f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
            print(f"| {name} | {spread} | {memory:.2f} | {path.stat().st_size / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
