"""Folders to a table: each folder a method, the world by the images' size, traces beside their maps."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from analysis.cli import app
from analysis.score_folders import chosen_protocols, score_folders, world_of
from analysis.scoreboard import Unbalanced
from metrics.layouts import read_folder
from metrics.pictures import Picture
from regulate import METHODS, Request, generate
from tracer.scenes import place, render
from tracer.store import Store

QUIET = Console(quiet=True)
PROMPTS = {
    "a cat and a dog": ("cat", "dog"),
    "a bear and a horse": ("bear", "horse"),
    "a lion and a frog": ("lion", "frog"),
}


def folder_of(root: Path, seed: int, shown: int = 2) -> Path:
    """Scenes of three prompts and two seeds in Attend-and-Excite's layout, the first `shown` targets in each."""
    rng = np.random.default_rng(seed)
    for prompt, targets in PROMPTS.items():
        for number in range(2):
            path = root / prompt / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(render(place(rng, targets[:shown], [None] * shown))).save(path)
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("images")
    return [folder_of(root / "half", 1, shown=1), folder_of(root / "whole", 2)]


@pytest.fixture(scope="module")
def scored(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "scores.duckdb"
    return score_folders(folders, out, reference=folders[1], console=QUIET), out


def test_the_table_tells_a_method_that_drops_objects_from_one_that_shows_them(scored):
    made, _ = scored
    rates = made.table[made.table["metric"] == "detection_rate"].set_index("method")
    assert rates["value"].to_dict() == {"half": 0.0, "whole": 1.0}
    assert rates.loc["whole", "difference"] == 1.0
    assert rates.loc["whole", ["better", "equal", "worse"]].tolist() == [3, 0, 0]
    cosines = made.table[made.table["metric"] == "clip_cos"].set_index("method")["value"]
    assert cosines["whole"] > cosines["half"]
    assert made.table.loc[made.table["metric"] == "lpips-tiny", "method"].tolist() == ["whole"]
    assert (made.report.pictures, made.problems) == (12, ())


def test_sets_are_compared_with_the_reference_images(scored):
    made, _ = scored
    sets = made.sets.set_index(["method", "metric"])["value"]
    assert set(made.sets["metric"]) == {"fid", "kid", "cmmd_u", "cmmd_v"}
    assert sets["whole", "fid"] == pytest.approx(0, abs=1e-3)  # compared with itself
    assert sets["half", "fid"] > 1
    warned = made.sets[made.sets["warnings"].map(len) > 0]
    assert set(warned["metric"]) == {"fid", "kid", "cmmd_v"}  # six images


def test_a_second_call_works_on_nothing_and_says_the_same(scored, folders):
    made, out = scored
    again = score_folders(folders, out, reference=folders[1], console=QUIET)
    assert again.report.worked == 0
    assert again.table.equals(made.table)


def test_a_missing_image_refuses_the_table_with_its_list_but_keeps_the_scores(folders, tmp_path):
    short = folder_of(tmp_path / "short", 3)
    (short / "a lion and a frog" / "1.png").unlink()
    out = tmp_path / "scores.duckdb"
    every = [folders[1], folders[0], short]
    said = r"cells are missing: .*short on 'a lion and a frog' \(detection_rate of 1 images\).*; --allow-missing"
    with pytest.raises(Unbalanced, match=said):
        score_folders(every, out, console=QUIET)
    made = score_folders(every, out, allow_missing=True, console=QUIET)
    assert made.report.worked == 0
    cosines = made.table[made.table["metric"] == "clip_cos"].set_index("method")
    assert cosines["images"].to_dict() == {"whole": 6, "half": 6, "short": 5}
    with Store.open(out) as store:
        values = store.sql("FROM picture_values WHERE metric = 'clip_cos'")
    lost = (values["prompt"] == "a lion and a frog") & (values["seed"] == 1)
    means = values[~lost].groupby(["method", "prompt"])["value"].mean().groupby("method").mean()  # prompts count alike
    assert cosines.at["short", "difference"] == pytest.approx(means["short"] - means["whole"])
    alone = score_folders(every[:2], out, console=QUIET).table  # what is whole is not touched by what is not
    kept = alone[alone["metric"] == "clip_cos"].set_index("method")[["value", "difference", "difference_low", "p"]]
    assert cosines.loc[["whole", "half"], list(kept)].equals(kept)


def test_the_printed_table_says_of_how_many_images_a_number_is_where_that_differs(folders, tmp_path):
    short = folder_of(tmp_path / "short", 3)
    (short / "a lion and a frog" / "1.png").unlink()
    words = ["score", *folders, short, "--out", tmp_path / "scores.duckdb", "--protocol", "emoji-owlv2"]
    refused = run(*words)
    assert refused.exit_code == 2
    assert "short on 'a lion and a frog'" in " ".join(refused.stderr.split())
    said = " ".join(run(*words, "--allow-missing").output.split())
    assert "5 to 6 images a method: n, those that it has in common with the baseline" in said
    assert re.search(r"whole 6 \S+ \[", said)
    assert re.search(r"short 5 \S+ \[", said)


def test_the_images_of_a_trace_are_scored_beside_their_maps(tiny_pipe, tmp_path):
    path = tmp_path / "trace.duckdb"
    with Store.create(path) as store:
        for name in ("plain", "regulation"):
            request = Request("a cat and a dog", ("cat", "dog"), (0, 1), steps=2)
            generate(tiny_pipe, request, METHODS[name], store, folder=tmp_path / name)
    answer = run("score", path, "--protocol", "emoji-owlv2")
    assert answer.exit_code == 0, answer.output
    assert "regulation" in answer.output
    with Store.open(path) as store:
        joined = store.sql("SELECT count(*) AS n FROM outcomes JOIN dominance USING (run_id, sample)")
        assert joined["n"].item() > 0


def test_worlds_are_told_by_size_and_never_mixed(folders, tmp_path):
    large, broken = tmp_path / "large.png", tmp_path / "broken.png"
    Image.new("RGB", (512, 512)).save(large)
    broken.write_text("no image")
    assert world_of(read_folder(folders[0]).pictures) == "emoji"
    assert world_of([Picture(path, "", None, "m", "p") for path in (broken, large)]) == "real"
    with pytest.raises(ValueError, match="must be of the emoji world, got owlv2-base"):
        chosen_protocols(["emoji-owlv2", "owlv2-base"], "emoji")
    with pytest.raises(ValueError, match=r"must be one of emoji-owlv2, .*got 'owl'"):
        chosen_protocols(["owl"], "real")


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_command_prints_tables_and_problems(folders, tmp_path):
    folder = folder_of(tmp_path / "mine", 4)
    (folder / "a cat and a dog" / "7.png").write_bytes(b"no image")
    answer = run("score", folder, "--out", tmp_path / "scores.duckdb", "--protocol", "emoji-owlv2")
    assert answer.exit_code == 0, answer.output
    said = " ".join(answer.output.split())
    assert "Detection rate" in said
    assert "emoji-owlv2#" in said
    assert "7.png" in said
    assert "7 of 7 images worked on" in said


def test_a_real_checkpoint_that_is_not_here_is_named(tmp_path):
    folder = tmp_path / "images" / "a cat and a dog"
    folder.mkdir(parents=True)
    Image.new("RGB", (512, 512)).save(folder / "0.png")
    answer = run("score", folder.parent, "--out", tmp_path / "scores.duckdb")
    assert answer.exit_code == 2
    assert "owlv2-base-patch16-ensemble" in answer.stderr
    assert "download" in answer.stderr


@pytest.mark.parametrize("layout", ["geneval", "attend-and-excite"])
def test_scored_images_are_handed_on_with_their_results(scored, tmp_path, folders, layout):
    _, out = scored
    score_folders(folders, out, keys=["emoji-clip-ae80"], console=QUIET)
    answer = run("hand-on", out, tmp_path / "out", "--as", layout, "--method", "half")
    assert answer.exit_code == 0, answer.output
    back = read_folder(tmp_path / "out")
    assert back.layout == layout
    assert {picture.prompt for picture in back.pictures} == set(PROMPTS)
    if layout == "geneval":
        rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
        assert [row["correct"] for row in rows] == [False] * 6
        assert all(row["reason"].startswith("no ") for row in rows)
    else:
        raw = json.loads((tmp_path / "out" / "clip_raw_metrics.json").read_text())
        for one in raw.values():
            assert len(one["full_text"]) == len(one["first_half"]) == len(one["second_half"]) == 2


def test_a_method_must_be_chosen_where_there_are_several(scored, tmp_path):
    answer = run("hand-on", scored[1], tmp_path / "out", "--as", "geneval")
    assert answer.exit_code == 2
    assert "method must be one of half, whole" in answer.stderr


def test_protocols_are_listed_with_what_they_depend_on():
    answer = run("protocols")
    assert answer.exit_code == 0
    for key in ("emoji-owlv2", "owlv2-base", "openai-b16-plain", "lpips-alex", "inception"):
        assert f"\n{key}: " in f"\n{answer.output}"
    assert "ViT-B-16-quickgelu" in answer.output


def test_a_persons_labels_are_held_against_the_detector(scored, folders, tmp_path):
    _, out = scored
    sheet = tmp_path / "audit"
    answer = run("audit", out, "--out", sheet, "--images", 12)
    assert answer.exit_code == 0, answer.output
    page = (sheet / "index.html").read_text()
    assert not [word for word in ("half", "a cat and", ".png", "emoji-owlv2") if word in page]
    items = dict(line.split(",")[:2] for line in (sheet / "items.csv").read_text().splitlines()[1:])
    with Store.open(out) as store:
        rows = store.sql("SELECT image_sha256, method, targets[1] AS shown FROM pictures WHERE prompt <> ''")
        truth = {row.image_sha256: (row.method, row.shown) for row in rows.itertuples()}
    lines = (sheet / "labels.csv").read_text().splitlines()
    filled = [lines[0]]
    for line in lines[1:]:
        item, target, _ = line.split(",")
        method, first = truth[items[item]]
        filled.append(f"{item},{target},{'yes' if method == 'whole' or target == first else 'no'}")
    (sheet / "labels.csv").write_text("\n".join(filled) + "\n")
    answer = run("audit", out, "--out", sheet, "--labels", sheet / "labels.csv", "--person", "ana")
    assert answer.exit_code == 0, answer.output
    said = " ".join(answer.output.split())
    assert "kappa" in said
    assert "person:ana#" in said
    with Store.open(out) as store:
        kept = store.sql("SELECT avg(found::INT) AS share FROM verdicts WHERE protocol LIKE 'person:ana%'")
        assert kept["share"].item() == pytest.approx(0.75)  # of two targets, `half` shows one


def test_the_price_of_every_method_is_told(tmp_path, tiny_model):
    answer = run(
        "overhead", "--model", tiny_model, "--prompts", 1, "--repeats", 2, "--steps", 4, "--out", tmp_path / "o.csv",
        "--method", "regulation", "--method", "composable", "--method", "dense-diffusion",
    )  # fmt: skip
    assert answer.exit_code == 0, answer.output
    assert "regulation" in answer.output
    rows = list(csv.DictReader((tmp_path / "o.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["regulation", "composable"]
    assert "dense-diffusion: n/a for 1 of 1 prompts, it has no layout" in answer.output
    assert {(float(row["passes"]), float(row["baseline_passes"])) for row in rows} == {(4, 4)}
    assert all(float(row["overhead"]) > 0 for row in rows)
