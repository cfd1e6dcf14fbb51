"""Latent guidance in every family of UNets, in half precision, on maps of any shape, under a trace, and with no aim."""

from dataclasses import dataclass, replace

import families
import pytest
import slow_guidance as slow
import torch
from literal_guidance import Literal

from metrics.machine import counting
from regulate import Given, Method, Request, applied, attend_and_excite, generate
from regulate.attend_and_excite import AttendAndExcite
from regulate.conform import Conform
from regulate.structure import Group
from regulate.syngen import SynGen
from tracer.capture import Capture
from tracer.store import Store

PROMPT, TARGETS = "a cat and a dog", ("cat", "dog")


@dataclass(frozen=True)
class Corner(Literal):
    """A loss on one pixel."""

    def loss_of(self, pipe, subject):
        return lambda look: slow.corner(look.maps)


class Shapes(Literal):
    """A loss on the whole map of a word, which keeps the maps' shapes and types."""

    seen: list = []  # noqa: RUF012 # no field: of one test at a time

    def loss_of(self, pipe, subject):
        self.seen.clear()

        def loss(look):
            self.seen.append((tuple(look.maps.shape), look.maps.dtype))
            return super(Shapes, self).loss_of(pipe, subject)(look)

        return loss


def made(pipe, method, prompts=PROMPT, targets=TARGETS, seeds=(3,), **options):
    options = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"} | options
    with applied(pipe, method, prompts, targets, seeds) as run:
        return pipe(prompts, generator=run.generators, **options).images


@pytest.fixture(scope="module")
def sd1(clip_tokenizer):
    return families.sd1(clip_tokenizer)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 32)])
def test_maps_are_height_by_width_and_the_gradient_of_a_corner_is_that_of_a_loop_written_out(sd1, height, width):
    found = made(sd1, Corner(until=0.5), height=height, width=width)
    size = (height // 4, width // 4)
    expected = slow.guided(
        sd1, PROMPT, 3, 2, slow.corner, altered=1, step_size=Corner().step_size, size=size
    )  # fmt: skip
    plain = made(sd1, Method(), height=height, width=width)
    assert (found - plain).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_a_loss_on_one_corner_moves_the_latents_there_most(sd1):
    """The first move alone: seen as the input of the first sampling pass."""
    inputs = {}

    def note(name):
        def hook(unet, args):
            if not torch.is_grad_enabled() and name not in inputs:
                inputs[name] = args[0][0].clone()

        return hook

    for name, method in (("plain", Method()), ("moved", Corner(until=0.5))):
        handle = sd1.unet.register_forward_pre_hook(note(name))
        made(sd1, method, height=32, width=48)
        handle.remove()
    moved = (inputs["moved"] - inputs["plain"]).square().sum(0)
    assert moved.shape == (8, 12)
    quarters = {(i, j): moved[4 * i : 4 * i + 4, 6 * j : 6 * j + 6].sum() for i in (0, 1) for j in (0, 1)}
    assert max(quarters, key=lambda place: quarters[place]) == (0, 1)


def test_stable_diffusion_2_at_its_larger_size_is_guided_at_its_last_down_size(sd2_tokenizer):
    """A latent of 12x12, where others have 8x8, as 96 is to 64 in models of 768 pixels: maps of 6x6."""
    pipe = families.sd2(sd2_tokenizer, sample_size=12)
    found = made(pipe, Shapes(until=0.5))
    assert Shapes.seen == [((77, 6, 6), torch.float32)]
    expected = slow.guided(
        pipe, PROMPT, 3, 2, slow.loss_of(slow.WEIGHTS), altered=1, step_size=Shapes().step_size, size=(12, 12)
    )  # fmt: skip
    assert (found - made(pipe, Method())).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_sdxl_is_guided_with_what_its_network_needs_beside_the_text_and_each_image_is_as_if_alone(
    clip_tokenizer, sd2_tokenizer
):
    """Its last block on the way down has 2x2 maps of 8x8 latents, as its middle, and the first block on the way up."""
    pipe = families.sdxl(clip_tokenizer, sd2_tokenizer)
    prompts, targets = ["a cat and a dog", "a lion with glasses"], [["cat", "dog"], ["lion", "glasses"]]
    both = made(pipe, Shapes(until=0.5), prompts, targets, (3, 4))
    assert Shapes.seen == [((77, 2, 2), torch.float32)] * 2
    assert both.isfinite().all()
    plain = made(pipe, Method(), prompts, targets, (3, 4))
    for image in (0, 1):
        assert (both[image] - plain[image]).abs().max() > 0.01
        alone = made(pipe, Shapes(until=0.5), prompts[image], targets[image], (3 + image,))
        torch.testing.assert_close(both[image], alone[0], atol=1e-4, rtol=1e-5)


def test_patterns_that_mix_sizes_are_refused_and_nothing_is_left(sd1):
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in sd1.unet.modules())
    kind = type(sd1)
    with pytest.raises(ValueError, match="layers must have maps of one size"):
        made(sd1, Literal(layers=("down_blocks.*",)))
    with pytest.raises(ValueError, match="no attention site fits"):
        made(sd1, Literal(layers=("nowhere.*",)))
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in sd1.unet.modules()) == before
    assert type(sd1) is kind
    assert made(sd1, Shapes(layers="down_blocks.0.*")).isfinite().all()
    assert Shapes.seen == [((77, 8, 8), torch.float32)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_moved_much_like_one_in_single_precision(clip_tokenizer, dtype):
    pipe = families.sd1(clip_tokenizer)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3)).to(dtype)
    moves = {}

    for kind in (torch.float32, dtype):
        pipe = pipe.to(kind)
        inputs = []
        handle = pipe.unet.register_forward_pre_hook(
            lambda unet, args, inputs=inputs: None if torch.is_grad_enabled() else inputs.append(args[0][0].float())
        )
        latents = made(pipe, Shapes(until=0.5), latents=noise.to(kind))
        handle.remove()
        assert latents.dtype == kind
        assert latents.isfinite().all()
        assert Shapes.seen == [((77, 4, 4), torch.float32)]
        moves[kind] = (inputs[0] - noise.float()).flatten()
    alike = torch.cosine_similarity(moves[dtype], moves[torch.float32], 0)
    ratio = moves[dtype].norm() / moves[torch.float32].norm()
    assert alike > 0.9
    assert 0.9 < ratio < 1.1


def test_under_autocast_losses_are_of_single_precision(sd1):
    """Products of maps, which some losses are of, would be half precision."""
    types = []

    class Products(Literal):
        def loss_of(self, pipe, subject):
            def loss(look):
                flat = look.maps.flatten(1)
                types.append((flat @ flat.T).dtype)
                return flat.square().sum()

            return loss

    with torch.autocast("cpu", dtype=torch.bfloat16):
        latents = made(sd1, Products(until=0.5))
    assert types == [torch.float32]
    assert latents.isfinite().all()


ALL_KINDS = Capture(kinds=("sample", "guidance", "refine"))


@pytest.mark.parametrize(
    "method",
    [
        replace(AttendAndExcite(), refinements=1, refine_at=((0.25, None),)),
        replace(attend_and_excite.FIXED, refinements=1, refine_at=((0.25, None),)),
    ],
    ids=["released", "fixed"],
)
def test_passes_of_guidance_are_traced_with_the_step_that_they_serve(tiny_pipe, tmp_path, method):
    asked = Request(PROMPT, TARGETS, (3,), steps=4)
    with counting(tiny_pipe.unet) as count:
        expected = generate(tiny_pipe, asked, method)
    untraced = count.passes, count.with_gradient
    with Store.create(tmp_path / "t.duckdb") as store, counting(tiny_pipe.unet) as count:
        found = generate(tiny_pipe, asked, method, trace=store, capture=ALL_KINDS)
        assert store.verify(found.run_id)["whole"].all()
        calls = store.sql("SELECT kind::VARCHAR kind, step FROM calls ORDER BY call").values.tolist()
    assert (count.passes, count.with_gradient) == untraced
    assert found.sha256 == expected.sha256
    assert found.sha256 != generate(tiny_pipe, asked).sha256
    moved, rest = [["guidance", 0], ["sample", 0], ["guidance", 1]], [["sample", 2], ["sample", 3]]
    if method.needless:
        rest = [["guidance", 2], ["sample", 2], ["guidance", 3], ["sample", 3]]
    assert calls == [*moved, *[["refine", 1]] * (1 + method.needless), ["sample", 1], *rest]


def test_several_images_are_traced_like_one_and_are_those_without_a_trace(tiny_pipe, tmp_path):
    asked, method = Request(PROMPT, TARGETS, (3, 4), steps=2), AttendAndExcite(refinements=1)
    expected = generate(tiny_pipe, asked, method)
    with Store.create(tmp_path / "t.duckdb") as store:
        found = generate(tiny_pipe, asked, method, trace=store)
        assert store.sql("SELECT DISTINCT kind::VARCHAR FROM calls").values.tolist() == [["sample"]]
    assert found.sha256 == expected.sha256
    with Store.create(tmp_path / "u.duckdb") as store:
        fixed = replace(attend_and_excite.FIXED, refinements=1)
        found = generate(tiny_pipe, asked, fixed, trace=store, capture=ALL_KINDS)
        kinds = store.sql("SELECT kind::VARCHAR kind, sample, count(*) n FROM calls GROUP BY ALL")
    assert found.sha256 == generate(tiny_pipe, asked, fixed).sha256
    assert {(row.kind, row.sample) for row in kinds.itertuples()} >= {("guidance", 0), ("guidance", 1)}


def test_a_prompt_that_gives_a_method_nothing_to_do_gives_the_plain_images(tiny_pipe):
    asked = Request(PROMPT, TARGETS, (3, 4), steps=2, given=Given((Group("cat"), Group("dog"))))
    plain = generate(tiny_pipe, asked)
    with counting(tiny_pipe.unet) as count:
        found = generate(tiny_pipe, asked, SynGen())
    assert found.standing.verdict == "no-op"
    assert found.standing.reason == "no noun of it has a modifier"
    assert found.sha256 == plain.sha256
    assert (count.passes, count.with_gradient) == (2, 0)
    alone = replace(asked, given=Given((Group("cat"),)))
    found = generate(tiny_pipe, alone, Conform(refinements=1))  # its needless passes are made, and move nothing
    assert found.standing.verdict == "no-op"
    assert found.sha256 == plain.sha256
