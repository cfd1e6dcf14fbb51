import hashlib
import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tracer.folders import emoji_world
from tracer.scenes import COLOURS, Scene, Thing, held_out_pairs, render

FOLDER = emoji_world() / "clip"


@pytest.fixture(scope="module")
def script(make_script):
    return make_script("measure_clip")


@pytest.fixture(scope="module")
def scenes(make_script):
    return make_script("evaluator_scenes")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return model, preprocessing and tokenizer as open_clip's users load them, from a folder somewhere else."""
    name = f"local-dir:{shutil.copytree(FOLDER, tmp_path_factory.mktemp('moved') / 'clip')}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, require_pretrained=True)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def test_its_weights_are_the_ones_that_were_measured():
    digest = hashlib.sha256((FOLDER / "open_clip_model.safetensors").read_bytes()).hexdigest()
    assert json.loads((FOLDER / "protocol.json").read_text()) == {"weights": digest}
    assert json.loads((FOLDER / "card.json").read_text())["weights"] == digest


def test_what_is_loaded_is_the_file_bit_for_bit_in_float32(clip):
    stored = load_file(FOLDER / "open_clip_model.safetensors")
    loaded = dict(clip[0].named_parameters())
    assert set(stored) == set(loaded)
    for name, value in loaded.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[name].float())


def test_its_tokenizer_is_the_generators(clip, emoji_tokenizer):
    text = "a bear with an orange bow"
    ids = emoji_tokenizer(text)["input_ids"]
    tokens = clip[2]([text])[0].tolist()
    assert tokens[: len(ids)] == ids
    assert set(tokens[len(ids) :]) == {emoji_tokenizer.eos_token_id}


@torch.no_grad()
def test_it_tells_a_few_scenes_apart(clip):
    model, preprocess, tokenizer = clip
    left, right = (4, 18, 30, 44), (34, 18, 60, 44)
    captions = {
        "a cat": (Thing("cat", None, left),),
        "a cat and a dog": (Thing("cat", None, left), Thing("dog", None, right)),
        "a dog": (Thing("dog", None, right),),
        "a blue bowl and a frog": (Thing("bowl", "blue", left), Thing("frog", None, right)),
        "a red bowl and a frog": (Thing("bowl", "red", left), Thing("frog", None, right)),
        "a horse and a green car": (Thing("horse", None, left), Thing("car", "green", right)),
    }
    pictures = [Image.fromarray(render(Scene((230, 225, 240), things))) for things in captions.values()]
    images = model.encode_image(torch.stack([preprocess(one) for one in pictures]), normalize=True)
    texts = model.encode_text(tokenizer(list(captions)), normalize=True)
    assert (images @ texts.T).argmax(1).tolist() == list(range(len(captions)))


def test_the_card_reaches_its_targets():
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["targets"] == {"right_of_64": 0.9}
    for pairs in ("seen_pairs", "unseen_pairs"):
        assert card[pairs]["pictures"] >= 1_000
        assert card[pairs]["right_of_64"] >= 0.9


def test_a_small_measurement_agrees_with_the_card(script):
    """Of 128 pictures as rendered: within five standard errors of the card's share."""
    card = json.loads((FOLDER / "card.json").read_text())["unseen_pairs"]["right_of_64"]
    chosen = script.held_out(script.TEST + 1, groups=2, seen=False)
    clip = script.load(FOLDER)
    images = clip.images(np.stack([render(scene) for scene in chosen]))
    right = script.of_groups(images, clip.texts([script.caption(scene.things) for scene in chosen]))
    assert len(right) == 128
    assert abs(script.share(right) - card) <= 5 * np.sqrt(card * (1 - card) / 128) + 0.01


def test_held_out_groups_say_different_things_and_show_unseen_pairs(script):
    chosen = script.held_out(5, groups=1, seen=False)
    keys = {frozenset((thing.word, thing.colour) for thing in scene.things) for scene in chosen}
    assert len(keys) == len(chosen) == 64
    for scene in chosen:
        words = {thing.word for thing in scene.things}
        assert any(pair <= words for pair in held_out_pairs())


def test_captions_near_a_pictures_own_differ_from_it_in_one_thing(script):
    red, cat = Thing("car", "red", (0, 0, 9, 9)), Thing("cat", None, (20, 20, 40, 40))
    kinds = script.near((cat, red))
    texts = {kind: {script.caption(one) for one in others} for kind, others in kinds.items()}
    assert texts["colour"] == {f"a cat and a{'n' if c == 'orange' else ''} {c} car" for c in COLOURS if c != "red"}
    assert texts["missing"] == {"a cat", "a red car"}
    assert texts["exchanged"] == set()
    assert {"a dog and a red car", "an apple and a red car", "a cat and a red apple", "a cat and a dog"} <= texts[
        "noun"
    ]
    assert len(texts["noun"]) == 2 * 22
    assert "a cat and a red car and a bird" in texts["extra"]
    bowl = Thing("bowl", "blue", (40, 40, 60, 60))
    assert script.caption(script.near((red, bowl))["exchanged"][0]) == "a blue car and a red bowl"


@pytest.mark.parametrize("kind", ["renamed", "missing", "extra", "recoloured", "exchanged"])
def test_a_changed_scene_says_something_else_and_brings_no_held_out_pair(scenes, kind):
    done = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        things = scenes.sample_scene(rng).things
        other = scenes.changed(rng, things, kind)
        if other is not None:
            done += 1
            assert scenes.key_of(other) != scenes.key_of(things)
            assert len(other) - len(things) == {"missing": -1, "extra": 1}.get(kind, 0)
            assert scenes.is_seen(tuple(thing.word for thing in other))
    assert done >= 5


def test_captions_of_one_content_are_never_held_against_each_other(make_script):
    training, scenes = make_script("clip"), make_script("evaluator_scenes")
    cat, dog = Thing("cat", None, (0, 0, 9, 9)), Thing("dog", None, (20, 20, 40, 40))
    rows = [scenes.as_rows(Scene((0, 0, 0), things)) for things in ((cat, dog), (dog, cat), (cat,))]
    texts, same = training.texts_of(np.random.default_rng(0), np.stack(rows), wild=False)
    assert len(texts) == 3 * (1 + training.WRONG)
    assert same[:, :3].tolist() == [[False, True, False], [True, False, False], [False, False, False]]
