import pandas as pd
import pytest

from analysis.best_of import best_of

CLIP = {0: 0.1, 1: 0.5, 2: 0.3, 3: 0.2}


def values(*prompts: str, method: str = "plain") -> pd.DataFrame:
    """Four seeds of each prompt: a CLIP score, and a detection of the odd ones."""
    rows = [
        {"method": method, "prompt": prompt, "seed": seed, "metric": metric, "value": value}
        for prompt in prompts
        for seed in range(4)
        for metric, value in (("clip", CLIP[seed]), ("found", float(seed % 2)))
    ]
    return pd.DataFrame(rows)


def test_of_each_pair_the_one_with_the_larger_score_is_taken_with_all_its_values():
    best = best_of(values("a cat", "a dog"), 2, "clip")
    assert best["method"].unique().tolist() == ["best of 2"]
    found = best.set_index(["prompt", "metric", "seed"])["value"].to_dict()
    # seed 0 stands beside 2, 1 beside 3; seed 2 wins the first, 1 the second
    assert found == {
        (prompt, metric, seed): value
        for prompt in ("a cat", "a dog")
        for metric, seed, value in (("clip", 0, 0.3), ("clip", 1, 0.5), ("found", 0, 0.0), ("found", 1, 1.0))
    }


def test_the_best_of_one_is_every_image_and_of_all_a_single_one():
    one, plain = best_of(values("a cat"), 1, "clip"), values("a cat")
    pd.testing.assert_frame_equal(
        one.sort_values(["seed", "metric"])[["seed", "metric", "value"]].reset_index(drop=True),
        plain.sort_values(["seed", "metric"])[["seed", "metric", "value"]].reset_index(drop=True),
    )
    assert best_of(values("a cat"), 4, "clip").set_index("metric")["value"].to_dict() == {"clip": 0.5, "found": 1.0}


def test_other_methods_and_other_seeds_are_left_alone():
    both = pd.concat([values("a cat"), values("a cat", method="boost").assign(value=9.0)])
    assert best_of(both, 2, "clip", seeds=(0, 1)).set_index("metric")["value"].to_dict() == {"clip": 0.5, "found": 1.0}


def test_of_equal_scores_the_first_seed_is_taken():
    even = values("a cat")
    even.loc[even["metric"] == "clip", "value"] = 0.25
    assert best_of(even, 2, "clip").query("metric == 'found'")["value"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("count", "by", "message"),
    [
        (3, "clip", "seeds must be a multiple of 3, to choose one of each 3, got 4"),
        (0, "clip", "seeds must be a multiple of 0"),
        (2, "taste", "every image must have a taste to be chosen by, 4 have none"),
    ],
)
def test_what_cannot_be_chosen_is_refused(count, by, message):
    with pytest.raises(ValueError, match=message):
        best_of(values("a cat"), count, by)
