"""Files of weights that strangers wrote: tensors and plain values come in, no code runs.

What ``torch.save`` writes is a pickle, which is a program. torch reads it with a list of what it
may build (``weights_only=True``); a file that asks for more is refused.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from maskdm.backbones.stored import KINDS, stored_tensors
from maskdm.runtime.errors import UserError

State = dict[str, Tensor]


def read_weights(path: Path) -> Mapping[str, Any]:
    """Return what a file of weights holds: tensors by name, or several such tables by name.

    Args:
        path: a file of the safetensors format (by its ending), or one that ``torch.save`` wrote.

    Raises:
        UserError: if there is no such file, it is damaged, or its pickle asks to run code.
    """
    if not path.is_file():
        raise UserError(
            f"There is no file {path}: give a file of weights, .pth, .pt, .safetensors."
        )
    if path.suffix == ".safetensors":
        return stored_tensors(path)
    try:
        # Mapped, so that an optimiser's state beside the weights takes no memory.
        mapped = zipfile.is_zipfile(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not read, since it does not only hold weights, and what else a pickle asks "
            f"for could run code ({_reason(error)}). Ask its authors for a file of tensors alone, "
            "such as a state dictionary."
        ) from None
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{path} is damaged, or no file of weights: {_reason(error)}.") from None
    if not _is_table(content):
        raise UserError(
            f"{path} holds no table of tensors by name but a {type(content).__name__}: give a "
            "state dictionary."
        )
    return content


def tensors_under(content: Mapping[str, Any], start: str, where: str) -> State:
    """Return the tensors whose names begin with ``start``, without that beginning.

    Args:
        content: tensors by name.
        start: the beginning; nothing for all.
        where: the file, for messages.

    Raises:
        UserError: if there is no such table, or one of them is no array of floating-point numbers.
    """
    if not _is_table(content):
        raise UserError(
            f"{where} holds a {type(content).__name__} where tensors by name belong: give a state "
            "dictionary, or a checkpoint of the layout's own training."
        )
    state = {n.removeprefix(start): value for n, value in content.items() if n.startswith(start)}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise UserError(f"{where} holds no weights alone: {name} is no array of numbers.")
        if value.dtype not in KINDS.values():
            raise UserError(
                f"{where} holds no weights: {name} is {str(value.dtype).removeprefix('torch.')}, "
                f"but weights are of type {', '.join(KINDS)}."
            )
    return state


def _is_table(content: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(content, Mapping) and all(isinstance(name, str) for name in content)


def _reason(error: Exception) -> str:
    """Return the part of torch's long message that says what it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (telling or lines or [type(error).__name__])[0].split(". ")[0].rstrip(".")[:200]
