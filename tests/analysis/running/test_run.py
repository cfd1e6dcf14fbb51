"""An experiment: everything planned is done once, what is missing is said, and how it is run changes nothing."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from small_runs import HERE, PROMPTS, changed, folder

from analysis.outputs.method_results import method_tables
from analysis.plan import animal_pairs
from analysis.prompts.scenes import draw_scenes
from analysis.running.ledger import done, failures, rows_of, write_failure
from analysis.running.missing import Incomplete
from analysis.running.run import How
from regulate import METHODS, AttentionRegulation, Method, Request, generate
from regulate.method import Standing
from tracer.capture import Capture
from tracer.models import load_pipeline
from tracer.pictures import digest
from tracer.store import Store


def test_its_images_are_those_that_generate_makes(small, quiet, tmp_path):
    results = quiet(small, tmp_path)
    images = results.parts[0].images.set_index(["method", "prompt", "seed"])
    pipe = load_pipeline(small.parts[0].model)
    for name in ("plain", "regulation"):
        method = small.parts[0].methods[name]
        expected = generate(pipe, Request(PROMPTS[1].text, PROMPTS[1].targets, (0, 1), steps=2, batch=2), method)
        for seed, image in zip((0, 1), expected.images, strict=True):
            row = images.loc[name, PROMPTS[1].text, seed]
            assert row["image_sha256"] == digest(image)
            assert digest(Image.open(results.run / row["image"])) == digest(image)
    assert len(images) == 3 * 3 * 2
    shown = results._repr_html_()
    assert all(name in shown for name in ("plain", "regulation", "publish(results)", small.question))
    assert "batches failed" not in shown


def test_a_model_of_another_world_is_refused_before_anything_is_made(small, quiet, tiny_pipe, tmp_path):
    real = replace(changed(small, model="emoji"), world="real")
    with pytest.raises(
        ValueError, match=r"world 'real' must have a model of that world, got 'emoji', whose images are"
    ):
        quiet(real, tmp_path / "runs")
    tiny_pipe.save_pretrained(tmp_path / "wide")
    config = tmp_path / "wide" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 32}))
    with pytest.raises(ValueError, match=r"world 'emoji' must have a model of that world, got .*images are 128 pixels"):
        quiet(changed(small, model=str(tmp_path / "wide")), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_half_precision_makes_other_images_in_a_folder_of_their_own(small, quiet, tmp_path):
    hashes = [
        set(quiet(changed(small, dtype=dtype, methods={}), tmp_path).parts[0].images["image_sha256"])
        for dtype in ("float32", "bfloat16")
    ]
    assert len(list(tmp_path.iterdir())) == 2
    assert not hashes[0] & hashes[1]


def test_a_second_run_generates_nothing_and_comes_to_the_same(small, quiet, made, tmp_path):
    first = quiet(small, tmp_path)
    count = len(made)
    second = quiet(small, tmp_path)
    assert len(made) == count == 6  # three prompts under plain and regulation; the third has nothing to do
    assert second.run == first.run
    assert second.parts[0].board.equals(first.parts[0].board)


def test_a_method_with_nothing_to_do_has_copies_of_the_plain_images_and_costs_nothing(small, quiet, tmp_path):
    part = quiet(small, tmp_path).parts[0]
    plain, idle = (
        part.images[part.images["method"] == name].set_index(["prompt", "seed"]) for name in ("plain", "syngen")
    )
    assert list(idle["image_sha256"]) == list(plain["image_sha256"])
    assert set(idle["standing"]) == {"no-op"}
    assert all("/syngen/" in path and (folder(tmp_path) / path).is_file() for path in idle["image"])
    assert set(part.costs["method"]) == {"plain", "regulation"}


def test_what_the_ledger_says_of_passes_is_what_methods_take(small, quiet, tmp_path):
    guided = changed(small, methods={"predicated": METHODS["predicated"], "attend": METHODS["attend-and-excite-fixed"]})
    costs = quiet(guided, tmp_path).parts[0].costs.set_index(["method", "prompt_id"])
    steps = guided.parts[0].steps
    for name in ("predicated", "attend"):
        least, most = guided.parts[0].methods[name].gradient_passes(steps, 2)
        assert all(least <= count <= most for count in costs.loc[name, "gradient_passes"])
        assert list(costs.loc[name, "passes"] - costs.loc[name, "gradient_passes"]) == [steps] * 3
    assert list(costs.loc["plain", "passes"]) == [steps] * 3


def test_two_shards_are_the_whole_and_share_nothing(small, quiet, made, tmp_path):
    small = changed(small, prompts=animal_pairs()[:8], seeds=(0,))
    for number in (1, 2):
        assert quiet(small, tmp_path, replace(HERE, shard=(number, 2))) is None
    parts = len(made)
    assert len({(name, prompt) for name, prompt, _ in made}) == parts == 16
    results = quiet(small, tmp_path)
    assert len(made) == parts
    assert results.parts[0].whole


def test_a_dry_run_makes_one_batch_of_each_method_and_says_what_is_left(small, quiet, made, tmp_path):
    assert quiet(small, tmp_path, replace(HERE, dry=True)) is None
    assert len(made) == 2
    assert "left: 8 images in 4 batches, about" in quiet.said
    quiet(small, tmp_path)
    assert len(made) == 6


@dataclass(frozen=True)
class Moody(Method):
    """Fails where a file says so."""

    name: ClassVar[str] = "moody"
    mood: Path = Path()

    def interventions(self, pipe, subjects, passes):
        if (target := json.loads(self.mood.read_text())) and subjects[0].prompt == target:
            raise RuntimeError("not today")
        return ()


def test_a_failure_is_kept_apart_said_and_tried_again_only_when_asked(small, quiet, made, tmp_path):
    mood = tmp_path / "mood.json"
    mood.write_text(json.dumps(PROMPTS[1].text))
    moody, out = changed(small, methods={"moody": Moody(mood)}), tmp_path / "runs"
    said = r"missing: pairs: moody on 'a lion and a bowl'; .*failures says why, --retry tries again; --allow-missing"
    with pytest.raises(Incomplete, match=said):
        quiet(moody, out)
    assert "failed: moody on 'a lion and a bowl': RuntimeError: not today" in quiet.said
    (facts,) = failures(folder(out)).values()
    assert (facts["method"], facts["seeds"]) == ("moody", [0, 1])
    assert "in interventions" in facts["traceback"]
    assert len(done(folder(out))) == 5
    mood.write_text("null")
    count = len(made)
    with pytest.raises(Incomplete):
        quiet(moody, out)
    assert len(made) == count
    results = quiet(moody, out, replace(HERE, retry=True))
    assert len(made) == count + 1
    assert results.parts[0].whole
    assert not results.failed


def test_what_failed_before_is_not_tried_along_with_what_is_left(small, quiet, made, tmp_path):
    mood = tmp_path / "mood.json"
    mood.write_text(json.dumps(PROMPTS[0].text))
    moody, out = changed(small, methods={"moody": Moody(mood)}), tmp_path / "runs"
    quiet(moody, out, replace(HERE, dry=True))  # plain, and the failure
    assert len(made) == 2
    with pytest.raises(Incomplete):
        quiet(moody, out)
    assert len(made) == 6
    assert made.count(("moody", PROMPTS[0].text, (0, 1))) == 1


def test_missing_cells_may_be_left_out_pair_by_pair_with_the_numbers_shown(small, quiet, tmp_path):
    mood = tmp_path / "mood.json"
    mood.write_text(json.dumps(PROMPTS[1].text))
    methods = {"moody": Moody(mood), "regulation": AttentionRegulation(iterations=2)}
    results = quiet(changed(small, methods=methods), tmp_path / "runs", replace(HERE, allow_missing=True))
    board = results.parts[0].board
    counts = board[board["metric"] == "detection_rate"].set_index("method")["images"]
    assert counts.to_dict() == {"plain": 6, "moody": 4, "regulation": 6}
    values = results.parts[0].values
    mine = values[(values["metric"] == "clip_cos") & (values["prompt"] != PROMPTS[1].text)]
    means = mine.groupby("method")["value"].mean()
    line = board[(board["metric"] == "clip_cos") & (board["method"] == "moody")].iloc[0]
    assert line["difference"] == pytest.approx(means["moody"] - means["plain"], abs=1e-12)


@dataclass(frozen=True)
class Choosy(Method):
    """Cannot act on lions."""

    name: ClassVar[str] = "choosy"

    def standing(self, subject) -> Standing:
        return Standing("n/a", "there is a lion") if "lion" in subject.prompt else Standing()


def test_a_method_that_cannot_act_on_some_prompts_is_refused_before_anything_is_made(small, quiet, made, tmp_path):
    choosy = changed(small, methods={"choosy": Choosy()})
    with pytest.raises(Incomplete, match=r"pairs: choosy on 'a lion and a bowl' \(there is a lion\); --allow-missing"):
        quiet(choosy, tmp_path)
    assert not made
    results = quiet(choosy, tmp_path, replace(HERE, allow_missing=True))
    assert (results.parts[0].images["method"] == "choosy").sum() == 4


def test_a_method_that_can_act_on_no_prompt_is_left_out_with_its_reason(small, quiet, tmp_path):
    results = quiet(changed(small, methods={"dense": METHODS["dense-diffusion"]}), tmp_path)
    part = results.parts[0]
    assert (part.methods, part.not_applicable) == (("plain",), ("dense",))
    assert "it has no layout" in part.planned.lacking["dense"]
    assert "dense is n/a: 'a cat and a dog': it has no layout" in quiet.said


def test_traces_of_all_batches_come_together_once_under_the_methods_names(small, quiet, tmp_path):
    kept = Capture(precision="none", tokens="targets")
    traced = changed(small, traced={"plain": kept, "regulation": kept}, methods={"regulation": METHODS["regulation"]})
    for _ in range(2):
        results = quiet(traced, tmp_path)
        with Store.open(results.parts[0].store) as store:
            runs = store.sql("SELECT method, count(*) AS n FROM runs GROUP BY method ORDER BY method")
            assert runs.to_numpy().tolist() == [["plain", 3], ["regulation", 3]]
            assert store.verify()["whole"].all()
            outcomes = store.sql("SELECT count(*) AS n FROM outcomes JOIN samples USING (run_id, sample)")
            assert outcomes.at[0, "n"] == 12
            image = store.sql("SELECT image FROM samples ORDER BY run_id, sample LIMIT 1").at[0, "image"]
            assert (results.run / image).is_file()


def test_less_disk_than_is_needed_is_refused_before_going_on(small, quiet, made, tmp_path):
    quiet(small, tmp_path, replace(HERE, dry=True))
    count = len(made)
    with pytest.raises(OSError, match=r"the run has .* GB and needs about .* more; --disk allows 0.00"):
        quiet(small, tmp_path, replace(HERE, disk=1000))
    assert len(made) == count


def test_a_part_in_another_world_or_of_other_seeds_is_another_run(small, quiet, tmp_path):
    quiet(small, tmp_path)
    quiet(changed(small, seeds=(0, 2)), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_changed_on_the_machine_since_is_said(small, quiet, tmp_path):
    quiet(small, tmp_path)
    file = folder(tmp_path) / "env.json"
    facts = json.loads(file.read_text())
    file.write_text(json.dumps(facts | {"versions": facts["versions"] | {"diffusers": "0.1"}}))
    results = quiet(small, tmp_path)
    assert len(results.notes) == 1
    assert results.notes[0].startswith("since this run was begun: diffusers 0.1 -> ")
    file.write_text(json.dumps(facts | {"code": "0" * 16}))
    notes = ("since this run was begun: the code of regulate or tracer has changed",)
    assert quiet(small, tmp_path).notes == notes
    assert f"beware: {notes[0]}" in quiet.said


def test_an_engine_in_this_process_leaves_its_settings_as_they_were(small, quiet, tmp_path):
    import torch

    before = torch.get_num_threads()
    quiet(small, tmp_path)
    assert torch.get_num_threads() == before
    assert (torch.tensor([1e-40]) * 0.5).item() != 0


@pytest.mark.parametrize("shard", [(0, 2), (3, 2)])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(ValueError, match="a shard must be i/n with i from 1 to n"):
        How(shard=shard)


def test_references_are_drawn_where_they_are_compared_with_and_not_by_every_shard(small, quiet, tmp_path):
    compared = replace(changed(small, prompts="emoji-scenes", options={"count": 2}), reference="emoji-scenes")
    assert quiet(compared, tmp_path, replace(HERE, shard=(1, 2))) is None
    assert not (folder(tmp_path) / "reference").exists()


def test_costs_are_of_whole_cells_whose_plain_images_are_there(small, quiet, tmp_path):
    mood = tmp_path / "mood.json"
    mood.write_text("null")
    facts = {"batch": 1, "methods": {"moody": Moody(mood), "regulation": AttentionRegulation(iterations=2)}}
    out, experiment = tmp_path / "runs", changed(small, **facts)
    costs = quiet(experiment, out).parts[0].costs
    assert len(costs) == 9
    assert set(costs["images"]) == {2}
    rows = rows_of(folder(out)).set_index(["method", "prompt_id", "seed"])["unit"]
    for lost in (("moody", "pair-0", 1), ("plain", "pair-1", 0)):
        (folder(out) / "units" / f"{rows[lost]}.parquet").unlink()
        write_failure(folder(out), rows[lost], {"method": lost[0], "prompt": lost[1], "error": "not today"})
    results = quiet(experiment, out, replace(HERE, allow_missing=True))
    costs = results.parts[0].costs
    assert set(costs["images"]) == {2}
    assert set(costs["prompt_id"]) == {"pair-0", "pair-2"}
    assert len(costs[costs["prompt_id"] == "pair-0"]) == 2
    list(method_tables(results))  # neither refuses


def test_traced_batches_are_timed_for_estimates_and_are_no_costs(small, quiet, tmp_path):
    kept = Capture(precision="none", tokens="targets")
    traced = changed(small, traced={"plain": kept, "regulation": kept})
    quiet(traced, tmp_path, replace(HERE, dry=True))
    assert "about unknown" not in quiet.said
    results = quiet(traced, tmp_path)
    assert results.parts[0].costs.empty
    assert (rows_of(results.run)["seconds"] > 0).all()


def test_every_batch_is_timed_and_counted(small, quiet, tmp_path):
    quiet(small, tmp_path)
    rows = rows_of(folder(tmp_path))
    assert (rows["seconds"] > 0).all()
    assert set(rows["images"]) == {2}
    assert np.array_equal(rows["passes"], [2] * len(rows))


def test_whole_sets_are_compared_with_the_images_that_the_prompts_name(small, quiet, tmp_path):
    photographs = tmp_path / "data" / "photographs"
    draw_scenes(photographs, count=9)  # one more than there are prompts
    part = replace(small.parts[0], prompts="emoji-scenes", options={"count": 8}, seeds=(0,))
    compared = replace(small, parts=(part,), reference="photographs", shows=("set-table",))
    how = replace(HERE, data=tmp_path / "data")
    sets = quiet(compared, tmp_path / "runs", how).parts[0].sets
    assert set(sets["n"]) == set(sets["n_reference"]) == {8}
    assert {"fid", "kid"} <= set(sets["metric"])
    assert set(sets["method"]) == {"plain", "regulation", "syngen"}
    (photographs / "scene-00003.png").unlink()
    with pytest.raises(ValueError, match=r"must hold the prompts' images, got no scene-00003\.png and 0 others"):
        quiet(compared, tmp_path / "other", replace(how, shard=(1, 2)))
    with pytest.raises(FileNotFoundError, match=r"small compares with the images in .*nowhere, which is no folder"):
        quiet(replace(compared, reference="nowhere"), tmp_path / "other", how)
    assert not (tmp_path / "other").exists()
