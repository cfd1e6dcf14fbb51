"""The structure of a prompt: which modifiers belong to which noun, and which thing belongs to whom.

Conventions: a word is written as the prompt writes it and as `tracer.words` reads it ("red#2" for the second red);
it keeps its hyphens. Groups, and the modifiers of a group, stand in prompt order; every noun has a group, one
without modifiers too. A noun is its last word, the head: of "a hair dryer" the noun is "dryer", and "hair" is its
modifier, as SynGen has it (`regulate.nouns` takes both for one target).

Source: SynGen (arXiv 2306.08877, section 3) for modifiers, Predicated Diffusion (arXiv 2311.16117) for possession.
Unlike in SynGen's released code, words are told apart by their place, and every noun is looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from warnings import warn

from transformers import PreTrainedTokenizerBase

from regulate.modifiers import COPULAS, NUMBERS, OWNING, by_grammar, by_rule
from regulate.nouns import DETERMINERS, PARSERS, PLACES, VIEWS, Words, english, is_shown, written
from tracer.words import Encoder, place_of, targets_of

WHERE = frozenset(("on", "in", "at", "into", "onto", "inside", "under"))
_RELATIVES = COPULAS | {"that", "who", "which", "and"}
_LEADING = DETERMINERS | NUMBERS | {"some", "very", "and"}


@dataclass(frozen=True)
class Group:
    """A noun of the prompt and the words that say how it is.

    Attributes:
        noun: a word or phrase, as `tracer.words` reads targets.
        modifiers: words or phrases too.
    """

    noun: str
    modifiers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bound:
    """A group as token positions: the noun's, and those of each modifier."""

    noun: tuple[int, ...]
    modifiers: tuple[tuple[int, ...], ...] = ()


def groups_of(prompt: str, parser: str = "auto", shown: bool = False) -> tuple[Group, ...]:
    """Return every noun of the prompt with its modifiers; of a prompt without nouns, none.

    "spacy" takes a noun's children with one of SynGen's labels (amod, nmod, compound, npadvmod, advmod, acomp), what
    hangs on those by such a label or as a second of its kind ("red and blue"), and what stands behind a verb ("the dog
    is red", "a dog that is red"), unless it is denied ("is not red"). "rule" takes the words between the article and
    the noun, and of colours also "red and blue bowl" and "the bowl is red".

    Args:
        prompt: the text as the pipeline gets it, in English.
        parser: "spacy" (the extra ``nouns``), "rule", or "auto": spaCy where it is installed, else the rule, with a
            warning.
        shown: whether to leave out nouns that no image shows ("photo of", "on top of"), as `auto_targets` does.

    Raises:
        ValueError: there is no such parser.
        ImportError: parser is "spacy", and spaCy or an English model of it is not installed.
    """
    if parser not in PARSERS:
        raise ValueError(f"parser must be one of {', '.join(PARSERS)}, got {parser!r}")
    words, missing = Words(prompt), None
    try:
        found = by_rule(words) if parser == "rule" else by_grammar(words, list(english()(prompt)))
    except ImportError as error:
        if parser == "spacy":
            raise
        found, missing = by_rule(words), error
    if missing is not None:
        nouns = ", ".join(words.texts[noun] for noun in sorted(found)) or "no noun"
        warn(f"{missing}; modifiers were guessed by a plain rule, of: {nouns}", stacklevel=2)
    return tuple(
        Group(written(words, (noun, noun)), tuple(written(words, (word, word)) for word in sorted(modifiers)))
        for noun, modifiers in sorted(found.items())
        if not shown or is_shown(words, (noun, noun))
    )


def parser_used(parser: str) -> str:
    """Return the parser that is meant: of "auto" the one that this installation has.

    Raises:
        ValueError: there is no such parser.
    """
    if parser not in PARSERS:
        raise ValueError(f"parser must be one of {', '.join(PARSERS)}, got {parser!r}")
    if parser != "auto":
        return parser
    try:
        english()
    except ImportError:
        return "rule"
    return "spacy"


def owners_of(prompt: str, groups: Sequence[Group]) -> tuple[tuple[str, str], ...]:
    """Return pairs of an owned noun and its owner, as the groups write them.

    Of "a bear with a crown", ("crown", "bear").

    A noun owns the next one if nothing stands between them but one of ``OWNING``, "that is", "who is", determiners,
    numbers and modifiers of the two. In "a man wearing glasses and holding a bag" both belong to the man. What a plain
    rule cannot tell is left out: the dog of "with a crown and a dog", and "a cat on a bed with a hat", see ``WHERE``.

    Raises:
        ValueError: a noun or modifier is not in the prompt.
    """
    words = Words(prompt)
    placed = sorted((_Placed.of(words, group) for group in groups), key=lambda one: one.noun)
    owners: dict[int, int] = {}
    for number in range(1, len(placed)):
        owner, owned = placed[number - 1 : number + 1]
        link = _link(words, owner, owned)
        if link is None:
            continue
        if words.texts[owner.noun[-1] + 1] == "and" and number - 1 in owners:
            owners[number] = owners[number - 1]
        elif not _is_place(words, owner):
            owners[number] = number - 1
    return tuple((placed[owned].text, placed[owner].text) for owned, owner in owners.items())


def bound(
    tokenizer: PreTrainedTokenizerBase | Sequence[Encoder], prompt: str, groups: Sequence[Group]
) -> tuple[Bound, ...]:
    """Return the groups as token positions, in the order given.

    Args:
        tokenizer: see `tracer.words.targets_of`.
        prompt: the text as the pipeline gets it.
        groups: of this prompt; two may share a modifier ("the cat and the dog are red"), but no noun.

    Raises:
        ValueError: a word is not in the prompt, two nouns or two modifiers of one noun are the same, a modifier is
            a part of its noun, or the prompt is longer than the tokenizer's length.
    """
    nouns = targets_of(tokenizer, prompt, [group.noun for group in groups])
    every: list[Bound] = []
    for group, noun in zip(groups, nouns, strict=True):
        modifiers = targets_of(tokenizer, prompt, group.modifiers)
        for modifier in modifiers:
            if set(modifier.positions) & set(noun.positions):
                raise ValueError(f"a modifier must stand outside its noun {noun.text!r}, got {modifier.text!r}")
        every.append(Bound(noun.positions, tuple(modifier.positions for modifier in modifiers)))
    return tuple(every)


@dataclass(frozen=True)
class _Placed:
    """A group by the numbers of its words."""

    noun: list[int]
    modifiers: set[int]
    text: str

    @classmethod
    def of(cls, words: Words, group: Group) -> "_Placed":
        modifiers = {index for modifier in group.modifiers for index in _touched(words, modifier)}
        return cls(_touched(words, group.noun), modifiers, group.noun)


def _touched(words: Words, target: str) -> list[int]:
    """Return the numbers of the words that hold a piece of the target."""
    start, end = place_of(words.prompt, target)
    touched = [index for index, span in enumerate(words.spans) if span[0] < end and span[1] > start]
    if not touched:
        raise ValueError(f"a group must be made of words, got {target!r}")
    return touched


def _link(words: Words, owner: _Placed, owned: _Placed) -> int | None:
    """Return the word that says that the first noun has the second; None where other words stand between them."""
    between = range(owner.noun[-1] + 1, owned.noun[0])
    links = [index for index in between if words.texts[index] in OWNING]
    text = words.prompt[words.spans[owner.noun[-1]][1] : words.spans[owned.noun[0]][0]]
    if len(links) != 1 or any(mark in text for mark in ".;!?"):
        return None
    for index in between:
        allowed = _RELATIVES if index < links[0] else _LEADING
        if not (index == links[0] or index in owner.modifiers | owned.modifiers or words.texts[index] in allowed):
            return None
    return links[0]


def _is_place(words: Words, noun: _Placed) -> bool:
    """Return whether the noun says where something is, or how it is shown: "on the grass", "a photo"."""
    index = noun.noun[0] - 1
    while index >= 0 and (index in noun.modifiers or words.texts[index] in _LEADING):
        index -= 1
    return words.texts[noun.noun[-1]] in VIEWS | PLACES or (index >= 0 and words.texts[index] in WHERE)
