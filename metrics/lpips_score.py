"""LPIPS: how far an image is from a reference to the eye, by the features of a network.

Conventions:
    Images are float32 RGB in [0, 1], "batch 3 height width", or PIL images, also of different sizes; an image and its
    reference have one size. The library wants [-1, 1]: it is told so (`normalize`), and other ranges are refused.
    A distance is 0 for equal images and never negative. It has no upper end and is no quality: doing nothing gets 0.
    With a resolution both images become that square, bilinear and antialiased, which cannot leave [0, 1].
Networks:
    The released ones are an ImageNet trunk from torchvision and linear heads (v0.1) that come with the library.
    A trunk of ours has no heads: all layers count alike, and its distances are called "lpips-tiny", never "lpips".
Metrics:
    lpips       with a released network (arXiv 1801.03924).
    lpips-tiny  the same sum over the layers of a trunk of ours: compares with other values of that trunk only.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError

import lpips
import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights
from torchvision.transforms.v2.functional import resize

from metrics.protocols import LpipsProtocol, Net
from metrics.weights import as_tensors, verified

TRUNKS: dict[Net, str] = {
    "alex": AlexNet_Weights.IMAGENET1K_V1.url,
    "vgg": VGG16_Weights.IMAGENET1K_V1.url,
    "squeeze": SqueezeNet1_1_Weights.IMAGENET1K_V1.url,
}
SMALLEST: dict[Net, int] = {"alex": 32, "vgg": 16, "squeeze": 32}  # side in pixels; below, a layer has no pixel left
FEATURES = "features."  # what the trunk is called in torchvision's files

Images = Float[Tensor, "batch 3 height width"] | Sequence[Image.Image]


@dataclass(frozen=True)
class Lpips:
    """A loaded network and the protocol that it answers under."""

    model: lpips.LPIPS
    protocol: LpipsProtocol


def metric_name(protocol: LpipsProtocol) -> str:
    """Return what the distances of a protocol are called: "lpips", or "lpips-tiny" with a trunk of ours."""
    return "lpips" if _released(protocol) else "lpips-tiny"


def distances(lpips: Lpips, images: Images, references: Images, batch: int = 16) -> Float[Tensor, " batch"]:
    """Return each image's distance from its reference, at least 0, on the CPU.

    Args:
        lpips: from `load_lpips`.
        images: what to compare; sizes may differ from pair to pair.
        references: one for each image.
        batch: pairs in one forward pass.

    Raises:
        ValueError: not one reference for each image, a pair of two sizes, images that are too small for the network,
            a tensor that is not RGB or leaves [0, 1], or no batch.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    left, right = as_tensors(images), as_tensors(references)
    if len(left) != len(right):
        raise ValueError(f"references must be one per image ({len(left)}), got {len(right)}")
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for index, (image, reference) in enumerate(zip(left, right, strict=True)):
        _check(lpips.protocol, index, image, reference)
        groups[image.shape].append(index)
    found = torch.zeros(len(left))
    for indices in groups.values():
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            pair = (torch.stack([side[index] for index in part]) for side in (left, right))
            found[part] = _pass(lpips, *pair)
    return found


def _check(protocol: LpipsProtocol, index: int, image: Tensor, reference: Tensor) -> None:
    height, width = image.shape[1:]
    if image.shape != reference.shape:
        other = "x".join(str(side) for side in reference.shape[1:])
        raise ValueError(f"an image and its reference must have one size, pair {index} has {height}x{width}, {other}")
    seen, least = protocol.resolution or min(height, width), SMALLEST[protocol.net]
    if seen < least:
        raise ValueError(f"images must have sides of at least {least} pixels for {protocol.net!r}, got {seen}")


@torch.no_grad()
def _pass(lpips: Lpips, images: Tensor, references: Tensor) -> Tensor:
    device = next(lpips.model.parameters()).device
    pair = [images.to(device), references.to(device)]
    if lpips.protocol.resolution is not None:
        size = [lpips.protocol.resolution] * 2
        pair = [resize(side, size, antialias=True) for side in pair]
    return lpips.model(*pair, normalize=True).flatten().cpu()


def load_lpips(protocol: LpipsProtocol, device: str | torch.device = "cpu", download: bool = False) -> Lpips:
    """Return the network of a protocol, in float32; its protocol has the hash of the trunk's file.

    Args:
        protocol: which one.
        device: where to put it.
        download: fetch a released trunk that is not on this machine.

    Raises:
        FileNotFoundError: the trunk is not here; says what to download.
        ValueError: it is another one than the protocol or its own name says, or does not fit the network.
    """
    digest, path = weights_of(protocol, download), _file(protocol, download)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
        # lpips 0.1.4 asks torchvision 0.29 for no weights in the way of 0.12
        warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
        warnings.filterwarnings("ignore", "Arguments other than a weight enum or `None`", UserWarning)
        model = lpips.LPIPS(net=protocol.net, lpips=protocol.heads, version="0.1", pnet_rand=True, verbose=False)
    _fill(model.net, _trunk(path), path)
    return Lpips(model.eval().requires_grad_(False).float().to(device), replace(protocol, weights=digest))


def weights_of(protocol: LpipsProtocol, download: bool = False) -> str:
    """Return the SHA-256 of a trunk's file, without loading it.

    Raises:
        FileNotFoundError: the trunk is not here; says what to download.
        ValueError: it is another one than the protocol says, or than its name says if it is released.
    """
    path = _file(protocol, download)
    digest = verified(path, protocol.weights)
    start = path.stem.rpartition("-")[
        2
    ]  # of the hash, in "alexnet-owt-7be5be79.pth"; looked at by nobody after download
    if _released(protocol) and not digest.startswith(start):
        raise ValueError(f"{path} must have a SHA-256 that begins with {start}, got {digest}; download it again")
    return digest


def _released(protocol: LpipsProtocol) -> bool:
    return protocol.checkpoint == "lpips"


def _file(protocol: LpipsProtocol, download: bool) -> Path:
    if not _released(protocol):
        path = Path(protocol.checkpoint) / "model.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"folder {protocol.checkpoint!r} holds no trunk: no model.safetensors")
        return path
    url = TRUNKS[protocol.net]
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]  # where torchvision looks for it
    if path.is_file():
        return path
    if not download:
        raise FileNotFoundError(
            f"the trunk of LPIPS {protocol.net!r} is not on this machine; download {url} to {path} where there is a "
            "network, or give the path of a local folder as the protocol's checkpoint"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(url, str(path), path.stem.rpartition("-")[2], progress=False)
    return path


def _trunk(path: Path) -> dict[str, Tensor]:
    """Return a trunk's weights by their names in torchvision's `features`."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path.name} must hold weights, but {error}") from error
    return {name.removeprefix(FEATURES): value for name, value in weights.items() if name.startswith(FEATURES)}


def _fill(net: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load a trunk whose layers lpips has dealt out to slices, by their numbers; nothing may be left over."""
    slices = {name.partition(".")[2]: name for name in net.state_dict()}  # "slice2.3.bias" is "3.bias" in the file
    differ = sorted(slices.keys() ^ weights.keys())
    if differ:
        raise ValueError(f"{path.name} must hold the weights of the trunk and no others, it differs in {differ[:3]}")
    try:
        net.load_state_dict({slices[name]: value for name, value in weights.items()})
    except RuntimeError as error:
        raise ValueError(f"{path.name} must hold the weights of the trunk, but {error}") from error
