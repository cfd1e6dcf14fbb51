"""From words to token positions: the one place that knows how a prompt's words lie in its tokens.

Conventions: positions count from 0 over the text encoder's whole sequence, start token included. Words
count from 0 over the prompt; punctuation is a word too. Upper and lower case do not matter. A target is
a word ("glasses"), a phrase ("pink apple"), or a pair of character offsets ``(start, end)``, end
exclusive; it stands for every token that holds a piece of it. Of a word that is repeated the first is
meant; ``"cat#2"`` is the second, counted from 1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

Kind = Literal["sos", "word", "eos", "pad", "padsum", "image"]
Span = tuple[int, int]

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]+")
_REPEAT = re.compile(r"(?P<text>.+)#(?P<number>\d+)", re.DOTALL)
_LETTER = r"[\w\u0300-\u036f]"  # a combining accent belongs to its word, though it is no letter


@dataclass(frozen=True)
class Token:
    """One position of the text encoder's sequence."""

    index: int
    token_id: int | None  # None for what is recorded beside the tokens: a sum of them, or the image's share
    piece: str  # as the tokenizer writes it, "cat</w>"
    kind: Kind
    word: str | None  # as the prompt writes it, "Cat"; None for start, end and padding
    word_index: int | None
    encoder: str = ""  # of a model with several text encoders in one sequence, "clip" or "t5"


@dataclass(frozen=True)
class Encoder:
    """A text encoder's part of the sequence that the model sees.

    Attributes:
        tokenizer: a fast one, which knows where in the prompt each token lies.
        length: tokens of this part, padding included; None for the tokenizer's own.
        name: where there are several.
        cut: whether a prompt that is too long loses its end here (another encoder has all of it).
    """

    tokenizer: PreTrainedTokenizerBase
    length: int | None = None
    name: str = ""
    cut: bool = False

    @property
    def limit(self) -> int:
        """Tokens of this part."""
        return self.tokenizer.model_max_length if self.length is None else self.length


@dataclass(frozen=True)
class Target:
    """A word or phrase of the prompt, as it was asked for, and the positions of its tokens."""

    text: str
    positions: tuple[int, ...]


def tokens_of(tokenizer: PreTrainedTokenizerBase, prompt: str) -> tuple[Token, ...]:
    """Return the whole sequence that the text encoder sees, padding included.

    Raises:
        ValueError: the prompt is longer than the tokenizer's length, or the tokenizer has no offsets.
    """
    return sequence_of([Encoder(tokenizer)], prompt)


def sequence_of(encoders: Sequence[Encoder], prompt: str) -> tuple[Token, ...]:
    """Return the whole sequence that the model sees: each encoder's tokens, padding included, one after the other.

    A word has one number, and the tokens of all encoders. Only an encoder's first end token is of kind "eos": SD 1.x
    pads with the same id, SD 2.x with 0, which is "!".

    Raises:
        ValueError: the prompt is longer than an encoder's part that must not cut it, or a tokenizer has no offsets.
    """
    spans = [_spans(encoder, prompt) for encoder in encoders]
    every = sorted({span for part in spans for span in part if span is not None})
    words = dict(zip(every, _words(prompt, every), strict=True))
    tokens: list[Token] = []
    for encoder, part in zip(encoders, spans, strict=True):
        options = {"padding": "max_length", "max_length": encoder.limit, "truncation": encoder.cut}
        ids = list(encoder.tokenizer(prompt, **options)["input_ids"])
        for place, (token_id, piece) in enumerate(zip(ids, encoder.tokenizer.convert_ids_to_tokens(ids), strict=True)):
            number, word, kind = None, None, "pad"
            if place < len(part) and (span := part[place]) is not None:
                (number, word), kind = words[span], "word"
            elif place < len(part):
                kind = "sos" if place == 0 and token_id == encoder.tokenizer.bos_token_id else "eos"
            tokens.append(Token(len(tokens), token_id, piece, kind, word, number, encoder.name))
    return tuple(tokens)


def positions_of(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str | Span) -> tuple[int, ...]:
    """Return the positions of the tokens that hold a piece of the target, in order.

    Args:
        tokenizer: a fast one, which knows where in the prompt each token lies.
        prompt: the text as the pipeline gets it.
        target: word, phrase, "word#2" for the second of its kind, or character offsets.

    Raises:
        ValueError: the target is not in the prompt (a part of a longer word is not), or the prompt is
            longer than the tokenizer's length.
    """
    return _positions([Encoder(tokenizer)], prompt, target)


def targets_of(
    tokenizer: PreTrainedTokenizerBase | Sequence[Encoder], prompt: str, targets: Sequence[str | Span]
) -> tuple[Target, ...]:
    """Return the targets with their positions, in the order asked for.

    Args:
        tokenizer: of the text encoder, or all encoders whose tokens the model sees, see `sequence_of`.
        prompt: the text as the pipeline gets it.
        targets: see `positions_of`.

    Raises:
        ValueError: a target is not in the prompt, two of them are the same tokens, or the prompt is
            longer than the tokenizer's length.
    """
    encoders = tokenizer if isinstance(tokenizer, Sequence) else [Encoder(tokenizer)]
    found: list[Target] = []
    for target in targets:
        text = target if isinstance(target, str) else prompt[slice(*target)]
        new = Target(text, _positions(encoders, prompt, target))
        for other in found:
            if other.positions == new.positions:
                raise ValueError(
                    f"targets must be different words, got {other.text!r} and {new.text!r} for the same"
                    f" tokens; a repeated word's second is written '{new.text}#2'"
                )
        found.append(new)
    return tuple(found)


def _positions(encoders: Sequence[Encoder], prompt: str, target: str | Span) -> tuple[int, ...]:
    every = [_spans(encoder, prompt) for encoder in encoders]
    start, end = place_of(prompt, target) if isinstance(target, str) else _checked(prompt, target)
    positions: list[int] = []
    offset = 0
    for encoder, spans in zip(encoders, every, strict=True):
        hit = (i for i, span in enumerate(spans) if span is not None and span[0] < end and span[1] > start)
        positions += [offset + i for i in hit]
        offset += encoder.limit
    return tuple(positions)


def _spans(encoder: Encoder, prompt: str) -> list[Span | None]:
    """Return each token's place in the prompt, padding left out; None for start and end."""
    tokenizer, limit = encoder.tokenizer, encoder.limit
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer must be a fast one, with offsets, got {type(tokenizer).__name__}")
    encoded = tokenizer(prompt, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    marked = zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    spans: list[Span | None] = [None if special else (start, end) for (start, end), special in marked]
    if len(spans) <= limit:
        return spans
    room = limit - (1 if spans[-1] is None else 0)  # a cut text still gets its end token
    if encoder.cut:
        return spans[:room] + spans[-1:] * (limit - room)
    every = [span for span in spans if span is not None]
    words = dict(zip(every, _words(prompt, every), strict=True))
    cut = dict(words[span] for span in spans[room:] if span is not None)
    raise ValueError(
        f"the prompt must fit into {limit} tokens, got {len(spans)} with start and end;"
        f" these words would be cut: {', '.join(cut.values())}"
    )


def _words(prompt: str, spans: Sequence[Span]) -> list[tuple[int, str]]:
    """Return number and text of the word that each span belongs to; spans lie in the order of the prompt."""
    starts = [match.start() for match in _WORD.finditer(prompt)]
    numbers: list[int] = []
    reach: list[Span] = []  # of every word so far; a token that bridges two of them makes them one
    for start, end in spans:
        previous = reach[-1][1] if reach else 0
        if not reach or any(previous <= at < end for at in starts):
            reach.append((start, end))
        else:
            reach[-1] = (reach[-1][0], max(previous, end))
        numbers.append(len(reach) - 1)
    return [(n, prompt[slice(*reach[n])].strip()) for n in numbers]


def place_of(prompt: str, target: str) -> Span:
    """Return where the target stands in the prompt, as a whole word or phrase; "cat#2" is the second cat.

    Raises:
        ValueError: it is not there; the words that are are named.
    """
    text, number = target, 1
    places = places_of(prompt, text)
    repeat = _REPEAT.fullmatch(target)
    if not places and repeat:  # a prompt may itself say "#2": then the whole text was found above
        text, number = repeat["text"], int(repeat["number"])
        places = places_of(prompt, text)
    if not places:
        words = ", ".join(match[0] for match in _WORD.finditer(prompt) if match[0][0].isalnum())
        raise ValueError(f"target {text!r} is not in the prompt; words are {words}")
    if not 1 <= number <= len(places):
        raise ValueError(f"target {target!r} must name one of the {len(places)} {text!r} in the prompt")
    return places[number - 1]


def places_of(prompt: str, text: str) -> list[Span]:
    """Return where a word or phrase stands in the prompt, whatever its case and white space; no part of a word does."""
    parts = text.split()
    if not parts:
        return []
    pattern = r"\s+".join(re.escape(part) for part in parts)
    before = rf"(?<!{_LETTER})" if re.match(r"\w", parts[0]) else ""
    after = rf"(?!{_LETTER})" if re.search(r"\w$", parts[-1]) else ""
    return [match.span() for match in re.finditer(before + pattern + after, prompt, re.IGNORECASE)]


def _checked(prompt: str, span: Span) -> Span:
    start, end = span
    size = len(prompt)
    if not (0 <= start < end <= size and prompt[start:end].strip()):
        raise ValueError(f"target must be offsets of text in the {size} characters of the prompt, got {span}")
    return span
