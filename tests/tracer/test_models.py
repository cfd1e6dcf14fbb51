"""Names of models, folders, the hub's cache and single files; nothing here asks a network."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import families
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from huggingface_hub import constants
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache
from huggingface_hub.cli.hf import app
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from single_file import averaged, single_file

from tracer import recording
from tracer.folders import emoji_world
from tracer.models import known_models, load_pipeline, model_name
from tracer.store import Store

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ON_THE_HUB = {name: model for name, model in known_models().items() if name != "emoji"}


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def folder(tiny_pipe, tmp_path_factory) -> Path:
    """A small pipeline in diffusers' layout; no test may change it."""
    path = tmp_path_factory.mktemp("folder") / "tiny"
    tiny_pipe.save_pretrained(path)
    return path


def cached(cache: Path, hub_id: str, commit: str, folder: Path, **kwargs) -> Path:
    """Lay a folder into a cache of the hub, as its newest commit; return it there."""
    repo = cache / f"models--{hub_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(folder, repo / "snapshots" / commit, **kwargs))


def listed(snapshot: Path) -> None:
    """Note which files a commit has, as the hub's client does when it fetches them."""
    files = [path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()]
    entry = TreeCacheEntry(size=1, blob_id="0" * 40, lfs_sha256=None, lfs_size=None, xet_hash=None)
    write_tree_cache(str(snapshot.parent.parent), snapshot.name, dict.fromkeys(files, entry))


def image_of(pipe: DiffusionPipeline) -> np.ndarray:
    chance = torch.Generator().manual_seed(3)
    return pipe("a cat", num_inference_steps=2, generator=chance, output_type="np").images[0]


def assert_same_weights(pipe: DiffusionPipeline, other: DiffusionPipeline) -> None:
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(each, name).state_dict() for each in (pipe, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_a_short_name_is_pinned_to_a_commit_and_described(name):
    model = ON_THE_HUB[name]
    assert re.fullmatch(r"[0-9a-f]{40}", model.revision)
    assert re.fullmatch(r"[\w-]+/[\w.-]+", model.hub_id)
    assert model.license.startswith("CreativeML Open")
    assert "Stable Diffusion" in model.what
    with pytest.raises(FileNotFoundError, match=rf"model '{name}' \({model.hub_id}, revision {model.revision}\)"):
        load_pipeline(name)


def test_the_table_of_short_names_is_a_copy():
    known_models().clear()
    assert list(known_models()) == ["emoji", "sd14", "sd15", "sd2", "sd21", "sdxl"]


@pytest.mark.parametrize(
    ("gone", "instead"),
    [
        ("runwayml/stable-diffusion-v1-5", "'sd15'"),
        ("runwayml/stable-diffusion-v1-5@main", "'sd15'"),
        ("stabilityai/stable-diffusion-2-base", "'sd2'"),
        ("stabilityai/stable-diffusion-2-1-base", "'sd21'"),
        ("StabilityAI/stable-diffusion-2-1", "'sd21' (its base"),
    ],
)
def test_a_model_that_left_the_hub_is_not_replaced_but_named(gone, instead):
    with pytest.raises(FileNotFoundError, match=r"no longer on the hub; give " + re.escape(instead)):
        load_pipeline(gone)


@pytest.mark.parametrize("name", ["sd16", "./nowhere", "owner/name@", "a/b/c", "https://example.org/model"])
def test_a_name_of_no_kind_is_told_the_kinds(name):
    with pytest.raises(FileNotFoundError, match=r"neither 'emoji', nor a local folder.*'sd14', 'sd15', 'sd2'"):
        load_pipeline(name)


def test_a_folder_without_an_index_is_no_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no model_index\.json"):
        load_pipeline(tmp_path)


def test_a_folder_that_lacks_weights_is_said_to(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "part", ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
    with pytest.raises(FileNotFoundError, match=r"is no whole pipeline: .*diffusion_pytorch_model\.safetensors"):
        load_pipeline(tmp_path / "part")


@pytest.mark.parametrize("missing", ["tokenizer", "tokenizer.json"])
def test_a_folder_without_the_words_of_its_tokenizer_is_refused(missing, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "part", ignore=shutil.ignore_patterns(missing, "merges.txt"))
    with pytest.raises(FileNotFoundError, match=r"is no whole pipeline: tokenizer has no vocabulary"):
        load_pipeline(tmp_path / "part")


def message_of(name: str, **kwargs) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        load_pipeline(name, **kwargs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "hub_id", "revision"),
    [
        ("sd15", ON_THE_HUB["sd15"].hub_id, ON_THE_HUB["sd15"].revision),
        (f"owner/name@{COMMIT}", "owner/name", COMMIT),
        ("owner/name@v2.0", "owner/name", "v2.0"),
    ],
)
def test_offline_a_missing_model_says_what_was_looked_for_where_and_what_to_run(name, hub_id, revision, hub_cache):
    message = message_of(name)
    assert f"{hub_id}, revision {revision}" in message
    assert f"cache {hub_cache} (" in message
    assert "HF_HUB_OFFLINE=1" in message
    assert f"`hf download {hub_id} --revision {revision} --local-dir {hub_id.split('/')[1]} " in message
    assert message.endswith("and give that folder as the name")


def test_without_a_revision_none_is_in_the_command():
    message = message_of("owner/name")
    assert "revision main" in message
    assert "`hf download owner/name --local-dir name --include" in message


def test_the_command_is_one_that_the_hubs_own_program_takes():
    command = shlex.split(message_of("sd14").split("`")[1])
    with pytest.raises(LocalEntryNotFoundError):  # and not a complaint about an option
        app.main(command[1:], standalone_mode=False)


def test_the_command_fetches_the_parts_and_neither_pickles_nor_single_files():
    patterns = re.findall(r"--include '(.*?)'", message_of("sd14"))
    wanted = [
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json",
        "tokenizer/merges.txt", "tokenizer_3/spiece.model", "text_encoder/model.fp16.safetensors",
    ]  # fmt: skip
    unwanted = ["v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "unet/diffusion_pytorch_model.bin", "unet/model.onnx"]
    assert list(filter_repo_objects(wanted + unwanted, allow_patterns=patterns)) == wanted


def test_without_a_network_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing answers
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    message = message_of(f"owner/name@{COMMIT}")
    assert "HF_HUB_OFFLINE" not in message
    assert "nor can it be fetched: [Errno" in message


@pytest.mark.parametrize("has_listing", [True, False])
@pytest.mark.parametrize("name", [f"owner/name@{COMMIT}", "owner/name", "owner/name@main"])
def test_a_cached_model_loads_offline_and_keeps_its_commit(name, has_listing, folder, hub_cache, tiny_pipe):
    snapshot = cached(hub_cache, "owner/name", COMMIT, folder)
    if has_listing:
        listed(snapshot)
    pipe = load_pipeline(name)
    assert_same_weights(pipe, tiny_pipe)
    assert model_name(pipe) == pipe.name_or_path == f"owner/name@{COMMIT}"
    assert model_name(families.img2img_of(pipe)) == f"owner/name@{COMMIT}"


def test_a_short_name_loads_its_own_commit_from_the_cache(folder, hub_cache, tiny_pipe, tmp_path):
    model = ON_THE_HUB["sd21"]
    cached(hub_cache, model.hub_id, model.revision, folder)
    pipe = load_pipeline("sd21", dtype=torch.float16)
    assert pipe.unet.dtype == torch.float16
    pipe = load_pipeline("sd21")
    with recording(pipe, tmp_path / "run.duckdb"):
        image_of(pipe)
    with Store.open(tmp_path / "run.duckdb") as store:
        assert store.sql("SELECT model FROM runs").model.tolist() == [f"{model.hub_id}@{model.revision}"]


def test_another_commit_in_the_cache_is_not_taken_for_the_pinned_one(folder, hub_cache):
    cached(hub_cache, ON_THE_HUB["sd21"].hub_id, COMMIT, folder)
    assert ON_THE_HUB["sd21"].revision in message_of("sd21")


def test_a_model_that_diffusers_loaded_is_called_by_its_commit_too(folder, hub_cache):
    cached(hub_cache, "owner/name", COMMIT, folder)
    pipe = DiffusionPipeline.from_pretrained("owner/name")
    assert pipe.name_or_path == "owner/name"
    assert model_name(pipe) == f"owner/name@{COMMIT}"


def test_other_models_are_called_by_their_path_or_are_unnamed(folder, tiny_pipe):
    assert model_name(load_pipeline()) == "emoji"
    assert model_name(load_pipeline(folder)) == str(folder)
    assert model_name(tiny_pipe) == "unnamed"


def test_half_a_model_in_the_cache_says_what_it_lacks(folder, hub_cache):
    cached(hub_cache, "owner/name", COMMIT, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    message = message_of("owner/name")
    assert "what is there is not all (Error no file named model.safetensors" in message
    assert "`hf download owner/name" in message


@pytest.mark.parametrize("has_listing", [True, False])
def test_weights_that_are_pickles_alone_are_refused(has_listing, folder, hub_cache):
    snapshot = cached(hub_cache, "owner/name", COMMIT, folder)
    for weights in snapshot.rglob("*.safetensors"):
        torch.save(load_file(weights), weights.with_name("diffusion_pytorch_model.bin"))
        weights.unlink()
    if has_listing:
        listed(snapshot)
    with pytest.raises(ValueError, match=r"model 'owner/name' must be safetensors, got pickles alone"):
        load_pipeline("owner/name")


def test_the_emoji_worlds_weights_are_laid_out_for_the_cpu_and_mean_the_same(folder):
    pipe, plain = load_pipeline(), DiffusionPipeline.from_pretrained(emoji_world() / "sd")
    latents, text = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 77, 128)
    with torch.no_grad():
        noise, expected = (one.unet(latents, 500, text).sample for one in (pipe, plain))
        image, decoded = (one.vae.decode(latents).sample for one in (pipe, plain))
    torch.testing.assert_close(noise, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(image, decoded, rtol=0, atol=2e-5)
    weights = (pipe.unet.conv_in.weight, plain.unet.conv_in.weight, load_pipeline(folder).unet.conv_in.weight)
    assert [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights] == [True, False, False]


@pytest.fixture(scope="module")
def half(folder, tmp_path_factory) -> Path:
    """The small pipeline in half precision, under the names of that variant."""
    path = tmp_path_factory.mktemp("half") / "tiny"
    load_pipeline(folder, dtype=torch.float16).save_pretrained(path, variant="fp16")
    assert len(list(path.rglob("*.fp16.safetensors"))) == len(list(path.rglob("*.safetensors"))) == 3
    return path


def test_a_folder_of_half_precision_alone_is_cast_to_what_is_asked(half, tiny_pipe):
    pipe = load_pipeline(half)
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32
    weight = tiny_pipe.unet.conv_in.weight
    assert torch.equal(pipe.unet.conv_in.weight, weight.half().float())
    assert not torch.equal(pipe.unet.conv_in.weight, weight)


@pytest.mark.parametrize("has_listing", [True, False])
def test_so_is_one_in_the_cache(has_listing, half, hub_cache):
    snapshot = cached(hub_cache, "owner/name", COMMIT, half)
    if has_listing:
        listed(snapshot)
    assert load_pipeline("owner/name").unet.dtype == torch.float32


def test_full_precision_is_taken_where_both_are_there(folder, half, tmp_path, tiny_pipe):
    shutil.copytree(folder, tmp_path / "both")
    shutil.copytree(half, tmp_path / "both", dirs_exist_ok=True)
    assert_same_weights(load_pipeline(tmp_path / "both"), tiny_pipe)


@pytest.fixture(scope="module")
def sd1(emoji_tokenizer):
    return families.sd1(emoji_tokenizer)


@pytest.fixture(scope="module")
def config(sd1, tmp_path_factory) -> Path:
    """The configurations and tokenizers of ``sd1``, without weights."""
    path = tmp_path_factory.mktemp("config") / "sd1"
    sd1.save_pretrained(path)
    for weights in path.rglob("*.safetensors"):
        weights.unlink()
    return path


@pytest.fixture(scope="module")
def checkpoint(sd1, tmp_path_factory) -> Path:
    """``sd1`` as a single file."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_file(single_file(sd1, "sd1"), path)
    return path


def test_a_single_file_draws_the_same_image_as_the_pipeline_that_it_was_made_from(checkpoint, config, sd1):
    pipe = load_pipeline(str(checkpoint), config=str(config))
    assert_same_weights(pipe, sd1)
    assert np.array_equal(image_of(pipe), image_of(sd1))
    assert model_name(pipe) == str(checkpoint)


def test_a_single_file_in_half_precision_is_cast_to_what_is_asked(config, sd1, tmp_path):
    halves = {name: tensor.half() for name, tensor in single_file(sd1, "sd1").items()}
    save_file(halves, tmp_path / "half.safetensors")
    pipe = load_pipeline(tmp_path / "half.safetensors", config=config)
    assert torch.equal(pipe.unet.conv_in.weight, sd1.unet.conv_in.weight.half().float())
    pipe = load_pipeline(tmp_path / "half.safetensors", dtype=torch.bfloat16, config=config)
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.bfloat16


def test_of_a_single_file_with_averaged_weights_these_are_taken(config, sd1, tmp_path):
    tensors = single_file(sd1, "sd1")
    raw = {name: torch.zeros_like(t) if "diffusion_model" in name else t for name, t in tensors.items()}
    save_file(raw | averaged(tensors), tmp_path / "full.safetensors")
    assert_same_weights(load_pipeline(tmp_path / "full.safetensors", config=config), sd1)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_the_families_are_told_apart_by_their_keys(family, emoji_tokenizer, tmp_path):
    pipe = getattr(families, family)(*[emoji_tokenizer] * (1 + (family == "sdxl")))
    pipe.save_pretrained(tmp_path / "config")
    save_file(single_file(pipe, family), tmp_path / "model.safetensors")
    loaded = load_pipeline(tmp_path / "model.safetensors", config=tmp_path / "config")
    assert type(loaded) is type(pipe)
    assert_same_weights(loaded, pipe)
    assert np.array_equal(image_of(loaded), image_of(pipe))
    if isinstance(loaded, StableDiffusionXLPipeline):
        theirs = pipe.text_encoder_2.state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in loaded.text_encoder_2.state_dict().items())


def test_without_a_config_that_of_the_family_is_taken_from_the_cache(checkpoint, config, hub_cache, sd1):
    model = ON_THE_HUB["sd15"]
    cached(hub_cache, model.hub_id, model.revision, config)
    assert_same_weights(load_pipeline(checkpoint), sd1)
    assert_same_weights(load_pipeline(checkpoint, config="sd15"), sd1)


def test_without_one_in_the_cache_the_error_says_what_to_fetch_and_where_to_put_it(checkpoint, hub_cache):
    message = message_of(str(checkpoint))
    model = ON_THE_HUB["sd15"]
    assert f"{model.hub_id}, revision {model.revision}" in message
    assert str(hub_cache) in message
    assert f"`hf download {model.hub_id} --revision {model.revision} --local-dir" in message
    assert "*.safetensors" not in message
    assert message.endswith("give that folder as config=")


def test_a_file_of_sd_2_needs_a_config_as_it_does_not_say_what_it_predicts(sd1, tmp_path):
    save_file(single_file(sd1, "sd2"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"config must be given for .*Stable Diffusion 2\.x"):
        load_pipeline(tmp_path / "model.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth", ".pkl"])
def test_a_pickle_is_refused(suffix, tmp_path):
    (tmp_path / f"model{suffix}").touch()
    with pytest.raises(ValueError, match=r"name must be a \.safetensors file, got a pickle"):
        load_pipeline(tmp_path / f"model{suffix}")


def test_with_a_command_that_converts_it(config, sd1, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": single_file(sd1, "sd1"), "epoch": 3}, path)
    with pytest.raises(ValueError, match="convert it with") as caught:
        load_pipeline(path, config=config)
    command = shlex.split(str(caught.value).split("`")[1])
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=60)
    assert_same_weights(load_pipeline(tmp_path / "model.safetensors", config=config), sd1)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none\.safetensors'"):
        load_pipeline(tmp_path / "none.safetensors")


def test_a_file_of_another_kind_is_refused(config, sd1, tmp_path):
    (tmp_path / "noise.safetensors").write_bytes(b"not a header at all")
    with pytest.raises(ValueError, match=r"must be a \.safetensors file that can be read"):
        load_pipeline(tmp_path / "noise.safetensors", config=config)
    tensors = single_file(sd1, "sd1")
    for part in ("model.diffusion_model.", "first_stage_model.", "cond_stage_model."):
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(part)}
        save_file(rest, tmp_path / "rest.safetensors")
        with pytest.raises(ValueError, match=r"must be a whole checkpoint"):
            load_pipeline(tmp_path / "rest.safetensors", config=config)


def amended(config: Path, to: Path, part: str, **changes) -> Path:
    """A copy of a folder of configurations with another one of a part."""
    shutil.copytree(config, to)
    path = to / part
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return to


def test_a_config_that_does_not_fit_is_refused(checkpoint, config, tmp_path):
    other = amended(config, tmp_path / "xl", "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(ValueError, match=r"config must be of a StableDiffusionPipeline"):
        load_pipeline(checkpoint, config=other)
    other = amended(config, tmp_path / "wide", "unet/config.json", cross_attention_dim=48)
    with pytest.raises(ValueError, match=r"does not fit config .*expected shape torch.Size\(\[16, 48\]\).*32\]\)$"):
        load_pipeline(checkpoint, config=other)
    other = amended(config, tmp_path / "deep", "text_encoder/config.json", num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"the file lacks encoder\.layers\.2"):
        load_pipeline(checkpoint, config=other)


def test_a_config_that_would_leave_part_of_the_unet_out_is_refused(checkpoint, config, tmp_path):
    tensors = load_file(checkpoint)
    tensors["model.diffusion_model.input_blocks.9.0.op.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"some of its UNet would be left out"):
        load_pipeline(tmp_path / "more.safetensors", config=config)


def test_a_config_that_is_not_whole_is_refused(checkpoint, config, tmp_path, hub_cache):
    tokenizer, scheduler = (shutil.ignore_patterns(part) for part in ("tokenizer", "scheduler"))
    shutil.copytree(config, tmp_path / "mute", ignore=tokenizer)
    with pytest.raises(FileNotFoundError, match=r"config folder .* is not whole: tokenizer has no vocabulary"):
        load_pipeline(checkpoint, config=tmp_path / "mute")
    shutil.copytree(config, tmp_path / "part", ignore=scheduler)
    with pytest.raises(FileNotFoundError, match=r"config folder .* is not whole: .*scheduler_config\.json"):
        load_pipeline(checkpoint, config=tmp_path / "part")
    cached(hub_cache, "owner/name", COMMIT, config, ignore=tokenizer)
    message = message_of(str(checkpoint), config="owner/name")
    assert "what is there is not all (tokenizer has no vocabulary)" in message


def test_a_config_is_for_single_files_alone(folder):
    with pytest.raises(ValueError, match=r"config must be left out unless name is a \.safetensors file"):
        load_pipeline(folder, config=folder)


def test_a_known_model_cannot_be_changed():
    with pytest.raises(AttributeError, match="cannot assign"):
        known_models()["sd15"].revision = "main"
    assert replace(known_models()["sd15"], revision="main") != known_models()["sd15"]


def test_the_page_on_models_has_the_same_table():
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(.+)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert rows == [(name, model.hub_id, model.revision) for name, model in ON_THE_HUB.items()]
