"""Every method of the list at once: the passes that it says it makes, and the layers it sees in full-size models."""

from dataclasses import replace

import families
import pytest
import torch
from diffusers import UNet2DConditionModel

from metrics.machine import counting
from regulate import METHODS, Given, applied
from regulate.layers import sites_of_one_size
from regulate.layout import Layout
from regulate.structure import Group
from tracer.sites import attention_sites

PROMPT, TARGETS, STEPS = "a red cat and a dog", ["cat", "dog"], 4
GIVEN = Given(
    groups=(Group("cat", ("red",)), Group("dog")),
    layout=Layout.from_boxes({"a red cat": (0.0, 0.0, 0.5, 1.0), "a dog": (0.5, 0.0, 1.0, 1.0)}, (8, 8)),
)
FEW = {"rounds": 2, "moves": 2, "last_moves": 2}  # of InitNO's a hundred passes
SD1 = {"cross_attention_dim": 768}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
}


@pytest.fixture(scope="module")
def pipe(clip_tokenizer):
    return families.sd1(clip_tokenizer, sample_size=8)


def made(pipe, method, **options):
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "latent"} | options
    with counting(pipe.unet) as count, applied(pipe, method, PROMPT, TARGETS, seeds=(3,), given=GIVEN) as run:
        latents = pipe(PROMPT, generator=run.generators, **(options | run.call)).images
    return latents, count


@pytest.mark.parametrize("name", METHODS)
def test_a_counter_finds_the_passes_that_every_method_says_it_makes(pipe, name):
    method = replace(METHODS[name], **(FEW if name.startswith("initno") else {}))
    latents, count = made(pipe, method)
    least, most = method.gradient_passes(STEPS)
    assert count.passes - count.with_gradient == STEPS
    assert least <= count.with_gradient <= most
    assert latents.isfinite().all()


@pytest.mark.parametrize(
    ("config", "by_block"),
    [
        (SD1, {"down_blocks.2": 2, "up_blocks.1": 3}),
        (SDXL, {"down_blocks.2": 20, "mid_block": 10, "up_blocks.0": 30}),
    ],
    ids=["sd", "sdxl"],
)
def test_guidance_sees_the_layers_of_one_size_of_full_size_models(config, by_block):
    """Of Stable Diffusion the five of 16x16, of SDXL the sixty of 32x32; built without weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    blocks = [site.split(".attentions")[0] for site in sites_of_one_size(unet, attention_sites(unet))]
    assert {block: blocks.count(block) for block in blocks} == by_block


@pytest.mark.parametrize("name", ["initno", "divide-and-bind"])
@pytest.mark.parametrize("kind", ["oblong", "bfloat16", "sdxl"])
def test_the_latest_methods_act_on_oblong_maps_in_half_precision_and_in_sdxl(clip_tokenizer, name, kind):
    method = replace(METHODS[name], **(FEW if name == "initno" else {"refinements": 2}))
    pipe = families.sdxl(clip_tokenizer, clip_tokenizer) if kind == "sdxl" else families.sd1(clip_tokenizer)
    pipe.to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    options = {"num_inference_steps": 2} | ({"height": 32, "width": 48} if kind == "oblong" else {})
    found, stock = (made(pipe, one, **options)[0] for one in (method, METHODS["plain"]))
    assert found.isfinite().all()
    assert not torch.equal(found, stock)
