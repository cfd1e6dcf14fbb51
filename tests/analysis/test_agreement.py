"""Person and detector: numbers worked out by hand, weights that undo the draw, intervals that hold their promise."""

import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from statsmodels.stats.inter_rater import cohens_kappa

from analysis.agreement import OWN, POOLED, Agreement, agreement, as_table, compared
from analysis.audit import Judged, draw, images_of, make_audit, strata_of
from analysis.double_sampling import Sample, effective_number, kappa, likely
from analysis.labels import Label, Labels, add_labels, read_labels
from analysis.stats import Interval
from tracer.pictures import digest
from tracer.scenes import render, sample_scene
from tracer.scores import PictureRow, ProtocolRow, ReadingRow, ScoreRow, Written, add_protocols, pictures_in, write
from tracer.store import Store

READING, STRICT = "owl@0.40,argmax", "owl@0.80,argmax"
Truth = dict[str, tuple[bool, ...]]  # by SHA-256


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def labels_of(drawn_from: list[Judged], chosen: list[Judged], said: Callable[[Judged, int], str]) -> Labels:
    rows = [
        Label(item, picture.image_sha256, target, said(picture, place))
        for item, picture in enumerate(chosen, 1)
        for place, target in enumerate(picture.targets)
    ]
    return Labels(tuple(rows), "somebody", READING, strata_of(images_of(drawn_from)))


def honest(truth: Truth) -> Callable[[Judged, int], str]:
    """Return a person who is always right."""
    return lambda picture, place: "yes" if truth[picture.image_sha256][place] else "no"


def told(pictures: list[Judged], labels: Labels, seed: int = 0, draws: int = 2000) -> Agreement:
    return compared(pictures, pictures, labels, READING, rng(seed), draws)


def small_world() -> tuple[list[Judged], list[Judged], Truth]:
    """Return 10 one-target images, of which 4 are labelled, 2 of either verdict.

    Found: 8, of which the labelled ones show the thing once of twice; not found: 2, both labelled, shown once of twice.
    """
    pictures = [Judged(f"{i}", "plain", f"p{i}", f"{i}", ("cat",), (i < 8,)) for i in range(10)]
    truth = {f"{i}": (i in (0, 8),) for i in range(10)}
    return pictures, [pictures[i] for i in (0, 1, 8, 9)], truth


def world(seed: int, recall: float, wrong: float, rates: dict[str, float], each: int) -> tuple[list[Judged], Truth]:
    """Return two-target images of some methods and what they show, under a detector of known error rates.

    Args:
        seed: of all chance.
        recall: how often it finds what is there.
        wrong: how often it finds what is not there.
        rates: how often each method's images show all targets; the others lack the second one.
        each: images per method; 4 a prompt.
    """
    chance = rng(seed)
    pictures, truth = [], {}
    for method, rate in rates.items():
        for number in range(each):
            shows = (True, bool(chance.random() < rate))
            found = tuple(bool(chance.random() < (recall if there else wrong)) for there in shows)
            name = f"{method}{number}"
            pictures.append(Judged(name, method, f"p{number // 4}", name, ("cat", "dog"), found))
            truth[name] = shows
    return pictures, truth


def test_weighted_and_unweighted_numbers_of_a_small_world_are_those_worked_out_by_hand():
    pictures, chosen, truth = small_world()
    found = told(pictures, labels_of(pictures, chosen, honest(truth)))
    # On the sheet: yes and found 1, yes and not found 1, no and found 1, no and not found 1.
    assert found.confusion == ((1, 1), (1, 1))
    assert (found.raw_agreement, found.raw_kappa) == (0.5, 0.0)
    # Back-weighted: each found one stands for 4 of 8, each other for 1 of 2. Agreement (4 + 1) / 10. By chance: the
    # person says yes to (4 + 1) / 10, the detector to 8 / 10, so 0.5 * 0.8 + 0.5 * 0.2 = 0.5, and kappa is 0.
    assert found.agreement == pytest.approx(0.5)
    assert found.kappa.estimate == pytest.approx(0.0)
    # Recall: 4 of the 5 that show it are found; false positives: 4 of the 5 that do not.
    assert found.recall.estimate == pytest.approx(0.8)
    assert found.false_positive_rate.estimate == pytest.approx(0.8)
    # Rates: the detector's 8 of 10; the person's 0.8 * 1/2 + 0.2 * 1/2.
    assert found.measured == pytest.approx(0.8)
    assert found.corrected.estimate == pytest.approx(0.5)
    assert found.answers == {"yes": 2, "no": 2, "unsure": 0, "": 0}
    assert (found.images, found.sheet) == (4, 4)


def test_kappa_weighted_back_is_another_than_the_sheets_own():
    pictures, _, truth = small_world()
    truth |= {"0": (True,), "1": (True,), "8": (True,)}
    found = told(pictures, labels_of(pictures, [pictures[i] for i in (0, 1, 8, 9)], honest(truth)))
    # Sheet: (2, 1; 0, 1): agreement 3/4, chance (3 * 2 + 1 * 2) / 16 = 1/2, kappa 1/2.
    assert found.raw_kappa == pytest.approx(0.5)
    # Weighted: (8, 1; 0, 1) / 10: agreement 0.9, chance 0.9 * 0.8 + 0.1 * 0.2 = 0.74, kappa 0.16 / 0.26.
    assert found.kappa.estimate == pytest.approx(0.16 / 0.26)


def test_kappa_is_that_of_statsmodels():
    table = rng(4).integers(1, 50, (2, 2))
    assert float(kappa(table / table.sum())) == pytest.approx(cohens_kappa(table).kappa)


def test_kappa_is_not_a_number_where_both_say_yes_to_everything():
    assert np.isnan(kappa(np.array([[1.0, 0.0], [0.0, 0.0]])))


def test_with_everything_labelled_weights_change_nothing_and_the_rate_is_exact():
    pictures, truth = world(0, 0.8, 0.2, {"plain": 0.3, "regulation": 0.7}, 60)
    found = told(pictures, labels_of(pictures, draw(pictures, 500, rng()), honest(truth)))
    counts = np.array(found.confusion)
    assert counts.sum() == 240
    assert found.kappa.estimate == pytest.approx(cohens_kappa(counts).kappa)
    assert found.raw_kappa == pytest.approx(found.kappa.estimate)
    assert found.raw_agreement == pytest.approx(found.agreement)
    rate = np.mean([all(shows) for shows in truth.values()])
    assert [found.corrected.low, found.corrected.estimate, found.corrected.high] == pytest.approx([rate] * 3)
    for one in found.methods:
        own = np.mean([all(shows) for name, shows in truth.items() if name.startswith(one.method)])
        assert one.way == OWN
        assert [one.corrected.low, one.corrected.estimate, one.corrected.high] == pytest.approx([own] * 3)


def test_kappas_interval_is_that_of_images_drawn_again_one_by_one():
    pictures, truth = world(1, 0.8, 0.2, {"plain": 0.5}, 300)
    chosen = draw(pictures, 80, rng(1))
    labels = labels_of(pictures, chosen, honest(truth))
    found = told(pictures, labels)
    share = np.mean([one for picture in pictures for one in picture.found])
    chance, kappas = rng(2), []
    sides = [[p for p in chosen if all(p.found) == verdict] for verdict in (False, True)]
    sizes = [sum(all(p.found) == verdict for p in pictures) for verdict in (False, True)]
    for _ in range(1000):
        mass = Counter()
        for side, size in zip(sides, sizes, strict=True):
            for index in chance.integers(0, len(side), len(side)):
                for seen, shows in zip(side[index].found, truth[side[index].image_sha256], strict=True):
                    mass[seen, shows] += size / len(side)
        yes = [mass[seen, True] / (mass[seen, True] + mass[seen, False]) for seen in (False, True)]
        agreed = share * yes[1] + (1 - share) * (1 - yes[0])
        person = share * yes[1] + (1 - share) * yes[0]
        by_chance = person * share + (1 - person) * (1 - share)
        kappas.append((agreed - by_chance) / (1 - by_chance))
    ends = np.quantile(kappas, [0.025, 0.975])
    assert [found.kappa.low, found.kappa.high] == pytest.approx(list(ends), abs=0.025)
    assert ends[1] - ends[0] > 0.1


def test_a_perfect_detector_has_kappa_one_but_an_interval_that_admits_what_was_not_looked_at():
    pictures, truth = world(0, 1.0, 0.0, {"plain": 0.5}, 200)
    found = told(pictures, labels_of(pictures, draw(pictures, 40, rng()), honest(truth)))
    assert found.kappa.estimate == 1.0
    assert found.corrected.estimate == pytest.approx(found.measured)
    assert found.corrected.low < found.measured < found.corrected.high
    assert found.recall.estimate == 1.0
    assert found.recall.low < 0.99


def covered(simulate: Callable[[int], tuple[Interval, float]], times: int) -> float:
    """Return the share of simulations whose interval holds the truth."""
    inside = [interval.low <= true <= interval.high for interval, true in map(simulate, range(times))]
    return float(np.mean(inside))


def test_the_corrected_rate_and_the_detectors_errors_are_within_their_intervals():
    recall, wrong = 0.85, 0.15

    worlds = [world(seed, recall, wrong, {"plain": 0.35, "regulation": 0.6}, 120) for seed in range(20)]

    def simulate(seed: int) -> list[tuple[Interval, float]]:
        pictures, truth = worlds[seed % 20]
        found = told(pictures, labels_of(pictures, draw(pictures, 64, rng(seed)), honest(truth)), seed, 300)
        both = [(seen, shows) for p in pictures for seen, shows in zip(p.found, truth[p.image_sha256], strict=True)]
        regulated = [all(shows) for name, shows in truth.items() if name.startswith("reg")]
        assert found.methods[1].way == OWN
        return [
            (found.corrected, float(np.mean([all(shows) for shows in truth.values()]))),
            (found.methods[1].corrected, float(np.mean(regulated))),
            (found.recall, float(np.mean([seen for seen, shows in both if shows]))),
            (found.false_positive_rate, float(np.mean([seen for seen, shows in both if not shows]))),
        ]

    runs = [simulate(seed) for seed in range(200)]
    for place in range(4):
        assert covered(lambda run, place=place: runs[run][place], 200) >= 0.9
    # What the correction is for: the measured rate is far from the truth, the corrected one is not, on average.
    errors = [run[0][0].estimate - run[0][1] for run in runs]
    assert abs(np.mean(errors)) < 0.012  # three standard errors of the mean
    assert np.mean([run[0][0].high - run[0][0].low for run in runs]) < 0.25


def test_a_method_with_few_labels_is_corrected_by_the_errors_of_all_and_its_interval_holds():
    rates = {f"m{i}": 0.2 + 0.1 * i for i in range(6)}

    worlds = [world(seed, 0.85, 0.15, rates, 40) for seed in range(12)]

    def simulate(seed: int) -> tuple[Interval, float]:
        pictures, truth = worlds[seed // 6]
        found = told(pictures, labels_of(pictures, draw(pictures, 60, rng(seed)), honest(truth)), seed, 300)
        one = found.methods[seed % 6]
        assert one.way == POOLED
        assert one.labelled < 20
        true = float(np.mean([all(shows) for name, shows in truth.items() if name.startswith(one.method)]))
        return one.corrected, true

    assert covered(simulate, 72) >= 0.9


def test_few_labels_pool_the_errors_by_rogan_and_gladen():
    # 20 images each, half found. Labelled of either verdict: 8 of a, 12 of b. Those found are complete but 1 in 4 of
    # each method, those not found are not but 1 in 4.
    pictures = [
        Judged(f"{m}{i}", m, f"p{i}", f"{m}{i}", ("cat",), (i < n // 2,))
        for m, n in (("a", 40), ("b", 120))
        for i in range(n)
    ]
    truth = {p.image_sha256: (p.found[0] != (int(p.path[1:]) % 4 == 0),) for p in pictures}
    looked = [p for p in pictures for start in (0, 20 if p.method == "a" else 60)
              for count in (8 if p.method == "a" else 12,) if start <= int(p.path[1:]) < start + count]  # fmt: skip
    found = told(pictures, labels_of(pictures, looked, honest(truth)))
    a, b = found.methods
    assert (a.way, a.labelled, b.way, b.labelled) == (POOLED, 16, OWN, 24)
    # Of all: 3/4 of the found are right, 1/4 of the others; half are found, so recall = (3/8) / (3/8 + 1/8) = 3/4 and
    # false positives = 1/4. Rogan-Gladen of a: (1/2 - 1/4) / (3/4 - 1/4) = 1/2; b's own: 1/2 * 3/4 + 1/2 * 1/4 = 1/2.
    assert a.corrected.estimate == pytest.approx(0.5)
    assert b.corrected.estimate == pytest.approx(0.5)
    assert a.corrected.high - a.corrected.low > b.corrected.high - b.corrected.low


def test_a_detector_that_tells_nothing_leaves_a_methods_rate_open():
    pictures, chosen, truth = small_world()
    found = told(pictures, labels_of(pictures, chosen, honest(truth)))  # recall and false positives are both 0.8
    (one,) = found.methods
    assert one.way == POOLED
    assert np.isnan(one.corrected.estimate)
    assert (one.corrected.low, one.corrected.high) == (0.0, 1.0)
    assert " - " in shown(found)


def test_methods_of_unequal_size_are_weighted_by_it():
    # a: 90 images, all found, none complete; b: 10 images, all found, all complete; each 5 labelled, and 2 not found.
    pictures = [Judged(f"a{i}", "a", "p", f"a{i}", ("cat",), (True,)) for i in range(90)]
    pictures += [Judged(f"b{i}", "b", "p", f"b{i}", ("cat",), (True,)) for i in range(10)]
    pictures += [Judged(f"c{i}", "a", "p", f"c{i}", ("cat",), (False,)) for i in range(2)]
    chosen = [*pictures[:5], *pictures[90:95], *pictures[100:]]
    found = told(pictures, labels_of(pictures, chosen, lambda p, _: "yes" if p.method == "b" else "no"))
    assert found.corrected.estimate == pytest.approx(10 / 102)


def test_a_stratum_without_answers_is_spoken_for_by_its_verdict():
    pictures, chosen, truth = small_world()
    more = [replace(p, path=f"m{p.path}", method="more", image_sha256=f"m{p.path}") for p in pictures]
    found = told(pictures + more, labels_of(pictures + more, chosen, honest(truth)))
    assert found.corrected.estimate == pytest.approx(0.8 * 0.5 + 0.2 * 0.5)


def test_an_image_that_methods_share_counts_for_each_of_their_pictures():
    pictures, chosen, truth = small_world()
    twins = [replace(p, path=f"twin{p.path}", method="twin") for p in pictures[:8]]  # of those found, all shared
    found = told(pictures + twins, labels_of(pictures + twins, chosen, honest(truth)))
    # 16 pictures found, 2 not: each of the two labelled found images stands for 4 images in 8 pictures.
    assert found.measured == pytest.approx(16 / 18)
    assert found.corrected.estimate == pytest.approx((16 * 0.5 + 2 * 0.5) / 18)
    twin = found.methods[1]
    assert (twin.method, twin.pictures, twin.labelled, twin.measured) == ("twin", 8, 2, 1.0)


def test_unsure_and_missing_answers_are_counted_and_left_out_and_unsure_is_tried_both_ways():
    pictures, _, _ = small_world()
    said = {"0": "yes", "1": "no", "2": "unsure", "3": "", "8": "no", "9": "unsure"}
    chosen = [p for p in pictures if p.path in said]
    found = told(pictures, labels_of(pictures, chosen, lambda p, _: said[p.path]))
    assert found.answers == {"yes": 1, "no": 2, "unsure": 2, "": 1}
    assert (found.images, found.sheet) == (3, 6)
    assert found.corrected.estimate == pytest.approx(0.8 * 1 / 2 + 0.2 * 0)
    assert found.unsure_as_no == pytest.approx(0.8 * 1 / 3 + 0.2 * 0)
    assert found.unsure_as_yes == pytest.approx(0.8 * 2 / 3 + 0.2 * 1 / 2)


def test_an_image_with_a_target_that_is_unsure_counts_by_target_but_not_as_an_image():
    pictures, truth = world(3, 0.9, 0.1, {"plain": 0.5}, 40)
    said = honest(truth)
    labels = labels_of(
        pictures, pictures, lambda p, place: "unsure" if p.path == "plain0" and place == 0 else said(p, place)
    )
    found = told(pictures, labels)
    assert np.sum(found.confusion) == 79
    assert found.images == 39


def test_images_may_be_judged_by_another_reading_than_they_were_drawn_by():
    drawn_from, truth = world(5, 0.8, 0.2, {"plain": 0.5}, 400)
    chance = rng(6)
    stricter = [replace(p, found=tuple(f and bool(chance.random() < 0.7) for f in p.found)) for p in drawn_from]
    errors = []
    for seed in range(20):
        labels = labels_of(drawn_from, draw(drawn_from, 100, rng(seed)), honest(truth))
        found = compared(drawn_from, stricter, labels, STRICT, rng(seed), 100)
        errors.append(found.corrected.estimate - np.mean([all(shows) for shows in truth.values()]))
    assert found.measured == np.mean([all(p.found) for p in stricter])
    assert abs(np.mean(errors)) < 0.025  # one sheet's standard error is about 0.045, that of 20 sheets' mean 0.01


@pytest.mark.parametrize(
    ("chosen", "said", "message"),
    [
        ((0, 1), "yes", "answers must cover what was found and what was not, got none of 2 not found"),
        ((8, 9), "yes", "got none of 8 found"),
        ((0, 8), "unsure", "labels must hold at least one yes or no"),
    ],
)
def test_labels_that_cannot_tell_are_refused(chosen, said, message):
    pictures, _, _ = small_world()
    with pytest.raises(ValueError, match=message):
        told(pictures, labels_of(pictures, [pictures[i] for i in chosen], lambda *_: said))


def test_pictures_that_came_after_the_draw_are_not_counted_in_silently():
    pictures, chosen, truth = small_world()
    labels = labels_of(pictures, chosen, honest(truth))
    with pytest.raises(ValueError, match="pictures must be those that the sheet was drawn from"):
        told([*pictures, replace(pictures[0], path="new", image_sha256="new")], labels)
    with pytest.raises(ValueError, match="pictures must be those that the sheet was drawn from"):
        compared(pictures, pictures[:-1], labels, READING, rng())


def test_an_image_must_be_labelled_with_the_targets_that_it_was_asked_for():
    pictures, chosen, truth = small_world()
    labels = labels_of(pictures, chosen, honest(truth))
    rows = (replace(labels.rows[0], target="crown"), *labels.rows[1:])
    with pytest.raises(ValueError, match="labels must name the targets that were asked of each image, got crown"):
        told(pictures, replace(labels, rows=rows))


def test_what_is_labelled_is_certain_and_the_rest_is_drawn_around_it():
    sample = Sample(
        found=np.array([True] * 8 + [False] * 4),
        yes=np.array([True] * 8 + [True, False, False, False]),
        image=np.arange(12),
        pictures=np.ones(12, int),
        weight=np.array([2.0] * 8 + [1.0] * 4),
        sizes=(4, 16),
    )
    missed, found = likely(sample, rng())
    assert set(missed) == {0.25}
    # 8 of 16 are sure; of the others k of 8 are there with a chance from Beta(8.5, 0.5), whose mean is 8.5 / 9.
    assert found.min() >= 0.5
    assert found.mean() == pytest.approx(0.5 + 0.5 * 8.5 / 9, abs=0.005)


def test_targets_of_one_image_count_as_one_and_unequal_weights_as_fewer():
    assert effective_number(np.array([0, 0, 1, 1]), np.ones(4)) == pytest.approx(2)
    assert effective_number(np.array([0, 1]), np.array([3.0, 1.0])) == pytest.approx(16 / 10)


def shown(found: Agreement) -> str:
    console = Console(width=180, record=True, file=io.StringIO())
    console.print(as_table(found))
    return console.export_text()


def test_the_table_says_all_numbers():
    pictures, truth = world(0, 0.85, 0.15, {"plain": 0.4, "regulation": 0.7}, 100)
    found = told(pictures, labels_of(pictures, draw(pictures, 80, rng()), honest(truth)))
    text = shown(found)
    for part in (
        f"kappa {found.kappa.estimate:.2f}",
        f"recall {found.recall} %",
        f"false positives {found.false_positive_rate} %",
        f"if unsure is no {found.unsure_as_no:.1%}",
        "80 of 80 images labelled whole",
        READING,
    ):
        assert part in text
    for one in found.methods:
        assert re.search(
            rf"{one.method} +100 +40 +{100 * one.measured:.1f} +{re.escape(str(one.corrected))} +own", text
        )
    assert re.search(rf"all +200 +80 +{100 * found.measured:.1f} +{re.escape(str(found.corrected))} +all labels", text)


@pytest.fixture
def run(tmp_path: Path):
    """Rendered scenes of two things with scores of a detector, and what a person says of a sheet of them."""
    chance = rng(8)
    pictures, scores = [], []
    for number in range(24):
        scene = sample_scene(chance, count=2)
        image = Image.fromarray(render(scene))
        sha256, path = digest(image), f"{number}.png"
        image.save(tmp_path / path)
        targets = tuple(thing.word for thing in scene.things)
        pictures.append(PictureRow(path, "plain", f"p{number // 2}", number % 2, targets=targets, image_sha256=sha256))
        for place, target in enumerate(targets):
            value = 0.6 if place == 0 or number % 2 else 0.2
            scores.append(ScoreRow(sha256, "owl", "detection_argmax", value, target, ", ".join(sorted(targets))))
    with Store.create(tmp_path / "scores.duckdb") as store:
        write(store, Written(scores, pictures=pictures))
        readings = [ReadingRow(name, "owl", threshold, "argmax") for name, threshold in ((READING, 0.4), (STRICT, 0.8))]
        add_protocols(store, [ProtocolRow("owl", "DetectionProtocol", "emoji", {}, {})], readings)
        sheet = make_audit(store, tmp_path / "audit", READING, images=12)
        file = sheet / "labels.csv"
        lines = file.read_text().splitlines()  # what was rendered is there: all yes, but for the last two lines
        file.write_text(
            "\n".join([lines[0], *(f"{line}yes" for line in lines[1:-2]), f"{lines[-2]}unsure", lines[-1] + "no"])
        )
        yield store, sheet


def test_a_sheet_comes_back_as_an_agreement(run):
    store, sheet = run
    found = agreement(store, read_labels(sheet), READING, rng())
    assert found.answers == {"yes": 22, "no": 1, "unsure": 1, "": 0}
    assert (found.measured, found.images, found.sheet) == (0.5, 11, 12)
    assert found.corrected.estimate == pytest.approx(1.0)
    assert found.methods[0].way == POOLED
    assert found == agreement(store, read_labels(sheet), READING, rng())
    assert agreement(store, read_labels(sheet), STRICT, rng()).measured == 0.0


def test_a_persons_verdicts_stand_beside_the_detectors(run):
    store, sheet = run
    labels = read_labels(sheet, person="anna")
    protocol = add_labels(store, labels)
    assert protocol == labels.fingerprint
    add_labels(store, labels)  # the same once more changes nothing
    verdicts = store.sql("SELECT image_sha256, against, target, found FROM verdicts WHERE protocol = ?", [protocol])
    left_out = labels.rows[-1].image_sha256
    said = {(row.image_sha256, row.target): row.shown == "yes" for row in labels.rows if row.image_sha256 != left_out}
    assert {(v.image_sha256, v.target): v.found for v in verdicts.itertuples()} == said
    assert len(verdicts) == 22
    asked = {row.image_sha256: ", ".join(sorted(row.targets)) for row in pictures_in(store).values()}
    assert all(v.against == asked[v.image_sha256] for v in verdicts.itertuples())
    noted = store.sql("SELECT kind, world FROM protocols WHERE protocol = ?", [protocol])
    assert noted.to_numpy().tolist() == [["Person", "emoji"]]
    values = store.sql("SELECT value FROM picture_values WHERE protocol = ?", [protocol])["value"]
    assert values.tolist() == [1.0] * 11


def test_labels_of_a_reading_that_the_store_does_not_know_are_not_stored(run):
    store, sheet = run
    with pytest.raises(ValueError, match="the store must know what other stands for"):
        add_labels(store, replace(read_labels(sheet), protocol="other"))
