"""What a cell of the matrix trains: the parameters of its two phases, at equal training FLOPs.

A cell is (dataset, arm, tuning, share, seed) at a budget of training FLOPs. ``share`` of the budget
goes into masked pretraining and the rest into finetuning on whole images; steps follow from the
cost model (``maskdm.compute``), so that every cell spends its budget to within a step. The learning
rate is constant after its warm-up and what is judged is the average of the weights, as in the
paper: a run then passes through every shorter run with the same pretraining, and its points at
smaller budgets are those runs' ends.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from benchmarks.needs import network_for
from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.registry import ModelParams
from maskdm.compute import flops_before, training_flops
from maskdm.data.sources import DataParams
from maskdm.errors import UserError
from maskdm.masking import MaskParams
from maskdm.params import validate
from maskdm.phases import PretrainParams, pretraining_schedule
from maskdm.schedule import Schedule

VALIDATIONS = 24  # over a whole budget, evenly
WARMUP = 0.25  # a warm-up takes no more of its leg

Params = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A run of the matrix.

    Attributes:
        dataset: a key of ``datasets`` in the matrix's params.yaml.
        arm: a key of ``arms``: how the masked part goes.
        tuning: a key of ``tunings``: what else differs.
        share: of the budget that is spent masked, 0 to below 1.
        seed: of weights, order, masks, times and noise.
        budget: training FLOPs of both phases.
    """

    dataset: str
    arm: str
    tuning: str
    share: float
    seed: int
    budget: float

    @property
    def name(self) -> str:
        """A file name for it."""
        parts = (self.arm, f"{self.share:g}", self.tuning, f"{self.seed}")
        return f"{self.dataset}/{'_'.join(parts)}"


def merged(*layers: Mapping[str, Any]) -> Params:
    """Return sections laid over each other, the last uppermost, key by key."""
    result: Params = {}
    for layer in layers:
        for section, values in layer.items():
            if isinstance(values, Mapping):
                result[section] = {**result.get(section, {}), **deepcopy(values)}
            else:
                result[section] = values
    return result


def settings_of(matrix: Params, base: Params, cell: Cell) -> Params:
    """Return the sections of a cell, before its steps are known.

    Args:
        matrix: the matrix's params.yaml.
        base: the sections that it starts from.
        cell: the cell.

    Raises:
        UserError: if there is no such dataset, arm or tuning.
    """
    layers = [base, matrix["common"]]
    for kind, name in (("datasets", cell.dataset), ("arms", cell.arm), ("tunings", cell.tuning)):
        if name not in matrix[kind]:
            known = ", ".join(matrix[kind])
            raise UserError(f"There is no '{name}' among the {kind} of the matrix: {known}.")
        layers.append(matrix[kind][name] or {})
    return merged(*layers, {"seed": cell.seed})


def plan(matrix: Params, base: Params, cell: Cell) -> Params:
    """Return a cell's params.yaml, its steps such that it spends its budget.

    Raises:
        UserError: if there is no such dataset, arm or tuning, or it does not fit the budget.
    """
    params = settings_of(matrix, base, cell)
    network, whole = network_of(params), whole_step(params)
    masked = 0
    if cell.share:
        _fit_pretraining(params, network, cell.share * cell.budget)
        schedule = pretraining(params)
        masked = flops_before(network, schedule, schedule.steps)
        every = schedule.steps * cell.budget / VALIDATIONS / masked
        params["pretrain"]["validate_every"] = max(1, round(every))
    else:
        params["pretrain"] |= {"steps": 0, "warmup": 0, "stages": None, "full_share": 0.0}
    steps = round((cell.budget - masked) / whole)
    if steps < 1:
        raise UserError(f"{cell.name}: a budget of {cell.budget:g} FLOPs leaves no finetuning.")
    warmup = min(params["finetune"]["warmup"], int(WARMUP * steps))
    every = max(1, round(cell.budget / whole / VALIDATIONS))
    params["finetune"] |= {"steps": steps, "warmup": warmup, "validate_every": every}
    return params


def _fit_pretraining(params: Params, network: Denoiser, flops: float) -> None:
    """Set the steps of masked pretraining such that it costs ``flops``.

    Entries of ``pretrain.stages`` say in ``share`` how much of it is theirs.
    """
    section = params["pretrain"]
    stages = section["stages"] or [{"rate": params["mask"]["rate"], "share": 1.0}]
    lengths = []
    for stage in stages:
        # What a million steps of this stage alone cost, the mixture's whole images among them.
        million = {key: value for key, value in stage.items() if key != "share"}
        alone = merged(params, {"mask": {"rate": stage["rate"]}})
        alone["pretrain"] |= {"stages": [million | {"steps": 10**6}], "steps": 10**6, "warmup": 0}
        cost = flops_before(network, pretraining(alone), 10**6) / 10**6
        lengths.append(max(1, round(stage["share"] * flops / cost)))
    section["steps"] = sum(lengths)
    section["warmup"] = min(section["warmup"], *(int(WARMUP * steps) for steps in lengths))
    if section["stages"]:
        section["stages"] = [
            {key: value for key, value in stage.items() if key != "share"} | {"steps": steps}
            for stage, steps in zip(stages, lengths, strict=True)
        ]


def pretraining(params: Params) -> Schedule:
    """Return the schedule of the masked phase of whole sections."""
    section = validate(params["pretrain"], "pretrain", PretrainParams, where="matrix")
    mask = validate(params["mask"], "mask", MaskParams, where="matrix")
    return pretraining_schedule(section, mask, params["data"]["size"] // params["model"]["patch"])


def network_of(params: Params) -> Denoiser:
    """Return the network of whole sections, its weights without values."""
    data = validate(params["data"], "data", DataParams, where="matrix")
    return network_for(validate(params["model"], "model", ModelParams, where="matrix"), data)


def whole_step(params: Params) -> int:
    """Return the training FLOPs of a step of finetuning."""
    patches = (params["data"]["size"] // params["model"]["patch"]) ** 2
    return training_flops(network_of(params), patches, params["finetune"]["batch_size"])


def points(params: Params, cell: Cell, fractions: list[float]) -> list[int]:
    """Return the finetuning steps after which fractions of the budget are spent.

    Fractions that are spent before its warm-up is over are left out; the last is the end.
    """
    network, whole = network_of(params), whole_step(params)
    masked = 0
    if params["pretrain"]["steps"]:
        schedule = pretraining(params)
        masked = flops_before(network, schedule, schedule.steps)
    steps = (round((fraction * cell.budget - masked) / whole) for fraction in fractions)
    warmup, end = params["finetune"]["warmup"], params["finetune"]["steps"]
    return sorted({step for step in steps if max(1, warmup) <= step < end} | {end})
