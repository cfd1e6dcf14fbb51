"""DenseDiffusion beside its formulas, and beside attention written out in a network of the test's own."""

from contextlib import contextmanager
from dataclasses import replace

import families
import pytest
import slow_edits
import torch
from diffusers import DDIMScheduler, PNDMScheduler

import regulate.dense_diffusion as dense
from regulate import METHODS, Given, Method, applied
from regulate.applied import NotApplicable
from regulate.dense_diffusion import FIXED, DenseDiffusion, modulated
from regulate.guidance import whole
from regulate.layout import Layout
from tracer.attention import attending
from tracer.recording import recording
from tracer.sites import attention_sites, self_attention_sites
from tracer.store import Store

PROMPTS, TARGETS = ["a cat and a red dog", "a lion with glasses"], [["cat", "dog"], ["lion"]]
LAYOUTS = [
    Layout.from_boxes({"a cat": (0.0, 0.25, 0.5, 1.0), "a red dog": (0.5, 0.0, 1.0, 0.75)}, (16, 16)),
    Layout.from_boxes({"a lion": (0.0, 0.0, 1.0, 0.5), "glasses": (0.25, 0.25, 0.5, 0.5)}, (32, 16)),
]
GIVEN = [Given(layout=layout) for layout in LAYOUTS]
PLACES = [[(), (1, 2), (4, 5, 6)], [(), (1, 2), (4,)]]  # tokens of each segment, the background first
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
ALWAYS = DenseDiffusion(until=1.0, phrases_alone=False)


@pytest.fixture
def pipe(emoji_tokenizer):
    return families.sd1(emoji_tokenizer, sample_size=8)


def hooks_of(pipe) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules())


def made(pipe, method, prompts=PROMPTS, targets=TARGETS, seeds=(3, 4), given=GIVEN, record=None, **options):
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"} | options
    with applied(pipe, method, prompts, targets, seeds, record=record, given=given) as run:
        return pipe(prompts, generator=run.generators, **options, **run.call).images


def stock(pipe, prompts=PROMPTS, seeds=(3, 4), **options):
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"} | options
    return pipe(prompts, generator=[torch.Generator().manual_seed(seed) for seed in seeds], **options).images


@torch.no_grad()
def encoded(pipe, text: str) -> torch.Tensor:
    """The embeddings of each token."""
    return pipe.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0][0]


@contextmanager
def noted(pipe):
    """The text embeddings, and the noise prediction, of every pass of the network."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(unet, args, kwargs, output):
        seen.append((kwargs["encoder_hidden_states"].clone(), output[0].clone()))

    handle = pipe.unet.register_forward_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def written_out(pipe, layouts, places, size, phrases=()):
    """Let the network's attention be the slow one, and its texts have these phrases' embeddings as they are alone."""
    images = [(layout.masks.tolist(), tokens) for layout, tokens in zip(layouts, places, strict=True)]
    processor = slow_edits.DenseProcessor(images, size)
    alone_of = [(image, at, encoded(pipe, text)) for image, at, text in phrases]

    def before(unet, args, kwargs):
        processor.tau = (float(args[1]) / 1000) ** 5
        text = kwargs["encoder_hidden_states"].clone()
        for image, at, alone in alone_of:
            for offset, position in enumerate(at):
                text[len(images) + image, position] = alone[1 + offset]
        return args, kwargs | {"encoder_hidden_states": text}

    pipe.unet.set_attn_processor(processor)
    handle = pipe.unet.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_modulated_scores_are_those_of_a_loop_over_pixels_and_tokens():
    chance = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 6, 5, generator=chance, dtype=torch.float64)
    shared = torch.rand(2, 3, 6, 5, generator=chance) > 0.5
    strength = torch.rand(2, 3, 6, 1, generator=chance, dtype=torch.float64)
    found = modulated(scores, shared, strength)
    for image in range(2):
        for head in range(3):
            part = [each[image, head].tolist() for each in (scores, shared, strength[..., 0])]
            expected = torch.tensor(slow_edits.modulated(*part), dtype=torch.float64)
            torch.testing.assert_close(found[image, head], expected, atol=1e-12, rtol=0)


def test_a_modulated_pixel_worked_out_by_hand():
    scores = torch.tensor([[1.0, 3.0, -1.0]])
    found = modulated(scores, torch.tensor([[True, False, False]]), torch.tensor([[0.5]]))
    assert found.tolist() == [[1 + 0.5 * (3 - 1), 3 - 0.5 * (3 + 1), -1.0]]


@pytest.mark.parametrize("size", [(8, 8), (8, 12)], ids=["square", "oblong"])
def test_each_edit_of_a_text_attention_is_that_of_the_loops(pipe, size):
    """Two images of different layouts; maps of 8x8 and 4x4, or 8x12 and 4x6 pixels."""
    checked: set[tuple[int, int]] = set()

    def record(tap, edited):
        masks = [layout.masks.tolist() for layout in LAYOUTS]
        if (tap.height, tap.width) in checked or run.passes.step:
            return
        checked.add((tap.height, tap.width))
        scores = tap.scores(run.passes.rows)
        assert run.passes.rows == slice(2, 4)
        for image in range(2):
            segments = slow_edits.segment_of(masks[image], tap.height, tap.width)
            for head in range(4):
                each = slow_edits.dense_probs(scores[image, head].tolist(), segments, PLACES[image], 1.0, 0.999**5)
                torch.testing.assert_close(edited.probs[image, head], torch.tensor(each), atol=1e-5, rtol=1e-4)

    height, width = (4 * side for side in size)
    with applied(pipe, ALWAYS, PROMPTS, TARGETS, (3, 4), record=record, given=GIVEN) as run:
        pipe(PROMPTS, num_inference_steps=1, generator=run.generators, height=height, width=width)
    assert checked == {(size[0] // 2**halving, size[1] // 2**halving) for halving in (0, 1, 2)}


@pytest.mark.parametrize("size", [(8, 8), (8, 12)], ids=["square", "oblong"])
@pytest.mark.parametrize("alone", [False, True], ids=["scores only", "phrases alone"])
def test_whole_passes_are_those_of_attention_written_out(pipe, emoji_tokenizer, size, alone):
    other, sides = families.sd1(emoji_tokenizer, sample_size=8), {"height": 4 * size[0], "width": 4 * size[1]}
    parts = zip(range(2), LAYOUTS, PLACES, strict=True)
    phrases = [(i, at, text) for i, one, p in parts for text, at in zip(one.phrases, p, strict=True) if text]
    with written_out(other, LAYOUTS, PLACES, size, phrases if alone else ()):
        expected = stock(other, **sides)
    found = made(pipe, replace(ALWAYS, phrases_alone=alone), **sides)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, made(pipe, Method(), **sides), atol=1e-2)


def test_sdxl_s_passes_are_those_of_attention_written_out(emoji_tokenizer):
    pipe, other = (families.sdxl(emoji_tokenizer, emoji_tokenizer) for _ in range(2))
    phrases = [(0, (1, 2), "a cat"), (0, (4, 5, 6), "a red dog"), (1, (1, 2), "a lion"), (1, (4,), "glasses")]
    with written_out(other, LAYOUTS, PLACES, (8, 8), phrases), noted(other) as expected:
        stock(other, num_inference_steps=1)
    with noted(pipe) as found:
        made(pipe, replace(ALWAYS, phrases_alone=True), num_inference_steps=1)
    torch.testing.assert_close(found[0][1], expected[0][1], atol=1e-4, rtol=1e-4)
    with noted(pipe) as plain:
        made(pipe, Method(), num_inference_steps=1)
    assert not torch.allclose(found[0][1], plain[0][1], atol=1e-3)


def test_unconditional_rows_are_stock_s_bit_for_bit(pipe):
    with noted(pipe) as plain:
        made(pipe, Method())
    with noted(pipe) as edited:
        made(pipe, replace(ALWAYS, phrases_alone=True))
    assert torch.equal(plain[0][1][:2], edited[0][1][:2])
    assert not torch.allclose(plain[0][1][2:], edited[0][1][2:], atol=1e-3)


def scheduler_of(name: str):
    if name == "PNDM":
        return PNDMScheduler(**NOISE, skip_prk_steps=True)
    return DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False)


@pytest.mark.parametrize(("name", "passes"), [("DDIM", 10), ("PNDM", 11)])
def test_three_tenths_of_the_steps_are_edited_whatever_the_scheduler_s_passes(pipe, name, passes):
    """15 of 50, as in released code; PNDM makes 51 passes."""
    assert whole(DenseDiffusion().until, 50) == whole(DenseDiffusion().until, 51) == 15
    pipe.scheduler, first, edits = scheduler_of(name), attention_sites(pipe.unet)[0], []

    def record(tap, edited):
        if tap.site == first:
            edits.append(edited is not None)

    made(pipe, DenseDiffusion(), PROMPTS[:1], TARGETS[:1], (3,), GIVEN[:1], record, num_inference_steps=10)
    assert edits == [True] * 3 + [False] * (passes - 3)


@pytest.mark.parametrize("name", ["DDIM", "PNDM"])
def test_the_time_factor_is_the_fifth_power_of_the_network_s_own_timestep(pipe, name):
    pipe.scheduler = scheduler_of(name)
    times: list[float] = []
    taus: list[float] = []

    def note(unet, args):
        times.append(float(args[1]))
        taus.append(edit.tau)

    with applied(pipe, Method(), "a cat", ["cat"]) as run:
        edit = dense._Modulation(DenseDiffusion(until=1.0), pipe, (), run.passes)
        handle = pipe.unet.register_forward_pre_hook(note)
        pipe("a cat", num_inference_steps=4, generator=run.generators, output_type="latent")
        handle.remove()
    assert len(times) == {"DDIM": 4, "PNDM": 5}[name]
    assert taus == pytest.approx([(t / 1000) ** 5 for t in times])


def test_a_phrase_has_the_embeddings_that_it_has_alone_in_every_pass(pipe):
    with noted(pipe) as plain:
        made(pipe, Method())
    with noted(pipe) as seen:
        made(pipe, DenseDiffusion(until=0.0))
    dog, glasses = (encoded(pipe, text) for text in ("a red dog", "glasses"))
    assert len(seen) == 2
    for text, _ in seen:
        torch.testing.assert_close(text[2, 4:7], dog[1:4], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(text[3, 4], glasses[1], atol=1e-6, rtol=1e-5)
        assert torch.equal(text[:2], plain[0][0][:2])
        assert torch.equal(text[2, [0, 3, *range(7, 16)]], plain[0][0][2, [0, 3, *range(7, 16)]])
    assert not torch.allclose(dog[1:4], plain[0][0][2, 4:7], atol=1e-2)


def test_without_phrases_alone_the_texts_are_those_of_the_prompts(pipe):
    with noted(pipe) as plain:
        made(pipe, Method())
    with noted(pipe) as seen:
        made(pipe, ALWAYS)
    assert torch.equal(seen[0][0], plain[0][0])


@pytest.mark.parametrize(
    ("method", "places"),
    [
        (DenseDiffusion(), [(1, 2), (1, 2)]),
        (FIXED, [(1, 2), (4, 5)]),
    ],
    ids=["first", "own"],
)
def test_of_a_phrase_that_comes_twice_each_segment_has_the_first_place_or_its_own(
    pipe, emoji_tokenizer, method, places
):
    prompt, other = "a cat and a cat", families.sd1(emoji_tokenizer, sample_size=8)
    layout = Layout.from_boxes([("a cat", (0.0, 0.0, 0.5, 1.0)), ("a cat", (0.5, 0.0, 1.0, 1.0))], (8, 8))
    phrases = [(0, at, "a cat") for at in places]
    with written_out(other, [layout], [places], (8, 8), phrases):
        expected = stock(other, [prompt], (3,))
    found = made(pipe, replace(method, until=1.0), [prompt], [["cat"]], (3,), [Given(layout=layout)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "phrase", "positions", "alone"),
    [
        ("a cat and a cat", "a cat#2", (4, 5), "a cat"),
        ("a dog and #1 cat", "#1 cat", (4, 5, 6), "#1 cat"),
    ],
)
def test_a_number_sign_is_no_part_of_the_phrase_unless_it_stands_in_the_prompt(pipe, prompt, phrase, positions, alone):
    layout = Layout.from_boxes({phrase: (0.0, 0.0, 0.5, 1.0)}, (8, 8))
    with noted(pipe) as seen:
        made(pipe, DenseDiffusion(), [prompt], [["cat"]], (3,), [Given(layout=layout)], num_inference_steps=1)
    expected = encoded(pipe, alone)[1 : 1 + len(positions)]
    torch.testing.assert_close(seen[0][0][1, list(positions)], expected, atol=1e-6, rtol=1e-5)


def test_a_prompt_without_a_layout_is_refused_by_name_before_anything_is_hooked(pipe):
    with (
        pytest.raises(NotApplicable, match="dense-diffusion cannot be applied to 'a lion with glasses': it has no lay"),
        applied(pipe, DenseDiffusion(), PROMPTS, TARGETS, (3, 4), given=[GIVEN[0], Given()]),
    ):
        pass
    assert hooks_of(pipe) == 0
    assert not hasattr(pipe.unet, "_attnreg_passes")


@pytest.mark.parametrize("method", [DenseDiffusion(), FIXED], ids=["first", "own"])
def test_a_phrase_that_is_not_in_the_prompt_is_refused(pipe, method):
    with (
        pytest.raises(ValueError, match="is not in the prompt; words are a, lion, with, glasses"),
        applied(pipe, method, PROMPTS[1:], TARGETS[1:], given=GIVEN[:1]),
    ):
        pass
    assert hooks_of(pipe) == 0
    assert not hasattr(pipe.unet, "_attnreg_passes")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repeats": "second"}, "repeats must be 'first' or 'own', got 'second'"),
        ({"until": 1.5}, "until and size must be between 0 and 1, got 1.5, 1.0"),
        ({"size": -1.0}, "until and size must be between 0 and 1, got 0.3, -1.0"),
    ],
)
def test_wrong_constants_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DenseDiffusion(**wrong)


def test_self_attention_a_few_pixels_at_a_time_is_that_of_one_piece(pipe, monkeypatch):
    whole = made(pipe, ALWAYS)
    monkeypatch.setattr(dense, "CHUNK", 2 * 4 * 64 * 5)  # of 64 pixels 5 at a time, the last 4
    torch.testing.assert_close(made(pipe, ALWAYS), whole, atol=1e-5, rtol=1e-5)


def test_what_is_of_no_segment_is_lowered_everywhere_and_large_segments_are_edited_less(pipe):
    """A box of a quarter of the map: its pixels' strength is 3/4 of the time factor, the background's 1/4."""
    layout = Layout.from_boxes({"a cat": (0.0, 0.0, 0.5, 0.5)}, (8, 8))
    checked = []

    def record(tap, edited):
        if (tap.height, tap.width) != (8, 8) or checked:
            return
        checked.append(tap.site)
        scores, probs = tap.scores(run.passes.rows)[0, 0].double(), edited.probs[0, 0].double()
        for pixel, factor in ((0, 0.75), (63, 0.25)):
            row, low, high = scores[pixel], scores[pixel].min(), scores[pixel].max()
            expected = row - 0.999**5 * factor * (row - low)
            if pixel == 0:
                expected[1:3] = (row + 0.999**5 * factor * (high - row))[1:3]
            torch.testing.assert_close(probs[pixel], expected.softmax(-1), atol=1e-6, rtol=1e-4)

    with applied(pipe, ALWAYS, "a cat", ["cat"], record=record, given=Given(layout=layout)) as run:
        pipe("a cat", num_inference_steps=1, generator=run.generators, output_type="latent")
    assert len(checked) == 1


def test_a_second_call_in_the_block_and_two_batches_in_turn_leak_nothing(pipe):
    method = DenseDiffusion(until=1.0)
    with applied(pipe, method, PROMPTS, TARGETS, (3, 4), given=GIVEN) as run:
        twice = []
        for size in (32, 48, 32):
            chance = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
            twice.append(pipe(PROMPTS, num_inference_steps=2, guidance_scale=3.0, generator=chance, height=size,
                              output_type="latent", **run.call).images)  # fmt: skip
    assert torch.equal(twice[0], twice[2])
    swapped = made(pipe, method, PROMPTS[::-1], TARGETS[::-1], (4, 3), GIVEN[::-1])
    torch.testing.assert_close(swapped.flip(0), twice[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(made(pipe, method), twice[0])
    assert hooks_of(pipe) == 0


def test_an_image_does_not_depend_on_its_batch(pipe):
    method, both = DenseDiffusion(until=1.0), made(pipe, DenseDiffusion(until=1.0))
    for image, seed in enumerate((3, 4)):
        place = slice(image, image + 1)
        alone = made(pipe, method, PROMPTS[place], TARGETS[place], (seed,), GIVEN[place])
        torch.testing.assert_close(both[place], alone, atol=1e-4, rtol=1e-4)


def test_a_trace_has_the_edited_maps_beside_the_original_ones(pipe, tmp_path):
    sites = attention_sites(pipe.unet)
    with Store.create(tmp_path / "t.duckdb") as store, recording(pipe, store) as session:
        made(pipe, DenseDiffusion(until=0.5), output_type="pil")
        assert store.verify(session.run_id)["whole"].all()
        rows = store.sql("SELECT phase::VARCHAR phase, call, count(*) n FROM maps GROUP BY phase, call")
    counts = {(row.phase, row.call): row.n for row in rows.itertuples()}
    assert set(counts) == {("original", 0), ("edited", 0), ("original", 1)}
    assert counts["edited", 0] == counts["original", 0] == counts["original", 1] >= 2 * len(sites) * 4


def test_only_the_prompts_rows_of_self_attention_are_replaced(pipe):
    found = []
    with (
        applied(pipe, ALWAYS, PROMPTS, TARGETS, (3, 4), given=GIVEN) as run,
        attending(pipe.unet, self_attention_sites(pipe.unet), record=lambda tap, edited: found.append((tap, edited))),
    ):
        pipe(PROMPTS, num_inference_steps=1, generator=run.generators, output_type="latent")
    assert [tap.site for tap, _ in found] == list(self_attention_sites(pipe.unet))
    assert all(edited is None for _, edited in found)  # there is no map to show


def test_after_an_exception_within_a_pass_nothing_remains(pipe):
    def broken(module, args):
        raise RuntimeError("a pass that fails")

    handle = pipe.unet.mid_block.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="a pass that fails"):
        made(pipe, DenseDiffusion())
    handle.remove()
    assert hooks_of(pipe) == 0
    assert not hasattr(pipe.unet, "_attnreg_passes")
    assert not hasattr(pipe.unet, "_attnreg_seam")


def test_both_sets_are_among_the_methods():
    assert METHODS["dense-diffusion"] == DenseDiffusion()
    assert METHODS["dense-diffusion-fixed"] == replace(DenseDiffusion(), repeats="own")
