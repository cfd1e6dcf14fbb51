import json
from collections.abc import Iterator
from math import isqrt

import golden
import pytest
import slow_regulation as slow
import torch
from safetensors.torch import save_file

CASES = golden.cases()
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def grid(step: golden.Step) -> torch.Tensor:
    """The initial theta "head target row column"; the maps are square, so the centres are too."""
    side = isqrt(step.theta.shape[-1])
    return step.theta.double().unflatten(-1, (side, side))


def ours(case: golden.Case, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple]:
    """Yield, per step, the golden numbers and the slow version's losses, optimum and edited probabilities."""
    heard, memory, solve = [], None, slow.solve

    def heard_solve(*args):
        best, losses = solve(*args)
        heard.append(torch.tensor(losses, dtype=torch.float64))
        return best, losses

    monkeypatch.setattr(slow, "solve", heard_solve)  # `edit` keeps the losses to itself
    for number, step in enumerate(case.steps):
        probs, memory = slow.edit(
            step.scores.double(), grid(step), memory, list(case.positions), case.end, number,
            (case.height, case.width),
        )  # fmt: skip
        yield step, heard[number], memory, probs


@by_name
def test_every_loss_every_optimum_and_the_edited_attention_are_the_authors(case, monkeypatch):
    for step, losses, optimum, probs in ours(case, monkeypatch):
        torch.testing.assert_close(losses, step.losses, rtol=1e-10, atol=0)
        torch.testing.assert_close(optimum.float(), step.bias, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(probs.float(), step.probs, rtol=1e-6, atol=1e-9)


@by_name
def test_float64_changes_the_authors_losses_by_rounding_only(case):
    for step in case.steps:
        torch.testing.assert_close(step.losses_float32.double(), step.losses, rtol=1e-3, atol=0)


def test_the_cases_have_one_to_three_targets_two_sizes_and_three_steps_of_20_evaluations():
    assert {len(case.positions) for case in CASES} == {1, 2, 3}
    assert {(case.height, case.width) for case in CASES} == {(16, 16), (24, 24)}
    assert {len(case.steps) for case in CASES} == {3}
    assert {len(step.losses) for case in CASES for step in case.steps} == {20}


def test_the_best_iterate_is_not_the_last_one_in_some_case():
    assert any(step.losses.argmin() < 19 for case in CASES for step in case.steps)


@pytest.mark.parametrize(
    ("cases", "steps"), [({}, 3), ({"a": {"height": 1, "width": 1, "positions": [1], "end": 2}}, 0)]
)
def test_a_file_without_cases_or_steps_is_refused(tmp_path, cases, steps):
    file = tmp_path / "empty.safetensors"
    save_file({"x": torch.zeros(1)}, file, {"about": json.dumps({"cases": cases, "steps": steps})})
    with pytest.raises(ValueError, match="must hold cases with steps"):
        golden.cases(file)
