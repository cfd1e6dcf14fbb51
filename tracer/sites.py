"""Where a model attends to its text: the names of those modules, and how their attention is laid out.

Conventions: a site's name is the module's dotted path. A UNet's text attention is cross-attention (queries from the
image, keys from the text); that of SD3 and Flux is joint (queries and keys of both), of which the rows of the image
and the columns of the text are meant.
"""

import re
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

_ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}  # of execution; modules are registered down, up, mid
_TEXT_FIRST = {"SD3Transformer2DModel": False, "FluxTransformer2DModel": True}  # the order in a joint sequence
_JOINT_SITE = re.compile(r"(single_)?transformer_blocks\.\d+\.attn")
_BYPASSING = ("AttnProcessor", "SlicedAttnProcessor", "SlicedAttnAddedKVProcessor", "XFormersAttnProcessor")


def denoiser(pipe: DiffusionPipeline) -> nn.Module:
    """Return the network that a pipeline calls at every step: its UNet or its transformer.

    Raises:
        ValueError: it has neither.
    """
    model = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if model is None:
        raise ValueError(f"pipe must be a pipeline with a UNet or a transformer, got {type(pipe).__name__}")
    return model


def is_joint(model: nn.Module) -> bool:
    """Return whether image and text attend to each other in one sequence (SD3, Flux)."""
    return type(model).__name__ in _TEXT_FIRST


def attention_sites(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules in which the image attends to the text, in the order in which they run.

    Raises:
        ValueError: the model has none, or is of a kind whose attention is not known.
    """
    if is_joint(model):
        return tuple(name for name, _ in model.named_modules() if _JOINT_SITE.fullmatch(name))
    sites = _sites(model, cross=True)
    if not sites:
        raise ValueError(
            f"model must be a UNet with text cross-attention, or one of {', '.join(_TEXT_FIRST)}, "
            f"got {type(model).__name__}"
        )
    return sites


def self_attention_sites(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a UNet's modules in which the image attends to itself, in the order in which they run.

    Raises:
        ValueError: image and text attend to each other in one sequence (SD3, Flux).
    """
    if is_joint(model):
        raise ValueError(f"{type(model).__name__} has no self-attention of the image alone")
    return _sites(model, cross=False)


def _sites(model: nn.Module, cross: bool) -> tuple[str, ...]:
    sites = [n for n, m in model.named_modules() if isinstance(m, Attention) and m.is_cross_attention == cross]
    return tuple(sorted(sites, key=lambda name: _ORDER.get(name.split(".")[0], len(_ORDER))))


def checked_modules(model: nn.Module, sites: tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the modules of these sites.

    Raises:
        ValueError: the model is compiled, a site is unknown or named twice, or its processor bypasses torch's
            attention function.
    """
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError("a compiled model cannot be tapped; pass the model that torch.compile was given")
    valid = attention_sites(model)
    others = () if is_joint(model) else self_attention_sites(model)
    if unknown := [site for site in sites if site not in valid and site not in others]:
        raise ValueError(f"unknown attention sites {unknown}; the model has {', '.join(valid)}")
    if len(set(sites)) != len(sites) or not sites:
        raise ValueError(f"sites must be at least one and all different, got {list(sites)}")
    modules = {site: model.get_submodule(site) for site in sites}
    for site, module in modules.items():
        name, backend = type(module.processor).__name__, getattr(module.processor, "_attention_backend", None)
        native = str(getattr(backend, "value", backend or "native")) in ("native", "_native_math")
        if name in _BYPASSING or not native:
            raise ValueError(
                f"{site} uses {name} (backend {backend}), which bypasses scaled_dot_product_attention; switch with "
                "model.set_default_attn_processor() on torch 2 or model.set_attention_backend('native')"
            )
    return modules


def map_size(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of a map of so many pixels in a network that halves a latent of the given size.

    Raises:
        ValueError: no number of halvings gives that many pixels.
    """
    h, w = height, width
    while h * w > pixels:
        h, w = -(-h // 2), -(-w // 2)
    if h * w != pixels:
        raise ValueError(f"a map of {pixels} pixels is no halving of a {height}x{width} latent")
    return h, w


@dataclass
class Layout:
    """What one forward pass says of its attention: the size of its image, and how long its text is.

    Attributes:
        joint: whether image and text share one sequence.
        height: rows of the latent (of the patches, in a joint model).
        width: columns likewise.
        text: tokens of the text; 0 where each site is told by its own argument.
        text_first: whether the text comes before the image in the shared sequence.
    """

    joint: bool = False
    height: int = 0
    width: int = 0
    text: int = 0
    text_first: bool = False
    _ids: Tensor | None = None  # Flux's positions, which say the image's size; the same tensor at every step

    def read(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take what a forward pass is about to be given.

        Raises:
            ValueError: the image of a joint model is not one grid (several images in one sequence).
        """
        self.joint = is_joint(model)
        if not self.joint:
            sample = args[0] if args else kwargs["sample"]
            self.height, self.width = sample.shape[-2:]
            return
        self.text_first = _TEXT_FIRST[type(model).__name__]
        hidden = args[0] if args else kwargs["hidden_states"]
        self.text = (args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]).shape[1]
        if hidden.ndim == 4:  # SD3 cuts the latent into patches itself
            patch = int(model.config.patch_size)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
            self.height, self.width = (size // patch for size in hidden.shape[-2:])
        else:
            self._read_ids(kwargs["img_ids"], hidden.shape[1])

    def _read_ids(self, ids: Tensor, pixels: int) -> None:
        if ids is not self._ids:  # once per image: reading them waits for the device
            rows, columns = (ids[..., 1:3].reshape(-1, 2).amax(0) + 1).int().tolist()
            self._ids, self.height, self.width = ids, rows, columns
        if self.height * self.width != pixels:
            raise ValueError(f"the image must be one grid of {self.height}x{self.width}, got {pixels} positions")

    def part(self) -> tuple[slice, slice]:
        """Return where the image and the text lie in a joint sequence."""
        pixels = self.height * self.width
        if self.text_first:
            return slice(self.text, self.text + pixels), slice(0, self.text)
        return slice(0, pixels), slice(pixels, pixels + self.text)
