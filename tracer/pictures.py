"""What an image is known by, and how it is written."""

import hashlib
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from PIL import Image


def digest(image: Any) -> str:
    """Return the SHA-256 of an image's size and RGB pixels: the same however the file was compressed.

    Arrays and tensors, which a pipeline returns when asked to, are hashed as their shape and bytes.
    """
    if isinstance(image, Image.Image):
        return hashlib.sha256(str(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()
    array = image.detach().float().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    return hashlib.sha256(str(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


def write_image(image: Image.Image, path: Path) -> str:
    """Write an image, whole or not at all, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.partial{path.suffix}")  # others may write the same
    image.save(partial)
    partial.replace(path)
    return str(path)
