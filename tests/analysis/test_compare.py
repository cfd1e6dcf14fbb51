"""The experiment: everything planned is done once, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from html import unescape
from io import StringIO
from pathlib import Path

import pytest
from diffusers import DDIMScheduler
from rich.console import Console

from analysis import compare as compare_methods
from analysis import workbench
from analysis.comparison import Compared, as_table
from analysis.plan import Plan, animal_pairs
from analysis.shards import read_shards
from analysis.workbench import Workbench, fingerprint, sampler_of
from regulate import METHODS, AttentionRegulation, Given, Request, generate
from regulate.layout import layout_of_prompt
from tracer.models import load_pipeline
from tracer.scenes import is_seen

REGULATION = {"regulation": AttentionRegulation(iterations=3)}
PAIRS = animal_pairs()[:2]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture
def run(tiny_model, tiny_protocol, quiet):
    """Compare on the random model, two steps an image."""

    def compare(out, pairs=PAIRS, seeds=range(2), methods=REGULATION):
        return compare_methods(
            pairs, seeds, methods, out, model=tiny_model, protocol=tiny_protocol, steps=2, console=quiet
        ).table

    return compare


@pytest.fixture
def made(monkeypatch) -> list[tuple[str, str, tuple[int, ...]]]:
    """What is generated from here on: prompt, method, seeds."""
    calls = []
    original = workbench.generate

    def counted(pipe, request, method):
        calls.append((request.prompt, method.name, request.seeds))
        return original(pipe, request, method)

    monkeypatch.setattr(workbench, "generate", counted)
    return calls


def test_every_image_has_a_row_per_target_with_its_score(run, tmp_path, tiny_pipe, tiny_detector):
    table = run(tmp_path)
    rows = read_shards(tmp_path / "rows")
    assert len(rows) == 2 * 2 * 2 * 2  # prompts, seeds, methods, targets
    assert set(rows["protocol"]) == {tiny_detector.protocol.name}
    assert set(rows["method"]) == {"plain", "regulation"}
    for prompt in PAIRS:
        mine = rows[(rows["prompt"] == prompt.text) & (rows["method"] == "plain") & (rows["seed"] == 1)]
        assert mine["target"].tolist() == list(prompt.targets)
        assert set(mine["seen"]) == {is_seen(prompt.targets)}
        images = generate(tiny_pipe, Request(prompt.text, prompt.targets, (0, 1), steps=2)).images
        (detections,) = workbench.detect(tiny_detector, images[1:], [prompt.targets])
        assert mine["score"].tolist() == pytest.approx([d.score for d in detections], abs=1e-4)
    assert (tmp_path / "summary.csv").is_file()
    assert table.loc[table["pairs"] == "all", "images"].tolist() == [4, 4]


def test_what_is_done_is_not_done_again(run, tmp_path, made):
    first = run(tmp_path)
    assert len(made) == 4
    second = run(tmp_path)
    assert len(made) == 4
    assert first.equals(second)


def test_only_what_is_new_in_a_larger_plan_is_done(run, tmp_path, made):
    run(tmp_path, pairs=PAIRS[:1], seeds=[1])
    made.clear()
    run(tmp_path)
    assert sorted(made) == sorted(
        (prompt.text, method, seeds)
        for method in ("plain", "regulation")
        for prompt, seeds in zip(PAIRS, [(0,), (0, 1)], strict=True)
    )
    assert len(read_shards(tmp_path / "rows")) == 16


def test_other_parameters_are_another_specification(run, tmp_path, made):
    run(tmp_path, pairs=PAIRS[:1])
    made.clear()
    table = run(tmp_path, pairs=PAIRS[:1], methods={"regulation": AttentionRegulation(iterations=4)})
    assert [method for _, method, _ in made] == ["regulation"]
    assert table.loc[table["pairs"] == "all", "images"].tolist() == [2, 2]


def test_another_generator_is_another_specification(tiny_model):
    pipe, other = load_pipeline(tiny_model), load_pipeline(tiny_model)
    assert fingerprint(pipe) == fingerprint(other)
    other.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert fingerprint(pipe) != fingerprint(other)
    other.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    other.scheduler.register_to_config(_use_default_values=["a", "b"])  # a list of a set: of another order next time
    assert fingerprint(pipe) == fingerprint(other)
    assert sampler_of(pipe) == sampler_of(other)
    next(other.unet.parameters()).data[0] += 1e-3
    assert fingerprint(pipe) != fingerprint(other)


def test_two_names_of_one_method_both_have_their_rows(run, tmp_path, made):
    table = run(tmp_path, pairs=PAIRS[:1], methods=REGULATION | {"again": REGULATION["regulation"]})
    assert len(made) == 2
    rates = table[table["pairs"] == "all"].set_index("method")["rate"]
    assert rates["again"] == rates["regulation"]


UNTIL_KILLED = """
import json, sys
from rich.console import Console
from analysis.compare import compare
from analysis.plan import animal_pairs
from metrics import DetectionProtocol
from regulate import AttentionRegulation
out, model, protocol = sys.argv[1:]
methods = {"regulation": AttentionRegulation(iterations=3)}
known = {"model": model, "protocol": DetectionProtocol(**json.loads(protocol)), "console": Console(quiet=True)}
compare(animal_pairs()[:6], range(3), methods, out, steps=2, **known)
"""


def test_a_killed_comparison_resumes_with_nothing_lost_and_nothing_twice(
    run, tmp_path, tiny_model, tiny_protocol, made
):
    facts = json.dumps(asdict(tiny_protocol))
    command = [sys.executable, "-W", "ignore", "-c", UNTIL_KILLED, str(tmp_path), str(tiny_model), facts]
    killed = subprocess.Popen(command, cwd=ROOT)
    while len(list(tmp_path.glob("rows/*.parquet"))) < 3 and killed.poll() is None:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = read_shards(tmp_path / "rows")
    units = len(before.drop_duplicates(["spec", "prompt"]))
    assert 3 <= units < 12
    run(tmp_path, pairs=animal_pairs()[:6], seeds=range(3))
    assert len(made) == 12 - units
    after = read_shards(tmp_path / "rows")
    assert len(after) == 6 * 3 * 2 * 2
    kept = after.merge(before, how="inner")
    assert len(kept) == len(before)


def test_a_target_that_is_not_in_its_prompt_is_an_error_and_nothing_is_written(run, tmp_path):
    wrong = replace(PAIRS[0], targets=("cat", "lion"))
    with pytest.raises(ValueError, match="'lion' is not in the prompt"):
        run(tmp_path / "out", pairs=[wrong])
    assert not (tmp_path / "out").exists()


def test_the_plan_counts_what_is_left(tmp_path, tiny_pipe, tiny_detector):
    """The bar's total is the work to do, so its time left is true after a restart."""
    console = Console(record=True, width=100, force_terminal=True, file=StringIO())
    bench = Workbench(tiny_pipe, tiny_detector, tmp_path, console, "weights")
    bench.rows_of(Plan(PAIRS[:1], (0, 1), {}, steps=2))
    bench.rows_of(Plan(PAIRS, (0, 1), {}, steps=2))
    text = console.export_text()
    assert text.count("2/2") >= 2
    assert "4/4" not in text


def test_where_a_method_has_nothing_to_do_the_table_says_so_and_its_images_are_the_plain_ones(run, tmp_path):
    lines = run(tmp_path, methods={"syngen": METHODS["syngen"]})
    told = lines[lines["pairs"] == "all"].set_index("method")
    assert told.loc["syngen", "standing"] == "no-op for 4 of 4 images"  # "a cat and a dog": no noun has a modifier
    assert told.loc["plain", "standing"] == "acts"
    hashes = read_shards(tmp_path / "rows").groupby("method")["image_sha256"].unique().map(sorted)
    assert hashes["syngen"] == hashes["plain"]


def test_a_method_that_lacks_what_it_needs_has_a_row_that_says_so_and_no_numbers(run, tmp_path):
    methods = {"dense-diffusion": METHODS["dense-diffusion"], **REGULATION}
    lines = run(tmp_path, methods=methods).set_index("method")
    told = lines.loc["dense-diffusion"]
    assert told["standing"] == f"n/a, {PAIRS[0].text!r}: it has no layout"
    assert told[["rate", "difference", "images"]].isna().all()
    assert set(read_shards(tmp_path / "rows")["method"]) == {"plain", "regulation"}
    shown, compared = StringIO(), Compared(lines.reset_index(), "two prompts", tmp_path)
    Console(file=shown, width=80).print(as_table(compared))
    text = shown.getvalue()
    assert "n/a" in text
    assert "…" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("regulation") and " all " in line]
    assert " 4 " in line  # images, a whole number though one row has none
    assert f"n/a, {PAIRS[0].text!r}: it has no layout" in unescape(compared._repr_html_())


def test_layouts_are_a_part_of_what_was_done(run, tmp_path, tiny_model, tiny_protocol, quiet):
    layouts = [{p.text: Given(layout=layout_of_prompt(p.text, p.targets, seed)) for p in PAIRS} for seed in (0, 1)]
    for given in (layouts[0], layouts[1], layouts[0]):
        lines = compare_methods(
            PAIRS, range(2), {"dense": METHODS["dense-diffusion"]}, tmp_path, model=tiny_model, protocol=tiny_protocol,
            steps=2, given=given, console=quiet,
        ).table  # fmt: skip
        assert lines["standing"].eq("acts").all()
    rows = read_shards(tmp_path / "rows")
    counts = rows.groupby("method")[["spec", "prompt"]].agg({"spec": "nunique", "prompt": "size"})
    assert counts.loc["dense"].tolist() == [2 * 2, 2 * 2 * 2 * 2]  # layouts x prompts; x seeds x targets, each once
    assert counts.loc["plain"].tolist() == [1, 2 * 2 * 2]  # plain images do not depend on layouts
