"""Which words of a prompt say how its nouns are: two parsers, for `regulate.structure`.

Conventions: words are numbered over the prompt, see `regulate.nouns`. A noun is its last word, the head: "hair" of
"hair dryer" is a modifier. Both parsers mend colours: a known colour before a noun, with no article between, or
behind its "is", is a modifier, whatever the grammar says; and what only looks like a noun: "a dog lays with a cat".

Source: the dependency labels, and that modifiers also stand behind verbs, are SynGen's (arXiv 2306.08877, section 3).
"""

from collections.abc import Iterator, Sequence
from typing import Any

from regulate.nouns import FUNCTION_WORDS, Words, is_verb, names_something, parsed_nouns, ruled_nouns
from tracer.scenes import COLOURS

LABELS = frozenset(("amod", "nmod", "compound", "npadvmod", "advmod", "acomp"))
OWNING = frozenset(("with", "wearing", "holding", "carrying", "having"))
NUMBERS = frozenset(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
COPULAS = frozenset(("is", "are", "was", "were"))
HUES = frozenset(COLOURS) | {"grey", "violet", "beige", "turquoise"}
_STANDING = frozenset(("stand", "sit", "lie", "lay", "walk"))
_NOUNS = ("NOUN", "PROPN")

Found = dict[int, set[int]]  # of each noun its modifiers


def by_rule(words: Words) -> Found:
    """Return the nouns that `regulate.nouns` finds by its plain rule, with the content words before each."""
    texts = words.texts
    nouns = {last for _, last in ruled_nouns(words) if not _is_second_colour(words, last)}
    nouns |= {  # "a cat wearing glasses" is one run of content words to the plain rule, which keeps its last
        index
        for index, text in enumerate(texts)
        if words.after(index) in OWNING - {"with"} and names_something(text) and text not in HUES | OWNING
        if not is_verb(words, index)
    }
    nouns = {noun - 1 if _is_deed(words, noun) and texts[noun - 1] not in HUES else noun for noun in nouns}
    found = _mended(words, {noun: set() for noun in nouns})
    for noun, modifiers in found.items():
        index = noun
        while words.joined(index) and index - 1 not in found and texts[index - 1] not in OWNING:
            index -= 1
            if names_something(texts[index]) and texts[index] not in NUMBERS:
                modifiers.add(index)
            elif not (texts[index] == "and" and index - 1 in modifiers):  # of "red and blue", red was mended
                break
    return found


def _is_second_colour(words: Words, index: int) -> bool:
    """Return whether a colour that is also a thing stands beside another: "an orange and blue bowl"."""
    return words.texts[index] in HUES and words.after(index) == "and" and words.after(index + 1) in HUES


def _is_deed(words: Words, index: int) -> bool:
    """Return whether a "noun" behind another word is rather what that does: "a dog lays", "a cat and a dog stand"."""
    if not (words.joined(index) and names_something(words.texts[index - 1])):
        return False
    text = words.texts[index]
    stands = text in _STANDING and "and" in words.texts[:index]
    ends = text.endswith("s") and not text.endswith(("ss", "us", "sses"))
    return stands or (ends and _leader(words, index) in ("a", "an"))


def _leader(words: Words, index: int) -> str:
    """Return the function word that leads up to the word, over the "and" of "a black and white cat"."""
    while words.joined(index):
        index -= 1
        paired = words.texts[index] == "and" and words.texts[max(index - 1, 0)] in HUES
        if not (paired or names_something(words.texts[index])):
            return words.texts[index]
    return ""


def by_grammar(words: Words, tokens: Sequence[Any]) -> Found:
    """Return the nouns that `regulate.nouns` finds with spaCy, with what hangs on each by one of the labels."""
    places = {token.i: index for token in tokens for index, span in enumerate(words.spans) if _lies(token, span)}
    hanging: Found = {}
    for token in tokens:
        if (place := places.get(token.i)) is not None and words.spans[place][1] == token.idx + len(token):
            hanging[place] = {places[other.i] for other in _hanging(token) if other.i in places}
    found: Found = {}
    for first, last in parsed_nouns(words, lambda _: tokens):
        deed = _is_deed(words, last) and (first < last or last - 1 in found)
        noun = last - 1 if deed else last
        modifiers = hanging[noun] | {index for index in hanging[last] if deed and index < noun}
        found[noun] = {i for i in modifiers - {noun} if names_something(words.texts[i]) or words.texts[i] == "very"}
    taken = set().union(*found.values())
    return _mended(words, {noun: modifiers for noun, modifiers in found.items() if noun not in taken})


def _lies(token: Any, span: tuple[int, int]) -> bool:
    return span[0] <= token.idx and token.idx + len(token) <= span[1]


def _hanging(noun: Any) -> Iterator[Any]:
    """Yield the modifiers of a noun: its own, of a relative clause, and of the verb that it is the subject of."""
    for child in noun.children:
        if child.dep_ in LABELS and child.text.lower() not in FUNCTION_WORDS and not _acts(child):
            yield from _chain(child)
        elif child.dep_ == "relcl":
            yield from _said(child)
    subject = noun
    while subject.dep_ == "conj" and subject.head.pos_ in _NOUNS:  # "the cat and the dog are red"
        subject = subject.head
    if subject.dep_ == "nsubj":
        yield from _said(subject.head)


def _said(verb: Any) -> Iterator[Any]:
    """Yield what a verb says of its subject: "is red", "looks old"; not what it denies."""
    if any(child.dep_ == "neg" for child in verb.children):
        return
    for child in verb.children:
        is_colour = child.dep_ == "attr" and child.text.lower() in HUES and not _has_article(child)
        if is_colour or (child.dep_ == "acomp" and child.text.lower() not in FUNCTION_WORDS):
            yield from _chain(child)


def _chain(token: Any) -> Iterator[Any]:
    """Yield a modifier and what hangs on it, but no noun that stands for itself."""
    if token.pos_ in _NOUNS and token.text.lower() not in HUES and _is_apart(token):
        return
    yield token
    for child in token.children:
        if child.dep_ in LABELS or child.dep_ == "conj":
            yield from _chain(child)


def _is_apart(noun: Any) -> bool:
    """Return whether a noun that hangs on another is none of its modifiers: "a giraffe and zebra stand"."""
    if noun.dep_ == "compound" and noun.i + 1 == noun.head.i:  # "the yellow fire hydrant", where "the" hangs on "fire"
        return False
    paired = any(child.dep_ == "conj" and child.pos_ in _NOUNS for child in noun.children)
    return paired or _has_article(noun) or any(_acts(other) for other in noun.head.children if other.i == noun.i + 1)


def _acts(token: Any) -> bool:
    """Return whether a word is what the noun before it does: "a dog touching noses"."""
    return token.tag_ == "VBG" and token.i > 0 and token.nbor(-1).pos_ in _NOUNS


def _has_article(token: Any) -> bool:
    return any(child.dep_ == "det" for child in token.children)


def _mended(words: Words, found: Found) -> Found:
    """Return the modifiers with colours that hang on no noun given to the next noun, or to the one before "is"."""
    taken = set().union(*found.values())
    for index, text in enumerate(words.texts):
        if text not in HUES or index in taken:
            continue
        noun = _described(words, index, found)
        if noun is not None:
            found[noun] |= {index} | found.pop(index, set())
    return found


def _described(words: Words, colour: int, found: Found) -> int | None:
    """Return the noun that the colour belongs to by its place; None where nothing says so."""
    texts = words.texts
    index = colour + 1
    while _listed(words, index):
        if index in found and texts[index] not in HUES:
            return index
        if not (texts[index] == "and" or names_something(texts[index])):
            break
        index += 1
    index = colour
    while words.joined(index) and (texts[index - 1] in HUES or texts[index - 1] == "and"):
        index -= 1
    if not (words.joined(index) and texts[index - 1] in COPULAS):
        return None
    return max((noun for noun in found if noun < index - 1), default=None)


def _listed(words: Words, index: int) -> bool:
    """Return whether at most a comma lies between the word and the one before it."""
    if not 0 < index < len(words.spans):
        return False
    return words.prompt[words.spans[index - 1][1] : words.spans[index][0]].strip() in ("", ",")
