"""Arrays out of a Python pickle, by an unpickler that runs none of the file's code.

A pickle is a program that names functions to call. This one knows a few names and answers them itself: the
makers of a NumPy array and of its type, and the spelling of bytes in old protocols. Dictionaries, lists,
tuples, numbers and strings need no names. Everything else is refused, before anything is called.
"""

import math
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datasets.readers.base import Refused
from datasets.readers.column import check_size

SUFFIXES = (".pkl", ".pickle")
DEPTH = 8  # dictionaries in dictionaries
SIZES = {"b1": 1, "i1": 1, "u1": 1, "i2": 2, "u2": 2, "i4": 4, "u4": 4, "i8": 8, "u8": 8}
SIZES |= {"f2": 2, "f4": 4, "f8": 8}


class _Kind:
    """A dtype in the making: a plain number of either byte order, or None for anything else."""

    def __init__(self, name: str) -> None:
        self.name = name.lstrip("<>=|")
        self.order = ">" if name.startswith(">") else "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    @property
    def dtype(self) -> np.dtype | None:
        return np.dtype(self.order + self.name) if self.name in SIZES else None


class _Made:
    """An array in the making; `array` is None where it holds objects or words."""

    array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, transposed, data = state
        self.fill(data, kind, shape, "F" if transposed else "C")

    def fill(self, data: Any, kind: Any, shape: Any, order: Literal["C", "F"]) -> None:
        """`array` from its bytes."""
        if not isinstance(kind, _Kind) or kind.dtype is None:
            return
        if isinstance(data, str):  # Python 2 wrote bytes as text
            data = data.encode("latin1")
        sizes = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
        if (
            not sizes
            or not isinstance(data, bytes | bytearray)
            or math.prod(shape) * kind.dtype.itemsize != len(data)
        ):
            raise Refused("corrupt", "an array's bytes do not fill its shape")
        self.array = np.frombuffer(data, kind.dtype).reshape(shape, order=order)


def _dtype(name: Any, *_: Any) -> _Kind:
    return _Kind(name if isinstance(name, str) else "")


def _array(*_: Any) -> _Made:
    return _Made()


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any = "C") -> _Made:
    """How protocol 5 writes arrays."""
    made = _Made()
    made.fill(data, kind, shape, "F" if order == "F" else "C")
    return made


def _scalar(kind: Any, data: Any = b"") -> float | None:
    """A NumPy number."""
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(kind, _Kind) or kind.dtype is None or len(raw) != kind.dtype.itemsize:
        return None
    return float(np.frombuffer(raw, kind.dtype)[0])


def _bytes(text: Any, encoding: Any = "latin1") -> bytes:
    """What protocol 2 writes for bytes; other encodings could inflate a few bytes to gigabytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("unsupported", "it asks for a conversion that no array needs")
    return text.encode("latin1")


def _empty() -> bytes:
    """What protocol 2 writes for no bytes at all."""
    return b""


class _Known:
    """A function as a pickle gets it: it can be called, and nothing of it can be changed."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *given: Any) -> Any:
        return self._call(*given)

    def __setstate__(self, _: Any) -> None:
        raise Refused("unsupported", "it changes a function")


_CORES = ("numpy.core", "numpy._core")
_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): lambda: None,  # an argument, never called
    ("_codecs", "encode"): _bytes,
    **{(core, "bytes"): _empty for core in ("__builtin__", "builtins")},
    **{(f"{core}.multiarray", "_reconstruct"): _array for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _frombuffer for core in _CORES},
}
KNOWN = {name: _Known(call) for name, call in _NAMES.items()}
# what a damaged program raises; Refused passes
BROKEN = (
    *(pickle.UnpicklingError, EOFError, ArithmeticError, AttributeError, LookupError, MemoryError),
    *(RecursionError, TypeError, ValueError),
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Known:
        found = KNOWN.get((module, name))
        if found is None:
            raise Refused(
                "unsupported",
                f"it asks for {module}.{name}: only arrays, dictionaries, lists, numbers and words are read",
            )
        return found

    def persistent_load(self, _: Any) -> Any:
        raise Refused("unsupported", "it refers to objects outside the file")


def arrays(path: Path) -> dict[str, np.ndarray]:
    """`_arrays` of the file; the last one is kept, as each signal and label of a record opens its file."""
    return _arrays(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _arrays(path: Path, _changed: int) -> dict[str, np.ndarray]:
    """{"signal/wrist/BVP": array} of a pickled dictionary: arrays of numbers, and numbers and lists of
    numbers as arrays. Words and arrays of objects are left out.

    Refused: it is no dictionary, asks for anything but the above, or is damaged.
    """
    check_size(path.name, path.stat().st_size)
    try:
        with path.open("rb") as file:
            found = _Unpickler(file, encoding="latin1").load()
    except BROKEN as error:
        raise Refused("corrupt", f"it is no whole pickle ({type(error).__name__})") from error
    if not isinstance(found, dict):
        what = "an array" if isinstance(found, _Made) else type(found).__name__
        raise Refused("unsupported", f"it holds {what}, not a dictionary")
    flat: dict[str, np.ndarray] = {}
    _flatten(found, "", DEPTH, flat)
    return flat


def _flatten(inside: dict[Any, Any], above: str, depth: int, flat: dict[str, np.ndarray]) -> None:
    for key, value in inside.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and depth:
            _flatten(value, f"{name}/", depth - 1, flat)
        elif isinstance(value, _Made) and value.array is not None:
            flat[name] = value.array
        elif isinstance(value, int | float) or (
            isinstance(value, list | tuple) and value and all(isinstance(v, int | float) for v in value)
        ):
            flat[name] = np.asarray(value, np.float64)
