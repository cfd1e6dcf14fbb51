"""A run's page as a person meets it: real clicks, real keys, and the pixels that come of them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from PIL import Image

from analysis.page.gallery import Entry, Gallery, Verdict
from analysis.page.run_page import Drawing, RunPage, TableBlock, html_of_run

METHODS, SEEDS = ("plain", "ours", "theirs"), (0, 1, 7)
PROMPTS = {  # prompt: set, kind, targets
    "a cat and a dog": ("A&E", "animals", ("cat", "dog")),
    "a cat with a <crown>": ("A&E", "accessory", ("cat", "<crown>")),
    "a frog and a bench": ("COCO", "animals", ("frog", "bench")),
    "a red bench": ("COCO", "objects", ("bench",)),
}
MANY = 40  # more prompts, so that most rows are out of sight
BOX = (16.0, 8.0, 80.0, 40.0)  # of 64 pixels: it reaches beyond the image


def colour(entry: Entry) -> tuple[int, int, int]:
    """Return a colour of the entry's own, far from orange and from every other's."""
    rng = np.random.default_rng([*entry.prompt.encode(), entry.seed or 0, METHODS.index(entry.method)])
    return tuple(int(part) for part in rng.integers(0, 200, 3))


def entries_in(folder: Path, size: tuple[int, int] = (64, 64), many: int = MANY) -> list[Entry]:
    """Return an entry of every prompt, seed and method, but for a failed one and a method that has no COCO images."""
    rng = np.random.default_rng(3)
    prompts = PROMPTS | {f"a mouse in place {n}": ("A&E", "animals", ("mouse",)) for n in range(many)}
    entries = []
    for number, (prompt, (prompt_set, kind, targets)) in enumerate(prompts.items()):
        for seed in SEEDS:
            for method in METHODS:
                verdicts = tuple(Verdict(name, bool(rng.random() < 0.6), 0.5, BOX) for name in targets)
                path = folder / method / f"{number} {seed}.png"
                entry = Entry(prompt_set, f"p{number}", prompt, kind, seed, method, path, verdicts)
                if (method, prompt_set) == ("theirs", "COCO") or (method, number, seed) == ("ours", 0, 1):
                    continue
                path.parent.mkdir(exist_ok=True)
                Image.new("RGB", size, colour(entry)).save(path)
                entries.append(entry)
    return entries


def page_of(entries: list[Entry], folder: Path) -> Path:
    gallery = Gallery(tuple(entries), METHODS, not_applicable={"COCO": ["theirs"]}, folder=folder)
    page = RunPage(
        "A run", "Is it <so>?", "emoji", "attnreg run small", "12ab", gallery=gallery,
        tables=(TableBlock("A table", "<table><tr><td>1</td></tr></table>"),),
        drawings=(Drawing("A figure", "See.", "a dot", b"<svg xmlns='http://www.w3.org/2000/svg' width='9'/>"),),
    )  # fmt: skip
    path = folder / "index.html"
    path.write_text(html_of_run(page), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Entry], Path]:
    folder = tmp_path_factory.mktemp("run of & things")
    entries = entries_in(folder)
    return entries, page_of(entries, folder)


@pytest.fixture
def opened(tab, shown: tuple[list[Entry], Path]):
    entries, path = shown
    tab.window(1280, 900)
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    tab.open(path)
    return tab, entries


def rows_of(entries: list[Entry]) -> dict[tuple[str, int | None], dict[str, Entry]]:
    """Return the rows as the page has them: set by set."""
    rows: dict[tuple[str, int | None], dict[str, Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.prompt_set):
        rows.setdefault((entry.prompt, entry.seed), {})[entry.method] = entry
    return rows


def outcome(row: dict[str, Entry], method: str) -> str | None:
    if not {"plain", method} <= row.keys():
        return None
    plain, own = (all(verdict.found for verdict in row[name].verdicts) for name in ("plain", method))
    return {(0, 1): "won", (1, 0): "lost", (1, 1): "both found", (0, 0): "both fail"}[plain, own]


def visible(tab) -> list[str]:
    """Return the headings of the rows that are shown."""
    return tab.run("[...document.querySelectorAll('.row:not([hidden]) h3')].map((head) => head.firstChild.textContent)")


def count(tab, name: str) -> int:
    return int(tab.of(f"[data-count='{name}']", "textContent"))


def choose(tab, field: str, value: object) -> None:
    """Choose in a list as its user would be heard."""
    tab.run(f"{{ const field = document.getElementById({field!r}); field.value = {str(value)!r}; "
            "field.dispatchEvent(new Event('input', { bubbles: true })); }")  # fmt: skip


def near(tab, number: int) -> None:
    """Scroll to a row, and wait for its images."""
    tab.place(f".row[data-row='{number}']")
    tab.until(f"!!document.querySelector('.row[data-row=\"{number}\"] .shot')")


def shot(number: int, method: str) -> str:
    """Return what finds a method's image in a row."""
    return f".row[data-row='{number}'] .shot[data-method='{METHODS.index(method)}']"


def test_an_error_and_a_foreign_address_are_heard(tab, tmp_path: Path):
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='other.png'><script>nothing.at.all</script>")
    tab.open(bad)
    complaints = " ".join(tab.complaints())
    assert "ReferenceError" in complaints
    assert "other.png" in complaints


def test_the_page_opens_without_a_complaint_and_shows_every_row(opened):
    tab, entries = opened
    rows = rows_of(entries)
    assert visible(tab) == [prompt for prompt, _ in rows]
    assert tab.of("#count", "textContent") == f"{len(rows)} of {len(rows)} shown"
    assert tab.complaints() == []


@pytest.mark.parametrize("method", METHODS[1:])
def test_an_outcome_shows_the_rows_that_have_it_and_counts_them(opened, method: str):
    tab, entries = opened
    rows = rows_of(entries)
    known = Counter(outcome(row, method) for row in rows.values())
    assert len(known) > 4  # all outcomes and rows without one
    choose(tab, "method", METHODS.index(method))
    for name in ("won", "lost", "both found", "both fail"):
        tab.click(f"input[value='{name}'] + .face")
        assert count(tab, name) == known[name]
        assert visible(tab) == [prompt for (prompt, _), row in rows.items() if outcome(row, method) == name]
    assert tab.complaints() == []


def test_set_kind_seed_and_words_narrow_both_the_rows_and_the_counts(opened):
    tab, entries = opened
    choose(tab, "set", 0)
    assert set(visible(tab)).isdisjoint({"a frog and a bench", "a red bench"})
    choose(tab, "set", 1)
    assert visible(tab) == ["a frog and a bench"] * 3 + ["a red bench"] * 3
    choose(tab, "kind", 2)
    assert visible(tab) == ["a red bench"] * 3
    choose(tab, "kind", "")
    choose(tab, "seed", 7)
    assert visible(tab) == ["a frog and a bench", "a red bench"]
    tab.click("#search")
    tab.write("BENCH frog")
    assert visible(tab) == ["a frog and a bench"]
    own = outcome(rows_of(entries)["a frog and a bench", 7], "ours")
    assert {name: count(tab, name) for name in ("won", "lost", "both found", "both fail")} == {
        name: int(name == own) for name in ("won", "lost", "both found", "both fail")
    }
    tab.write(" nowhere")
    assert visible(tab) == []
    assert tab.of("#nothing", "checkVisibility()")
    tab.click("button[type=reset]")
    tab.until("!document.querySelector('.row[hidden]')")
    assert len(visible(tab)) == len(rows_of(entries))


def test_every_cell_shows_its_own_image(opened):
    tab, entries = opened
    rows = list(rows_of(entries).values())
    for number in (0, 1, 7, len(rows) // 2, len(rows) - 1):
        near(tab, number)
        for method, entry in rows[number].items():
            left, top, width, height = tab.place(f"{shot(number, method)} .image")
            assert (width, height) == (128, 128)
            part = tab.picture()[round(top) + 2 : round(top) + 126, round(left) + 2 : round(left) + 126]
            assert np.abs(part.astype(int) - colour(entry)).max() == 0, (number, method)


def test_a_failed_image_and_a_method_that_does_not_apply_have_a_place_that_says_so(opened):
    tab, entries = opened
    failed = next(n for n, row in enumerate(rows_of(entries).values()) if "ours" not in row)
    last = len(rows_of(entries)) - 1  # COCO's
    near(tab, failed)
    near(tab, last)
    said = [tab.of(f"{cell} .none", "textContent") for cell in (shot(failed, "ours"), shot(last, "theirs"))]
    assert said == ["no image", "not applicable"]


def test_what_an_image_misses_is_named_below_it(opened):
    tab, entries = opened
    for number, row in enumerate(list(rows_of(entries).values())[:9]):
        near(tab, number)
        for method, entry in row.items():
            caption = tab.of(f"{shot(number, method)} figcaption", "innerText")
            missing = [f"no {verdict.target}" for verdict in entry.verdicts if not verdict.found]
            assert (", ".join(missing) or "all found") in caption
            versus = outcome(row, method) if method != "plain" else None
            assert ("won" in caption, "lost" in caption) == (versus == "won", versus == "lost")


def test_boxes_come_with_the_mouse_the_switch_and_the_key(opened):
    tab, _ = opened
    shown = "[...document.querySelectorAll('.box')].filter((box) => box.checkVisibility()).length"
    assert tab.run(shown) == 0
    tab.hover(f"{shot(0, 'plain')} .image")
    assert tab.run(shown) == 2  # its two targets
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    tab.click("#boxes")
    built = tab.run("document.querySelectorAll('.box').length")
    assert tab.run(shown) == built > 9
    tab.press("b")
    assert tab.run(shown) == 0
    assert not tab.of("#boxes", "checked")


def test_a_box_lies_where_the_detector_saw_it_and_ends_with_the_image(opened):
    tab, _ = opened
    tab.hover(f"{shot(0, 'plain')} .image")
    left, top, *_ = tab.box(f"{shot(0, 'plain')} .image")
    box, scale = tab.box(f"{shot(0, 'plain')} .box"), 128 / 64
    expected = [left + 16 * scale, top + 8 * scale, (64 - 16) * scale, (40 - 8) * scale]
    assert box == pytest.approx(expected, abs=0.2)


def test_keys_walk_through_the_rows_that_are_shown_and_spare_the_search(opened):
    tab, entries = opened
    rows = rows_of(entries)
    wins = [n for n, row in enumerate(rows.values()) if outcome(row, "ours") == "won"]
    tab.click("input[value='won'] + .face")
    tab.run("scrollTo(0, 0)")
    at = "document.activeElement.dataset.row"
    walked = []
    for key in ("j", "j", "j", "k", "k", "k"):
        tab.press(key)
        walked.append(int(tab.run(at)))
    assert walked == [wins[n] for n in (0, 1, 2, 1, 0, 0)]
    tab.press("/")
    assert tab.run("document.activeElement.id") == "search"
    tab.press("j")
    assert tab.of("#search", "value") == "j"
    assert visible(tab) == []  # no such word


def test_rows_out_of_sight_are_built_when_they_come_near_or_when_all_is_printed(opened):
    tab, entries = opened
    last = len(rows_of(entries)) - 1
    assert not tab.run(f"!!document.querySelector('.row[data-row=\"{last}\"] .shot')")
    near(tab, last)
    assert tab.run("document.querySelectorAll('.shots:empty').length") > 9
    tab.run("dispatchEvent(new Event('beforeprint'))")
    assert tab.run("document.querySelectorAll('.shots:empty').length") == 0


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1280, "dark")])
def test_nothing_is_wider_than_the_window_and_dark_is_dark(opened, width: int, scheme: str):
    tab, _ = opened
    tab.window(width, 900, scheme)
    assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.picture()[2, 2].mean() == pytest.approx({"light": 255, "dark": 24}[scheme], abs=2)


def test_large_images_are_shown_smaller_and_link_to_their_files(tab, tmp_path: Path):
    folder = tmp_path / "of & #1"
    folder.mkdir()
    entries = [replace(entry, verdicts=()) for entry in entries_in(folder, (512, 256), many=0)]
    tab.window(1280, 900)
    tab.open(page_of(entries, folder))
    left, top, width, height = tab.place(f"{shot(0, 'ours')} .image")
    assert (width, height) == (192, 96)
    middle = tab.picture()[round(top + height / 2), round(left + width / 2)]
    assert np.abs(middle - np.array(colour(entries[1]))).max() < 9
    address = tab.of(f"{shot(0, 'ours')} a", "href")
    assert Path(unquote(urlparse(address).path)) == entries[1].image
    assert not tab.run("!!document.querySelector('#method')")  # there is no verdict to filter by
    assert tab.complaints() == []
