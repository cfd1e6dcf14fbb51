"""Latent guidance as a denoising loop of its own, one image at a time, of diffusers' networks and schedulers alone.

Attention is computed by plain products of a processor of its own, which keeps the maps. Slow and plain;
`regulate.guidance` is held to it.
"""

import math
from collections.abc import Callable, Sequence

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

WEIGHTS = {2: 0.7, 5: 0.3}  # of the tokens of "cat" and "dog" in "a cat and a dog"

Loss = Callable[[Tensor], Tensor]


def loss_of(weights: dict[int, float]) -> Loss:
    """Return a literal loss: attention to some tokens, weighted, which counts more the further down and right it is."""

    def loss(maps: Tensor) -> Tensor:
        height, width = maps.shape[-2:]
        ramp = torch.arange(1, height * width + 1).reshape(height, width) / (height * width)
        return 1 - torch.stack([weight * (maps[token] * ramp).mean() for token, weight in weights.items()]).sum()

    return loss


def corner(maps: Tensor) -> Tensor:
    """Return a loss on one pixel of one token: the last of the first row."""
    return -maps[2, 0, -1]


class _Eager:
    """Attention by plain products, which keeps the probabilities of text attention over so many pixels."""

    def __init__(self, pixels: int, kept: list[Tensor]):
        self.pixels, self.kept = pixels, kept

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        parts = (attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text)
        query, key, value = (layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer, x in parts)
        probs = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        if encoder_hidden_states is not None and probs.shape[-2] == self.pixels:
            self.kept.append(probs)
        return attn.to_out[0]((probs @ value).transpose(1, 2).flatten(2))


def guided(
    pipe: StableDiffusionPipeline,
    prompt: str,
    seed: int,
    steps: int,
    loss: Loss,
    *,
    altered: int,
    step_size: float,
    scaled: bool = True,
    scales: Sequence[float] = (),
    size: tuple[int, int] = (8, 8),
) -> Tensor:
    """Return the final latents of one image whose latents are moved once before each of the first `altered` steps.

    Args:
        pipe: whose parts are used.
        prompt: the text; the negative one is empty.
        seed: of the noise.
        steps: as the scheduler is told.
        loss: of the maps "token height width".
        altered: steps before which the latents are moved; Heun's second stages are no steps.
        step_size: at step 0; it falls as the root of a line from 1 to 0.5.
        scaled: whether the network sees scaled latents while the gradient is computed.
        scales: of classifier-free guidance, by pass; 5 where not given.
        size: of the latents, twice that of the maps.
    """
    kept: list[Tensor] = []
    usual, scheduler, map_size = pipe.unet.attn_processors, pipe.scheduler, (size[0] // 2, size[1] // 2)
    pipe.unet.set_attn_processor(_Eager(math.prod(map_size), kept))
    text, nothing = pipe.encode_prompt(prompt, "cpu", 1, True, "")
    scheduler.set_timesteps(steps)
    last = (steps if scheduler.order == 2 else len(scheduler.timesteps)) - 1
    noise = torch.randn((1, 4, *size), generator=torch.Generator().manual_seed(seed))
    latents, step = noise * scheduler.init_noise_sigma, 0
    for number, timestep in enumerate(scheduler.timesteps):
        if getattr(scheduler, "state_in_first_order", True):
            if step < altered:
                kept.clear()
                latents = latents.detach().requires_grad_()
                seen = scheduler.scale_model_input(latents, timestep) if scaled else latents
                pipe.unet(seen, timestep, encoder_hidden_states=text)
                maps = torch.cat([probs[0] for probs in kept]).mean(0).T.unflatten(-1, map_size)
                (slope,) = torch.autograd.grad(loss(maps), latents)
                latents = (latents - step_size * math.sqrt(1 - 0.5 * step / last) * slope).detach()
            step += 1
        scale = scales[number] if scales else 5.0
        with torch.no_grad():
            seen = scheduler.scale_model_input(latents, timestep)
            with_text, without = (
                pipe.unet(seen, timestep, encoder_hidden_states=embeddings).sample for embeddings in (text, nothing)
            )
            latents = scheduler.step(without + scale * (with_text - without), timestep, latents).prev_sample
    pipe.unet.set_attn_processor(usual)
    return latents
