"""What is computed on the live maps, against values worked out by hand and against numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.statistics import (
    BINS,
    JOINERS,
    STATISTICS,
    compared_words,
    dominance,
    dominance_ratio,
    is_content,
    map_histograms,
    map_statistics,
    word_map,
)


def statistics_of(values, height, width):
    """Return one map's statistics by name."""
    found = map_statistics(torch.tensor(values, dtype=torch.float32).reshape(-1), height, width)
    return dict(zip(STATISTICS, found.tolist(), strict=True))


def test_a_small_map_has_the_statistics_worked_out_by_hand():
    found = statistics_of([[0.0, 0.2], [0.4, 0.6]], 2, 2)
    assert found["mass"] == pytest.approx(1.2)
    assert found["mean"] == pytest.approx(0.3)
    assert found["std"] == pytest.approx(math.sqrt((0.09 + 0.01 + 0.01 + 0.09) / 4))
    assert found["vmax"] == pytest.approx(0.6)
    assert found["p50"] == pytest.approx(0.3)
    assert found["p90"] == pytest.approx(0.4 + 0.7 * 0.2)  # rank 0.9 * 3 = 2.7
    assert found["p99"] == pytest.approx(0.4 + 0.97 * 0.2)
    assert found["cx"] == pytest.approx((0.25 * 0.4 + 0.75 * 0.8) / 1.2)
    assert found["cy"] == pytest.approx((0.25 * 0.2 + 0.75 * 1.0) / 1.2)


def test_the_centroid_of_one_bright_pixel_is_its_middle_in_shares_of_width_and_height():
    found = statistics_of([[0, 0, 0, 0], [0, 0, 0, 0.5]], 2, 4)
    assert (found["cx"], found["cy"]) == pytest.approx((3.5 / 4, 1.5 / 2))


def test_entropy_is_zero_for_one_pixel_and_log_n_for_an_even_map():
    assert statistics_of([0, 0.3, 0, 0, 0, 0], 2, 3)["entropy"] == pytest.approx(0, abs=1e-6)
    assert statistics_of([0.01] * 6, 2, 3)["entropy"] == pytest.approx(math.log(6), rel=1e-5)


def test_an_empty_map_has_no_entropy_and_no_centroid():
    found = statistics_of([0.0] * 4, 2, 2)
    assert all(math.isnan(found[name]) for name in ("entropy", "cx", "cy"))
    assert found["mass"] == found["p90"] == 0


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="12 pixels, got 10"):
        map_statistics(torch.zeros(10), 3, 4)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_statistics_equal_numpy_and_torch_quantile(height, width, seed):
    maps = torch.rand(3, 2, height * width, generator=torch.Generator().manual_seed(seed)) ** 4
    found = dict(zip(STATISTICS, map_statistics(maps, height, width).unbind(-1), strict=True))
    exact = maps.double().numpy()
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        torch.testing.assert_close(found[name], torch.quantile(maps, q, dim=-1), atol=0, rtol=1e-6)
        np.testing.assert_allclose(found[name], np.quantile(exact, q, axis=-1), atol=1e-6)
    p = exact / exact.sum(-1, keepdims=True)
    np.testing.assert_allclose(found["entropy"], -(p * np.log(p)).sum(-1), atol=1e-5)
    np.testing.assert_allclose(found["std"], exact.std(-1), atol=1e-6)
    rows = p.reshape(3, 2, height, width).sum(-1)
    np.testing.assert_allclose(found["cy"], rows @ ((np.arange(height) + 0.5) / height), atol=1e-5)


def test_a_histogram_counts_pixels_by_the_root_of_their_value():
    found = map_histograms(torch.tensor([0.0, 0.0009, 0.001, 0.25, 1.0, 1.2]))  # 1/32 squared is 0.00098
    expected = torch.zeros(BINS, dtype=torch.int32)
    expected[0], expected[1], expected[16], expected[31] = 2, 1, 1, 2
    assert torch.equal(found, expected)


def test_histograms_add_up_over_maps():
    maps = torch.rand(5, 40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(map_histograms(maps).sum(0).int(), map_histograms(maps.reshape(-1)))


def test_articles_and_joiners_and_punctuation_are_no_content():
    assert not any(is_content(word) for word in ("a", "The", "and", "of", ",", None))
    assert all(is_content(word) for word in ("cat", "Bear", "3"))
    assert {"a", "an", "the", "and", "with", "of", "in", "on"} <= JOINERS


def test_compared_are_the_targets_and_without_targets_all_content_words(bench):
    tokens = bench.tokens_of("a hip|po with the red bow", 10)  # sos a hip po with the red bow eos pad
    assert compared_words(tokens, [(2, 3), (7,)]) == {1: (2, 3), 5: (7,)}
    assert compared_words(tokens, [(3,)]) == {1: (2, 3)}  # one piece means the whole word
    assert compared_words(tokens, []) == {1: (2, 3), 4: (6,), 5: (7,)}


def test_dominance_is_each_words_share_of_the_mean_quantile_over_heads():
    pixels = torch.linspace(0, 1, 11)  # the 0.9-quantile of c * pixels is 0.9 * c
    probs = torch.stack([torch.stack([0.2 * pixels, 0.4 * pixels], -1), torch.stack([0.6 * pixels, 0.4 * pixels], -1)])
    shares = dominance(probs, [(0,), (1,)])  # both have a mean of 0.36 over the two heads
    assert shares.tolist() == pytest.approx([0.5, 0.5])
    shares = dominance(probs[:1], [(0,), (1,)])
    assert shares.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert dominance_ratio(shares).item() == pytest.approx(2)


def test_pieces_are_summed_before_the_quantile_is_taken():
    left, right = torch.zeros(10), torch.zeros(10)
    left[0], right[1:] = 1.0, 0.5  # quantiles of the pieces: 0.1 and 0.5; of the sum: 0.55
    probs = torch.stack([left, right, torch.full((10,), 0.55)], -1)[None]
    assert dominance(probs, [(0, 1), (2,)]).tolist() == pytest.approx([0.5, 0.5])


def test_dominance_of_a_batch_is_that_of_each_of_its_members():
    probs = torch.rand(4, 3, 9, 5, generator=torch.Generator().manual_seed(2))
    together = dominance(probs, [(0, 1), (3,)])
    assert torch.equal(together, torch.stack([dominance(one, [(0, 1), (3,)]) for one in probs]))


@pytest.mark.parametrize("words", [[], [(1,), ()]])
def test_dominance_of_no_word_is_refused(words):
    with pytest.raises(ValueError, match="at least one position"):
        dominance(torch.zeros(1, 4, 3), words)


def test_a_words_map_is_the_sum_of_its_pieces():
    probs = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
    assert word_map(probs, (0, 2)).tolist() == pytest.approx([0.8, 0.7])
