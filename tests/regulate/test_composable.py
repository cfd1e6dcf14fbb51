"""Composable Diffusion beside the arithmetic of diffusers' community pipeline."""

from dataclasses import replace

import families
import pytest
import slow_edits
import torch
from diffusers import DDIMScheduler

from metrics.machine import counting
from regulate import METHODS, Given, Request, applied, generate
from regulate.composable import FIXED, Composable, composed, concepts_of
from regulate.method import Method, Subject
from tracer.pictures import digest
from tracer.recording import recording
from tracer.store import Store

PROMPT, TARGETS, CONCEPTS = "a cat and a red dog", ["cat", "dog"], ["a cat", "a red dog"]
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}


@pytest.fixture
def pipe(emoji_tokenizer):
    return families.sd1(emoji_tokenizer, sample_size=8)


def hooks_of(pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def subject(prompt: str, **given) -> Subject:
    return Subject((), 3, 0, prompt, Given(**given))


def made(pipe, method, prompts=(PROMPT,), targets=(TARGETS,), seeds=(3,), given=(), **options) -> torch.Tensor:
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent"} | options
    with applied(pipe, method, list(prompts), list(targets), seeds, given=given) as run:
        found = pipe(list(prompts), generator=run.generators, num_images_per_prompt=len(seeds) // len(prompts),
                     **options, **run.call)  # fmt: skip
    return found.images


@pytest.mark.parametrize("scheduler", ["DDIM", "DPM-Solver"])
def test_one_image_has_the_latents_of_the_community_pipeline_s_arithmetic(pipe, scheduler):
    if scheduler == "DDIM":
        pipe.scheduler = DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False)
    expected = slow_edits.composed_latents(pipe, CONCEPTS, [5.0, 5.0], seed=3, steps=4)
    found = made(pipe, Composable(), num_inference_steps=4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, made(pipe, Method(), num_inference_steps=4), atol=1e-2)


def test_images_of_different_prompts_and_numbers_of_concepts_are_what_each_is_alone(pipe):
    prompts = ["a cat and a dog | a car with glasses", "a lion and a red crown", "a sombrero"]
    words, seeds = [["cat"], ["lion"], ["sombrero"]], (3, 4, 5, 6, 7, 8)
    scale = {"guidance_scale": 2.0}  # three concepts at 5 would make 3e-4 of float32 rounding
    together = made(pipe, Composable(), prompts, words, seeds, **scale)
    for image, seed in enumerate(seeds):
        alone = made(pipe, Composable(), prompts[image // 2 :][:1], words[image // 2 :][:1], (seed,), **scale)
        torch.testing.assert_close(together[image : image + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "weights", "expected"),
    [
        (Composable(), (7.0, -2.0), [7.0, -2.0]),
        (FIXED, None, [2.5, 2.5]),
        (Composable(weight="shared"), None, [2.5, 2.5]),
        (Composable(weight=3.0), None, [3.0, 3.0]),
        (Composable(weight=3.0), (1.0, 4.0), [1.0, 4.0]),
    ],
)
def test_weights_are_those_given_else_the_method_s(pipe, method, weights, expected):
    slow = slow_edits.composed_latents(pipe, CONCEPTS, expected, seed=3, steps=3)
    found = made(pipe, method, given=Given(weights=weights))
    torch.testing.assert_close(found, slow, atol=1e-4, rtol=1e-4)


def test_concepts_are_those_given_else_what_stands_between_bars_and_joining_words(pipe):
    assert concepts_of(subject("a cat and a dog with a crown")) == ("a cat", "a dog", "a crown")
    assert concepts_of(subject("a cat AND a dog")) == ("a cat", "a dog")
    assert concepts_of(subject(" a cat|a dog | a crown")) == ("a cat", "a dog", "a crown")
    assert concepts_of(subject("a sandy band without glasses")) == ("a sandy band without glasses",)
    assert concepts_of(subject("a cat and a dog", concepts=("a cat", "rain"))) == ("a cat", "rain")
    slow = slow_edits.composed_latents(pipe, ["a cat", "rain"], [5.0, 5.0], seed=3, steps=3)
    found = made(pipe, Composable(), given=Given(concepts=("a cat", "rain")))
    torch.testing.assert_close(found, slow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Given(weights=(1.0,)), r"weights must be one for each of \('a cat', 'a red dog'\), got \(1.0,\)"),
        (Given(concepts=()), "concepts must be at least one, got none for 'a cat and a red dog'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_hooked(pipe, given, message):
    with (
        pytest.raises(ValueError, match=message),
        applied(pipe, Composable(), PROMPT, TARGETS, given=given),
    ):
        pass
    with pytest.raises(ValueError, match="weight must be 'guidance', 'shared' or a number, got 'each'"):
        Composable(weight="each")
    assert hooks_of(pipe) == 0


def test_without_guidance_it_is_refused_with_the_reason_and_nothing_remains(pipe):
    own = type(pipe)
    with pytest.raises(ValueError, match="needs classifier-free guidance of 1 images, got a batch of 1; call the pipe"):
        made(pipe, Composable(), guidance_scale=1.0)
    assert hooks_of(pipe) == 0
    assert type(pipe) is own


def test_one_concept_is_a_no_op_whose_images_are_stock_s_bit_for_bit(pipe):
    asked = Request("a red dog", ("dog",), (3, 4), steps=3)
    result = generate(pipe, asked, Composable())
    chance = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    stock = pipe("a red dog", num_inference_steps=3, guidance_scale=5.0, num_images_per_prompt=2, generator=chance)
    assert (result.standing.verdict, result.standing.reason) == ("no-op", "it is one concept")
    assert result.sha256 == [digest(image) for image in stock.images]
    assert Composable().standing(subject(PROMPT)).verdict == "acts"


def test_one_concept_is_traced_as_any_plain_image(pipe, tmp_path):
    with Store.create(tmp_path / "t.duckdb") as store:
        made_ = generate(pipe, Request("a red dog", ("dog",), (3,), steps=2), Composable(), trace=store)
        assert store.verify(made_.run_id)["whole"].all()


def test_a_concept_beside_others_in_the_batch_is_left_plain_too(pipe):
    """Whatever the weight, which would else guide it too."""
    both = made(pipe, Composable(weight=2.0), [PROMPT, "a crown"], [["cat"], ["crown"]], (3, 4))
    torch.testing.assert_close(both[1:], made(pipe, Method(), ["a crown"], [["crown"]], (4,)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "concepts", "weights"),
    [(Given(weights=(2.0,)), ["a crown"], [2.0]), (Given(concepts=("a red dog",)), ["a red dog"], [5.0])],
)
def test_one_concept_acts_if_its_text_or_its_weight_is_given(pipe, given, concepts, weights):
    slow = slow_edits.composed_latents(pipe, concepts, weights, seed=3, steps=3)
    found = made(pipe, Composable(), ["a crown"], [["crown"]], given=[given])
    torch.testing.assert_close(found, slow, atol=1e-4, rtol=1e-4)
    assert Composable().standing(Subject((), 3, 0, "a crown", given)).verdict == "acts"


def test_there_are_as_many_passes_as_steps_each_over_a_row_for_the_negative_prompt_and_each_concept(pipe):
    rows: list[int] = []
    prompts, words = ["a cat and a dog with glasses", "a lion and a crown"], [["cat"], ["lion"]]
    with applied(pipe, Composable(), prompts, words, (1, 2)) as run, counting(pipe.unet) as count:
        handle = pipe.unet.conv_in.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        pipe(prompts, num_inference_steps=4, guidance_scale=5.0, generator=run.generators, output_type="latent")
        handle.remove()
    assert count.passes == 4
    assert rows == [(1 + 3) + (1 + 2)] * 4


def test_sdxl_is_given_the_pooled_texts_of_the_concepts(emoji_tokenizer):
    pipe = families.sdxl(emoji_tokenizer, emoji_tokenizer)
    seen: list[dict] = []

    def note(unet, args, kwargs):
        seen.append({"text": kwargs["encoder_hidden_states"], **kwargs["added_cond_kwargs"]})

    prompts, words = [PROMPT, "a lion"], [["cat"], ["lion"]]
    with applied(pipe, Composable(), prompts, words, (1, 2)) as run:
        handle = pipe.unet.register_forward_pre_hook(note, with_kwargs=True)
        found = pipe(prompts, num_inference_steps=2, guidance_scale=5.0, generator=run.generators, output_type="latent")
        handle.remove()
    with torch.no_grad():
        encoded = [pipe.encode_prompt(text, device="cpu") for text in (*CONCEPTS, "a lion")]
    torch.testing.assert_close(seen[0]["text"][2:], torch.cat([each[0] for each in encoded]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[0]["text_embeds"][2:], torch.cat([each[2] for each in encoded]), atol=1e-5, rtol=0)
    assert seen[0]["time_ids"].shape == (5, 6)
    assert len(seen) == 2
    alone = made(pipe, Composable(), num_inference_steps=2, seeds=(1,))
    torch.testing.assert_close(found.images[:1], alone, atol=1e-3, rtol=1e-4)


def test_a_trace_is_refused_with_the_reason_and_nothing_is_left(pipe, tmp_path):
    own = type(pipe)
    with Store.create(tmp_path / "t.duckdb") as store:
        with (
            pytest.raises(ValueError, match="composable gives the network other texts than the prompts, whose words"),
            recording(pipe, store),
        ):
            made(pipe, Composable())
        with pytest.raises(ValueError, match="composable gives the network other texts"):
            generate(pipe, Request(PROMPT, TARGETS), Composable(), trace=store, folder=tmp_path / "images")
        assert store.sql("SELECT * FROM runs").empty
        assert hooks_of(pipe) == 0
        with recording(pipe, store):  # afterwards the pipeline can be traced again
            pipe(PROMPT, num_inference_steps=2)
        assert store.sql("SELECT method FROM runs")["method"].tolist() == ["plain"]
    assert type(pipe) is own
    assert not (tmp_path / "images").exists()


def test_a_network_called_for_a_tuple_or_for_an_output_gives_the_same(pipe):
    text = torch.cat([pipe.encode_prompt(t, "cpu", 1, False)[0] for t in ("", PROMPT)]).detach()
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    with applied(pipe, Composable(), PROMPT, TARGETS), torch.no_grad():
        pipe.scheduler.set_timesteps(2)
        pipe._num_timesteps, pipe._guidance_scale, pipe._clip_skip = 2, 5.0, None
        results = [pipe.unet(sample, 999, text, return_dict=True).sample]
        results.append(pipe.unet(sample, timestep=999, encoder_hidden_states=text, return_dict=False)[0])
    assert results[0].shape == sample.shape
    assert torch.equal(*results)


def test_after_an_exception_within_a_pass_nothing_remains(pipe):
    def broken(module, args):
        raise RuntimeError("a pass that fails")

    own, handle = type(pipe), pipe.unet.mid_block.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="a pass that fails"):
        made(pipe, Composable())
    handle.remove()
    assert hooks_of(pipe) == 0
    assert type(pipe) is own
    assert not hasattr(pipe.unet, "_attnreg_passes")
    torch.testing.assert_close(made(pipe, Composable()), made(pipe, Composable()), atol=0, rtol=0)


def test_a_second_call_of_another_guidance_in_the_same_block_has_its_own_weights(pipe):
    with applied(pipe, Composable(), PROMPT, TARGETS) as run:
        for scale in (2.0, 6.0):
            found = pipe(
                PROMPT, num_inference_steps=3, guidance_scale=scale, generator=torch.Generator().manual_seed(3),
                output_type="latent", **run.call,
            ).images  # fmt: skip
    slow = slow_edits.composed_latents(pipe, CONCEPTS, [6.0, 6.0], seed=3, steps=3)
    torch.testing.assert_close(found, slow, atol=1e-4, rtol=1e-4)


def test_a_composition_is_the_unconditional_prediction_and_each_concept_s_weighted_difference_to_it():
    plain, each = torch.tensor([1.0, 10.0]), torch.tensor([2.0, 4.0, 13.0])
    found = composed(
        plain[:, None, None, None], each[:, None, None, None], torch.tensor([5.0, -1.0, 2.0]), torch.tensor([0, 0, 1])
    )
    assert found.flatten().tolist() == [1 + 5 * 1 - 1 * 3, 10 + 2 * 3]


def test_both_sets_are_among_the_methods():
    assert METHODS["composable"] == Composable()
    assert METHODS["composable-fixed"] == replace(Composable(), weight="shared")
