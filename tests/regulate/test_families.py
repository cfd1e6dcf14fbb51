"""Regulation on whole pipelines of the real classes, held to the slow versions tap by tap."""

import math
from collections import Counter
from dataclasses import replace

import families
import pytest
import slow_regulation as slow
import slow_variants as variants
import torch

from regulate import FIXED, PAPER, AttentionRegulation, applied
from tracer.attention import attending
from tracer.sites import attention_sites

PROMPTS = ["a cat and a sombrero", "a red car with glasses"]
TARGETS = [["cat", "sombrero"], ["car"]]
FEW = AttentionRegulation(iterations=4)  # over 20 evaluations float32 rounding grows, see tests/golden


def sd1(clip_tokenizer, sd2_tokenizer):
    return families.sd1(clip_tokenizer)


def sd2(clip_tokenizer, sd2_tokenizer):
    return families.sd2(sd2_tokenizer)


def sdxl(clip_tokenizer, sd2_tokenizer):
    return families.sdxl(clip_tokenizer, sd2_tokenizer)


@pytest.fixture(params=[sd1, sd2, sdxl], ids=lambda build: build.__name__)
def pipe(request, clip_tokenizer, sd2_tokenizer):
    return request.param(clip_tokenizer, sd2_tokenizer)


def regulated(pipe, method, seeds=(1, 2, 3, 4), prompts=PROMPTS, targets=TARGETS, size=(64, 96), **options):
    """The images as latents, and every edit: (tap, probs, subjects, step)."""
    seen = []
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"} | options

    def record(tap, edited):
        if edited is not None:
            seen.append((tap, edited, run.passes.step))

    with applied(pipe, method, prompts, targets, seeds, record=record) as run:
        images = pipe(
            prompts, height=size[0], width=size[1], generator=run.generators,
            num_images_per_prompt=len(seeds) // len(prompts), **options,
        ).images  # fmt: skip
    return images, seen, run


def words_of(subject) -> list[list[int]]:
    return [list(target.positions) for target in subject.targets]


def start_of(subject, layer: int, step: int, heads: int, targets: int, size) -> torch.Tensor:
    """The start as documented: from a CPU generator seeded by (image seed, layer, step)."""
    chance = torch.Generator().manual_seed((subject.seed * 1_000_003 + layer) * 1_009 + step)
    sigma = max(1, min(size) // 16)
    grid = [len(range(2 * sigma, side, 2 * sigma)) for side in size]
    return torch.rand(heads, targets, math.prod(grid), generator=chance).unflatten(2, grid)


def descended(scores, theta, loss) -> torch.Tensor:
    best, lowest = theta, math.inf
    for _ in range(FEW.iterations):
        theta = theta.detach().requires_grad_()
        value = sum(loss(s, t) for s, t in zip(scores, theta, strict=True))
        if float(value.detach()) < lowest:
            best, lowest = theta.detach(), float(value.detach())
        theta = theta - 100 * torch.autograd.grad(value, theta)[0]
    return best


def test_every_edit_of_the_first_step_equals_the_slow_version(pipe):
    """Two prompts of different targets, one a word of two pieces; two images of each; maps that are not square."""
    _, seen, run = regulated(pipe, FEW)
    sites = attention_sites(pipe.unet)
    assert {len(target.positions) for subject in run.subjects for target in subject.targets} == {1, 2}
    for tap, edited, step in [one for one in seen if one[2] == 0]:
        size = (tap.height, tap.width)
        assert size[0] != size[1]
        for image, subject in enumerate(run.subjects):
            pieces = sorted(position for word in words_of(subject) for position in word)
            scores = tap.scores(edited.rows)[image].double()
            theta = start_of(subject, sites.index(tap.site), step, len(scores), len(pieces), size).double()
            best = descended(scores, theta, lambda s, t, p=pieces, size=size: slow.loss(s, t, p, *size))
            for head, of_head in enumerate(best):
                bias = 0.25 * slow.bias_map(theta[head], *size) + 0.75 * slow.bias_map(of_head, *size)
                expected = slow.attention(scores[head], bias, pieces)
                for end in (0, subject.end):
                    expected[:, end] = scores[head].softmax(-1)[:, end]
                found = edited.probs[image, head].double()
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_the_fixed_set_takes_a_word_of_two_pieces_as_one_target(pipe):
    _, seen, run = regulated(pipe, replace(FIXED, iterations=FEW.iterations, small_steps=False))
    sites = attention_sites(pipe.unet)
    tap, edited, _ = seen[0]
    size, subject = (tap.height, tap.width), run.subjects[0]
    words, scores = words_of(subject), tap.scores(edited.rows)[0].double()
    theta = start_of(subject, sites.index(tap.site), 0, len(scores), len(words), size).double()
    best = descended(scores, theta, lambda s, t: variants.fixed_loss(s, t, words, *size))
    for head, of_head in enumerate(best):
        expected = variants.probs_of(scores[head], slow.bias_map(of_head, *size), words)
        torch.testing.assert_close(edited.probs[0, head].double(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", [FEW, PAPER, FIXED], ids=["published", "paper", "fixed"])
def test_the_layer_s_output_is_the_edited_attention_and_the_other_half_is_untouched(pipe, method):
    """Held to eager attention; the unconditional rows of the first edited layer to a plain run, bit for bit."""
    outputs, plain = {}, {}

    def keep(into):
        def hook(module, args, output):
            into.setdefault("output", output.detach().clone())

        return hook

    _, seen, _ = regulated(pipe, method, num_inference_steps=2)
    tap, edited, _ = seen[0]
    module = pipe.unet.get_submodule(tap.site)
    handle = module.register_forward_hook(keep(outputs))
    regulated(pipe, method)
    handle.remove()
    handle = module.register_forward_hook(keep(plain))
    regulated(pipe, replace(method, until=0.0))
    handle.remove()
    half = len(tap.query) // 2
    attended = (edited.probs @ tap.value[half:].float()).transpose(1, 2).flatten(2)
    expected = module.to_out[0](attended) / module.rescale_output_factor
    torch.testing.assert_close(outputs["output"][half:], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(outputs["output"][:half], plain["output"][:half])
    assert not torch.allclose(outputs["output"][half:], plain["output"][half:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_edited_in_single_precision(pipe, dtype):
    pipe = pipe.to(dtype)
    latents, seen, _ = regulated(pipe, FEW)
    assert latents.dtype == dtype
    assert latents.isfinite().all()
    assert {edited.probs.dtype for _, edited, _ in seen} == {torch.float32}
    plain, _, _ = regulated(pipe, replace(FEW, until=0.0))
    assert not torch.equal(plain, latents)


@pytest.mark.parametrize("size", [(64, 64), (192, 192), (64, 160)])
def test_maps_of_any_size_are_edited(pipe, size):
    """8x8, 24x24 and oblong maps at the finer of the edited layers' resolutions or the coarser one."""
    latents, seen, _ = regulated(pipe, FEW, seeds=(1,), prompts=PROMPTS[:1], targets=TARGETS[:1], size=size)
    assert latents.isfinite().all()
    assert {(tap.height, tap.width) for tap, _, _ in seen} <= {
        (size[0] // factor, size[1] // factor) for factor in (8, 16, 32)
    }


def test_without_guidance_all_rows_are_edited(pipe):
    latents, seen, run = regulated(pipe, FEW, guidance_scale=1.0)
    assert {edited.rows.indices(len(tap.query))[:2] for tap, edited, _ in seen} == {(0, 4)}
    assert len(run.subjects) == len(latents) == 4


def test_only_the_rows_that_stay_go_through_the_model_s_own_attention(pipe):
    own = torch.nn.functional.scaled_dot_product_attention

    class Counted(torch.overrides.TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.rows = Counter()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is own:
                self.rows[len(args[0] if args else kwargs["query"])] += 1
            return func(*args, **(kwargs or {}))

    one = replace(FEW, layers="mid_block.attentions.0.transformer_blocks.0.attn2")
    with Counted() as edited:
        regulated(pipe, one, seeds=(1, 2), size=(64, 64))
    with Counted() as plain:
        regulated(pipe, replace(one, until=0.0), seeds=(1, 2), size=(64, 64))
    # of the four rows [unconditional, conditional] of two images, two at the one edited layer of the one edited step
    assert edited.rows - plain.rows == {2: 1}
    assert plain.rows - edited.rows == {4: 1}


def test_under_autocast_the_edit_stays_in_single_precision(pipe):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents, seen, _ = regulated(pipe, FEW)
    assert latents.isfinite().all()
    tap, edited, _ = seen[0]
    assert edited.probs.dtype == torch.float32
    expected = tap.key.float() @ tap.query.float().transpose(-1, -2) * tap.scale  # out of autocast
    torch.testing.assert_close(tap.scores(edited.rows), expected.transpose(-1, -2)[edited.rows], rtol=1e-6, atol=1e-6)


def test_two_edits_of_one_layer_are_refused_and_two_of_different_layers_are_not(pipe):
    first = replace(FEW, layers="up_blocks.*")
    with applied(pipe, first, PROMPTS[0], TARGETS[0]):
        with (
            pytest.raises(ValueError, match="a site can have one edit at a time"),
            applied(pipe, replace(FEW, layers="*"), PROMPTS[0], TARGETS[0]),
        ):
            pass
        with attending(pipe.unet, ("mid_block.attentions.0.transformer_blocks.0.attn2",), edit=lambda tap: None):
            pipe(PROMPTS[0], num_inference_steps=1, output_type="latent", guidance_scale=5.0, height=64, width=64)
