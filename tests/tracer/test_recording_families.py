"""Whole pipelines of every family, recorded in one line and compared with an eager softmax over full rows.

The reference knows nothing of the tracer: it looks at the arguments of torch's attention function while a site runs,
and finds the text among the keys by the values, which neither a norm nor a rotation has touched.
"""

from dataclasses import replace

import families
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tracer.capture import Capture
from tracer.recording import recording
from tracer.sites import attention_sites, denoiser
from tracer.store import Store

EXACT = Capture(tokens="all", precision="float32")
PROMPTS = ["a cat and a dog", "a giraffe with glasses"]
T5 = {"max_sequence_length": 24}
CALLS = {
    "sd1": {"height": 32, "width": 48},
    "sd2": {"height": 48, "width": 32},
    "sdxl": {"height": 32, "width": 48, "negative_prompt": ["blurry"] * 2},
    "sd3": {"height": 32, "width": 48, **T5},
    "sd3.5": {"height": 32, "width": 32, **T5},
    "flux": {"height": 32, "width": 48, **T5},
    "flux-dev": {"height": 48, "width": 32, **T5},
}


@pytest.fixture(scope="module")
def pipes(clip_tokenizer, sd2_tokenizer):
    """Pipelines by name; two pipelines share no module."""
    t5 = families.t5_tokenizer()
    return {
        "sd1": families.sd1(clip_tokenizer),
        "sd2": families.sd2(sd2_tokenizer),
        "sdxl": families.sdxl(clip_tokenizer, sd2_tokenizer),
        "sd3": families.sd3(clip_tokenizer, sd2_tokenizer, t5),
        "sd3.5": families.sd3(clip_tokenizer, sd2_tokenizer, t5, dual_attention_layers=(0,), qk_norm="rms_norm"),
        "flux": families.flux(clip_tokenizer, t5),
        "flux-dev": families.flux(clip_tokenizer, t5, guidance_embeds=True),
    }


def draw(pipe, name, prompt=PROMPTS, images=1, steps=2, **more):
    """Return the pipeline's images from fixed seeds."""
    many = images * (1 if isinstance(prompt, str) else len(prompt))
    chance = [torch.Generator().manual_seed(seed) for seed in range(many)]
    options = {"num_inference_steps": steps, "num_images_per_prompt": images, "generator": chance, "output_type": "np"}
    return pipe(prompt, **options | CALLS[name] | more).images


class Eager:
    """The probabilities of every site and pass, "batch head pixel token", from the attention function's arguments."""

    def __init__(self, pipe, monkeypatch):
        self.probs, self.site, self.text = {}, None, None
        model = denoiser(pipe)
        attention = F.scaled_dot_product_attention
        self.handles = []
        for site in attention_sites(model):
            module = model.get_submodule(site)
            enter = module.register_forward_pre_hook(lambda m, a, k, site=site: self.enter(site, k), with_kwargs=True)
            self.handles += [enter, module.register_forward_hook(lambda *_: setattr(self, "site", None))]
            if hasattr(module, "add_v_proj") and module.add_v_proj is not None:
                self.handles.append(module.add_v_proj.register_forward_hook(self.text_values))
        for block in getattr(model, "single_transformer_blocks", []):
            self.handles.append(block.register_forward_pre_hook(self.enter_single, with_kwargs=True))
            self.handles.append(block.norm.register_forward_hook(self.check_text_first))

        def spy(*args, **kwargs):
            if self.site is not None:
                self.look(*args, **kwargs)
            return attention(*args, **kwargs)

        monkeypatch.setattr(F, "scaled_dot_product_attention", spy)

    def enter(self, site, kwargs):
        self.site, self.kwargs = site, kwargs

    def text_values(self, module, args, output):
        self.text = output

    def enter_single(self, module, args, kwargs):
        self.states = kwargs["encoder_hidden_states"]

    def check_text_first(self, module, args, output):
        assert torch.equal(args[0][:, : self.states.shape[1]], self.states)
        self.text = None

    def look(self, query, key, value, **_):
        probs = (query.double() @ key.double().transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        if self.kwargs.get("encoder_hidden_states") is None:  # a single block: the text comes first, see above
            length = self.states.shape[1]
            probs = probs[:, :, length:, :length]
        elif self.text is not None:  # a joint block: the text is where its values are
            length = self.text.shape[1]
            text = self.text.unflatten(-1, (key.shape[1], -1)).transpose(1, 2)
            first = torch.equal(value[:, :, :length], text)
            assert first != torch.equal(value[:, :, -length:], text)
            probs = probs[:, :, length:, :length] if first else probs[:, :, :-length, -length:]
        self.probs.setdefault(self.site, []).append(probs)
        self.site = None  # a module's first attention is the one over the text

    def close(self):
        for handle in self.handles:
            handle.remove()


def eager_probs(pipe, name, monkeypatch, **options):
    with monkeypatch.context() as patch:
        eager = Eager(pipe, patch)
        draw(pipe, name, **options)
        eager.close()
    return eager.probs


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_every_map_equals_an_eager_softmax_over_the_full_row(pipes, store, name, images, monkeypatch):
    pipe = pipes[name]
    probs = eager_probs(pipe, name, monkeypatch, images=images)
    with recording(pipe, store, EXACT) as session:
        draw(pipe, name, images=images)
    assert store.verify(session.run_id)["whole"].all()
    layers = store.sql("SELECT path, h, w, heads FROM layers ORDER BY layer")
    assert layers["path"].tolist() == list(attention_sites(denoiser(pipe))) == list(probs)
    for layer in layers.itertuples():
        for sample in range(2 * images):
            expected = np.stack([one[len(one) - 2 * images + sample].float().numpy() for one in probs[layer.path]])
            maps = store.sql(
                "SELECT map FROM attn WHERE sample = ? AND path = ? AND kind != 'image' ORDER BY call, head, token",
                [sample, layer.path],
            )
            found = np.stack(maps["map"]).reshape(2, layer.heads, expected.shape[-1], layer.h * layer.w)
            np.testing.assert_allclose(found, expected.swapaxes(-1, -2), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CALLS)
def test_recording_leaves_the_images_as_they_were_to_the_last_bit(pipes, store, name, dtype):
    pipe = pipes[name].to(dtype)
    try:
        stock = draw(pipe, name)
        with recording(pipe, store) as session:
            traced = draw(pipe, name)
    finally:
        pipe.to(torch.float32)
    assert np.array_equal(stock, traced, equal_nan=True)
    assert store.verify()["whole"].all()
    assert store.sql("SELECT dtype, n_steps, height, width FROM runs").iloc[0].tolist() == [
        str(dtype).removeprefix("torch."), 2, CALLS[name]["height"], CALLS[name]["width"],
    ]  # fmt: skip
    assert session.run_id == 1


@pytest.mark.parametrize("name", CALLS)
def test_the_default_rows_of_a_pixel_add_up_to_one(pipes, store, name):
    with recording(pipes[name], store):
        draw(pipes[name], name)
    sums = store.sql(
        "SELECT sum(mass) / any_value(h * w) s FROM stats WHERE token IS NOT NULL GROUP BY sample, call, layer, head"
    )
    assert len(sums) > 8
    np.testing.assert_allclose(sums["s"], 1, atol=1e-5)
    kinds = set(store.sql("SELECT DISTINCT kind::VARCHAR k FROM tokens WHERE is_kept")["k"])
    assert kinds == {"word", "eos", "padsum"} | ({"sos"} if "flux" not in name else set()) | (
        {"image"} if name[:2] == "fl" or name[:3] == "sd3" else set()
    )


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_both_halves_are_recorded_where_there_are_two(pipes, store, name, guidance):
    both = replace(EXACT, branches=("cond", "uncond"))
    with recording(pipes[name], store, both):
        draw(pipes[name], name, guidance_scale=guidance)
    branches = {"cond", "uncond"} if guidance > 1 else {"cond"}
    assert set(store.sql("SELECT DISTINCT branch::VARCHAR b FROM maps_f32")["b"]) == branches
    assert store.verify()["whole"].all()


@pytest.mark.parametrize("branches", [("cond",), ("uncond",), ("cond", "uncond")])
def test_flux_with_true_guidance_has_a_pass_for_each_half(pipes, store, branches, monkeypatch):
    options = {"negative_prompt": ["a dog", "a red car"], "true_cfg_scale": 3.0}
    probs = eager_probs(pipes["flux"], "flux", monkeypatch, **options)
    with recording(pipes["flux"], store, replace(EXACT, branches=branches)):
        draw(pipes["flux"], "flux", **options)
    calls = store.sql("SELECT call, step, halves::VARCHAR h FROM calls WHERE sample = 0 ORDER BY call")
    every = [[0, 0, "[cond]"], [1, 0, "[uncond]"], [2, 1, "[cond]"], [3, 1, "[uncond]"]]
    assert calls.to_numpy().tolist() == [row for row in every if row[2].strip("[]") in branches]
    assert store.verify()["whole"].all()
    site = attention_sites(pipes["flux"].transformer)[-1]
    for branch in branches:
        passes = probs[site][branch == "uncond" :: 2]
        found = store.maps((1, 1), 0, layers=site, branch=branch)[:, 0]
        expected = np.stack([one[1, :, :, 0].float().numpy() for one in passes])
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)
    if "uncond" in branches:
        words = store.sql("SELECT word FROM words WHERE sample = 1 AND branch = 'uncond' ORDER BY word_idx")
        assert words["word"].tolist() == ["a", "red", "car"]


def test_a_word_of_sd3_has_the_tokens_of_both_encoders(pipes, store):
    with recording(pipes["sd3"], store, EXACT, targets=["giraffe"]):
        draw(pipes["sd3"], "sd3", prompt="a giraffe with glasses")
    tokens = store.sql("SELECT token, encoder, is_target FROM tokens WHERE word = 'giraffe' ORDER BY token")
    assert tokens.to_numpy().tolist() == [[2, "clip", True], [78, "t5", True], [79, "t5", True]]
    own = sum(store.maps(0, token, layers=0) for token in (2, 78, 79))
    np.testing.assert_allclose(store.maps(0, "giraffe", layers=0), own, rtol=1e-6)
    whole = store.sql("SELECT p90 FROM head_stats WHERE token IS NULL AND word_idx = 1 AND call = 1 AND layer = 0")
    expected = np.quantile(own[1, 0].reshape(4, -1), 0.9, axis=-1)
    np.testing.assert_allclose(whole["p90"], expected, rtol=1e-5)


def test_a_prompt_that_only_clip_cannot_hold_is_cut_there_alone(pipes, store):
    prompt = " ".join(["a cat and"] * 30)  # 90 words, of which CLIP holds 75
    with recording(pipes["sd3"], store):
        draw(pipes["sd3"], "sd3", prompt=prompt, max_sequence_length=128)
    count = store.sql("SELECT encoder, count(*) n FROM tokens WHERE kind = 'word' GROUP BY 1 ORDER BY 1")
    assert count["n"].tolist() == [75, 90]
    assert store.verify()["whole"].all()


def test_sd3_without_t5_has_nothing_in_its_place(pipes, store):
    whole = pipes["sd3"]
    pipe = type(whole)(**whole.components | {"text_encoder_3": None, "tokenizer_3": None})
    pipe.set_progress_bar_config(disable=True)
    with recording(pipe, store):
        draw(pipe, "sd3")
    assert store.verify()["whole"].all()
    assert set(store.sql("SELECT encoder FROM tokens WHERE kind = 'word'")["encoder"]) == {"clip"}


def test_the_extra_passes_of_skip_layer_guidance_are_no_sampling_passes(pipes, store):
    with recording(pipes["sd3"], store):
        draw(pipes["sd3"], "sd3", steps=3, skip_guidance_layers=[1], skip_layer_guidance_stop=0.9)
    calls = store.sql("SELECT DISTINCT step, kind::VARCHAR k FROM calls ORDER BY step").to_numpy().tolist()
    assert calls == [[0, "sample"], [1, "sample"], [2, "sample"]]
    assert store.verify()["whole"].all()


@pytest.mark.parametrize(
    ("name", "argument"),
    [("sdxl", "prompt_2"), ("sd3", "prompt_3"), ("flux", "prompt_2"), ("sdxl", "negative_prompt_2")],
)
def test_another_text_for_another_encoder_is_refused(pipes, store, name, argument):
    with (
        recording(pipes[name], store),
        pytest.raises(ValueError, match=f"{argument} must be left out or be the prompt"),
    ):
        draw(pipes[name], name, **{argument: ["a red car"] * 2})
    assert store.sql("FROM runs").empty
    with recording(pipes[name], store):
        draw(pipes[name], name, prompt_2=PROMPTS)
    assert store.verify()["whole"].all()


@pytest.mark.parametrize("kind", ["img2img", "inpaint"])
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sd3", "flux"])
def test_pipelines_that_start_from_an_image_are_recorded(pipes, tmp_path, name, kind):
    pipe = getattr(families, f"{kind}_of")(pipes[name])
    size = (CALLS[name]["width"], CALLS[name]["height"])
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    options = {"image": image, "strength": 0.6} | ({"mask_image": image.convert("L")} if kind == "inpaint" else {})
    stock = draw(pipe, name, prompt=PROMPTS[0], steps=5, negative_prompt=None, **options)
    with Store.create(tmp_path / "t.duckdb") as store:
        with recording(pipe, store):
            traced = draw(pipe, name, prompt=PROMPTS[0], steps=5, negative_prompt=None, **options)
        assert store.sql("SELECT call, step FROM calls ORDER BY call").to_numpy().tolist() == [[i, i] for i in range(3)]
        assert store.verify()["whole"].all()
        timesteps = store.sql("SELECT timestep FROM calls ORDER BY call")["timestep"].tolist()
    assert np.array_equal(stock, traced)
    expected = pipe.scheduler.timesteps[-3:].tolist()
    assert timesteps == pytest.approx(expected)
