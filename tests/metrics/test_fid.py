"""FID, KID and CMMD: equal to torch-fidelity, torchmetrics and slow loops, with the properties they must have."""

import json
import math
from itertools import combinations

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch_fidelity import calculate_metrics
from torch_fidelity.fidelity import main as command
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.utils import create_feature_extractor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.models import squeezenet1_1

from metrics.features import extract, load_features, register
from metrics.fid import cmmd, fid, fid_extrapolated, frechet, kid, kid_permutation, kid_unbiased
from metrics.protocols import FeatureProtocol

seeds = st.integers(0, 10_000)


def draw(rng: np.random.Generator, count: int, channels: int = 8, shift: float = 0.0) -> np.ndarray:
    """Normal features whose channels differ in spread."""
    return rng.normal(size=(count, channels)) * np.linspace(1, 0.3, channels) + shift


def pair(seed: int, count: int = 40, channels: int = 8, shift: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return draw(rng, count, channels, shift), draw(rng, count, channels)


def rotation(seed: int, channels: int = 8) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, channels)))[0]


def slow_mmd(x, y, kernel, biased=False):
    """The mean of the kernel over all pairs, an image with itself only if biased."""
    own = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if biased or i != j]
    others = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if biased or i != j]
    return np.mean(own) + np.mean(others) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def slow_cubic(a, b):
    return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3


def slow_gaussian(a, b):
    a, b = a / math.sqrt(sum(a**2)), b / math.sqrt(sum(b**2))
    return 1000 * math.exp(-sum((a - b) ** 2) / 200)


@pytest.fixture
def unchecked():
    """No shapes checked, as outside of tests: what is wrong must be seen by the function itself."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """The protocol of a trunk of random weights."""
    folder = tmp_path_factory.mktemp("trunk")
    with torch.random.fork_rng():
        torch.manual_seed(4)
        save_file(squeezenet1_1(weights=None).features.state_dict(), folder / "model.safetensors")
    return FeatureProtocol(checkpoint=str(folder))


@pytest.fixture(scope="module")
def images():
    """Twelve images, and twelve darker ones."""
    generator = torch.Generator().manual_seed(6)
    light, dark = torch.randint(0, 256, (2, 12, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return light, dark // 2


class Images(torch.utils.data.Dataset):
    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.pixels[index]


def test_fid_is_the_closed_form_of_two_normal_distributions():
    x = draw(np.random.default_rng(0), 50, 6)
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T  # mean 0, covariance I
    y = 2 * x + 3  # mean 3, covariance 4 I: (9 + 1 + 4 - 2 * 2) in each of six channels
    assert fid(x, y) == pytest.approx(60, rel=1e-9)
    assert frechet(x, y) == pytest.approx(60, rel=1e-9)


@pytest.mark.parametrize(("count", "channels"), [(200, 16), (12, 64), (2, 5)])
def test_a_set_is_at_distance_0_from_itself(count, channels):
    x = draw(np.random.default_rng(1), count, channels)
    trace = x.var(0, ddof=1).sum()
    assert abs(fid(x, x)) < 1e-6 * trace
    assert abs(frechet(x, x)) < 1e-12 * trace


@pytest.mark.parametrize(("count", "others"), [(100, 100), (20, 20), (100, 20), (20, 100)])
def test_the_distance_without_covariances_is_fid(count, others):
    rng = np.random.default_rng(2)
    x, y = draw(rng, count, 32, 0.2), draw(rng, others, 32)
    assert frechet(x, y) == pytest.approx(fid(x, y, allow_unequal=True), rel=1e-6)


def test_fid_and_kid_are_those_of_torch_fidelity_on_the_same_images(trunk, images):
    options = {"cuda": False, "verbose": False, "cache": False, "save_cpu_ram": True}
    options |= {"kid_subsets": 20, "kid_subset_size": 8, "rng_seed": 7}
    theirs = calculate_metrics(
        input1=Images(images[0]), input2=Images(images[1]), fid=True, kid=True,
        feature_extractor=register(trunk), **options,
    )  # fmt: skip
    x, y = (extract(load_features(trunk), part) for part in images)
    assert fid(x, y) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)  # they: means in float32
    mean, deviation = kid(x, y, np.random.RandomState(7), subsets=20, subset_size=8)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)  # they: kernels in float32
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


def test_fid_and_kid_are_those_of_the_fidelity_command_on_folders(trunk, images, tmp_path, monkeypatch, capsys):
    for name, part in zip("ab", images, strict=True):
        (tmp_path / name).mkdir()
        for index, image in enumerate(part):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{index:02}.png")
    options = ["--fid", "--kid", "--cpu", "--json", "--silent", "--no-cache", "--save-cpu-ram"]
    options += ["--kid-subset-size", "8", "--kid-subsets", "20", "--feature-extractor", register(trunk)]
    options += ["--input1", str(tmp_path / "a"), "--input2", str(tmp_path / "b")]
    monkeypatch.setattr("sys.argv", ["fidelity", *options])
    command()  # here, and not as a process of its own, which would not know our trunk
    theirs = json.loads(capsys.readouterr().out)
    x, y = (extract(load_features(trunk), part) for part in images)
    assert fid(x, y) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    mean, deviation = kid(x, y, np.random.RandomState(2020), subsets=20, subset_size=8)
    assert mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert deviation == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


def test_fid_is_that_of_torchmetrics_with_the_same_network(trunk, images):
    class Network(torch.nn.Module):
        num_features = 512

        def __init__(self):
            super().__init__()
            self.extractor = create_feature_extractor(register(trunk), ["512"], cuda=False, verbose=False)

        def forward(self, pixels):
            return self.extractor(pixels)[0]

    theirs = FrechetInceptionDistance(Network(), input_img_size=(3, 64, 64)).set_dtype(torch.float64)
    theirs.update(images[0], real=True)
    theirs.update(images[1], real=False)
    x, y = (extract(load_features(trunk), part) for part in images)
    assert theirs.compute().item() == pytest.approx(fid(x, y), rel=1e-4)  # they: sums of squares


def test_kid_is_the_slow_loop():
    x, y = pair(3, 9)
    assert kid_unbiased(x, y[:7]) == pytest.approx(slow_mmd(x, y[:7], slow_cubic), rel=1e-9)


def test_kid_is_that_of_torch_fidelity_over_the_same_subsets():
    x, y = pair(4)
    theirs = kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y[:30]), kid_subsets=10, kid_subset_size=13, rng_seed=9, verbose=False
    )
    found = kid(x, y[:30], np.random.RandomState(9), subsets=10, subset_size=13)
    assert found == pytest.approx(tuple(theirs.values()), rel=1e-9)


def test_kids_subsets_have_at_most_1000_images_unless_told():
    x, y = pair(5, 1010, 3)
    usual = kid(x, y, np.random.default_rng(1), subsets=2)
    assert usual == kid(x, y, np.random.default_rng(1), subsets=2, subset_size=1000)
    assert usual[1] > 0


def test_kid_of_small_sets_has_the_whole_sets_for_subsets_so_that_they_do_not_deviate():
    x, y = pair(6)
    mean, deviation = kid(x, y, np.random.default_rng(0), subsets=5)
    assert mean == pytest.approx(kid_unbiased(x, y), rel=1e-9)
    assert deviation < 1e-12


@pytest.mark.parametrize("metric", [kid_unbiased, cmmd])
def test_the_unbiased_metrics_of_equal_distributions_are_0_on_average_and_sometimes_negative(metric):
    values = np.array([metric(*pair(seed, 32, shift=0.0)) for seed in range(200)])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)
    assert 0.2 < (values < 0).mean() < 0.8


def test_fid_of_equal_distributions_is_biased_upwards_by_about_1_over_n():
    few, many = (np.mean([fid(*pair(seed, count, shift=0.0)) for seed in range(20)]) for count in (50, 200))
    assert 3 < few / many < 5


def test_the_extrapolated_fid_is_nearer_to_the_truth_than_fid():
    truth = 8 * 0.3**2  # equal covariances, eight channels shifted by .3
    sets = [pair(seed, 100) for seed in range(60)]
    plain = np.mean([frechet(x, y) for x, y in sets])
    found = np.mean([fid_extrapolated(x, y, np.random.default_rng(0)) for x, y in sets])
    assert abs(found - truth) < 0.5 * abs(plain - truth)


def test_the_extrapolated_fid_is_the_intercept_of_a_line_in_1_over_n():
    x, y = pair(7, 30)
    rng = np.random.default_rng(1)
    rows = [(rng.choice(30, n, replace=False), rng.choice(30, n, replace=False)) for n in (10, 30)]
    few, many = (fid(x[one], y[other]) for one, other in rows)
    expected = many - (few - many) / (1 / 10 - 1 / 30) / 30
    found = fid_extrapolated(x, y, np.random.default_rng(1), sizes=2, smallest=10)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("sizes", "smallest"), [(1, 10), (2, 1), (2, 40)])
def test_a_line_through_less_than_two_sizes_is_refused(sizes, smallest):
    with pytest.raises(ValueError, match="sizes must be"):
        fid_extrapolated(*pair(7), np.random.default_rng(1), sizes=sizes, smallest=smallest)


def test_the_p_value_is_the_share_of_divisions_with_a_kid_as_high():
    x, y = pair(8, 3, shift=1.0)
    pooled = np.concatenate([x, y])
    divisions = [np.isin(np.arange(6), rows) for rows in combinations(range(6), 3)]
    values = [slow_mmd(pooled[rows], pooled[~rows], slow_cubic) for rows in divisions]
    exact = np.mean(np.array(values) >= slow_mmd(x, y, slow_cubic) - 1e-9)
    found = kid_permutation(x, y, np.random.default_rng(0), permutations=4000)
    assert found == pytest.approx(exact, abs=0.03)  # three standard errors are .024


def test_p_values_of_equal_distributions_are_uniform_and_of_different_ones_small():
    equal = [kid_permutation(*pair(seed, 20, shift=0.0), np.random.default_rng(seed), 99) for seed in range(200)]
    assert 0.42 < np.mean(equal) < 0.58
    assert 0.01 <= np.mean(np.array(equal) <= 0.05) < 0.1
    assert kid_permutation(*pair(0, shift=1.0), np.random.default_rng(0), 99) == 1 / 100


@pytest.mark.parametrize("biased", [False, True])
def test_cmmd_is_the_slow_loop(biased):
    x, y = pair(9, 9)
    assert cmmd(x, y[:7], biased) == pytest.approx(slow_mmd(x, y[:7], slow_gaussian, biased), rel=1e-9)


def test_cmmd_by_the_u_statistic_is_torch_fidelitys_kid_with_a_gaussian_kernel():
    x, y = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in pair(10))
    options = {"kid_kernel": "rbf", "kid_kernel_rbf_sigma": 10, "kid_subsets": 1, "kid_subset_size": 40}
    theirs = kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), verbose=False, **options)
    assert cmmd(x, y) == pytest.approx(1000 * theirs["kernel_inception_distance_mean"], rel=1e-6)


@pytest.mark.parametrize("count", [32, 128, 512])
def test_the_v_statistic_of_equal_distributions_is_biased_by_what_an_image_adds_to_itself(count):
    rng = np.random.default_rng(11)
    sets = rng.normal(size=(2000 // count + 5, 2, count, 64))
    expected = 2 * 1000 * (1 - math.exp(-2 / 200)) / count  # directions at right angles: |a - b|^2 = 2
    assert np.mean([cmmd(x, y, biased=True) for x, y in sets]) == pytest.approx(expected, rel=0.15)  # .62, .16, .04
    assert abs(np.mean([cmmd(x, y) for x, y in sets])) < 0.15 * expected


def test_cmmd_does_not_depend_on_the_length_of_embeddings():
    x, y = pair(12)
    assert cmmd(3 * x, y) == pytest.approx(cmmd(x, y), rel=1e-9)


def test_an_embedding_without_a_direction_is_refused():
    x, y = pair(13)
    x[3] = 0
    with pytest.raises(ValueError, match="zero row"):
        cmmd(x, y)


def test_tensors_and_arrays_of_any_precision_may_be_mixed():
    x, y = pair(14)
    single = torch.from_numpy(x).float().requires_grad_()
    for metric in (fid, kid_unbiased, cmmd):
        assert metric(single, y) == pytest.approx(metric(x, y), rel=1e-5)


def test_the_height_of_the_blocks_in_which_kernels_are_computed_does_not_matter(monkeypatch):
    x, y = pair(15, 10)
    whole = [kid_unbiased(x, y), cmmd(x, y), cmmd(x, y, biased=True)]
    monkeypatch.setattr("metrics.fid.ROWS", 3)
    assert [kid_unbiased(x, y), cmmd(x, y), cmmd(x, y, biased=True)] == pytest.approx(whole, rel=1e-9)


RANDOM = {kid: (np.random.default_rng(0),), kid_permutation: (np.random.default_rng(0),)}
RANDOM[fid_extrapolated] = (np.random.default_rng(0),)
ALL = [fid, fid_extrapolated, kid, kid_unbiased, kid_permutation, cmmd]


@pytest.mark.parametrize("metric", ALL)
def test_what_cannot_be_compared_is_refused(unchecked, metric):
    x, y = pair(16)
    more = RANDOM.get(metric, ())
    with pytest.raises(ValueError, match="of 2 images at least, got 1 and 1"):
        metric(x[:1], y[:1], *more)
    with pytest.raises(ValueError, match="must have the channels of features"):
        metric(x, y[:, :5], *more)
    y[0, 0] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        metric(x, y, *more)


@pytest.mark.parametrize("metric", ALL)
def test_an_unknown_option_is_refused(metric):
    with pytest.raises(TypeError, match="input3"):
        metric(*pair(17), *RANDOM.get(metric, ()), input3=None)


def test_fids_of_sets_of_unequal_size_are_refused_unless_allowed():
    x, y = pair(18)
    with pytest.raises(ValueError, match="as many as features unless allowed, got 40 and 39"):
        fid(x, y[:39])
    assert fid(x, y[:39], allow_unequal=True) > 0


@pytest.mark.parametrize(("subsets", "size"), [(0, 5), (1, 1), (1, 41)])
def test_subsets_that_do_not_exist_are_refused(subsets, size):
    with pytest.raises(ValueError, match="subset_size must lie in 2 to 40"):
        kid(*pair(19), np.random.default_rng(0), subsets, size)


def test_a_test_without_permutations_is_refused():
    with pytest.raises(ValueError, match="permutations must be at least 1"):
        kid_permutation(*pair(20), np.random.default_rng(0), 0)


@given(seeds, st.integers(2, 20), st.floats(0, 2))
def test_fid_is_symmetric_and_not_negative_but_for_rounding(seed, count, shift):
    x, y = pair(seed, count, shift=shift)
    trace = x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum()
    assert fid(x, y) == pytest.approx(fid(y, x), abs=2e-6 * trace)
    assert fid(x, y) > -2e-6 * trace


@given(seeds, st.sampled_from([frechet, kid_unbiased, cmmd]))
def test_metrics_do_not_depend_on_the_order_of_images_or_a_rotation_of_channels(seed, metric):
    x, y = pair(seed, 15)
    turn, rows = rotation(seed), np.random.default_rng(seed).permutation(15)
    expected = metric(x, y)
    assert metric(x[rows], y) == pytest.approx(expected, rel=1e-7, abs=1e-9)
    assert metric(x @ turn, y @ turn) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(seeds, st.floats(-5, 5))
def test_fid_does_not_depend_on_where_both_sets_lie_but_kid_does(seed, shift):
    x, y = pair(seed, 15)
    assert fid(x + shift, y + shift) == pytest.approx(fid(x, y), rel=1e-7)
    if shift > 1:
        assert kid_unbiased(x + shift, y + shift) != pytest.approx(kid_unbiased(x, y), rel=1e-3)
