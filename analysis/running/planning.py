"""What must be there: the prompts of a part, by name, from a file, or written out; reference images; who judges."""

from collections.abc import Sequence
from pathlib import Path

from analysis.experiments.experiment import Experiment, Part
from analysis.prompts.scenes import draw_scenes
from analysis.prompts.sets import PromptSet, prompt_set
from analysis.running.units import Planned
from analysis.score_folders import chosen_protocols, reference_pictures
from metrics.evaluators import evaluator
from metrics.pictures import Picture

SCENES = "emoji-scenes"  # as a reference: the pictures of the prompt set of this name


def reference_of(experiment: Experiment, data: Path, run: Path) -> Path | None:
    """Return the folder of the images that sets are compared with; see `draw_reference` for the emoji world's.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not experiment.reference:
        return None
    if experiment.reference == SCENES:
        return run / "reference"
    folder = data / experiment.reference
    if not folder.is_dir():
        raise FileNotFoundError(f"{experiment.name} compares with the images in {folder}, which is no folder")
    return folder


def draw_reference(experiment: Experiment, run: Path) -> None:
    """Draw the emoji world's reference images into the run's folder, those that are not there yet."""
    if experiment.reference == SCENES:
        draw_scenes(run / "reference")


def prompts_of(part: Part, data: Path) -> PromptSet:
    """Return a part's prompt set.

    Args:
        part: whose prompts.
        data: folder of the files that the set is read from.

    Raises:
        FileNotFoundError: a file is missing; says where it was looked for.
        ValueError: there is no such set, or its files are of another form.
    """
    if not isinstance(part.prompts, str):
        return PromptSet(part.name, part.title, part.prompts, source=", ".join({p.source: None for p in part.prompts}))
    files = {option: data / name for option, name in part.files.items()}
    if absent := [path for path in files.values() if not path.exists()]:
        raise FileNotFoundError(
            f"{part.title} needs {', '.join(map(str, absent))}; --data says in which folder they are"
        )
    return prompt_set(part.prompts, title=part.title, **dict(part.options), **files)


def check_scoring(experiment: Experiment, parts: Sequence[Planned], reference: Path | None) -> None:
    """Refuse an experiment whose images could not be scored here, before they are made.

    Args:
        experiment: says under which protocols.
        parts: of it.
        reference: from `reference_of`.

    Raises:
        FileNotFoundError: a checkpoint is not on this machine; says what to download.
        ValueError: a protocol is unknown or of the other world, a checkpoint is another one than its protocol says, or
            an image that prompts name is not among the reference images.
    """
    for protocol in chosen_protocols(experiment.protocols, experiment.world, sets=reference is not None):
        evaluator(protocol)
    if reference and experiment.reference != SCENES:
        for one in parts:
            references(one, reference)


def references(one: Planned, folder: Path) -> list[Picture]:
    """Return the images of a folder that the prompts' metadata names, or all of them if it names none.

    Raises:
        ValueError: one that is named is not there.
    """
    chosen = {cell.prompt.text for cell in one.cells}
    named = {str(about["file"]) for text, about in one.prompts.metadata.items() if text in chosen and "file" in about}
    found = [picture for picture in reference_pictures(folder) if not named or picture.path.name in named]
    if lacking := sorted(named - {picture.path.name for picture in found}):
        raise ValueError(f"{folder} must hold the prompts' images, got no {lacking[0]} and {len(lacking) - 1} others")
    return found
