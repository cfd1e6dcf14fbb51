import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import slow_losses as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.host_sync import HostSyncs
from regulate.applied import subjects_of
from regulate.attend_and_excite import attend_and_excite_loss
from regulate.conform import conform_loss, distinct
from regulate.divide_and_bind import FIXED as BIND_FIXED
from regulate.divide_and_bind import (
    DivideAndBind,
    attend_loss,
    bind_loss,
    divergence,
    divide_and_bind_loss,
    total_variation,
)
from regulate.guidance import Look
from regulate.method import Given
from regulate.predicated import excludes, exists, implies, predicated_loss, word_maps
from regulate.smoothing import chosen, over_pixels, smoothed, words_only
from regulate.structure import Bound
from regulate.syngen import divergences, syngen_loss
from regulate.t_sam import t_sam_loss, text_similarity

PRECISIONS = {torch.float64: {"rtol": 1e-10, "atol": 1e-10}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}


def random_maps(tokens, height, width, seed=0, spread=1.0) -> torch.Tensor:
    """Probabilities over the tokens, float32 numbers in float64: both precisions see the same."""
    scores = torch.randn(tokens, height, width, generator=torch.Generator().manual_seed(seed))
    return (spread * scores).softmax(0).double()


def random_similarity(words, seed=0) -> torch.Tensor:
    scores = torch.randn(words + 2, words + 2, generator=torch.Generator().manual_seed(seed))
    future = torch.ones(words + 2, words + 2, dtype=torch.bool).triu(1)
    return text_similarity(scores.masked_fill(future, -torch.inf).softmax(1), words + 1, 3.0).double()


@dataclass
class Drawn:
    """A prompt's maps, and its words, which are disjoint."""

    maps: torch.Tensor
    before: torch.Tensor
    groups: list[Bound]
    seed: int

    @property
    def words(self) -> list[int]:
        return list(range(1, len(self.maps) - 1))

    @property
    def nouns(self) -> list[tuple[int, ...]]:
        return [group.noun for group in self.groups]

    @property
    def plain(self) -> list[slow.Group]:
        return [(group.noun, list(group.modifiers)) for group in self.groups]


@st.composite
def prompts(draw) -> Drawn:
    tokens, height, width = draw(st.integers(4, 12)), draw(st.integers(2, 5)), draw(st.integers(2, 5))
    free, groups, seed = list(draw(st.permutations(range(1, tokens - 1)))), [], draw(st.integers(0, 10_000))

    def word() -> tuple[int, ...]:
        return tuple(free.pop() for _ in range(min(len(free), draw(st.integers(1, 2)))))

    for _ in range(draw(st.integers(0, 3))):
        if free:
            noun = word()
            groups.append(Bound(noun, tuple(word() for _ in range(draw(st.integers(0, 2))) if free)))
    return Drawn(random_maps(tokens, height, width, seed), random_maps(tokens, height, width, seed + 1), groups, seed)


def check(loss, maps, expected):
    """In both precisions, and as a number that a gradient can be asked of."""
    for dtype, tolerance in PRECISIONS.items():
        leaf = maps.to(dtype).requires_grad_()
        found = loss(leaf)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), **tolerance)
        assert torch.autograd.grad(found, leaf)[0].isfinite().all()


some = settings(max_examples=25)


@some
@given(prompts(), st.data())
def test_attend_and_excite_is_its_formula(drawn, data):
    """Words of one and two pieces; the text ends at the last token, or before it."""
    end = data.draw(st.none() | st.integers(2, len(drawn.maps) - 1))
    places = st.integers(1, (len(drawn.maps) - 1 if end is None else end) - 1)
    words = data.draw(st.lists(st.lists(places, min_size=1, max_size=2).map(tuple), min_size=1, max_size=3))
    maps = drawn.maps / 10  # a softmax of a hundredfold is 1 for the strongest word otherwise, whatever the rest
    expected = slow.attend_and_excite(maps.tolist(), words, len(maps) - 1 if end is None else end)
    check(lambda found: attend_and_excite_loss(found, words, end), maps, expected)


@some
@given(prompts())
def test_syngen_is_its_formula(drawn):
    expected = slow.syngen(drawn.maps.tolist(), drawn.plain, drawn.words)
    check(lambda maps: syngen_loss(maps, drawn.groups, drawn.words), drawn.maps, expected)


@some
@given(prompts(), st.integers(0, 2), st.sampled_from([0.0, 0.3]))
def test_predicated_is_its_formula(drawn, owned, leak):
    nouns = drawn.nouns
    owners = list(pairwise(nouns))[:owned]
    expected = slow.predicated(drawn.maps.tolist(), nouns[1:], drawn.plain, owners, leak)
    check(lambda maps: predicated_loss(maps, nouns[1:], drawn.groups, owners, leak), drawn.maps, float(expected))


@some
@given(prompts(), st.booleans(), st.sampled_from([0.07, 0.5, 1.0]))
def test_conform_is_its_formula(drawn, has_before, temperature):
    before = drawn.before if has_before else None
    groups = [tuple(p for word in (group.noun, *group.modifiers) for p in word) for group in drawn.groups]
    expected = slow.conform(drawn.maps.tolist(), groups, before.tolist() if has_before else None, temperature)

    def loss(maps):
        return conform_loss(maps, groups, before if before is None else before.to(maps.dtype), temperature)

    check(loss, drawn.maps, expected)


@some
@given(prompts(), st.data(), st.booleans())
def test_t_sam_is_its_formula(drawn, data, smooth):
    wanted = random_similarity(data.draw(st.integers(1, len(drawn.maps) - 2)), drawn.seed)
    expected = slow.t_sam(drawn.maps.tolist(), wanted.tolist(), smooth)
    check(lambda maps: t_sam_loss(maps, wanted.to(maps.dtype), smooth), drawn.maps, expected)


@some
@given(prompts(), st.sampled_from([0.0, 1.0, 2.5]))
def test_divide_and_bind_is_its_formula(drawn, weight):
    expected = slow.divide_and_bind(drawn.maps.tolist(), drawn.nouns, drawn.plain, weight)
    check(lambda maps: divide_and_bind_loss(maps, drawn.nouns, drawn.groups, weight), drawn.maps, float(expected))


@some
@given(prompts(), st.data())
def test_smoothing_and_the_softmax_over_words_are_their_formulas(drawn, data):
    end = data.draw(st.integers(2, len(drawn.maps) - 1))
    torch.testing.assert_close(
        words_only(drawn.maps, 100.0, end), torch.tensor(slow.words_only(drawn.maps.tolist(), 100.0, end)).double()
    )
    expected = torch.tensor([slow.smoothed(map_) for map_ in drawn.maps.tolist()], dtype=torch.float64)
    torch.testing.assert_close(smoothed(drawn.maps), expected)


@some
@given(st.integers(4, 9), st.data(), st.sampled_from([1.0, 3.0]))
def test_the_text_s_similarity_is_its_formula(tokens, data, power):
    end, seed = data.draw(st.integers(2, tokens - 1)), data.draw(st.integers(0, 1000))
    attention = torch.randn(tokens, tokens, generator=torch.Generator().manual_seed(seed)).softmax(1).double()
    expected = torch.tensor(slow.text_similarity(attention.tolist(), end, power), dtype=torch.float64)
    torch.testing.assert_close(text_similarity(attention, end, power), expected)


GROUPS = [Bound((2,), ((1,), (7,))), Bound((4, 5), ((3,),)), Bound((6,))]
MAPS, BEFORE = random_maps(10, 3, 4, 1), random_maps(10, 3, 4, 2)
CLASSES = [[2, 1], [4, 5, 3], [6]]
LOSSES = {
    "attend and excite": lambda maps: attend_and_excite_loss(maps / 10, [(2,), (4, 5)]),
    "attend and excite to the end token": lambda maps: attend_and_excite_loss(maps / 10, [(2,), (4, 5)], 8),
    "syngen": lambda maps: syngen_loss(maps, GROUPS, range(1, 9)),
    "predicated": lambda maps: predicated_loss(maps, [(2,), (4, 5)], GROUPS, [((2,), (6,))]),
    "conform": lambda maps: conform_loss(maps, CLASSES, None),
    "conform with a step before": lambda maps: conform_loss(maps, CLASSES, BEFORE.to(maps)),
    "t-sam": lambda maps: t_sam_loss(maps, random_similarity(6).to(maps)),
    "t-sam as it is": lambda maps: t_sam_loss(maps, random_similarity(6).to(maps), smooth=False),
    "divide and bind": lambda maps: divide_and_bind_loss(maps, [(2,), (4, 5)], GROUPS, 0.7),
    "smoothed words": lambda maps: smoothed(words_only(maps, 10.0, 8)).square().sum(),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@each_loss
def test_the_gradient_is_the_derivative(loss):
    assert torch.autograd.gradcheck(loss, MAPS.clone().requires_grad_())


@each_loss
def test_the_loss_leaves_the_maps_as_they_are(loss):
    maps = MAPS.clone().requires_grad_()
    loss(maps).backward()
    assert torch.equal(maps, MAPS)
    assert maps.grad is not None
    assert maps.grad.abs().sum() > 0


@each_loss
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("kind", ["none", "one token takes each pixel", "one pixel each", "all"])
def test_loss_and_gradient_are_finite_at_the_ends(loss, dtype, kind):
    maps = torch.zeros_like(MAPS)
    if kind == "one token takes each pixel":
        maps.flatten(1)[torch.arange(12) % 10, torch.arange(12)] = 1
    elif kind == "one pixel each":
        maps.flatten(1)[torch.arange(10), torch.arange(10) % 5] = 0.1
    elif kind == "all":
        maps += 1
    maps = maps.to(dtype).requires_grad_()
    found = loss(maps)
    found.backward()
    assert found.isfinite()
    assert maps.grad.isfinite().all()


class Operations(TorchDispatchMode):
    """Notes what is done."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


META = {
    "attend and excite": LOSSES["attend and excite to the end token"],
    "syngen": LOSSES["syngen"],
    "predicated": LOSSES["predicated"],
    "conform": lambda maps: conform_loss(maps, CLASSES, torch.empty_like(maps)),
    "t-sam": lambda maps: t_sam_loss(maps, text_similarity(maps.new_empty(9, 9), 7, 3.0)),
    "divide and bind": LOSSES["divide and bind"],
    "smoothed words": LOSSES["smoothed words"],
}


@pytest.mark.parametrize("loss", META.values(), ids=META)
def test_nothing_waits_for_the_device(loss):
    """On a device whose tensors hold no numbers: none can be read, and an index made by the host is a copy."""
    maps = MAPS.to("meta").requires_grad_()
    with HostSyncs() as syncs, Operations() as operations:
        torch.autograd.grad(loss(maps), maps)
    assert syncs.found == []
    assert not operations.seen & {"index", "lift_fresh", "_to_copy", "index_select"}


NOTHING = {
    "syngen": lambda maps: syngen_loss(maps, [], [1, 2]),
    "syngen without a word outside": lambda maps: syngen_loss(maps, [Bound((1, 2))], [1, 2]),
    "predicated": lambda maps: predicated_loss(maps, [], []),
    "conform without groups": lambda maps: conform_loss(maps, [], None),
    "conform with one class": lambda maps: conform_loss(maps, [[1, 2]], None),
    "conform without a pair": lambda maps: conform_loss(maps, [[1], [2]], None),
    "divide and bind": lambda maps: divide_and_bind_loss(maps, [], [Bound((1,))], 1.0),
    "t-sam of one word": lambda maps: t_sam_loss(maps, random_similarity(1).to(maps)),
}


@pytest.mark.parametrize("loss", NOTHING.values(), ids=NOTHING)
def test_nothing_to_compare_is_zero_with_a_gradient_of_zero(loss):
    maps = MAPS.clone().requires_grad_()
    found = loss(maps)
    found.backward()
    assert found == 0
    assert torch.equal(maps.grad, torch.zeros_like(maps))


def test_the_kernel_s_centre_weighs_a_third_and_its_sum_is_one():
    impulse = torch.zeros(5, 6, dtype=torch.float64)
    impulse[2, 3] = 1
    side = math.exp(-1) / (1 + 2 * math.exp(-1))  # 0.2119
    result = smoothed(impulse)
    assert result[2, 3] == pytest.approx((1 - 2 * side) ** 2)  # 0.3319
    assert result[2, 3] == pytest.approx(0.3319, abs=1e-4)
    assert result[1, 2] == pytest.approx(side**2)
    assert result.sum() == pytest.approx(1)


def test_smoothing_leaves_a_constant_map():
    torch.testing.assert_close(smoothed(torch.full((2, 3, 2, 4), 0.3)), torch.full((2, 3, 2, 4), 0.3))


def test_words_are_without_the_start_and_the_last_token():
    maps = torch.tensor([0.7, 0.0, math.log(3) / 100, 0.2])[:, None, None].expand(4, 2, 3)
    expected = torch.tensor([0.25, 0.75])[:, None, None].expand(2, 2, 3)
    torch.testing.assert_close(words_only(maps), expected)
    torch.testing.assert_close(words_only(torch.cat([maps, maps[:1]]), end=3), expected)


def test_syngen_s_divergence_is_symmetric_and_zero_to_itself():
    maps = torch.cat([MAPS, 0.1 * MAPS[:1]])  # the same distribution, of a tenth of the attention
    every = divergences(maps)
    torch.testing.assert_close(every, every.T)
    torch.testing.assert_close(every.diagonal(), torch.zeros(11, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(every[0, 10], torch.tensor(0.0).double(), rtol=0, atol=1e-12)
    assert (every + torch.eye(11))[:10, :10].min() > 0.01


def test_syngen_s_divergence_of_two_pixels_is_worked_out():
    maps = torch.tensor([[[0.3, 0.1]], [[0.2, 0.2]]], dtype=torch.float64)  # 3/4, 1/4 and 1/2, 1/2
    assert divergences(maps)[0, 1] == pytest.approx(0.25 * math.log(3) / 2)  # (1/4 log 3/2 - 1/4 log 1/2) / 2
    apart = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert divergences(apart)[0, 1] == pytest.approx(-math.log(torch.finfo(torch.float32).eps))


def test_syngen_pulls_the_modifier_to_the_noun_and_off_other_words():
    maps = MAPS.clone()
    maps[1] = maps[2]
    groups, words = [Bound((2,), ((1,),))], [1, 2, 3]
    away = divergences(maps)[2, 3]
    torch.testing.assert_close(syngen_loss(maps, groups, words), -away)  # alike: only the distance to the rest counts
    torch.testing.assert_close(syngen_loss(maps, groups, [1, 2]), torch.zeros_like(away))


def test_existence_falls_as_attention_grows():
    losses = torch.stack([exists(scale * MAPS[3]) for scale in (0.0, 0.01, 0.1, 0.5, 1.0)])
    assert (losses.diff() < 0).all()
    assert exists(torch.tensor([[0.5, 0.5]]).double()) == pytest.approx(math.log(4 / 3))
    sure = torch.ones(1, 2).requires_grad_()
    assert exists(sure).item() == pytest.approx(0)
    assert torch.autograd.grad(exists(sure), sure)[0].isfinite().all()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_predicated_gradients_point_the_right_way_at_the_ends(dtype):
    zero, one = torch.zeros(2, 3, dtype=dtype), torch.ones(2, 3, dtype=dtype)
    (rise,) = torch.autograd.grad(exists(zero.requires_grad_()), zero)
    assert (rise < 0).all()
    fall, rise = torch.autograd.grad(implies(one.requires_grad_(), zero), (one, zero))
    assert (fall > 0).all()
    assert (rise < 0).all()
    (fall,) = torch.autograd.grad(excludes(one, torch.ones_like(one)), one)
    assert (fall > 0).all()
    maps = torch.stack([zero, one]).detach().requires_grad_()
    (slope,) = torch.autograd.grad(predicated_loss(maps, [], [], [((1,), (0,))]), maps)
    assert (slope[1] > 0).all()
    assert (slope[0] < 0).all()


def test_what_is_fulfilled_costs_nothing():
    part = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    whole = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    assert implies(part, whole) == pytest.approx(0)
    assert excludes(part, 1 - whole) == pytest.approx(0)
    assert implies(whole, part) == pytest.approx(-math.log(torch.finfo(torch.float64).eps))
    torch.testing.assert_close(excludes(MAPS[1], MAPS[2]), implies(MAPS[1], 1 - MAPS[2]))


def test_a_leak_counts_once_for_each_noun_and_each_other_group_s_modifier():
    groups = [Bound((2,), ((1,), (3,))), Bound((5,), ((4,),))]
    leak = predicated_loss(MAPS, [], groups, leak=1.0) - predicated_loss(MAPS, [], groups, leak=0.0)
    expected = excludes(MAPS[2], MAPS[4]) + excludes(MAPS[5], MAPS[1]) + excludes(MAPS[5], MAPS[3])
    torch.testing.assert_close(leak, expected)


def test_a_word_s_map_is_the_sum_of_its_tokens_and_at_most_one():
    maps = torch.tensor([[[0.2, 0.6]], [[0.3, 0.7]]])
    torch.testing.assert_close(word_maps(maps, [(0, 1)])[0, 1], torch.tensor([[0.5, 1.0]]))


def whole_maps(shift) -> torch.Tensor:
    """Maps of whole numbers over 101, the same everywhere."""
    numbers = torch.arange(8 * 4 * 5, dtype=torch.float64)
    return ((numbers * 37 + shift) % 101 + 1).view(8, 4, 5) / 101


@pytest.mark.parametrize(("before", "expected"), [(None, 1.4587742507751051), (11, 2.0371336164316243)])
def test_conform_is_the_nt_xent_loss_of_pytorch_metric_learning(before, expected):
    """Made by `NTXentLoss(temperature=0.5)(members, classes)` of pytorch-metric-learning 2.9.0.

    Its members are the maps of `whole_maps`, convolved by the kernel with torch's `conv2d`, flattened.
    """
    found = conform_loss(whole_maps(0), [[1, 2], [4], [5, 6, 7]], None if before is None else whole_maps(before))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_conform_is_lowest_when_classes_are_alike_within_and_unlike_without():
    apart = torch.zeros(5, 6, 6, dtype=torch.float64)
    apart[1:3, :2, :2] = 0.5
    apart[3:5, 4:, 4:] = 0.5
    groups = [[1, 2], [3, 4]]
    # every similarity within is 1, without 0: -log(e^2 / (e^2 + 2))
    assert conform_loss(apart, groups, None).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)))
    assert conform_loss(apart, [[1, 3], [2, 4]], None) > conform_loss(apart, groups, None)


def test_conform_sends_no_gradient_into_the_step_before():
    before = BEFORE.clone().requires_grad_()
    conform_loss(MAPS.clone().requires_grad_(), CLASSES, before).backward()
    assert before.grad is None


def test_t_sam_of_the_maps_own_similarity_is_zero():
    flat = smoothed(MAPS[1:7]).flatten(1)
    cosines = torch.nn.functional.cosine_similarity(flat[:, None], flat[None], dim=-1).tril()
    own = cosines / cosines.sum(1, keepdim=True)
    assert t_sam_loss(MAPS, own).item() == pytest.approx(0, abs=1e-12)
    own[5, 0] += 0.3
    own[2, 1] -= 0.2
    own[0, 0] += 1  # the first row is left out
    assert t_sam_loss(MAPS, own).item() == pytest.approx(6 / 6 * 0.3 + 3 / 6 * 0.2)


def test_total_variation_is_the_mean_of_the_edges_down_and_across():
    assert total_variation(torch.full((3, 4), 0.4)) == 0
    dot = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert float(total_variation(dot)) == pytest.approx(2 / 6 + 2 / 6)
    assert total_variation(torch.tensor([[0.0, 2.0], [1.0, 5.0]])) == (1 + 3) / 2 + (2 + 4) / 2


def test_divide_and_bind_attends_to_the_flattest_target():
    maps = torch.zeros(4, 2, 2)
    maps[1, 0, 0], maps[2, 0, 0], maps[3, 0, 0] = 0.5, 0.1, 0.3  # a corner has two edges, of two each
    assert attend_loss(maps, [(1,), (2,), (3,)]) == pytest.approx(-0.1)
    assert attend_loss(maps, [(1,), (2, 3)]) == pytest.approx(-0.3)


def test_divide_and_bind_binds_by_where_attention_lies_not_by_how_much():
    maps = torch.zeros(4, 2, 2, dtype=torch.float64)
    maps[1, 0], maps[2, 0], maps[3, 1] = 0.5, 0.1, 0.3
    assert bind_loss(maps, [Bound((1,), ((2,),))]) == pytest.approx(0)
    assert bind_loss(maps, [Bound((1,), ((2,), (3,)))]) == pytest.approx(math.log(2))
    assert divergence(maps[1], maps[3]) == pytest.approx(math.log(2))


def test_a_map_of_nothing_is_a_distribution_of_nothing():
    maps = torch.zeros(2, 2, 2)
    maps[0, 0, 1] = 0.2
    torch.testing.assert_close(over_pixels(maps), torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))


REFUSED = {
    "end must be between 2 and 9, .* got 1": lambda: words_only(MAPS, end=1),
    "end must be between 2 and 9, .* got 10": lambda: words_only(MAPS, end=10),
    "at least 2 pixels a side": lambda: smoothed(MAPS[:, :1]),
    r"positions must be some of 0 to 9, got \[10\]": lambda: chosen(MAPS, [[10]]),
    r"positions must be some of 0 to 9, got \[-1\]": lambda: chosen(MAPS, [[0], [-1]]),
    r"positions must be some of 0 to 9, got \[\]": lambda: attend_loss(MAPS, [()]),
    r"words must hold every token of the groups, got none at \[3\]": lambda: syngen_loss(MAPS, GROUPS[1:], [4, 5, 6]),
    "temperature must be above 0, got 0.0": lambda: conform_loss(MAPS, CLASSES, None, 0.0),
    "end must be between 2 and 4, .* got 5": lambda: text_similarity(torch.ones(5, 5), 5, 3.0),
    "wanted must be of 1 to 9 words for 10 tokens, got 10": lambda: t_sam_loss(MAPS, random_similarity(10)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_makes_no_sense_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_a_modifier_of_two_nouns_is_kept_off_neither():
    """As of "the cat and the dog are red": one token, two groups."""
    maps = MAPS.double()
    shared, one = [Bound((1,), ((5,),)), Bound((2,), ((5,),))], [Bound((1,), ((5,),)), Bound((2,), ((6,),))]
    assert float(predicated_loss(maps, [], shared, leak=1.0)) == float(predicated_loss(maps, [], shared, leak=0.0))
    assert float(predicated_loss(maps, [], one, leak=1.0)) > float(predicated_loss(maps, [], one, leak=0.0))


def test_a_token_of_two_classes_is_of_none():
    assert distinct([[5, 1], [5, 2], [5]]) == [(1,), (2,)]
    assert distinct([[1, 1, 3], [2]]) == [(1, 3), (2,)]


def test_divide_and_bind_sees_no_padding_where_the_text_ends_at_its_end_token(tiny_pipe):
    subject = subjects_of(tiny_pipe, ["a red cat and a dog"], [["cat", "dog"]], (0,), [Given()])[0]
    maps = random_maps(len(tiny_pipe.tokenizer("")["input_ids"]) * 8, 3, 4, 5)
    cut = Look(maps[: subject.end + 1], None, 0, 10)
    for of in ("loss_of", "reach_of"):
        fixed, released = (getattr(method, of)(tiny_pipe, subject) for method in (BIND_FIXED, DivideAndBind()))
        torch.testing.assert_close(fixed(Look(maps, None, 0, 10)), released(cut))
        assert released(Look(maps, None, 0, 10)) != released(cut)
