"""Features: torch-fidelity's Inception and a trunk of ours, the right weights, and the same numbers in any batch."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch_fidelity import FeatureExtractorInceptionV3, calculate_metrics
from torch_fidelity.datasets import ImagesPathDataset
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.utils import create_feature_extractor, prepare_input_from_descriptor
from torchvision.models import squeezenet1_1
from torchvision.transforms import Normalize

from metrics.features import SqueezeFeatures, extract, load_features, register, weights_of
from metrics.fid import kid
from metrics.protocols import FeatureProtocol


def pictures(count: int, seed: int = 1, height: int = 64, width: int = 64) -> torch.Tensor:
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def as_pil(pixels: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trunk of random weights, as a folder."""
    path = tmp_path_factory.mktemp("trunk")
    with torch.random.fork_rng():
        torch.manual_seed(4)
        save_file(squeezenet1_1(weights=None).features.state_dict(), path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def small(folder):
    return load_features(FeatureProtocol(checkpoint=str(folder)))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A cache of torch.hub with an Inception of random weights, and the SHA-256 of these."""
    home = tmp_path_factory.mktemp("hub")
    file = home / "hub" / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True)
    torch.save({}, file)

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):  # keeps what it was made with
            return None

    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = Untrained("untrained", ["2048"], feature_extractor_weights_path=str(file))
        for parameter in network.parameters():
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    torch.save(network.state_dict(), file)
    return home, sha256(file)


@pytest.fixture
def inception(hub, monkeypatch):
    """The protocol of that Inception, found where torch.hub looks."""
    monkeypatch.setenv("TORCH_HOME", str(hub[0]))
    return FeatureProtocol(weights=hub[1])


@pytest.fixture
def unchecked():
    """No shapes checked, as outside of tests: what is wrong must be seen by the function itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_features_are_the_means_of_the_trunks_last_maps_under_imagenets_normalisation(folder, small):
    images = pictures(3, height=48, width=80)
    trunk = squeezenet1_1(weights=None).features.eval()
    trunk.load_state_dict(load_file(folder / "model.safetensors"))
    normalise = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        expected = torch.stack([trunk(normalise(image / 255)[None])[0].flatten(1).mean(1) for image in images])
    found = extract(small, images)
    assert found.shape == (3, 512)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-7)])
def test_the_size_of_a_batch_moves_features_by_rounding_alone(small, dtype, tolerance):
    features = load_features(replace(small.protocol, dtype=dtype))
    images = pictures(7)
    whole = extract(features, images, batch=7)
    for batch in (1, 3, 32):
        found = extract(features, images, batch)
        assert np.abs(found - whole).max() < tolerance * np.abs(whole).max()
    assert np.array_equal(whole, extract(features, images, batch=7))


def test_in_float64_features_differ_from_float32s_by_its_rounding(small):
    exact = extract(load_features(replace(small.protocol, dtype="float64")), pictures(4))
    difference = np.abs(extract(small, pictures(4)) - exact).max()
    assert 0 < difference < 1e-5 * np.abs(exact).max()


def test_pil_images_and_tensors_have_the_same_features(small):
    images = pictures(3)
    assert np.array_equal(extract(small, images), extract(small, as_pil(images)))


def test_images_of_other_modes_are_seen_as_rgb(small):
    picture = as_pil(pictures(1))[0]
    clear = picture.convert("RGBA")
    grey = picture.convert("L")
    found = extract(small, [picture, clear, grey, grey.convert("RGB")])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[2], found[3])


def test_images_of_several_sizes_are_refused_unless_the_protocol_brings_them_to_one(small):
    images = as_pil(pictures(1)) + as_pil(pictures(1, height=80))
    with pytest.raises(ValueError, match=r"one size.*\(64, 64\), \(64, 80\)"):
        extract(small, images)
    assert extract(replace(small, protocol=replace(small.protocol, resolution=48)), images).shape == (2, 512)


def test_a_resolution_does_what_torch_fidelity_does_with_a_folder(small, tmp_path):
    images = as_pil(pictures(2, height=100, width=70)) + as_pil(pictures(1, height=33, width=90))
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    options = {"samples_resize_and_crop": 40, "verbose": False}
    found = prepare_input_from_descriptor({"input": str(tmp_path)}, **options)
    assert isinstance(found, ImagesPathDataset)
    theirs = torch.stack([found[index] for index in range(len(found))])
    assert theirs.shape == (3, 3, 40, 40)
    resized = replace(small, protocol=replace(small.protocol, resolution=40))
    assert np.array_equal(extract(resized, images), extract(small, theirs))


def test_a_resolution_holds_for_tensors_as_for_pil_images(small):
    images = pictures(2, height=100, width=70)
    resized = replace(small, protocol=replace(small.protocol, resolution=40))
    assert np.array_equal(extract(resized, images), extract(resized, as_pil(images)))


@pytest.mark.parametrize(
    ("images", "batch", "message"),
    [
        (pictures(1).float(), 32, "must be uint8"),
        (pictures(2)[:, :1], 32, "must be uint8 RGB"),
        (pictures(1)[0], 32, "must be uint8 RGB"),
        (pictures(1, height=31), 32, "32 pixels"),
        ([], 32, "at least one image"),
        (pictures(0), 32, "at least one image"),
        (pictures(1), 0, "batch must be at least 1"),
    ],
)
def test_images_that_have_no_features_are_refused(small, unchecked, images, batch, message):
    with pytest.raises(ValueError, match=message):
        extract(small, images, batch)


def test_a_loaded_protocol_says_which_weights_were_found(folder, small):
    assert small.protocol.weights == sha256(folder / "model.safetensors") == weights_of(small.protocol)
    assert small.protocol.fingerprint != FeatureProtocol(checkpoint=str(folder)).fingerprint


@pytest.mark.parametrize("use", [load_features, weights_of, register])
def test_weights_other_than_the_protocol_says_are_refused(folder, use):
    with pytest.raises(ValueError, match=r"model.safetensors must have SHA-256 0000"):
        use(FeatureProtocol(checkpoint=str(folder), weights="0" * 64))


@pytest.mark.parametrize("spoilt", ["missing", "more", "shape", "text"])
def test_weights_that_are_not_the_trunks_are_refused(folder, tmp_path, spoilt):
    weights = load_file(folder / "model.safetensors")
    if spoilt == "missing":
        del weights["3.squeeze.bias"]
    elif spoilt == "more":
        weights["13.weight"] = torch.zeros(1)
    elif spoilt == "shape":
        weights["3.squeeze.bias"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors")
    if spoilt == "text":
        (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="must hold the trunk of squeezenet1_1"):
        load_features(FeatureProtocol(checkpoint=str(tmp_path)))


def test_loading_draws_no_random_numbers(small):
    before = torch.get_rng_state()
    load_features(small.protocol)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("use", [load_features, weights_of, register])
def test_weights_that_are_not_here_are_named(tmp_path, monkeypatch, use):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"download it once from https://github.com/toshas/.*6726825d.pth"):
        use(FeatureProtocol())
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is not in .*give the path of a folder"):
        use(FeatureProtocol(checkpoint=str(tmp_path)))


def test_a_download_is_checked_and_put_where_torch_hub_looks(hub, tmp_path, monkeypatch):
    source = next((hub[0] / "hub" / "checkpoints").iterdir())
    monkeypatch.setattr("metrics.features.URL_INCEPTION_V3", source.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match="invalid hash value"):
        load_features(FeatureProtocol(), download=True)
    with pytest.raises(FileNotFoundError):
        weights_of(FeatureProtocol())
    assert load_features(FeatureProtocol(weights=hub[1]), download=True).protocol.weights == hub[1]


def test_an_inception_that_is_not_the_released_one_must_be_named_by_its_hash(inception):
    with pytest.raises(ValueError, match="must have SHA-256 6726825d"):
        load_features(replace(inception, weights=None))
    assert load_features(inception).protocol == inception


def test_inception_in_float64_computes_in_float64(inception):
    features = load_features(replace(inception, dtype="float64"))
    assert {parameter.dtype for parameter in features.extractor.parameters()} == {torch.float64}
    images = pictures(1)
    exact, single = extract(features, images), extract(load_features(inception), images)
    assert exact.shape == (1, 2048)
    assert 0 < np.abs(exact - single).max() < 1e-4 * np.abs(exact).max()


def test_inceptions_kid_is_that_of_the_fidelity_command(inception, hub, tmp_path):
    # Not its FID: the eigenvalues of 2048 channels take the command half a minute; see test_fid.py for ours.
    sets = [pictures(3, seed) for seed in (1, 2)]
    sets[1] //= 2
    for name, images in zip("ab", sets, strict=True):
        (tmp_path / name).mkdir()
        for index, image in enumerate(as_pil(images)):
            image.save(tmp_path / name / f"{index}.png")
    command = [str(Path(sys.executable).with_name("fidelity")), "--kid", "--cpu", "--json", "--silent"]
    command += ["--kid-subset-size", "2", "--kid-subsets", "10", "--no-cache", "--save-cpu-ram"]
    command += ["--input1", str(tmp_path / "a"), "--input2", str(tmp_path / "b"), "--feature-extractor-weights-path"]
    command += [str(next((hub[0] / "hub" / "checkpoints").iterdir()))]
    run = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    theirs = json.loads(run.stdout)
    features = load_features(inception)
    x, y = (extract(features, images) for images in sets)
    mean, deviation = kid(x, y, np.random.RandomState(2020), subsets=10, subset_size=2)
    assert theirs["kernel_inception_distance_mean"] == pytest.approx(mean, rel=1e-3)  # they: in float32
    assert theirs["kernel_inception_distance_std"] == pytest.approx(deviation, rel=1e-3)


def test_to_register_a_trunk_again_is_no_error_also_when_it_has_moved(folder, tmp_path):
    name = register(FeatureProtocol(checkpoint=str(folder)))
    assert name == f"attnreg-squeezenet-{sha256(folder / 'model.safetensors')[:12]}"
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert register(FeatureProtocol(checkpoint=str(moved))) == name
    extractor = create_feature_extractor(name, ["512"], cuda=False, verbose=False)
    assert extractor.file == moved / "model.safetensors"
    register(FeatureProtocol(checkpoint=str(folder)))


def test_a_registered_trunk_does_not_take_other_weights_under_its_name(folder, tmp_path):
    name = register(FeatureProtocol(checkpoint=str(folder)))
    weights = load_file(folder / "model.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({key: value + 1 for key, value in weights.items()}, other)
    with pytest.raises(ValueError, match=r"other.safetensors must have SHA-256"):
        create_feature_extractor(name, ["512"], cuda=False, verbose=False, feature_extractor_weights_path=str(other))


def test_inception_is_known_to_torch_fidelity_already(inception):
    assert register(inception) == "inception-v3-compat"


def test_an_option_that_torch_fidelity_does_not_know_is_refused(folder):
    name = register(FeatureProtocol(checkpoint=str(folder)))
    options = {"fid": True, "feature_extractor": name, "cuda": False, "verbose": False}
    images = torch.utils.data.TensorDataset(pictures(2))
    with pytest.raises(ValueError, match=r"options must be torch-fidelity's, got input3"):
        calculate_metrics(input1=images, input2=images, input3=images, **options)


def test_a_trunk_without_weights_is_refused():
    with pytest.raises(ValueError, match="must name a file"):
        SqueezeFeatures("nothing", ["512"])


@pytest.mark.parametrize("wrong", [{"dtype": "float16"}, {"resolution": 0}])
def test_impossible_protocols_are_refused(unchecked, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FeatureProtocol(**wrong)
