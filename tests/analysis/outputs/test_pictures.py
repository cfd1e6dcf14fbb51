"""Figures of images and maps: of which images they are, and what they point to."""

import small_runs

from analysis.outputs.publish import SHOWS
from tracer.capture import Capture
from tracer.prompts import Prompt
from tracer.store import Store


def test_an_arrow_points_to_every_word_of_a_phrase_that_is_missing(tiny_model, tmp_path):
    prompt = Prompt("phrase", "a red bench and a blue cat", ("red bench", "cat"), "test")
    traced = {"plain": Capture(heads="mean", steps=(0, 1))}
    facts = {"prompts": (prompt,), "methods": {}, "seeds": (0,), "traced": traced}
    results = small_runs.Quiet()(small_runs.changed(small_runs.traced(tiny_model), **facts), tmp_path)
    with Store.open(results.parts[0].store) as store:
        missing = set(store.sql("SELECT target FROM verdicts WHERE NOT found")["target"])
    assert "red bench" in missing
    (one,) = SHOWS["violins"](results)
    axes = one.draw().axes[1]
    words = [label.get_text() for label in axes.get_xticklabels()]
    assert words == prompt.text.split()
    pointed = {words[round(text.xy[0]) - 1] for text in axes.texts}
    assert pointed == {word for target in missing for word in target.split()}
