"""The emoji world's latent code: each 4x4 patch of RGB projected on its four principal components.

The code is linear and fixed, so that the generator can be trained before the decoder is. `write_encoder` puts it into
the weights of a stock `AutoencoderKL`, exactly, up to rounding.

How a network with normalisation and SiLU computes a linear map: residual branches are zero, so only shortcuts and
strided convolutions act. Before the last group norm every group holds one signal, one zero channel, and six channels
of constants +-BALLAST; the constants fix the variance, and what the norm subtracts from the signal it subtracts from
the zero channel too. A large bias puts SiLU where it is the identity. Signal minus zero channel is the code.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from tracer.scenes import render, sample_scene

PATCH = 4
CHANNELS = 4
SCENES = 2_000  # that the components are taken from
FLATTEN = 0.5  # a component's spread becomes spread ** (1 - FLATTEN): 0 keeps it, 1 whitens
BALLAST = 100.0
OPEN = 18.0  # bias at which SiLU is the identity to 1e-6
LOG_VARIANCE = -6.0  # of the posterior: a spread of 0.05, as noise in the decoder's training


def principal_code(path: Path) -> dict[str, Tensor]:
    """Return ``weight`` (code, 48) and ``bias`` (code,) of the code in [-1, 1] pixels; made once, kept at `path`."""
    if path.exists():
        return load_file(path)
    rng = np.random.default_rng(11)
    pixels = torch.from_numpy(np.stack([render(sample_scene(rng)) for _ in range(SCENES)]))
    patches = F.pixel_unshuffle(pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1), PATCH)
    patches = patches.permute(0, 2, 3, 1).reshape(-1, 3 * PATCH**2)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    order = values.argsort(descending=True)[:CHANNELS]
    spread = values[order].sqrt()
    scaled = spread ** (1 - FLATTEN)
    weight = vectors[:, order].T / spread[:, None] * scaled[:, None] / scaled.square().mean().sqrt()
    weight = weight * weight.sum(1, keepdim=True).sign()
    code = {"weight": weight.contiguous(), "bias": -(weight @ mean)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(code, path)
    return code


def encode(code: dict[str, Tensor], pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 4 h w"]:
    """Return the code of pixels in [-1, 1], unit root mean square over the scenes."""
    kernel = code["weight"].reshape(CHANNELS, 3, PATCH, PATCH)
    return F.conv2d(pixels, kernel, code["bias"], stride=PATCH)


@torch.no_grad()
def write_encoder(model: AutoencoderKL, code: dict[str, Tensor]) -> None:
    """Set the encoder's weights so that its posterior's mean is the code and its variance constant."""
    encoder = model.encoder
    for parameter in [*encoder.parameters(), *model.quant_conv.parameters()]:
        parameter.zero_()
    encoder.conv_in.weight[[0, 1, 2], [0, 1, 2], 1, 1] = 1
    first, second, last = encoder.down_blocks
    gather = first.downsamplers[0].conv.weight  # 3 channels of a 2x2 block to 12
    for channel in range(3):
        for row in range(2):
            for column in range(2):
                gather[channel * 4 + row * 2 + column, channel, row, column] = 1
    same = torch.arange(12)
    second.resnets[0].conv_shortcut.weight[same, same, 0, 0] = 1
    project = second.downsamplers[0].conv
    kernel = code["weight"].reshape(CHANNELS, 3, 2, 2, 2, 2)  # code, colour, outer row, row, outer column, column
    for row in range(2):
        for column in range(2):
            part = kernel[:, :, row, :, column, :].reshape(CHANNELS, 12)
            project.weight[:CHANNELS, :12, row, column] = part
    project.bias[:CHANNELS] = code["bias"]
    width = last.resnets[0].out_channels // encoder.conv_norm_out.num_groups
    for signal in range(CHANNELS):
        start = signal * width
        last.resnets[0].conv_shortcut.weight[start, signal, 0, 0] = 1
        half = (width - 2) // 2
        last.resnets[0].conv_shortcut.bias[start + 2 : start + 2 + half] = BALLAST
        last.resnets[0].conv_shortcut.bias[start + 2 + half : start + width] = -BALLAST
        spread = BALLAST * ((width - 2) / width) ** 0.5
        encoder.conv_norm_out.weight[start : start + 2] = spread
        encoder.conv_norm_out.bias[start : start + 2] = OPEN
        encoder.conv_out.weight[signal, start, 1, 1] = 1
        encoder.conv_out.weight[signal, start + 1, 1, 1] = -1
    same = torch.arange(CHANNELS)
    model.quant_conv.weight[same, same, 0, 0] = 1
    model.quant_conv.bias[CHANNELS:] = LOG_VARIANCE
