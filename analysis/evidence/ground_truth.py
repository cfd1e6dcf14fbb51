"""Are the maps about the objects, where it is known where these lie? Scenes that are drawn, noised, and looked at.

Of a generated image nobody knows where its objects truly are, and a detector's box is there only for what it found. A
scene of the emoji world is drawn from its boxes: it is encoded, noised to the level of each step, with one noise for
all of them, and given to the network with its caption, as in training. What each word attends to there can be held
against the box of its drawing, at every step and layer.

Conventions: the measures are those of `analysis.evidence.pointing`, of the conditional half alone. All steps of a scene
are one batch of the network.
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Shaped
from torch import Tensor

from analysis.evidence.pointing import measured
from tracer.attention import attending
from tracer.scenes import SIZE, Scene, caption, render, sample_scene
from tracer.sites import attention_sites
from tracer.tap import Tap
from tracer.words import positions_of, tokens_of

METHOD = "noised scenes"  # in the place of a method's name


def scenes_of(count: int, seed: int = 0) -> tuple[Scene, ...]:
    """Return scenes of two things each, of seen and held-out pairs as they come."""
    chance = np.random.default_rng(seed)
    return tuple(sample_scene(chance, seen_only=False, count=2) for _ in range(count))


def scene_pointing(pipe: DiffusionPipeline, scenes: Sequence[Scene], steps: int = 25, seed: int = 0) -> pd.DataFrame:
    """Return a row per scene, thing, step and layer, as `pointing.pointing_table` does of generated images.

    Args:
        pipe: a pipeline that knows the emoji world's pictures: a UNet with text attention, an autoencoder.
        scenes: what is drawn.
        steps: of the schedule, whose noise levels are taken.
        seed: of the noise; each scene has its own.

    Returns:
        The columns of `pointing_table`; run_id is 0, sample the scene's number, method "noised scenes".

    Raises:
        ValueError: there is no scene.
    """
    if not scenes:
        raise ValueError("scenes must be at least one, got none")
    return pd.DataFrame(
        [row for number, scene in enumerate(scenes) for row in _of_scene(pipe, scene, number, steps, seed)]
    )


def _of_scene(pipe: DiffusionPipeline, scene: Scene, number: int, steps: int, seed: int) -> Iterator[dict[str, object]]:
    text = caption(scene.things)
    tokens = tokens_of(pipe.tokenizer, text)
    maps = _maps(pipe, scene, text, steps, (seed, number))
    boxes = [np.array([thing.box], dtype=float) / SIZE for thing in scene.things]
    for place, thing in enumerate(scene.things):
        pieces = list(positions_of(pipe.tokenizer, text, thing.word))
        others = np.concatenate([box for other, box in enumerate(boxes) if other != place] or [np.empty((0, 4))])
        head = {"run_id": 0, "sample": number, "method": METHOD, "prompt": text, "seed": seed}
        head |= {"word_idx": tokens[pieces[0]].word_index, "word": thing.word}
        for layer, (path, found) in enumerate(maps.items()):
            for step, cells in enumerate(found[:, pieces].sum(1)):
                yield {**head, "step": step, "layer": path, "number": layer, **measured(cells, boxes[place], others)}


@torch.no_grad()
def _maps(
    pipe: DiffusionPipeline, scene: Scene, text: str, steps: int, seed: tuple[int, int]
) -> dict[str, Float[np.ndarray, "step token height width"]]:
    """Return the maps of every layer, the mean over its heads, of the scene at each step's noise."""
    found: dict[str, np.ndarray] = {}

    def record(tap: Tap, edited: object) -> None:
        found[tap.site] = tap.maps().mean(1).unflatten(-1, (tap.height, tap.width)).double().cpu().numpy()

    latents, times = _noised(pipe, scene, steps, seed)
    encoded = pipe.encode_prompt(text, pipe.device, 1, False)[0].expand(len(times), -1, -1)
    with attending(pipe.unet, attention_sites(pipe.unet), record=record):
        pipe.unet(latents, times, encoder_hidden_states=encoded)
    return {path: found[path] for path in attention_sites(pipe.unet)}


def _noised(
    pipe: DiffusionPipeline, scene: Scene, steps: int, seed: tuple[int, int]
) -> tuple[Float[Tensor, "step channel height width"], Shaped[Tensor, " step"]]:
    """Return a scene's latents at the noise of each step, as the network is given them, and the steps' times."""
    picture = torch.tensor(render(scene)).to(pipe.device, pipe.vae.dtype).permute(2, 0, 1)[None] / 127.5 - 1
    clean = pipe.vae.encode(picture).latent_dist.mode() * pipe.vae.config.scaling_factor
    chance = torch.Generator("cpu").manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    noise = torch.randn(clean.shape, generator=chance).to(clean)
    scheduler = copy.deepcopy(pipe.scheduler)  # the pipeline's own stays where it stands
    scheduler.set_timesteps(steps, device=pipe.device)
    times = scheduler.timesteps
    noised = [scheduler.add_noise(clean, noise, time[None]) for time in times]
    given = [scheduler.scale_model_input(one, time) for one, time in zip(noised, times, strict=True)]
    return torch.cat(given), times
