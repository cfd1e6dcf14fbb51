"""The engine in a pipeline's own loop: beside a loop written out, under every scheduler, and with its user's callbacks."""

from dataclasses import replace

import families
import pytest
import slow_guidance as slow
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from literal_guidance import Literal

from metrics.machine import counting
from regulate import Method, applied
from regulate.loop import Moment, steering

PROMPT, TARGETS, STEPS = "a cat and a dog", ["cat", "dog"], 4
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
# passes of the network of four steps, and those before which latents are moved: half of them, second stages left out
PASSES = dict.fromkeys(SCHEDULERS, (4, 2)) | {"PNDM": (5, 2), "Heun": (7, 2)}


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


def state_of(pipe) -> tuple:
    """All that a block might leave behind."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())
    wanted = [parameter.requires_grad for parameter in pipe.unet.parameters()]
    return hooks, type(pipe), wanted, sorted(vars(pipe.unet)), torch.is_grad_enabled(), sorted(vars(pipe))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_under_every_scheduler_the_latents_are_those_of_a_loop_written_out(pipe, name):
    """And they are the plain ones bit for bit where the loss moves nothing, and the same again in a second run."""
    pipe.scheduler = SCHEDULERS[name]
    plain = called(pipe)
    with counting(pipe.unet) as count:
        found = guided(pipe, Literal())
    passes, altered = PASSES[name]
    assert (count.passes - count.with_gradient, count.with_gradient) == (passes, altered)
    expected = slow.guided(pipe, PROMPT, 3, STEPS, LOSS, altered=altered, step_size=Literal().step_size)
    assert (found - plain).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert torch.equal(guided(pipe, Literal()), found)
    assert torch.equal(guided(pipe, Literal(times=0.0)), plain)


@pytest.mark.parametrize("scaled", [True, False])
def test_latents_are_seen_scaled_or_not_as_is_asked(pipe, scaled):
    pipe.scheduler = SCHEDULERS["Euler"]
    size = Literal().step_size
    found = guided(pipe, Literal(scaled=scaled))
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
    found = guided(pipe, Literal(until=0.25))
    expected = slow.guided(pipe, PROMPT, 3, STEPS, LOSS, altered=1, step_size=Literal().step_size)
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

    expected = guided(pipe, Literal())
    found = guided(pipe, Literal(), callback_on_step_end=add_one)
    assert seen == [(step, ["latents"]) for step in range(STEPS)]
    assert torch.equal(found, expected + 1)
    seen.clear()
    named = ["prompt_embeds"]
    found = guided(pipe, Literal(), callback_on_step_end=look_on, callback_on_step_end_tensor_inputs=named)
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
    expected = guided(pipe, Literal())
    assert torch.equal(guided(pipe, Literal(), latents=given), expected)
    assert torch.equal(given, before)


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: MultiPipelineCallbacks([one])], ids=["one", "several"])
def test_guidance_goes_on_when_a_callback_of_diffusers_switches_the_other_half_off(pipe, wrap):
    rows = []
    handle = pipe.unet.register_forward_pre_hook(
        lambda unet, args: rows.append((len(args[0]), torch.is_grad_enabled()))
    )
    cutoff = wrap(SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1))
    found = guided(pipe, Literal(until=0.75), callback_on_step_end=cutoff)
    handle.remove()
    assert [count for count, gradient in rows if not gradient] == [2, 2, 1, 1]
    assert [count for count, gradient in rows if gradient] == [1, 1, 1]
    scales = [5.0, 5.0, 1.0, 1.0]
    expected = slow.guided(
        pipe, PROMPT, 3, STEPS, LOSS, altered=3, step_size=Literal().step_size, scales=scales
    )  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_an_exception_in_a_callback_leaves_nothing_behind(pipe):
    plain, before = called(pipe), state_of(pipe)

    def fail(pipe, step, timestep, tensors):
        if step == 1:
            raise RuntimeError("enough")
        return {}

    with pytest.raises(RuntimeError, match="enough"):
        guided(pipe, Literal(), callback_on_step_end=fail)
    assert state_of(pipe) == before
    assert torch.equal(called(pipe), plain)


def test_an_interrupt_in_a_loss_leaves_nothing_behind_and_every_parameter_as_it_was(pipe):
    class Interrupted(Literal):
        def loss_of(self, pipe, subject):
            def loss(look):
                assert not any(parameter.requires_grad for parameter in pipe.unet.parameters())
                if look.step == 1:
                    raise KeyboardInterrupt
                return look.maps.sum()

            return loss

    pipe.unet.conv_in.requires_grad_(False)
    try:
        plain, before = called(pipe), state_of(pipe)
        with pytest.raises(KeyboardInterrupt):
            guided(pipe, Interrupted())
        assert state_of(pipe) == before
        assert torch.equal(called(pipe), plain)
    finally:
        pipe.unet.conv_in.requires_grad_(True)


def test_a_call_that_failed_does_not_show_in_the_next_one_of_the_block(pipe):
    expected = guided(pipe, Literal())

    def fail(pipe, step, timestep, tensors):
        raise RuntimeError("enough")

    with applied(pipe, Literal(), PROMPT, TARGETS, (3,)):
        with pytest.raises(RuntimeError, match="enough"):
            called(pipe, callback_on_step_end=fail)
        assert torch.equal(called(pipe), expected)
        assert torch.equal(called(pipe), expected)


def test_a_pipeline_that_runs_between_two_steps_of_another_disturbs_neither(pipe, clip_tokenizer):
    other = families.sd1(clip_tokenizer)
    expected, expected_inside, inside = guided(pipe, Literal()), guided(other, Literal(), (5,), steps=3), []

    def between(pipe, step, timestep, tensors):
        inside.append(called(other, (5,), steps=3))
        return {}

    with applied(other, Literal(), PROMPT, TARGETS, (5,)):
        assert torch.equal(guided(pipe, Literal(), callback_on_step_end=between), expected)
    assert len(inside) == STEPS
    assert all(torch.equal(latents, expected_inside) for latents in inside)


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


@pytest.mark.parametrize("build", [families.img2img_of, families.inpaint_of])
def test_pipelines_that_start_from_an_image_are_refused(pipe, build):
    other = build(pipe)
    before = state_of(other)
    with (
        pytest.raises(ValueError, match="latents can be guided in pipelines that make images of texts alone"),
        applied(other, Literal(), PROMPT, TARGETS),
    ):
        pass
    assert state_of(other) == before


def test_inference_mode_is_refused_with_the_reason(pipe):
    before = state_of(pipe)
    with (
        pytest.raises(ValueError, match=r"latents cannot be guided in torch.inference_mode\(\)"),
        torch.inference_mode(),
    ):
        guided(pipe, Literal())
    assert state_of(pipe) == before


def test_a_call_for_another_number_of_images_is_refused(pipe):
    with (
        pytest.raises(ValueError, match="the pipeline was called for 2 images, the block for 1"),
        applied(pipe, Literal(), PROMPT, TARGETS, (3,)),
    ):
        called(pipe, (3, 4))


def test_a_method_that_alters_no_step_makes_no_pass_of_its_own(pipe):
    plain = called(pipe)
    with counting(pipe.unet) as count:
        found = guided(pipe, replace(Literal(), until=0.2))  # of four steps, rounded down
    assert (count.passes, count.with_gradient) == (STEPS, 0)
    assert torch.equal(found, plain)
    assert torch.equal(guided(pipe, Method()), plain)
