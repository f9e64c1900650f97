"""Pickled arrays, read without running the code that a pickle may hold.

A pickle is a program. One that is read here may build plain values and numpy arrays; if it asks for
any other name, it is refused (Python's documentation, "Restricting Globals").
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
    """Return the plain values and arrays in a pickle; strings of Python 2 become str.

    Raises:
        ValueError: if the pickle asks for anything else, or is damaged.
    """
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(str(error) or type(error).__name__) from None
