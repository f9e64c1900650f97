"""Tensors in a safetensors file that may come from a stranger: only what can be weights gets in.

The header is read first, which costs nothing. So what does not fit is refused before memory is
taken for it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Size, Tensor

from maskdm.runtime.errors import UserError

# Of any other type they are no weights; converted, they would be other numbers without a word.
KINDS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
LONGEST, MOST = 100, 5  # characters of a name, faults in a message


def stored_shapes(path: Path) -> dict[str, Size]:
    """Return the shape of every tensor in a file, by name, from its header.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if it is damaged, or holds tensors that are no floating-point numbers.
    """
    from safetensors import safe_open

    _require_file(path)
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            kinds = {name: part.get_dtype() for name, part in parts.items()}
            shapes = {name: Size(part.get_shape()) for name, part in parts.items()}
    except Exception as error:  # safetensors does not say which errors damage raises
        raise _damaged(path, error) from None
    wrong = [f"{_short(name)} is {kind}" for name, kind in kinds.items() if kind not in KINDS]
    if wrong:
        raise UserError(
            f"{path} holds no weights: {listed(wrong)}, but weights are of type "
            f"{', '.join(KINDS)}. Restore or retrain the model."
        )
    return shapes


def stored_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file, by name.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if it is damaged, or holds tensors that are no floating-point numbers.
    """
    from safetensors.torch import load_file

    stored_shapes(path)
    try:
        return load_file(path)
    except Exception as error:
        raise _damaged(path, error) from None


def misfits(found: Mapping[str, Size], expected: Mapping[str, Size]) -> str:
    """Return in what tensors differ from those expected, by name and shape; nothing if they fit."""
    faults = [f"{name} is missing" for name in expected if name not in found]
    faults += [f"{_short(name)} is unexpected" for name in found if name not in expected]
    faults += [
        f"{name} has shape {tuple(found[name])} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return listed(faults)


def listed(faults: Iterable[str]) -> str:
    """Return the first of many faults, and how many more there are."""
    every = list(faults)
    more = f"; and {len(every) - MOST} more" if every[MOST:] else ""
    return "; ".join(every[:MOST]) + more


def _short(name: str) -> str:
    """Return a name as a message can show it."""
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}…"


def _require_file(path: Path) -> None:
    """Raise a UserError for what is there and is no file: a pipe would be waited for without end.

    Raises:
        FileNotFoundError: if there is nothing.
        UserError: if it is no file.
    """
    path.stat()
    if not path.is_file():
        raise UserError(f"{path} is no ordinary file: give the folder of a model.")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged: {error}. Restore or retrain the model.")
