"""What a cell of the matrix trains: the parameters of its two phases, at equal training FLOPs.

A cell is (part, dataset, arm, tuning, share, seed); its part of the matrix sets the budget of
training FLOPs. ``share`` of the budget goes into masked pretraining and the rest into finetuning on
whole images; steps follow from the cost model (``maskdm.training.flops``), so that every cell spends
its budget to within a step. The learning rate is constant after its warm-up and what is judged is the
average of the weights, as in the paper: a run then passes through every shorter run with the same
pretraining, and its points at smaller budgets are those runs' ends.

On a dataset that is ``pretrained_on`` another one, pretraining is not part of the budget (what is
asked there is whether it helps, as it is paid once for many sets): it costs ``share`` budgets more.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.registry import ModelParams
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import MaskParams
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import read_params, validate
from maskdm.training.flops import flops_before, training_flops
from maskdm.training.phases import PretrainParams, pretraining_schedule
from maskdm.training.schedule import Schedule
from tools.tables.needs import network_for

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MATRIX = HERE / "params.yaml"
VALIDATIONS = 24  # over a whole budget, evenly
WARMUP = 0.25  # a warm-up takes no more of its leg

Params = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A run of the matrix.

    Attributes:
        part: of the matrix, with a budget of its own.
        dataset: a key of ``datasets`` in the matrix's params.yaml.
        arm: a key of ``arms``: how the masked part goes.
        tuning: a key of ``tunings``: what else differs.
        share: of the budget that is spent masked, 0 to below 1; of pretraining on another dataset,
            which is beside the budget, how large it is against it.
        seed: of weights, order, masks, times and noise.
    """

    part: str
    dataset: str
    arm: str
    tuning: str
    share: float
    seed: int

    @property
    def name(self) -> str:
        """A file name for it."""
        parts = (self.arm, f"{self.share:g}", self.tuning, f"{self.seed}")
        return f"{self.part}/{self.dataset}/{'_'.join(parts)}"


def read_matrix() -> Params:
    """Return the matrix, the sections of the params file that it starts from under ``base``."""
    matrix = read_params(MATRIX)
    return matrix | {"base": read_params(HERE / matrix["base"])}


def entry(matrix: Params, kind: str, name: str) -> Params:
    """Return an entry of the matrix.

    Raises:
        UserError: if there is none of this name.
    """
    if name not in matrix[kind]:
        known = ", ".join(matrix[kind])
        raise UserError(f"There is no '{name}' among the {kind} of {MATRIX.name}: {known}.")
    return dict(matrix[kind][name] or {})


def cells(matrix: Params, part: str, only: list[str] | None = None) -> list[Cell]:
    """Return the cells of a part of the matrix, those of its matrices in turn.

    Args:
        matrix: the matrix.
        part: a key of ``parts``.
        only: matrices of the part; all of them if empty.

    Raises:
        UserError: if there is no such part, or no such matrix of it.
    """
    found, matrices = [], entry(matrix, "parts", part)["matrices"]
    for name in only or matrices:
        if name not in matrices:
            known = ", ".join(matrices)
            raise UserError(f"There is no '{name}' among the matrices of {part}: {known}.")
        axes = matrices[name]
        for values in product(*axes.values()):
            found.append(Cell(part, **dict(zip(axes, values, strict=True))))
    return found


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


def data_of(matrix: Params, dataset: str) -> Params:
    """Return the sections of a dataset, before an arm and a tuning are laid over them."""
    sections = entry(matrix, "datasets", dataset)
    for key in ("select", "pretrained_on"):
        sections.pop(key, None)
    return merged(matrix["base"], matrix["common"], sections)


def settings_of(matrix: Params, cell: Cell) -> Params:
    """Return the sections of a cell, before its steps are known.

    Raises:
        UserError: if there is no such dataset, arm or tuning.
    """
    return merged(
        data_of(matrix, cell.dataset),
        entry(matrix, "arms", cell.arm),
        entry(matrix, "tunings", cell.tuning),
        entry(matrix, "parts", cell.part).get("settings", {}),
        {"seed": cell.seed},
    )


def plan(matrix: Params, cell: Cell) -> Params:
    """Return a cell's params.yaml, its steps such that it spends its budget.

    Raises:
        UserError: if there is no such dataset, arm or tuning, or it does not fit the budget.
    """
    params, budget = settings_of(matrix, cell), entry(matrix, "parts", cell.part)["budget"]
    network, whole = network_of(params), whole_step(params)
    if cell.share:
        _fit_pretraining(params, network, cell.share * budget)
        every = params["pretrain"]["steps"] * budget / VALIDATIONS / pretraining_flops(params)
        params["pretrain"]["validate_every"] = max(1, round(every))
    else:
        params["pretrain"] |= {"steps": 0, "warmup": 0, "stages": None, "full_share": 0.0}
    beside = "pretrained_on" in entry(matrix, "datasets", cell.dataset)
    masked = 0 if beside else pretraining_flops(params)
    steps = round((budget - masked) / whole)
    if steps < 1:
        raise UserError(f"{cell.name}: a budget of {budget:g} FLOPs leaves no finetuning.")
    warmup = min(params["finetune"]["warmup"], int(WARMUP * steps))
    every = max(1, round(budget / whole / VALIDATIONS))
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
    return pretraining_schedule(
        section, mask, params["data"]["resolution"] // params["model"]["patch"]
    )


def pretraining_flops(params: Params) -> int:
    """Return the training FLOPs of the masked phase of whole sections."""
    if not params["pretrain"]["steps"]:
        return 0
    schedule = pretraining(params)
    return flops_before(network_of(params), schedule, schedule.steps)


def network_of(params: Params) -> Denoiser:
    """Return the network of whole sections, its weights without values."""
    data = validate(params["data"], "data", DataParams, where="matrix")
    return network_for(validate(params["model"], "model", ModelParams, where="matrix"), data)


def whole_step(params: Params) -> int:
    """Return the training FLOPs of a step of finetuning."""
    patches = (params["data"]["resolution"] // params["model"]["patch"]) ** 2
    return training_flops(network_of(params), patches, params["finetune"]["batch_size"])


def points(matrix: Params, cell: Cell) -> list[int]:
    """Return the finetuning steps after which a cell is measured: ``distance_at`` of its budget.

    Points before the warm-up of finetuning is over are left out; the last is the end.
    """
    part, params = entry(matrix, "parts", cell.part), plan(matrix, cell)
    steps, warmup = params["finetune"]["steps"], params["finetune"]["warmup"]
    whole = whole_step(params)
    masked = round(part["budget"] / whole) - steps  # in steps of finetuning; 0 if beside the budget
    asked = (round(at * part["budget"] / whole) - masked for at in part["distance_at"])
    return sorted({step for step in asked if max(1, warmup) <= step < steps} | {steps})
