import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regulate.dominance import Watch, log_ratio
from regulate.softmax import members_of, reduced
from tracer.statistics import dominance, dominance_ratio

WORDS = st.sampled_from([[[1], [2]], [[1, 2], [4]], [[1], [3], [4, 5]]])


@given(st.lists(WORDS, min_size=1, max_size=3), st.integers(0, 1000))
def test_the_ratio_is_the_one_that_traces_show(words, seed):
    """Images of one batch may have different numbers of targets, and words of several pieces."""
    scores = 2 * torch.randn(len(words), 3, 8, 30, generator=torch.Generator().manual_seed(seed))
    members = members_of(words, 8, torch.device("cpu"))
    found = log_ratio(reduced(scores, members).probs()[:-1], members.real[..., 0]).exp()
    for image, of_image in enumerate(words):
        shares = dominance(scores[image].softmax(1).transpose(1, 2), of_image)
        torch.testing.assert_close(found[image], dominance_ratio(shares), rtol=1e-4, atol=1e-5)


def test_ratios_of_layers_and_steps_are_averaged_geometrically():
    watch = Watch(ratio=2.0)
    for ratios in ([1.0, 4.0], [2.0, 2.0], [3.0, 1.5]):
        watch.see(torch.tensor(ratios).log())
    assert watch.dominant().tolist() == [False, True]  # cube roots of 6 and 12: 1.82 and 2.29


def test_without_a_watched_step_nothing_can_be_judged():
    with pytest.raises(ValueError, match="watched for at least one step"):
        Watch(1.5).dominant()
