"""InitNO beside its formulas, and what its search does with whole images."""

import random
from copy import copy
from typing import Any

import families
import pytest
import slow_edits
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch.distributions import Normal, kl_divergence

import regulate.initno as initno
from metrics.machine import counting
from regulate import METHODS, Method, applied
from regulate.initno import InitNO, conflict_loss, noise_divergence

PROMPTS, TARGETS = ["a cat and a red dog", "a lion with glasses"], [["cat", "dog"], ["lion", "glasses"]]
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
NEVER: dict[str, Any] = {"cross": 0.0, "own": 0.0}
AT_ONCE: dict[str, Any] = {"cross": 2.0, "own": 2.0}


@pytest.fixture
def pipe(emoji_tokenizer):
    pipe = families.sd1(emoji_tokenizer, sample_size=8)
    pipe.scheduler = DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False)
    return pipe


def hooks_of(pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def made(pipe, method, prompts=PROMPTS, targets=TARGETS, seeds=(3, 4), **options):
    options = {"num_inference_steps": 1, "guidance_scale": 5.0, "output_type": "latent"} | options
    with applied(pipe, method, prompts, targets, seeds) as run:
        return pipe(prompts, generator=run.generators, **options, **run.call).images


def begun(pipe, method, *args, **options):
    """The latents of which the first sampling pass is made, as the scheduler gets them."""
    found: list[torch.Tensor] = []

    def note(unet, given):
        if not torch.is_grad_enabled() and not found:
            found.append(given[0].clone())

    handle = pipe.unet.conv_in.register_forward_pre_hook(note)
    made(pipe, method, *args, **options)
    handle.remove()
    first = found[0][len(found[0]) // 2 :]
    sigma = getattr(pipe.scheduler, "sigmas", None)
    return first if not isinstance(pipe.scheduler, EulerDiscreteScheduler) else first * (sigma[0] ** 2 + 1) ** 0.5


def noise_of(*seeds: int) -> torch.Tensor:
    return torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def spied(monkeypatch, name: str) -> list:
    """(arguments, result) of every call of one of the search's own functions, which runs as ever."""
    calls, own = [], getattr(initno._Search, name)

    def spy(self, *args):
        result = own(self, *args)
        calls.append((args, copy(result)))
        return result

    monkeypatch.setattr(initno._Search, name, spy)
    return calls


@pytest.mark.parametrize("words", [[(1,), (3,)], [(1, 2), (4,), (3,)], [(2,)]])
def test_the_conflict_is_that_of_the_literal_loop(words):
    chance = random.Random(0)
    for height, width in ((4, 4), (3, 5)):
        text = [[[chance.random() for _ in range(width)] for _ in range(height)] for _ in range(7)]
        own = [[chance.random() for _ in range(height * width)] for _ in range(height * width)]
        found = conflict_loss(*(torch.tensor(part, dtype=torch.float64) for part in (text, own)), words)
        assert float(found) == pytest.approx(slow_edits.conflict(text, own, words), abs=1e-12)


def test_the_conflict_of_equal_regions_is_a_half_and_of_regions_apart_nothing():
    text = torch.zeros(4, 8, 8)
    text[1, 0, 0] = text[2, 7, 7] = 1.0
    own = torch.zeros(64, 64)
    own[:, 9] = 1.0
    assert float(conflict_loss(text, own, [(1,), (2,)])) == pytest.approx(0.5)
    assert float(conflict_loss(text, torch.eye(64), [(1,), (2,)])) == 0.0


def test_the_conflict_s_gradient_is_that_of_differences():
    chance = torch.Generator().manual_seed(0)
    text = torch.rand(6, 3, 4, generator=chance, dtype=torch.float64)
    own = torch.rand(12, 12, generator=chance, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda own: conflict_loss(text, own, [(1,), (2, 3), (4,)]), (own,))
    text.requires_grad_()  # of one target there is nothing to separate, but still a graph
    assert torch.autograd.grad(conflict_loss(text, own, [(1,)]), text)[0].abs().max() == 0


def test_the_divergence_is_torch_s_own():
    chance = torch.Generator().manual_seed(0)
    mean, log_var = torch.randn(2, 3, 4, 5, 6, generator=chance)
    theirs = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(0.0, 1.0)).flatten(1).mean(1)
    torch.testing.assert_close(noise_divergence(mean, log_var), theirs)
    assert noise_divergence(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).tolist() == [0.0]


def test_adam_is_torch_s_own_on_each_image_and_one_that_rests_keeps_its_state():
    chance = torch.Generator().manual_seed(0)
    found = torch.zeros(3, 2, 4, 4)
    adam = initno._Adam(found, 0.01)
    theirs = [torch.zeros(2, 4, 4, requires_grad=True) for _ in range(3)]
    optimisers = [torch.optim.Adam([image], lr=0.01, eps=1e-3) for image in theirs]
    for move in range(8):
        active = torch.tensor([True, move % 2 == 0, move > 4])
        slope = torch.randn(3, 2, 4, 4, generator=chance) * 10.0 ** (move % 3 - 3)
        found = found + adam.step(slope, active)
        for image, optimiser in enumerate(optimisers):
            if active[image]:
                theirs[image].grad = slope[image].clone()
                optimiser.step()
        torch.testing.assert_close(found, torch.stack([image.detach() for image in theirs]), atol=1e-7, rtol=1e-5)
    assert adam.count.flatten().tolist() == [8, 4, 3]


def test_noise_that_will_do_is_left_as_it_is_after_one_pass(pipe):
    stock = made(pipe, Method())
    with counting(pipe.unet) as count:
        assert torch.equal(made(pipe, InitNO(**AT_ONCE)), stock)
    assert (count.passes, count.with_gradient) == (2, 1)


def test_noise_that_never_will_is_searched_in_every_round_and_the_best_of_them_longer(pipe):
    with counting(pipe.unet) as count:
        found = begun(pipe, InitNO(**NEVER, rounds=3, moves=2, last_moves=4))
    assert (count.passes, count.with_gradient) == (1 + 3 * 2 + 4, 3 * 2 + 4)
    assert InitNO(**NEVER, rounds=3, moves=2, last_moves=4).gradient_passes(2) == (1, 10)
    assert not torch.allclose(found, noise_of(3, 4), atol=1e-3)


def test_the_noise_with_the_least_loss_is_the_one_that_is_moved_longer(pipe, monkeypatch):
    calls = spied(monkeypatch, "_optimised")
    found = begun(pipe, InitNO(**NEVER, rounds=4, moves=1, last_moves=2))
    starts = torch.stack([args[1] for args, _ in calls[:4]])
    scores = torch.stack([result.score for _, result in calls[:4]])
    best = starts[scores.argmin(0), torch.arange(2)]
    assert torch.equal(starts[0], noise_of(3, 4))
    assert len({float(start[0, 0, 0, 0]) for start in starts}) == 4
    assert len(calls) == 5
    assert torch.equal(calls[4][0][1], best)
    assert torch.equal(calls[4][1].noise, found)


def test_an_image_that_succeeds_rests_while_the_others_go_on(pipe, monkeypatch):
    losses = spied(monkeypatch, "_losses")
    begun(pipe, InitNO(**NEVER, rounds=1, moves=1, last_moves=0))
    cross = losses[0][1][0].detach()
    easy = int(cross.argmin())
    threshold = float(cross.mean())
    assert abs(float(cross[0] - cross[1])) > 1e-3
    found = begun(pipe, InitNO(cross=threshold, own=1.0, rounds=1, moves=3, last_moves=2))
    noise = noise_of(3, 4)
    assert torch.equal(found[easy], noise[easy])
    assert not torch.equal(found[1 - easy], noise[1 - easy])


def test_success_in_a_later_round_is_taken_with_that_round_s_noise(pipe, monkeypatch):
    losses = spied(monkeypatch, "_losses")
    begun(pipe, InitNO(**NEVER, rounds=5, moves=1, last_moves=0), PROMPTS[:1], TARGETS[:1], (3,))
    cross = [float(result[0].detach()) for _, result in losses]
    better = next(round_ for round_ in range(1, 5) if cross[round_] < cross[0])
    tried = losses[better][0][1].detach()
    with counting(pipe.unet) as count:
        method = InitNO(cross=(cross[better] + cross[0]) / 2, own=1.0, rounds=5, moves=1)
        found = begun(pipe, method, PROMPTS[:1], TARGETS[:1], (3,))
    assert torch.equal(found, tried)
    assert count.with_gradient == better + 1


def test_the_divergence_stays_below_its_bound_for_every_image(pipe, monkeypatch):
    calls = spied(monkeypatch, "_near_gaussian")
    begun(pipe, InitNO(**NEVER, rate=0.05, rounds=1, moves=4, last_moves=3))
    before = torch.stack([noise_divergence(*args[:2]) for args, _ in calls])
    after = torch.stack([noise_divergence(*result) for _, result in calls])
    assert (before.amax(0) > 1e-3).all()  # or nothing would have been brought back
    assert (after > 0).all()
    assert after.max() <= 1e-3


def test_an_image_s_noise_does_not_depend_on_its_batch(pipe):
    method = InitNO(**NEVER, rounds=2, moves=2, last_moves=2)
    both = begun(pipe, method)
    for image, seed in enumerate((3, 4)):
        place = slice(image, image + 1)
        alone = begun(pipe, method, PROMPTS[place], TARGETS[place], (seed,))
        torch.testing.assert_close(both[place], alone, atol=1e-4, rtol=1e-4)


def test_all_is_done_before_the_first_step_of_each_call(pipe):
    kinds: list[bool] = []
    handle = pipe.unet.register_forward_pre_hook(lambda unet, args: kinds.append(torch.is_grad_enabled()))
    with applied(pipe, InitNO(**NEVER, rounds=1, moves=2, last_moves=1), PROMPTS, TARGETS, (3, 4)) as run:
        latents = []
        for _ in range(2):
            chance = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
            found = pipe(PROMPTS, num_inference_steps=3, generator=chance, output_type="latent", **run.call)
            latents.append(found.images)
    handle.remove()
    assert kinds == ([True] * 3 + [False] * 3) * 2
    assert torch.equal(*latents)
    assert hooks_of(pipe) == 0
    assert all(parameter.requires_grad for parameter in pipe.unet.parameters())


def test_under_a_scheduler_whose_noise_is_larger_the_search_is_for_noise_of_deviation_1(pipe, monkeypatch):
    """Euler's latents begin at 14.6 times the noise, and the network sees them scaled down again."""
    pipe.scheduler = EulerDiscreteScheduler(**NOISE)
    stock = made(pipe, Method(), num_inference_steps=2)
    torch.testing.assert_close(made(pipe, InitNO(**AT_ONCE), num_inference_steps=2), stock, atol=1e-4, rtol=1e-4)
    seen: list[float] = []
    handle = pipe.unet.conv_in.register_forward_pre_hook(
        lambda module, args: seen.append(float(args[0].detach().std()))
    )
    calls = spied(monkeypatch, "_optimised")
    found = begun(pipe, InitNO(**NEVER, rounds=1, moves=2, last_moves=2), num_inference_steps=2)
    handle.remove()
    assert pipe.scheduler.init_noise_sigma > 10
    assert max(seen[:5]) < 1.5  # four moves, and the first step
    torch.testing.assert_close(calls[0][0][1], noise_of(3, 4), atol=1e-5, rtol=1e-4)
    scale = float(pipe.scheduler.init_noise_sigma)
    torch.testing.assert_close(found, calls[-1][1].noise * scale, atol=1e-3, rtol=1e-4)
    assert 1e-4 < (found / scale - noise_of(3, 4)).abs().max() < 0.3


def test_the_loss_falls(pipe, monkeypatch):
    losses = spied(monkeypatch, "_losses")
    begun(pipe, InitNO(**NEVER, rounds=1, moves=8, last_moves=0, divergence=0.1, rate=0.05))
    joint = [float((cross + own * (cross <= 0.5)).detach().sum()) for _, (cross, own) in losses]
    assert min(joint[1:]) < joint[0] - 1e-3


def test_a_text_that_ends_at_its_end_token_has_neither_it_nor_padding_among_its_words(pipe):
    chance = torch.Generator().manual_seed(1)
    text, own = torch.randn(9, 4, 4, generator=chance).softmax(0), torch.randn(16, 16, generator=chance).softmax(1)
    words = [(1,), (3, 4)]
    cut = conflict_loss(text[:7], own, words)
    torch.testing.assert_close(conflict_loss(text, own, words, end=6), cut)
    assert not torch.equal(conflict_loss(text, own, words), cut)
    once = {**NEVER, "rounds": 1, "moves": 1, "last_moves": 0}
    assert not torch.equal(begun(pipe, InitNO(**once, until_end=True)), begun(pipe, InitNO(**once)))


def test_the_conflict_counts_only_where_the_cross_attention_loss_is_small_enough(pipe, monkeypatch):
    once = {**NEVER, "rounds": 1, "moves": 1, "last_moves": 0}
    never, always = (begun(pipe, InitNO(**once, conflict_below=bound)) for bound in (0.0, 1.0))
    monkeypatch.setattr(initno, "conflict_loss", lambda text, own, words, end: own.sum() * 0)
    without = begun(pipe, InitNO(**once))
    assert torch.equal(never, without)
    assert not torch.equal(without, noise_of(3, 4))
    assert not torch.equal(always, without)


def test_wrong_requests_are_refused(pipe):
    with pytest.raises(ValueError, match="InitNO needs at least one target for every prompt"):
        made(pipe, InitNO(), targets=[["cat"], []])
    wrongs: list[dict[str, Any]] = [{"rounds": 0}, {"moves": 0}, {"last_moves": -1}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="rounds and moves must be at least 1, last_moves at least 0, got"):
            InitNO(**wrong)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="latents cannot be guided in torch"),
    ):
        made(pipe, InitNO())
    assert hooks_of(pipe) == 0


def test_it_is_among_the_methods():
    assert METHODS["initno"] == InitNO()
