"""Plans, and the halves of a search."""

import pytest

from analysis.plan import Plan, animal_pairs, halves
from regulate import AttentionRegulation, Method
from tracer.scenes import ANIMALS, is_seen


def test_the_pairs_are_all_66_of_the_twelve_animals():
    pairs = animal_pairs()
    assert len({frozenset(prompt.targets) for prompt in pairs}) == 66
    assert {animal for prompt in pairs for animal in prompt.targets} == set(ANIMALS)
    assert pairs[0].text == "a cat and a dog"


def test_the_halves_share_no_pair_and_have_unseen_ones_alike():
    tune, test = halves(animal_pairs())
    assert len(tune) == len(test) == 33
    assert {prompt.id for prompt in (*tune, *test)} == {prompt.id for prompt in animal_pairs()}
    unseen = [sum(not is_seen(prompt.targets) for prompt in half) for half in (tune, test)]
    assert abs(unseen[0] - unseen[1]) <= 1
    assert sum(unseen) == 13


def test_the_halves_are_always_the_same_whatever_the_order():
    tune, _ = halves(animal_pairs())
    again, _ = halves(animal_pairs()[::-1])
    assert {prompt.id for prompt in tune} == {prompt.id for prompt in again}
    assert [prompt.id for prompt in again] != [prompt.id for prompt in tune]
    assert [prompt.id for prompt in tune][:3] == sorted(prompt.id for prompt in tune)[:3]


def test_stock_diffusers_comes_first_in_every_plan():
    plan = Plan(animal_pairs()[:2], (0, 1, 2), {"published": AttentionRegulation()})
    assert list(plan.methods) == ["plain", "published"]
    assert plan.methods["plain"] == Method()
    assert plan.images == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ()}, "prompts must be at least one"),
        ({"prompts": animal_pairs()[:1] * 2}, "all different"),
        ({"seeds": ()}, "seeds must be at least one"),
        ({"seeds": (1, 1)}, "seeds must be"),
        ({"seeds": (-1,)}, "not negative"),
        ({"methods": {"plain": AttentionRegulation()}}, "must be stock diffusers"),
    ],
)
def test_what_is_no_plan_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        Plan(**({"prompts": animal_pairs()[:1], "seeds": (0,), "methods": {}} | changes))
