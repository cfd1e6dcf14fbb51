"""The demo: end to end on random weights in seconds, and on the emoji world where its generator is there."""

import json
from importlib import import_module
from io import StringIO
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from analysis import demo as make_demo
from analysis import demo_page
from analysis.demo import PROMPT, RULE, SEEDS, TARGETS, nouns_of
from analysis.demo_page import QUERIES, Material, page_of
from analysis.plan import animal_pairs
from analysis.workbench import fingerprint
from metrics.weights import load_detector
from tracer.folders import emoji_world
from tracer.models import load_pipeline
from tracer.pictures import digest
from tracer.scores import ScoreRow, add_scores
from tracer.store import Store

TEXT = "a cat and an elephant"
needs_generator = pytest.mark.skipif(
    not (emoji_world() / "sd" / "unet").is_dir(), reason="the emoji world's generator is not there"
)


@pytest.fixture(scope="module")
def made(tiny_model, tiny_protocol, tmp_path_factory):
    """A demo of five seeds on random weights, and what it printed."""
    console = Console(record=True, width=120, file=StringIO())
    out = tmp_path_factory.mktemp("demo") / "out"
    result = make_demo(out, TEXT, seeds=range(5), model=tiny_model, protocol=tiny_protocol, steps=4, console=console)
    return result, console.export_text()


def test_the_folder_holds_the_page_the_trace_the_images_and_the_figures(made):
    folder = made[0].folder
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    images = [f"images/{method}/{seed}.png" for method in ("plain", "regulation") for seed in range(5)]
    figures = [f"figures/{name}.png" for name in ("comparison", "overlays", "violins")]
    assert found == sorted(["index.html", "made-by.json", "trace.duckdb", *images, *figures])
    assert sorted(path.name for path in folder.parent.iterdir()) == ["out"]


def test_the_trace_holds_both_runs_whole_with_their_images_and_scores(made):
    folder = made[0].folder
    with Store.open(folder / "trace.duckdb") as store:
        assert store.sql("SELECT method FROM runs ORDER BY run_id")["method"].tolist() == ["plain", "regulation"]
        assert store.verify()["whole"].all()
        samples = store.sql("SELECT method, seed, image, image_sha256 FROM samples JOIN runs USING (run_id)")
        for row in samples.itertuples():
            assert row.image == f"images/{row.method}/{row.seed}.png"
            with Image.open(folder / row.image) as image:
                assert digest(image) == row.image_sha256
        looked = store.sql("SELECT DISTINCT image_sha256 FROM scores WHERE metric = 'detection_argmax'")
        assert set(looked["image_sha256"]) == set(samples["image_sha256"])


def test_the_outcomes_are_those_of_all_seeds(made):
    result, _ = made
    with duckdb.connect(str(result.folder / "trace.duckdb"), read_only=True) as trace:
        found = trace.sql(QUERIES[0].sql).df()
    plain, regulated = found["plain"].astype(bool), found["regulation"].astype(bool)
    assert result.counts.to_dict() == {
        "won": (regulated & ~plain).sum(),
        "lost": (plain & ~regulated).sum(),
        "both found": (plain & regulated).sum(),
        "both fail": (~plain & ~regulated).sum(),
    }
    assert result.counts.sum() == 5


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.question)
def test_the_queries_to_try_next_work_with_plain_duckdb_and_find_something(made, query):
    with duckdb.connect(str(made[0].folder / "trace.duckdb"), read_only=True) as trace:
        assert len(trace.sql(query.sql).fetchall()) > 0


def test_it_ends_by_printing_the_table_the_outcomes_and_three_queries(made):
    result, printed = made
    assert len(QUERIES) == 3
    for query in QUERIES:
        assert query.sql.splitlines()[0] in printed
    assert "regulation" in printed
    assert f"lost {result.counts['lost']}" in printed
    assert "index.html" in printed


def test_the_page_is_self_contained_and_shows_everything(made):
    text = (made[0].folder / "index.html").read_text(encoding="utf-8")
    assert "http" not in text
    assert text.count("data:image/png;base64,") == 3
    for said in (TEXT, "over all 5 seeds", "This is the emoji world", "Detection protocol", QUERIES[1].question):
        assert said in text.replace("&#39;", "'")


def test_the_same_demo_again_makes_the_same_images_and_replaces_the_old_one(made, tiny_model, tiny_protocol, tmp_path):
    out = tmp_path / "out"
    for seeds in (range(1), range(2)):
        again = make_demo(
            out, TEXT, seeds=seeds, model=tiny_model, protocol=tiny_protocol, steps=4, console=Console(quiet=True)
        )
    assert sorted(path.name for path in (out / "images" / "plain").iterdir()) == ["0.png", "1.png"]
    assert again.counts.sum() == 2
    for name in ("0.png", "1.png"):
        ours, theirs = (Image.open(f / "images" / "plain" / name) for f in (out, made[0].folder))
        assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": TEXT, "targets": ["lion"]}, "'lion' is not in the prompt"),
        ({"prompt": "a cat " * 20, "targets": ["cat"]}, "must fit into 16 tokens"),
        ({"prompt": "a thing and another"}, "no noun of the emoji world"),
        ({"prompt": "a cat and a spoon", "targets": ["cat", "spoon"]}, "does not know spoon"),
        ({"prompt": TEXT, "seeds": []}, "seeds must be at least one"),
        ({"prompt": TEXT, "seeds": [1, 1]}, "seeds must be"),
        ({"prompt": TEXT, "seeds": [-1]}, "not negative"),
    ],
)
def test_wrong_arguments_are_an_error_and_nothing_is_written(arguments, message, tmp_path, tiny_model, tiny_protocol):
    with pytest.raises(ValueError, match=message):
        make_demo(tmp_path / "out", model=tiny_model, protocol=tiny_protocol, console=Console(quiet=True), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_model_is_an_error_and_nothing_is_written(tmp_path, tiny_protocol):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no diffusers pipeline"):
        make_demo(tmp_path / "out", TEXT, model=str(tmp_path / "empty"), protocol=tiny_protocol)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_somebody_elses_folder_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(ValueError, match="something else than a former attnreg demo"):
        make_demo(tmp_path, model="no such model")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_demo_leaves_nothing(tmp_path, tiny_model, tiny_protocol, monkeypatch):
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("analysis.demo"), "score_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo(
            tmp_path / "out", TEXT, seeds=[0], model=tiny_model, protocol=tiny_protocol, steps=2,
            console=Console(quiet=True),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_targets_are_the_prompts_nouns_unless_named():
    assert nouns_of("An Elephant with glasses, and a red car.") == ("elephant", "glasses", "car")
    assert nouns_of("a cat and a cat") == ("cat",)


def test_the_default_prompt_is_one_of_the_benchmarks_pairs_and_the_page_states_its_rule(traced):
    assert (PROMPT, TARGETS) in {(prompt.text, prompt.targets) for prompt in animal_pairs()}
    assert tuple(range(16)) == SEEDS
    assert RULE in page_of(_material(traced), RULE).selection


def _material(traced) -> Material:
    return Material(traced.store, traced.plain, traced.regulated, traced.protocol, traced.request, traced.pictures)


@pytest.mark.parametrize(
    ("found", "said", "shown"),
    [
        ({3: 0, 5: 1, 8: 0}, "One shape per word", ["seed 3: no elephant", "seed 5: all found"]),
        ({3: 0, 5: 0, 8: 0}, "No plain image shows all targets", ["seed 3: no elephant"]),
        ({3: 1, 5: 1, 8: 1}, "No plain image misses a target", ["seed 3: all found"]),
    ],
)
def test_the_shown_images_are_the_first_of_their_kind_or_their_absence_is_said(traced, found, said, shown, monkeypatch):
    """Under a protocol of our own, plain images show the elephant or not as `found` says, by seed."""
    name = "ours-" + "".join(map(str, found.values()))
    for (method, seed), sha256 in traced.sha256.items():
        whole = float(found[seed]) if method == "plain" else 1.0
        verdicts = {"cat": 1.0, "elephant": whole}
        asked = "cat, elephant"
        add_scores(traced.store, [ScoreRow(sha256, name, "found", v, target, asked) for target, v in verdicts.items()])
    titles = []
    drawn = demo_page.dominance_violins
    monkeypatch.setattr(
        demo_page, "dominance_violins", lambda *given: titles.append(list(given[3].values())) or drawn(*given)
    )
    material = _material(traced)
    monkeypatch.setattr(type(material.protocol), "name", name)
    page = page_of(material, "a rule")
    assert titles == [shown]
    assert said in page.plates[1].text
    assert page.counts["won"] == list(found.values()).count(0)
    assert all(plate.png.startswith(b"\x89PNG") for plate in page.plates)


def test_the_numbers_are_the_traces(made):
    result, _ = made
    with Store.open(result.folder / "trace.duckdb") as store:
        score = store.sql(
            "SELECT avg(value) FROM samples JOIN runs USING (run_id) JOIN scores USING (image_sha256) "
            "WHERE metric = 'detection_argmax' AND target = 'cat' AND method = 'regulation'"
        ).iat[0, 0]
        parameters = json.loads(store.sql("SELECT method_params FROM runs WHERE run_id = 2").iat[0, 0])
    numbers = result.numbers.set_index("method")
    assert numbers.loc["regulation", "cat score"] == f"{score:.2f}"
    assert numbers["images"].tolist() == [5, 5]
    won = int(result.counts["won"] + result.counts["both found"])
    assert numbers.loc["regulation", "all found"].startswith(f"{won} ({won / 5:.0%}) [")
    assert f"step_size {parameters['step_size']}" in (result.folder / "index.html").read_text(encoding="utf-8")


@needs_generator
def test_the_default_prompt_is_the_one_that_its_rule_chose_for_these_weights():
    """Trained on, the generator may fail elsewhere: then `data/emoji/make/first_pair.py` must choose again."""
    card = json.loads((emoji_world() / "sd" / "demo.json").read_text())
    assert (card["prompt"], tuple(card["targets"])) == (PROMPT, TARGETS)
    assert card["generator"] == fingerprint(load_pipeline("emoji"))
    assert card["detector"] == load_detector().protocol.name


@needs_generator
def test_the_demo_runs_on_the_emoji_world(tmp_path: Path):
    result = make_demo(tmp_path / "out", seeds=range(2), console=Console(quiet=True))
    assert result.counts.sum() == 2
    text = (result.folder / "index.html").read_text(encoding="utf-8")
    assert RULE in text.replace("&#39;", "'")
    assert PROMPT in text
