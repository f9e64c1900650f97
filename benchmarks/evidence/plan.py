"""What a run of the matrix trains: the parameters of its two phases, at equal training FLOPs.

A run is (part, dataset, arm, tuning, share, seed); its part of the matrix sets the budget of
training FLOPs. ``share`` of the budget goes into masked pretraining and the rest into finetuning on
whole images; steps follow from the cost model (``maskdm.training.flops``), so that every run spends
its budget to within a step. The learning rate is constant after its warm-up and the averaged
weights are judged, as in the paper: a run then passes through every shorter run with the same
pretraining, and its points at smaller budgets are the ends of those runs.

On a dataset that is ``pretrained_on`` another one, pretraining is not part of the budget (the
question there is whether it helps, as it is paid once for many sets): it costs ``share`` budgets
more.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from benchmarks.presets import read_preset
from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.registry import ModelParams, backbone_without_weights
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import MaskParams
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Params, merge, read_params, validate
from maskdm.training.flops import flops_before, training_flops
from maskdm.training.phases import PretrainParams, pretraining_schedule
from maskdm.training.schedule import Schedule

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MATRIX = HERE / "matrix.yaml"
VALIDATIONS = 24  # over a whole budget, evenly
WARMUP = 0.25  # the largest share of a leg that its warm-up takes


@dataclass(frozen=True)
class Run:
    """One run of the matrix.

    Attributes:
        part: of the matrix, with a budget of its own.
        dataset: a key of ``datasets`` in matrix.yaml.
        arm: a key of ``arms``: how the masked part goes.
        tuning: a key of ``tunings``: what else differs.
        share: of the budget that is spent masked, 0 to below 1; of pretraining on another dataset,
            which is outside the budget, its size in budgets.
        seed: of weights, order, masks, times and noise.
        of: the share of the part's budget that it has.
    """

    part: str
    dataset: str
    arm: str
    tuning: str
    share: float
    seed: int
    of: float = 1.0

    @property
    def name(self) -> str:
        """A file name for it."""
        parts = [self.arm, f"{self.share:g}", self.tuning, f"{self.seed}"]
        if self.of != 1:
            parts.append(f"of-{self.of:g}")
        return f"{self.part}/{self.dataset}/{'_'.join(parts)}"


def read_matrix() -> Params:
    """Return the matrix; under ``base``, the whole params of the preset that it starts from."""
    matrix = read_params(MATRIX)
    return matrix | {"base": read_preset(matrix["base"])}


def entry(matrix: Params, kind: str, name: str) -> Params:
    """Return an entry of the matrix.

    Raises:
        UserError: if there is none of this name.
    """
    if name not in matrix[kind]:
        known = ", ".join(matrix[kind])
        raise UserError(f"There is no '{name}' among the {kind} of {MATRIX.name}: {known}.")
    return dict(matrix[kind][name] or {})


def runs_of(matrix: Params, part: str, only: list[str] | None = None) -> list[Run]:
    """Return the runs of a part of the matrix, one of its matrices after the other.

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
            found.append(Run(part, **dict(zip(axes, values, strict=True))))
    return found


def data_of(matrix: Params, dataset: str) -> Params:
    """Return the sections of a dataset, before an arm and a tuning are laid over them."""
    sections = entry(matrix, "datasets", dataset)
    for key in ("select", "pretrained_on", "half_as_large"):
        sections.pop(key, None)
    return merge(matrix["base"], matrix["common"], sections)


def settings_of(matrix: Params, run: Run) -> Params:
    """Return the sections of a run, before its steps are known.

    Raises:
        UserError: if there is no such dataset, arm or tuning.
    """
    return merge(
        data_of(matrix, run.dataset),
        entry(matrix, "parts", run.part).get("settings", {}),
        arm_of(matrix, run),
        entry(matrix, "tunings", run.tuning),
        {"seed": run.seed},
    )


def arm_of(matrix: Params, run: Run) -> Params:
    """Return the sections of a run's arm; ``for`` has what is for one dataset alone.

    Raises:
        UserError: if there is no such arm, or it is not for this dataset.
    """
    arm = entry(matrix, "arms", run.arm)
    if "for" not in arm:
        return arm
    by_dataset = arm.pop("for")
    if run.dataset not in by_dataset:
        known = ", ".join(by_dataset)
        raise UserError(f"The arm {run.arm} is for {known}, and not for {run.dataset}.")
    return merge(arm, by_dataset[run.dataset])


def plan(matrix: Params, run: Run) -> Params:
    """Return the params.yaml of a run, whose steps spend its budget.

    Raises:
        UserError: if there is no such dataset, arm or tuning, or it does not fit the budget.
    """
    params, budget = settings_of(matrix, run), run.of * entry(matrix, "parts", run.part)["budget"]
    if "spending" in entry(matrix, "parts", run.part):
        return spend_evenly(params, budget, run.share, entry(matrix, "parts", run.part)["spending"])
    network, whole = network_of(params), whole_step(params)
    if run.share:
        _fit_pretraining(params, network, run.share * budget)
        every = params["pretrain"]["steps"] * budget / VALIDATIONS / pretraining_flops(params)
        params["pretrain"]["validate_every"] = max(1, round(every))
    else:
        params["pretrain"] |= {"steps": 0, "warmup": 0, "legs": None, "full_share": 0.0}
    outside = "pretrained_on" in entry(matrix, "datasets", run.dataset)
    masked = 0 if outside else pretraining_flops(params)
    steps = round((budget - masked) / whole)
    if steps < 1:
        raise UserError(f"{run.name}: a budget of {budget:g} FLOPs leaves no finetuning.")
    warmup = min(params["finetune"]["warmup"], int(WARMUP * steps))
    every = max(1, round(budget / whole / VALIDATIONS))
    params["finetune"] |= {"steps": steps, "warmup": warmup, "validate_every": every}
    return params


def spend_evenly(params: Params, budget: float, share: float, spending: Params) -> Params:
    """Return the params.yaml of a run whose phases and warm-ups are shares of its budget.

    Args:
        params: all sections, steps and masked batches aside; ``primer``: the share of the side that
            the images of the first phase have.
        budget: training FLOPs.
        share: of them, spent in the first phase.
        spending: ``warmup`` and ``cooldown``: steps, as shares of those that the whole budget would
            be on whole images; ``average``: the averages' horizon as a share of a phase's images;
            ``masked_batch``: images of a step of the first phase, in batches of the last;
            ``validations``: over the budget.
    """
    params = deepcopy(params)
    primed = primer_of(params)
    params.pop("primer", None)
    total = budget / whole_step(params)  # steps, if all were on whole images
    first, last = params["pretrain"], params["finetune"]
    legs = first["legs"] or [{"rate": params["mask"]["rate"], "share": 1.0}]
    made = []
    for leg in legs if share else []:
        alone = {"legs": None, "steps": 1, "warmup": 0, "cooldown": 0}
        mask = pretraining(merge(primed, {"mask": {"rate": leg["rate"]}, "pretrain": alone})).mask(
            0
        )
        image = training_flops(network_of(primed), mask.shown, 1, mask.in_middle)
        batch = spending["masked_batch"] * last["batch_size"]
        steps = max(1, round(leg["share"] * share * budget / (batch * image)))
        made.append({"rate": leg["rate"], "batch_size": batch, "steps": steps, "warmup": 0})
    spent = sum(leg["steps"] for leg in made)
    warmup = round(spending["warmup"] * total)
    if made:
        made[0]["warmup"] = min(warmup, made[0]["steps"] // 2)
    first |= {"steps": spent, "legs": made if len(made) > 1 else None, "warmup": 0, "cooldown": 0}
    if made:
        first |= {key: made[0][key] for key in ("batch_size", "warmup")}
    steps = max(1, round((1 - share) * total))
    kept = bool(share) and last["optimiser"] == "kept"
    last["steps"], last["warmup"] = steps, 0 if kept else min(warmup, steps // 4)
    last["cooldown"] = min(round(spending["cooldown"] * total), steps - last["warmup"])
    images = sum(leg["steps"] * leg["batch_size"] for leg in made)
    first["ema_images"] = max(1, round(spending["average"] * images))
    last["ema_images"] = max(1, round(spending["average"] * steps * last["batch_size"]))
    first["validate_every"] = last["validate_every"] = max(
        1, round(total / spending["validations"])
    )
    return params


def primer_of(params: Params) -> Params:
    """Return the sections of the first phase, whose images may be smaller."""
    side = round(params["data"]["resolution"] * params.get("primer", 1.0))
    return merge(params, {"data": {"resolution": side}})


def _fit_pretraining(params: Params, network: Denoiser, flops: float) -> None:
    """Set the steps of masked pretraining such that it costs ``flops``.

    Entries of ``pretrain.legs`` say in ``share`` how much of it is theirs.
    """
    section = params["pretrain"]
    legs = section["legs"] or [{"rate": params["mask"]["rate"], "share": 1.0}]
    lengths = []
    for leg in legs:
        # What a million steps of this leg alone cost, with the mixture's whole images.
        million = {key: value for key, value in leg.items() if key != "share"} | {"steps": 10**6}
        pretrain = {"legs": [million], "steps": 10**6, "warmup": 0}
        alone = merge(params, {"mask": {"rate": leg["rate"]}, "pretrain": pretrain})
        cost = flops_before(network, pretraining(alone), 10**6) / 10**6
        lengths.append(max(1, round(leg["share"] * flops / cost)))
    section["steps"] = sum(lengths)
    section["warmup"] = min(section["warmup"], *(int(WARMUP * steps) for steps in lengths))
    if section["legs"]:
        section["legs"] = [
            {key: value for key, value in leg.items() if key != "share"} | {"steps": steps}
            for leg, steps in zip(legs, lengths, strict=True)
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
    """Return the network of whole sections, without values; all runs are unconditional."""
    data = validate(params["data"], "data", DataParams, where="matrix")
    model = validate(params["model"], "model", ModelParams, where="matrix")
    return _network(model, data.resolution, data.channels)


@cache
def _network(model: ModelParams, size: int, channels: int) -> Denoiser:
    """Return a network without values; most runs of the matrix share one."""
    return backbone_without_weights(model, size, channels)


def whole_step(params: Params) -> int:
    """Return the training FLOPs of a step of finetuning."""
    patches = (params["data"]["resolution"] // params["model"]["patch"]) ** 2
    return training_flops(network_of(params), patches, params["finetune"]["batch_size"])


def points(matrix: Params, run: Run) -> list[int]:
    """Return the finetuning steps after which a run is measured: ``distance_at`` of its budget.

    Points before the warm-up of finetuning is over are left out; the last is the end.
    """
    part, params = entry(matrix, "parts", run.part), plan(matrix, run)
    steps, warmup = params["finetune"]["steps"], params["finetune"]["warmup"]
    whole = whole_step(params)
    # The masked part in steps of finetuning; 0 if it is outside the budget.
    budget = run.of * part["budget"]
    masked = round(budget / whole) - steps
    asked = (round(at * budget / whole) - masked for at in part["distance_at"])
    return sorted({step for step in asked if max(1, warmup) <= step < steps} | {steps})
