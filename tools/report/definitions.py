"""What the names in the evidence mean, in words, from the settings that they stand for."""

from collections.abc import Iterable
from typing import Any

from benchmarks.evidence.plan import read_matrix
from maskdm.runtime.params import Params

MEASURES = {
    "error": "mean squared error of recovered held-out images, whole, at seven noise levels",
    "fd": "Fréchet distance of samples to the training images, in EfficientNet-lite0 features",
    "kid": "kernel distance of the same; both are lower for better samples",
}
PARTS = {
    "patch": "single patches",
    "block": "blocks of {0}×{0} patches",
    "crop": "all but one window",
}


def arms(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the arms of these names with what they do."""
    known = read_matrix()["arms"]
    return [(name, described(known[name])) for name in dict.fromkeys(names) if name in known]


def described(arm: Params) -> str:
    """Return what an arm does, from its settings in matrix.yaml."""
    mask, pretrain, finetune = (arm.get(key, {}) for key in ("mask", "pretrain", "finetune"))
    if not mask:
        return "whole images from random weights on: what masking has to beat"
    legs = pretrain.get("legs")
    said = []
    if "primer" in arm:
        said.append(f"first whole images of {arm['primer']:g} times the side, nothing hidden")
    elif "for" in arm:
        said.append(
            f"{_hidden(mask)} hidden at falling rates, each until the error says that the "
            f"next one goes on at less compute ({_by_dataset(arm['for'])}), then whole images"
        )
    elif legs:
        said.append(f"{_hidden(mask)} hidden at rates {_rates(legs)} in turn, then whole images")
    else:
        said.append(f"{_hidden(mask)} hidden, {100 * mask['rate']:g} %, then whole images")
    if mask.get("scope") == "middle":
        said.append("hidden from the blocks between the first and the last alone")
    if "full_share" in pretrain:
        said.append(f"{100 * pretrain['full_share']:g} % of the masked steps on whole images")
    if "noise_shift" in pretrain:
        said.append("masked steps at ln(N/S) more log-SNR")
    if finetune.get("optimiser") == "kept":
        said.append("going on with the raw weights and AdamW's moments")
    return "; ".join(said)


def tunings(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the tunings of these names with the settings in which they differ."""
    known = read_matrix()["tunings"]
    return [
        (name, ", ".join(_settings(known[name])) or "the part's own settings")
        for name in dict.fromkeys(names)
        if name in known
    ]


def _by_dataset(own: Params) -> str:
    return ", ".join(
        f"{dataset}: {_rates(found['pretrain']['legs'])}" for dataset, found in own.items()
    )


def _rates(legs: Iterable[Params]) -> str:
    return " → ".join(f"{100 * leg['rate']:g} %" for leg in legs)


def _hidden(mask: Params) -> str:
    return PARTS[mask.get("strategy", "patch")].format(mask.get("block_size", ""))


def _settings(found: Params, before: str = "") -> list[str]:
    said: list[str] = []
    for key, value in found.items():
        said += (
            _settings(value, f"{before}{key}.")
            if isinstance(value, dict)
            else [_one(before + key, value)]
        )
    return said


def _one(name: str, value: Any) -> str:
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
