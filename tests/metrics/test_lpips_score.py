"""LPIPS: the library's own numbers and torchmetrics', and what is refused on the way."""

import shutil
import warnings
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import jaxtyping
import lpips
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as torchmetrics_lpips

from metrics import lpips_score
from metrics.lpips_score import TRUNKS, distances, load_lpips, metric_name, weights_of
from metrics.protocols import RELEASED, LpipsProtocol

EXACT = 1e-6
TORCHMETRICS = 1e-6  # it adds 1e-8 under the root of the norm, lpips 1e-10 outside: seen only where features are near 0


def trunk(net: str) -> dict[str, torch.Tensor]:
    """Random weights as torchvision stores them; of the classifier, which is not used, one number is stored."""
    with torch.device("meta"):
        shapes = {"alex": torchvision.models.alexnet, "squeeze": torchvision.models.squeezenet1_1}[net]().state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, like in shapes.items():
        if name.startswith("features."):
            weights[name] = torch.randn(like.shape, generator=generator) * (2 / max(1, like[0].numel())) ** 0.5
        else:
            weights[name] = torch.zeros(1).expand(like.shape)
    return weights


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A cache of torchvision's with random trunks under their released names."""
    before, folder = torch.hub._hub_dir, tmp_path_factory.mktemp("hub")  # None where TORCH_HOME decides: keep it so
    torch.hub.set_dir(folder)
    (folder / "checkpoints").mkdir()
    for net in ("alex", "squeeze"):
        torch.save(trunk(net), folder / "checkpoints" / Path(TRUNKS[net]).name)
    yield folder / "checkpoints"
    torch.hub._hub_dir = before


@pytest.fixture(scope="module")
def networks(hub):
    """Our networks of these trunks, from files whose names begin with their hash."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for net in ("alex", "squeeze"):
            stem, _, _ = Path(TRUNKS[net]).stem.rpartition("-")
            stored = hub / Path(TRUNKS[net]).name
            name = f"{stem}-{sha256(stored.read_bytes()).hexdigest()[:8]}.pth"
            shutil.copy(stored, hub / name)
            patch.setitem(lpips_score.TRUNKS, net, f"https://nowhere/{name}")
            found[net] = load_lpips(LpipsProtocol(net=net))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A trunk of ours, by the names of `squeezenet1_1().features`."""
    path = tmp_path_factory.mktemp("features")
    weights = {name.removeprefix("features."): value for name, value in trunk("squeeze").items()}
    save_file({n: w for n, w in weights.items() if not n.startswith("classifier")}, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def protocol(folder) -> LpipsProtocol:
    return LpipsProtocol(str(folder), net="squeeze", heads=False, world="emoji")


@pytest.fixture(scope="module")
def tiny(protocol):
    return load_lpips(protocol)


@pytest.fixture
def unchecked():
    """What a user gets, who has no checks of types."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pictures(seed: int, *sizes: int) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for size in sizes]


def pairs(seed: int = 0, count: int = 3, size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, size, size, generator=generator)
    strength = torch.linspace(0.2, 1, count)[:, None, None, None]
    other = torch.rand(count, 3, size, size, generator=generator)
    return images, torch.lerp(images, other, strength)


def library(net: str, **options) -> lpips.LPIPS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision's, about how lpips asks for weights
        return lpips.LPIPS(net=net, verbose=False, **options)


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_distances_are_the_librarys_own(networks, net):
    images, references = pairs()
    with torch.no_grad():
        expected = library(net)(2 * images - 1, 2 * references - 1).flatten()
    torch.testing.assert_close(distances(networks[net], images, references), expected, atol=EXACT, rtol=0)
    assert expected.min() > 1e-3
    assert expected.diff().min() > 0  # the stronger the change, the further


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_distances_are_those_of_torchmetrics_up_to_its_epsilon(networks, net):
    images, references = pairs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torchmetrics_lpips(images, references, net, reduction="none", normalize=True)
    torch.testing.assert_close(distances(networks[net], images, references), expected, atol=TORCHMETRICS, rtol=0)


def test_a_trunk_of_ours_gives_what_the_library_gives_for_it(tiny, folder):
    weights, model = load_file(folder / "model.safetensors"), library("squeeze", lpips=False, pnet_rand=True)
    with torch.no_grad():
        for name, value in model.net.named_parameters():
            value.copy_(weights[name.split(".", 1)[1]])
        images, references = pairs()
        expected = model(images, references, normalize=True).flatten()
    torch.testing.assert_close(distances(tiny, images, references), expected, atol=EXACT, rtol=0)
    assert expected.min() > 1e-3


def test_its_distances_are_sums_over_layers_worked_out_slowly(tiny, folder):
    features = torchvision.models.squeezenet1_1().features.eval()
    features.load_state_dict(load_file(folder / "model.safetensors"))
    images, references = pairs()
    shift, scale = (torch.tensor(x).view(1, 3, 1, 1) for x in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    a, b = ((2 * x - 1 - shift) / scale for x in (images, references))
    expected = torch.zeros(3)
    with torch.no_grad():
        for number, layer in enumerate(features):
            a, b = layer(a), layer(b)
            if number in (1, 4, 7, 9, 10, 11, 12):  # the last of each slice
                units = [x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b)]
                expected += (units[0] - units[1]).square().sum(1).mean((1, 2))
    torch.testing.assert_close(distances(tiny, images, references), expected, atol=1e-5, rtol=0)


def test_the_metric_of_a_trunk_of_ours_is_never_called_lpips(protocol):
    assert metric_name(protocol) == "lpips-tiny"
    assert metric_name(replace(protocol, world="real")) == "lpips-tiny"
    assert {metric_name(one) for one in RELEASED.values() if isinstance(one, LpipsProtocol)} == {"lpips"}


def test_the_protocol_comes_back_with_the_hash_of_the_trunk(tiny, protocol, folder):
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert tiny.protocol == replace(protocol, weights=digest)
    assert weights_of(protocol) == digest
    assert load_lpips(tiny.protocol).protocol == tiny.protocol


def test_other_weights_than_the_protocol_says_are_refused(protocol):
    for look in (weights_of, load_lpips):
        with pytest.raises(ValueError, match="SHA-256 0000"):
            look(replace(protocol, weights="0" * 64))


def test_a_released_trunk_that_is_not_what_its_name_says_is_refused(hub):
    for look in (weights_of, load_lpips):
        with pytest.raises(ValueError, match="SHA-256 that begins with b8a52dc0"):
            look(LpipsProtocol(net="squeeze"))  # random weights under the released name


@pytest.mark.parametrize(("net", "file"), [("alex", "alexnet-owt-7be5be79.pth"), ("vgg", "vgg16-397923af.pth")])
def test_a_released_trunk_that_is_not_here_names_what_to_download(tmp_path, monkeypatch, net, file):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for look in (weights_of, load_lpips):
        with pytest.raises(
            FileNotFoundError, match=f"download https://download.pytorch.org/models/{file} to {tmp_path}"
        ):
            look(LpipsProtocol(net=net))
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_trunk_is_named(tmp_path, protocol):
    for look in (weights_of, load_lpips):
        with pytest.raises(FileNotFoundError, match=r"holds no trunk: no model\.safetensors"):
            look(replace(protocol, checkpoint=str(tmp_path)))


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


WRONG = {
    "one is missing": (lambda w: without(w, "0.bias"), r"differs in \['0\.bias'\]"),
    "one is too many": (lambda w: w | {"13.weight": torch.zeros(1)}, r"differs in \['13\.weight'\]"),
    "all have other names": (lambda w: {f"features.{n}": x for n, x in w.items()}, "differs in"),
    "one has another shape": (lambda w: w | {"0.bias": torch.zeros(3)}, "size mismatch"),
    "one could be broadcast": (lambda w: w | {"0.bias": torch.zeros(1)}, "size mismatch"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_is_no_such_trunk_is_refused(tmp_path, protocol, folder, wrong):
    spoil, message = WRONG[wrong]
    save_file(spoil(load_file(folder / "model.safetensors")), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"(?s)must hold the weights of the trunk.*{message}"):
        load_lpips(replace(protocol, checkpoint=str(tmp_path)))


def test_a_file_that_holds_no_weights_is_refused(tmp_path, hub, protocol, monkeypatch):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="must hold weights"):
        load_lpips(replace(protocol, checkpoint=str(tmp_path)))
    (hub / "page-.pth").write_text("<html>")
    monkeypatch.setitem(lpips_score.TRUNKS, "squeeze", "https://nowhere/page-.pth")
    with pytest.raises(ValueError, match="must hold weights"):
        load_lpips(LpipsProtocol(net="squeeze"))


def test_loading_leaves_the_global_generator_alone_and_the_weights_frozen(protocol):
    before = torch.random.get_rng_state()
    model = load_lpips(protocol).model
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module.training for module in model.modules())
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.float32, False)}


@pytest.mark.parametrize("wrong", [lambda x: 2 * x - 1, lambda x: 255 * x], ids=["-1 to 1", "0 to 255"])
def test_a_tensor_outside_its_range_is_refused_on_either_side(tiny, wrong):
    images, references = pairs()
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        distances(tiny, wrong(images), references)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        distances(tiny, images, wrong(references))


def test_the_wrong_range_would_give_another_distance(tiny):
    images, references = pairs()
    with torch.no_grad():
        unscaled = tiny.model(images, references).flatten()
    assert (distances(tiny, images, references) - unscaled).abs().min() > 1e-3


def test_equal_images_have_distance_zero(tiny, networks):
    images, _ = pairs()
    for one in (tiny, *networks.values()):
        assert distances(one, images, images.clone()).tolist() == [0, 0, 0]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_distances_are_symmetric_and_never_negative(tiny, networks, seed):
    images, references = pairs(seed, size=32)
    for one in (tiny, *networks.values()):
        there, back = distances(one, images, references), distances(one, references, images)
        assert there.min() >= 0
        torch.testing.assert_close(there, back, atol=EXACT, rtol=0)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_batch_size_does_not_matter(tiny, networks, batch):
    for one in (tiny, networks["alex"]):
        few, many = distances(one, *pairs(), batch), distances(one, *pairs())
        torch.testing.assert_close(few, many, atol=EXACT, rtol=0)


def test_pairs_of_different_sizes_come_back_in_their_order(tiny):
    sizes = (32, 48, 32, 40)
    images, references = pictures(0, *sizes), pictures(1, *sizes)
    alone = [distances(tiny, [a], [b]) for a, b in zip(images, references, strict=True)]
    torch.testing.assert_close(distances(tiny, images, references), torch.cat(alone), atol=EXACT, rtol=0)
    assert torch.cat(alone).unique().numel() == 4


def test_a_tensor_gives_what_the_same_picture_gives(tiny):
    images, references = pictures(0, 32, 32), pictures(1, 32, 32)
    tensors = [
        torch.stack([torch.from_numpy(np.asarray(one, np.float32) / 255).permute(2, 0, 1) for one in side])
        for side in (images, references)
    ]
    assert torch.equal(distances(tiny, *tensors), distances(tiny, images, references))


def test_a_pair_of_two_sizes_is_refused(tiny):
    with pytest.raises(ValueError, match="must have one size, pair 1 has 32x32, 48x48"):
        distances(tiny, pictures(0, 32, 32), pictures(1, 32, 48))


def test_one_reference_for_many_images_is_refused(tiny):
    with pytest.raises(ValueError, match=r"one per image \(2\), got 1"):
        distances(tiny, pictures(0, 32, 32), pictures(1, 32))


def test_images_too_small_for_the_network_are_refused(tiny, networks):
    for one in (tiny, *networks.values()):
        assert len(distances(one, pictures(0, 32), pictures(1, 32))) == 1
        with pytest.raises(ValueError, match=r"at least 32 pixels .* got 31"):
            distances(one, pictures(0, 31), pictures(1, 31))


def test_no_batch_is_refused_and_no_images_have_no_distances(tiny):
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        distances(tiny, *pairs(), batch=0)
    assert distances(tiny, [], []).shape == (0,)


def test_a_resolution_resizes_both_as_pillow_does(tiny, protocol):
    small = replace(tiny, protocol=replace(protocol, resolution=32))
    images, references = pictures(0, 80, 16), pictures(1, 80, 16)
    resized = [[one.resize((32, 32), Image.Resampling.BILINEAR) for one in side] for side in (images, references)]
    ours, expected = distances(small, images, references), distances(tiny, *resized)
    torch.testing.assert_close(ours, expected, atol=0, rtol=0.01)  # Pillow rounds to 8 bits


def test_a_resolution_below_what_the_network_needs_is_refused(tiny, protocol):
    with pytest.raises(ValueError, match=r"at least 32 pixels .* got 24"):
        distances(replace(tiny, protocol=replace(protocol, resolution=24)), *pairs())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"net": "vgg19"}, "net must be one of alex, vgg, squeeze, got 'vgg19'"),
        ({"heads": False}, "heads must be True for the released networks"),
        ({"checkpoint": "a/folder"}, "heads must be True for the released networks, False for ours, got True"),
        ({"resolution": 0}, "resolution must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_a_protocol_is_refused(unchecked, wrong, message):
    with pytest.raises(ValueError, match=message):
        LpipsProtocol(**wrong)
