"""The page of a run: self-contained, escaped, and silent about nothing. tests/browser/ has what its script does."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from analysis.page.gallery import Entry, Gallery, Verdict
from analysis.page.run_page import Drawing, Notice, RunPage, TableBlock, html_of_run

SVG, PNG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', b"\x89PNG\r\n\x1a\n..."
VOID = {"meta", "img", "input"}


def page(**changes: object) -> RunPage:
    facts = {
        "title": "Does it <help>?",
        "question": "Is A & B better?",
        "world": "real",
        "command": "attnreg run 'a&b' --out x",
        "digest": "12ab34cd",
        "findings": ("It is < 3.",),
        "notices": (
            Notice("note", "Small & slow."),
            Notice("not applicable", "No layout."),
            Notice("failure", "3 lost."),
        ),
        "tables": (
            TableBlock("Main", "<table><tr><td>0.5</td></tr></table>", "Means & more.", {"LaTeX": "t/main.tex"}),
        ),
        "drawings": (Drawing("Forest", "See.", 'a "tree"', SVG, {"PDF": "f/forest.pdf"}), Drawing("B", "", "b", PNG)),
        "protocols": {"detection_rate": "owl@0.10,argmax"},
        "settings": {"Steps": "50"},
    }
    return RunPage(**(facts | changes))


def gallery(folder: Path, prompt: str = "a cat", side: int = 64, linked: bool = False) -> Gallery:
    """Return a gallery of two methods' images of one prompt."""
    for method in ("plain", "ours"):
        Image.new("RGB", (side, side), "teal").save(folder / f"{method}.png")
    entries = tuple(
        Entry("COCO", "1", prompt, "", 0, method, folder / f"{method}.png", (Verdict("cat", method == "ours", 0.5),))
        for method in ("plain", "ours")
    )
    return Gallery(entries, ("plain", "ours"), names={"ours": "<Ours>"}, folder=folder if linked else None)


class Tags(HTMLParser):
    """Collects tags with their attributes and the text in them, and checks that they nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.seen, self.text = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.seen if name in attrs]


@pytest.mark.parametrize("with_gallery", [False, True])
def test_the_page_is_whole_html_that_fetches_nothing(tmp_path: Path, with_gallery: bool):
    text = html_of_run(page(gallery=gallery(tmp_path) if with_gallery else None))
    tags = Tags(text)
    assert tags.open == []
    assert tags.seen[0][0] == "html"
    assert [source.split(",")[0] for source in tags.attributes("src")] == [
        "data:image/svg+xml;base64", "data:image/png;base64",
    ]  # fmt: skip
    assert {link for link in tags.attributes("href") if link[0] != "#"} == {"t/main.tex", "f/forest.pdf"}
    assert not {"link", "iframe", "object"} & {tag for tag, _ in tags.seen}
    assert any(value.startswith("default-src 'none'; ") for value in tags.attributes("content"))
    assert len(tags.attributes("id")) == len(set(tags.attributes("id")))
    targets = {link[1:] for link in tags.attributes("href") if link[0] == "#"}
    assert targets <= set(tags.attributes("id"))
    assert ("gallery" in targets) == with_gallery


def test_what_was_run_is_said_and_escaped():
    text = html_of_run(page())
    for part in (
        "Does it &lt;help&gt;?", "Is A &amp; B better?", "attnreg run &#39;a&amp;b&#39; --out x", "12ab34cd",
        "It is &lt; 3.", "owl@0.10,argmax", "<dt>Steps</dt><dd>50</dd>", "Means &amp; more.",
        'alt="a &#34;tree&#34;"', "<td>0.5</td>",
    ):  # fmt: skip
        assert part in text


def test_figures_are_inside_to_the_byte():
    sources = Tags(html_of_run(page())).attributes("src")
    assert [base64.b64decode(source.split(",")[1]) for source in sources] == [SVG, PNG]


def test_a_figure_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"must be an SVG or PNG file, got one that begins with b'%PDF-1\.7'"):
        html_of_run(page(drawings=(Drawing("a", "b", "c", b"%PDF-1.7"),)))


def test_failures_come_first_and_their_absence_is_said():
    text = html_of_run(page())
    assert text.index("3 lost.") < text.index("No layout.") < text.index("Small &amp; slow.")
    assert "Warnings (3)" in text
    assert "None: every image was made and scored" in html_of_run(page(notices=()))


@pytest.mark.parametrize("world", ["emoji", "real"])
def test_only_the_emoji_worlds_page_carries_its_warning(world: str):
    text = html_of_run(page(world=world))
    assert ("This is the emoji world, not the paper" in text) == (world == "emoji")


def test_the_gallerys_data_is_json_that_no_prompt_can_break_out_of(tmp_path: Path):
    prompt = "a </script><script>alert(\"cat\")</script> & 'dog'"
    text = html_of_run(page(gallery=gallery(tmp_path, prompt)))
    assert Tags(text).open == []
    assert "alert(" not in text.replace("alert(\\u0022cat", "").replace('alert(\\"cat', "")
    data = json.loads(re.search(r'id="gallery-data">(.*?)</script>', text)[1])
    assert data["rows"][0][2] == prompt
    assert data["methods"] == ["plain", "<Ours>"]
    assert '<option value="1">&lt;Ours&gt;</option>' in text


@pytest.mark.parametrize(
    ("side", "linked", "said"),
    [
        (64, True, ""),
        (512, False, "smaller than the images, and stored with loss."),
        (512, True, "Each links to its file."),
    ],
)
def test_images_that_are_not_shown_as_they_are_are_said_to_be_smaller(
    tmp_path: Path, side: int, linked: bool, said: str
):
    text = html_of_run(page(gallery=gallery(tmp_path, side=side, linked=linked)))
    assert said in text
    assert ("with loss" in text, "Each links" in text) == (side == 512, side == 512 and linked)


def test_the_same_run_gives_the_same_page(tmp_path: Path):
    run = page(gallery=gallery(tmp_path))
    assert html_of_run(run) == html_of_run(run)
