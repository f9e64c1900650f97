"""Pickled arrays, read without running the code that a pickle may hold.

A pickle is a program (Python's documentation, "Restricting Globals"). One that is read here may
build plain values and arrays of bytes. Whatever it names, it gets classes of ours: numpy's own
would make an array of pointers out of a stranger's bytes.
"""

import io
import math
import pickle
from typing import Any, ClassVar

import numpy as np

MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2


class _Dtype:
    """Stands for ``numpy.dtype``: a name that is never interpreted."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Ignore the rest, byte order and alignment: bytes have none."""


class _Array:
    """Stands for an array while it is read: first empty, then given shape, type and bytes."""

    def __init__(self, *_: object) -> None:
        self.pixels: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Become an array of bytes.

        Args:
            state: version, shape, type, whether in Fortran's order, content.

        Raises:
            ValueError: if it is anything else.
        """
        try:
            _, shape, dtype, fortran, content = state
            content = content.encode("latin1") if isinstance(content, str) else bytes(content)
            whole = len(content) == math.prod(shape) and all(side >= 0 for side in shape)
        except (TypeError, ValueError, AttributeError):
            raise ValueError("an array in it is not one") from None
        if not (isinstance(dtype, _Dtype) and dtype.name in ("u1", "|u1") and whole):
            raise ValueError("an array in it does not hold bytes")
        order: Any = "F" if fortran else "C"
        self.pixels = np.frombuffer(content, np.uint8).reshape(shape, order=order)


class _ArraysOnly(pickle._Unpickler):
    """Python's own unpickler: the one in C takes memory for whatever numbers a pickle holds."""

    def _refuse_bytearray(self) -> None:
        """Refuse the one value for which Python's takes that memory, too."""
        raise pickle.UnpicklingError("it holds a bytearray, which no array needs")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: _refuse_bytearray,
    }

    def find_class(self, module: str, name: str) -> Any:
        standing = {"_reconstruct": _Array, "ndarray": _Array, "dtype": _Dtype}.get(name)
        if module not in MODULES or standing is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return standing


def read_pickle(content: bytes) -> Any:
    """Return the plain values in a pickle; strings of Python 2 become str.

    Arrays of bytes, uint8, are found where they are values of a dict that is the whole.

    Raises:
        ValueError: if the pickle asks for anything else, or is damaged.
    """
    try:
        loaded = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(str(error) or type(error).__name__) from None
    if not isinstance(loaded, dict):
        return loaded
    return {
        key: value.pixels if isinstance(value, _Array) else value for key, value in loaded.items()
    }
