"""Attend-and-Excite beside diffusers' own pipeline of it."""

import warnings

import families
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionAttendAndExcitePipeline, StableDiffusionPipeline

from metrics.machine import counting
from regulate import METHODS, applied
from regulate.attend_and_excite import AttendAndExcite

PROMPTS, WORDS = ["a cat and a dog", "a lion with glasses"], [["cat", "dog"], ["lion", "glasses"]]
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
SCHEDULERS = {
    "DDIM": DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False),
    "PNDM": PNDMScheduler(**NOISE, skip_prk_steps=True),
}


@pytest.fixture
def pipe(clip_tokenizer) -> StableDiffusionPipeline:
    """Stable Diffusion 1.x, thin, of random weights: maps of 8x8, 4x4 and 2x2 pixels, those of 4x4 the last down."""
    return families.sd1(clip_tokenizer, sample_size=8)


def theirs(pipe, steps: int, seeds: list[int], **options) -> tuple[torch.Tensor, object]:
    """Latents and passes of diffusers' own pipeline, on the same weights."""
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    indices = [[2, 5], [2, 4]]
    with warnings.catch_warnings(), counting(pipe.unet) as count:
        warnings.simplefilter("ignore")  # it is deprecated, and so is what it calls
        other = StableDiffusionAttendAndExcitePipeline(**parts, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)
        latents = other(
            PROMPTS, token_indices=indices, num_inference_steps=steps, guidance_scale=7.5, attn_res=(4, 4),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="latent", **options,
        ).images  # fmt: skip
    return latents, count


def ours(pipe, method, steps: int, seeds: list[int], **options) -> tuple[torch.Tensor, object]:
    with counting(pipe.unet) as count, applied(pipe, method, PROMPTS, WORDS, seeds) as run:
        latents = pipe(
            PROMPTS, num_inference_steps=steps, guidance_scale=7.5, generator=run.generators, output_type="latent",
            **options, **run.call,
        ).images  # fmt: skip
    return latents, count


@pytest.mark.parametrize("name", SCHEDULERS)
def test_reference_gives_the_latents_and_the_passes_of_diffusers_own_pipeline(pipe, name):
    """Thresholds that are missed, reached at once, and reached on the way; the plain latents are far away."""
    pipe.scheduler = SCHEDULERS[name]
    steps, seeds = 6, [3, 4]
    thresholds = {0: 0.0147, 2: 0.0}
    method = AttendAndExcite(refine_at=((0.0, 0.0147), (2 / 6, 0.0)))
    expected, their_count = theirs(pipe, steps, seeds, thresholds=thresholds, max_iter_to_alter=3)
    found, count = ours(pipe, method, steps, seeds)
    plain, _ = ours(pipe, METHODS["plain"], steps, seeds)
    assert (expected - plain).abs().max() > 0.1
    assert (count.passes, count.with_gradient) == (their_count.passes, their_count.with_gradient)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
