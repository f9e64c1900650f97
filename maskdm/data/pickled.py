"""Pickled arrays, read without ever running what a pickle may ask for.

A pickle is a program. This one may build plain values and numpy arrays; any other name that it
asks for ends it (Python's documentation, "Restricting Globals").
"""

import io
import pickle
from typing import Any

ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),  # as numpy before 2 called it
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(content: bytes) -> Any:
    """Return what a pickle holds: plain values and arrays. Strings of Python 2 become str.

    Raises:
        ValueError: if it asks for anything else, or is damaged.
    """
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(str(error) or type(error).__name__) from None
