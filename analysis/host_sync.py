"""What makes the host wait for the device, or copies between them: seen without a graphics card, as far as that goes.

    with HostSyncs() as syncs:
        solve(problem, theta, objective, images)
    assert not syncs.found

Conventions: on the CPU an operation is found that would wait if its tensors lay on a card (a number that is read, a
shape that depends on values); copies can be found only where there are two devices. `Tensor.tolist` and `Tensor.numpy`
of a CPU tensor reach no dispatcher and stay unseen; of a card's tensor they are copies, and found.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# They read a number, or the shape of what they return depends on values.
_WAITING = {
    "_local_scalar_dense", "nonzero", "equal", "allclose", "masked_select", "_unique2", "unique_dim",
    "unique_consecutive", "bincount",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_"}  # by a mask: its places are looked for first, below this mode
_CUDA_SAYS = "called a synchronizing CUDA operation"


class HostSyncs(TorchDispatchMode):
    """Notes every operation under it that waits for the device or moves data between devices; changes none.

    Attributes:
        found: one line per operation, in their order.
    """

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args, kwargs):
            self.found.append(str(func))  # before it runs: where tensors hold no values, it raises
        result = func(*args, **kwargs)
        if len(devices := _devices(func, args, kwargs, result)) > 1:
            self.found.append(f"{func} between {' and '.join(sorted(devices))}")
        return result


@contextmanager
def cuda_sync_warnings(device: torch.device) -> Iterator[list[str]]:
    """Yield a list that holds, once the block has ended, what CUDA itself said of waiting; empty on other devices.

    Warnings of other kinds are passed on at the end. Torch's mode for this is of the process, and is set back.
    """
    said: list[str] = []
    if device.type != "cuda":
        yield said
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield said
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if _CUDA_SAYS in str(warning.message):
            said.append(f"CUDA: waited at {warning.filename}:{warning.lineno}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _waits(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    name = func.overloadpacket.__name__
    if name in _INDEXING:
        masks = [index for index in _tensors(args[1]) if index.dtype in (torch.bool, torch.uint8)]
        fills = len(masks) == 1 and name != "index" and args[2].numel() == 1  # done without looking for the places
        return bool(masks) and not fills
    return name in _WAITING or (str(func) == "aten.repeat_interleave.Tensor" and kwargs.get("output_size") is None)


def _devices(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> set[str]:
    """Return where an operation's tensors lie; a CPU tensor of no axis goes along as a number, unless it is copied."""
    copies = func.overloadpacket.__name__ in ("_to_copy", "copy_")
    given = [tensor for tensor in _tensors((args, kwargs)) if copies or tensor.ndim or tensor.device.type != "cpu"]
    return {str(tensor.device) for tensor in [*given, *(_tensors(result) if given else [])]}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
