"""What the optimisations did, as a trace of a regulated run has it."""

from dataclasses import replace

import numpy as np
import pytest

from regulate import FIXED, PAPER, AttentionRegulation, Request, generate
from tracer.capture import Capture
from tracer.store import Store

CAPTURE = Capture(tokens="all", precision="float32", solves=True)
ASKED = Request("a cat and a dog", ("cat", "dog"), (3, 4, 5), steps=4, batch=2)
SETS = {"published": AttentionRegulation(step_size=5.0), "paper": PAPER, "fixed": FIXED}  # 100 leaps about at 8x8


@pytest.fixture(params=SETS.values(), ids=SETS)
def traced(request, tiny_pipe, tmp_path):
    """A run whose edits are the optima themselves: no memory, no decay, no ends put back."""
    method = replace(request.param, memory=0.0, decay=1.0, ends_kept=False)
    with Store.create(tmp_path / "t.duckdb") as store:
        generate(tiny_pipe, ASKED, method, trace=store, capture=CAPTURE)
        yield store


def test_there_is_a_row_for_every_image_edited_pass_layer_and_head(traced):
    rows = traced.sql("SELECT sample, call, layer, head, count(*) n FROM solves GROUP BY ALL")
    edited = traced.sql("SELECT sample, call, unnest(edited) AS layer FROM calls")
    assert len(edited) == 3 * 2 * 3  # images, the first half of the steps, layers
    assert len(rows) == 4 * len(edited)
    assert rows["n"].eq(1).all()
    both = rows.merge(edited, on=["sample", "call", "layer"])
    assert len(both) == len(rows)


def test_the_terms_add_up_and_what_is_kept_is_never_worse_than_the_start(traced):
    rows = traced.sql("SELECT * FROM solves")
    terms = rows[["coverage", "proportion", "deviation"]]
    np.testing.assert_allclose(terms.sum(axis=1), rows["loss_kept"], rtol=1e-5)
    assert (terms >= 0).all(axis=None)
    means = rows.groupby(["sample", "call", "layer"])[["loss_start", "loss_kept"]].mean()
    assert (means["loss_kept"] <= means["loss_start"] + 1e-6).all()
    assert rows["kept"].between(0, 19).all()
    assert rows.groupby(["sample", "call", "layer"])["kept"].nunique().eq(1).all()  # chosen by all heads together
    assert (rows.loc[rows["kept"] == 0, "loss_kept"] == rows.loc[rows["kept"] == 0, "loss_start"]).all()
    assert rows["kept"].max() > 0


def test_the_distance_is_between_the_maps_of_both_phases_of_the_same_call(traced):
    query = """
        SELECT sample, call, layer, head, sqrt(sum((e.v - o.v) ** 2)) AS norm
        FROM (SELECT *, unnest(map) v, generate_subscripts(map, 1) i FROM maps_f32 WHERE phase = 'original') o
        JOIN (SELECT *, unnest(map) v, generate_subscripts(map, 1) i FROM maps_f32 WHERE phase = 'edited') e
            USING (run_id, sample, branch, call, layer, head, token, i)
        GROUP BY ALL"""
    both = traced.sql("SELECT * FROM solves").merge(traced.sql(query), on=["sample", "call", "layer", "head"])
    assert len(both) == 3 * 2 * 3 * 4
    np.testing.assert_allclose(both["distance"], both["norm"], rtol=1e-3, atol=1e-4)
    assert both["norm"].max() > 0.1


def test_without_asking_there_are_none(tiny_pipe, tmp_path):
    with Store.create(tmp_path / "t.duckdb") as store:
        generate(tiny_pipe, ASKED, AttentionRegulation(), trace=store, capture=replace(CAPTURE, solves=False))
        assert store.sql("SELECT * FROM solves").empty


def test_an_image_is_the_same_whether_its_solves_are_asked_for(tiny_pipe, tmp_path):
    with Store.create(tmp_path / "t.duckdb") as store:
        traced = generate(tiny_pipe, ASKED, AttentionRegulation(), trace=store, capture=CAPTURE)
    assert traced.sha256 == generate(tiny_pipe, ASKED, AttentionRegulation()).sha256
