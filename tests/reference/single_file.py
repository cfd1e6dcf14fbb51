"""Single files in the layout of the code that trained Stable Diffusion, written from diffusers' pipelines.

The names follow the order in which that code builds its networks: a UNet's input blocks are numbered through all
resolutions, its autoencoder's ``up`` from the finest, and OpenCLIP keeps queries, keys and values in one matrix.
"""

import re

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
AUTOENCODER = {
    "mid_block.attentions.0.": "mid.attn_1.", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
    "to_out.0": "proj_out", "downsamplers.0": "downsample", "upsamplers.0": "upsample", "resnets": "block",
    "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "down_blocks": "down",
}  # fmt: skip
OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj", "self_attn": "attn", "final_layer_norm": "ln_final", "embeddings.token_": "token_",
    "embeddings.position_embedding.weight": "positional_embedding",
}  # fmt: skip


def single_file(pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, family: str) -> dict[str, Tensor]:
    """The tensors of a pipeline of the family "sd1", "sd2" or "sdxl", by the names that they have in a single file."""
    with_attention = [hasattr(block, "attentions") for block in pipe.unet.up_blocks]
    resolutions, layers = len(pipe.vae.decoder.up_blocks), pipe.unet.config.layers_per_block
    unet, tensors = pipe.unet.state_dict(), {}
    tensors |= {f"model.diffusion_model.{unet_name(k, layers, with_attention)}": v for k, v in unet.items()}
    for name, tensor in pipe.vae.state_dict().items():
        is_attention = "attentions" in name and tensor.ndim == 2  # there a convolution of one pixel
        tensors[f"first_stage_model.{vae_name(name, resolutions)}"] = (
            tensor[..., None, None] if is_attention else tensor
        )
    clip = flat(pipe.text_encoder)
    if family == "sd2":
        tensors |= {f"cond_stage_model.model.{name}": tensor for name, tensor in open_clip(clip).items()}
    else:
        prefix = "cond_stage_model" if family == "sd1" else "conditioner.embedders.0"
        clip["embeddings.position_ids"] = torch.arange(len(clip["embeddings.position_embedding.weight"]))
        tensors |= {f"{prefix}.transformer.text_model.{name}": tensor for name, tensor in clip.items()}
    if family == "sdxl":
        second = open_clip(flat(pipe.text_encoder_2))
        tensors |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in second.items()}
    else:
        tensors["alphas_cumprod"] = pipe.scheduler.alphas_cumprod  # what no network has is left alone
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def averaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet of a single file by the names of its averaged copy: without dots."""
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith("model.diffusion_model.")}
    return {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor for name, tensor in unet.items()}


def flat(clip: nn.Module) -> dict[str, Tensor]:
    """The tensors of a text encoder, with or without the wrapper around it."""
    return {name.removeprefix("text_model."): tensor for name, tensor in clip.state_dict().items()}


def unet_name(name: str, layers: int, with_attention: list[bool]) -> str:
    """The UNet's tensor "up_blocks.1.resnets.0.norm1.weight" is "output_blocks.2.0.in_layers.0.weight"."""
    for ours, theirs in ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, number, rest = found.groups()
        return f"middle_block.{2 * int(number) if kind == 'resnets' else 1}.{inner(kind, rest)}"
    side, block, kind, number, rest = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name).groups()
    first = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{1 + with_attention[int(block)]}.{rest}"
    where = f"input_blocks.{1 + first + int(number)}" if side == "down" else f"output_blocks.{first + int(number)}"
    return f"{where}.{0 if kind == 'resnets' else 1}.{inner(kind, rest)}"


def inner(kind: str, rest: str) -> str:
    """The name within a residual block; within an attention block it is the same."""
    if kind == "resnets":
        part, kind_of_tensor = rest.split(".")
        return f"{RESNET[part]}.{kind_of_tensor}"
    return rest


def vae_name(name: str, resolutions: int) -> str:
    """The autoencoder's "decoder.up_blocks.0.resnets.1.conv1.weight" of four is "decoder.up.3.block.1.conv1.weight"."""
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{resolutions - 1 - int(found[1])}", name)
    for ours, theirs in AUTOENCODER.items():
        name = name.replace(ours, theirs)
    return name


def open_clip(clip: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder with a projection, as OpenCLIP has it."""
    tensors = {}
    for name, tensor in clip.items():
        if name == "text_projection.weight":
            tensors["text_projection"] = tensor.T
        elif ".q_proj." in name:
            three = [clip[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            tensors[open_clip_name(name).replace("q_proj.", "in_proj_")] = torch.cat(three)
        elif ".k_proj." not in name and ".v_proj." not in name:
            tensors[open_clip_name(name)] = tensor
    return tensors


def open_clip_name(name: str) -> str:
    """The name without regard to the matrices that OpenCLIP joins."""
    for ours, theirs in OPEN_CLIP.items():
        name = name.replace(ours, theirs)
    return name
