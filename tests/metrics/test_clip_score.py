"""CLIP score: the library's own numbers, Attend-and-Excite's wordings and halves, and the traps on the way."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import jaxtyping
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from metrics.clip_score import (
    circular,
    clip_cos,
    embed_images,
    embed_texts,
    halves,
    hessel,
    load_clip,
    min_half,
    percent,
    truncated,
    weights_of,
    wordings,
)
from metrics.protocols import RELEASED, ClipProtocol

EXACT = 1e-6
CONTEXT = 24
PROMPTS = ["a red cube and a blue ball", "a dog", "a cat with a hat"]
LOOKS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}


def config_of(tokenizer) -> dict:
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": CONTEXT, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 1}
    return {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def saved(folder: Path, tokenizer, seed: int = 0) -> None:
    """Write a CLIP of random weights as open_clip lays it out."""
    folder.mkdir()
    config = config_of(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = open_clip.CLIP(**config).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    config["text_cfg"]["hf_tokenizer_name"] = "in this folder"
    stored = {"model_cfg": config, "preprocess_cfg": LOOKS}
    (folder / "open_clip_config.json").write_text(json.dumps(stored))
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, emoji_tokenizer) -> Path:
    saved(path := tmp_path_factory.mktemp("clip") / "tiny", emoji_tokenizer)
    return path


@pytest.fixture(scope="module")
def protocol(folder) -> ClipProtocol:
    return ClipProtocol(str(folder), pretrained=None)


@pytest.fixture(scope="module")
def clip(protocol):
    return load_clip(protocol)


@pytest.fixture(scope="module")
def ae80(protocol):
    return load_clip(replace(protocol, ensemble="ae80"))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 40), (32, 32), (64, 48)]
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture
def unchecked():
    """What a user gets, who has no checks of types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, and no hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def released(cache, folder, emoji_tokenizer, monkeypatch) -> ClipProtocol:
    """A released model of random weights in the cache: open_clip knows its name and tag."""
    look = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear", "resize_mode": "longest"}
    tag = {"url": "", "hf_hub": "nobody/tiny/", "quick_gelu": True, **look}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-quickgelu", config_of(emoji_tokenizer))
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny", config_of(emoji_tokenizer) | {"quick_gelu": False})
    for name in ("Tiny", "Tiny-quickgelu"):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, {"random": tag})
    (cache / "models--nobody--tiny" / "refs").mkdir(parents=True)
    (cache / "models--nobody--tiny" / "refs" / "main").write_text("abc")
    place = cache / "models--nobody--tiny" / "snapshots" / "abc"
    place.mkdir(parents=True)
    (place / "open_clip_model.safetensors").symlink_to(folder / "open_clip_model.safetensors")
    return ClipProtocol("Tiny-quickgelu", pretrained="random")


def library(name: str, pictures, prompts, **options) -> torch.Tensor:
    """What open_clip itself says of each picture and its prompt, one at a time."""
    model, _, preprocess = open_clip.create_model_and_transforms(name, **options)
    tokenize = open_clip.get_tokenizer(name)
    model.eval()
    with torch.no_grad():
        images = [model.encode_image(preprocess(picture)[None]) for picture in pictures]
        texts = [model.encode_text(tokenize([prompt])) for prompt in prompts]
    pairs = zip(images, texts, strict=True)
    return torch.stack([(image / image.norm() * text / text.norm()).sum() for image, text in pairs])


def test_scores_of_a_local_folder_are_open_clips_own(clip, folder, pictures):
    ours = clip_cos(embed_images(clip, pictures), embed_texts(clip, PROMPTS))
    expected = library(f"local-dir:{folder}", pictures, PROMPTS)
    torch.testing.assert_close(ours, expected, atol=EXACT, rtol=0)
    assert expected.std() > 1e-3  # of random weights, but not all the same


def test_scores_of_a_released_model_are_open_clips_own(released, pictures):
    images = embed_images(load_clip(released), pictures)
    model, _, preprocess = open_clip.create_model_and_transforms("Tiny-quickgelu", pretrained="random")
    with torch.no_grad():
        expected = torch.cat([model.eval().encode_image(preprocess(p)[None], normalize=True) for p in pictures])
    torch.testing.assert_close(images, expected, atol=EXACT, rtol=0)


def test_the_protocol_comes_back_with_the_hash_of_the_weights(clip, protocol, folder):
    digest = sha256((folder / "open_clip_model.safetensors").read_bytes()).hexdigest()
    assert clip.protocol == replace(protocol, weights=digest)
    assert weights_of(protocol) == digest
    assert load_clip(clip.protocol).protocol == clip.protocol


def test_the_hash_of_a_released_model_is_that_of_the_file_in_the_cache(released, folder):
    digest = sha256((folder / "open_clip_model.safetensors").read_bytes()).hexdigest()
    assert weights_of(released) == load_clip(released).protocol.weights == digest


def test_other_weights_than_the_protocol_says_are_refused(protocol, released):
    for one in (protocol, released):
        wrong = replace(one, weights="0" * 64)
        for look in (weights_of, load_clip):
            with pytest.raises(ValueError, match=r"SHA-256 0000"):
                look(wrong)


def test_weights_that_do_not_fit_are_refused(tmp_path, emoji_tokenizer):
    saved(tmp_path / "clip", emoji_tokenizer)
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    weights = load_file(file)
    del weights["ln_final.weight"]
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"(?s)must hold the weights of .*ln_final\.weight"):
        load_clip(ClipProtocol(str(file.parent), pretrained=None))


@pytest.mark.parametrize("name", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_an_incomplete_folder_is_named(tmp_path, emoji_tokenizer, name):
    saved(tmp_path / "clip", emoji_tokenizer)
    (tmp_path / "clip" / name).unlink()
    for look in (weights_of, load_clip):
        with pytest.raises(FileNotFoundError, match=f"holds no CLIP as open_clip saves it: no {name}"):
            look(ClipProtocol(str(tmp_path / "clip"), pretrained=None))


def test_a_folder_without_its_tokenizer_is_named(tmp_path, emoji_tokenizer):
    saved(tmp_path / "clip", emoji_tokenizer)
    for file in (tmp_path / "clip").glob("*token*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        load_clip(ClipProtocol(str(tmp_path / "clip"), pretrained=None))


def test_a_released_model_that_is_not_here_names_what_to_download(cache):
    for look in (weights_of, load_clip):
        with pytest.raises(
            FileNotFoundError, match=r"hf download timm/vit_base_patch16_clip_224\.openai open_clip_model\.safetensors"
        ):
            look(ClipProtocol())


def test_a_download_is_tried_only_where_it_is_asked_for(cache):
    with pytest.raises(FileNotFoundError, match=r"Failed to download file \(open_clip_pytorch_model\.bin\)"):
        load_clip(ClipProtocol(), download=True)


def test_only_the_revision_of_the_protocol_is_taken(released):
    with pytest.raises(FileNotFoundError, match="hf download nobody/tiny"):
        weights_of(replace(released, revision="an-older-one"))


@pytest.mark.parametrize(
    ("wrong", "tag", "right"),
    [
        ("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
        ("ViT-B-32", "openai", "ViT-B-32-quickgelu"),
        ("ViT-L-14", "openai", "ViT-L-14-quickgelu"),
        ("ViT-H-14", "dfn5b", "ViT-H-14-quickgelu"),
        ("Tiny", "random", "Tiny-quickgelu"),
    ],
)
def test_the_wrong_activation_is_refused_before_anything_is_loaded(released, wrong, tag, right):
    for look in (weights_of, load_clip):
        with pytest.raises(ValueError, match=f"checkpoint must be '{right}': .* trained with QuickGELU"):
            look(ClipProtocol(wrong, pretrained=tag))


def test_quickgelu_for_weights_without_it_is_refused(released, monkeypatch):
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED["Tiny-quickgelu"]["random"], "quick_gelu", False)
    with pytest.raises(ValueError, match=r"checkpoint must be 'Tiny': .* trained with GELU"):
        load_clip(released)


def test_the_wrong_activation_would_change_the_scores(released, pictures):
    right = embed_images(load_clip(released), pictures)
    with pytest.warns(UserWarning, match="QuickGELU mismatch"):  # which is all that open_clip does about it
        model, _, preprocess = open_clip.create_model_and_transforms("Tiny", pretrained="random")
    with torch.no_grad():
        wrong = torch.cat([model.eval().encode_image(preprocess(p)[None], normalize=True) for p in pictures])
    assert (right - wrong).abs().max() > 1e-4


def test_every_released_protocol_names_a_model_with_the_right_activation(cache):
    for protocol in RELEASED.values():
        if isinstance(protocol, ClipProtocol):
            with pytest.raises(FileNotFoundError):  # and no ValueError
                weights_of(protocol)


def test_unknown_names_are_answered_with_what_there_is():
    with pytest.raises(ValueError, match="a model that open_clip knows"):
        weights_of(ClipProtocol("ViT-B-17"))
    with pytest.raises(ValueError, match=r"pretrained must be one of openai, laion400m_e31, .* got 'openia'"):
        weights_of(ClipProtocol("ViT-B-16-quickgelu", pretrained="openia"))
    with pytest.raises(ValueError, match="text tower of open_clip's own"):
        weights_of(ClipProtocol("xlm-roberta-base-ViT-B-32", pretrained="laion5b_s13b_b90k"))


def test_an_unknown_ensemble_is_refused(unchecked):
    with pytest.raises(ValueError, match="ensemble must be one of plain, ae80, got 'ae8'"):
        ClipProtocol(ensemble="ae8")


def test_loading_leaves_the_global_generator_alone_and_the_weights_frozen(protocol):
    before = torch.random.get_rng_state()
    model = load_clip(protocol).model
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.training
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.float32, False)}


def test_embeddings_have_length_one_in_float32(clip, ae80, pictures):
    for vectors in (embed_images(clip, pictures), embed_texts(clip, PROMPTS), embed_texts(ae80, PROMPTS)):
        assert vectors.dtype == torch.float32
        assert vectors.device.type == "cpu"
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3), atol=EXACT, rtol=0)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_batch_size_does_not_matter(clip, ae80, pictures, batch):
    torch.testing.assert_close(embed_images(clip, pictures, batch), embed_images(clip, pictures), atol=EXACT, rtol=0)
    for one in (clip, ae80):
        few, many = embed_texts(one, PROMPTS, batch), embed_texts(one, PROMPTS, 240)
        torch.testing.assert_close(few, many, atol=EXACT, rtol=0)


def test_a_repeated_text_gets_the_same_embedding_in_its_own_place(clip):
    vectors = embed_texts(clip, ["a dog", "a cat", "a dog"])
    assert torch.equal(vectors[0], vectors[2])
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3


def test_a_tensor_gives_what_the_same_picture_gives(clip, pictures):
    array = np.asarray(pictures[0], np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None]
    assert torch.equal(embed_images(clip, tensor), embed_images(clip, pictures[:1]))


def test_a_tensor_is_rounded_to_8_bits_not_cut(clip):
    between = torch.full((1, 3, 32, 32), 100.6 / 255)
    assert torch.equal(embed_images(clip, between), embed_images(clip, [Image.new("RGB", (32, 32), (101,) * 3)]))


@pytest.mark.parametrize("wrong", [2 * torch.rand(1, 3, 32, 32) - 1, 255 * torch.rand(1, 3, 32, 32)])
def test_a_tensor_outside_its_range_is_refused(clip, wrong):
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        embed_images(clip, wrong)


def test_nothing_to_embed_or_one_string_is_refused(clip, pictures):
    with pytest.raises(ValueError, match="at least one image or text"):
        embed_images(clip, [])
    with pytest.raises(ValueError, match="at least one image or text"):
        embed_texts(clip, [])
    with pytest.raises(ValueError, match="got the string 'a dog'"):
        embed_texts(clip, "a dog")
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        embed_images(clip, pictures, batch=0)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        embed_texts(clip, PROMPTS, batch=0)


def test_the_ensemble_is_the_renormalised_mean_of_its_80_wordings(ae80, folder):
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    for prompt, ours in zip(PROMPTS, embed_texts(ae80, PROMPTS), strict=True):
        total = torch.zeros(16)
        for template in open_clip.OPENAI_IMAGENET_TEMPLATES:
            text = template(prompt).replace("a a", "a").replace("the a", "a")
            with torch.no_grad():
                vector = model.encode_text(tokenize([text]))[0]
            total += vector / vector.norm()
        torch.testing.assert_close(ours, total / 80 / (total / 80).norm(), atol=EXACT, rtol=0)


def test_the_wordings_lose_their_double_articles():
    forms = wordings("a dog", "ae80")
    assert len(forms) == 80
    assert forms[:3] == ("a bad photo of a dog.", "a photo of many a dog.", "a sculpture of a dog.")
    assert forms[4] == "a low resolution photo of a dog."  # the a
    assert wordings("dog", "ae80")[4] == "a low resolution photo of the dog."
    assert wordings("an owl", "ae80")[0] == "a bad photo of an owl."
    assert wordings("a a dog", "plain") == ("a a dog",)


def test_the_wordings_keep_a_flaw_of_their_source():
    assert wordings("a pizza and a dog", "ae80")[0] == "a bad photo of a pizzand a dog."


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat and a dog", ("a cat", "a dog")),
        ("a frog with a crown", ("a frog", "a crown")),
        ("a cat with a bow and a dog", ("a cat with a bow", "a dog")),  # "and" first, wherever it stands
        ("a cat and a dog and a bird", ("a cat", "a dog")),  # the third is lost, as in the source
        ("a band without sand", None),  # parts of words
        ("a dog", None),
        ("", None),
    ],
)
def test_a_prompt_is_halved_around_and_else_around_with(prompt, expected):
    assert halves(prompt) == expected


def test_a_text_that_exceeds_the_context_is_counted(clip, emoji_tokenizer):
    fits = "dog " * (CONTEXT - 2)
    assert len(emoji_tokenizer(fits).input_ids) == CONTEXT  # with both ends
    assert truncated(clip, ["a dog", fits, fits + "dog", ""]) == [False, False, True, False]


def test_of_an_ensemble_the_longest_wording_counts(ae80):
    fits = "dog " * (CONTEXT - 2)
    assert truncated(ae80, ["a dog", fits]) == [False, True]


def test_a_text_of_10000_characters_is_cut_not_refused(clip, ae80):
    long = ("a cat and a dog " * 625)[:10_000]
    for one in (clip, ae80):
        assert truncated(one, [long]) == [True]
    cut = embed_texts(clip, [long, long[:2_000]])
    assert torch.equal(cut[0], cut[1])


def test_real_clips_tokenizer_counts_as_well(clip):
    real = replace(clip, tokenizer=open_clip.get_tokenizer("ViT-B-16"))
    assert truncated(real, ["dog " * (CONTEXT - 2), "dog " * (CONTEXT - 1), "x" * 10_000]) == [False, True, True]


def test_the_smaller_half_is_taken_image_by_image():
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    first, second = torch.tensor([[0.6, 0.8], [0.8, 0.6]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(min_half(image, first, second), torch.tensor([0.0, -1.0]))
    torch.testing.assert_close(clip_cos(image, first), torch.tensor([0.6, 0.8]))


@given(st.floats(-1, 1, width=32))
def test_views_are_made_of_the_raw_cosine(cosine):
    score = torch.tensor([cosine])
    assert percent(score).item() == pytest.approx(100 * cosine)
    assert hessel(score).item() == pytest.approx(2.5 * cosine if cosine > 0 else 0)


def test_a_scorer_that_reads_like_the_generator_is_noted():
    scorer = ClipProtocol("ViT-H-14", pretrained="laion2b_s32b_b79k")
    assert "text encoder of the generator" in str(circular(scorer, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"))
    assert circular(scorer, "openai/clip-vit-large-patch14") is None
    assert circular(ClipProtocol(), "openai/clip-vit-large-patch14") is None
    assert circular(ClipProtocol("ViT-L-14-quickgelu"), "openai/clip-vit-large-patch14")
    assert circular(ClipProtocol("/a/folder", pretrained=None), "") is None
