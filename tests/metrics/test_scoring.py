"""Scoring: what is new is scored once, in batches that are whole, whatever the workers and whatever breaks."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from metrics import scoring as score_module
from metrics import shelf
from metrics.clip_score import embed_images, embed_texts, load_clip
from metrics.detection import detect
from metrics.evaluator import Item
from metrics.evaluators import Comparing
from metrics.features import extract, load_features
from metrics.lpips_score import distances, load_lpips
from metrics.pictures import Picture
from metrics.protocols import LpipsProtocol, emoji_clip, emoji_detection, emoji_features, emoji_lpips
from metrics.scoring import score
from metrics.sets import score_set
from metrics.weights import load_detector
from tracer.pictures import digest
from tracer.scenes import caption, render, sample_scene
from tracer.store import Store

ALL = (emoji_detection, emoji_clip, emoji_lpips, emoji_features)
TABLES = ("scores", "embeddings")


def scenes(folder: Path, count: int, seed: int, method: str) -> list[Picture]:
    """Rendered scenes as files, every second one of two objects."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    pictures = []
    for number in range(count):
        scene = sample_scene(rng, count=1 + number % 2)
        path = folder / f"{number}.png"
        Image.fromarray(render(scene)).save(path)
        targets = tuple(thing.word for thing in scene.things)
        pictures.append(Picture(path, caption(scene.things), number, method, f"p{number}", targets))
    return pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Picture]:
    """Six images of each of two methods, of the same prompts and seeds."""
    folder = tmp_path_factory.mktemp("images")
    plain, other = scenes(folder / "plain", 6, 1, "plain"), scenes(folder / "other", 6, 2, "other")
    return [*plain, *(replace(o, prompt=p.prompt, targets=p.targets) for o, p in zip(other, plain, strict=True))]


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "scores.duckdb") as store:
        yield store


def rows_of(store: Store, table: str) -> list[tuple]:
    with store.transaction() as cursor:
        return cursor.execute(f"FROM {table} ORDER BY ALL").fetchall()


def all_rows(store: Store) -> dict[str, list[tuple]]:
    return {table: rows_of(store, table) for table in TABLES}


def image(picture: Picture) -> Image.Image:
    return Image.open(picture.path).convert("RGB")


def value(store: Store, metric: str, sha256: str, target: str = "") -> float:
    query = "SELECT value FROM scores WHERE metric = ? AND image_sha256 = ? AND target = ?"
    return store.sql(query, [metric, sha256, target])["value"].item()


def test_the_store_has_what_each_metric_says_of_each_image(store, pictures):
    report = score(store, pictures, [make() for make in ALL])
    assert (report.pictures, report.worked, report.problems) == (12, 12, ())
    images = [image(picture) for picture in pictures]
    shas = [digest(one) for one in images]
    found = detect(load_detector(), images, [picture.targets for picture in pictures])
    clip = load_clip(emoji_clip())
    cosines = (embed_images(clip, images) * embed_texts(clip, [p.prompt for p in pictures])).sum(-1)
    far = distances(load_lpips(emoji_lpips()), images[6:], images[:6])
    vectors = extract(load_features(emoji_features()), images)
    for place, (picture, sha) in enumerate(zip(pictures, shas, strict=True)):
        for detection in found[place]:
            assert value(store, "detection_argmax", sha, detection.target) == pytest.approx(detection.score, abs=1e-6)
        assert value(store, "clip_cos", sha) == pytest.approx(cosines[place].item(), abs=1e-6)
        if picture.method == "other":
            assert value(store, "lpips-tiny", sha) == pytest.approx(far[place - 6].item(), abs=1e-6)
    names = store.sql("SELECT item, vector FROM embeddings WHERE protocol LIKE 'emoji-features%'")
    kept = dict(zip(names["item"], names["vector"], strict=True))
    assert np.allclose([kept[sha] for sha in shas], vectors, atol=1e-5)


def test_a_second_call_reads_no_file_and_loads_no_model(store, pictures, monkeypatch):
    protocols = [make() for make in ALL]
    score(store, pictures, protocols)
    before = all_rows(store)
    monkeypatch.setattr(shelf, "read", lambda path: pytest.fail(f"{path} was read again"))
    for one in score_module.evaluator(protocols[0]).__class__.__mro__[1].__subclasses__():
        monkeypatch.setattr(one, "load", staticmethod(lambda *given, **options: pytest.fail("a model was loaded")))
    report = score(store, pictures, protocols)
    assert (report.pictures, report.worked) == (12, 0)
    assert all_rows(store) == before


def test_another_prompt_for_the_same_images_costs_no_image_pass(store, pictures, monkeypatch):
    score(store, pictures, [emoji_clip()])
    monkeypatch.setattr(shelf, "read", lambda path: pytest.fail(f"{path} was read again"))
    asked = [replace(picture, prompt="a cat") for picture in pictures]
    score(store, asked, [emoji_clip()])
    assert len(store.sql("FROM scores WHERE metric = 'clip_cos' AND against = 'a cat'")) == 12


def test_reading_in_threads_leaves_the_filters_of_warnings_as_they_were(store, pictures):
    before = list(warnings.filters)
    score(store, pictures, [emoji_clip()], workers=4)
    assert warnings.filters == before


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_change_a_bit(store, pictures, tmp_path, workers):
    protocols = [make() for make in ALL]
    score(store, pictures, protocols, workers=2)
    with Store.create(tmp_path / "again.duckdb") as again:
        score(again, pictures, protocols, workers=workers)
        assert all_rows(again) == all_rows(store)


def test_the_size_of_a_batch_changes_scores_by_rounding_only(store, pictures, tmp_path, monkeypatch):
    protocols = [make() for make in ALL]
    score(store, pictures, protocols)
    monkeypatch.setattr(score_module, "PIXELS", 1)
    with Store.create(tmp_path / "again.duckdb") as again:
        score(again, pictures, protocols)
        ones, others = (frame.sql("SELECT * FROM scores ORDER BY ALL") for frame in (store, again))
        assert np.allclose(ones["value"], others["value"], atol=1e-5)
        kept = [frame.sql("FROM embeddings ORDER BY item, protocol") for frame in (store, again)]
        assert kept[0]["item"].tolist() == kept[1]["item"].tolist()
        assert all(np.allclose(*pair, atol=1e-4) for pair in zip(*(one["vector"] for one in kept), strict=True))


def test_a_file_that_was_overwritten_is_scored_anew_even_under_its_old_time(store, pictures, tmp_path):
    path = tmp_path / "one.bmp"  # uncompressed: as long as before
    Image.open(pictures[0].path).save(path)
    old = path.stat()
    mine = [replace(pictures[0], path=path)]
    score(store, mine, [emoji_clip(), emoji_features()])
    Image.open(pictures[1].path).save(path)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    assert score(store, mine, [emoji_clip(), emoji_features()]).worked == 1
    assert store.sql("SELECT image_sha256 FROM pictures").iat[0, 0] == digest(image(pictures[1]))


def test_a_set_whose_files_were_overwritten_has_another_score(store, pictures, tmp_path):
    protocol = score(store, pictures, [emoji_features()]).protocols[0]
    shas = [digest(image(picture)) for picture in pictures]
    one = score_set(store, shas[:6], shas[6:], protocol)
    assert score_set(store, shas[:6][::-1], shas[6:], protocol) == one
    other = score_set(store, shas[:5] + shas[6:7], shas[6:], protocol)
    assert {row.metric for row in one} == {"fid", "kid"}
    assert [row.value for row in one] != [row.value for row in other]
    assert len(store.sql("FROM set_scores")) == 4


def test_what_cannot_be_read_or_asked_is_named_and_the_rest_is_scored(store, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures[0].path.read_bytes()[:200])
    text = tmp_path / "text.png"
    text.write_text("no image")
    large = tmp_path / "large.png"
    Image.new("RGB", (96, 96)).save(large)
    odd = {"grey": Image.new("L", (64, 64), 90), "clear": Image.new("RGBA", (64, 64), (9, 9, 9, 0))}
    odd["deep"] = Image.fromarray(np.full((64, 64), 30_000, np.uint16))
    for name, made in odd.items():
        made.save(tmp_path / f"{name}.png")
    asked = [
        *pictures,
        *(replace(pictures[0], path=tmp_path / f"{name}.png", seed=n) for n, name in enumerate(odd, 200)),
        replace(pictures[0], path=broken, seed=100),
        replace(pictures[0], path=text, seed=101),
        replace(pictures[6], path=large, method="other", seed=0),
        replace(pictures[0], path=_copy(pictures[0], tmp_path), targets=("a very " * 20 + "long thing",), seed=102),
    ]
    for _ in range(2):  # a second call says it again
        report = score(store, asked, [make() for make in ALL])
        reasons = {problem.path.name: problem.reason for problem in report.problems}
        assert set(reasons) == {"broken.png", "text.png", "large.png", "copy.png"}
        assert "(64, 64)" in reasons["large.png"]
        assert "tokens" in reasons["copy.png"]
    assert len(store.sql("FROM scores WHERE metric = 'clip_cos'")) == 12 + len(odd)  # the copy is the same image
    notes = dict(store.sql("SELECT path, notes FROM pictures WHERE len(notes) > 0").itertuples(index=False))
    assert {"clear.png", "deep.png"} <= set(notes)


def test_a_prompt_that_clip_does_not_read_to_its_end_is_named(store, pictures):
    asked = [replace(pictures[0], prompt="a cat and " * 1000 + "a dog"), pictures[1]]
    (problem,) = score(store, asked, [emoji_clip()]).problems
    assert problem.path == pictures[0].path
    assert "was cut" in problem.reason
    assert len(store.sql("FROM scores WHERE metric = 'clip_cos'")) == 2


def _copy(picture: Picture, folder: Path) -> Path:
    path = folder / "copy.png"
    path.write_bytes(picture.path.read_bytes())
    return path


def test_images_of_two_sizes_have_no_lpips_and_it_is_said():
    one = Comparing.loaded(SimpleNamespace(protocol=LpipsProtocol()))
    small, large = (Item("f00", "a cat", image=Image.new("RGB", (side, side))) for side in (64, 96))
    assert "its plain image" in (one.refuses(replace(small, reference=large)) or "")
    assert one.refuses(replace(small, reference=small)) is None


@pytest.mark.parametrize(("asked", "protocols"), [([], [emoji_clip]), (None, [])])
def test_nothing_to_score_or_to_score_by_is_refused(store, pictures, asked, protocols):
    with pytest.raises(ValueError, match="at least one"):
        score(store, pictures if asked is None else asked, [make() for make in protocols])


def test_a_file_that_is_given_twice_is_refused(store, pictures):
    with pytest.raises(ValueError, match="different files"):
        score(store, [pictures[0], replace(pictures[0], seed=9)], [emoji_clip()])


def test_weights_that_are_not_the_protocols_are_refused_before_anything_is_written(store, pictures):
    for make in ALL:
        with pytest.raises(ValueError, match="SHA-256"):
            score(store, pictures, [emoji_detection(), replace(make(), weights="0" * 64)])
    assert len(store.sql("FROM pictures")) == len(store.sql("FROM protocols")) == 0


def test_protocols_are_noted_with_all_that_they_depend_on(store, pictures):
    report = score(store, pictures[:1], [emoji_detection()])
    row = store.sql("FROM protocols").iloc[0]
    assert row["protocol"] == report.protocols[0].fingerprint
    assert json.loads(row["facts"])["weights"] == emoji_detection().weights
    assert set(json.loads(row["versions"])) == {"torch", "transformers"}
    reading = store.sql("FROM readings").iloc[0]
    assert (reading["name"], reading["threshold"]) == (emoji_detection().name, 0.26)


WORK = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
torch.set_num_threads(1)
from metrics import scoring as module
from metrics.pictures import Picture
from metrics.protocols import LpipsProtocol, emoji_clip, emoji_detection
from tracer.store import Store
module.MOST = 2
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
paths = sorted(folder.glob("*.png"))
pictures = [Picture(path, f"a cat and a car {path.stem}", 0, "plain", path.stem, ("cat",)) for path in paths]
with Store.create(out) as store:
    module.score(store, pictures, [emoji_detection(), emoji_clip()], progress=lambda done, _: print(done, flush=True))
"""


def test_a_killed_scoring_goes_on_and_ends_with_the_same_bits(tmp_path):
    scenes(tmp_path / "images", 12, 5, "plain")
    command = [sys.executable, "-c", WORK, str(tmp_path / "images")]

    def work(out: str) -> None:
        subprocess.run([*command, str(tmp_path / out)], capture_output=True, check=True, timeout=120)

    work("whole.duckdb")
    with subprocess.Popen([*command, str(tmp_path / "killed.duckdb")], stdout=subprocess.PIPE) as killed:
        for _ in range(3):  # the start, and two batches
            killed.stdout.readline()
        time.sleep(0.01)
        os.kill(killed.pid, signal.SIGKILL)
    with Store.open(tmp_path / "killed.duckdb") as store:
        assert 0 < len(store.sql("SELECT DISTINCT image_sha256 FROM scores")) < 12
    work("killed.duckdb")
    with Store.create(tmp_path / "whole.duckdb") as one, Store.create(tmp_path / "killed.duckdb") as other:
        assert all_rows(one) == all_rows(other)
        assert len(one.sql("FROM scores")) == 12 * 4


def test_a_model_runs_where_it_is_told(store, pictures):
    report = score(store, pictures[:2], [emoji_clip()], device=torch.device("cpu"))
    assert report.worked == 2
