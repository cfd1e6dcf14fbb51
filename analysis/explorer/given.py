"""What a caller gives the explorer, of whatever type, in the form that is kept: whole numbers, pictures as PNG."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

LARGEST = 512  # pixels a side of an image that is sent to the page

Shown = Image.Image | np.ndarray | str | Path


def numbers(images: object) -> list[int]:
    """Return the numbers of images as a list, of one number, a sequence, an array or a column.

    Raises:
        ValueError: there is none, or what is there is no whole number.
    """
    found = np.atleast_1d(np.asarray(images))
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(
            f"images must be whole numbers of the view images, at least one, or None for all, got {images!r}"
        )
    return found.tolist()


def whole(value: object) -> object:
    """Return a number of numpy's, or one like 2.0, as the whole number that it is; anything else as it came."""
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def png(picture: Shown | None) -> bytes:
    """Return a picture as it is sent, no larger than is needed; nothing where there is none.

    Args:
        picture: a file, a PIL image, or an array of height, width and channel: bytes, or floats from 0 to 1, as
            pipelines give them with output_type="np".
    """
    if picture is None:
        return b""
    if isinstance(picture, np.ndarray):
        shares = picture.dtype.kind == "f"
        picture = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8) if shares else picture)
    opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
    small, written = opened.convert("RGB"), io.BytesIO()
    small.thumbnail((LARGEST, LARGEST))
    small.save(written, "PNG")
    return written.getvalue()
