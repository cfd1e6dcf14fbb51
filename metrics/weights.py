"""Which detector answers, and how it is loaded: the same code for released checkpoints and the emoji world's.

Conventions: a value of a metric means nothing without its protocol, so every loaded model carries one.
Weights are read as safetensors, in float32, and from this machine only unless a download is asked for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2Processor
from transformers.utils.hub import cached_file

from metrics.protocols import DetectionProtocol, emoji_detection
from tracer.bars import no_loading_bars


@dataclass(frozen=True)
class Detector:
    """A loaded OWLv2, its processor, and the protocol that it answers under."""

    model: Owlv2ForObjectDetection
    processor: Owlv2Processor
    protocol: DetectionProtocol


def load_detector(
    protocol: DetectionProtocol | None = None, device: str | torch.device = "cpu", download: bool = False
) -> Detector:
    """Return the detector of a protocol, by default the emoji world's; its protocol has the weights' hash.

    Args:
        protocol: which one; `DetectionProtocol()` is the released base checkpoint.
        device: where to put it.
        download: fetch a checkpoint that is not on this machine.

    Raises:
        FileNotFoundError: the checkpoint is not here; says what to download.
        ValueError: it is no OWLv2, lacks weights, or has other weights than the protocol says.
    """
    protocol = protocol or emoji_detection()
    source = {"revision": protocol.revision, "local_files_only": not download}
    digest = weights_of(protocol, download)
    try:
        with no_loading_bars(protocol.world == "emoji"):
            model, info = Owlv2ForObjectDetection.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                protocol.checkpoint, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **source
            )
        processor = Owlv2Processor.from_pretrained(protocol.checkpoint, **source)
    except OSError as error:
        raise FileNotFoundError(_absent(protocol)) from error
    if info["missing_keys"]:
        raise ValueError(f"{protocol.checkpoint!r} lacks the weights {sorted(info['missing_keys'])[:3]}")
    return Detector(model.eval().to(device), processor, replace(protocol, weights=digest))


def weights_of(protocol: DetectionProtocol, download: bool = False) -> str:
    """Return the SHA-256 of a detector's weights, without loading them.

    Raises:
        FileNotFoundError: the checkpoint is not here; says what to download.
        ValueError: it is no OWLv2, or has other weights than the protocol says.
    """
    source = {"revision": protocol.revision, "local_files_only": not download}
    try:
        config, _ = Owlv2Config.get_config_dict(protocol.checkpoint, **source)
        kind = config.get("model_type")
        if kind is None:
            raise FileNotFoundError(f"no config.json in {protocol.checkpoint!r}")
        if kind != "owlv2":
            raise ValueError(f"checkpoint must be an OWLv2 model, {protocol.checkpoint!r} is of type {kind!r}")
        path = cached_file(protocol.checkpoint, "model.safetensors", **source)
    except OSError as error:
        raise FileNotFoundError(_absent(protocol)) from error
    return verified(Path(str(path)), protocol.weights)


def verified(path: Path, wanted: str | None) -> str:
    """Return the SHA-256 of a file of weights.

    Raises:
        ValueError: it is another one than is wanted.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted not in (None, digest):
        raise ValueError(f"{path.name} must have SHA-256 {wanted}, got {digest}")
    return digest


def _absent(protocol: DetectionProtocol) -> str:
    name = protocol.checkpoint
    if Path(name).is_dir() or name.startswith((".", "/")):
        wanted = "config.json, model.safetensors, processor_config.json and the tokenizer's files"
        return f"folder {name!r} holds no complete OWLv2 checkpoint ({wanted})"
    return (
        f"detector {name!r} is not on this machine; download it once with `hf download {name}` where there "
        "is a network, or give the path of a local folder as the protocol's checkpoint"
    )


def as_tensors(images: Float[Tensor, "batch 3 height width"] | Sequence[Image.Image]) -> list[Tensor]:
    """Return every image as float32 RGB "3 height width" in [0, 1].

    Raises:
        ValueError: a tensor is not RGB or leaves [0, 1].
    """
    if not isinstance(images, Tensor):
        arrays = [np.asarray(image.convert("RGB"), np.float32) / 255 for image in images]
        return [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (batch, 3, height, width), got {tuple(images.shape)}")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):  # so said, NaN is refused too
        raise ValueError(f"images must lie in [0, 1], got {images.min():.3g} to {images.max():.3g}")
    return list(images.float())
