"""Prompt sets in one form, wherever they come from: prompts, what else is known of each, and a digest.

    prompt_set("attend-and-excite-templates")
    prompt_set("attend-and-excite", path="a.e_prompts.txt")
    prompt_set("coco-layouts", descriptions="testset.pkl", images="testset_layout.tar.gz")
    prompt_set("coco-captions", path="captions_val2014.json", count=3000, seed=0)
    prompt_set("my_prompts.csv", targets="auto")

Conventions: a set's texts are all different, and so are its ids. What is known beside text and targets is kept by the
prompt's text. Targets are what the source names; where it names none, "given" leaves it at that (but for prompts of
Attend-and-Excite's templates, whose nouns are known) and "auto" takes the prompt's nouns, see `regulate.nouns`. The
prompts of others do not come with Attnreg: they are read from files that their user has.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

from analysis.prompts.files import PromptSet, compbench, geneval, namer, prompt_file, remarks
from analysis.prompts.scenes import emoji_scenes
from analysis.prompts.sources import (
    KINDS,
    OFFICIAL_URL,
    benchmark_prompts,
    drawn_texts,
    fetched,
    heads_of,
    is_benchmark,
    is_coco,
    read_json,
    sampled_captions,
)
from metrics.prompt_tables import read_prompt_table
from regulate.layout import layout_of_prompt
from regulate.layout_files import read_coco250
from regulate.method import Given
from tracer.prompts import COLOUR_SEED, TEMPLATES, Prompt, attend_and_excite_templates, load_prompts
from tracer.scenes import ANIMALS, is_seen

SAMPLE_SEED = 2403_06381


def prompt_set(name_or_path: str | Path, title: str = "", **options: Any) -> PromptSet:
    """Return a set by its name, or the one in a file.

    Args:
        name_or_path: one of `known_sets`; or a file: ``.json`` of Attend-and-Excite or COCO captions, ``.jsonl`` (also
            GenEval's), ``.csv``, ``.txt``.
        title: as tables print it, "" for the set's own.
        options: of the set's function, see `known_sets`.

    Raises:
        FileNotFoundError: a file that the set is read from is missing.
        ValueError: there is no such set or option, or what is read is no prompt set.
    """
    make = known_sets().get(str(name_or_path))
    if make is None:
        path = Path(name_or_path)
        if not path.is_file():
            names = ", ".join(known_sets())
            raise ValueError(f"prompts must be a file, or one of {names}, got {str(name_or_path)!r}")
        make, options = _maker(path), {"path": path} | options
    known = signature(make).parameters
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"options of {str(name_or_path)!r} are {', '.join(known)}, got {', '.join(unknown)}")
    if lacking := [name for name, one in known.items() if one.default is one.empty and name not in options]:
        raise ValueError(f"{str(name_or_path)!r} must be given {', '.join(f'{name}=' for name in lacking)}")
    made = make(**options)
    return replace(made, title=title) if title else made


def known_sets() -> dict[str, Callable[..., PromptSet]]:
    """Return the sets that have a name, and the function that makes each."""
    return {
        TEMPLATES: templates,
        "attend-and-excite": attend_and_excite,
        "coco-layouts": coco_layouts,
        "coco-captions": coco_captions,
        "geneval": geneval,
        "t2i-compbench": compbench,
        "emoji-layouts": emoji_layouts,
        "emoji-scenes": emoji_scenes,
    }


def templates(colour_seed: int = COLOUR_SEED) -> PromptSet:
    """Return the 276 prompts of Attend-and-Excite's templates that come with Attnreg, or another draw of their colours.

    Raises:
        ValueError: the seed is negative.
    """
    if colour_seed < 0:
        raise ValueError(f"colour_seed must be 0 or more, got {colour_seed}")
    own = colour_seed == COLOUR_SEED
    prompts = load_prompts(TEMPLATES) if own else attend_and_excite_templates(colour_seed)
    drawn = "" if own else f", colours {colour_seed}"
    name = TEMPLATES + ("" if own else f"-{colour_seed}")
    notes = ("the benchmark's nouns and templates with a draw of colours of our own: 102 texts are the benchmark's",)
    title, source = f"A&E-style (276{drawn})", "templates of arXiv 2301.13826"
    return PromptSet(name, title, prompts, {}, source, notes, _kinds(prompts))


def attend_and_excite(
    path: str | Path | None = None, sha256: str = "", url: str = OFFICIAL_URL, cache: str | Path | None = None
) -> PromptSet:
    """Return the official prompts of Attend-and-Excite, as they are ("a elephant" too).

    Its authors publish no checksum, and none is known here: no copy that is the official file byte for byte could be
    seen when this was written. Its user gives the file, or the SHA-256 of a file that was looked at once, by which it
    is then fetched anywhere.

    Args:
        path: the file; None to fetch it.
        sha256: what the file must have; needed where it is fetched.
        url: where from.
        cache: see `analysis.prompts.sources.fetched`.

    Raises:
        FileNotFoundError: the file is missing or cannot be fetched.
        ValueError: it has another checksum or form, a prompt is not of the benchmark's templates, or neither path
            nor sha256 is given.
    """
    if path is None and not sha256:
        raise ValueError(f"'attend-and-excite' must be given path=, a copy of {url}, or the copy's sha256= to fetch it")
    found = fetched(url, sha256, None if cache is None else Path(cache)) if path is None else Path(path)
    met = hashlib.sha256(found.read_bytes()).hexdigest()
    if sha256 and met != sha256.lower():
        raise ValueError(f"{found} must have the SHA-256 {sha256.lower()}, got {met}")
    prompts = benchmark_prompts(found)
    tags = _kinds(prompts)
    numbers = dict(Counter(tags.values()))
    mended = sum(bool(re.search(r"\ban\b", prompt.text)) for prompt in prompts)
    notes = (f"{mended} texts have 'an', which the official list never has",) if mended else ()
    if numbers != KINDS:
        notes += (f"the official list has {KINDS}, this one {numbers}",)
    return PromptSet("attend-and-excite", "A&E", prompts, {}, f"{found.name}, SHA-256 {met}", notes, tags)


def coco_layouts(descriptions: str | Path, images: str | Path) -> PromptSet:
    """Return DenseDiffusion's 250 prompts of COCO with their layouts; targets are the heads of what they describe.

    Which words are targets was never published; see `analysis.prompts.sources.heads_of`. The masks of the whole set
    take 200 MB.

    Args:
        descriptions: see `regulate.layout_files.read_coco250`.
        images: likewise.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is of another form, or a description is not in its caption.
    """
    with catch_warnings(record=True) as left_out:
        simplefilter("always")
        laid = list(read_coco250(Path(descriptions), Path(images)))
    prompts = [
        Prompt(f"coco-{one.id:0>3}", one.caption, heads_of(one.caption, one.layout.phrases), "coco-layouts")
        for one in laid
    ]
    given = {one.caption: Given(layout=one.layout) for one in laid}
    source = "DenseDiffusion's set, arXiv 2308.12964; captions of MS-COCO"
    notes = ("targets are the head nouns of the described segments, found by a plain rule",)
    notes += tuple(str(warning.message) for warning in left_out)
    return PromptSet("coco-layouts", "COCO", tuple(prompts), given, source, notes)


def coco_captions(
    path: str | Path, count: int = 3000, seed: int = SAMPLE_SEED, targets: str = "given", parser: str = "auto"
) -> PromptSet:
    """Return a sample of COCO's captions, each of another photograph, whose file is in the metadata ("file").

    Args:
        path: see `analysis.prompts.sources.sampled_captions`.
        count: likewise.
        seed: likewise.
        targets: "given" for none, as FID and CLIP scores need none, or "auto".
        parser: see `regulate.nouns.auto_targets`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as in `analysis.prompts.sources.sampled_captions`, or an option is unknown.
    """
    path, found = Path(path), namer(targets, parser)
    sample = sampled_captions(path, count, seed)
    prompts = [Prompt(f"{one.image_id:012}", one.caption, found(one.caption), "coco-captions") for one in sample]
    metadata = {one.caption: {"file": one.file, "image_id": one.image_id} for one in sample}
    source = f"{path.name}: {count} photographs, a caption each, drawn with seed {seed}"
    notes = remarks(prompts, targets, parser)
    return PromptSet(
        f"coco-captions-{count}", f"COCO captions ({count:,})", tuple(prompts), {}, source, notes, {}, metadata
    )


def emoji_layouts(count: int = 250, seed: int = SAMPLE_SEED) -> PromptSet:
    """Return prompts of the emoji world with layouts, where COCO's cannot be drawn.

    Two things each, as in Attend-and-Excite's templates, every object in a colour; and, as in DenseDiffusion's set,
    three in 7 of 250. None is a prompt of `templates`. A smaller set is the beginning of a larger one. The tag is the
    kind; held-out pairs have "seen" false in the metadata.

    Args:
        count: 1 to 5,000.
        seed: of words, colours and places, 0 or more.

    Raises:
        ValueError: count or seed is out of its range.
    """
    drawn = drawn_texts(count, seed)
    prompts = [Prompt(f"layout-{n:04}", text, words, "emoji-layouts") for n, (text, words) in enumerate(drawn.items())]
    given = {text: Given(layout=layout_of_prompt(text, words, seed)) for text, words in drawn.items()}
    tags = {text: _kind(words) for text, words in drawn.items()}
    metadata = {text: {"seen": is_seen(words)} for text, words in drawn.items()}
    unseen = sum(not about["seen"] for about in metadata.values())
    notes = (
        "emoji world: prompts and layouts are drawn for it, and compare with no paper's",
        f"{unseen} of {count} prompts hold a pair of things that no training scene shows",
    )
    source = f"the emoji world's words and places, drawn with seed {seed}"
    title = f"Emoji layouts ({count})"
    return PromptSet(f"emoji-layouts-{count}", title, tuple(prompts), given, source, notes, tags, metadata)


def _maker(path: Path) -> Callable[..., PromptSet]:
    """Return the function that reads a file of this form; Attend-and-Excite's own is JSON, and named ``.txt``."""
    kind = path.suffix.lower()
    if kind == ".jsonl" and all("include" in row.metadata for row in read_prompt_table(path).rows):
        return geneval
    if kind == ".json" or (kind == ".txt" and path.read_text(encoding="utf-8-sig").lstrip().startswith("{")):
        found = read_json(path)
        if is_benchmark(found):
            return attend_and_excite
        if is_coco(found):
            return coco_captions
        raise ValueError(f"{path} must be Attend-and-Excite's prompts or COCO's captions, got JSON {str(found)[:80]}")
    return prompt_file


def _kinds(prompts: Sequence[Prompt]) -> dict[str, str]:
    return {prompt.text: prompt.id.rpartition("-")[0] for prompt in prompts}


def _kind(words: Sequence[str]) -> str:
    animals = sum(word in ANIMALS for word in words)
    return "three" if len(words) == 3 else ("objects", "animals_objects", "animals")[animals]
