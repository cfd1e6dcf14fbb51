"""Pickles of plain data, read without running what they name.

Conventions: plain are dicts, lists, tuples, sets, text, bytes, numbers, and numpy's arrays and scalars of numbers or
text. numpy's own unpickling trusts what the file says of an array's elements, so that is done here instead.
"""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 64 * 2**20
_ELEMENTS = re.compile(r"b1|[iufcSU]\d+")


class _Elements:
    """Stands for a dtype while reading."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if not isinstance(code, str) or not _ELEMENTS.fullmatch(code):
            raise ValueError(f"an array must be of numbers or text, got elements {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if any(part is not None for part in state[2:5]):
            raise ValueError("an array must be of numbers or text, got elements with fields")
        self.dtype = self.dtype.newbyteorder(state[1])

    @classmethod
    def scalar(cls, elements: "_Elements", raw: bytes) -> Any:
        return np.frombuffer(raw, elements.dtype, count=1)[0]


class _Array:
    """Stands for an array while reading, as its state comes after it."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, elements, is_fortran, raw = state
        self.values = self.filled(raw, elements, shape, "F" if is_fortran else "C").values

    @classmethod
    def empty(cls, kind: Any, shape: Any, code: Any) -> "_Array":
        return cls()

    @classmethod
    def filled(cls, raw: bytes | bytearray, elements: _Elements, shape: tuple[int, ...], order: Any) -> "_Array":
        array = cls()
        array.values = np.frombuffer(raw, elements.dtype).reshape(shape, order=order).copy()
        return array


_ALLOWED: dict[str, Any] = {
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Elements,
} | {
    f"numpy.{core}.{name}": made
    for core in ("core", "_core")  # numpy has moved them
    for name, made in (
        ("multiarray._reconstruct", _Array.empty),
        ("multiarray.scalar", _Elements.scalar),
        ("numeric._frombuffer", _Array.filled),
    )
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise ValueError(f"{module}.{name} is refused; only containers, text, numbers and numpy arrays are read")
        return _ALLOWED[f"{module}.{name}"]


def read_pickle(path: Path) -> Any:
    """Return what a pickle holds if it is plain data; nothing that it names is run.

    Raises:
        ValueError: it names anything else, is no pickle, or has more than 64 MiB.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} must have at most {MOST_BYTES:,} bytes, got {path.stat().st_size:,}")
    try:
        return _plain(_Restricted(io.BytesIO(path.read_bytes())).load(), {})
    except Exception as error:  # bad bytes raise anything: IndexError, KeyError, MemoryError, RecursionError
        raise ValueError(f"{path} must be a pickle of plain data: {error or type(error).__name__}") from error


def _plain(value: Any, known: dict[int, Any]) -> Any:
    """Return the value with arrays instead of what stood for them; what is shared is looked at once."""
    if id(value) not in known:
        made = value
        if isinstance(value, _Array):
            made = value.values
        elif isinstance(value, _Elements):
            made = value.dtype
        elif isinstance(value, dict):
            made = {_plain(key, known): _plain(entry, known) for key, entry in value.items()}
        elif isinstance(value, list | tuple | set | frozenset):
            made = type(value)(_plain(entry, known) for entry in value)
        elif not isinstance(value, str | bytes | bytearray | int | float | complex | np.generic | None):
            raise ValueError(f"data must be plain, got {value!r:.100}")
        known[id(value)] = made
    return known[id(value)]
