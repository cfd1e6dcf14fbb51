"""The controls do what their one line says."""

from dataclasses import replace

import families
import pytest
import torch

from regulate import METHODS, AttentionRegulation, Method, Request, applied, generate
from regulate.attention_regulation import RANDOM
from regulate.controls import Balance, Boost, GuidanceScale
from regulate.kernels import gaussian_kernels
from tracer.capture import Capture
from tracer.pictures import digest
from tracer.recording import recording
from tracer.sites import attention_sites
from tracer.statistics import dominance, dominance_ratio
from tracer.store import Store

PROMPTS, TARGETS = ["a cat and a red dog", "a lion with glasses"], [["cat", "red dog"], ["lion"]]
COLUMNS = [[2, 5, 6], [2]]


@pytest.fixture
def pipe(emoji_tokenizer):
    return families.sd1(emoji_tokenizer, sample_size=8)


def made(pipe, method, prompts=PROMPTS, targets=TARGETS, seeds=(3, 4), record=None, **options):
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent"} | options
    with applied(pipe, method, prompts, targets, seeds, record=record) as run:
        found = pipe(prompts, generator=run.generators, **options, **run.call).images
    return found


def edits_of(pipe, method, **options):
    """Every text attention under a method: (tap, what its edit returned), in order."""
    seen = []
    made(pipe, method, record=lambda tap, edited: seen.append((tap, edited)), **options)
    return seen


def test_a_boost_adds_its_amount_to_the_scores_of_every_target_s_tokens(pipe):
    seen = [(tap, edited) for tap, edited in edits_of(pipe, Boost(0.7, layers="*")) if edited is not None]
    assert {tap.site for tap, _ in seen} == set(attention_sites(pipe.unet))
    for tap, edited in seen:
        assert edited.rows == slice(2, 4)
        scores = tap.query[2:] @ tap.key[2:].transpose(-1, -2) * tap.scale
        for image, columns in enumerate(COLUMNS):
            scores[image, :, :, columns] += 0.7
        torch.testing.assert_close(edited.probs, scores.softmax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("until", "steps"), [(0.5, 2), (1.0, 4), (0.0, 0), (0.3, 2)])
def test_a_boost_acts_in_its_share_of_the_steps(pipe, until, steps):
    seen = edits_of(pipe, Boost(until=until, layers="mid_block.*"))
    site = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert [edited is not None for tap, edited in seen if tap.site == site] == [True] * steps + [False] * (4 - steps)
    assert all(edited is None for tap, edited in seen if tap.site != site)


def test_a_boost_is_of_the_layers_and_steps_that_regulation_edits(pipe):
    found = [
        [(tap.site, tap.call) for tap, edited in edits_of(pipe, method) if edited is not None]
        for method in (Boost(), AttentionRegulation(iterations=1))
    ]
    assert found[0] == found[1]
    assert found[0]


def test_a_boost_leaves_the_unconditional_half_alone_and_works_without_guidance(pipe):
    predictions = []
    for method in (Method(), Boost(until=1.0)):
        with applied(pipe, method, PROMPTS, TARGETS, (3, 4)) as run:
            handle = pipe.unet.register_forward_hook(lambda unet, args, output: predictions.append(output[0].clone()))
            pipe(PROMPTS, num_inference_steps=1, generator=run.generators, output_type="latent")
            handle.remove()
    assert torch.equal(predictions[0][:2], predictions[1][:2])
    assert not torch.allclose(predictions[0][2:], predictions[1][2:], atol=1e-4)
    free = [made(pipe, method, guidance_scale=1.0) for method in (Method(), Boost())]
    assert not torch.allclose(*free, atol=1e-4)


def test_a_boost_of_nothing_changes_nothing(pipe):
    found, plain = (made(pipe, method, guidance_scale=2.0) for method in (Boost(0.0), Method()))
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


def test_a_boost_without_targets_is_refused(pipe):
    with pytest.raises(ValueError, match="a boost needs at least one target for every prompt"):
        made(pipe, Boost(), targets=[["cat"], []])


PAIRS, PAIR_COLUMNS = [["cat", "red dog"], ["lion", "glasses"]], [[[2], [5, 6]], [[2], [4]]]


def quantiles(probs, positions):
    """The logarithm of a word's 0.9-quantile, the mean over heads."""
    return probs[..., positions].sum(-1).quantile(0.9, 1).mean().log()


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.5, 1.0])
def test_a_balance_moves_the_logarithm_of_dominance_by_its_strength_and_nothing_else(pipe, strength):
    seen = edits_of(pipe, Balance(strength), targets=PAIRS)
    assert {tap.site for tap, edited in seen if edited is not None} == set(attention_sites(pipe.unet))
    for tap, edited in seen:
        for image, columns in enumerate(PAIR_COLUMNS):
            scores = tap.scores(slice(2, 4))[image]
            before, after = (
                torch.stack([quantiles(probs, word) for word in columns])
                for probs in (scores.softmax(-1), edited.probs[image])
            )
            wanted = ((1 - strength) * before).log_softmax(0) + before.logsumexp(0)  # their sum stays
            torch.testing.assert_close(after, wanted, atol=2e-3, rtol=1e-3)
            added = edited.probs[image].log() - scores  # but for the softmax's sum, a constant of each target
            added = added - added[..., :1]
            for word in columns:
                assert (added[..., word] - added[0, 0, word[0]]).abs().max() < 1e-3
            others = sorted(set(range(scores.shape[-1])) - {position for word in columns for position in word})
            assert added[..., others].abs().max() < 1e-3


def ratios(pipe, method):
    """The logarithm of the dominance ratio in the first layer of the first pass, of each image, as it is used."""
    tap, edited = edits_of(pipe, method, targets=PAIRS)[0]
    probs = edited.probs if edited else tap.probs(slice(2, 4))
    shares = [dominance(one, words) for one, words in zip(probs, PAIR_COLUMNS, strict=True)]
    return torch.stack([dominance_ratio(share) for share in shares]).log()


def test_an_equal_boost_of_all_targets_hardly_moves_dominance(pipe):
    plain, boosted, balanced = (ratios(pipe, m) for m in (Boost(0.0, "*"), Boost(1.0, "*"), Balance(1.0)))
    assert (plain > 0.01).all()
    assert (abs(boosted - plain) < 0.2 * plain).all()
    assert (balanced < 0.02 * plain).all()


def test_a_balance_of_one_target_is_refused(pipe):
    with pytest.raises(ValueError, match="a balance needs at least two targets for every prompt"):
        made(pipe, Balance(), targets=[["cat", "red dog"], ["lion"]])


@pytest.mark.parametrize("scale", [1.0, 9.0])
def test_a_guidance_scale_gives_what_stock_gives_when_called_with_it_bit_for_bit(pipe, scale):
    asked = Request(PROMPTS[0], ("cat",), (3, 4), steps=3, guidance=5.0)
    chance = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    stock = pipe(PROMPTS[0], num_inference_steps=3, guidance_scale=scale, num_images_per_prompt=2, generator=chance)
    own = type(pipe)
    assert generate(pipe, asked, GuidanceScale(scale)).sha256 == [digest(image) for image in stock.images]
    assert type(pipe) is own
    assert generate(pipe, asked).sha256 != [digest(image) for image in stock.images]


def test_a_guidance_scale_acts_on_a_call_that_names_none_or_gives_it_by_place(pipe):
    latents = made(pipe, Method(), guidance_scale=9.0)
    with applied(pipe, GuidanceScale(9.0), PROMPTS, TARGETS, (3, 4)) as run:
        silent = pipe(PROMPTS, num_inference_steps=4, generator=run.generators, output_type="latent").images
        chance = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        placed = pipe(PROMPTS, None, None, 4, None, None, 2.0, generator=chance, output_type="latent").images
    assert torch.equal(silent, latents)
    assert torch.equal(placed, latents)


def test_the_trace_notes_the_guidance_scale_that_acts(pipe, tmp_path):
    with Store.create(tmp_path / "t.duckdb") as store, recording(pipe, store):
        made(pipe, GuidanceScale(9.0), output_type="pil", num_inference_steps=2)
        runs = store.sql("SELECT method, guidance FROM runs").iloc[0].to_dict()
    assert runs == {"method": "guidance-scale", "guidance": 9.0}


def test_the_random_bias_is_the_one_that_the_descent_starts_from(pipe):
    """Outside of both ends, and at the first step, where nothing is remembered."""
    seen = [(tap, edited) for tap, edited in edits_of(pipe, RANDOM) if edited is not None and tap.call == 0]
    numbers = {site: layer for layer, site in enumerate(attention_sites(pipe.unet))}
    assert len(seen) == 3
    for tap, edited in seen:
        kernels = gaussian_kernels(tap.height, tap.width, "inner")
        for image, (seed, columns) in enumerate(zip((3, 4), COLUMNS, strict=True)):
            chance = torch.Generator().manual_seed((seed * 1_000_003 + numbers[tap.site]) * 1_009)
            theta = torch.rand(4, len(columns), len(kernels), generator=chance)
            scores = tap.scores(slice(2, 4))[image].clone()
            scores[..., columns] += (theta @ kernels).transpose(-1, -2)
            inner = [position for position in range(1, 16) if position != (7, 5)[image]]
            expected = scores.softmax(-1)[..., inner]
            torch.testing.assert_close(edited.probs[image][..., inner], expected, atol=1e-6, rtol=1e-5)


def test_the_random_bias_keeps_iterate_0_and_is_not_the_plain_image(pipe, tmp_path):
    asked = Request(PROMPTS[0], ("cat", "dog"), (3, 4), steps=4)
    with Store.create(tmp_path / "t.duckdb") as store:
        random = generate(pipe, asked, RANDOM, trace=store, capture=Capture(solves=True))
        kept = store.sql("SELECT DISTINCT kept FROM solves")["kept"].tolist()
    assert kept == [0]
    assert all(one != other for one, other in zip(random.sha256, generate(pipe, asked).sha256, strict=True))
    assert random.sha256 != generate(pipe, asked, AttentionRegulation(step_size=5.0)).sha256


def test_the_controls_are_among_the_methods():
    assert METHODS["boost"] == Boost()
    assert METHODS["balance"] == Balance()
    assert METHODS["guidance-scale"] == GuidanceScale()
    assert METHODS["random-bias"] == replace(AttentionRegulation(), iterations=1)
