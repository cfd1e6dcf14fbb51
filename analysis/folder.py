"""An output folder that is there whole or not at all."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

MARK = "made-by.json"  # tells our own folders from anybody else's


def check_replaceable(out: Path, maker: str) -> None:
    """Refuse to put anything in the place of what is at `out`.

    Raises:
        ValueError: there is a file, or a folder that holds something and was not made by `maker`.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"the output must be a folder, {out} is a file")
    if any(out.iterdir()) and not _made_by(out, maker):
        raise ValueError(f"folder {out} holds something else than a former {maker}; give another folder or empty it")


@contextmanager
def whole_folder(out: Path, maker: str) -> Iterator[Path]:
    """Yield a draft folder that takes the place of `out` when the block ends well, and else disappears.

    A former folder of the same maker is replaced; until then it stays as it was.

    Raises:
        ValueError: `out` must not be replaced, see `check_replaceable`; nothing is written then.
    """
    out = out.resolve()
    check_replaceable(out, maker)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft, former = (out.with_name(f".{out.name}.{uuid4().hex[:8]}.{kind}") for kind in ("draft", "former"))
    draft.mkdir()
    try:
        (draft / MARK).write_text(json.dumps({"made_by": maker}) + "\n")
        yield draft
        check_replaceable(out, maker)  # somebody may have put something there meanwhile
        if out.exists():
            out.rename(former)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


def _made_by(folder: Path, maker: str) -> bool:
    try:
        return json.loads((folder / MARK).read_text()) == {"made_by": maker}
    except (OSError, ValueError):
        return False
