"""The recorder on a whole pipeline of random weights: all there, the right values, and the same image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, HeunDiscreteScheduler, PNDMScheduler

from tracer.capture import Capture
from tracer.recording import recording
from tracer.sites import attention_sites

EXACT = Capture(tokens="all", precision="float32")
BOTH = replace(EXACT, branches=("cond", "uncond"))
PROMPT = "a cat with a crown"


def images_of(pipe, steps=3, images=2, guidance=5.0):
    """Return the pipeline's images from fixed seeds."""
    generators = [torch.Generator().manual_seed(i) for i in range(images)]
    return pipe(
        PROMPT,
        num_inference_steps=steps,
        num_images_per_prompt=images,
        guidance_scale=guidance,
        generator=generators,
        output_type="np",
        height=64,
        width=32,
    ).images


def recorded(pipe, store, capture=EXACT, **options):
    """Return the run's number and its images."""
    with recording(pipe, store, capture) as session:
        images = images_of(pipe, **options)
    return session.run_id, images


def eager_probs(pipe, **options):
    """Return each site's conditional probabilities in the last pass, from the module's own inputs."""
    found = {}

    def look(site):
        def hook(module, args, kwargs):
            states, text = args[0], kwargs["encoder_hidden_states"]
            query, key = module.to_q(states), module.to_k(text)
            query, key = (x.unflatten(-1, (module.heads, -1)).movedim(-2, 1).flatten(0, 1) for x in (query, key))
            probs = module.get_attention_scores(query, key).unflatten(0, (-1, module.heads))
            found[site] = probs[len(probs) // 2 :].detach()

        return hook

    modules = {site: pipe.unet.get_submodule(site) for site in attention_sites(pipe.unet)}
    handles = [module.register_forward_pre_hook(look(site), with_kwargs=True) for site, module in modules.items()]
    images_of(pipe, **options)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("precision", ["float32", "uint8"])
def test_recording_leaves_the_images_as_they_were_to_the_last_bit(tiny_pipe, store, images, precision):
    _, with_trace = recorded(tiny_pipe, store, Capture(precision=precision), images=images)
    assert np.array_equal(with_trace, images_of(tiny_pipe, images=images))


def test_recorded_maps_equal_an_eager_computation_from_the_modules_inputs(tiny_pipe, store, bench):
    run_id, _ = recorded(tiny_pipe, store)
    for layer, (site, probs) in enumerate(eager_probs(tiny_pipe).items()):
        for sample in range(2):
            for token in (0, 2, 15):
                last = bench.maps_of(store, run_id, sample, site, [token])[-1]
                np.testing.assert_allclose(last.reshape(len(last), -1), probs[sample, :, :, token], atol=1e-5)
        assert store.sql("SELECT path FROM layers WHERE layer = ?", [layer])["path"].tolist() == [site]


def test_every_map_of_every_pass_is_there_exactly_once(tiny_pipe, store):
    run_id, _ = recorded(tiny_pipe, store, BOTH)
    layers = store.sql("SELECT h, w, heads FROM layers ORDER BY layer").to_numpy().tolist()
    large, small = [16, 8, 4], [8, 4, 4]  # latents of 16x8
    assert layers == [large, small, small, small, small, large, large]
    checked = store.verify(run_id).set_index("table")
    assert checked["whole"].all()
    assert checked["expected"]["maps_f32"] == 2 * 2 * 3 * 7 * 4 * 16
    sums = store.sql(
        "SELECT sum(mass) / any_value(h * w) s FROM stats WHERE token IS NOT NULL "
        "GROUP BY run_id, sample, branch, call, layer, head"
    )
    np.testing.assert_allclose(sums["s"], 1, atol=1e-5)


def test_without_guidance_all_of_the_batch_is_conditional(tiny_pipe, store):
    run_id, _ = recorded(tiny_pipe, store, BOTH, guidance=1.0)
    assert set(store.sql("SELECT branch FROM maps_f32")["branch"]) == {"cond"}
    assert store.sql("SELECT DISTINCT halves::VARCHAR h FROM calls")["h"].tolist() == ["[cond]"]
    assert store.verify(run_id)["whole"].all()


@pytest.mark.parametrize(
    ("scheduler", "calls"),
    [(PNDMScheduler, 6), (HeunDiscreteScheduler, 9), (DPMSolverMultistepScheduler, 5)],
)
def test_schedulers_that_use_a_timestep_twice_lose_no_pass(tiny_pipe, store, scheduler, calls):
    before = tiny_pipe.scheduler
    settings = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    tiny_pipe.scheduler = scheduler.from_config(before.config, **settings)
    try:
        run_id, _ = recorded(tiny_pipe, store, steps=5, images=1)
    finally:
        tiny_pipe.scheduler = before
    assert store.sql("SELECT call, step FROM calls ORDER BY call").to_numpy().tolist() == [
        [call, call] for call in range(calls)
    ]
    assert len(store.maps((run_id, 0), 1, layers=0)) == calls
    assert store.verify(run_id)["whole"].all()
