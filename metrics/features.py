"""Which features sets of images are compared by: the network, its weights, and one row of numbers an image.

Conventions:
    Images are 8-bit RGB: PIL images, or uint8 "batch 3 height width". They have one size, unless the protocol has a
    `resolution`: then the shorter side is brought to it (bilinear, antialiased) and the centre is cut out, by the
    transforms behind torch-fidelity's `samples_resize_and_crop`. Save what is compared as PNG: JPEG shifts an FID.
    Features are float32 "batch channel" in the order of the images; the protocol's `dtype` is the arithmetic's.
    The size of a batch moves a feature by rounding alone: by less than 1e-5 of the largest one in float32, 1e-7 in
    float64. Weights are read from this machine only, unless a download is asked for.
Networks:
    inception-v3-compat  2048 numbers: torch-fidelity's port of the network that FID was defined with. It brings
        every image to 299x299 itself, as TensorFlow 1 did.
    a local folder       512 numbers: ``model.safetensors`` holds torchvision's ``squeezenet1_1().features``; pixels
        are normalised by ImageNet's mean and deviation, and the last maps averaged over their positions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, FeatureExtractorInceptionV3, register_feature_extractor
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torchvision.models import squeezenet1_1
from torchvision.transforms import CenterCrop, Compose, Resize
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from metrics.protocols import FeatureProtocol

INCEPTION = "inception-v3-compat"
INCEPTION_WEIGHTS = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of the released file
SMALLEST = 32  # pixels a side, below which the trunk's last maps are a single position or none
# What the `fidelity` command hands over beside the options of `calculate_metrics`.
COMMAND_LINE = {"cpu", "gpu", "json", "no_cache", "no_datasets_download", "no_samples_shuffle", "silent"}

Images = UInt8[Tensor, "batch 3 height width"] | Sequence[Image.Image]


@dataclass(frozen=True)
class Features:
    """A loaded network, and the protocol that its features stand under."""

    extractor: FeatureExtractorBase
    protocol: FeatureProtocol


class SqueezeFeatures(FeatureExtractorBase):
    """The trunk of SqueezeNet 1.1 for torch-fidelity: uint8 images to the means of its last 512 maps.

    Attributes:
        file: the weights that a registered subclass reads; the base class has none of its own.
        weights: SHA-256 that they must have.

    Raises:
        ValueError: an option is unknown to torch-fidelity, which would pass over it in silence, or the weights are
            not those of this trunk.
    """

    file: ClassVar[Path | None] = None
    weights: ClassVar[str | None] = None

    def __init__(
        self,
        name: str,
        features_list: Sequence[str],
        feature_extractor_weights_path: str | Path | None = None,
        feature_extractor_internal_dtype: Literal["float32", "float64"] | None = None,
        **kwargs: object,
    ) -> None:
        unknown = sorted(kwargs.keys() - DEFAULTS.keys() - COMMAND_LINE)
        if unknown:
            raise ValueError(f"options must be torch-fidelity's, got {', '.join(unknown)}")
        super().__init__(name, list(features_list))
        path = feature_extractor_weights_path or self.file
        if path is None:
            raise ValueError(f"feature_extractor_weights_path must name a file, got {path}")
        _sha256(Path(path), self.weights)
        self.kind: torch.dtype = getattr(torch, feature_extractor_internal_dtype or "float32")
        self.trunk = _trunk(Path(path)).to(self.kind)
        for buffer, values in (("mean", (0.485, 0.456, 0.406)), ("deviation", (0.229, 0.224, 0.225))):
            self.register_buffer(buffer, torch.tensor(values, dtype=self.kind)[:, None, None], persistent=False)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the names of the layers."""
        return ("512",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the layer of a metric: there is one."""
        return "512"

    @staticmethod
    def can_be_compiled() -> bool:
        """Return False: what a compiler fuses, it rounds otherwise."""
        return False

    def forward(self, input: UInt8[Tensor, "batch 3 height width"]) -> tuple[Float[Tensor, "batch 512"]]:
        """Return the features, in a tuple as torch-fidelity wants it.

        Raises:
            ValueError: the images are not uint8 RGB, or are smaller than 32 pixels.
        """
        if input.dtype != torch.uint8 or input.ndim != 4 or input.shape[1] != 3:
            raise ValueError(f"images must be uint8 (batch, 3, height, width), got {input.dtype} {tuple(input.shape)}")
        if min(input.shape[2:]) < SMALLEST:
            raise ValueError(f"images must have {SMALLEST} pixels a side, got {tuple(input.shape[2:])}")
        pixels = input.to(self.kind) / 255
        maps = self.trunk((pixels - self.get_buffer("mean")) / self.get_buffer("deviation"))
        return (maps.mean((2, 3)).float(),)


def load_features(protocol: FeatureProtocol, device: str | torch.device = "cpu", download: bool = False) -> Features:
    """Return the network of a protocol, whose `weights` then say what was found.

    Args:
        protocol: which one.
        device: where to put it.
        download: fetch Inception's weights (96 MB) if they are not on this machine.

    Raises:
        FileNotFoundError: the weights are not here; says what to download.
        ValueError: they are not the protocol's, or not those of the network.
    """
    path = _weights(protocol, download)
    digest = weights_of(protocol)
    if protocol.checkpoint == INCEPTION:
        extractor = FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=str(path))
        if protocol.dtype == "float64":  # torch-fidelity 0.4 takes this option, and stays with float32
            extractor.feature_extractor_internal_dtype = torch.float64
            extractor.double()
    else:
        extractor = SqueezeFeatures(_name(digest), ["512"], path, protocol.dtype)
    return Features(extractor.requires_grad_(False).eval().to(device), replace(protocol, weights=digest))


def weights_of(protocol: FeatureProtocol, download: bool = False) -> str:
    """Return the SHA-256 of a protocol's weights, without a look inside.

    Raises:
        FileNotFoundError: the weights are not here; says what to download.
        ValueError: they are not the protocol's, or not the released ones if it is Inception and names none.
    """
    wanted = protocol.weights or (INCEPTION_WEIGHTS if protocol.checkpoint == INCEPTION else None)
    return _sha256(_weights(protocol, download), wanted)


def register(protocol: FeatureProtocol) -> str:
    """Return the name under which torch-fidelity knows a protocol's network from now on.

    For ``calculate_metrics(feature_extractor=name, feature_extractor_internal_dtype=protocol.dtype, ...)``. The name
    holds the hash of the weights, because torch-fidelity's cache is keyed by it. To do so again is no error.

    Raises:
        FileNotFoundError, ValueError: as in `weights_of`.
    """
    digest = weights_of(protocol)
    if protocol.checkpoint == INCEPTION:
        return INCEPTION
    name, path = _name(digest), _weights(protocol)
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(name, type("SqueezeFeatures", (SqueezeFeatures,), {"weights": digest}))
    FEATURE_EXTRACTORS_REGISTRY[name].file = path  # the same weights may have moved
    return name


def extract(features: Features, images: Images, batch: int = 32) -> Float[np.ndarray, "batch channel"]:
    """Return every image's features.

    Args:
        features: from `load_features`.
        images: one at least, all of one size or of a protocol with a resolution.
        batch: images in one forward pass.

    Raises:
        ValueError: no images, no uint8, several sizes, too small ones, or no images in a batch.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if len(images) == 0:
        raise ValueError("images must hold at least one image, got none")
    side = features.protocol.resolution
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8 RGB, got {images.dtype} {tuple(images.shape)}")
    elif side is None and len(sizes := {image.size for image in images}) > 1:
        raise ValueError(f"images must have one size, or the protocol a resolution, got {sorted(sizes)}")
    device = next(features.extractor.parameters()).device
    rows: list[Tensor] = []
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), exact:
        for start in range(0, len(images), batch):
            pixels = [_pixels(image, side) for image in images[start : start + batch]]
            rows.append(features.extractor(torch.stack(pixels).to(device))[0].cpu())
    return torch.cat(rows).numpy()


def _pixels(image: Tensor | Image.Image, side: int | None) -> Tensor:
    if isinstance(image, Tensor):
        if side is None:
            return image
        picture = to_pil_image(image.cpu())
    else:
        picture = image.convert("RGB")
    return pil_to_tensor(picture if side is None else Compose([Resize(side), CenterCrop(side)])(picture))


def _trunk(path: Path) -> torch.nn.Module:
    with torch.device("meta"):  # draws no random weights
        trunk = squeezenet1_1(weights=None).features
    try:
        trunk.load_state_dict(load_file(path), strict=True, assign=True)
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} must hold the trunk of squeezenet1_1: {error}") from error
    return trunk


def _name(digest: str) -> str:
    return f"attnreg-squeezenet-{digest[:12]}"


def _sha256(path: Path, wanted: str | None) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted not in (None, digest):
        raise ValueError(f"{path.name} must have SHA-256 {wanted}, got {digest}")
    return digest


def _weights(protocol: FeatureProtocol, download: bool = False) -> Path:
    """Return the file of a protocol's weights."""
    if protocol.checkpoint != INCEPTION:
        path = Path(protocol.checkpoint, "model.safetensors")
        advice = f"give the path of a folder that holds one, or {INCEPTION!r}, as the protocol's checkpoint"
    else:
        path = Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name)
        if download and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), protocol.weights or INCEPTION_WEIGHTS, False)
        advice = f"download it once from {URL_INCEPTION_V3} where there is a network, and put it there"
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is not in {str(path.parent)!r}: {advice}")
    return path
