"""The one seam through which attention is observed and edited.

    with attending(pipe.unet, attention_sites(pipe.unet), edit=edit, record=record):
        pipe(prompt)

`scaled_dot_product_attention` is caught by a function mode that is entered only inside the chosen modules, so the
rest of the network pays nothing, and processors (LoRA's, IP-Adapter's) stay as they are. Recording computes the
probabilities beside the untouched call: the image does not change by one bit.

Blocks may be nested: a record sees what the edit of another block does, whichever of them was entered first.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from tracer.sites import Layout, checked_modules, is_joint, map_size
from tracer.tap import Edit, Edited, Record, Replaced, Tap

_SEAM = "_attnreg_seam"  # the model's attribute that holds its seam while there is one


class UntappedAttention(RuntimeError):
    """A chosen site's attention did not pass through the seam as often as the model was called."""


@dataclass
class _Listener:
    """What one block asked for, and the taps that it has had in whole passes."""

    sites: frozenset[str]
    edit: Edit | None
    record: Record | None
    whole: int = 0  # passes that were not interrupted
    taps: Counter[str] = field(default_factory=Counter)


@contextmanager
def attending(
    model: nn.Module, sites: Sequence[str], edit: Edit | None = None, record: Record | None = None
) -> Iterator[None]:
    """Call `edit` and `record` at every text attention of the chosen sites while the block runs.

    A site may also be one of a UNet's self-attention (`tracer.sites.self_attention_sites`): its tokens are then pixels.

    Both see each (site, forward pass) exactly once, in order of execution. When the block is left, also by an
    exception or an interrupt, every hook is gone.

    Args:
        model: the network whose attention is tapped.
        sites: module paths, see `attention_sites`.
        edit: returns what to put in the place of some rows' probabilities, or of their result, or None to leave them.
        record: is given the tap and what the site's edit returned; its return value is ignored.

    Raises:
        ValueError: a site is unknown, or its processor bypasses torch's attention function, or another block edits
            it already, or the attention to edit is joint; nothing is hooked then.
        UntappedAttention: on leaving, if taps do not equal sites times forward passes; passes that raised, or were
            interrupted, do not count.
    """
    modules = checked_modules(model, tuple(sites))
    if edit is not None and is_joint(model):
        raise ValueError(f"the joint attention of {type(model).__name__} can be recorded, but not edited")
    seam: _Seam = getattr(model, _SEAM, None) or _Seam(model)
    listener = _Listener(frozenset(sites), edit, record)
    seam.join(listener, modules)
    try:
        yield
    finally:
        seam.leave(listener)
    missed = {s: listener.whole - listener.taps[s] for s in sites if listener.taps[s] != listener.whole}
    if missed:
        raise UntappedAttention(f"of {listener.whole} forward passes, taps missing by site: {missed}")


def recorded(model: nn.Module) -> bool:
    """Return whether any block records the model's attention at the moment."""
    seam: _Seam | None = getattr(model, _SEAM, None)
    return seam is not None and any(listener.record is not None for listener in seam.listeners)


class _Seam:
    """A model's hooks while any block listens: counts passes and taps, and keeps the modes that are open."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.listeners: list[_Listener] = []
        self.handles: dict[str, list[RemovableHandle]] = {}  # by site; those of the model itself under ""
        self.layout = Layout()
        self.calls, self.running = 0, False
        self.tapped: list[str] = []  # in this pass
        self.open: list[_TextAttention] = []

    def join(self, listener: _Listener, modules: dict[str, nn.Module]) -> None:
        """Begin to listen at these modules."""
        edited = {site for other in self.listeners if other.edit is not None for site in other.sites}
        if listener.edit is not None and (twice := sorted(edited & listener.sites)):
            raise ValueError(f"a site can have one edit at a time, got another for {', '.join(twice)}")
        if not self.listeners:
            setattr(self.model, _SEAM, self)
            before = self.model.register_forward_pre_hook(self.begin_pass, with_kwargs=True)
            self.handles[""] = [before, self.model.register_forward_hook(self.end_pass, always_call=True)]
        for site, module in modules.items():
            if site not in self.handles:
                before = module.register_forward_pre_hook(self.entering(site), with_kwargs=True)
                self.handles[site] = [before, module.register_forward_hook(self.leaving, always_call=True)]
        self.listeners.append(listener)

    def leave(self, listener: _Listener) -> None:
        """Stop listening, and take away the hooks that nobody needs any more."""
        self.listeners.remove(listener)
        needed = {site for other in self.listeners for site in other.sites} | ({""} if self.listeners else set())
        for site in [site for site in self.handles if site not in needed]:
            for handle in self.handles.pop(site):
                handle.remove()
        if not self.listeners:
            self.unwind()
            delattr(self.model, _SEAM)

    def begin_pass(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.unwind()
        self.layout.read(model, args, kwargs)
        # SD3's skip-layer guidance leaves sites out of a pass of its own, which is no sampling pass
        self.running = kwargs.get("skip_layers") is None
        self.calls, self.tapped = self.calls + self.running, []

    def end_pass(self, model: nn.Module, args: Any, output: Any) -> None:
        whole, self.running = self.running and output is not None, False  # None: the pass raised
        for listener in self.listeners if whole else ():
            listener.whole += 1
            listener.taps.update(self.tapped)

    def entering(self, site: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keys: int = self.layout.text + self.layout.height * self.layout.width
            if not self.layout.joint:
                text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
                text = text[0] if isinstance(text, tuple) else text  # IP-Adapter passes (text, images)
                if text is None:  # self-attention, to the image's own pixels
                    text = args[0] if args else kwargs["hidden_states"]
                keys = text.shape[1]
            mode = _TextAttention(self, site, keys)
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
        tap = _tap_of(site, self.calls - 1, self.layout, *args, **kwargs)
        with torch.autocast(tap.query.device.type, enabled=False):  # or products of float32 would be half precision
            edited = self._heard(site, tap)
            rows = _result(tap, edited)
        if edited is None or rows is None:
            return attention(*args, **kwargs)
        return _edited(attention, args, kwargs, edited.rows, rows.to(tap.value.dtype))

    def _heard(self, site: str, tap: Tap) -> Edited | Replaced | None:
        """Return what the site's edit makes of a tap, and let those who record see both."""
        listening = [listener for listener in self.listeners if site in listener.sites]
        edit = next((listener.edit for listener in listening if listener.edit is not None), None)
        edited = None if edit is None else edit(tap)
        if self.running:  # not while gradient checkpointing recomputes a pass
            self.tapped.append(site)
            for listener in listening:
                if listener.record is not None:
                    listener.record(tap, edited if isinstance(edited, Edited) else None)
        return edited


class _TextAttention(TorchFunctionMode):
    """Hands the module's first attention over so many keys to the seam."""

    def __init__(self, seam: _Seam, site: str, keys: int):
        super().__init__()
        self.seam, self.site, self.keys = seam, site, keys
        self.done = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and not self.done:
            key = args[1] if len(args) > 1 else kwargs["key"]
            if key.shape[-2] == self.keys:
                self.done = True
                return self.seam.attend(self.site, func, args, kwargs)
        return func(*args, **kwargs)


def _result(tap: Tap, edited: Edited | Replaced | None) -> Tensor | None:
    """Return the weighted values of the edited rows."""
    if isinstance(edited, Edited):
        return edited.probs @ tap.value[edited.rows].float()
    return None if edited is None else edited.output


def _tap_of(
    site: str,
    call: int,
    layout: Layout,
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
        raise ValueError(f"{site}: causal, dropped-out or grouped attention is no text attention")
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    if not layout.joint:
        height, width = map_size(query.shape[-2], layout.height, layout.width)
        return Tap(site, call, height, width, query, key, value, factor, attn_mask)
    image, text = layout.part()
    if attn_mask is not None and attn_mask.shape[-2] != 1:
        attn_mask = attn_mask[..., image, :]
    return Tap(site, call, layout.height, layout.width, query[..., image, :], key, value, factor, attn_mask, text)


def _edited(
    attention: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], rows: slice, replaced: Tensor
) -> Tensor:
    """Return the attention with some rows replaced; only the others are computed by the model's own function."""
    batch = len(args[0] if args else kwargs["query"])
    start, stop, _ = rows.indices(batch)
    parts = []
    for other in (slice(0, start), slice(stop, batch)):
        if len(range(*other.indices(batch))):
            given = [_part(argument, other, batch) for argument in args]
            parts.append(attention(*given, **{name: _part(value, other, batch) for name, value in kwargs.items()}))
    parts.insert(min(start, 1), replaced)
    return torch.cat(parts) if len(parts) > 1 else replaced


def _part(argument: Any, rows: slice, batch: int) -> Any:
    """Return some rows of query, key, value or mask; anything else, and a mask that all rows share, as it is."""
    return argument[rows] if isinstance(argument, Tensor) and argument.ndim > 0 and len(argument) == batch else argument
