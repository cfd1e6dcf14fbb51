"""The one seam through which attention is observed and edited.

    with attending(pipe.unet, cross_attention_sites(pipe.unet), edit=edit, record=record):
        pipe(prompt)

`scaled_dot_product_attention` is caught by a function mode that is entered only inside the chosen modules, so the
rest of the network pays nothing, and processors (LoRA's, IP-Adapter's) stay as they are. Recording computes the
probabilities beside the untouched call: the image does not change by one bit.

Conventions: `scores` are before softmax and scaled, `probs` after it; axes ``batch head pixel token``; pixels are
row-major over ``height x width`` of the map. A site's name is the module's dotted path.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_ORDER = {
    "down_blocks": 0,
    "mid_block": 1,
    "up_blocks": 2,
}  # of execution; modules are registered down, up, mid
_BYPASSING = ("AttnProcessor", "SlicedAttnProcessor", "SlicedAttnAddedKVProcessor", "XFormersAttnProcessor")


class UntappedAttention(RuntimeError):
    """A chosen site's attention did not pass through the seam as often as the model was called."""


@dataclass(frozen=True)
class Tap:
    """One text attention as it happens.

    Attributes:
        site: dotted path of the attention module.
        call: forward pass of the model since the block was entered, from 0.
        height: of the map, in pixels of this layer.
        width: of the map; ``height * width`` is the number of queries.
        query: as given to the attention function.
        key: likewise.
        value: likewise.
        scale: factor on the dot products.
        mask: additive mask that the model itself passes, or None.
    """

    site: str
    call: int
    height: int
    width: int
    query: Float[Tensor, "batch head pixel channel"]
    key: Float[Tensor, "batch head token channel"]
    value: Float[Tensor, "batch head token channel"]
    scale: float
    mask: Tensor | None = None
    _known: dict[tuple[int, int], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def scores(self, rows: slice = slice(None)) -> Float[Tensor, "rows head pixel token"]:
        """Return the scaled scores of some rows of the batch, float32, before softmax."""
        scores = self.query[rows].float() @ self.key[rows].float().transpose(-1, -2) * self.scale
        if self.mask is None:
            return scores
        mask = self.mask.expand(len(self.query), *self.mask.shape[1:])[rows]
        return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()

    def probs(self, rows: slice = slice(None)) -> Float[Tensor, "rows head pixel token"]:
        """Return the probabilities of some rows of the batch, float32; every pixel's tokens add up to one."""
        start, stop, _ = rows.indices(len(self.query))
        if (start, stop) not in self._known:
            self._known[start, stop] = self.scores(rows).softmax(-1)
        return self._known[start, stop]


@dataclass(frozen=True)
class Edited:
    """What an edit puts in the place of some rows' attention: `probs`, which need not add up to one."""

    rows: slice
    probs: Float[Tensor, "rows head pixel token"]


Edit = Callable[[Tap], Edited | None]
Record = Callable[[Tap, Edited | None], None]


def cross_attention_sites(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the model's text cross-attention modules, in the order in which they run.

    Raises:
        ValueError: the model has none.
    """
    sites = [n for n, m in model.named_modules() if isinstance(m, Attention) and m.is_cross_attention]
    if not sites:
        raise ValueError(f"model must be a UNet with text cross-attention, got {type(model).__name__} without any")
    return tuple(sorted(sites, key=lambda name: _ORDER.get(name.split(".")[0], len(_ORDER))))


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


@contextmanager
def attending(
    model: nn.Module, sites: Sequence[str], edit: Edit | None = None, record: Record | None = None
) -> Iterator[None]:
    """Call `edit` and `record` at every text attention of the chosen sites while the block runs.

    Both see each (site, forward pass) exactly once, in order of execution. When the block is left, also by an
    exception or an interrupt, every hook is gone.

    Args:
        model: the network whose attention is tapped.
        sites: module paths, see `cross_attention_sites`.
        edit: returns what to put in the place of some rows' probabilities, or None to leave them.
        record: is given the tap and what the edit returned; its return value is ignored.

    Raises:
        ValueError: a site is unknown, or its processor bypasses torch's attention function; nothing is hooked then.
        UntappedAttention: on leaving, if taps do not equal sites times forward passes; passes that raised, or were
            interrupted, do not count.
    """
    modules = _checked(model, sites)
    seam = _Seam(edit, record)
    handles = [
        model.register_forward_pre_hook(seam.begin_pass, with_kwargs=True),
        model.register_forward_hook(seam.end_pass, always_call=True),
    ]
    for site, module in modules.items():
        handles.append(module.register_forward_pre_hook(seam.entering(site), with_kwargs=True))
        handles.append(module.register_forward_hook(seam.leaving, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        seam.unwind()
    missed = {site: seam.whole - seam.taps[site] for site in modules if seam.taps[site] != seam.whole}
    if missed:
        raise UntappedAttention(f"of {seam.whole} forward passes, taps missing by site: {missed}")


def _checked(model: nn.Module, sites: Sequence[str]) -> dict[str, Attention]:
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise ValueError("a compiled model cannot be tapped; pass the model that torch.compile was given")
    valid = cross_attention_sites(model)
    if unknown := [site for site in sites if site not in valid]:
        raise ValueError(f"unknown attention sites {unknown}; the model has {', '.join(valid)}")
    if len(set(sites)) != len(sites) or not sites:
        raise ValueError(f"sites must be at least one and all different, got {list(sites)}")
    modules: dict[str, Attention] = {site: model.get_submodule(site) for site in sites}  # pyright: ignore
    for site, module in modules.items():
        name, backend = type(module.processor).__name__, getattr(module.processor, "_attention_backend", None)
        if name in _BYPASSING or str(getattr(backend, "value", backend or "native")) not in (
            "native",
            "_native_math",
        ):
            raise ValueError(
                f"{site} uses {name} (backend {backend}), which bypasses scaled_dot_product_attention; switch with "
                "model.set_default_attn_processor() on torch 2 or model.set_attention_backend('native')"
            )
    return modules


class _Seam:
    """Counts passes and taps, and keeps the modes that are open."""

    def __init__(self, edit: Edit | None, record: Record | None):
        self.edit, self.record = edit, record
        self.calls, self.running = 0, False
        self.whole = 0  # passes that were not interrupted
        self.size = (0, 0)
        self.taps: Counter[str] = Counter()  # of whole passes
        self.tapped: list[str] = []  # in this pass
        self.open: list[_TextAttention] = []

    def begin_pass(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.unwind()
        sample = args[0] if args else kwargs["sample"]
        self.size = (sample.shape[-2], sample.shape[-1])
        self.calls, self.running, self.tapped = self.calls + 1, True, []

    def end_pass(self, model: nn.Module, args: Any, output: Any) -> None:
        self.running = False
        if output is not None:  # torch calls this hook with None when the pass raised
            self.whole += 1
            self.taps.update(self.tapped)

    def entering(self, site: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
            text = text[0] if isinstance(text, tuple) else text  # IP-Adapter passes (text, images)
            if text is not None:
                mode = _TextAttention(self, site, text.shape[1])
                mode.__enter__()
                self.open.append(mode)

        return enter

    def leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        self.unwind()

    def unwind(self) -> None:
        # torch skips even always-called hooks for KeyboardInterrupt, so a mode of an earlier pass may still be open.
        while self.open:
            self.open.pop().__exit__(None, None, None)

    def attend(self, site: str, attention: Callable[..., Tensor], args: tuple[Any, ...], kwargs: Any) -> Tensor:
        tap = _tap_of(site, self.calls - 1, self.size, *args, **kwargs)
        edited = None if self.edit is None else self.edit(tap)
        if self.running:  # not while gradient checkpointing recomputes a pass
            self.tapped.append(site)
            if self.record is not None:
                self.record(tap, edited)
        output = attention(*args, **kwargs)
        return output if edited is None else _put(output, edited, tap.value)


class _TextAttention(TorchFunctionMode):
    """Hands the module's first attention over keys of the text's length to the seam."""

    def __init__(self, seam: _Seam, site: str, tokens: int):
        super().__init__()
        self.seam, self.site, self.tokens = seam, site, tokens
        self.done = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not self.done:
            key = args[1] if len(args) > 1 else kwargs["key"]
            if key.shape[-2] == self.tokens:
                self.done = True
                return self.seam.attend(self.site, func, args, kwargs)
        return func(*args, **kwargs)


def _tap_of(
    site: str,
    call: int,
    size: tuple[int, int],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tap:
    if is_causal or dropout_p or enable_gqa:
        raise ValueError(f"{site}: causal, dropped-out or grouped attention is no text cross-attention")
    height, width = map_size(query.shape[-2], *size)
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    return Tap(site, call, height, width, query, key, value, factor, attn_mask)


def _put(output: Tensor, edited: Edited, value: Tensor) -> Tensor:
    start, stop, _ = edited.rows.indices(len(output))
    rows = (edited.probs @ value[start:stop].float()).to(output.dtype)
    return torch.cat([output[:start], rows, output[stop:]])
