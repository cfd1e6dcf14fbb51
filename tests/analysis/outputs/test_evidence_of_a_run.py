"""What is asked of dominance, of a small run of the emoji world: some of its images miss a target, some do not."""

import pandas as pd
import pytest
import small_runs

from analysis.experiments.experiment import Experiment, Part
from analysis.outputs.publish import publish
from regulate.controls import Balance
from tracer.capture import Capture
from tracer.prompts import TEMPLATES
from tracer.store import Store

KEPT = Capture(tokens="targets", heads="mean", steps=(0, 4))
STRENGTHS = {"plain": 0.0, "balance -1": -1.0, "balance 1": 1.0}
FOUND = """
SELECT method, avg(found::DOUBLE) AS rate, count(*) AS images
FROM outcomes JOIN samples USING (run_id, sample) JOIN runs USING (run_id) WHERE protocol = $protocol GROUP BY method"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    doses = {name: Balance(strength) for name, strength in STRENGTHS.items() if strength}
    traced = dict.fromkeys(STRENGTHS, KEPT)
    part = Part("few", "A few", TEMPLATES, doses, (0, 1), steps=8, batch=2, spread=8, traced=traced)
    shows = ("dose", "prediction", "pointing", "heads", "same-word")
    experiment = Experiment("evidence", "Does it work?", (part,), shows)
    results = small_runs.Quiet()(experiment, tmp_path_factory.mktemp("runs"))
    publish(results)
    return results


def numbers(results, name):
    return pd.read_csv(results.run / "figures" / f"{name}.csv")


def test_detection_at_each_strength_is_that_of_the_stores_images(published):
    (part,) = published.parts
    with Store.open(part.store) as store:
        known = store.sql(FOUND, {"protocol": part.protocol("detection_rate")}).set_index("method")
    assert (known["images"] == 16).all()
    drawn = numbers(published, "dose-balance").set_index(["measure", "strength"])["value"]
    for method, strength in STRENGTHS.items():
        assert drawn["found", strength] == pytest.approx(known.at[method, "rate"]), method


def test_the_edit_moves_the_dominance_that_the_network_is_made_to_use(published):
    drawn = numbers(published, "dose-balance").set_index(["measure", "strength"])["value"]
    assert drawn["used", -1] > drawn["used", 0] + 0.02
    assert drawn["used", 0] == drawn["own", 0]
    assert 0.5 <= drawn["used", 1] < 0.51
    assert drawn["own", 1] > drawn["used", 1]
    trend = numbers(published, "dose-balance-trend").set_index("measure")
    assert trend.at["used", "rho"] == -1


def test_what_is_foretold_is_told_of_the_plain_images_alone(published):
    steps = numbers(published, "prediction-by-step")
    assert sorted(steps["step"].unique()) == [0, 4]
    assert (steps["images"] == 16).all()
    assert steps["auc"].between(0, 1).all()
    foretold = numbers(published, "prediction-foretold")
    assert len(foretold) == 16
    assert len(numbers(published, "prediction-parts")) == 2


def test_words_with_a_box_are_those_that_the_detector_found(published):
    (part,) = published.parts
    with Store.open(part.store) as store:
        verdicts = store.sql(
            "SELECT count(*) AS n FROM verdicts v JOIN pictures p USING (image_sha256) WHERE v.found "
            "AND v.protocol = $protocol AND p.method = 'plain'", {"protocol": part.protocol("detection_rate")},
        )  # fmt: skip
    assert (numbers(published, "pointing")["words"] == verdicts.at[0, "n"]).all()


def test_the_page_shows_all_four_and_their_numbers(published):
    text = (published.run / "index.html").read_text()
    for name in ("dose-balance", "dose-balance-trend", "prediction-roc", "pointing", "heads-by-step", "same-word"):
        assert f'href="figures/{name}.csv"' in text, name
