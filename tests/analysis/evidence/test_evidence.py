"""Evidence about dominance: tables and statistics against slow references and numbers worked out by hand."""

from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from analysis.evidence import companions, dose, figures, pointing, prediction, questions, same_word, tables
from analysis.evidence.statistics import cluster_auc, cluster_difference, cluster_means, mean_p_values, noun_errors
from analysis.stats import bootstrap_rate
from tracer.scores import ScoreRow, add_scores


@pytest.fixture(scope="module")
def shares(traced):
    """The traced images with verdicts of our own: plain misses the elephant of seed 3; all else is found."""
    if traced.store.sql("FROM scores WHERE protocol = 'by hand'").empty:
        rows = [
            ScoreRow(
                sha, "by hand", "found", float((key, target) != (("plain", 3), "elephant")), target, "cat, elephant"
            )
            for key, sha in traced.sha256.items()
            for target in traced.request.targets
        ]
        add_scores(traced.store, rows)
    return tables.target_shares(traced.store, "by hand")


def test_every_share_is_that_of_the_view_dominance(traced, shares):
    view = traced.store.sql("FROM dominance WHERE phase = 'original'").set_index(
        ["run_id", "sample", "step", "path", "word_idx"]
    )["share"]
    layer = shares.by_layer()
    for word in shares.words.itertuples():
        image = shares.images.iloc[word.image]
        for (i, step), (j, path) in product(enumerate(shares.steps), enumerate(shares.layers)):
            own = layer[word.image, i, j, word.slot]
            assert own == pytest.approx(view[image["run_id"], image["sample"], step, path, word.word_idx], abs=1e-6)
    assert layer.size == len(view)


def test_the_dominance_table_is_what_sql_says(traced, shares):
    table = tables.dominance_table(shares)
    ratio = traced.store.sql("FROM dominance_ratio WHERE phase = 'original'")
    both = table.merge(
        ratio, left_on=["run_id", "sample", "step", "layer"], right_on=["run_id", "sample", "step", "path"]
    )
    assert len(both) == len(table) == len(ratio)
    assert np.allclose(both["ratio_x"], both["ratio_y"], rtol=1e-6)
    assert np.allclose(both["share"], both["ratio_y"] / (1 + both["ratio_y"]), atol=1e-6)  # of two words
    known = table["missing_share"].notna()
    assert set(table.loc[known, "seed"]) == {3}
    assert set(table.loc[known, "method"]) == {"plain"}


@pytest.mark.parametrize("threads", [1, 4])
def test_the_same_trace_gives_the_same_bits_with_any_number_of_threads(traced, shares, threads):
    with traced.store.cursor() as cursor:
        cursor.execute(f"SET threads TO {threads}")
    again = tables.target_shares(traced.store, "by hand")
    assert again.m.tobytes() == shares.m.tobytes()
    assert again.mean.tobytes() == shares.mean.tobytes()
    assert not np.isnan(shares.m).any()


def test_what_the_network_used_is_edited_where_a_method_edits_and_its_own_elsewhere(traced, shares):
    used = tables.target_shares(traced.store, "by hand", used=True)
    view = traced.store.sql("FROM dominance").set_index(["run_id", "sample", "step", "path", "word_idx", "phase"])[
        "share"
    ]
    edited = 0
    for word in used.words.itertuples():
        image = used.images.iloc[word.image]
        for (i, step), (j, path) in product(enumerate(used.steps), enumerate(used.layers)):
            key = image["run_id"], image["sample"], step, path, word.word_idx
            edited += (*key, "edited") in view
            expected = view.get((*key, "edited"), view[(*key, "original")])
            assert used.by_layer()[word.image, i, j, word.slot] == pytest.approx(expected, abs=1e-6)
    assert 0 < edited < used.by_layer().size
    plain = used.of("plain"), shares.of("plain")
    assert plain[0].m.tobytes() == plain[1].m.tobytes()


def test_mass_is_what_all_pixels_give_all_targets(traced, shares):
    image = shares.images.iloc[0]
    tokens = traced.store.sql(
        "SELECT DISTINCT token FROM tokens JOIN head_stats USING (run_id, sample, branch, token) "
        "WHERE run_id = $run AND sample = $sample AND branch = 'cond' AND tokens.word IN ('cat', 'elephant')",
        {"run": int(image["run_id"]), "sample": int(image["sample"])},
    )["token"]  # fmt: skip
    for j, path in enumerate(shares.layers):
        key = int(image["run_id"]), int(image["sample"])
        maps = [traced.store.maps(key, int(token), layers=[path])[2, 0] for token in tokens]
        assert shares.mass()[0, 2, j] == pytest.approx(float(sum(one.mean() for one in maps)), rel=1e-4)


def test_companion_numbers_are_those_of_loops(shares):
    plain = shares.of("plain")
    table = companions.companion_numbers(plain, draws=50).set_index(["measure", "group", "step"])
    assert len(table) == 4 * 2 * len(plain.steps)
    for place, step in enumerate(plain.steps):
        found: dict[tuple[str, str], list[float]] = {}
        for image, row in plain.images.iterrows():
            group = "all found" if row["found"] else "missing"
            ratios, evens = [], []
            for layer in range(len(plain.layers)):
                m = plain.m[image, place, layer].mean(0)
                share = m / m.sum()
                ratios.append(np.log(share.max() / share.min()))
                evens.append(-(share * np.log(share)).sum() / np.log(2))
            found.setdefault(("ratio", group), []).append(np.mean(ratios))
            found.setdefault(("evenness", group), []).append(np.mean(evens))
            for slot, lacks in enumerate(plain.lacking[image]):
                key = "quantile", "missing" if lacks else "all found"
                found.setdefault(key, []).append(plain.m[image, place, :, :, slot].mean())
        for (measure, group), values in found.items():
            expected = np.exp(np.mean(values)) if measure == "ratio" else np.mean(values)
            row = table.loc[(measure, group, step)]
            assert row["value"] == pytest.approx(expected)
            assert row["images"] == len(values)
    assert companions.companion_panels(table.reset_index(), "a caption").axes
    equal = np.array([[0.5, 0.5, np.nan], [1.0, 0.0, np.nan], [1.0, np.nan, np.nan]])
    assert companions.evenness(equal) == pytest.approx([1.0, 0.0, np.nan], nan_ok=True)


def test_images_without_detections_and_unknown_methods_are_errors(traced, shares):
    with pytest.raises(LookupError, match="no traced image has verdicts of 'nobody'"):
        tables.target_shares(traced.store, "nobody")
    with pytest.raises(ValueError, match="must be one of plain, regulation, got 'other'"):
        shares.of("other")
    chosen = tables.target_shares(traced.store, "by hand", [traced.regulated])
    assert set(chosen.images["method"]) == {"regulation"}


def test_measures_of_a_share_leave_out_words_that_are_not_there():
    shares = np.array([[[0.5, 0.3, 0.2]], [[0.6, 0.4, np.nan]], [[1.0, 0.0, np.nan]]])
    assert tables.top_share(shares)[:, 0].tolist() == [0.5, 0.6, 1.0]
    assert tables.share_ratio(shares)[:, 0] == pytest.approx([2.5, 1.5, tables.RATIO_CAP])
    lacking = np.array([[True, False, True], [False, False, False], [True, True, False]])
    assert tables.lacking_share(shares, lacking)[:, 0] == pytest.approx([0.35, np.nan, np.nan], nan_ok=True)


def noise(prompts=12, seeds=4, cells=3, seed=0):
    rng = np.random.default_rng(seed)
    names = np.repeat([f"p{i}" for i in range(prompts)], seeds).astype(object)
    return rng.standard_normal((len(names), cells)), rng.random(len(names)) < 0.4, names


def test_intervals_of_whole_matrices_are_those_of_analysis_stats():
    values, _, names = noise(cells=1)
    ours = cluster_means(values, names, 10_000).one()
    theirs = bootstrap_rate(values.reshape(12, 4), np.random.default_rng(1))
    assert ours.estimate == pytest.approx(theirs.estimate, abs=1e-12)
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=0.01)


def test_means_leave_out_nan_cell_by_cell_and_one_prompt_has_no_interval():
    values = np.array([[1.0, 5.0], [3.0, np.nan], [np.nan, np.nan]])
    means = cluster_means(values, np.array(["a", "b", "c"], object))
    assert means.estimate.tolist() == [2.0, 5.0]
    assert means.images.tolist() == [2, 1]
    assert means.low[0] == 1.0
    assert means.high[0] == 3.0
    assert np.isnan([means.low[1], means.high[1]]).all()


def test_a_difference_of_groups_is_of_their_means():
    values, group, names = noise()
    found = cluster_difference(values, group, names)
    assert found.estimate == pytest.approx(values[group].mean(0) - values[~group].mean(0), abs=1e-12)
    assert (found.low < found.estimate).all()
    assert (found.estimate < found.high).all()


def slow_auc(scores, missing, weights, same):
    wins = pairs = 0.0
    for i, j in product(np.flatnonzero(missing), np.flatnonzero(~missing)):
        if same(i, j):
            weight = weights[i] * weights[j]
            wins += weight * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
            pairs += weight
    return wins / pairs if pairs else np.nan


def test_auc_and_its_draws_are_those_of_a_loop_over_pairs():
    values, missing, names = noise(prompts=5, seeds=4, cells=2)
    values = np.round(values)  # with ties
    auc = cluster_auc(values, missing, names, draws=40)
    counts = np.random.default_rng(2403_06381).multinomial(5, np.full(5, 0.2), 40)
    codes = np.repeat(np.arange(5), 4)
    for cell in range(2):
        for part, same in ((auc.all, lambda i, j: True), (auc.within, lambda i, j: codes[i] == codes[j])):
            assert part.estimate[cell] == pytest.approx(slow_auc(values[:, cell], missing, np.ones(20), same), abs=1e-6)
            # a prompt that is drawn twice is two prompts, whose images are not of one
            often = counts if part is auc.all else np.sqrt(counts)
            drawn = [slow_auc(values[:, cell], missing, count[codes], same) for count in often]
            ends = np.nanquantile(drawn, [0.025, 0.975])
            assert [part.low[cell], part.high[cell]] == pytest.approx(ends, abs=1e-6)


def test_p_values_of_prompts_that_are_all_noise_are_below_005_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    hits = np.zeros(2)
    for _ in range(300):  # prompts differ in how often they fail and in their scores, independently
        rate, level = rng.random(20).repeat(4), rng.standard_normal(20).repeat(4)
        missing, scores = rng.random(80) < rate, level + 0.3 * rng.standard_normal(80)
        names = np.repeat(np.arange(20), 4).astype(str).astype(object)
        auc = cluster_auc(scores[:, None], missing, names, draws=1)
        hits += np.array([auc.p[0], auc.p_within[0]]) < 0.05
    assert (hits / 300 >= 0.02).all()
    assert (hits / 300 <= 0.095).all()


def test_the_error_over_nouns_is_that_of_nouns_drawn_anew():
    """Each prompt has two of twelve nouns, each of which moves all of its prompts."""
    rng = np.random.default_rng(6)
    pairs = np.array(list(combinations(range(12), 2)))
    nouns = np.zeros((len(pairs), 12), bool)
    nouns[np.arange(len(pairs))[:, None], pairs] = True
    for effect, largest in ((1.0, 1.12), (0.0, 1.5)):
        values = [effect * rng.standard_normal(12)[pairs].sum(1) + rng.standard_normal(len(pairs)) for _ in range(600)]
        truth = np.std([one.mean() for one in values])
        errors = noun_errors(np.array(values).T, nouns)
        assert 0.9 * truth < np.sqrt((errors**2).mean()) < largest * truth


def test_within_prompts_a_score_that_only_tells_prompts_apart_tells_nothing():
    rng = np.random.default_rng(8)
    names = np.repeat(np.arange(60), 4).astype(str).astype(object)
    rate = rng.random(60).repeat(4)
    missing = rng.random(240) < rate
    auc = cluster_auc((rate + 0.01 * rng.standard_normal(240))[:, None], missing, names, draws=50)
    assert auc.all.estimate[0] > 0.7
    assert auc.p[0] < 1e-6
    assert abs(auc.within.estimate[0] - 0.5) < 0.1
    assert auc.p_within[0] > 0.05


def test_the_p_value_of_a_mean_is_the_t_test_s_where_prompts_have_one_image_each():
    values, _, _ = noise(prompts=15, seeds=1, cells=3)
    names = np.arange(15).astype(str).astype(object)
    own = mean_p_values(np.where(np.arange(3) == 2, 0.0, values + 0.4), names)
    assert own[:2] == pytest.approx(stats.ttest_1samp(values + 0.4, 0).pvalue[:2])
    assert own[2] == 1  # nothing but zeros
    some = values[:, :1] + 0.4
    some[:5] = np.nan
    assert mean_p_values(some, names) == pytest.approx(stats.ttest_1samp(some[5:], 0).pvalue)


def test_a_score_that_is_nan_is_refused():
    with pytest.raises(ValueError, match="scores must be whole, got 1 NaN of 2"):
        cluster_auc(np.array([[1.0], [np.nan]]), np.array([True, False]), np.array(["a", "b"], object))


def test_the_logistic_curve_is_statsmodels_when_hardly_held():
    values, _, _ = noise(prompts=60, cells=1)
    x = values[:, 0]
    missing = np.random.default_rng(4).random(len(x)) < 1 / (1 + np.exp(0.5 - x))
    own = prediction.fit_logistic(x, missing)
    fit = sm.Logit(missing.astype(float), sm.add_constant(x)).fit(disp=0)
    assert own.predicted(x) == pytest.approx(fit.predict(sm.add_constant(x)), abs=0.005)
    apart = prediction.fit_logistic(np.arange(10.0), np.arange(10) > 4)
    assert np.isfinite(apart.slope)


def test_the_best_cell_is_judged_on_prompts_that_did_not_choose_it():
    """Of 200 cells of pure noise the best looks good where it was chosen, and is worth nothing elsewhere."""
    values, missing, names = noise(prompts=40, seeds=4, cells=200)
    found = prediction.foretold(values.reshape(160, 20, 10), missing, names, tuple(range(20)), tuple("abcdefghij"))
    assert (found.choices["tuned"] > 0.62).all()
    assert abs(found.choices["auc"].mean() - 0.5) < 0.1
    assert found.images.groupby("prompt")["part"].nunique().max() == 1
    assert found.choices["prompts"].tolist() == [20, 20]


def test_a_cell_that_tells_is_found_and_its_probability_is_reliable():
    values, _, names = noise(prompts=100, seeds=4, cells=6)
    missing = np.random.default_rng(5).random(400) < 1 / (1 + np.exp(-2 * values[:, 4]))
    found = prediction.foretold(values.reshape(400, 3, 2), missing, names, (0, 5, 9), ("a", "b"))
    assert found.choices[["step", "layer"]].to_numpy().tolist() == [[9, "a"], [9, "a"]]
    assert found.gain.low > 0
    bins = prediction.reliability(found.images)
    assert bins["images"].tolist() == [80] * 5
    assert (abs(bins["predicted"] - bins["observed"]) < 0.12).all()


def test_the_area_under_a_roc_curve_is_the_auc_of_its_part():
    values, missing, names = noise(prompts=40, seeds=4, cells=4)
    found = prediction.foretold(np.round(values, 1).reshape(160, 2, 2), missing, names, (0, 5), ("a", "b"))
    curves = prediction.roc(found.images)
    for choice in found.choices.itertuples():
        curve = curves[curves["part"] == choice.part]
        assert curve[["false_alarms", "hits"]].iloc[[0, -1]].to_numpy().tolist() == [[0, 0], [1, 1]]
        assert np.trapezoid(curve["hits"], curve["false_alarms"]) == pytest.approx(choice.auc)


def test_methods_are_paired_by_prompt_and_seed(shares):
    table = questions.method_changes(shares)
    plain, own = shares.of("plain"), shares.of("regulation")
    before, after = (np.log(tables.share_ratio(part.by_layer())) for part in (plain, own))
    assert plain.images["seed"].tolist() == own.images["seed"].tolist()
    row = table[(table["method"] == "regulation") & (table["measure"] == "ratio") & (table["step"] == 3)]
    wanted = np.exp((after - before)[:, 3].mean(0))
    assert row["value"].tolist()[:-1] == pytest.approx(wanted.tolist(), abs=1e-6)
    other = table[(table["method"] == questions.OTHER_SEEDS) & (table["step"] == 0)]
    slot = np.flatnonzero(plain.lacking[0])[0]
    layer = plain.by_layer()[:, 0, :, slot]
    assert other["value"].tolist()[:-1] == pytest.approx((layer[1:].mean(0) - layer[0]).tolist(), abs=1e-6)
    assert set(other["images"]) == {1}
    key = ["step", "layer"]
    parts = {
        name: table[(table["measure"] == name) & (table["method"] == "regulation")]
        for name in ("missing_share", "beyond")
    }
    control = table[table["method"] == questions.OTHER_SEEDS].set_index(key)["value"]
    change = parts["missing_share"].set_index(key)["value"] - control
    assert parts["beyond"].set_index(key)["value"].to_dict() == pytest.approx(change.to_dict())  # of one image


def test_a_missing_word_is_held_against_itself_in_the_prompt_s_other_images(shares):
    plain = shares.of("plain")  # the elephant of the first image is missing; the two others show it
    table = same_word.same_word(plain, draws=50).set_index(["measure", "step", "layer"])
    slot = int(np.flatnonzero(plain.lacking[0])[0])
    measured = {"share": plain.by_layer(), "quantile": np.log(plain.m.mean(3))}
    for (measure, words), (i, step) in product(measured.items(), enumerate(plain.steps)):
        for j, layer in enumerate(plain.layers):
            row = table.loc[(measure, step, layer)]
            assert row["value"] == pytest.approx(words[0, i, j, slot] - words[1:, i, j, slot].mean())
            assert (row["images"], row["prompts"], row["p"]) == (1, 1, 1)
        every = words[0, i, :, slot] - words[1:, i, :, slot].mean(0)
        assert table.loc[(measure, step, questions.ALL_LAYERS), "value"] == pytest.approx(every.mean())
    assert same_word.same_word_panels(table.reset_index(), "n").axes


def made_up(values, found, prompts):
    """One step, layer and head; a row of values and of whether they are found per image, a word a column."""
    images = pd.DataFrame({"prompt": prompts, "found": found.all(1)})
    places = [(image, slot) for image in range(len(values)) for slot in range(values.shape[1])]
    words = pd.DataFrame(places, columns=["image", "slot"]).assign(found=found.ravel())
    words["target"] = [f"{prompts[image]}-{slot}" for image, slot in places]
    grid = values[:, None, None, None]
    return tables.TargetShares(images, words, (0,), ("a",), grid, grid)


def test_words_that_differ_and_fail_differently_often_make_no_difference_of_a_word_to_itself():
    """The second word always gets less, and is nearly always the missing one: of a word beside another that is all."""
    rng = np.random.default_rng(2)
    prompts = np.repeat(np.arange(80), 4).astype(str).astype(object)
    values = np.array([2.0, 1.0]) * np.exp(0.1 * rng.standard_normal((320, 2)))
    found = rng.random((320, 2)) > np.array([0.05, 0.5])
    still = same_word.same_word(made_up(values, found, prompts), draws=200).set_index(["measure", "layer"])
    assert (still["value_low"] < 0).all()
    assert (still["value_high"] > 0).all()
    lower = same_word.same_word(made_up(np.where(found, values, 0.7 * values), found, prompts), draws=200)
    lower = lower.set_index(["measure", "layer"])
    assert lower.loc[("quantile", "a"), "value"] == pytest.approx(np.log(0.7), abs=0.03)
    assert (lower["value_high"] < 0).all()
    assert (lower["p"] < 1e-6).all()


def test_measured_by_hand_on_a_map_of_two_by_two():
    cells = np.array([[4.0, 1.0], [2.0, 1.0]])
    box = np.array([[0.0, 0.0, 0.75, 0.5]])  # all of the first cell, half of the second
    found = pointing.measured(cells, box, np.array([[0.5, 0.5, 1.0, 1.0]]))
    assert found == pytest.approx({"hit": 1, "mass": 4.5 / 8, "area": 0.375, "cells": 0.25, "other": 1 / 8})


def test_pointing_reads_the_words_own_maps(traced):
    place = {"left": 0, "top": 0, "right": 32, "bottom": 64}
    boxes = pd.DataFrame([{"run_id": traced.plain, "sample": 1, "word_idx": 4} | place])
    table = pointing.pointing_table(traced.store, traced.protocol.name, boxes)
    assert set(table["word"]) == {"elephant"}
    tokens = traced.store.sql("SELECT DISTINCT token FROM tokens WHERE word = 'elephant' AND branch = 'cond'")["token"]
    row = table[table["step"] == 2].iloc[0]
    maps = sum(traced.store.maps((traced.plain, 1), int(t), layers=[row["layer"]]) for t in tokens)[2, 0].mean(0)
    assert row["mass"] == pytest.approx(maps[:, : maps.shape[1] // 2].sum() / maps.sum(), abs=1e-6)
    assert row["area"] == 0.5


def doses():
    rows = []
    for prompt, seed, strength in product(range(8), range(3), (0.0, 1.0, 2.0)):
        row = {"strength": strength, "prompt": f"p{prompt}", "seed": seed, "own": 0.7, "mass": 0.1 * (strength == 1)}
        rows.append(row | {"used": 0.7 - 0.1 * strength + 0.01 * seed, "found": strength > seed})
    return pd.DataFrame(rows)


def test_a_dose_that_works_on_every_prompt_has_rho_one_and_a_sign_test_p():
    trend = dose.dose_trend(doses()).set_index("measure")
    assert trend.loc["used", "rho"] == pytest.approx(-1)
    assert trend.loc["found", "rho"] == pytest.approx(1)
    assert trend.loc["found", "p"] == 2 / 2**8
    assert trend.loc["own", ["rho", "p"]].tolist() == [0, 1]
    assert trend.loc["mass", "rho"] == pytest.approx(0, abs=1e-9)
    means = dose.dose_means(doses())
    assert means.loc[means["measure"] == "found", "value"].tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert means.loc[means["measure"] == "used", "difference"].tolist() == pytest.approx([0, -0.1, -0.2])
    lowered = dose.dose_means(doses().replace({"strength": {1.0: -1.0}}))
    assert lowered.loc[lowered["measure"] == "used", "difference"].tolist() == pytest.approx([-0.1, 0, -0.2])
    with pytest.raises(ValueError, match="got 1 of 24 that lack some"):
        dose.dose_trend(doses().iloc[1:])
    with pytest.raises(ValueError, match=r"strengths must be 0 and at least one more, got \[1.0, 2.0\]"):
        dose.dose_means(doses().query("strength > 0"))


def test_a_dose_s_images_have_both_dominances_and_the_mass(traced, shares):
    used = tables.target_shares(traced.store, "by hand", used=True)
    frame = dose.dose_frame(shares, used, {"plain": 0.0, "regulation": 1.0})
    assert frame.groupby("strength").size().tolist() == [3, 3]
    plain = frame[frame["strength"] == 0].set_index("seed")
    assert plain["used"].tolist() == plain["own"].tolist()
    assert plain["found"].tolist() == [False, True, True]
    assert plain.loc[3, "own"] == pytest.approx(tables.top_share(shares.of("plain").by_layer())[0].mean())
    assert plain.loc[3, "mass"] == pytest.approx(shares.of("plain").mass()[0].mean())
    edited = frame[frame["strength"] == 1]
    assert (edited["used"] != edited["own"]).all()
    with pytest.raises(ValueError, match="own and used must be of the same images"):
        dose.dose_frame(shares, used.of("plain"), {})


def test_every_figure_is_drawn_from_its_table(shares):
    values, missing, names = noise(prompts=40)
    found = prediction.foretold(values[:, :, None], missing, names, shares.steps[:3], shares.layers[:1])
    drawn = [
        figures.dominance_over_steps(questions.dominance_by_outcome(shares), "n"),
        figures.prediction_panels(questions.auc_by_step(shares), found, prediction.reliability(found.images), "n"),
        figures.head_matrix(questions.auc_by_head(shares), "n"),
        figures.method_change(questions.method_changes(shares), "n"),
        dose.dose_response(dose.dose_means(doses()), dose.dose_trend(doses()), "n"),
    ]
    for figure in drawn:
        figure.savefig("/dev/null", format="png")
        assert figure.get_size_inches()[0] == 6.75
    lines = drawn[0].axes[0].lines
    table = questions.dominance_by_outcome(shares)
    part = table[(table["layer"] == shares.layers[0]) & (table["group"] == "missing") & (table["measure"] == "share")]
    assert lines[0].get_ydata() == pytest.approx(part["value"].tolist())


LAYERS = [f"down_blocks.{n}.attentions.0.transformer_blocks.0.attn2" for n in (0, 1)]
LAYERS += ["mid_block.attentions.0.transformer_blocks.0.attn2"]
LAYERS += [f"up_blocks.{n}.attentions.{m}.transformer_blocks.0.attn2" for n in (0, 1) for m in (0, 1)]


def test_the_panels_of_seven_layers_cover_nothing():
    steps, count = (0, 2, 4, 8, 12, 16, 20, 24), 7
    values, missing, names = noise(prompts=30, cells=len(steps) * count)
    found = prediction.foretold(values.reshape(-1, len(steps), count), missing, names, steps, tuple(LAYERS))
    places = pd.MultiIndex.from_product([steps, LAYERS], names=["step", "layer"]).to_frame(index=False)
    caption = "A&E-style (276): 276 prompts, 1104 plain images, 500 of which miss a target (emoji-detection#1)."
    panels = figures.prediction_panels(places.assign(auc=0.6), found, prediction.reliability(found.images), caption)
    places = places.assign(value=-0.01, p_holm=0.01)
    both = pd.concat([places.assign(measure=measure) for measure in same_word.MEASURES])
    trend = dose.dose_response(dose.dose_means(doses()), dose.dose_trend(doses()), caption)
    for figure in (panels, same_word.same_word_panels(both, caption), trend):
        figure.draw_without_rendering()
        boxes = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
        boxes.append(figure._supxlabel.get_window_extent())
        for one, other in combinations(boxes, 2):
            assert not one.overlaps(other)
        for box in boxes:
            assert -0.5 <= box.x0 < box.x1 <= figure.bbox.x1 + 0.5


def test_the_legend_of_pointing_lies_inside_the_figure():
    places = pd.MultiIndex.from_product([range(4), LAYERS], names=["step", "layer"]).to_frame(index=False)
    ends = {f"{measure}{end}": 0.3 for measure in pointing.MEASURES for end in ("", "_low", "_high")}
    figure = figures.pointing_over_steps(places.assign(**ends), "n")
    figure.draw_without_rendering()
    area = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == len(pointing.MEASURES)
    assert figure.bbox.x0 <= area.x0 < area.x1 <= figure.bbox.x1


def test_layers_have_short_names():
    assert figures.short_layer("up_blocks.1.attentions.0.transformer_blocks.0.attn2") == "up 1.0"
    assert figures.short_layer("mid_block.attentions.0.transformer_blocks.0.attn2") == "mid 0"
    assert figures.short_layer("transformer_blocks.3.attn") == "transformer_blocks.3.attn"
