"""Scoreboards: the store's values, paired cell by cell, with the interval that the seeds call for."""

import numpy as np
import pandas as pd
import pytest

from analysis.scoreboard import (
    OWN,
    PROMPTS,
    SEEDS,
    TWO_WAY,
    Unbalanced,
    cells,
    lacking,
    pairwise,
    picture_values,
    scoreboard,
    unbalanced,
)
from analysis.significance import holm, paired_permutation, two_way_test
from analysis.stats import bootstrap_rate, two_way_interval
from metrics.protocols import ClipProtocol, emoji_detection
from tracer.scores import PictureRow, ReadingRow, ScoreRow, Written, add_protocols, write
from tracer.store import Store

METRIC = {"metric": "clip_cos", "protocol": "clip#1"}


def frame(**methods: np.ndarray) -> pd.DataFrame:
    """Values as `picture_values` returns them, of matrices "prompt seed"."""
    return pd.DataFrame(
        {"method": method, "prompt_id": f"p{p}", "prompt": f"prompt {p}", "seed": seed, "value": value} | METRIC
        for method, matrix in methods.items()
        for p, row in enumerate(matrix)
        for seed, value in enumerate(row)
        if not np.isnan(value)
    )


@pytest.fixture
def two() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    plain = rng.normal(0.3, 0.02, (6, 4))
    return {"plain": plain, "ours": plain + rng.normal(0.01, 0.01, (6, 4))}


def test_the_numbers_are_those_of_the_matrices(two):
    table = scoreboard(cells(frame(**two), ["plain", "ours"], "plain"), "plain").set_index("method")
    assert table["value"].tolist() == pytest.approx([two["plain"].mean(), two["ours"].mean()])
    interval = two_way_interval(two["ours"] - two["plain"])
    ours = table.loc["ours"]
    assert (ours["difference"], ours["difference_low"]) == pytest.approx((interval.estimate, interval.low))
    assert ours["p"] == pytest.approx(two_way_test(two["ours"], two["plain"]).p)
    assert ours[["better", "equal", "worse"]].sum() == 6
    assert (table["interval"] == TWO_WAY).all()
    assert np.isnan(table.loc["plain", "p"])


def test_with_one_seed_the_interval_is_over_prompts_and_says_so(two):
    one = {method: matrix[:, :1] for method, matrix in two.items()}
    line = scoreboard(cells(frame(**one), ["plain", "ours"], "plain"), "plain").iloc[1]
    expected = bootstrap_rate(one["ours"], np.random.default_rng(2411_00640))
    assert (line["value_low"], line["value_high"]) == pytest.approx((expected.low, expected.high))
    assert line["interval"] == PROMPTS
    assert line["p"] == paired_permutation(one["ours"], one["plain"], np.random.default_rng(2411_00640)).p


def test_prompts_with_seeds_of_their_own_are_drawn_with_them_and_the_interval_says_so(two):
    own = frame(**{method: matrix[:, :1] for method, matrix in two.items()})
    own["seed"] = own["prompt_id"].str[1:].astype(int)
    table = scoreboard(cells(own, ["plain", "ours"], "plain"), "plain")
    same = scoreboard(cells(frame(**{m: v[:, :1] for m, v in two.items()}), ["plain", "ours"], "plain"), "plain")
    assert set(table["interval"]) == {OWN}
    assert table.drop(columns="interval").equals(same.drop(columns="interval"))
    assert table[["prompts", "seeds", "images"]].to_numpy().tolist() == [[6, 1, 6]] * 2


def test_what_is_missing_is_said_by_method_and_prompt(two):
    values = frame(**two)
    assert lacking(values, ["plain", "ours"], "plain") == []
    lost = (values["method"] == "ours") & (values["prompt_id"] == "p2") & (values["seed"] < 2)
    said = ["ours on 'prompt 2' (clip_cos of 2 images)"]
    assert lacking(values[~lost], ["plain", "ours"], "plain") == said
    assert lacking(values.assign(value=values["value"].where(~lost)), ["plain", "ours"], "plain") == said
    of_ours = values[values["method"] == "ours"].assign(metric="lpips")
    assert lacking(of_ours, ["plain", "ours"], "plain") == []  # plain is what LPIPS compares with


def test_of_one_prompt_the_interval_is_over_its_seeds_and_says_so(two):
    one = {method: matrix[:1] for method, matrix in two.items()}
    line = scoreboard(cells(frame(**one), ["plain", "ours"], "plain"), "plain").iloc[1]
    expected = bootstrap_rate(one["ours"].T, np.random.default_rng(2411_00640))
    assert (line["value_low"], line["value_high"]) == pytest.approx((expected.low, expected.high))
    assert expected.low < expected.high
    assert line["interval"] == SEEDS
    assert line["p"] == paired_permutation(one["ours"].T, one["plain"].T, np.random.default_rng(2411_00640)).p


def test_p_values_are_corrected_over_all_differences_of_the_table(two):
    third = {**two, "third": two["plain"] + np.random.default_rng(5).normal(0.004, 0.01, (6, 4))}
    table = scoreboard(cells(frame(**third), list(third), "plain"), "plain").set_index("method")
    corrected = holm(table["p"].dropna().to_dict())
    assert table["p_holm"].dropna().to_dict() == pytest.approx(corrected)
    assert (table["p_holm"].dropna() >= table["p"].dropna()).all()


def test_a_missing_image_is_an_error_unless_it_is_allowed_and_then_left_out_for_all(two):
    two["ours"][2, 1] = np.nan
    with pytest.raises(Unbalanced, match="ours lacks 1 of 24 images"):
        cells(frame(**two), ["plain", "ours"], "plain")
    (part,) = cells(frame(**two), ["plain", "ours"], "plain", allow_missing=True)
    assert part.images == 23
    means = [np.delete(row, 1).mean() if place == 2 else row.mean() for place, row in enumerate(two["plain"])]
    assert part.by_method["plain"][:, 0].tolist() == pytest.approx(means)
    assert not part.crossed


def test_methods_that_share_nothing_are_not_compared(two):
    values = frame(**two)
    values.loc[values["method"] == "ours", "seed"] += 100
    with pytest.raises(Unbalanced, match="share none"):
        cells(values, ["plain", "ours"], "plain", allow_missing=True)


def test_pair_by_pair_a_method_that_shares_nothing_with_the_baseline_has_no_row(two):
    values = frame(**two, third=two["ours"])
    values.loc[values["method"] == "third", "seed"] += 100
    table = pairwise(values, ["plain", "ours", "third"], "plain")
    assert table["method"].tolist() == ["plain", "ours"]
    with pytest.raises(Unbalanced, match="the baseline must have pictures, plain has none"):
        pairwise(values[values["method"] != "plain"], ["plain", "ours"], "plain")


def test_the_error_names_the_first_of_what_is_missing_and_says_how_many_more():
    said = str(unbalanced([f"ours on 'prompt {number}'" for number in range(12)]))
    assert said.startswith("cells are missing: ours on 'prompt 0'; ours on 'prompt 1'; ")
    assert "'prompt 9' and 2 more; --allow-missing" in said


def test_prompts_with_seeds_of_their_own_count_by_their_means(two):
    values = frame(plain=two["plain"])
    values["seed"] += values["prompt_id"].str[1:].astype(int) * 10
    (part,) = cells(values, ["plain"], "plain")
    assert part.by_method["plain"][:, 0].tolist() == pytest.approx(two["plain"].mean(1).tolist())
    assert not part.crossed


def test_lpips_has_no_line_for_the_baseline(two):
    values = frame(ours=two["ours"]).assign(metric="lpips-tiny")
    table = scoreboard(cells(values, ["plain", "ours"], "plain"), "plain")
    assert table["method"].tolist() == ["ours"]
    assert "difference" not in table


def test_equal_methods_do_not_differ(two):
    table = scoreboard(cells(frame(plain=two["plain"], same=two["plain"]), ["plain", "same"], "plain"), "plain")
    line = table.set_index("method").loc["same"]
    assert (line["difference"], line["p"], line["equal"], line["rank_biserial"]) == (0, 1, 6, 0)


@pytest.fixture
def store(tmp_path):
    """Two images of two methods with every metric, and scores that must not be taken for theirs."""
    with Store.create(tmp_path / "scores.duckdb") as store:
        rows = [
            PictureRow("a.png", "plain", "a cat and a dog", 1, "p", ("dog", "cat"), image_sha256="aa"),
            PictureRow("b.png", "ours", "a cat and a dog", 1, "p", ("dog", "cat"), image_sha256="bb"),
        ]
        together = "cat, dog"
        scores = [
            *(ScoreRow("aa", "owl", "detection_argmax", v, t, together) for t, v in (("cat", 0.9), ("dog", 0.2))),
            *(ScoreRow("bb", "owl", "detection_argmax", v, t, together) for t, v in (("cat", 0.9), ("dog", 0.8))),
            ScoreRow("aa", "owl", "detection_argmax", 0.9, "cat", "cat"),  # asked for alone: another question
            ScoreRow("aa", "clip", "clip_cos", 0.25, against="a cat and a dog"),
            ScoreRow("aa", "clip", "clip_cos", 0.99, against="another prompt"),
            ScoreRow("aa", "clip", "clip_half", 0.2, "a cat", "a cat and a dog"),
            ScoreRow("aa", "clip", "clip_half", 0.1, "a dog", "a cat and a dog"),
            ScoreRow("bb", "lpips", "lpips", 0.4, against="aa"),
            ScoreRow("bb", "lpips", "lpips", 0.7, against="cc"),
        ]
        write(store, Written(scores, pictures=rows))
        add_protocols(store, [], [ReadingRow("owl@0.5", "owl", 0.5, "argmax")])
        yield store


def test_the_view_has_a_value_per_picture_metric_and_protocol(store):
    query = "SELECT method, metric, value, compared_with FROM picture_values ORDER BY ALL"
    assert store.cursor().execute(query).fetchall() == [
        ("ours", "detection_rate", 1.0, None),
        ("ours", "lpips", pytest.approx(0.4), "plain"),
        ("plain", "clip_cos", 0.25, None),
        ("plain", "clip_min_half", 0.1, None),
        ("plain", "detection_rate", 0.0, None),
    ]


def test_no_table_mixes_worlds(store):
    with pytest.raises(ValueError, match="of one world"):
        picture_values(store, [emoji_detection(), ClipProtocol()], ["plain"], "plain")
