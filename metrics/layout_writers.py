"""Pictures and their scores written in the layouts of GenEval and Attend-and-Excite, for those projects' own scripts.

Conventions:
    A folder holds one method's pictures, is new or empty before, and appears whole or not at all. Image files are
    copied byte for byte where the other project reads their kind, else written as PNG.
    A picture without a seed gets the lowest number that is free among its prompt's.
    prompts.jsonl, in the form of `tracer.prompts`, keeps ids and targets, which neither layout has a place for.
    Results are keyed by the pictures' own paths, the ones that they were read from.
Files:
    geneval            <number>/metadata.jsonl, <number>/samples/<seed>.png; results.jsonl, and summary.txt with
                       what ``summary_scores.py`` prints.
    attend-and-excite  <folder>/<seed>.png; prompts.json with each folder's prompt, clip_raw_metrics.json and
                       clip_aggregated_metrics.json. A prompt that is no safe name gets a folder named after its
                       beginning and its hash.
Source: djghosh13/geneval ``evaluation/``; yuval-alaluf/Attend-and-Excite ``metrics/compute_clip_similarity.py``.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from metrics.layout_files import copied, folder_names, grouped, numbered, prompts_of, whole_folder
from metrics.layouts import FOLDER_NAMES
from metrics.pictures import Picture
from tracer.prompts import save_prompts

PROMPTS, RESULTS, SUMMARY = "prompts.jsonl", "results.jsonl", "summary.txt"
RAW, AGGREGATED = "clip_raw_metrics.json", "clip_aggregated_metrics.json"
_RESERVED = ("samples", FOLDER_NAMES, PROMPTS, RAW, AGGREGATED)
Result = TypeVar("Result")


@dataclass(frozen=True)
class GenevalResult:
    """Whether an image is what its prompt asks for, why not, and the boxes found, by class."""

    correct: bool
    reason: str = ""
    boxes: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ClipResult:
    """Cosines of an image with its prompt, and with the prompt's halves; None if it has no "and" or "with"."""

    full_text: float
    first_half: float | None = None
    second_half: float | None = None


def write_geneval(root: Path, pictures: Sequence[Picture], results: Mapping[Path, GenevalResult] | None = None) -> None:
    """Write pictures, and what was found in them, as GenEval has them.

    Args:
        root: the folder to make.
        pictures: of one method. Their metadata's "include" is kept, else each target is to be there once.
        results: of every picture.

    Raises:
        ValueError: the folder is not empty, the pictures do not make one method's folder, targets are not the classes
            of "include", or a picture has no result.
    """
    groups = grouped(pictures, lambda picture: picture.prompt_id)
    metadata = [_metadata(group) for group in groups]
    rows = []
    with whole_folder(root) as partial:
        for number, (group, facts) in enumerate(zip(groups, metadata, strict=True)):
            samples = Path(f"{number:05}", "samples")
            (partial / samples).mkdir(parents=True)
            (partial / samples.parent / "metadata.jsonl").write_text(json.dumps(facts), encoding="utf-8")
            for picture, seed in numbered(group):
                name = copied(picture, partial / samples, f"{seed:05}", (".png",))
                if results is not None:
                    rows.append(_geneval_row(str(root / samples / name), facts, _result(results, picture)))
        save_prompts(partial / PROMPTS, prompts_of(groups))
        if results is not None:
            lines = [json.dumps(row, separators=(",", ":"), allow_nan=False) for row in rows]
            (partial / RESULTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
            (partial / SUMMARY).write_text(geneval_summary(rows), encoding="utf-8")


def geneval_summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what GenEval prints of the rows of a results.jsonl.

    Source: djghosh13/geneval ``evaluation/summary_scores.py``.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("rows must hold at least one image, got none")
    prompts, tasks = defaultdict(list), defaultdict(list)
    for row in rows:
        prompts[row["metadata"]].append(row["correct"])
        tasks[row["tag"]].append(row["correct"])
    shares = {tag: np.mean(correct) for tag, correct in tasks.items()}
    return "\n".join(
        [
            "Summary",
            "=======",
            f"Total images: {len(rows)}",
            f"Total prompts: {len(prompts)}",
            f"% correct images: {np.mean([row['correct'] for row in rows]):.2%}",
            f"% correct prompts: {np.mean([any(correct) for correct in prompts.values()]):.2%}",
            "",
            "Task breakdown",
            "==============",
            *(f"{tag:<16} = {shares[tag]:.2%} ({sum(tasks[tag])} / {len(tasks[tag])})" for tag in tasks),
            "",
            f"Overall score (avg. over tasks): {np.mean(list(shares.values())):.5f}",
            "",
        ]
    )


def write_attend_and_excite(
    root: Path, pictures: Sequence[Picture], clip: Mapping[Path, ClipResult] | None = None
) -> None:
    """Write pictures, and their CLIP scores, as Attend-and-Excite has them.

    Prompts that have no halves are left out of both files of scores, as in its own script.

    Args:
        root: the folder to make.
        pictures: of one method.
        clip: of every picture.

    Raises:
        ValueError: the folder is not empty, the pictures do not make one method's folder, a picture has no result, or
            no prompt has halves.
    """
    groups = grouped(pictures, lambda picture: picture.prompt)
    folders = folder_names((group[0].prompt for group in groups), _RESERVED)
    raw = {}
    with whole_folder(root) as partial:
        for group in groups:
            prompt = group[0].prompt
            folder = partial / folders[prompt]
            folder.mkdir()
            seeded = numbered(group)
            names = [copied(picture, folder, str(seed), (".png", ".jpg")) for picture, seed in seeded]
            if clip is not None:
                scores = [_result(clip, picture) for picture, _ in seeded]
                raw |= _clip_entry(prompt, names, scores)
        _write_json(partial / FOLDER_NAMES, {name: prompt for prompt, name in folders.items()})
        save_prompts(partial / PROMPTS, prompts_of(groups))
        if clip is not None:
            _write_json(partial / RAW, raw)
            _write_json(partial / AGGREGATED, _clip_means(raw))


def _metadata(group: Sequence[Picture]) -> dict[str, Any]:
    """Return what GenEval's metadata.jsonl says of a prompt."""
    found = [_facts(picture) for picture in group]
    if any(facts != found[0] for facts in found):
        raise ValueError(f"metadata must be one prompt's, got several for {group[0].prompt_id!r}")
    return found[0]


def _facts(picture: Picture) -> dict[str, Any]:
    include = [{"class": target, "count": 1} for target in picture.targets]
    facts = {"tag": picture.tag, "include": include, "prompt": picture.prompt}
    if "include" not in picture.metadata:
        return facts
    classes = tuple(dict.fromkeys(item["class"] for item in picture.metadata["include"]))
    if classes != picture.targets:
        raise ValueError(f"targets must be the classes of include, got {picture.targets} and {classes}")
    return {**picture.metadata, "tag": picture.tag, "prompt": picture.prompt}


def _geneval_row(filename: str, facts: dict[str, Any], result: GenevalResult) -> dict[str, Any]:
    boxes = {name: [list(map(float, box)) for box in found] for name, found in result.boxes.items()}
    return {
        "filename": filename,
        "tag": facts["tag"],
        "prompt": facts["prompt"],
        "correct": result.correct,
        "reason": result.reason,
        "metadata": json.dumps(facts),
        "details": json.dumps(boxes, allow_nan=False),
    }


def _result(results: Mapping[Path, Result], picture: Picture) -> Result:
    if picture.path not in results:
        raise ValueError(f"results must hold every picture, got none for {picture.path}")
    return results[picture.path]


def _clip_entry(prompt: str, names: list[str], scores: Sequence[ClipResult]) -> dict[str, dict[str, list[Any]]]:
    columns = {name: [getattr(score, name) for score in scores] for name in ("full_text", "first_half", "second_half")}
    missing = [score.first_half is None or score.second_half is None for score in scores]
    if all(missing):
        return {}
    if any(missing):
        raise ValueError(f"halves must be scored for every picture of a prompt or for none, got some of {prompt!r}")
    return {prompt: {name: list(map(float, values)) for name, values in columns.items()} | {"image_names": names}}


def _clip_means(raw: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, float]:
    """Return the means over all images, also if prompts have different numbers of them."""
    if not raw:
        raise ValueError("clip must hold halves of at least one prompt, got none")
    full = [score for entry in raw.values() for score in entry["full_text"]]
    halves = [pair for entry in raw.values() for pair in zip(entry["first_half"], entry["second_half"], strict=True)]
    return {
        "full_text_aggregation": float(np.average(full)),
        "min_first_second_aggregation": float(np.average([min(pair) for pair in halves])),
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, sort_keys=True, indent=4, allow_nan=False), encoding="utf-8")
