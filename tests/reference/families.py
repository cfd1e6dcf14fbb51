"""Whole pipelines of every family of models: diffusers' own classes, few and narrow layers, random weights.

An image is four times as wide as its latents, not eight: the autoencoders have three resolutions. Weights are the same
in every process, and nobody else's random numbers are drawn. The weights of the norms of queries and keys, which would
all be one, are drawn too, so that taking one norm for another shows.
"""

import string
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

Arguments = ParamSpec("Arguments")
Pipe = TypeVar("Pipe", bound=DiffusionPipeline)

NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
PIECES = (
    *("▁a", "▁an", "▁and", "▁the", "▁of", "▁in", "▁on", "▁with", "▁photo", "▁cat", "▁dog", "▁glasses", "▁red", "▁car"),
    *("▁bird", "▁wearing", "▁hat", "▁gir", "affe", "▁ele", "phant", "s", "ing"),
)
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


def t5_tokenizer() -> T5Tokenizer:
    """T5's own tokenizer over a few pieces: whole words ("▁cat"), parts of words, and single characters."""
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0, "▁": -4.0}  # T5's first ids; its class takes id 2 for unknown
    scores |= dict.fromkeys(string.ascii_letters + string.digits + string.punctuation, -10.0)
    scores |= dict.fromkeys(PIECES, -6.0)
    return T5Tokenizer(list(scores.items()), extra_ids=0, model_max_length=512)


def _seeded(build: Callable[Arguments, Pipe]) -> Callable[Arguments, Pipe]:
    """Have a pipeline built from seed 0, ready to generate, without a trace in the global random numbers."""

    @wraps(build)
    def built(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Pipe:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipe = build(*args, **kwargs)
            models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
            for name, module in (pair for model in models for pair in model.named_modules()):
                if name.endswith(NORMS) and isinstance(getattr(module, "weight", None), torch.Tensor):
                    torch.nn.init.uniform_(module.weight, 0.5, 2.0)
        for model in models:
            model.eval()
        return _quiet(pipe)

    return built


def _quiet(pipe: Pipe) -> Pipe:
    """Turn the progress bar off: it belongs to a pipeline, not to its parts."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _clip(tokenizer: CLIPTokenizer, width: int, projected: int | None = None) -> CLIPTextModel:
    """CLIP's text model of two layers; one with a projection if its width is given."""
    # Thrice CLIP's own scale: at that, SDXL's texts, which no last norm scales up, would get nearly uniform attention.
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, projection_dim=projected or width, initializer_factor=3.0,
        **ends,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _t5(tokenizer: T5Tokenizer, width: int) -> T5EncoderModel:
    """T5 1.1's encoder of two layers."""
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5EncoderModel(config)


def _vae(channels: int, **kwargs) -> AutoencoderKL:
    """An autoencoder whose latents are a quarter as wide and high as the image."""
    # Without the upcast: in half precision diffusers 0.42 does it by a method that it deprecates itself.
    return AutoencoderKL(
        block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=channels, norm_num_groups=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, force_upcast=False,
        **kwargs,
    )  # fmt: skip


def _unet(blocks: str, cross: int, **kwargs) -> UNet2DConditionModel:
    """A UNet of one layer per block, "x" for a block with cross-attention and "-" for one without, from the top."""
    kinds = [f"{'CrossAttn' * (block == 'x')}%sBlock2D" for block in blocks]
    return UNet2DConditionModel(
        block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=8, cross_attention_dim=cross,
        down_block_types=tuple(kind % "Down" for kind in kinds),
        up_block_types=tuple(kind % "Up" for kind in reversed(kinds)),
        **kwargs,
    )  # fmt: skip


@_seeded
def sd1(clip_tokenizer: CLIPTokenizer, sample_size: int = 8) -> StableDiffusionPipeline:
    """Stable Diffusion 1.x: cross-attention at the two finer of three resolutions and in the middle, four heads."""
    unet = _unet("xx-", cross=32, sample_size=sample_size, attention_head_dim=4)
    return StableDiffusionPipeline(
        _vae(4), _clip(clip_tokenizer, 32), clip_tokenizer, unet, DPMSolverMultistepScheduler(**NOISE), None, None,
        requires_safety_checker=False,
    )  # fmt: skip


@_seeded
def sd2(sd2_tokenizer: CLIPTokenizer, sample_size: int = 8) -> StableDiffusionPipeline:
    """Stable Diffusion 2.x: heads of one width, so two, four and eight of them; linear projections; velocity."""
    unet = _unet("xx-", cross=32, sample_size=sample_size, attention_head_dim=(2, 4, 8), use_linear_projection=True)
    scheduler = DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")
    return StableDiffusionPipeline(
        _vae(4), _clip(sd2_tokenizer, 32), sd2_tokenizer, unet, scheduler, None, None, requires_safety_checker=False,
    )  # fmt: skip


@_seeded
def sdxl(
    clip_tokenizer: CLIPTokenizer, second_tokenizer: CLIPTokenizer, sample_size: int = 8
) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: two text models, and cross-attention at the coarser resolutions, of one and two layers."""
    widths, projected, size = (32, 48), 24, 8
    unet = _unet(
        "-xx", cross=sum(widths), sample_size=sample_size, attention_head_dim=(2, 4, 8), use_linear_projection=True,
        transformer_layers_per_block=(1, 1, 2), addition_embed_type="text_time", addition_time_embed_dim=size,
        projection_class_embeddings_input_dim=projected + 6 * size,
    )  # fmt: skip
    texts = _clip(clip_tokenizer, widths[0]), _clip(second_tokenizer, widths[1], projected)
    return StableDiffusionXLPipeline(
        _vae(4), *texts, clip_tokenizer, second_tokenizer, unet, EulerDiscreteScheduler(**NOISE),
        add_watermarker=False,
    )  # fmt: skip


@_seeded
def sd3(
    clip_tokenizer: CLIPTokenizer,
    second_tokenizer: CLIPTokenizer,
    t5: T5Tokenizer,
    dual_attention_layers: tuple[int, ...] = (),
    qk_norm: str | None = None,
) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3, or 3.5 with layers of dual attention and "rms_norm": three blocks, four heads."""
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=3, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=24 + 32,
        pos_embed_max_size=16, dual_attention_layers=dual_attention_layers, qk_norm=qk_norm,
    )  # fmt: skip
    vae = _vae(16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False)
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=_clip(clip_tokenizer, 24, 24), tokenizer=clip_tokenizer,
        text_encoder_2=_clip(second_tokenizer, 32, 32), tokenizer_2=second_tokenizer,
        text_encoder_3=_t5(t5, 64), tokenizer_3=t5,
    )  # fmt: skip


@_seeded
def flux(clip_tokenizer: CLIPTokenizer, t5: T5Tokenizer, guidance_embeds: bool = False) -> FluxPipeline:
    """Flux as schnell, or as dev if it takes the guidance for an input: two double and two single blocks, two heads."""
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        axes_dims_rope=(4, 6, 6), joint_attention_dim=64, pooled_projection_dim=24, guidance_embeds=guidance_embeds,
    )  # fmt: skip
    vae = _vae(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
    )
    return FluxPipeline(
        scheduler, vae, _clip(clip_tokenizer, 24), clip_tokenizer, _t5(t5, 64), t5, transformer,
    )  # fmt: skip


def img2img_of(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline that starts from an image, of the same parts."""
    return _quiet(AutoPipelineForImage2Image.from_pipe(pipe))


def inpaint_of(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The pipeline that fills a masked part of an image, of the same parts."""
    return _quiet(AutoPipelineForInpainting.from_pipe(pipe))
