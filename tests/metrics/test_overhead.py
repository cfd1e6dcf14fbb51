"""Overhead: known ratios come out, by a clock that each run sets forward itself."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from metrics.machine import counting
from metrics.overhead import Overhead, OverheadProtocol, complete, measure, paired_interval, schedule

PROMPTS = ["a cat", "a dog", "a frog and a bear", "a lion"]
SHORT = OverheadProtocol(checkpoint="tiny", repeats=3, warmup=1, steps=3)


class Clock:
    """A clock that stands still until a run costs something."""

    def __init__(self):
        self.now = 0.0
        self.runs: list[tuple[str, str, int]] = []

    def __call__(self) -> float:
        return self.now

    def costing(self, name: str, cost: Callable[[str, int], float]) -> Callable[[str, int], object]:
        """A run that takes `cost` of the prompt and of how many runs there were before."""

        def run(prompt: str, seed: int) -> None:
            self.now += cost(prompt, len(self.runs))
            self.runs.append((name, prompt, seed))

        return run


def measured(
    plain: Callable[[str, int], float],
    method: Callable[[str, int], float],
    protocol: OverheadProtocol = SHORT,
    prompts: list[str] = PROMPTS,
) -> Overhead:
    clock = Clock()
    runs = {"slow": clock.costing("slow", method)}
    (row,) = measure(clock.costing("plain", plain), runs, prompts, np.random.default_rng(0), protocol, clock=clock)
    return row


def test_a_method_that_takes_half_as_long_again_costs_a_half():
    row = measured(lambda prompt, _: len(prompt), lambda prompt, _: 1.5 * len(prompt))
    assert (row.method, row.overhead, row.of_means) == ("slow", pytest.approx(0.5), pytest.approx(0.5))
    assert (row.low, row.high) == (pytest.approx(0.5), pytest.approx(0.5))  # every prompt has the same ratio
    # prompts take 5, 5, 17 and 6 seconds: the median is 5.5
    assert (row.baseline_seconds, row.seconds) == (pytest.approx(5.5), pytest.approx(8.25))
    assert (row.spread, row.noisy) == (pytest.approx(0), False)


def test_the_quartiles_and_the_95th_percentile_are_of_all_runs():
    # 7.5, 7.5, 25.5 and 9 seconds, three times each: quartiles 7.5 and 9 + (25.5 - 9) / 4, by numpy's lines
    row = measured(lambda prompt, _: len(prompt), lambda prompt, _: 1.5 * len(prompt))
    runs = [7.5] * 6 + [9.0] * 3 + [25.5] * 3
    assert row.iqr == pytest.approx(np.quantile(runs, 0.75) - np.quantile(runs, 0.25))
    assert row.p95 == pytest.approx(25.5)


def test_one_run_that_was_held_up_does_not_count():
    held_up = measured(lambda *_: 1.0, lambda _, number: 90.0 if number == 5 else 2.0)
    assert held_up.overhead == pytest.approx(1.0)
    assert held_up.of_means == pytest.approx(1.0)


def test_means_are_moved_by_a_costly_prompt_and_medians_are_not():
    row = measured(lambda *_: 1.0, lambda prompt, _: 9.0 if "bear" in prompt else 2.0)
    assert row.overhead == pytest.approx(1.0)
    assert row.of_means == pytest.approx((2 + 2 + 9 + 2) / 4 - 1)


def test_a_machine_that_slows_down_slows_all_alike():
    protocol = replace(SHORT, repeats=2, warmup=0)
    drift = lambda _, number: 1.0 + 0.1 * number  # noqa: E731
    there_and_back = measured(drift, drift, protocol, ["a cat"])  # 1 1.1 1.2 1.3: plain 1 + 1.3, slow 1.1 + 1.2
    assert there_and_back.overhead == pytest.approx(0.0)
    always_there = measured(drift, drift, replace(protocol, order="AB"), ["a cat"])  # 1 + 1.2 and 1.1 + 1.3
    assert always_there.overhead == pytest.approx(2.4 / 2.2 - 1)


def test_runs_go_there_and_back_also_from_one_prompt_to_the_next():
    protocol = replace(SHORT, prompts=2)
    names = [name for _, name in schedule(["a", "b", "c"], protocol)]
    assert "".join(names) == "abccbaabc" + "cbaabccba"
    assert [prompt for prompt, _ in schedule(["a", "b", "c"], protocol)] == [0] * 9 + [1] * 9
    assert "".join(name for _, name in schedule(["a", "b"], replace(protocol, order="AB"))) == "ab" * 6


def test_warm_up_is_not_timed_and_every_repeat_is_the_same_work():
    clock = Clock()
    cold = clock.costing("plain", lambda _, number: 100.0 if number < 3 else 1.0)
    method = clock.costing("slow", lambda _, number: 100.0 if number < 6 else 2.0)
    protocol = replace(SHORT, warmup=3)
    (row,) = measure(cold, {"slow": method}, PROMPTS, np.random.default_rng(0), protocol, clock=clock)
    assert (row.overhead, row.p95) == (pytest.approx(1.0), pytest.approx(2.0))
    assert [name for name, *_ in clock.runs[:6]] == ["plain"] * 3 + ["slow"] * 3
    timed = clock.runs[6:]
    assert len(timed) == 2 * len(PROMPTS) * 3
    for name in ("plain", "slow"):
        for seed, prompt in enumerate(PROMPTS):
            assert timed.count((name, prompt, seed)) == 3


def test_plain_repeats_that_differ_make_a_row_noisy():
    # the plain runs are numbers 2, 5, 6, 9, 10, 13 ... of all: they take 1.2, 1, 1.2 and 1, 1.2, 1 by turns
    uneven = lambda _, number: 1.0 if number % 4 < 2 else 1.2  # noqa: E731
    row = measured(uneven, lambda *_: 2.0)
    assert row.spread == pytest.approx((0.2 / 1.2 + 0.2 / 1.0) / 2)
    assert row.noisy
    assert not measured(uneven, lambda *_: 2.0, replace(SHORT, noise_bound=0.25)).noisy


def test_the_interval_keeps_both_times_of_a_prompt_together():
    rng = np.random.default_rng(3)
    plain = rng.uniform(1, 10, 30)  # prompts differ much, the ratio hardly
    low, high = paired_interval(plain * rng.uniform(1.19, 1.21, 30), plain, rng)
    assert 0.18 < low < 0.2 < high < 0.22
    low, high = paired_interval(rng.permutation(plain) * 1.2, plain, rng)
    assert high - low > 0.2


def test_one_prompt_has_no_interval():
    row = measured(lambda *_: 1.0, lambda *_: 2.0, prompts=["a cat"])
    assert (row.overhead, row.low, row.high) == (pytest.approx(1.0), None, None)


def test_the_passes_of_a_pipeline_are_steps(tiny_pipe):
    def generate(steps: int) -> Callable[[str, int], object]:
        def run(prompt: str, seed: int) -> object:
            generator = torch.Generator().manual_seed(seed)
            return tiny_pipe(prompt, num_inference_steps=steps, generator=generator, output_type="latent")

        return run

    protocol = replace(SHORT, repeats=2, steps=2)
    with counting(tiny_pipe.unet) as count:
        (row,) = measure(generate(2), {"twice": generate(4)}, ["a cat"], np.random.default_rng(0), protocol, count)
    assert (row.passes, row.baseline_passes) == (4, 2)
    assert count.passes == (2 + 4) * (1 + 2)  # one of three runs was to warm up
    assert row.peak_bytes > 50e6
    assert row.process_seconds > 0
    assert row.protocol == complete(protocol, 1)


def test_passes_are_unknown_unless_counted():
    row = measured(lambda *_: 1.0, lambda *_: 2.0)
    assert (row.passes, row.baseline_passes) == (None, None)


@pytest.mark.parametrize(("prompts", "methods", "message"), [
    ([], {"slow": print}, "prompts must be a list"),
    ("a cat", {"slow": print}, "prompts must be a list"),
    (["a cat"], {}, "methods must be at least one"),
    (["a cat"], {"plain": print}, "none of them called 'plain'"),
])  # fmt: skip
def test_nothing_to_compare_is_refused(prompts, methods, message):
    with pytest.raises(ValueError, match=message):
        measure(print, methods, prompts, np.random.default_rng(0))


def test_plain_runs_that_take_no_time_are_refused():
    with pytest.raises(ValueError, match=r"must take time, got 0\.0"):
        measured(lambda *_: 0.0, lambda *_: 1.0)


@pytest.mark.parametrize("wrong", [
    {"repeats": 1}, {"warmup": -1}, {"batch": 0}, {"steps": 0}, {"noise_bound": 0.0},
])  # fmt: skip
def test_a_protocol_outside_its_ranges_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        OverheadProtocol(**wrong)


def test_an_unknown_order_is_refused():
    with pytest.raises((ValueError, TypeError), match=r"ABBA.*AB"):
        OverheadProtocol(order="BA")  # pyright: ignore[reportArgumentType]


def test_conditions_that_are_not_so_are_refused():
    for field, value in (("prompts", 3), ("threads", torch.get_num_threads() + 1), ("hardware", "an abacus")):
        with pytest.raises(ValueError, match=f"{field} must be"):
            complete(replace(SHORT, **{field: value}), 4)
    whole = complete(SHORT, 4)
    assert (whole.prompts, whole.threads) == (4, torch.get_num_threads())
    assert complete(whole, 4) == whole


def test_a_protocol_is_named_by_its_conditions_and_not_by_the_bound_of_noise():
    changes = [{}, {"repeats": 5}, {"device": "cuda"}, {"dtype": "float16"}, {"batch": 4}, {"steps": 9}, {"threads": 2}]
    assert len({replace(SHORT, **change).fingerprint for change in changes}) == len(changes)
    assert replace(SHORT, noise_bound=0.3).fingerprint == SHORT.fingerprint
    assert replace(SHORT, prompts=10).name.endswith(": 10 prompts x 3, cpu, float32, batch 1, 3 steps")
