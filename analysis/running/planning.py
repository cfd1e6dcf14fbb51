"""The prompts of a part: a set by name, a file, or written out."""

from pathlib import Path

from analysis.experiments.experiment import Part
from analysis.prompts.sets import PromptSet, prompt_set


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
