"""The prompts of a part: a set by name, a file, or written out; and the images that its own are compared with."""

from pathlib import Path

from analysis.experiments.experiment import Experiment, Part
from analysis.prompts.scenes import draw_scenes
from analysis.prompts.sets import PromptSet, prompt_set

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
