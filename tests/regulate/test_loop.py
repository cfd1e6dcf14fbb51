"""Guidance in a pipeline's own loop: beside a loop written out, under many schedulers, with its user's callbacks."""

import warnings
from dataclasses import replace

import families
import pytest
import slow_guidance as slow
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from literal_guidance import Literal

from metrics.machine import counting
from regulate import Method, applied
from regulate.loop import Moment, steering

PROMPT, TARGETS, STEPS = "a cat and a dog", ["cat", "dog"], 3
GUIDED = Literal(until=0.7)  # two of three steps, rounded down
LOSS = slow.loss_of(slow.WEIGHTS)
NOISE = families.NOISE
SCHEDULERS = {
    "DDIM": DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False),
    "DPM-Solver++": DPMSolverMultistepScheduler(**NOISE),
    "Euler": EulerDiscreteScheduler(**NOISE),
    "LMS": LMSDiscreteScheduler(**NOISE),
    "UniPC": UniPCMultistepScheduler(**NOISE),
    "PNDM": PNDMScheduler(**NOISE, skip_prk_steps=True),
    "Heun": HeunDiscreteScheduler(**NOISE),
}
PASSES = dict.fromkeys(SCHEDULERS, 3) | {"PNDM": 4, "Heun": 5}


@pytest.fixture(scope="module")
def shared(clip_tokenizer) -> StableDiffusionPipeline:
    return families.sd1(clip_tokenizer)


@pytest.fixture
def pipe(shared) -> StableDiffusionPipeline:
    """One for all tests, with a scheduler of each test's own."""
    shared.scheduler = DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False)
    return shared


def called(pipe, seeds=(3,), steps=STEPS, **options):
    chance = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_images_per_prompt": len(seeds), "guidance_scale": 5.0, "output_type": "latent"} | options
    return pipe(PROMPT, num_inference_steps=steps, generator=chance, **options).images


def guided(pipe, method, seeds=(3,), **options):
    with applied(pipe, method, PROMPT, TARGETS, seeds):
        return called(pipe, seeds, **options)


@pytest.mark.filterwarnings("ignore:UniPCMultistepScheduler goes on from samples")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_under_every_scheduler_the_latents_are_those_of_a_loop_written_out(pipe, name):
    """And they are the plain ones bit for bit where the loss moves nothing, and the same again in a second run."""
    pipe.scheduler = SCHEDULERS[name]
    plain = called(pipe)
    with counting(pipe.unet) as count:
        found = guided(pipe, GUIDED)
    assert (count.passes - count.with_gradient, count.with_gradient) == (PASSES[name], 2)
    expected = slow.guided(pipe, PROMPT, 3, STEPS, LOSS, altered=2, step_size=GUIDED.step_size)
    assert (found - plain).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(guided(pipe, GUIDED), found)
    assert torch.equal(guided(pipe, replace(GUIDED, times=0.0)), plain)


@pytest.mark.parametrize("scaled", [True, False])
def test_latents_are_seen_scaled_or_not_as_is_asked(pipe, scaled):
    pipe.scheduler = SCHEDULERS["Euler"]
    size = GUIDED.step_size
    found = guided(pipe, replace(GUIDED, scaled=scaled))
    ways = {
        way: slow.guided(pipe, PROMPT, 3, STEPS, LOSS, altered=2, step_size=size, scaled=way) for way in (True, False)
    }
    assert (ways[True] - ways[False]).abs().max() > 0.01
    torch.testing.assert_close(found, ways[scaled], atol=1e-4, rtol=1e-5)


def test_refinement_falls_on_the_same_share_of_the_steps_where_a_step_has_two_stages(pipe):
    """Heun makes 9 passes of 5 steps; a fifth of the passes would end before a second stage, where nothing is moved."""
    pipe.scheduler = SCHEDULERS["Heun"]
    with counting(pipe.unet) as count:
        guided(pipe, Literal(until=0.0, refine_at=((0.2, None), (0.4, None)), refinements=1), steps=5)
    assert (count.passes - count.with_gradient, count.with_gradient) == (9, 4)


def test_the_update_before_step_0_acts_and_is_that_of_the_loop_written_out(pipe):
    found = guided(pipe, Literal(until=0.4))
    expected = slow.guided(pipe, PROMPT, 3, STEPS, LOSS, altered=1, step_size=GUIDED.step_size)
    assert (found - called(pipe)).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_a_user_s_callback_gets_the_tensors_that_it_asked_for_and_its_changes_are_kept(pipe):
    seen = []

    def add_one(pipe, step, timestep, tensors):
        seen.append((step, sorted(tensors)))
        return {"latents": tensors["latents"] + 1} if step == STEPS - 1 else {}

    def look_on(pipe, step, timestep, tensors):
        seen.append((step, sorted(tensors)))
        return {}

    expected = guided(pipe, GUIDED)
    found = guided(pipe, GUIDED, callback_on_step_end=add_one)
    assert seen == [(step, ["latents"]) for step in range(STEPS)]
    assert torch.equal(found, expected + 1)
    seen.clear()
    named = ["prompt_embeds"]
    found = guided(pipe, GUIDED, callback_on_step_end=look_on, callback_on_step_end_tensor_inputs=named)
    assert seen == [(step, named) for step in range(STEPS)]
    assert named == ["prompt_embeds"]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("in_place", [True, False])
def test_what_a_callback_makes_of_the_latents_is_what_is_moved_next(pipe, in_place):
    moments = []

    def clear(pipe, step, timestep, tensors):
        if in_place:
            tensors["latents"].zero_()
            return {}
        return {"latents": torch.zeros_like(tensors["latents"])}

    def update(moment: Moment) -> torch.Tensor:
        moments.append(moment.latents.clone())
        return moment.latents + 2

    with steering(pipe, [update]):
        called(pipe, callback_on_step_end=clear)
    assert len(moments) == STEPS
    assert moments[0].any()
    assert not any(latents.any() for latents in moments[1:])


def test_latents_that_a_callback_keeps_stay_as_they_were_given_to_it(pipe):
    kept, copies, own = [], [], []

    def keep(pipe, step, timestep, tensors):
        kept.append(tensors["latents"])
        copies.append(tensors["latents"].clone())
        return tensors

    def replace_by_one_s_own(pipe, step, timestep, tensors):
        own.append(torch.ones_like(tensors["latents"]))
        return {"latents": own[-1]}

    guided(pipe, Literal(until=1.0), callback_on_step_end=keep)
    assert all(map(torch.equal, kept, copies))
    guided(pipe, Literal(until=1.0), callback_on_step_end=replace_by_one_s_own)
    assert all((latents == 1).all() for latents in own)


def test_latents_that_the_user_gives_stay_as_they_are(pipe):
    given = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    before = given.clone()
    expected = guided(pipe, GUIDED)
    assert torch.equal(guided(pipe, GUIDED, latents=given), expected)
    assert torch.equal(given, before)


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: MultiPipelineCallbacks([one])], ids=["one", "several"])
def test_guidance_goes_on_when_a_callback_of_diffusers_switches_the_other_half_off(pipe, wrap):
    rows = []
    handle = pipe.unet.register_forward_pre_hook(
        lambda unet, args: rows.append((len(args[0]), torch.is_grad_enabled()))
    )
    cutoff = wrap(SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0))
    found = guided(pipe, GUIDED, callback_on_step_end=cutoff)
    handle.remove()
    assert [count for count, gradient in rows if not gradient] == [2, 1, 1]
    assert [count for count, gradient in rows if gradient] == [1, 1]
    scales = [5.0, 1.0, 1.0]
    expected = slow.guided(
        pipe, PROMPT, 3, STEPS, LOSS, altered=2, step_size=GUIDED.step_size, scales=scales
    )  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_without_classifier_free_guidance_the_whole_batch_is_the_prompt_s(pipe):
    found = guided(pipe, GUIDED, guidance_scale=1.0)
    scales = [1.0] * STEPS
    expected = slow.guided(pipe, PROMPT, 3, STEPS, LOSS, altered=2, step_size=GUIDED.step_size, scales=scales)
    assert (found - called(pipe, guidance_scale=1.0)).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_blocks_inside_one_another_act_one_after_the_other(pipe):
    """The inner one moves first; with a callback of the user's, which blocks hand on to one another."""

    def add(number):
        return lambda moment: moment.latents + number

    def double(moment):
        return moment.latents * 2

    def nothing(pipe, step, timestep, tensors):
        return {}

    with steering(pipe, [add(0.5), double]):
        expected = called(pipe, callback_on_step_end=nothing)
    with steering(pipe, [double]), steering(pipe, [add(0.5)]):
        assert torch.equal(called(pipe, callback_on_step_end=nothing), expected)
    assert not torch.equal(called(pipe), expected)


def test_a_method_that_alters_no_step_makes_no_pass_of_its_own(pipe):
    plain = called(pipe)
    with counting(pipe.unet) as count:
        found = guided(pipe, replace(Literal(), until=0.2))  # of three steps, rounded down
    assert (count.passes, count.with_gradient) == (STEPS, 0)
    assert torch.equal(found, plain)
    assert torch.equal(guided(pipe, Method()), plain)


@pytest.mark.parametrize(
    ("scheduler", "keeps"),
    [
        (UniPCMultistepScheduler(**NOISE), True),
        (SASolverScheduler(**NOISE), True),
        (DPMSolverSinglestepScheduler(**{k: v for k, v in NOISE.items() if k != "steps_offset"}, solver_order=2), True),
        (PNDMScheduler(**NOISE, skip_prk_steps=False), True),
        (PNDMScheduler(**NOISE, skip_prk_steps=True), False),
        (DDIMScheduler(**NOISE), False),
        (DPMSolverMultistepScheduler(**NOISE), False),
    ],
)
def test_a_scheduler_that_goes_on_from_samples_of_its_own_is_warned_of(pipe, scheduler, keeps):
    pipe.scheduler = scheduler
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with steering(pipe, []):
            pass
    assert [type(scheduler).__name__ in str(one.message) for one in said] == [True] * keeps
