"""Composable Diffusion, DenseDiffusion and InitNO's conflict of regions, literally: plain loops, one image at a time.

Written from the formulas of arXiv 2206.01714 (eq. 11), arXiv 2308.12964 (eq. 4 to 7) and InitNO (eq. 4).
"""

import math
from itertools import combinations

import slow_losses
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

Grid = list[list[float]]


@torch.no_grad()
def composed_latents(
    pipe: StableDiffusionPipeline, concepts: list[str], weights: list[float], seed: int, steps: int
) -> Tensor:
    """The arithmetic of diffusers' community pipeline composable_stable_diffusion: a call of the network a concept."""
    texts = [pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ["", *concepts]]
    pipe.scheduler.set_timesteps(steps)
    side = pipe.unet.config.sample_size
    latents = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))
    latents = latents * pipe.scheduler.init_noise_sigma
    for t in pipe.scheduler.timesteps:
        given = pipe.scheduler.scale_model_input(latents, t)
        uncond, *each = [pipe.unet(given, t, encoder_hidden_states=text).sample for text in texts]
        noise = uncond.clone()
        for weight, text in zip(weights, each, strict=True):
            noise = noise + weight * (text - uncond)
        latents = pipe.scheduler.step(noise, t, latents).prev_sample
    return latents


def modulated(scores: Grid, shared: list[list[bool]], strength: list[float]) -> Grid:
    """Scores of one head, pixel by pixel and token by token, on Python numbers."""
    result = []
    for pixel, row in enumerate(scores):
        highest, lowest = max(row), min(row)
        new = []
        for token, score in enumerate(row):
            if shared[pixel][token]:
                new.append(score + strength[pixel] * (highest - score))
            else:
                new.append(score - strength[pixel] * (score - lowest))
        result.append(new)
    return result


def segment_of(masks: list[list[list[bool]]], height: int, width: int) -> list[int | None]:
    """Which segment each pixel of a map is of, the mask's pixel at the upper left corner of the map's deciding."""
    tall, wide = len(masks[0]), len(masks[0][0])
    found: list[int | None] = []
    for y in range(height):
        for x in range(width):
            at = math.floor(y * tall / height), math.floor(x * wide / width)
            found.append(next((index for index, mask in enumerate(masks) if mask[at[0]][at[1]]), None))
    return found


def dense_probs(
    scores: Grid, segments: list[int | None], phrases: list[tuple[int, ...]] | None, weight: float, tau: float
) -> Grid:
    """Edited probabilities of one head; `phrases` are the tokens of each segment, None for self-attention.

    Segments are whose the tokens are as in the released code, which assigns `maps[:, start:end] = layouts[segment]` for
    one segment after the other: the last one that names a token has it.
    """
    owner = {token: segment for segment, tokens in enumerate(phrases or ()) for token in tokens}
    shared, strength = [], []
    for mine in segments:
        if phrases is None:
            shared.append([mine is not None and other == mine for other in segments])
        else:
            shared.append([mine is not None and owner.get(token) == mine for token in range(len(scores[0]))])
        area = 0.0 if mine is None else segments.count(mine) / len(segments)
        strength.append(weight * tau * (1 - area))
    result = []
    for row in modulated(scores, shared, strength):
        top = max(row)
        powers = [math.exp(score - top) for score in row]
        result.append([power / sum(powers) for power in powers])
    return result


class DenseProcessor:
    """Attention written out, with DenseDiffusion's edit of the second half of the batch; for the test's own network.

    Attributes:
        images: (masks, tokens of each segment) of each image.
        size: height and width of the latents.
        tau: set before each pass.
    """

    def __init__(self, images: list, size: tuple[int, int], text: float = 1.0, own: float = 0.3):
        self.images, self.size, self.text, self.own = images, size, text, own
        self.tau = 0.0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        probs = scores.softmax(-1)
        height, width = self.size
        while height * width > scores.shape[-2]:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        for image, (masks, phrases) in enumerate(self.images if self.tau else []):
            segments, row = segment_of(masks, height, width), len(self.images) + image
            is_own = encoder_hidden_states is None
            for head in range(attn.heads):
                weight, tokens = (self.own, None) if is_own else (self.text, phrases)
                edited = dense_probs(scores[row, head].tolist(), segments, tokens, weight, self.tau)
                probs[row, head] = torch.tensor(edited)
        mixed = (probs @ value).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](mixed))


def conflict(text: list[Grid], own: Grid, words: list[tuple[int, ...]]) -> float:
    """InitNO's self-attention conflict: the mean over pairs of targets of sum min(A, B) / sum (A + B)."""
    height, width = len(text[0]), len(text[0][0])
    shares = [slow_losses.smoothed(map_) for map_ in slow_losses.words_only(text, 100.0, len(text) - 1)]
    regions = []
    for word in words:
        highest, place = -1.0, 0
        for pixel in range(height * width):
            value = max(shares[position - 1][pixel // width][pixel % width] for position in word)
            if value > highest:
                highest, place = value, pixel
        seen = own[place]
        regions.append(slow_losses.smoothed([seen[y * width : (y + 1) * width] for y in range(height)]))
    losses = []
    for one, other in combinations(regions, 2):
        pairs = list(zip(slow_losses.pixels(one), slow_losses.pixels(other), strict=True))
        losses.append(sum(min(a, b) for a, b in pairs) / (sum(a + b for a, b in pairs) + 1e-6))
    return sum(losses) / len(losses) if losses else 0.0
