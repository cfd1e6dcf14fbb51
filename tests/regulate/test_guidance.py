"""The schedule of latent guidance: its passes, what a loss is told, and images that do not depend on their batch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count as numbers

import families
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from literal_guidance import Literal

from metrics.machine import counting
from regulate import Given, Method, applied, attend_and_excite, conform
from regulate.attend_and_excite import AttendAndExcite
from regulate.conform import Conform
from regulate.guidance import Look
from regulate.predicated import PredicatedDiffusion
from regulate.structure import Group
from regulate.syngen import SynGen
from regulate.t_sam import TSam

PROMPTS, WORDS = ["a red cat and a dog", "a lion with dark glasses"], [["cat", "dog"], ["lion", "glasses"]]
GIVEN = [
    Given((Group("cat", ("red",)), Group("dog"))),
    Given((Group("lion"), Group("glasses", ("dark",)))),
]
STEPS, HALF = 6, 3
NEVER, ALWAYS = 2.0, 0.0  # thresholds that no loss between 0 and 1 reaches, and that every one does
SHARES = (0.0, 0.2, 0.4)  # of six steps: 0, 1, 2


@pytest.fixture(scope="module")
def pipe(clip_tokenizer) -> StableDiffusionPipeline:
    pipe = families.sd1(clip_tokenizer)
    pipe.scheduler = DDIMScheduler(**families.NOISE, clip_sample=False, set_alpha_to_one=False)
    return pipe


def made(pipe, method, images=(0, 1), steps=STEPS, seeds=(3, 4), **options):
    """The latents of some of the two prompts' images, and the passes that they took: sampling, and with gradients."""
    prompts, chosen = [PROMPTS[i] for i in images], [seeds[i] for i in images]
    words, given = [WORDS[i] for i in images], [GIVEN[i] for i in images]
    with counting(pipe.unet) as count, applied(pipe, method, prompts, words, chosen, given=given) as run:
        latents = pipe(
            prompts, num_inference_steps=steps, guidance_scale=5.0, generator=run.generators, output_type="latent",
            **options,
        ).images  # fmt: skip
    return latents, (count.passes - count.with_gradient, count.with_gradient)


@pytest.fixture(scope="module")
def plain(pipe) -> torch.Tensor:
    return made(pipe, Method())[0]


def at(threshold: float | None) -> tuple[tuple[float, float | None], ...]:
    return tuple((share, threshold) for share in SHARES)


@dataclass(frozen=True)
class Rising(Literal):
    """What thresholds are compared with is 0.1 at an image's first look of all, 0.2 at the next, and so on."""

    def reach_of(self, pipe, subject):
        looks: Iterator[int] = numbers(1)
        return lambda look: look.maps.new_tensor(next(looks) / 10)


# of a batch of two images, over six steps; released code looks at each image by itself
CASES = {
    "released, thresholds missed": (AttendAndExcite(refinements=1, refine_at=at(NEVER)), 2 * (6 + 3 * (1 + 1))),
    "released, reached at once": (AttendAndExcite(refine_at=at(ALWAYS)), 2 * 6),
    "released, no moves allowed": (AttendAndExcite(refinements=0), 2 * 6),
    "fixed, thresholds missed": (replace(attend_and_excite.FIXED, refinements=2, refine_at=at(NEVER)), HALF + 3 * 2),
    "fixed, reached at once": (replace(attend_and_excite.FIXED, refine_at=at(ALWAYS)), HALF),
    "conform": (Conform(refinements=1), 2 * (6 + 3 * (1 + 1))),
    "conform, fixed": (replace(conform.FIXED, refinements=2), HALF + 3 * 2),
    "syngen": (SynGen(), 2 * HALF),
    "predicated": (PredicatedDiffusion(), HALF),
    "t-sam": (TSam(), HALF),
}


@pytest.mark.parametrize("name", CASES)
def test_a_method_takes_the_passes_of_its_schedule_and_changes_the_latents(pipe, plain, name):
    method, expected = CASES[name]
    latents, passes = made(pipe, method)
    assert passes == (STEPS, expected)
    least, most = method.gradient_passes(STEPS, 2)
    assert expected == (most if "missed" in name or name == "conform, fixed" else least)  # least: of bare nouns
    assert latents.isfinite().all()
    assert all(not torch.equal(one, other) for one, other in zip(latents, plain, strict=True))


def test_a_loss_without_a_slope_is_looked_at_once_not_twenty_times(pipe, plain):
    """Of bare nouns, CONFORM has no pair of one class at the first step; of the other image it has, and is moved."""
    first = replace(conform.FIXED, until=0.2, refine_at=((0.0, None),), refinements=2)
    bare = Given((Group("cat"), Group("dog")))

    def of(images):
        prompts, words = [PROMPTS[i] for i in images], [WORDS[i] for i in images]
        given, seeds = [(bare, GIVEN[1])[i] for i in images], [(3, 4)[i] for i in images]
        with counting(pipe.unet) as count, applied(pipe, first, prompts, words, seeds, given=given) as run:
            latents = pipe(
                prompts, num_inference_steps=STEPS, guidance_scale=5.0, generator=run.generators, output_type="latent"
            ).images  # fmt: skip
        return latents, count.with_gradient

    both, alone, other = of((0, 1)), of((0,)), of((1,))
    assert (both[1], alone[1], other[1]) == (3, 1, 3)
    assert first.gradient_passes(STEPS) == (1, 3)
    torch.testing.assert_close(both[0], torch.cat([alone[0], other[0]]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(alone[0], plain[:1], atol=1e-4, rtol=1e-4)
    assert (other[0] - plain[1:]).abs().max() > 1e-2


def test_fifty_steps_take_the_passes_that_the_papers_state():
    """Three refined steps of twenty moves; the mended sets look half as often, and not again after a last move."""
    pairs = {
        AttendAndExcite(): (50, 50 + 3 * 21),
        attend_and_excite.FIXED: (25, 25 + 3 * 20),
        Conform(): (50 + 3 * 21, 50 + 3 * 21),
        conform.FIXED: (30 + 2 * 20, 30 + 3 * 20),  # of bare nouns nothing is moved at the first step
        SynGen(): (25, 25),
        PredicatedDiffusion(): (25, 25),
        TSam(): (25, 25),
    }
    assert {method.gradient_passes(50) for method in pairs} == set(pairs.values())
    assert all(method.gradient_passes(50) == passes for method, passes in pairs.items())
    assert AttendAndExcite().gradient_passes(50, 4) == (200, 452)
    assert attend_and_excite.FIXED.gradient_passes(50, 4) == (25, 85)
    assert replace(attend_and_excite.FIXED, together=3).gradient_passes(50, 4) == (50, 170)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 1 + 3),  # looks of 0.1, 0.2, 0.3, and the 0.4 that is enough
        ({"needless": True, "together": 1}, STEPS + 3 + 1),  # the first move starts from a second look at the same
        ({"refinements": 2}, 1 + 2),
        ({"refinements": 2, "needless": True, "together": 1}, STEPS + 2 + 1),
    ],
)
def test_a_threshold_that_is_reached_on_the_way_ends_the_moves(pipe, options, passes):
    method = Rising(until=0.0, refine_at=((0.0, 0.35),), **options)
    assert made(pipe, method, images=(0,))[1] == (STEPS, passes)
    least, most = method.gradient_passes(STEPS)
    assert least <= passes <= most


@pytest.mark.parametrize("needless", [False, True])
def test_moves_of_a_refined_step_are_those_of_as_many_single_ones(pipe, needless):
    """Before the first of two steps: two refining moves and the move of every altered step, all of one size."""
    wanted = {"needless": needless, "together": 1}
    thrice, _ = made(pipe, Literal(until=0.5, refine_at=((0.0, None),), refinements=2, **wanted), (0,), steps=2)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))

    def first(latents):
        found = []

        def stop(pipe, step, timestep, tensors):
            raise InterruptedError

        def note(unet, args):
            if not torch.is_grad_enabled():
                found.append(args[0][:1].clone())

        handle = pipe.unet.register_forward_pre_hook(note)
        with pytest.raises(InterruptedError):
            made(pipe, Literal(until=0.5), (0,), steps=2, latents=latents, callback_on_step_end=stop)
        handle.remove()
        return found[0]

    by_hand = first(first(first(noise)))
    plain, _ = made(pipe, Method(), (0,), steps=2, latents=by_hand)
    torch.testing.assert_close(thrice, plain, atol=1e-4, rtol=1e-5)


def test_each_image_of_a_batch_is_the_one_made_alone(pipe):
    """Different prompts and targets; one image reaches the threshold at once, the other never does."""
    seen = {}

    @dataclass(frozen=True)
    class Watched(Literal):
        def reach_of(self, pipe, subject):
            def reach(look: Look) -> torch.Tensor:
                value = 1 - self.loss_of(pipe, subject)(look)
                seen.setdefault(subject.prompt, float(value.detach()))
                return value

            return reach

    made(pipe, Watched(until=0.5), steps=2)
    threshold = sum(seen.values()) / 2
    method = Literal(until=0.5, refine_at=((0.0, threshold),), refinements=2, step_size=500.0)
    alone = [made(pipe, method, (image,), steps=2) for image in (0, 1)]
    assert sorted(gradients for _, (_, gradients) in alone) == [1, 1 + 2]
    both, passes = made(pipe, method, steps=2)
    assert passes == (2, 1 + 2)
    torch.testing.assert_close(both, torch.cat([latents for latents, _ in alone]), atol=1e-4, rtol=1e-5)
    one_by_one, passes = made(pipe, replace(method, together=1), steps=2)
    assert passes == (2, 1 + 1 + 2)
    torch.testing.assert_close(one_by_one, both, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("method", [attend_and_excite.FIXED, conform.FIXED, TSam()], ids=lambda one: one.name)
def test_methods_that_look_at_a_batch_at_once_make_each_image_as_if_alone(pipe, method):
    method = replace(method, refinements=1, refine_at=((0.0, None),))
    alone = torch.cat([made(pipe, method, (image,), steps=3)[0] for image in (0, 1)])
    both, _ = made(pipe, method, steps=3)
    torch.testing.assert_close(both, alone, atol=1e-4, rtol=1e-5)


def test_several_images_of_several_prompts_are_looked_at_in_parts_of_the_batch(pipe):
    """Four images in parts of three and one, so that the first part holds images of both prompts."""
    method = Literal(until=0.5, together=3)
    with counting(pipe.unet) as count, applied(pipe, method, PROMPTS, WORDS, (3, 4, 5, 6)) as run:
        found = pipe(
            PROMPTS, num_images_per_prompt=2, num_inference_steps=2, guidance_scale=5.0, generator=run.generators,
            output_type="latent",
        ).images  # fmt: skip
    assert count.with_gradient == method.gradient_passes(2, 4)[0] == 2
    for image, prompt, seed in ((1, 0, 4), (2, 1, 5), (3, 1, 6)):
        alone, _ = made(pipe, method, (prompt,), steps=2, seeds=(seed, seed))
        torch.testing.assert_close(found[image], alone[0], atol=1e-4, rtol=1e-5)


def looks_of(pipe, method_of, calls: int) -> list[Look]:
    """What the loss of the first prompt's image was told in some calls of one block."""
    looks: list[Look] = []

    class Watched(Literal):
        def loss_of(self, pipe, subject):
            loss = super().loss_of(pipe, subject)
            return lambda look: looks.append(look) or loss(look)

    with applied(pipe, method_of(Watched), PROMPTS[0], WORDS[0]):
        for _ in range(calls):
            pipe(PROMPTS[0], num_inference_steps=4, output_type="latent", generator=torch.Generator().manual_seed(3))
    return looks


def test_a_loss_is_told_the_step_and_the_last_maps_of_the_step_before(pipe):
    looks = looks_of(pipe, lambda kind: kind(until=0.75, refine_at=((0.25, None),), refinements=1), calls=1)
    assert [(look.step, look.steps) for look in looks] == [(0, 4), (1, 4), (1, 4), (2, 4)]
    assert looks[0].before is None
    for look, last in ((looks[1], looks[0]), (looks[2], looks[0]), (looks[3], looks[2])):
        assert torch.equal(look.before, last.maps.detach())
        assert not look.before.requires_grad
    assert not torch.equal(looks[1].maps, looks[2].maps)


def test_maps_of_a_call_or_of_a_step_further_back_are_not_those_of_the_step_before(pipe):
    looks = looks_of(pipe, lambda kind: kind(until=0.25, refine_at=((0.5, None),), refinements=1), calls=2)
    assert [look.step for look in looks] == [0, 2, 2] * 2
    assert all(look.before is None for look in looks)
    looks = looks_of(pipe, lambda kind: kind(until=0.0, refine_at=((0.75, None),), refinements=1), calls=2)
    assert all(look.before is None for look in looks)


def test_a_second_call_in_one_block_starts_anew_and_blocks_do_not_show_in_one_another(pipe, clip_tokenizer):
    method = replace(conform.FIXED, refine_at=(), until=0.7)  # it has the maps of the step before
    fresh = families.sd1(clip_tokenizer)
    fresh.scheduler = DDIMScheduler(**families.NOISE, clip_sample=False, set_alpha_to_one=False)
    expected = [made(fresh, method, (image,), steps=3)[0] for image in (1, 0)]
    first, _ = made(pipe, method, (1,), steps=3)
    made(pipe, method, (0, 1), steps=3)
    with applied(pipe, method, PROMPTS[0], WORDS[0], given=GIVEN[0]):
        options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent"}
        twice = [pipe(PROMPTS[0], generator=torch.Generator().manual_seed(3), **options).images for _ in range(2)]
    assert torch.equal(first, expected[0])
    assert torch.equal(twice[0], expected[1])
    assert torch.equal(twice[1], expected[1])


def test_alpha_falls_as_the_root_of_a_line_over_all_steps():
    falling, level = Literal(step_size=20.0), Literal(step_size=20.0, shrinks=False)
    assert [falling.step_at(step, 3) for step in range(3)] == pytest.approx([20.0, 20 * 0.75**0.5, 20 * 0.5**0.5])
    assert [level.step_at(step, 3) for step in range(3)] == [20.0] * 3
    assert falling.step_at(0, 1) == 20.0


def test_shares_of_the_steps_are_rounded_down():
    method = Literal(refine_at=((0.0, 0.05), (0.2, 0.5), (0.4, None)))
    refined = [(step, method.threshold_at(step, 51)[1]) for step in range(51) if method.threshold_at(step, 51)[0]]
    assert refined == [(0, 0.05), (10, 0.5), (20, None)]
    assert [step for step in range(15) if method.threshold_at(step, 15)[0]] == [
        0,
        3,
        6,
    ]  # 0.2 * 15 is below 3 in floats


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 1.5}, "until and refine_at must be shares from 0 to 1"),
        ({"refine_at": ((-0.1, None),)}, "until and refine_at must be shares from 0 to 1"),
        ({"refinements": -1}, "refinements must be at least 0, together 1 or more"),
        ({"together": 0}, "refinements must be at least 0, together 1 or more"),
        ({"needless": True, "together": None}, "together must be 1 with needless passes"),
    ],
)
def test_wrong_constants_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TSam(**{"needless": False} | options)
