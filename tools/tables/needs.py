"""What the presets are computed to need on one GPU: memory and hours. Nothing here is measured.

The table in docs/presets.md. FLOPs are those of the cost model (``maskdm/training/flops.py``);
hours assume a rate; memory is weights, gradients, AdamW's moments and the average in 32 bits, the
weights' 16-bit copies, and what autograd keeps of the images that are in flight.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.presets import names, read_preset
from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.registry import ModelParams, backbone_without_weights, build_backbone
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import MaskParams
from maskdm.runtime.params import Params, read_section
from maskdm.training.flops import flops_before
from maskdm.training.phases import (
    FinetuneParams,
    PretrainParams,
    finetuning_schedule,
    pretraining_schedule,
)
from maskdm.training.schedule import Schedule

FLOPS_PER_SECOND = 0.4 * 312e12  # an assumed 40 % of an A100's dense 16-bit peak
BYTES_PER_PARAMETER = 5 * 4 + 2  # weight, gradient, two moments, average; autocast's copy
MICRO_BATCH = 16  # images in flight, MASKDM_MICRO_BATCH
FEW = 8  # patches on which is counted what one keeps
CLASSES = {"imagenet": 1000}  # of the conditional presets that need a GPU


@dataclass(frozen=True)
class Needs:
    """What a preset needs.

    Attributes:
        parameters: of the network.
        masked: training FLOPs of pretraining.
        full: training FLOPs of finetuning.
        memory: bytes with ``MICRO_BATCH`` whole images in flight.
    """

    parameters: int
    masked: int
    full: int
    memory: int

    @property
    def hours(self) -> float:
        """Hours at ``FLOPS_PER_SECOND``, without validation, sampling and scoring."""
        return (self.masked + self.full) / FLOPS_PER_SECOND / 3600


def needs(preset: Params) -> Needs:
    """Return what a preset's training is computed to need."""
    network = network_of(preset)
    parameters = parameters_of(network)

    def flops(schedule: Schedule) -> int:
        return flops_before(network, schedule, schedule.steps)

    pretraining, finetuning = schedules(preset)
    return Needs(
        parameters=parameters,
        masked=flops(pretraining),
        full=flops(finetuning),
        memory=BYTES_PER_PARAMETER * parameters + MICRO_BATCH * bytes_kept_by(preset),
    )


def network_of(preset: Params) -> Denoiser:
    """Return a preset's network, its weights without values."""
    model = read_section(preset, "model", ModelParams)
    data = read_section(preset, "data", DataParams)
    return backbone_without_weights(model, data.resolution, data.channels, _classes(data))


def parameters_of(network: Denoiser) -> int:
    """Return how many parameters a network has."""
    return sum(p.numel() for p in network.parameters())


def schedules(preset: Params) -> tuple[Schedule, Schedule]:
    """Return the schedules of a preset's pretraining and finetuning."""
    model = read_section(preset, "model", ModelParams)
    grid = read_section(preset, "data", DataParams).resolution // model.patch
    pretrain = read_section(preset, "pretrain", PretrainParams)
    finetune = read_section(preset, "finetune", FinetuneParams)
    mask = read_section(preset, "mask", MaskParams)
    return pretraining_schedule(pretrain, mask, grid), finetuning_schedule(finetune, grid)


def _classes(data: DataParams) -> int:
    return CLASSES.get(data.source, 0) if data.classes else 0


def bytes_kept_by(preset: Params) -> int:
    """Return what autograd keeps of one whole image of a preset."""
    data = read_section(preset, "data", DataParams)
    return bytes_kept(read_section(preset, "model", ModelParams), data, _classes(data))


def bytes_kept(model: ModelParams, data: DataParams, classes: int) -> int:
    """Return what autograd keeps of one whole image's forward pass in 16 bits.

    Counted on one and on three blocks, on a few visible patches, and drawn out to all: every pair
    of blocks keeps the same, and so does every patch where attention is fused.
    """

    def a_patch_keeps(depth: int) -> int:
        shallow = model.model_copy(update={"depth": depth})
        network = build_backbone(shallow, data.resolution, data.channels, 0, classes)
        values = model.patch**2 * data.channels
        return (_kept(network, 2 * FEW, values) - _kept(network, FEW, values)) // FEW

    one, three = a_patch_keeps(1), a_patch_keeps(3)
    return (data.resolution // model.patch) ** 2 * (one + (three - one) // 2 * (model.depth - 1))


def _kept(network: Denoiser, visible: int, values: int) -> int:
    """Return the bytes of all that a forward pass on one image saves for backward."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        output = network(
            torch.zeros(1, visible, values), torch.arange(visible)[None], torch.zeros(1)
        )
    del output  # until here nothing that was kept is freed, and no address is used twice
    return sum(kept.values())


def table() -> str:
    """Return the table of the presets that need a GPU, in Markdown."""
    lines = [
        "| preset | parameters | masked, PFLOP | whole, PFLOP | hours | memory, GiB |",
        "|---|---|---|---|---|---|",
    ]
    for name in names():
        need = needs(read_preset(name))
        if need.hours < 1:
            continue  # a laptop's
        figures = (need.masked / 1e15, need.full / 1e15, need.hours, need.memory / 2**30)
        cells = " | ".join(f"{float(f'{figure:.2g}'):,g}" for figure in figures)
        lines.append(f"| `{name}` | {need.parameters:,} | {cells} |")
    return "\n".join(lines)
