"""What a number means: every metric has a protocol, and a value without its protocol is no result.

Conventions:
    A protocol is a frozen dataclass. `fingerprint` names what a stored score depends on: it goes with every row and
    holds a hash of checkpoint, revision, weights, options and the major versions of the libraries that compute it.
    `name` is the fingerprint and how the stored scores are read (threshold and assignment), as tables print it.
    Views are not hashed: another threshold asks nothing of the model.
    The emoji world's protocols begin with "emoji"; no table mixes worlds.
    A protocol whose `weights` is None takes what it finds; a loader returns it with the hash of what it found.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from tracer.folders import emoji_world
from tracer.scenes import article

World = Literal["real", "emoji"]
Assignment = Literal["argmax", "independent", "distinct"]
ASSIGNMENTS: tuple[Assignment, ...] = ("argmax", "independent", "distinct")
Ensemble = Literal["plain", "ae80"]
Net = Literal["alex", "vgg", "squeeze"]


@dataclass(frozen=True)
class Protocol:
    """What all protocols have in common.

    Attributes:
        checkpoint: hub id, a library's name of the model, or a local folder.
        revision: commit or tag on the hub, None for the newest there.
        weights: SHA-256 that the file of weights must have, None to take what is there.
        world: "real" or "emoji".
        key: the name under which it is registered, "" for one of your own.
    """

    checkpoint: str = ""
    revision: str | None = None
    weights: str | None = None
    world: World = "real"
    key: str = ""

    LIBRARIES: ClassVar[tuple[str, ...]] = ("torch",)
    VIEWS: ClassVar[tuple[str, ...]] = ()

    @property
    def facts(self) -> dict[str, object]:
        """Return what a stored score depends on: the same on every machine, as JSON can say it."""
        fields = {name: value for name, value in asdict(self).items() if name not in (*self.VIEWS, "key")}
        libraries = {library: _major(installed(library)) for library in self.LIBRARIES}
        return fields | {"checkpoint": Path(self.checkpoint).name, "kind": type(self).__name__, "libraries": libraries}

    @property
    def fingerprint(self) -> str:
        """What goes with every stored score, e.g. "openai-b16-plain#1f0c2d9a"."""
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()[:8]
        label = self.key or Path(self.checkpoint).name
        world = "emoji-" if self.world == "emoji" and not label.startswith("emoji") else ""
        return f"{world}{label}#{digest}"

    @property
    def name(self) -> str:
        """What is printed under a table: the fingerprint, and how the scores are read."""
        return self.fingerprint


@dataclass(frozen=True)
class DetectionProtocol(Protocol):
    """How objects are looked for with OWLv2.

    Attributes:
        threshold: a view: score above which a target counts as found, in [0, 1). 0.1 is the default of transformers.
        template: the query; "a {obj}" becomes "an {obj}" before the vowels a, e, i, o.
        assignment: a view: which boxes may answer a query, see ``metrics/detection.py``.
    """

    checkpoint: str = "google/owlv2-base-patch16-ensemble"
    threshold: float = 0.1
    template: str = "a photo of a {obj}"
    assignment: Assignment = "argmax"

    LIBRARIES: ClassVar = ("torch", "transformers")
    VIEWS: ClassVar = ("threshold", "assignment")

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
        """As in `Protocol`, e.g. ``"owlv2-base#1f0c2d9a@0.10,argmax"``."""
        return f"{self.fingerprint}@{self.threshold:.2f},{self.assignment}"

    def query(self, obj: str) -> str:
        """Return the text that asks for an object, e.g. "a photo of an elephant"."""
        return self.template.replace("a {obj}", article(obj)).replace("{obj}", obj)


@dataclass(frozen=True)
class ClipProtocol(Protocol):
    """How an image is compared with its prompt by CLIP (open_clip).

    Attributes:
        checkpoint: open_clip's name of the architecture ("ViT-B-16-quickgelu"), or a local folder in its layout.
        pretrained: open_clip's tag of the weights ("openai"); None for a local folder.
        ensemble: "plain", the prompt as it is; "ae80", the renormalised mean over the 80 ImageNet templates, as
            Attend-and-Excite has it, with the smaller one of a prompt's halves beside it.
    """

    checkpoint: str = "ViT-B-16-quickgelu"
    pretrained: str | None = "openai"
    ensemble: Ensemble = "plain"

    LIBRARIES: ClassVar = ("torch", "open_clip_torch")

    def __post_init__(self) -> None:
        """Refuse what cannot be a protocol."""
        if self.ensemble not in get_args(Ensemble):
            raise ValueError(f"ensemble must be one of {', '.join(get_args(Ensemble))}, got {self.ensemble!r}")

    @property
    def tower(self) -> str:
        """The fingerprint of the network alone: images have the same vectors however texts are combined."""
        label = "-".join(part for part in (Path(self.checkpoint).name, self.pretrained) if part)
        return replace(self, ensemble="plain", key=label).fingerprint


@dataclass(frozen=True)
class LpipsProtocol(Protocol):
    """How far an image is from another one to the eye (LPIPS).

    Attributes:
        checkpoint: "lpips" for the released networks, or a local folder with a trunk of ours.
        net: the trunk.
        heads: whether the layers are weighted by the released linear heads (v0.1), or all alike.
        resolution: side in pixels to which both images are resized; None for as they are.
    """

    checkpoint: str = "lpips"
    net: Net = "alex"
    heads: bool = True
    resolution: int | None = None

    LIBRARIES: ClassVar = ("torch", "torchvision", "lpips")

    def __post_init__(self) -> None:
        """Refuse what cannot be a protocol."""
        if self.net not in get_args(Net):
            raise ValueError(f"net must be one of {', '.join(get_args(Net))}, got {self.net!r}")
        if self.heads != (self.checkpoint == "lpips"):
            raise ValueError(f"heads must be True for the released networks, False for ours, got {self.heads}")
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {self.resolution}")


@dataclass(frozen=True)
class FeatureProtocol(Protocol):
    """Which features sets of images are compared by (FID, KID).

    Attributes:
        checkpoint: "inception-v3-compat" as torch-fidelity has it, or a local folder with a trunk of ours.
        dtype: of the network's arithmetic.
        resolution: side in pixels to which images are resized and cropped first; None: all must have one size.
    """

    checkpoint: str = "inception-v3-compat"
    dtype: Literal["float32", "float64"] = "float32"
    resolution: int | None = None

    LIBRARIES: ClassVar = ("torch", "torchvision", "torch-fidelity")

    def __post_init__(self) -> None:
        """Refuse what cannot be a protocol."""
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype!r}")
        if self.resolution is not None and self.resolution < 1:
            raise ValueError(f"resolution must be positive, got {self.resolution}")


RELEASED: dict[str, Protocol] = {
    protocol.key: protocol
    for protocol in (
        DetectionProtocol(key="owlv2-base"),
        DetectionProtocol(key="owlv2-large", checkpoint="google/owlv2-large-patch14-ensemble"),
        ClipProtocol(key="openai-b16-plain"),
        ClipProtocol(key="openai-b16-ae80", ensemble="ae80"),
        ClipProtocol(key="openai-b32-plain", checkpoint="ViT-B-32-quickgelu"),
        ClipProtocol(key="openai-l14-plain", checkpoint="ViT-L-14-quickgelu"),
        ClipProtocol(key="openai-l14-336-plain", checkpoint="ViT-L-14-336-quickgelu"),  # CMMD's embeddings
        LpipsProtocol(key="lpips-alex"),
        LpipsProtocol(key="lpips-vgg", net="vgg"),
        LpipsProtocol(key="lpips-vgg-256", net="vgg", resolution=256),  # HEIM's
        LpipsProtocol(key="lpips-squeeze", net="squeeze"),
        FeatureProtocol(key="inception"),
        FeatureProtocol(key="inception-float64", dtype="float64"),
    )
}


def emoji_detection() -> DetectionProtocol:
    """Return the protocol of the emoji world's detector, with the threshold that was calibrated for it."""
    folder, stored = _stored("owlv2")
    return DetectionProtocol(folder, world="emoji", key="emoji-owlv2", **stored)


def emoji_clip(ensemble: Ensemble = "plain") -> ClipProtocol:
    """Return the protocol of the emoji world's CLIP."""
    folder, stored = _stored("clip")
    return ClipProtocol(
        folder, world="emoji", key=f"emoji-clip-{ensemble}", pretrained=None, ensemble=ensemble, **stored
    )


def emoji_lpips() -> LpipsProtocol:
    """Return the protocol of the emoji world's LPIPS."""
    folder, stored = _stored("features")
    return LpipsProtocol(folder, world="emoji", key="emoji-lpips", net="squeeze", heads=False, **stored)


def emoji_features() -> FeatureProtocol:
    """Return the protocol of the features that sets of emoji images are compared by."""
    folder, stored = _stored("features")
    return FeatureProtocol(folder, world="emoji", key="emoji-features", **stored)


def known_protocols() -> dict[str, Protocol]:
    """Return all registered protocols by their keys, the emoji world's first."""
    emoji = emoji_detection(), emoji_clip(), emoji_clip("ae80"), emoji_lpips(), emoji_features()
    return {protocol.key: protocol for protocol in emoji} | RELEASED


def _stored(name: str) -> tuple[str, dict[str, Any]]:
    """Return an evaluator's folder, and what was measured for it: a hash of its weights, the detector's threshold."""
    folder = emoji_world() / name
    return str(folder), json.loads((folder / "protocol.json").read_text(encoding="utf-8"))


@cache  # a look at a library's metadata takes milliseconds, and every fingerprint takes several
def installed(library: str) -> str:
    """Return the version of a library that is installed."""
    return version(library)


def _major(number: str) -> str:
    """Return the part of a version that a score may depend on: "5" of 5.23.0, "0.29" of 0.29.1."""
    first, second, *_ = [*number.split("+")[0].split("."), "0"]
    return first if first != "0" else f"{first}.{second}"
