"""Make the emoji world's tokenizer: byte-level BPE in which every word of the captions is one token.

Command: ``python data/emoji/make/tokenizer.py`` (a second). Writes ``data/emoji/sd/tokenizer``, which
transformers' ``CLIPTokenizer`` loads as it loads Stable Diffusion's own.

Conventions: ids 0 to 511 are the bytes and the bytes that end a word, in CLIP's order; then the merges;
then the start token; the end token has the highest id, because OWLv2 and CLIP find the end of a text by
the largest id, and the start token is not 0, because OWLv2 takes a text that begins with 0 for padding.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from tracer.scenes import ANIMALS, COLOURS, OBJECTS

WORLD = Path(__file__).resolve().parent.parent
JOINERS = ("a", "an", "and", "with", "photo", "of", "painting", "in", "on", "the")
WORDS = JOINERS + ANIMALS + OBJECTS + tuple(COLOURS)
MAX_LENGTH = 16  # tokens of a text, the start and end tokens among them
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

Merge = tuple[str, str]


def pieces(word: str, merges: Iterable[Merge]) -> list[str]:
    """Return the pieces that the merges, applied in their order, leave of an ASCII word."""
    parts = [*word[:-1], word[-1] + WORD_END]
    for left, right in merges:
        at = 0
        while at < len(parts) - 1:
            if (parts[at], parts[at + 1]) == (left, right):
                parts[at : at + 2] = [left + right]
            at += 1
    return parts


def merges_of(words: Iterable[str]) -> list[Merge]:
    """Return merges under which each of the words is one piece.

    A merge is only ever added behind the others, and a finished word is put together before it comes to
    the later ones, so no word breaks an earlier one.
    """
    merges: list[Merge] = []
    for word in words:
        while len(parts := pieces(word, merges)) > 1:
            merges.append((parts[0], parts[1]))
    return merges


def vocabulary(merges: Iterable[Merge]) -> dict[str, int]:
    """Return the id of every token: bytes, word-ending bytes, merges, start, end."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + WORD_END for letter in letters), *(a + b for a, b in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}


def build(folder: Path, model_max_length: int = MAX_LENGTH) -> CLIPTokenizer:
    """Write the tokenizer into a folder and return it as loaded from there.

    Args:
        folder: where its files go; made if it is not there.
        model_max_length: length to which texts are padded and cut, in tokens.
    """
    merges = merges_of(WORDS)
    # its type names list[str] for the merges, but only pairs are taken
    tokenizer = CLIPTokenizer(vocabulary(merges), merges, model_max_length=model_max_length)  # pyright: ignore[reportArgumentType]
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json, merges.txt: what transformers 4 reads
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def main() -> None:
    """Build the generator's tokenizer and print its size."""
    tokenizer = build(WORLD / "sd" / "tokenizer")
    print(f"{len(tokenizer)} tokens, start {tokenizer.bos_token_id}, end {tokenizer.eos_token_id}")


if __name__ == "__main__":
    main()
