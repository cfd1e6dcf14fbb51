"""What a block leaves behind when something fails in it, what it refuses, and pipelines that run inside one another."""

import families
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from literal_guidance import Literal

from regulate import applied

PROMPT, TARGETS, STEPS = "a cat and a dog", ["cat", "dog"], 3
GUIDED = Literal(until=0.7)  # two of three steps, rounded down


@pytest.fixture(scope="module")
def pipe(clip_tokenizer) -> StableDiffusionPipeline:
    pipe = families.sd1(clip_tokenizer)
    pipe.scheduler = DDIMScheduler(**families.NOISE, clip_sample=False, set_alpha_to_one=False)
    return pipe


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


def test_an_exception_in_a_callback_leaves_nothing_behind(pipe):
    plain, before = called(pipe), state_of(pipe)

    def fail(pipe, step, timestep, tensors):
        if step == 1:
            raise RuntimeError("enough")
        return {}

    with pytest.raises(RuntimeError, match="enough"):
        guided(pipe, GUIDED, callback_on_step_end=fail)
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
            guided(pipe, Interrupted(until=1.0))
        assert state_of(pipe) == before
        assert torch.equal(called(pipe), plain)
    finally:
        pipe.unet.conv_in.requires_grad_(True)


def test_a_call_that_failed_does_not_show_in_the_next_one_of_the_block(pipe):
    expected = guided(pipe, GUIDED)

    def fail(pipe, step, timestep, tensors):
        raise RuntimeError("enough")

    with applied(pipe, GUIDED, PROMPT, TARGETS, (3,)):
        with pytest.raises(RuntimeError, match="enough"):
            called(pipe, callback_on_step_end=fail)
        assert torch.equal(called(pipe), expected)
        assert torch.equal(called(pipe), expected)


def test_a_pipeline_that_runs_between_two_steps_of_another_disturbs_neither(pipe, clip_tokenizer):
    other = families.sd1(clip_tokenizer)
    expected, expected_inside, inside = guided(pipe, GUIDED), guided(other, GUIDED, (5,), steps=2), []

    def between(pipe, step, timestep, tensors):
        inside.append(called(other, (5,), steps=2))
        return {}

    with applied(other, GUIDED, PROMPT, TARGETS, (5,)):
        assert torch.equal(guided(pipe, GUIDED, callback_on_step_end=between), expected)
    assert len(inside) == STEPS
    assert all(torch.equal(latents, expected_inside) for latents in inside)


@pytest.mark.parametrize("build", [families.img2img_of, families.inpaint_of])
def test_pipelines_that_start_from_an_image_are_refused(pipe, build):
    other = build(pipe)
    before = state_of(other)
    with (
        pytest.raises(ValueError, match="latents can be guided in pipelines that make images of texts alone"),
        applied(other, GUIDED, PROMPT, TARGETS),
    ):
        pass
    assert state_of(other) == before


def test_inference_mode_is_refused_with_the_reason(pipe):
    before = state_of(pipe)
    with (
        pytest.raises(ValueError, match=r"latents cannot be guided in torch.inference_mode\(\)"),
        torch.inference_mode(),
    ):
        guided(pipe, GUIDED)
    assert state_of(pipe) == before


def test_a_call_for_another_number_of_images_is_refused(pipe):
    with (
        pytest.raises(ValueError, match="the pipeline was called for 2 images, the block for 1"),
        applied(pipe, GUIDED, PROMPT, TARGETS, (3,)),
    ):
        called(pipe, (3, 4))
