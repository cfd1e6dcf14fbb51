"""What is chosen is what is kept: layers, steps, heads, tokens, precision and size, and nothing else."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from tracer.capture import EVERYTHING, Capture
from tracer.recording import recording
from tracer.sites import attention_sites

PROMPT = "a cat with a crown"
EXACT = Capture(tokens="all", precision="float32")


def trace(pipe, store, capture, **options):
    with recording(pipe, store, capture, **options) as session:
        pipe(PROMPT, num_inference_steps=4, height=64, width=32, generator=torch.Generator().manual_seed(0))
    assert store.verify(session.run_id)["whole"].all()
    return session.run_id


@pytest.fixture
def exact(tiny_pipe, store):
    """The number of a run that keeps everything as it is."""
    return trace(tiny_pipe, store, EXACT)


def tokens_of(store, run):
    found = store.sql("SELECT DISTINCT token FROM head_stats WHERE run_id = ? AND token IS NOT NULL ORDER BY 1", [run])
    return found["token"].tolist()


def test_the_default_keeps_words_start_end_and_the_padding_s_sum(tiny_pipe, store, exact):
    run = trace(tiny_pipe, store, replace(Capture(), precision="float32"))
    assert tokens_of(store, run) == [0, 1, 2, 3, 4, 5, 6, 16]
    padding = store.maps((run, 0), "[padding]", layers=0)
    assert np.allclose(padding, sum(store.maps((exact, 0), token, layers=0) for token in range(7, 16)), atol=1e-7)
    assert np.array_equal(store.maps((run, 0), "[end]", layers=2), store.maps((exact, 0), 6, layers=2))
    kinds = store.sql("SELECT kind::VARCHAR k, is_kept FROM tokens WHERE run_id = ? ORDER BY token", [run])
    assert kinds.to_numpy().tolist()[6:9] == [["eos", True], ["pad", False], ["pad", False]]
    assert kinds.to_numpy().tolist()[-1] == ["padsum", True]


def test_everything_keeps_every_column_as_a_half(tiny_pipe, store, exact):
    run = trace(tiny_pipe, store, EVERYTHING)
    assert tokens_of(store, run) == list(range(16))
    for token in range(16):
        expected = store.maps((exact, 0), token, layers=3).astype(np.float16).astype(np.float32)
        assert np.array_equal(store.maps((run, 0), token, layers=3), expected)


def test_targets_only_keeps_their_tokens_alone(tiny_pipe, store):
    run = trace(tiny_pipe, store, Capture(tokens="targets"), targets=["crown", "cat"])
    assert tokens_of(store, run) == [2, 5]
    with pytest.raises(LookupError, match="'with' of run 1, sample 0, cond was not recorded"):
        store.maps((run, 0), "with", layers=0)


def test_without_targets_nothing_is_kept_of_targets_only(tiny_pipe, store):
    run = trace(tiny_pipe, store, Capture(tokens="targets"))
    assert tokens_of(store, run) == []
    assert store.sql("SELECT done FROM images")["done"].tolist() == [True]


@pytest.mark.parametrize("layers", ["mid_block.*", ("up_blocks.1.*", "down_blocks.0.*")])
def test_layers_are_chosen_by_patterns_and_keep_their_numbers(tiny_pipe, store, exact, layers):
    run = trace(tiny_pipe, store, replace(EXACT, layers=layers))
    found = store.sql("SELECT layer, path FROM layers WHERE run_id = ? ORDER BY layer", [run])
    starts = tuple(pattern.rstrip("*") for pattern in ((layers,) if isinstance(layers, str) else layers))
    expected = [[i, site] for i, site in enumerate(attention_sites(tiny_pipe.unet)) if site.startswith(starts)]
    assert found.to_numpy().tolist() == expected
    number = expected[-1][0]
    assert np.array_equal(store.maps((run, 0), "cat", layers=number), store.maps((exact, 0), "cat", layers=number))


def test_steps_are_chosen_and_calls_keep_their_numbers(tiny_pipe, store, exact):
    run = trace(tiny_pipe, store, replace(EXACT, steps=range(1, 4, 2)))
    calls = store.sql("SELECT call, step FROM calls WHERE run_id = ? ORDER BY call", [run])
    assert calls.to_numpy().tolist() == [[1, 1], [3, 3]]
    assert np.array_equal(store.maps((run, 0), "cat", layers=0), store.maps((exact, 0), "cat", [1, 3], layers=0))
    with pytest.raises(LookupError, match=r"steps \[0, 2\] of run"):
        store.maps((run, 0), "cat", steps=[0, 1, 2], layers=0)


def test_heads_can_be_averaged_while_statistics_stay_per_head(tiny_pipe, store, exact):
    run = trace(tiny_pipe, store, replace(EXACT, heads="mean"))
    assert np.allclose(
        store.maps((run, 0), "cat", layers=0)[:, :, 0], store.maps((exact, 0), "cat", layers=0).mean(2), atol=1e-7
    )
    counts = store.sql("SELECT count(*) n FROM head_stats GROUP BY run_id")["n"]
    assert counts[0] == counts[1]
    (column,) = store.sql("SELECT map FROM word_map(1, 'cat', 2, 16)")["map"]
    own = store.maps((exact, 0), "cat", steps=2, size=16).mean((0, 1, 2))
    assert np.allclose(column, own.ravel(), atol=1e-6)


def test_some_heads_can_be_kept(tiny_pipe, store, exact):
    run = trace(tiny_pipe, store, replace(EXACT, heads=(3, 1)))
    assert np.array_equal(store.maps((run, 0), "cat", layers=0), store.maps((exact, 0), "cat", layers=0)[:, :, [1, 3]])


def test_no_maps_are_kept_where_only_statistics_are_wanted(tiny_pipe, store, exact):
    run = trace(tiny_pipe, store, Capture(tokens="all", precision="none"))
    assert set(store.verify(run)["table"]) == {"head_stats"}
    both = [
        store.sql("SELECT * EXCLUDE (run_id) FROM head_stats WHERE run_id = ? ORDER BY ALL", [r]) for r in (exact, run)
    ]
    assert repr(both[0].to_numpy().tolist()) == repr(both[1].to_numpy().tolist())
    with pytest.raises(LookupError, match="statistics only"):
        store.maps((run, 0), "cat", layers=0)


def test_large_maps_are_averaged_down_and_keep_their_shape(tiny_pipe, store, exact):
    run = trace(tiny_pipe, store, replace(EXACT, resolution=4))
    sizes = store.sql("SELECT DISTINCT h, w, map_h, map_w FROM layers WHERE run_id = ? ORDER BY ALL", [run])
    assert sizes.to_numpy().tolist() == [[8, 4, 4, 2], [16, 8, 4, 2]]
    whole = torch.from_numpy(store.maps((exact, 0), "cat", layers=0))
    pooled = avg_pool2d(whole.flatten(0, 2), 4).unflatten(0, whole.shape[:3])
    assert np.allclose(store.maps((run, 0), "cat", layers=0), pooled, atol=1e-7)


@st.composite
def settings_of(draw, bench):
    """Draw any layers, heads, steps, tokens and sizes, square or not, of prompts with a word of two pieces."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=3))
    capture = Capture(
        layers=tuple(draw(st.sets(st.sampled_from(bench.LAYERS[: len(sizes)]), min_size=1))),
        steps=draw(st.none() | st.sets(st.integers(0, 2), min_size=1).map(tuple)),
        heads=draw(st.sampled_from(["all", "mean"])),
        tokens=draw(st.sampled_from(["words", "all"])),
        precision=draw(st.sampled_from(["uint8", "float16", "float32"])),
        resolution=draw(st.none() | st.integers(1, 9)),
        branches=draw(st.sampled_from([("cond",), ("cond", "uncond")])),
    )
    prompts = tuple(draw(st.lists(st.sampled_from(list(PIECES)), min_size=1, max_size=2)))
    return bench.Setting(prompts, ("",) * len(prompts), sizes, calls=3, capture=capture, seed=draw(st.integers(0, 9)))


PIECES = {"a cat and hip|po": ("hippo", [4, 5]), "fro|g": ("frog", [1, 2])}
SLACK = {"uint8": 1e-5, "float16": 1e-3, "float32": 1e-5}


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_choice_round_trips_and_its_rows_add_up_to_one(long_store, bench, data):
    setting = data.draw(settings_of(bench))
    traced, capture = bench.record(long_store, setting), setting.capture
    assert long_store.verify(traced.run_id)["whole"].all()
    for sample, layer in np.ndindex(len(setting.prompts), len(setting.sizes)):
        if bench.LAYERS[layer] not in capture.layers:
            continue
        tokens = long_store.sql(
            "SELECT token FROM tokens WHERE (run_id, sample) = (?, ?) AND branch = 'cond' AND is_kept",
            [traced.run_id, sample],
        )["token"].tolist()
        found = [long_store.maps((traced.run_id, sample), token, layers=layer)[:, 0] for token in tokens]
        rough = capture.precision == "uint8"
        bound = sum(maps.max((-1, -2), keepdims=True) for maps in found) / 63 if rough else 0
        assert (np.abs(sum(found) - 1) <= bound + SLACK[capture.precision]).all()
        word, places = PIECES[setting.prompts[sample]]
        summed = long_store.maps((traced.run_id, sample), word, layers=layer)[:, 0]
        expected = word_map(traced, setting, layer, len(setting.prompts) + sample, places)
        assert summed.shape == expected.shape
        bound = sum(found[tokens.index(place)].max((-1, -2), keepdims=True) for place in places) / 60 if rough else 0
        assert (np.abs(summed - expected) <= bound + SLACK[capture.precision]).all()


def word_map(traced, setting, layer, row, places):
    """Return the split word's map at each kept step, slowly, from the taps."""
    capture, (height, width, _) = setting.capture, setting.sizes[layer]
    steps = sorted(capture.steps) if capture.steps is not None else range(setting.calls)
    maps = np.stack([traced.probs(call, layer, row)[..., places].sum(-1).numpy() for call in steps])
    maps = maps.reshape(*maps.shape[:2], height, width)
    maps = maps.mean(1, keepdims=True) if capture.heads == "mean" else maps
    if capture.resolution is None or max(height, width) <= capture.resolution:
        return maps
    cell = -(-max(height, width) // capture.resolution)
    small = np.zeros((*maps.shape[:2], -(-height // cell), -(-width // cell)))
    for i, j in np.ndindex(small.shape[2:]):
        small[..., i, j] = maps[..., i * cell : (i + 1) * cell, j * cell : (j + 1) * cell].mean((-1, -2))
    return small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": ()}, "branches must be of .*at least one"),
        ({"kinds": ("sampling",)}, "kinds must be of"),
        ({"precision": "int4"}, "precision must be one of .*'uint8'"),
        ({"tokens": "nouns"}, "tokens must be one of .*'words'"),
        ({"resolution": 0}, "at least 1 pixel"),
        ({"heads": "some"}, "heads must be whole numbers"),
        ({"heads": ()}, "at least one"),
        ({"steps": (-1,)}, "steps must be whole numbers from 0"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(options, message):
    choice = Capture()
    for name, value in options.items():
        object.__setattr__(choice, name, value)  # the types, which are checked while testing, would refuse some of them
    with pytest.raises(ValueError, match=message):
        choice.__post_init__()


def test_a_choice_can_be_written_as_json():
    assert json.loads(json.dumps(asdict(Capture(layers="up*", steps=range(0, 50, 25), heads=[1])))) == {
        "layers": ["up*"], "steps": [0, 25], "heads": [1], "tokens": "words", "precision": "uint8",
        "resolution": None, "branches": ["cond"], "kinds": ["sample"], "solves": False,
    }  # fmt: skip
