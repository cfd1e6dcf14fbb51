"""Where the files that come with Attnreg lie, in a checkout and in an installed wheel alike."""

from importlib.resources import files
from pathlib import Path


def shipped(name: str) -> Path:
    """Return the folder ``data/<name>`` that came with this installation.

    Raises:
        FileNotFoundError: it is neither inside the installed package nor beside it in a checkout.
    """
    package = Path(str(files("tracer")))
    for folder in (package / "data" / name, package.parent / "data" / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"data/{name} came with neither the wheel nor the checkout at {package.parent}")


def emoji_world() -> Path:
    """Return the folder of the emoji world: its atlas, generator and evaluators."""
    return shipped("emoji")


def sql_of(name: str) -> str:
    """Return the text of one of the tracer's own SQL files."""
    return (files("tracer") / f"{name}.sql").read_text(encoding="utf-8")
