"""One image file as the RGB picture that its maker saw, or an error that names the file.

Conventions:
    What comes back is a PIL image of mode RGB, 8 bits a channel; notes say what had to be changed on the way, so that
    nobody compares two pictures of which one was silently altered.
    Alpha that hides nothing is dropped. What is transparent is shown on white, with a note.
    16 bits a channel become round(value / 257), with a note: PIL alone clips grey ones to white, floors coloured ones.
    EXIF orientation is applied; of an animation the first frame is taken; colour profiles are not applied.
    Only the formats in `FORMATS` are tried, whatever a file is called: PIL would run Ghostscript for others.
    The filters of warnings, and PIL's switch for truncated files, belong to the process: for several threads at once,
    enter `strictly` around them and call `read` in each.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer
from PIL import Image, ImageFile, ImageOps
from torchvision.io import ImageReadMode, decode_image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 8192 * 8192  # more is taken for a decompression bomb
ORIENTATION = 0x0112
DEEP = ("I", "F")  # 32 bits, whose white point no file names


class BadImage(ValueError):
    """A file that is no image, or of which no honest RGB picture can be made."""


@dataclass(frozen=True)
class Decoded:
    """A picture, and what was changed in it so that it is 8-bit RGB."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def decode(path: Path) -> Decoded:
    """Return a file's picture, read whole.

    Raises:
        BadImage: the file is missing, empty, truncated, too large, of no known format, or of 32 bits a channel.
    """
    with strictly():
        return read(path)


def read(path: Path) -> Decoded:
    """Return the same inside a block of `strictly`, in any thread.

    Raises:
        BadImage: as in `decode`.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise BadImage(f"must have at most {MOST_PIXELS:,} pixels, got {opened.width} x {opened.height}")
            return _decoded(opened, path)
    except Exception as error:  # PIL's readers raise anything on bad bytes: SyntaxError, struct.error, KeyError
        raise BadImage(f"{path} must be an image ({', '.join(FORMATS)}): {error or type(error).__name__}") from error


def _decoded(opened: Image.Image, path: Path) -> Decoded:
    notes = []
    frames = getattr(opened, "n_frames", 1)
    if frames > 1:
        notes.append(f"first of {frames} frames")
    deep = ";16" in str(getattr(opened, "tile", ()))  # asked before loading, which empties the list
    opened.load()
    image: Image.Image = opened
    if opened.mode in DEEP:
        raise BadImage(f"a channel must have 8 or 16 bits, got mode {opened.mode}: convert it first")
    if opened.mode.startswith("I;16") and not deep:
        raise BadImage("a channel must have 8 or 16 bits, got a number between: convert it first")
    if deep:
        image = _from_16_bits(opened, path)
        notes.append("16 bits a channel scaled to 8")
    if image.mode == "CMYK":
        notes.append("CMYK turned to RGB without a colour profile")
    if opened.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        notes.append("turned as its EXIF orientation says")
    image, hidden = _on_white(image)
    if hidden:
        notes.append("transparent parts shown on white")
    return Decoded(image, tuple(notes))


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return the image in RGB, and whether something in it was transparent."""
    if not image.has_transparency_data:
        return image.convert("RGB"), False
    layer = image.convert("RGBA")
    least = layer.getchannel("A").getextrema()[0]
    if least == 255:
        return layer.convert("RGB"), False
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), True


def _from_16_bits(opened: Image.Image, path: Path) -> Image.Image:
    if "transparency" in opened.info:
        raise BadImage("16 bits with one transparent colour are not read: convert it first")
    if opened.format == "PNG":  # PIL has dropped the lower bytes of coloured ones
        packed = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        values = decode_image(packed, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    elif opened.mode.startswith("I;16"):
        values = np.asarray(opened)[..., None]
    else:
        raise BadImage(f"16 bits a channel are read of PNG, and of grey TIFF, got {opened.mode} {opened.format}")
    scaled = Image.fromarray(to_8_bits(values).squeeze(-1) if values.shape[-1] == 1 else to_8_bits(values))
    if "exif" in opened.info:
        scaled.info["exif"] = opened.info["exif"]
    return scaled


def to_8_bits(values: Integer[np.ndarray, "height width channel"]) -> Integer[np.ndarray, "height width channel"]:
    """Return 16-bit values on the scale of 8 bits, rounded: 65535 is white, and so is 255."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


@contextmanager
def strictly() -> Iterator[None]:
    """Keep PIL's warnings in, and have truncated files refused even if a library has switched that off."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient
