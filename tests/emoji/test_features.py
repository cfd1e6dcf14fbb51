import hashlib
import json

import lpips
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchvision.models import squeezenet1_1

from tracer.folders import emoji_world
from tracer.scenes import OVERLAP, Scene, Thing, overlap, render

FOLDER = emoji_world() / "features"


@pytest.fixture(scope="module")
def script(make_script):
    return make_script("measure_features")


@pytest.fixture(scope="module")
def training(make_script):
    return make_script("features")


@pytest.fixture(scope="module")
def scenes(make_script):
    return make_script("evaluator_scenes")


@pytest.fixture(scope="module")
def trunk(script):
    return script.load_trunk(FOLDER)


@pytest.fixture(scope="module")
def metric(script, trunk):
    return script.load_lpips(trunk)


def test_its_weights_are_the_ones_that_were_measured():
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((FOLDER / "protocol.json").read_text()) == {"weights": digest}
    assert json.loads((FOLDER / "card.json").read_text())["weights"] == digest


def test_its_file_names_exactly_torchvisions_layers():
    stored, layers = load_file(FOLDER / "model.safetensors"), squeezenet1_1(weights=None).features.state_dict()
    assert {name: value.shape for name, value in stored.items()} == {n: v.shape for n, v in layers.items()}
    assert all(value.isfinite().all() for value in stored.values())


def test_the_evaluators_of_the_world_are_small():
    folders = ("owlv2", "clip", "features")
    sizes = [path.stat().st_size for name in folders for path in (emoji_world() / name).iterdir()]
    assert sum(sizes) <= 10e6


@torch.no_grad()
def test_the_training_measures_the_distance_that_lpips_does(training, trunk, metric):
    one, other = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = training.distances(training.layers(trunk, one), training.layers(trunk, other))
    torch.testing.assert_close(ours, metric(one, other, normalize=True).flatten(), rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_every_slice_of_lpips_holds_the_stored_weights(metric):
    stored = load_file(FOLDER / "model.safetensors")
    held = {name.split(".", 1)[1]: value for name, value in metric.net.state_dict().items()}
    assert set(held) == set(stored)
    assert all(torch.equal(value, stored[name].float()) for name, value in held.items())
    assert isinstance(metric, lpips.LPIPS)


def test_a_scene_is_nearer_moved_than_recoloured_than_without_its_object(script, metric):
    cat, car = Thing("cat", None, (2, 4, 28, 30)), Thing("car", "red", (30, 34, 58, 56))
    variants = ((cat, car), (cat, Thing("car", "red", (32, 35, 60, 57))), (cat, Thing("car", "blue", car.box)), (cat,))
    pixels = np.stack([render(Scene((230, 225, 240), things)) for things in variants])
    moved, recoloured, removed = script.distances(metric, pixels)[0]
    assert 0 < moved < recoloured < removed


def test_the_card_reaches_its_targets():
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["targets"] == {"in_order": 0.95, "fid_between_halves_over_corrupted": 0.05}
    for pairs in ("lpips_seen_pairs", "lpips_unseen_pairs"):
        assert card[pairs]["families"] >= 500
        assert card[pairs]["in_order"] >= 0.95
    assert card["fid"]["pictures_on_each_side"] >= 2_000
    for corruption in ("removed", "blended", "blurred", "one_of_three"):
        assert card["fid"][f"share_of_{corruption}"] <= 0.05


def test_a_small_measurement_agrees_with_the_card(script, metric):
    """Of 100 families as rendered: within five standard errors of the card's share."""
    card = json.loads((FOLDER / "card.json").read_text())["lpips_unseen_pairs"]["in_order"]
    pixels, _ = script.families(script.TEST + 1, 100, seen_only=False)
    measured = script.of_families(metric, pixels)
    assert measured["families"] == 100
    assert abs(measured["in_order"] - card) <= 5 * np.sqrt(card * (1 - card) / 100) + 0.01


def test_the_distance_of_sets_is_torch_fidelitys(script):
    chance = np.random.default_rng(0)
    one, other = chance.standard_normal((400, 6)), 1.5 * chance.standard_normal((400, 6)) + 0.3
    first, second = (fid_features_to_statistics(torch.from_numpy(side)) for side in (one, other))
    expected = fid_statistics_to_metric(first, second, False)["frechet_inception_distance"]
    assert script.fid(one, other) == pytest.approx(expected, rel=1e-6)
    assert abs(script.fid(one, one)) < 1e-6


def test_a_family_differs_in_one_coloured_object(scenes):
    for seed in range(40):
        first, away, hue, gone = scenes.family(np.random.default_rng(seed))
        changed = [i for i, thing in enumerate(first.things) if thing not in gone.things]
        assert len(changed) == 1
        old, moved, tinted = (scene.things[changed[0]] for scene in (first, away, hue))
        steps = [a - b for a, b in zip(moved.box, old.box, strict=True)]
        assert old.colour is not None
        assert steps[:2] == steps[2:]
        assert 1 <= max(map(abs, steps)) <= 3
        assert (moved.word, moved.colour) == (old.word, old.colour)
        assert (tinted.word, tinted.box) == (old.word, old.box)
        assert tinted.colour not in (None, old.colour)
        assert all(overlap(moved.box, other.box) <= OVERLAP for other in gone.things)


def test_cells_are_asked_for_what_stands_in_their_middle(scenes):
    rows = scenes.as_rows(Scene((0, 0, 0), (Thing("dog", None, (0, 0, 20, 20)), Thing("car", "red", (30, 30, 50, 50)))))
    middles = np.array([[10.0, 10.0], [19.0, 10.0], [40.0, 40.0], [60.0, 5.0]])
    nouns, colours = scenes.on_cells(rows[None], middles)
    dog, car = scenes.NOUNS.index("dog"), scenes.NOUNS.index("car")
    assert nouns.tolist() == [[dog, -100, car, 24]]
    assert colours.tolist() == [[11, -100, scenes.HUES.index("red"), -100]]
