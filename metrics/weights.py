"""Which detector answers, and how it is loaded: the same code for released checkpoints and the emoji world's.

Conventions: a value of a metric means nothing without its protocol, so every loaded model carries one.
Weights are read as safetensors, in float32, and from this machine only unless a download is asked for.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2Processor

from tracer.folders import emoji_world
from tracer.scenes import article

Assignment = Literal["argmax", "independent", "distinct"]
ASSIGNMENTS: tuple[Assignment, ...] = ("argmax", "independent", "distinct")
RELEASED = "google/owlv2-base-patch16-ensemble"


@dataclass(frozen=True)
class Protocol:
    """How objects are looked for; two rates compare only if their protocols are equal.

    Attributes:
        checkpoint: hub id or local folder.
        threshold: score above which a target counts as found, in [0, 1). 0.1 is the default of transformers.
        template: the query; "a {obj}" becomes "an {obj}" before the vowels a, e, i, o.
        assignment: which boxes may answer a query, see ``metrics/detection.py``.
        world: "real" or "emoji"; no table mixes them.
        revision: commit or tag on the hub, None for the newest there.
        weights: SHA-256 that ``model.safetensors`` of a local folder must have, None to leave it unchecked.
    """

    checkpoint: str = RELEASED
    threshold: float = 0.1
    template: str = "a photo of a {obj}"
    assignment: Assignment = "argmax"
    world: Literal["real", "emoji"] = "real"
    revision: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be a protocol."""
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must lie in [0, 1), got {self.threshold}")
        if "{obj}" not in self.template:
            raise ValueError(f"template must contain {{obj}}, got {self.template!r}")
        if self.assignment not in ASSIGNMENTS:
            raise ValueError(f"assignment must be one of {', '.join(ASSIGNMENTS)}, got {self.assignment!r}")

    @property
    def name(self) -> str:
        """What is printed under a table, e.g. "owlv2-base-patch16-ensemble@0.10,argmax#1f0c2d9a"."""
        facts = asdict(self) | {"checkpoint": Path(self.checkpoint).name}  # the same on every machine
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
        world = "emoji:" if self.world == "emoji" else ""
        return f"{world}{facts['checkpoint']}@{self.threshold:.2f},{self.assignment}#{digest}"

    def query(self, obj: str) -> str:
        """Return the text that asks for an object, e.g. "a photo of an elephant"."""
        return self.template.replace("a {obj}", article(obj)).replace("{obj}", obj)


@dataclass(frozen=True)
class Detector:
    """A loaded OWLv2, its processor, and the protocol that it answers under."""

    model: Owlv2ForObjectDetection
    processor: Owlv2Processor
    protocol: Protocol


def emoji_protocol() -> Protocol:
    """Return the protocol of the emoji world's detector, with the threshold that was calibrated for it."""
    folder = emoji_world() / "owlv2"
    stored = json.loads((folder / "protocol.json").read_text())
    return Protocol(checkpoint=str(folder), world="emoji", **stored)


def load_detector(
    protocol: Protocol | None = None, device: str | torch.device = "cpu", download: bool = False
) -> Detector:
    """Return the detector of a protocol, by default the emoji world's.

    Args:
        protocol: which one; `Protocol()` is the released base checkpoint.
        device: where to put it.
        download: fetch a checkpoint that is not on this machine.

    Raises:
        FileNotFoundError: the checkpoint is not here; says what to download.
        ValueError: it is no OWLv2, lacks weights, or has other weights than the protocol says.
    """
    protocol = protocol or emoji_protocol()
    source = {"revision": protocol.revision, "local_files_only": not download}
    try:
        _check(protocol, source)
        model, info = Owlv2ForObjectDetection.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            protocol.checkpoint, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **source
        )
        processor = Owlv2Processor.from_pretrained(protocol.checkpoint, **source)
    except OSError as error:
        raise FileNotFoundError(_absent(protocol)) from error
    if info["missing_keys"]:
        raise ValueError(f"{protocol.checkpoint!r} lacks the weights {sorted(info['missing_keys'])[:3]}")
    return Detector(model.eval().to(device), processor, protocol)


def _check(protocol: Protocol, source: dict[str, str | bool | None]) -> None:
    config, _ = Owlv2Config.get_config_dict(protocol.checkpoint, **source)
    kind = config.get("model_type")
    if kind is None:
        raise FileNotFoundError(f"no config.json in {protocol.checkpoint!r}")
    if kind != "owlv2":
        raise ValueError(f"checkpoint must be an OWLv2 model, {protocol.checkpoint!r} is of type {kind!r}")
    if protocol.weights is not None:
        weights = (Path(protocol.checkpoint) / "model.safetensors").read_bytes()
        digest = hashlib.sha256(weights).hexdigest()
        if digest != protocol.weights:
            raise ValueError(f"model.safetensors must have SHA-256 {protocol.weights}, got {digest}")


def _absent(protocol: Protocol) -> str:
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
    if images.numel() and (images.min() < 0 or images.max() > 1):
        raise ValueError(f"images must lie in [0, 1], got {images.min():.3g} to {images.max():.3g}")
    return list(images.float())
