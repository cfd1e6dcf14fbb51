import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regulate.softmax import biased, members_of, reduced

CPU = torch.device("cpu")
TARGETS = st.lists(
    st.lists(st.integers(0, 7), min_size=3, max_size=6, unique=True).flatmap(
        lambda flat: st.integers(1, len(flat) - 1).map(lambda cut: [flat[:cut], flat[cut:]])
    )
    | st.just([[3]]),
    min_size=1,
    max_size=3,
)


def scores_for(targets, seed: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(len(targets), 2, 9, 5, generator=chance)  # token 8 is never a target


@given(TARGETS, st.integers(0, 1000))
def test_the_reduced_softmax_is_the_whole_one_summed_over_each_target(targets, seed):
    scores, members = scores_for(targets, seed), members_of(targets, 9, CPU)
    chance = torch.Generator().manual_seed(seed + 1)
    most = max(len(of_image) for of_image in targets)
    bias = torch.randn(most, 2 * len(targets), 5, generator=chance)
    found = reduced(scores, members).probs(bias).unflatten(1, (len(targets), 2))
    whole = biased(scores, bias, members)
    for image, of_image in enumerate(targets):
        for head in range(2):
            added = scores[image, head].clone()
            for number, positions in enumerate(of_image):
                added[positions] += bias[number, 2 * image + head]
            expected = added.softmax(0)
            torch.testing.assert_close(whole[image, head], expected)
            for number, positions in enumerate(of_image):
                torch.testing.assert_close(found[number, image, head], expected[positions].sum(0))
            rest = [token for token in range(9) if token not in [p for word in of_image for p in word]]
            torch.testing.assert_close(found[-1, image, head], expected[rest].sum(0))
            for missing in range(len(of_image), most):
                assert torch.equal(found[missing, image, head], torch.zeros(5))


@given(TARGETS, st.integers(0, 1000))
def test_the_spread_turns_a_change_of_a_word_into_one_of_its_tokens(targets, seed):
    scores, members = scores_for(targets, seed), members_of(targets, 9, CPU)
    parts = reduced(scores, members, spread=True)
    bias = torch.full((max(len(t) for t in targets), 2 * len(targets), 5), 0.7)
    squares = (parts.spread * (parts.probs(bias) - parts.probs()).square()).sum(0).unflatten(0, (len(targets), 2))
    expected = (biased(scores, bias, members) - scores.softmax(2)).square().sum(2)
    torch.testing.assert_close(squares, expected, rtol=1e-4, atol=1e-6)


def test_tokens_that_the_model_masks_stay_without_attention():
    scores = scores_for([[[2]]], 0)
    scores[:, :, 5] = -torch.inf
    members = members_of([[[2]]], 9, CPU)
    whole = biased(scores, torch.ones(1, 2, 5), members)
    assert torch.equal(whole[:, :, 5], torch.zeros(1, 2, 5))
    assert reduced(scores, members).probs().isfinite().all()


@pytest.mark.parametrize("lead", [60.0, 200.0, -200.0])
def test_a_target_far_ahead_or_behind_leaves_finite_numbers(lead):
    """Where it takes all attention in float32, the others still have their spread."""
    scores = torch.zeros(1, 1, 4, 1)
    scores[0, 0, 2] = lead
    parts = reduced(scores, members_of([[[2]]], 4, torch.device("cpu")), spread=True)
    torch.testing.assert_close(parts.odds.flatten(), torch.tensor([lead - math.log(3)]))
    torch.testing.assert_close(parts.spread[:, 0, 0], torch.tensor([1.0, 1 / 3]))
    torch.testing.assert_close(parts.probs()[0, 0, 0], torch.tensor(1.0 if lead > 0 else 0.0))


@pytest.mark.parametrize("targets", [[[[]]], [[[2], [2]]], [[[9]]], [[[1]], []]])
def test_targets_that_are_none_are_refused(targets):
    with pytest.raises(ValueError, match="targets must be different tokens below 9, at least one"):
        members_of(targets, 9, CPU)
