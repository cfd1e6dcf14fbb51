"""Prompts, taps and whole traces made of random numbers, for what is tested without a model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tracer.capture import Capture
from tracer.record import Recorder
from tracer.rows import RunRow, SampleRow
from tracer.store import Store
from tracer.tap import Edited, Tap
from tracer.words import Target, Token

LAYERS = ("down_blocks.0.attn2", "mid_block.attn2", "up_blocks.1.attn2")
EXACT = Capture(tokens="all", precision="float32")
BOTH = replace(EXACT, branches=("cond", "uncond"))
HALVES = {True: ("uncond", "cond"), False: ("cond",)}  # by whether the batch is guided
Sizes = Sequence[tuple[int, int, int]]


def tokens_of(words: str, length: int) -> tuple[Token, ...]:
    """Return the sequence of a prompt whose words' pieces are parted by "|": "a hip|po"."""
    tokens = [Token(0, 0, "<s>", "sos", None, None)]
    for number, word in enumerate(words.split()):
        for piece in word.split("|"):
            tokens.append(Token(len(tokens), 9, piece, "word", word.replace("|", ""), number))
    tokens.append(Token(len(tokens), 1, "</s>", "eos", None, None))
    tokens += [Token(i, 1, "</s>", "pad", None, None) for i in range(len(tokens), length)]
    return tuple(tokens)


def texts_of(*prompts: str, length: int = 8, both: bool = False) -> dict[str, list[tuple[Token, ...]]]:
    """Return the sequences of some prompts, and of as many empty negative ones."""
    texts = {"cond": [tokens_of(prompt, length) for prompt in prompts]}
    return texts | ({"uncond": [tokens_of("", length)] * len(prompts)} if both else {})


def maps_of(store: Store, run_id: int, sample: int, layer: int | str, tokens: Sequence[int], **where) -> np.ndarray:
    """Return the summed maps of some tokens at one layer, "step head height width"."""
    return sum(store.maps((run_id, sample), token, layers=layer, **where)[:, 0] for token in tokens)


def sample_of(number: int, words: str, targets: str = "") -> SampleRow:
    """Return a sample whose targets are some of its words, written like them."""
    tokens = tokens_of(words, 0)
    found = [
        Target(name, tuple(token.index for token in tokens if token.word == name.replace("|", "")))
        for name in targets.split()
    ]
    return SampleRow(number, words.replace("|", ""), seed=number, targets=tuple(found))


@dataclass(frozen=True)
class Traced:
    """A run that was recorded from random queries and keys."""

    run_id: int
    taps: dict[tuple[int, int], Tap]  # (call, layer)
    edits: dict[tuple[int, int], Edited]

    def probs(self, call: int, layer: int, row: int) -> Tensor:
        """Return one batch row's own probabilities, "head pixel token"."""
        return self.taps[call, layer].probs(slice(row, row + 1))[0]


@dataclass(frozen=True)
class Setting:
    """What is recorded: prompts (pieces parted by "|"), their targets, the layers' (height, width, heads)."""

    prompts: tuple[str, ...] = ("a cat and hip|po",)
    targets: tuple[str, ...] = ("",)
    sizes: Sizes = ((4, 3, 2), (2, 2, 3))
    calls: int = 2
    length: int = 8
    capture: Capture = EXACT
    guided: bool = True
    edit: slice | None = None
    seed: int = 0


def tap_of(setting: Setting, call: int, layer: int, sharpness: float = 2.0) -> Tap:
    """Return random attention at one site: batch [unconditional, conditional] or conditional only."""
    height, width, heads = setting.sizes[layer]
    generator = torch.Generator().manual_seed(hash((setting.seed, call, layer)))
    batch = len(setting.prompts) * (2 if setting.guided else 1)
    query = torch.randn(batch, heads, height * width, 4, generator=generator) * sharpness
    key = torch.randn(batch, heads, setting.length, 4, generator=generator) * sharpness
    return Tap(LAYERS[layer], call, height, width, query, key, key.clone(), 0.5)


def record(store: Store, setting: Setting) -> Traced:
    """Record a run as `setting` says."""
    recorder = Recorder(store, setting.capture)
    samples = [sample_of(i, *both) for i, both in enumerate(zip(setting.prompts, setting.targets, strict=True))]
    texts = texts_of(*setting.prompts, length=setting.length, both="uncond" in setting.capture.branches)
    taps: dict[tuple[int, int], Tap] = {}
    edits: dict[tuple[int, int], Edited] = {}
    run_id = recorder.begin(RunRow("random"), samples, texts, LAYERS[: len(setting.sizes)])
    for call in range(setting.calls):
        recorder.call(call, 1000.0 - call, 1.0 / (call + 1), halves=HALVES[setting.guided])
        for layer in range(len(setting.sizes)):
            tap = taps[call, layer] = tap_of(setting, call, layer)
            if setting.edit is not None:
                edits[call, layer] = Edited(setting.edit, tap.probs(setting.edit).roll(1, -1) * 0.5)
            recorder(tap, edits.get((call, layer)))
    recorder.end()
    return Traced(run_id, taps, edits)


@pytest.fixture
def store(tmp_path: Path):
    """An empty store."""
    with Store.create(tmp_path / "trace.duckdb") as store:
        yield store


@pytest.fixture(scope="module")
def long_store(tmp_path_factory: pytest.TempPathFactory):
    """A store for the many runs of a property test."""
    with Store.create(tmp_path_factory.mktemp("long") / "trace.duckdb") as store:
        yield store


@pytest.fixture(scope="session")
def bench() -> SimpleNamespace:
    """The functions and classes of this file, which a test cannot import."""
    return SimpleNamespace(
        LAYERS=LAYERS,
        EXACT=EXACT,
        BOTH=BOTH,
        Setting=Setting,
        record=record,
        sample_of=sample_of,
        tap_of=tap_of,
        tokens_of=tokens_of,
        texts_of=texts_of,
        maps_of=maps_of,
    )
