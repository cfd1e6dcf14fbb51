"""Tables: the store's own maps and scores, rearranged and nothing else."""

import json

import numpy as np
import pandas as pd
import pytest

from analysis import tables
from regulate import METHODS, Request, generate
from tracer.scores import ScoreRow, add_scores
from tracer.store import Store

LAYER = "up_blocks.0.attentions.0.transformer_blocks.0.attn2"
WORDS = ["a", "cat", "and", "an", "elephant"]


def positions(traced, sample: int, word_idx: int) -> list[int]:
    rows = traced.store.sql(
        "SELECT token FROM tokens WHERE run_id = ? AND sample = ? AND branch = 'cond' AND word_idx = ? ORDER BY token",
        [traced.plain, sample, word_idx],
    )
    return rows["token"].tolist()


def maps_of(store, run, sample, layer, tokens, phase="original"):
    """Return the summed maps of some tokens at one layer, "step head height width"."""
    return sum(store.maps((run, sample), token, layers=layer, phase=phase)[:, 0] for token in tokens)


def test_violin_values_are_the_exact_maps_of_every_word_in_prompt_order(traced):
    values = tables.violin_values(traced.store, traced.plain, [0, 2], LAYER, [0, 3])
    assert values["word"].drop_duplicates().tolist() == WORDS
    assert len(values) == 2 * 2 * 5 * 4 * 64  # samples, steps, words, heads, pixels
    for (sample, step, index), part in values.groupby(["sample", "step", "word_idx"]):
        maps = maps_of(traced.store, traced.plain, sample, LAYER, positions(traced, sample, index))
        assert np.allclose(part["value"], maps[step].ravel(), atol=0, rtol=1e-6)
        assert set(part["token"]) == {positions(traced, sample, index)[0]}


@pytest.fixture(scope="module")
def split(tiny_pipe, tmp_path_factory):
    """A regulated run whose second target the tokenizer does not know: a word of several pieces."""
    request = Request("a cat and a giraffe", ("cat", "giraffe"), (0,), steps=2)
    with Store.create(tmp_path_factory.mktemp("split") / "trace.duckdb") as store:
        generate(tiny_pipe, request, METHODS["regulation"], store)
        yield store


def test_a_word_of_several_pieces_is_one_word_whose_map_is_their_sum(split):
    pieces = split.sql("SELECT token FROM tokens WHERE word = 'giraffe' ORDER BY token")["token"].tolist()
    assert len(pieces) > 1
    own = maps_of(split, 1, 0, LAYER, pieces)[1]
    values = tables.violin_values(split, 1, [0], LAYER, [1])
    giraffe = values[values["word"] == "giraffe"]
    assert set(giraffe["token"]) == {pieces[0]}
    assert np.allclose(giraffe["value"], own.ravel(), rtol=1e-6)
    maps = tables.overlay_maps(split, 1, [0], [LAYER], [1]).set_index(["phase", "word"])
    assert np.allclose(maps.loc[("original", "giraffe"), "map"], own.mean(0).ravel(), atol=1e-6)


def test_violin_values_are_what_the_model_computed_not_what_an_edit_left(split):
    values = tables.violin_values(split, 1, [0], LAYER, [0])
    cat = values.loc[values["word"] == "cat", "value"]
    original, edited = (maps_of(split, 1, 0, LAYER, [2], phase)[0].ravel() for phase in ("original", "edited"))
    assert np.allclose(cat, original, rtol=1e-6)
    assert not np.allclose(original, edited, rtol=1e-3)


def test_violin_values_name_the_image_and_its_targets(traced):
    values = tables.violin_values(traced.store, traced.plain, [2], LAYER, [1])
    assert set(values["seed"]) == {8}
    assert set(values["layer"]) == {LAYER}
    assert set(values.loc[values["is_target"], "word"]) == {"cat", "elephant"}


def test_violin_values_can_average_the_heads_first(traced):
    values = tables.violin_values(traced.store, traced.plain, [1], LAYER, [2], heads="mean")
    cat = values.loc[values["word"] == "cat", "value"]
    maps = maps_of(traced.store, traced.plain, 1, LAYER, positions(traced, 1, 1))
    assert np.allclose(cat, maps[2].mean(0).ravel(), atol=1e-7)


def test_a_map_that_was_not_recorded_is_an_error(traced):
    with pytest.raises(LookupError, match=r"no maps of .* at \(sample, step\) \[\(0, 99\)\]"):
        tables.violin_values(traced.store, traced.plain, [0], LAYER, [0, 99])


def test_overlay_maps_are_means_over_heads_and_layers_in_both_phases(traced):
    layers = tables.edited_layers(traced.store, traced.regulated)
    maps = tables.overlay_maps(traced.store, traced.regulated, [1], layers, [0, 3]).set_index(["phase", "step", "word"])
    assert sorted(maps.index) == [
        ("edited", 0, "cat"), ("edited", 0, "elephant"),
        ("original", 0, "cat"), ("original", 0, "elephant"), ("original", 3, "cat"), ("original", 3, "elephant"),
    ]  # fmt: skip
    for phase in ("original", "edited"):
        own = [
            maps_of(traced.store, traced.regulated, 1, layer, positions(traced, 1, 4), phase)[0].mean(0)
            for layer in layers
        ]
        row = maps.loc[(phase, 0, "elephant")]
        assert np.allclose(np.reshape(row["map"], (row["h"], row["w"])), np.mean(own, 0), atol=1e-6)
    assert set(maps["method"]) == {"regulation"}
    assert set(maps["seed"]) == {5}


def test_overlays_of_maps_of_different_sizes_are_an_error(traced):
    layers = [LAYER, "up_blocks.1.attentions.0.transformer_blocks.0.attn2"]
    with pytest.raises(ValueError, match=r"one size, got \[\(8, 8\), \(16, 16\)\]|\[\(16, 16\), \(8, 8\)\]"):
        tables.overlay_maps(traced.store, traced.plain, [0], layers, [0])


def test_edited_layers_are_the_methods(traced):
    blocks = {path.split(".attentions")[0] for path in tables.edited_layers(traced.store, traced.regulated)}
    assert blocks == {"down_blocks.1", "up_blocks.0"}
    assert tables.edited_layers(traced.store, traced.plain) == ()


def test_the_most_attended_layer_gives_the_targets_the_highest_quantiles(traced):
    path, heads = tables.most_attended_layer(traced.store, traced.plain, 2)
    stats = traced.store.sql(
        "SELECT path, avg(p90) AS m FROM stats WHERE run_id = ? AND step = 2 AND is_target AND whole_word "
        "AND phase = 'original' GROUP BY path",
        [traced.plain],
    )
    assert path == stats.loc[stats["m"].idxmax(), "path"]
    assert heads == 4
    with pytest.raises(LookupError, match="no maps at step 99"):
        tables.most_attended_layer(traced.store, traced.plain, 99)


def test_detections_have_a_row_per_image_and_target_with_score_and_box(traced):
    found = tables.detections(traced.store, [traced.plain, traced.regulated], traced.protocol.name)
    assert len(found) == 2 * 3 * 2
    assert found["target"].tolist() == ["cat", "elephant"] * 6
    assert set(found.loc[found["target"] == "elephant", "word_idx"]) == {4}
    for row in found.itertuples():
        sha256 = traced.sha256[row.method, row.seed]
        scores = traced.store.sql(
            "FROM scores WHERE image_sha256 = ? AND target = ? AND protocol = ? AND metric = 'detection_argmax'",
            [sha256, row.target, traced.protocol.fingerprint],
        )
        assert row.score == scores["value"].item()
        assert row.found == (row.score > traced.protocol.threshold)
        assert (row.left, row.bottom) == (scores["box"].item()[0], scores["box"].item()[3])
        assert 0 <= row.left <= row.right <= 64


@pytest.fixture
def judged(traced):
    """The trace with outcomes of our own under a protocol of our own: plain finds seed 5, regulation 3 and 8."""
    verdicts = {"plain": {3: 0, 5: 1, 8: 0}, "regulation": {3: 1, 5: 0, 8: 0}}
    rows = [
        ScoreRow(traced.sha256[method, seed], "ours", "found", float(value))
        for method, by_seed in verdicts.items()
        for seed, value in by_seed.items()
    ]
    add_scores(traced.store, rows)
    return traced


def test_outcomes_pair_the_runs_by_seed(judged):
    outcomes = tables.outcomes(judged.store, judged.plain, judged.regulated, "ours")
    assert dict(zip(outcomes["seed"], outcomes["outcome"], strict=True)) == {3: "won", 5: "lost", 8: "both fail"}
    assert outcomes["baseline"].tolist() == [False, True, False]
    same = tables.outcomes(judged.store, judged.plain, judged.plain, "ours")
    assert same["outcome"].tolist() == ["both fail", "both found", "both fail"]


def test_shares_name_every_outcome_even_those_that_never_happened(judged):
    shares = tables.shares(pd.Series(["won", "won", "lost"]))
    assert shares.to_dict() == {"won": 2, "lost": 1, "both found": 0, "both fail": 0}


def test_the_first_failed_and_the_first_successful_image_have_the_lowest_seed_of_their_kind(judged):
    assert tables.first_seeds(judged.store, judged.plain, "ours") == {False: 0, True: 1}
    assert tables.first_seeds(judged.store, judged.regulated, "ours") == {False: 1, True: 0}
    assert tables.first_seeds(judged.store, judged.plain, "nobody's") == {}


def test_dominance_by_outcome_is_the_median_over_layers_then_images(judged):
    table = tables.dominance_by_outcome(judged.store, [judged.plain], "ours", 2)
    ratios = judged.store.sql(
        "SELECT sample, ratio FROM dominance_ratio WHERE run_id = ? AND step = 2 AND phase = 'original'",
        [judged.plain],
    )
    by_image = ratios.groupby("sample")["ratio"].median()
    assert table["found"].tolist() == [False, True]
    assert table["images"].tolist() == [2, 1]
    assert table["ratio"].tolist() == pytest.approx([by_image[[0, 2]].median(), by_image[1]])


def test_the_targets_of_a_run_are_json_that_the_table_reads(traced):
    """The table finds a target's word through its first position in samples.targets."""
    targets = json.loads(traced.store.sql("SELECT targets FROM samples LIMIT 1").iat[0, 0])
    assert [target["text"] for target in targets] == ["cat", "elephant"]
