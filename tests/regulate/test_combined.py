"""Several methods at once are each what it is alone; those that cannot act together are refused with the reason."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import families
import numpy as np
import pytest
import slow_edits
import torch

from metrics.machine import counting
from regulate import FIXED, AttentionRegulation, Given, Method, Request, applied, attend_and_excite, combined, generate
from regulate.applied import NotApplicable
from regulate.attend_and_excite import AttendAndExcite
from regulate.combined import Combined
from regulate.composable import Composable
from regulate.controls import Boost, GuidanceScale
from regulate.dense_diffusion import DenseDiffusion
from regulate.divide_and_bind import DivideAndBind
from regulate.initno import InitNO
from regulate.layers import sites_of_one_size
from regulate.layout import Layout
from regulate.method import Subject
from tracer.capture import Capture
from tracer.pictures import digest
from tracer.recording import recording
from tracer.sites import attention_sites
from tracer.store import Store
from tracer.words import Target

PROMPTS, TARGETS = ["a cat and a red dog", "a lion with glasses"], [["cat", "dog"], ["lion", "glasses"]]
GIVEN = [
    Given(layout=Layout.from_boxes({"a cat": (0.0, 0.0, 0.5, 1.0), "a red dog": (0.5, 0.0, 1.0, 1.0)}, (16, 16))),
    Given(layout=Layout.from_boxes({"a lion": (0.0, 0.0, 1.0, 0.5), "glasses": (0.25, 0.5, 0.75, 1.0)}, (16, 16))),
]
SEARCH = InitNO(cross=0.0, own=0.0, rounds=1, moves=3, last_moves=2)
REGULATION = AttentionRegulation(step_size=5.0, iterations=4)
DENSE = DenseDiffusion(until=0.5)  # one of two steps
EXCITE = replace(attend_and_excite.FIXED, refinements=1)


@pytest.fixture
def pipe(emoji_tokenizer):
    return families.sd1(emoji_tokenizer, sample_size=8)


def hooks_of(pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def made(pipe, method, prompts=PROMPTS, targets=TARGETS, seeds=(3, 4), given=GIVEN, record=None, **options):
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "latent"} | options
    with applied(pipe, method, prompts, targets, seeds, record=record, given=given) as run:
        return pipe(prompts, generator=run.generators, **options, **run.call).images


def noise_under(pipe, method) -> torch.Tensor:
    """The latents that a method begins with."""
    found: list[torch.Tensor] = []

    def note(unet, args):
        if not torch.is_grad_enabled():
            found.append(args[0][len(args[0]) // 2 :].clone())

    handle = pipe.unet.conv_in.register_forward_pre_hook(note)
    made(pipe, method, num_inference_steps=1)
    handle.remove()
    return found[0]


@pytest.mark.parametrize(
    "method",
    [GuidanceScale(1.5), EXCITE, SEARCH, DivideAndBind(together=None, needless=False, refinements=1)],
    ids=lambda method: method.name,
)
def test_beside_a_boost_of_nothing_a_method_is_what_it_is_alone(pipe, method):
    """Up to float32 rounding: the edited attention is computed in another order, and two steps multiply that."""
    alone = made(pipe, method)
    found = made(pipe, combined(Boost(0.0), method))
    torch.testing.assert_close(found, alone, atol=3e-5, rtol=1e-4)
    assert not torch.allclose(found, made(pipe, Method()), atol=1e-3)


@pytest.mark.parametrize("edit", [REGULATION, Boost(), DENSE], ids=lambda method: method.name)
def test_an_edit_follows_the_noise_that_was_found_whatever_the_order(pipe, edit):
    """Regulation and the boost are of sampling passes: the search does not see them. DenseDiffusion's edit it sees."""
    found = [made(pipe, combined(*pair)) for pair in ((SEARCH, edit), (edit, SEARCH))]
    assert torch.equal(*found)
    if not isinstance(edit, DenseDiffusion):
        noise = noise_under(pipe, SEARCH)
        torch.testing.assert_close(found[0], made(pipe, edit, latents=noise), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0], made(pipe, edit), atol=1e-3)
    assert hooks_of(pipe) == 0


def test_guidance_begins_with_the_noise_that_was_found_whatever_the_order(pipe):
    noise = noise_under(pipe, SEARCH)
    expected = made(pipe, EXCITE, latents=noise)
    with counting(pipe.unet) as count:
        torch.testing.assert_close(made(pipe, combined(EXCITE, SEARCH)), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made(pipe, combined(SEARCH, EXCITE)), expected, atol=1e-5, rtol=1e-4)
    assert count.with_gradient > 5


@dataclass(frozen=True)
class Watched(AttendAndExcite):
    """Attend-and-Excite that keeps the maps which its loss is shown."""

    shown: list[torch.Tensor] = field(default_factory=list, compare=False)

    def loss_of(self, pipe, subject: Subject) -> Callable:
        own = super().loss_of(pipe, subject)

        def loss(look):
            self.shown.append(look.maps.detach())
            return own(look)

        return loss


def test_a_loss_sees_the_attention_that_a_layout_made(pipe):
    method = Watched(scaled=True, needless=False, together=None, until_end=True, refine_at=())
    wanted = sites_of_one_size(pipe.unet, attention_sites(pipe.unet))
    seen = []

    def record(tap, edited):
        if torch.is_grad_enabled() and edited is not None and tap.site in wanted:
            seen.append((tap.probs().detach(), edited.probs.detach()))

    made(pipe, combined(DENSE, method), record=record, num_inference_steps=4)
    assert len(seen) == 2 * len(wanted)  # guidance and the edit are both of two of four steps
    own, edited = (torch.stack(part[: len(wanted)]).mean((0, 2)) for part in zip(*seen, strict=True))
    for image in range(2):
        shown = method.shown[image].flatten(1).transpose(0, 1)
        torch.testing.assert_close(shown, edited[image], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(shown, own[image], atol=1e-3)


def test_layout_and_guidance_together_are_neither_of_the_two(pipe):
    found = made(pipe, combined(DENSE, EXCITE))
    for alone in (DENSE, EXCITE, Method()):
        assert not torch.allclose(found, made(pipe, alone), atol=1e-3)


def test_a_guidance_scale_and_a_boost_are_the_boost_called_with_that_scale_bit_for_bit(pipe):
    found = made(pipe, combined(GuidanceScale(7.0), Boost()))
    assert torch.equal(found, made(pipe, Boost(), guidance_scale=7.0))
    assert not torch.equal(found, made(pipe, Boost()))


def test_the_noise_that_was_found_is_composed(pipe):
    """The search looks at the whole prompt, in which its targets have their places."""
    found = made(pipe, combined(SEARCH, Composable()))
    torch.testing.assert_close(found, made(pipe, Composable(), latents=noise_under(pipe, SEARCH)), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, made(pipe, Composable()), atol=1e-3)


def test_a_composition_is_guided_by_the_scale_that_is_set(pipe):
    prompt, words = PROMPTS[:1], TARGETS[:1]
    slow = slow_edits.composed_latents(pipe, ["a cat", "a red dog"], [4.0, 4.0], seed=3, steps=2)
    for pair in ((GuidanceScale(4.0), Composable()), (Composable(), GuidanceScale(4.0))):
        found = made(pipe, combined(*pair), prompt, words, (3,), ())
        torch.testing.assert_close(found, slow, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            (EXCITE, DivideAndBind()),
            "attend-and-excite and divide-and-bind cannot be combined, for both are of latent guidance: each would",
        ),
        ((SEARCH, InitNO()), "for both are of initial noise: the second would undo what the first has found"),
        ((Composable(), Composable(2.0)), "for both are of noise composition: the batch can be widened once"),
        (
            (Composable(), Boost()),
            "composable and boost cannot be combined: composition gives the network the concepts",
        ),
        ((AttendAndExcite(), Composable()), "attend-and-excite and composable cannot be combined: composition gives"),
        ((DenseDiffusion(), Composable()), "dense-diffusion and composable cannot be combined: composition gives"),
        ((Boost(),), "methods must be two or more, none of them combined already, got "),
        ((), r"methods must be two or more, none of them combined already, got \(\)"),
        ((combined(SEARCH, Boost()), EXCITE), "methods must be two or more, none of them combined already"),
    ],
)
def test_what_cannot_act_together_is_refused_with_the_reason(methods, message):
    with pytest.raises(ValueError, match=message):
        combined(*methods)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((REGULATION, Boost()), r"regulation\+boost cannot be combined, for both would set down_blocks.1.attentions.0"),
        ((DenseDiffusion(), Boost()), r"dense-diffusion\+boost cannot be combined, for both would set down_blocks"),
        ((GuidanceScale(2.0), GuidanceScale(3.0)), "cannot be combined, for both would set guidance_scale"),
        (
            (DenseDiffusion(), AttendAndExcite()),
            r"dense-diffusion\+attend-and-excite: the edit is of a whole batch, attend-and-excite looks at 1 of 2 "
            "images at a time; give it together=None",
        ),
    ],
)
def test_what_cannot_act_on_one_batch_or_model_together_is_refused_and_nothing_remains(pipe, pair, message):
    own = type(pipe)
    with (
        pytest.raises(ValueError, match=message),
        applied(pipe, combined(*pair), PROMPTS, TARGETS, (3, 4), given=GIVEN),
    ):
        pass
    assert hooks_of(pipe) == 0
    assert type(pipe) is own
    assert not hasattr(pipe.unet, "_attnreg_passes")


def test_guidance_may_look_at_more_images_at_a_time_than_the_batch_has(pipe):
    wide = replace(EXCITE, together=4)
    assert torch.equal(made(pipe, combined(DENSE, wide)), made(pipe, combined(DENSE, EXCITE)))


def test_guidance_of_one_image_at_a_time_goes_with_an_edit_of_sampling_passes(pipe):
    both = combined(Boost(), AttendAndExcite(refinements=1))
    asked = Request(PROMPTS[0], ("cat", "dog"), (3, 4), steps=2, guidance=2.0)
    together, alone = generate(pipe, asked, both), generate(pipe, replace(asked, batch=1), both)
    for one, other in zip(together.images, alone.images, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 2
    boosted, excited = generate(pipe, asked, Boost()), generate(pipe, asked, AttendAndExcite(refinements=1))
    assert not set(together.sha256) & {*boosted.sha256, *excited.sha256}


def test_guidance_of_one_image_at_a_time_goes_with_an_edit_in_batches_of_one(pipe):
    asked = Request(PROMPTS[0], ("cat", "dog"), (3, 4), steps=2, guidance=2.0, batch=1, given=GIVEN[0])
    found = generate(pipe, asked, combined(DENSE, AttendAndExcite(refinements=1)))
    alone = generate(pipe, replace(asked, seeds=(4,)), combined(DENSE, AttendAndExcite(refinements=1)))
    assert found.sha256[1:] == alone.sha256


def test_edits_of_different_sites_act_together_and_both_are_noted(pipe, tmp_path):
    method = combined(Boost(1.0, layers="down_blocks.*"), Boost(2.0, layers="up_blocks.*"))
    edited: set[str] = set()
    made(pipe, method, record=lambda tap, new: edited.add(tap.site) if new is not None else None)
    assert edited == {site for site in attention_sites(pipe.unet) if not site.startswith("mid_block")}
    noted = method.parameters()
    assert list(noted) == ["boost", "boost#2"]
    assert [noted[name]["amount"] for name in noted] == [1.0, 2.0]  # pyright: ignore


def test_name_kinds_and_parameters_are_those_of_all(pipe, tmp_path):
    method = combined(SEARCH, REGULATION)
    assert isinstance(method, Combined)
    assert method.name == "initno+regulation"
    assert method.kinds == ("initial noise", "attention edit")
    assert method.parameters() == {"initno": SEARCH.parameters(), "regulation": REGULATION.parameters()}
    assert SEARCH.gradient_passes(10) == (1, 5)
    assert method.gradient_passes(10) == (1, 5)  # regulation has none
    assert EXCITE.gradient_passes(10)[0] > 0
    assert combined(SEARCH, EXCITE).gradient_passes(10)[0] == 1 + EXCITE.gradient_passes(10)[0]
    assert combined(SEARCH, REGULATION) == method
    assert combined(SEARCH, FIXED) != method
    assert (Method.name, Combined.kinds) == ("plain", ())
    with Store.create(tmp_path / "t.duckdb") as store:
        asked = Request(PROMPTS[0], ("cat", "dog"), (3,), steps=2)
        generate(pipe, asked, method, trace=store, capture=Capture(kinds=("sample", "guidance")))
        run = store.sql("SELECT method, method_params->>'$.initno.moves' AS moves FROM runs").iloc[0].to_dict()
        kinds = store.sql("SELECT kind::VARCHAR kind, count(*) n FROM calls GROUP BY kind ORDER BY kind")
    assert run == {"method": "initno+regulation", "moves": "3"}
    assert dict(zip(kinds["kind"], kinds["n"], strict=True)) == {"guidance": 5, "sample": 2}


def test_a_combination_lacks_what_one_of_it_lacks_and_is_idle_if_all_are(pipe):
    cat = (Target("cat", (2,)),)
    one, both = Subject(cat, 3, 0, "a cat"), Subject(cat, 6, 0, "a cat and a dog")
    assert combined(SEARCH, Composable()).standing(one).verdict == "acts"
    dense = combined(GuidanceScale(), DenseDiffusion()).standing(both)
    assert (dense.verdict, dense.reason) == ("n/a", "it has no layout")
    idle = combined(Composable(), Idle()).standing(one)
    assert (idle.verdict, idle.reason) == ("no-op", "it is one concept; it rests")
    assert combined(Composable(), Idle()).standing(both).verdict == "acts"
    with (
        pytest.raises(
            NotApplicable, match=r"guidance-scale\+dense-diffusion cannot be applied to 'a cat and a red dog'"
        ),
        applied(pipe, combined(GuidanceScale(), DenseDiffusion()), PROMPTS[0], TARGETS[0]),
    ):
        pass
    with pytest.raises(ValueError, match="a boost needs at least one target"):
        made(pipe, combined(Boost(), SEARCH), targets=[[], []])


@dataclass(frozen=True)
class Idle(Method):
    """A method with nothing to do."""

    def standing(self, subject: Subject):
        return replace(super().standing(subject), verdict="no-op", reason="it rests")


def test_a_combination_is_traced_whole(pipe, tmp_path):
    stock = pipe(PROMPTS[0], num_inference_steps=2, generator=torch.Generator().manual_seed(3)).images[0]
    with Store.create(tmp_path / "t.duckdb") as store, recording(pipe, store) as session:
        image = made(pipe, combined(SEARCH, DENSE, GuidanceScale(7.5)), PROMPTS[:1], TARGETS[:1], (3,),
                     GIVEN[:1], num_inference_steps=2, output_type="pil")[0]  # fmt: skip
        assert store.verify(session.run_id)["whole"].all()
        assert store.sql("SELECT guidance FROM runs")["guidance"].tolist() == [7.5]
        assert store.sql("SELECT image_sha256 FROM samples")["image_sha256"].tolist() == [digest(image)]
    assert digest(image) != digest(stock)
