"""From a published file of weights to a model folder.

A MaskDM checkpoint holds the training's own tables: ``model`` (its diffusion, in which the network
is ``model.…``), ``ema`` (the average, as ``ema_model.model.…``) and the β of its path. A file of
one table is taken for both raw and averaged weights. Both repositories predict the noise.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskdm.backbones.model_folder import ModelConfig, save_model
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.paths import LINEAR_BETAS, STEPS, cosine_betas
from maskdm.exchange.layouts import LAYOUTS, sizes, translated
from maskdm.exchange.reading import State, read_weights, tensors_under
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import require_empty
from maskdm.runtime.params import validate
from maskdm.runtime.reading import read_small

NETWORK, AVERAGE = "model.", "ema_model.model."  # what the network's names begin with
MOST_BYTES = 2**24  # of a file of names: a thousand have 30 kB
TRAINED_ON = {"uvit": "vp-linear", "maskdm": None}  # the path, if the layout alone says it


def import_model(
    file: Path,
    folder: Path,
    layout: str,
    heads: int | None = None,
    path: str | None = None,
    classes: Sequence[str] | None = None,
) -> ModelConfig:
    """Write a model folder from a published file of weights.

    Args:
        file: a checkpoint or state dictionary of U-ViT or MaskDM.
        folder: for the model; empty, or made.
        layout: one of ``LAYOUTS``.
        heads: of the attention; None: one for every 64 numbers of the width, as published.
        path: what it was trained on; None: what the file or the layout says.
        classes: their names in the order of their labels; None: their numbers.

    Raises:
        UserError: if the file is no such network, or does not say all that must be known.
    """
    if layout not in LAYOUTS:
        raise UserError(f"There is no layout '{layout}': take {' or '.join(LAYOUTS)}.")
    require_empty(folder)
    content, where = read_weights(file), f"{file}"
    raw, averaged = _weights(content, layout, where)
    found = sizes(LAYOUTS[layout], {n: t.shape for n, t in raw.items()}, heads, where)
    names = _class_names(found.classes, classes, layout, where)
    diffusion = _diffusion(_path(content, layout, where) if path is None else path, where)
    values: dict[str, Any] = {
        "size": found.size,
        "channels": found.channels,
        "classes": dict.fromkeys(names, 1) if names else None,
        "seed": 0,
        "model": found.model,
        "diffusion": diffusion,
        "training": [],
    }
    config = validate(values, "config", ModelConfig, where)
    sets = [
        translated(LAYOUTS[layout], state, found, len(names or ()), where)
        for state in (raw, averaged)
    ]
    save_model(folder, config, *sets)
    return config


def names_in(file: Path) -> list[str]:
    """Return the lines of a text file that are not empty.

    Raises:
        UserError: if it is no text file.
    """
    try:
        lines = read_small(file, MOST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is no file of names, one a line: {error}.") from None
    return [line.strip() for line in lines if line.strip()]


def settings(config: ModelConfig, folder: Path) -> dict[str, Any]:
    """Return the parameters of a pipeline that finetunes an imported model, by dotted name.

    Args:
        config: of the model.
        folder: that it is in.
    """
    model = {f"model.{key}": value for key, value in config.model.model_dump().items()}
    diffusion = {f"diffusion.{key}": value for key, value in config.diffusion.model_dump().items()}
    return {
        "finetune.init": folder,
        "pretrain.steps": 0,
        "data.resolution": config.size,
        "data.channels": config.channels,
        "data.classes": str(config.classes is not None).lower(),
        **model,
        **diffusion,
        "sample.guide_scale": 1,
    }


def _weights(content: Mapping[str, Any], layout: str, where: str) -> tuple[State, State]:
    """Return the raw and the averaged weights of a file, by the layout's names."""
    whole = content.get("model")
    if isinstance(whole, Mapping):
        raw = tensors_under(whole, NETWORK, where)
        average = content.get("ema")
        if average is None or (isinstance(average, Mapping) and not average):
            return raw, raw
        return raw, tensors_under(average, AVERAGE, where)
    start = NETWORK if layout == "maskdm" and any(n.startswith(NETWORK) for n in content) else ""
    state = tensors_under(content, start, where)
    return state, state


def _path(content: Mapping[str, Any], layout: str, where: str) -> str:
    """Return the path that a file was trained on."""
    table = content.get("model", content)
    betas = table.get("betas") if isinstance(table, Mapping) else None
    if isinstance(betas, Tensor):
        for name, known in (("ddpm-linear", LINEAR_BETAS), ("ddpm-cosine", cosine_betas(STEPS))):
            same = betas.shape == known.shape
            if same and torch.allclose(betas.double(), known, rtol=0, atol=1e-6):
                return name
        raise UserError(
            f"{where} was trained on a path that is none of ddpm-linear and ddpm-cosine with "
            f"{STEPS} steps: its weights would be misread."
        )
    known_by_layout = TRAINED_ON[layout]
    if known_by_layout is None:
        raise UserError(
            f"{where} does not say what path it was trained on: give --path ddpm-linear (CelebA, "
            "64 pixels) or --path ddpm-cosine (256 pixels)."
        )
    return known_by_layout


def _diffusion(path: str, where: str) -> DiffusionParams:
    """Return the section ``diffusion`` of both repositories: the noise, at uniform times."""
    values: dict[str, Any] = {
        "path": path,
        "prediction": "epsilon",
        "loss": "epsilon",
        "times": "uniform",
        "times_mean": 0.0,
        "times_std": 1.0,
    }
    return validate(values, "diffusion", DiffusionParams, where)


def _class_names(
    rows: int, given: Sequence[str] | None, layout: str, where: str
) -> list[str] | None:
    """Return the names of a file's classes, None without classes."""
    if not rows:
        if given is not None:
            raise UserError(f"{where} has no classes: leave out --classes.")
        return None
    if given is None:
        return [str(number) for number in range(rows)]
    allowed = (rows,) if LAYOUTS[layout].null or rows == 1 else (rows, rows - 1)
    if len(set(given)) != len(given) or len(given) not in allowed:
        raise UserError(
            f"--classes names {len(set(given))} classes in {len(given)} lines, but {where} has "
            f"{rows} embeddings: give {' or '.join(map(str, allowed))} different names, one a line"
            f"{'' if len(allowed) == 1 else ' (one less, if the last stands for no class)'}."
        )
    return list(given)
