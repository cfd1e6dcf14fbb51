"""The page: self-contained, escaped, and silent about nothing."""

import re
from base64 import b64decode
from html.parser import HTMLParser

import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.report import Page, Plate, Query, html_of, listed, png_of


def page(**changes: object) -> Page:
    facts = {
        "prompt": 'a cat & "a" <dog>',
        "targets": ("cat", "dog"),
        "selection": ("The rule is this.", "All seeds count."),
        "emoji": True,
        "counts": pd.Series({"won": 1, "lost": 9, "both found": 2, "both fail": 4}),
        "plates": (Plate("grid", "Every seed", "See here.", "Images of 16 seeds", b"\x89PNG"),),
        "numbers": pd.DataFrame({"method": ["plain", "regulation"], "all found": ["11 (69%)", "3 (19%)"]}),
        "protocol": "emoji:owlv2@0.40,argmax#12345678",
        "queries": (Query("Who won?", "SELECT 1 < 2"),),
        "settings": {"Sampler": "DPM, 25 steps"},
    }
    return Page(**(facts | changes))


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_html():
    tags = Tags(html_of(page()))
    assert tags.open == []
    assert tags.seen[0][0] == "html"


def test_nothing_is_fetched_from_anywhere():
    text = html_of(page())
    tags = Tags(text)
    links = [value for _, attrs in tags.seen for name, value in attrs.items() if name in ("src", "href")]
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in tags.seen}
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text


def test_figures_are_inside_with_a_text_for_those_who_do_not_see_them():
    (image,) = [attrs for tag, attrs in Tags(html_of(page())).seen if tag == "img"]
    assert b64decode(image["src"].partition(",")[2]) == b"\x89PNG"
    assert image["alt"] == "Images of 16 seeds"


def test_texts_are_escaped():
    text = html_of(page())
    assert "a cat &amp; &#34;a&#34; &lt;dog&gt;" in text
    assert "SELECT 1 &lt; 2" in text
    assert "<dog>" not in text


def visible(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)).split())


def test_the_shares_are_those_of_all_seeds_also_when_regulation_loses():
    text = visible(html_of(page()))
    assert "Cat and dog are both found in 11 of 16 plain images and in 3 of 16 regulated ones" in text
    for share in ("won 6 %", "lost 56 %", "both found 12 %", "both fail 25 %"):
        assert share in text


def test_the_rule_the_numbers_the_protocol_and_the_queries_are_on_the_page():
    text = visible(html_of(page()))
    for said in ("The rule is this.", "All seeds count.", "3 (19%)", "emoji:owlv2@0.40,argmax#12345678", "Who won?"):
        assert said in text
    assert "DPM, 25 steps" in text


def test_the_emoji_world_says_that_it_is_not_the_papers():
    note = "This is the emoji world, not the paper"
    assert note in visible(html_of(page()))
    assert note not in visible(html_of(page(emoji=False)))


def test_the_page_follows_the_readers_light_or_dark():
    assert "@media (prefers-color-scheme: dark)" in html_of(page())


@pytest.mark.parametrize(
    ("targets", "start"), [(("cat",), "Cat is found"), (("cat", "dog", "car"), "Cat, dog and car are all found")]
)
def test_other_numbers_of_targets_read_well(targets, start):
    assert start in visible(html_of(page(targets=targets)))


def test_words_are_listed_as_in_a_sentence():
    assert [listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_a_figure_is_the_same_png_each_time():
    def drawn() -> bytes:
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        return png_of(figure)

    assert drawn() == drawn()
    assert drawn().startswith(b"\x89PNG")
