from dataclasses import replace

import pytest
import slow_regulation as slow
import slow_variants as variants
import torch
from golden import cases

from analysis.host_sync import HostSyncs
from regulate import FIXED, PAPER, AttentionRegulation
from regulate.method import Subject
from regulate.regulator import Regulator
from tracer.passes import Passes
from tracer.tap import Tap
from tracer.words import Target

METHOD = AttentionRegulation()
METHODS = {"published": METHOD, "paper": PAPER, "fixed": FIXED}


def regulator_for(subjects: tuple[Subject, ...], step: int = 0, steps: int = 4, method=METHOD) -> Regulator:
    passes = Passes.__new__(Passes)
    passes.step, passes.steps, passes.rows = step, steps, slice(len(subjects), 2 * len(subjects))
    passes.kind = "sample"
    return Regulator(method, subjects, passes, {"site": 3})


def subject(*words: int | tuple[int, ...], seed: int = 0, end: int = 6) -> Subject:
    """An image whose targets are these positions; several in a tuple are one word."""
    targets = tuple(Target("word", (word,) if isinstance(word, int) else word) for word in words)
    return Subject(targets, end, seed)


def tap_of(seed: int, images: int, size=(8, 8), heads=2, tokens=9, scale=1.0) -> Tap:
    chance = torch.Generator().manual_seed(seed)
    query = torch.randn(2 * images, heads, size[0] * size[1], 4, generator=chance)
    key = torch.randn(2 * images, heads, tokens, 4, generator=chance)
    return Tap("site", 0, *size, query, key, key, scale)


def at(regulator: Regulator, step: int, tap: Tap) -> torch.Tensor | None:
    """The first image's edit of one step, "head pixel token"."""
    regulator.passes.step = step
    edited = regulator(tap)
    return None if edited is None else edited.probs[0]


def start_of(regulator: Regulator, step: int, grid: tuple[int, int]) -> torch.Tensor:
    """Where the first image's descent starts, "head target row column"."""
    first = regulator.layers["site"].starts[step].unflatten(1, (len(regulator.subjects), -1))[:, 0]
    return first.transpose(0, 1).unflatten(2, grid)


def test_two_steps_of_published_edits_equal_the_slow_version_with_memory_and_decay():
    regulator, memory = regulator_for((subject(2, 5),)), None
    for step in (0, 1):
        tap = tap_of(step, 1)
        probs = at(regulator, step, tap)
        theta = start_of(regulator, step, (3, 3))
        scores = tap.scores(slice(1, 2))[0].double()
        expected, memory = slow.edit(scores, theta.double(), memory, [2, 5], 6, step, (8, 8))
        torch.testing.assert_close(probs.double(), expected, rtol=1e-4, atol=1e-5)


def descended(scores, theta, loss, step_size):
    """One head's best theta of 6 evaluations (both losses are for one head): over 20, rounding grows."""
    best, lowest = theta, float("inf")
    for _ in range(6):
        theta = theta.detach().requires_grad_()
        value = loss(scores, theta)
        if float(value.detach()) < lowest:
            best, lowest = theta.detach(), float(value.detach())
        theta = theta - step_size * torch.autograd.grad(value, theta)[0]
    return best


def test_two_steps_of_fixed_edits_equal_the_slow_version():
    """Pieces of a word share one bias, rows add up to one, the average runs, steps are (64 / 256)^2 of the released."""
    words, running = [[2, 3], [5]], None
    regulator = regulator_for((subject((2, 3), 5),), method=replace(FIXED, iterations=6))
    for step in (0, 1):
        tap = tap_of(step, 1, heads=1)
        probs = at(regulator, step, tap)
        scores, theta = tap.scores(slice(1, 2))[0, 0].double(), start_of(regulator, step, (3, 3))[0].double()
        best = descended(scores, theta, lambda s, t: variants.fixed_loss(s, t, words, 8, 8), 100 / 16)
        optimum = slow.bias_map(best, 8, 8)
        running = optimum if running is None else 0.25 * running + 0.75 * optimum
        expected = variants.probs_of(scores, running * 0.99**step, words)
        torch.testing.assert_close(probs[0].double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(probs.sum(-1), torch.ones(1, 64))


def test_two_steps_of_the_paper_s_edits_equal_the_slow_version():
    """S is added before scaling, maps are averaged, and the edit fades towards the unedited maps."""
    words, running, scale = [[2], [5]], None, 0.5
    method = replace(PAPER, proportion=0.01, step_size=400.0, iterations=6)
    regulator = regulator_for((subject(2, 5),), method=method)
    for step in (0, 1):
        tap = tap_of(step, 1, heads=1, scale=scale)
        probs = at(regulator, step, tap)
        products = tap.scores(slice(1, 2))[0, 0].double() / scale
        theta = torch.zeros(2, 4, 4, dtype=torch.float64)
        best = descended(
            products, theta, lambda s, t: variants.paper_loss(s, t, words, 8, 8, scale, 0.01), method.step_size
        )
        optimum = variants.probs_of(products * scale, variants.whole_grid(best, 8, 8) * scale, words)
        running = optimum if running is None else 0.25 * running + 0.75 * optimum
        before = (products * scale).softmax(-1)
        expected = before + 0.99**step * (running - before)
        torch.testing.assert_close(probs[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_start_and_end_token_keep_their_unedited_probability_as_released():
    tap, regulator = tap_of(1, 1), regulator_for((subject(2, 5),))
    probs, before = regulator(tap).probs[0], tap.probs(slice(1, 2))[0]
    assert torch.equal(probs[..., 0], before[..., 0])
    assert torch.equal(probs[..., 6], before[..., 6])
    assert not torch.allclose(probs[..., 7], before[..., 7])
    assert not torch.allclose(probs.sum(-1), torch.ones(()))  # rows no longer add up to one


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_an_image_s_edit_does_not_depend_on_its_batch(method):
    """Images of other targets, and of other numbers of targets, change nothing."""
    subjects = (subject(2, 5, seed=3), subject(4, seed=9), subject(1, (3, 4), 5, seed=3))
    tap = tap_of(2, 3)
    together = regulator_for(subjects, method=method)(tap).probs
    for index, one in enumerate(subjects):
        rows = torch.tensor([index, 3 + index])
        alone = replace(tap, query=tap.query[rows], key=tap.key[rows], value=tap.value[rows])
        probs = regulator_for((one,), method=method)(alone).probs[0]
        torch.testing.assert_close(probs, together[index], rtol=1e-4, atol=1e-6)


def test_the_start_differs_by_seed_step_and_layer_and_repeats():
    def starts(seed: int, layer: int = 3) -> torch.Tensor:
        regulator = regulator_for((subject(2, seed=seed),))
        regulator.sites = {"site": layer}
        regulator(tap_of(0, 1))
        return regulator.layers["site"].starts

    assert torch.equal(starts(1), starts(1))
    assert not torch.equal(starts(1), starts(2))
    assert not torch.equal(starts(1), starts(1, layer=4))
    assert not torch.equal(starts(1)[0], starts(1)[1])
    assert 0 <= starts(1).min() < starts(1).max() < 1


def test_edits_end_after_half_of_the_steps():
    edits = [regulator_for((subject(2),), step, steps=5)(tap_of(0, 1)) is not None for step in range(5)]
    assert edits == [True, True, True, False, False]
    edits = [regulator_for((subject(2),), step, steps=50)(tap_of(0, 1)) is not None for step in (24, 25)]
    assert edits == [True, False]


def test_passes_of_a_method_s_guidance_are_left_alone():
    regulator = regulator_for((subject(2),))
    regulator.passes.kind = "guidance"
    assert regulator(tap_of(0, 1)) is None


def test_a_second_generation_starts_anew():
    regulator = regulator_for((subject(2, 5),))
    first = [at(regulator, step, tap_of(step, 1)) for step in (0, 1)]
    again = [at(regulator, step, tap_of(step, 1)) for step in (0, 1)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_batch_of_another_size_is_refused():
    regulator = regulator_for((subject(2), subject(3)))
    regulator.passes.rows = slice(1, 2)
    with pytest.raises(ValueError, match="the batch holds 1 prompted images, the method was given 2"):
        regulator(tap_of(0, 1))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_after_a_layer_s_first_pass_nothing_is_copied_and_nothing_waits(method):
    regulator = regulator_for((subject(2, (3, 5)),), method=replace(method, when="dominant", watch=0.25))
    for step in (0, 1):
        at(regulator, step, tap_of(step, 1))
    regulator.passes.step, tap = 1, tap_of(1, 1)
    with HostSyncs() as syncs:
        assert regulator(tap) is not None
    assert syncs.found == []


def test_only_images_in_which_one_target_dominates_are_edited():
    """The first image's two targets are alike, in the second image one takes nearly all."""
    method = replace(METHOD, when="dominant", watch=0.25, ratio=1.5)
    regulator = regulator_for((subject(2, 5), subject(2, 5)), method=method)
    tap = tap_of(0, 2)
    key = tap.key.clone()
    key[2, :, 5] = key[2, :, 2]
    query = torch.cat([tap.query[..., :3], torch.full_like(tap.query[..., :1], 3.0)], -1)
    key[3, :, 2, 3], key[3, :, 5, 3] = 2.0, -2.0
    tap = replace(tap, query=query, key=key)
    regulator.passes.step = 0
    assert regulator(tap) is None  # watched
    regulator.passes.step = 1
    edited, before = regulator(tap).probs, tap.probs(slice(2, 4))
    assert torch.equal(edited[0], before[0])
    assert not torch.allclose(edited[1], before[1])
    assert regulator.watch.dominant().tolist() == [False, True]


def test_targets_that_cannot_be_regulated_are_refused_before_anything_is_hooked():
    dominant = replace(METHOD, when="dominant")
    with pytest.raises(ValueError, match="which target dominates takes at least two for every prompt"):
        dominant.check((subject(2),))
    with pytest.raises(ValueError, match="needs at least one target"):
        METHOD.check((subject(2), subject()))
    overlapping = subject((2, 3), 3)  # "black cat" and "cat"
    for method in (FIXED, dominant):
        with pytest.raises(ValueError, match="targets must share no token, to be taken as wholes, got 'word', 'word'"):
            method.check((overlapping,))
    METHOD.check((subject(2), overlapping))
    assert regulator_for((overlapping,))(tap_of(0, 1)) is not None  # each piece is a target, once


def test_a_watch_that_leaves_no_step_to_edit_is_refused():
    with pytest.raises(ValueError, match=r"watch must be less than until, 0\.5, or nothing is edited, got 0\.5"):
        replace(METHOD, when="dominant", watch=0.5)
    regulator = regulator_for((subject(2, 5),), steps=2, method=replace(METHOD, when="dominant"))
    with pytest.raises(ValueError, match="of 2 steps 1 are watched and 1 edited: none is left"):
        regulator(tap_of(0, 1))


def test_a_share_of_the_steps_is_not_one_more_for_the_sake_of_rounding():
    assert 0.28 * 25 > 7
    assert regulator_for((subject(2),), steps=25, method=replace(METHOD, until=0.28)).end == 7
    assert regulator_for((subject(2),), steps=25).end == 13
    assert regulator_for((subject(2),), steps=50).end == 25


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"grid": "odd"}, "grid must be one of inner, whole, got 'odd'"),
        ({"when": "never"}, "when must be one of always, dominant, got 'never'"),
        ({"until": 1.5}, "until must be between 0 and 1, got 1.5"),
        ({"quantile": 0.0}, "quantile must be between 0 and 1, got 0.0"),
    ],
)
def test_hyper_parameters_that_are_none_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AttentionRegulation(**wrong)


def test_the_parameters_name_what_the_released_code_does_not_know():
    assert METHOD.parameters()["small_or_oblong_maps"] == "sigma = max(1, min(height, width) // 16)"
    assert METHOD.parameters()["step_size"] == 100.0


def test_the_whole_edit_gives_the_authors_own_probabilities():
    """Three steps of the golden case through the Regulator itself, its random starts replaced by the injected ones."""
    case = next(case for case in cases() if case.name == "two-targets")
    regulator = regulator_for((subject(*case.positions, end=case.end),), steps=2 * len(case.steps))
    for step, given in enumerate(case.steps):
        scores = given.scores[None]  # as products of a query with the unit vectors
        key = torch.eye(scores.shape[-1]).expand(2, scores.shape[1], -1, -1)
        tap = Tap("site", 0, case.height, case.width, scores.repeat(2, 1, 1, 1), key, key, 1.0)
        regulator.passes.step = step
        if step == 0:
            layer = regulator._layer(tap, tap.scores(slice(1, 2)).transpose(-1, -2))
            layer.starts = torch.stack([s.theta.transpose(0, 1) for s in case.steps])
            regulator._layer = lambda tap, scores, layer=layer: layer
        torch.testing.assert_close(regulator(tap).probs[0], given.probs, rtol=1e-3, atol=1e-5)
