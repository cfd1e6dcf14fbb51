"""Stable Diffusion 1.5 and 2 as benchmarks need them: their true shapes and cost, without their weights.

`pipeline` is the real UNet with random weights; `taps` is SD 1.5's text attention without the UNet: made up, but like
the model's in what counts for a trace: smooth queries with some noise, and a start token that takes most.
"""

from collections.abc import Iterator
from math import cos, pi, sin

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tracer.folders import emoji_world
from tracer.tap import Tap
from tracer.words import Token

HEADS, LENGTH = 8, 77
PROMPT = "a photo of a cat wearing glasses and a hat"
PLACES = [(f"down_blocks.{block}", 2) for block in range(3)]
PLACES += [("mid_block", 1), *((f"up_blocks.{block}", 3) for block in (1, 2, 3))]
PATHS = [f"{block}.attentions.{i}.transformer_blocks.0.attn2" for block, count in PLACES for i in range(count)]
SIZES = [64, 64, 32, 32, 16, 16, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64]
CHANNELS = {64: 40, 32: 80, 16: 160, 8: 160}  # of a head, by the size of the map
SHARPER = 3  # the scores' standard deviation is about 3 then, instead of 1/3: with plain random weights maps are flat


def tokens() -> tuple[Token, ...]:
    """Return the prompt's sequence, a token to each word."""
    words = PROMPT.split()
    found = [Token(0, 1, "<s>", "sos", None, None)]
    found += [Token(i + 1, 9, word, "word", word, i) for i, word in enumerate(words)]
    found.append(Token(len(found), 2, "</s>", "eos", None, None))
    return (*found, *(Token(i, 2, "</s>", "pad", None, None) for i in range(len(found), LENGTH)))


def smooth(size: int, chance: torch.Generator) -> Float[Tensor, "1 head pixel channel"]:
    """Return queries that change slowly over the image, with some noise."""
    channels = CHANNELS[size]
    coarse = torch.randn(1, HEADS * channels, 8, 8, generator=chance)
    fine = interpolate(coarse, size=(size, size), mode="bicubic").reshape(1, HEADS, channels, size * size)
    return fine.transpose(-1, -2) + 0.3 * torch.randn(1, HEADS, size * size, channels, generator=chance)


def taps(passes: int, seed: int = 0) -> Iterator[Iterator[Tap]]:
    """Yield the taps of each pass one by one, conditional half only; maps change from step to step."""
    chance = torch.Generator().manual_seed(seed)
    ends = [(smooth(size, chance), smooth(size, chance)) for size in SIZES]
    keys = [0.6 * torch.randn(1, HEADS, LENGTH, CHANNELS[size], generator=chance) for size in SIZES]
    for key in keys:
        key[:, :, 0, 0] = 1.5 * key.shape[-1] ** 0.5  # with the queries' 4: exp(6) times a word's attention

    def of_pass(call: int) -> Iterator[Tap]:
        angle = pi / 2 * call / passes
        for path, size, (first, last), key in zip(PATHS, SIZES, ends, keys, strict=True):
            query = cos(angle) * first + sin(angle) * last
            query[..., 0] = 4
            yield Tap(path, call, size, size, query, key, key, key.shape[-1] ** -0.5)

    for call in range(passes):
        yield of_pass(call)


def pipeline(family: str = "sd1", thin: bool = False) -> StableDiffusionPipeline:
    """Return Stable Diffusion with random weights of a fixed seed, and a small text encoder and VAE.

    Args:
        family: "sd1" for 1.5, "sd2" for 2.x at 512 pixels.
        thin: a tenth of SD 1.5's channels, to try things out; maps are of the same sizes.
    """
    if thin and family != "sd1":
        raise ValueError(f"only sd1 can be thin, got {family}: the heads of sd2 need its full width")
    width = {"sd1": 768, "sd2": 1024}[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = emoji_world() / "sd" / "tokenizer"
        tokenizer = CLIPTokenizer.from_pretrained(words, local_files_only=True, model_max_length=LENGTH)
        ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        size = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), **size, **ends))
        widths = (32, 64, 128, 128) if thin else (320, 640, 1280, 1280)
        heads = {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True} if family == "sd2" else {}
        unet = UNet2DConditionModel(64, block_out_channels=widths, cross_attention_dim=width, **heads)
        down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        vae = AutoencoderKL(3, 3, down, up, block_out_channels=(8,) * 4, norm_num_groups=4)
    for name, weight in unet.named_parameters():
        weight.data *= SHARPER if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")) else 1
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    parts = vae.eval(), text.eval(), tokenizer, unet.eval(), scheduler, None, None
    pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
