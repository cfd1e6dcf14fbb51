"""The recorder: what reaches the file is what the taps held, each of it once, whatever goes wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.capture import Capture
from tracer.measure import eight_bit
from tracer.record import Recorder
from tracer.rows import RunRow, SampleRow
from tracer.statistics import STATISTICS, compared_words, dominance, map_histograms, map_statistics
from tracer.tap import Edited

COMPARED = ("a cat and hip|po", "the red dog with bow", "fro|g")


@st.composite
def settings_of(draw, bench, precision="float32"):
    """Draw what to record: any layers, heads, map sizes, passes, tokens, batches, halves and edits."""
    prompts = draw(st.lists(st.sampled_from(COMPARED), min_size=1, max_size=3))
    sizes = draw(st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=3))
    branches = draw(st.sampled_from([("cond",), ("cond", "uncond"), ("uncond",)]))
    guided = draw(st.booleans())
    first = len(prompts) if guided else 0
    start, stop = sorted(draw(st.tuples(*[st.integers(0, len(prompts))] * 2)))
    return bench.Setting(
        tuple(prompts),
        ("",) * len(prompts),
        tuple(sizes),
        calls=draw(st.integers(1, 3)),
        length=draw(st.integers(7, 9)),
        capture=Capture(tokens="all", branches=branches, precision=precision),
        guided=guided,
        edit=slice(first + start, first + stop) if draw(st.booleans()) and start < stop else None,
        seed=draw(st.integers(0, 99)),
    )


def recorded_maps(store, run_id):
    """Return every map of a run: (sample, branch, phase, call, layer, head, token) -> values."""
    keys = ("sample", "branch", "phase", "call", "layer", "head", "token")
    frame = store.sql(f"SELECT {', '.join(keys)}, map FROM attn WHERE run_id = ?", [run_id])
    rows = list(zip(*(frame[key] for key in keys), strict=True))
    assert len(set(rows)) == len(rows)
    return dict(zip(rows, frame["map"], strict=True))


def live_maps(setting, traced):
    """Return what the taps and edits held, keyed as `recorded_maps` is."""
    maps = {}
    size = len(setting.prompts)
    for (call, layer), tap in traced.taps.items():
        halves = {"uncond": 0, "cond": size} if setting.guided else {"cond": 0}
        parts = [(branch, "original", tap.probs(slice(at, at + size)), 0) for branch, at in halves.items()]
        if (edited := traced.edits.get((call, layer))) is not None:
            parts.append(("cond", "edited", edited.probs, edited.rows.start - halves["cond"]))
        for branch, phase, probs, first in parts:
            if branch in setting.capture.branches:
                for i, head, token in np.ndindex(probs.permute(0, 1, 3, 2).shape[:3]):
                    maps[first + i, branch, phase, call, layer, head, token] = probs[i, head, :, token].numpy()
    return maps


@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_float32_maps_come_back_bit_for_bit_each_exactly_once(long_store, bench, data):
    setting = data.draw(settings_of(bench))
    traced = bench.record(long_store, setting)
    recorded, live = recorded_maps(long_store, traced.run_id), live_maps(setting, traced)
    assert recorded.keys() == live.keys()
    assert all(np.array_equal(recorded[key], live[key]) for key in live)
    assert all(recorded[key].dtype == np.float32 for key in live)
    assert long_store.verify(traced.run_id)["whole"].all()


@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_eight_bit_maps_come_back_within_a_63rd_of_their_largest_value(long_store, bench, data):
    setting = data.draw(settings_of(bench, precision="uint8"))
    traced = bench.record(long_store, setting)
    recorded, live = recorded_maps(long_store, traced.run_id), live_maps(setting, traced)
    assert recorded.keys() == live.keys()
    assert all(np.abs(recorded[key] - live[key]).max() <= live[key].max() / 63 + 1e-7 for key in live)
    assert long_store.sql("SELECT count(*) n FROM maps_f32 WHERE run_id = ?", [traced.run_id])["n"][0] == 0


@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_half_precision_maps_come_back_as_the_very_halves(long_store, bench, data):
    setting = data.draw(settings_of(bench, precision="float16"))
    traced = bench.record(long_store, setting)
    recorded, live = recorded_maps(long_store, traced.run_id), live_maps(setting, traced)
    assert recorded.keys() == live.keys()
    assert all(np.array_equal(recorded[key], live[key].astype(np.float16).astype(np.float32)) for key in live)
    assert long_store.verify(traced.run_id)["whole"].all()


def test_sql_reads_every_half_as_numpy_does(store):
    bits = np.arange(0x3C01, dtype=np.uint16)  # all halves from 0 to 1, the denormal ones too
    decoded = store.sql("SELECT f16(unnest(range(15361))::USMALLINT) v")["v"].to_numpy()
    assert np.array_equal(decoded, bits.view(np.float16).astype(np.float32))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.floats(0.01, 60), st.floats(0, 1))
def test_the_error_of_an_eight_bit_map_is_bounded_at_each_value(seed, sharpness, least):
    chance = torch.Generator().manual_seed(seed)
    maps = least + (1 - least) * (torch.randn(3, 64, generator=chance) * sharpness).softmax(-1)
    codes, code = eight_bit(maps)
    low, step = code[..., :1].double(), code[..., 1:].double()
    error = ((low + step * codes) ** 2 - maps).abs()
    bound = step * maps.double().sqrt() + step**2 / 4
    assert (error <= bound + 1e-6).all()
    assert (bound <= maps.amax(-1, keepdim=True) / 63 * 1.004 + 1e-7).all()


def test_an_even_map_and_an_empty_one_come_back_as_they_were():
    codes, code = eight_bit(torch.tensor([[0.25] * 4, [0.0] * 4]))
    assert codes.tolist() == [[0] * 4] * 2
    assert code.tolist() == [[0.5, 0.0], [0.0, 0.0]]


@settings(deadline=None, max_examples=6)
@given(data=st.data())
def test_statistics_are_those_of_the_live_maps_whatever_the_precision(long_store, bench, data):
    setting = data.draw(settings_of(bench, precision="uint8"))
    traced = bench.record(long_store, setting)
    names = ", ".join(STATISTICS)
    frame = long_store.sql(
        f"SELECT sample, branch, phase, call, layer, head, token, {names}, hist FROM head_stats "
        "WHERE run_id = ? AND token IS NOT NULL",
        [traced.run_id],
    )
    live = live_maps(setting, traced)
    assert len(frame) == len(live)
    for layer, rows in frame.groupby("layer"):
        height, width, _ = setting.sizes[layer]
        maps = torch.from_numpy(np.stack([live[key] for key in rows.iloc[:, :7].itertuples(index=False)]))
        expected = map_statistics(maps, height, width).numpy()
        np.testing.assert_allclose(rows[list(STATISTICS)], expected, rtol=2e-6, atol=1e-6)
        exact = ["vmax", "p50", "p90", "p99"]
        assert np.array_equal(rows[exact], expected[:, [STATISTICS.index(name) for name in exact]])
        assert np.array_equal(np.stack(rows["hist"]), map_histograms(maps))


def test_sql_computes_the_same_statistics_from_the_exact_maps(store, bench):
    traced = bench.record(store, bench.Setting(sizes=((4, 3, 2), (5, 5, 1))))
    frame = store.sql(
        "SELECT any_value(s.p90) p90, any_value(s.mass) mass, any_value(s.entropy) entropy, "
        "  any_value(s.cx) cx, "
        "  quantile_cont(v, 0.9) sql_p90, sum(v) sql_mass, -sum(v / m * ln(v / m)) sql_entropy, "
        "  sum(v / m * ((i % w) + 0.5) / w) sql_cx "
        "FROM (SELECT * EXCLUDE (map), unnest(map)::DOUBLE v, generate_subscripts(map, 1) - 1 i, "
        "      list_sum(map::DOUBLE[]) m FROM attn WHERE run_id = ?) "
        "JOIN head_stats s USING (run_id, sample, branch, phase, call, layer, head, token) "
        "GROUP BY run_id, sample, branch, phase, call, layer, head, token",
        [traced.run_id],
    )
    assert len(frame) == 2 * (2 + 1) * 8
    for name in ("p90", "mass", "entropy", "cx"):
        np.testing.assert_allclose(frame[name], frame[f"sql_{name}"], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("targets", ["", "cat hip|po", "hip|po"])
@pytest.mark.parametrize("edit", [None, slice(1, 2)])
def test_dominance_in_sql_and_python_agree_to_a_millionth(store, bench, targets, edit):
    setting = bench.Setting(("a cat and hip|po with bow",), (targets,), calls=3, length=10, edit=edit, seed=5)
    traced = bench.record(store, setting)
    tokens = bench.tokens_of(setting.prompts[0], setting.length)
    chosen = [t.positions for t in bench.sample_of(0, setting.prompts[0], targets).targets]
    words = compared_words(tokens, chosen)
    assert len(words) == (len(targets.split()) or 3)
    for (call, layer), tap in traced.taps.items():
        phases = {"original": tap.probs(slice(1, 2))[0]}
        if edit is not None:
            phases["edited"] = traced.edits[call, layer].probs[0]
        for phase, probs in phases.items():
            where = [phase, call, layer]
            rows = store.sql(
                "SELECT word_idx, share FROM dominance WHERE (phase, call, layer) = (?, ?, ?) ORDER BY word_idx",
                where,
            )
            assert list(rows["word_idx"]) == list(words)
            shares = dominance(probs, list(words.values())).double()
            np.testing.assert_allclose(rows["share"], shares, atol=1e-6)
            ratio = store.sql("SELECT ratio, words FROM dominance_ratio WHERE (phase, call, layer) = (?, ?, ?)", where)
            assert ratio["ratio"].tolist() == pytest.approx([(shares.max() / shares.min()).item()], rel=1e-5)
            assert ratio["words"].tolist() == [len(words)]


def test_dominance_leaves_guidance_and_refinement_passes_out(store, bench):
    setting = bench.Setting(guided=False, calls=3)
    recorder = Recorder(store, Capture(kinds=("sample", "guidance", "refine")))
    recorder.begin(RunRow("random"), [SampleRow(0, "a cat")], bench.texts_of("a cat"), bench.LAYERS[:2])
    for call, kind in enumerate(("sample", "guidance", "refine")):
        recorder.call(0, kind=kind, halves=("cond",))
        for layer in range(2):
            recorder(bench.tap_of(setting, call, layer))
    recorder.end()
    assert set(store.sql("SELECT call FROM dominance")["call"]) == {0}
    assert store.sql("SELECT kind::VARCHAR k FROM calls ORDER BY call")["k"].tolist() == [
        "sample",
        "guidance",
        "refine",
    ]


def test_a_split_words_extra_row_is_measured_on_the_pieces_sum(store, bench):
    traced = bench.record(store, bench.Setting(prompts=("a hip|po",), targets=("",), sizes=((3, 5, 2),)))
    frame = store.sql(
        "SELECT head, p90, mass FROM head_stats WHERE token IS NULL AND word_idx = 1 AND call = 1 ORDER BY head"
    )
    summed = traced.probs(1, 0, 1)[..., [2, 3]].sum(-1)
    np.testing.assert_allclose(frame["p90"], torch.quantile(summed, 0.9, dim=-1), atol=1e-7)
    np.testing.assert_allclose(frame["mass"], summed.sum(-1), rtol=1e-6)


def test_only_the_conditional_half_is_recorded_unless_both_are_asked_for(store, bench):
    bench.record(store, bench.Setting())
    assert set(store.sql("SELECT branch FROM head_stats")["branch"]) == {"cond"}
    assert set(store.sql("SELECT branch FROM maps_f32")["branch"]) == {"cond"}
    both = bench.record(store, bench.Setting(capture=bench.BOTH))
    counts = store.sql("SELECT branch, count(*) n FROM maps_f32 WHERE run_id = ? GROUP BY 1", [both.run_id])
    assert set(counts["branch"]) == {"cond", "uncond"}
    assert counts["n"].nunique() == 1


def test_a_guided_batch_is_taken_apart_in_the_order_of_the_samples(store, bench):
    prompts = ("a cat", "a cat", "hip|po")  # two images of one prompt, then another
    traced = bench.record(store, bench.Setting(prompts, ("",) * 3, capture=bench.BOTH))
    recorded = recorded_maps(store, traced.run_id)
    for sample in range(3):
        for branch, row in (("uncond", sample), ("cond", 3 + sample)):
            expected = traced.probs(1, 0, row)[1, :, 2].numpy()
            assert np.array_equal(recorded[sample, branch, "original", 1, 0, 1, 2], expected)


def test_edited_and_original_maps_of_a_pass_lie_side_by_side(store, bench):
    traced = bench.record(store, bench.Setting(edit=slice(1, 2), capture=bench.BOTH))
    recorded = recorded_maps(store, traced.run_id)
    original = traced.probs(0, 1, 1)[2, :, 3].numpy()
    assert np.array_equal(recorded[0, "cond", "original", 0, 1, 2, 3], original)
    edited = traced.edits[0, 1].probs[0, 2, :, 3].numpy()
    assert np.array_equal(recorded[0, "cond", "edited", 0, 1, 2, 3], edited)
    assert not np.array_equal(original, edited)
    assert not any(key[1:3] == ("uncond", "edited") for key in recorded)
    assert store.sql("SELECT edited FROM calls ORDER BY call")["edited"].map(list).tolist() == [
        [0, 1],
        [0, 1],
    ]


def test_maps_are_kept_as_they_were_when_the_edit_uses_its_buffer_again(store, bench):
    setting = bench.Setting(guided=False, calls=1, sizes=((1, 1, 2),), length=5, prompts=("a cat",))
    recorder = Recorder(store, bench.EXACT)
    recorder.begin(RunRow("m"), [SampleRow(0, "a cat")], bench.texts_of("a cat", length=5), bench.LAYERS[:1])
    recorder.call(0, halves=("cond",))
    buffer = torch.full((1, 2, 1, 5), 0.25)
    recorder(bench.tap_of(setting, 0, 0), Edited(slice(0, 1), buffer))
    buffer.zero_()
    recorder.end()
    assert bench.maps_of(store, 1, 0, 0, [1], phase="edited").tolist() == [[[[0.25]], [[0.25]]]]


def test_passes_with_one_timestep_lose_nothing(store, bench):
    setting = bench.Setting(guided=False, sizes=((2, 2, 1),), calls=3)
    recorder = Recorder(store, bench.EXACT)
    recorder.begin(RunRow("pndm"), [SampleRow(0, "a cat")], bench.texts_of("a cat"), bench.LAYERS[:1])
    for call in range(3):  # PNDM evaluates its second timestep twice
        recorder.call(call, timestep=[981.0, 961.0, 961.0][call], halves=("cond",))
        recorder(bench.tap_of(setting, call, 0))
    recorder.end()
    assert store.sql("SELECT call, timestep FROM calls ORDER BY call")["timestep"].tolist() == [981, 961, 961]
    assert bench.maps_of(store, 1, 0, 0, [1]).shape == (3, 1, 2, 2)


def test_a_run_takes_any_number_of_batches(store, bench):
    setting = bench.Setting(guided=False, sizes=((2, 2, 1),))
    with Recorder(store, bench.EXACT) as recorder:
        recorder.begin(RunRow("m"), [SampleRow(0, "a cat")], bench.texts_of("a cat"), bench.LAYERS[:1])
        for sample in range(2):
            if sample:
                recorder.batch([SampleRow(1, "a dog")], bench.texts_of("a dog"))
            for call in range(2):
                recorder.call(call, halves=("cond",))
                recorder(bench.tap_of(setting, 10 * sample + call, 0))
            recorder.images([(f"hash{sample}", f"images/{sample}.png")])
    assert store.sql("SELECT sample, call FROM calls ORDER BY ALL").to_numpy().tolist() == [
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 1],
    ]
    images = store.sql("SELECT image_sha256, image FROM samples ORDER BY sample")
    assert images.to_numpy().tolist() == [["hash0", "images/0.png"], ["hash1", "images/1.png"]]
    assert store.verify()["whole"].all()
    second = bench.tap_of(setting, 10, 0).probs()[0, 0, :, 2].numpy()
    assert np.array_equal(bench.maps_of(store, 1, 1, 0, [2])[0, 0].ravel(), second)


def test_target_words_and_content_words_are_marked(store, bench):
    bench.record(store, bench.Setting(("a cat and hip|po",), ("hip|po",)))
    words = store.sql("SELECT word, pieces, is_target, is_content FROM words ORDER BY word_idx")
    assert words.to_numpy().tolist() == [
        ["a", 1, False, False],
        ["cat", 1, False, True],
        ["and", 1, False, False],
        ["hippo", 2, True, True],
    ]
    targets = store.sql("SELECT targets->'$[0].positions' p FROM samples")["p"].tolist()
    assert targets == ["[4,5]"]
