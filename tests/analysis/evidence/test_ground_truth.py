"""Noised scenes: their maps are the network's own, and are held against the boxes that the scenes were drawn from."""

import numpy as np
import pytest
import torch

from analysis.evidence.ground_truth import METHOD, scene_pointing, scenes_of
from analysis.evidence.pointing import measured, pointing_means
from tracer.scenes import SIZE, Scene, Thing, caption, render
from tracer.sites import attention_sites

SCENE = Scene((255, 255, 255), (Thing("cat", None, (4, 8, 30, 40)), Thing("car", "red", (34, 20, 60, 46))))
STEPS = 3


def test_a_row_is_the_network_s_map_at_that_noise_against_the_drawing_s_box(tiny_pipe):
    table = scene_pointing(tiny_pipe, [SCENE], STEPS, seed=2)
    layers = attention_sites(tiny_pipe.unet)
    assert len(table) == 2 * STEPS * len(layers)
    assert set(table["method"]) == {METHOD}
    assert table["word"].unique().tolist() == ["cat", "car"]
    assert table["word_idx"].unique().tolist() == [1, 5]  # of "a cat and a red car"
    # by hand, at the last step, of the second word in one layer: noise, pass and map written out
    path, text = layers[0], caption(SCENE.things)
    module = dict(tiny_pipe.unet.named_modules())[path]
    seen = {}
    handle = module.register_forward_pre_hook(
        lambda m, args, kwargs: seen.update(hidden=args[0], text=kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        picture = torch.tensor(render(SCENE)).permute(2, 0, 1)[None].float() / 127.5 - 1
        clean = tiny_pipe.vae.encode(picture).latent_dist.mode() * tiny_pipe.vae.config.scaling_factor
        state = int(np.random.SeedSequence((2, 0)).generate_state(1)[0])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(state))
        tiny_pipe.scheduler.set_timesteps(STEPS)
        time = tiny_pipe.scheduler.timesteps[-1]
        alpha = tiny_pipe.scheduler.alphas_cumprod[int(time)]
        encoded = tiny_pipe.encode_prompt(text, "cpu", 1, False)[0]
        tiny_pipe.unet(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, time, encoder_hidden_states=encoded)
        handle.remove()
        query, key = (
            layer(x).unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for layer, x in ((module.to_q, seen["hidden"]), (module.to_k, seen["text"]))
        )
        probs = (query @ key.transpose(-1, -2) * module.scale).softmax(-1)[0].mean(0)
    side = int(probs.shape[0] ** 0.5)
    cells = probs[:, 6].reshape(side, side).double().numpy()  # start, a, cat, and, a, red, car
    boxes = [np.array([thing.box], dtype=float) / SIZE for thing in SCENE.things]
    expected = measured(cells, boxes[1], boxes[0])
    row = table[(table["word"] == "car") & (table["step"] == STEPS - 1) & (table["layer"] == path)].iloc[0]
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-4), name


def test_scenes_have_two_things_and_the_same_seed_gives_the_same_rows(tiny_pipe):
    scenes = scenes_of(2, seed=4)
    assert [len(scene.things) for scene in scenes] == [2, 2]
    assert scenes == scenes_of(2, seed=4) != scenes_of(2, seed=5)
    before = tiny_pipe.scheduler.timesteps
    table = scene_pointing(tiny_pipe, scenes, STEPS)
    assert tiny_pipe.scheduler.timesteps is before
    assert table.equals(scene_pointing(tiny_pipe, scenes, STEPS))
    alone = scene_pointing(tiny_pipe, scenes[:1], STEPS)
    assert table[table["sample"] == 0].reset_index(drop=True).equals(alone)
    means = pointing_means(table)
    assert len(means) == STEPS * len(attention_sites(tiny_pipe.unet))
    assert (means["words"] == 4).all()
    with pytest.raises(ValueError, match="scenes must be at least one, got none"):
        scene_pointing(tiny_pipe, [])
