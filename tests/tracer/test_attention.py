from collections import Counter

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from tracer.attention import UntappedAttention, attending
from tracer.sites import attention_sites, map_size
from tracer.tap import Edited, Tap

PROMPT = "a cat and a dog"
SCHEDULERS = [DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler]


@pytest.fixture
def sites(tiny_pipe):
    return attention_sites(tiny_pipe.unet)


def draw(pipe, images: int = 1, steps: int = 3, **more) -> torch.Tensor:
    chance = [torch.Generator().manual_seed(seed) for seed in range(images)]
    options = {"num_inference_steps": steps, "generator": chance, "num_images_per_prompt": images, **more}
    return torch.from_numpy(pipe(PROMPT, output_type="np", **options).images)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_sites_come_in_order_of_execution(sites):
    assert [site.split(".attentions")[0] for site in sites] == [
        "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.0", "up_blocks.1", "up_blocks.1",
    ]  # fmt: skip
    assert all(site.endswith("attn2") for site in sites)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("images", [1, 4])
def test_recording_leaves_the_image_bit_identical(tiny_pipe, sites, scheduler, images, monkeypatch):
    monkeypatch.setattr(tiny_pipe, "scheduler", scheduler(steps_offset=1))
    stock = draw(tiny_pipe, images)
    seen: list[Tap] = []
    with attending(tiny_pipe.unet, sites, record=lambda tap, edited: seen.append(tap)):
        traced = draw(tiny_pipe, images)
    assert torch.equal(stock, traced)
    assert len(seen) == 3 * len(sites)
    assert all(tap.query.shape[0] == 2 * images for tap in seen)


def test_each_site_and_pass_is_tapped_once_and_in_order(tiny_pipe, sites):
    seen: list[tuple[int, str]] = []
    with attending(tiny_pipe.unet, sites, record=lambda tap, edited: seen.append((tap.call, tap.site))):
        draw(tiny_pipe)
    assert seen == [(call, site) for call in range(3) for site in sites]


def test_recorded_probabilities_equal_an_eager_computation(tiny_pipe, sites):
    """The eager one is diffusers' own, from the projections' outputs."""
    projected: dict[tuple[str, str], torch.Tensor] = {}
    handles = []
    for site in sites:
        module = tiny_pipe.unet.get_submodule(site)
        for name in ("to_q", "to_k"):
            keep = lambda m, a, out, key=(site, name): projected.__setitem__(key, out)  # noqa: E731
            handles.append(getattr(module, name).register_forward_hook(keep))
    worst = []

    def compare(tap: Tap, edited: Edited | None) -> None:
        module = tiny_pipe.unet.get_submodule(tap.site)
        query, key = (module.head_to_batch_dim(projected[tap.site, name]) for name in ("to_q", "to_k"))
        eager = module.get_attention_scores(query, key).view(tap.probs().shape)
        worst.append((tap.probs() - eager).abs().max().item())
        assert tap.height * tap.width == eager.shape[-2]

    with attending(tiny_pipe.unet, sites, record=compare):
        draw(tiny_pipe, images=2)
    for handle in handles:
        handle.remove()
    assert len(worst) == 3 * len(sites)
    assert max(worst) < 1e-5


def test_an_edit_that_returns_the_model_s_own_probabilities_changes_nothing_visible(tiny_pipe, sites):
    rows = slice(1, 2)
    stock = draw(tiny_pipe)
    with attending(tiny_pipe.unet, sites, edit=lambda tap: Edited(rows, tap.probs(rows))):
        same = draw(tiny_pipe)
    torch.testing.assert_close(same, stock, atol=1e-4, rtol=0)


def test_an_edit_reaches_only_its_rows(tiny_pipe, sites):
    outputs: dict[str, torch.Tensor] = {}
    module = tiny_pipe.unet.get_submodule(sites[0])
    handle = module.register_forward_hook(lambda m, a, out: outputs.setdefault(state[0], out.clone()))
    sample, text = torch.randn(2, 4, 16, 16), torch.randn(2, 16, 32)
    state = ["stock"]
    with torch.no_grad():
        tiny_pipe.unet(sample, 10, text)
        state[0] = "edited"
        only_first = lambda tap: Edited(slice(1, 2), torch.eye(16)[0].expand_as(tap.probs(slice(1, 2))))  # noqa: E731
        with attending(tiny_pipe.unet, sites[:1], edit=only_first):
            tiny_pipe.unet(sample, 10, text)
    handle.remove()
    assert torch.equal(outputs["stock"][0], outputs["edited"][0])
    assert not torch.allclose(outputs["stock"][1], outputs["edited"][1])


def test_gradients_flow_from_recorded_probabilities_to_the_latents(tiny_pipe, sites):
    sample = torch.randn(1, 4, 16, 16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with attending(tiny_pipe.unet, sites, record=lambda tap, edited: kept.append(tap.probs())):
        tiny_pipe.unet(sample, 10, torch.randn(1, 16, 32))
    kept[-1][..., 1].sum().backward()
    assert sample.grad is not None
    assert sample.grad.abs().max() > 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_hooks_and_modes_are_gone_when_an_attention_module_raises(tiny_pipe, sites, error):
    before, stock = hooks_of(tiny_pipe.unet), draw(tiny_pipe)

    def interrupt(module, args):
        raise error

    handle = tiny_pipe.unet.get_submodule(sites[2]).to_out[0].register_forward_pre_hook(interrupt)
    with pytest.raises(error), attending(tiny_pipe.unet, sites, record=lambda tap, edited: None):
        draw(tiny_pipe)
    handle.remove()
    assert hooks_of(tiny_pipe.unet) == before
    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(draw(tiny_pipe), stock)


def test_a_block_survives_an_interrupted_call_and_goes_on(tiny_pipe, sites):
    seen: Counter[str] = Counter()
    state = {"interrupt": True}

    def interrupt(module, args):
        if state["interrupt"]:
            raise KeyboardInterrupt

    handle = tiny_pipe.unet.get_submodule(sites[2]).to_out[0].register_forward_pre_hook(interrupt)
    with attending(tiny_pipe.unet, sites, record=lambda t, e: seen.update([t.site])):
        with pytest.raises(KeyboardInterrupt):
            draw(tiny_pipe)
        state["interrupt"] = False
        draw(tiny_pipe)
    handle.remove()
    assert seen[sites[2]] == 4  # the interrupted pass got this far
    assert seen[sites[-1]] == 3


def test_only_the_text_attention_of_a_module_is_tapped(tiny_pipe, sites):
    """A second attention inside the module, as IP-Adapter makes one, is left alone."""
    module = tiny_pipe.unet.get_submodule(sites[0])
    inner = module.processor

    class Twice:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
            first = inner(attn, hidden_states, encoder_hidden_states, **kwargs)
            return first + 0 * inner(attn, hidden_states, encoder_hidden_states, **kwargs)

    seen: list[str] = []
    module.processor = Twice()
    try:
        with attending(tiny_pipe.unet, sites[:1], record=lambda tap, edited: seen.append(tap.site)):
            tiny_pipe.unet(torch.randn(1, 4, 16, 16), 10, torch.randn(1, 16, 32))
    finally:
        module.processor = inner
    assert seen == [sites[0]]


def test_maps_of_a_latent_that_is_not_square_have_its_shape(tiny_pipe, sites):
    sizes: set[tuple[int, int]] = set()
    with attending(tiny_pipe.unet, sites, record=lambda tap, edited: sizes.add((tap.height, tap.width))):
        tiny_pipe.unet(torch.randn(1, 4, 16, 24), 10, torch.randn(1, 16, 32))
    assert sizes == {(16, 24), (8, 12)}


def test_a_map_that_is_no_halving_is_refused():
    assert (map_size(12, 5, 7), map_size(4, 5, 7)) == ((3, 4), (2, 2))
    with pytest.raises(ValueError, match="100 pixels is no halving of a 16x16"):
        map_size(100, 16, 16)


def test_an_unknown_site_is_refused_with_the_valid_ones(tiny_pipe, sites):
    with (
        pytest.raises(ValueError, match=r"unknown attention sites \['nowhere'\]; the model has down_blocks"),
        attending(tiny_pipe.unet, ["nowhere"]),
    ):
        pass


def test_a_processor_that_bypasses_the_seam_is_refused_with_the_way_to_switch(tiny_pipe, sites):
    module = tiny_pipe.unet.get_submodule(sites[0])
    processor = module.processor
    module.set_processor(AttnProcessor())
    try:
        with pytest.raises(ValueError, match="bypasses scaled_dot_product"), attending(tiny_pipe.unet, sites):
            pass
    finally:
        module.set_processor(processor)
    assert hooks_of(tiny_pipe.unet) == 0


def test_a_compiled_model_is_refused(tiny_pipe, sites):
    with pytest.raises(ValueError, match="compiled model"), attending(torch.compile(tiny_pipe.unet), sites):
        pass


def test_a_processor_that_silently_bypasses_the_seam_is_an_error_at_the_end(tiny_pipe, sites):
    module = tiny_pipe.unet.get_submodule(sites[0])
    processor, eager = module.processor, AttnProcessor()

    class Quiet:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **kwargs):
            return eager(attn, hidden_states, encoder_hidden_states, attention_mask)

    module.processor = Quiet()
    try:
        seam = attending(tiny_pipe.unet, sites)
        with pytest.raises(UntappedAttention, match=r"taps missing by site: {'down_blocks\.0"), seam:
            tiny_pipe.unet(torch.randn(1, 4, 16, 16), 10, torch.randn(1, 16, 32))
    finally:
        module.processor = processor
