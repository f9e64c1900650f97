"""The memory of the training stages, as processes, against what training must hold.

Needed are weights, gradients, AdamW's two moments and the average, and what the forward pass of a
batch keeps for its backward pass. All else above ``import torch`` is overhead: other imports, the
images, a copy of the state while it is saved, memory that is free but in pieces.
"""

import torch
from torch import Tensor

from benchmarks.speed.commands import SHORT, workspace
from benchmarks.speed.measuring import execute, peak_memory_of_code
from benchmarks.speed.results import Row
from benchmarks.speed.training import noise_batches, training_step
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.data.registry import DataParams
from maskdm.diffusion.loss import DiffusionParams, denoising_loss, training_times
from maskdm.diffusion.masking import Mask, MaskParams, make_mask, nothing_masked
from maskdm.runtime.devices import choose_device
from maskdm.runtime.params import Params, read_section
from maskdm.training.phases import FinetuneParams, PhaseParams, PretrainParams

PER_PARAMETER = 5 * 4  # bytes: weight, gradient, two moments, average


def memory(preset: Params) -> list[Row]:
    """Take the peak memory of both training stages of the demo, with fewer steps.

    On CUDA it is the memory of the GPU that counts, and what a step takes of it.
    """
    model = read_section(preset, "model", ModelParams)
    grid = read_section(preset, "data", DataParams).resolution // model.patch
    mask = make_mask(read_section(preset, "mask", MaskParams), grid)
    phases: dict[str, tuple[Mask, PhaseParams]] = {
        "pretrain": (mask, read_section(preset, "pretrain", PretrainParams)),
        "finetune": (nothing_masked(grid), read_section(preset, "finetune", FinetuneParams)),
    }
    if choose_device().type == "cuda":
        return [
            _row(phase, "a step on the GPU", on_gpu(preset, *of), bytes_needed(preset, *of))
            for phase, of in phases.items()
        ]
    rows = []
    with workspace(preset, SHORT) as folder:
        execute(["dvc", "repro", "prepare"], folder)
        before = peak_memory_of_code("import torch", folder)
        for stage, (shown, params) in phases.items():
            code = f"import runpy; runpy.run_module('stages.{stage}', run_name='__main__')"
            used = peak_memory_of_code(code, folder) - before
            needed = bytes_needed(preset, shown, params)
            rows.append(_row(stage, "above import torch", 2**30 * used, needed))
    return rows


def _row(stage: str, what: str, used: float, needed: int) -> Row:
    name = f"memory of {stage}, {what}"
    return Row(name, used / 2**20, "MiB", needed / 2**20, 1.2, False)


def on_gpu(preset: Params, mask: Mask, params: PhaseParams) -> int:
    """Return the bytes that a phase takes on the GPU at the peak of a step."""
    before = torch.cuda.memory_allocated()
    step = training_step(preset, mask, params)
    step.call()  # compiles
    torch.cuda.reset_peak_memory_stats()
    step.call()
    return torch.cuda.max_memory_allocated() - before


def bytes_needed(preset: Params, mask: Mask, params: PhaseParams) -> int:
    """Return the bytes that a step of a phase must hold, on the CPU in 32 bits."""
    data = read_section(preset, "data", DataParams)
    model = read_section(preset, "model", ModelParams)
    diffusion = read_section(preset, "diffusion", DiffusionParams)
    backbone = build_backbone(model, data.resolution, data.channels, seed=0)
    weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    batch = noise_batches(preset, mask, params).at(0)
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = denoising_loss(
            lambda x_t, t: backbone(x_t, batch.positions, t, batch.labels),
            batch.tokens,
            batch.noise,
            training_times(batch.uniform, diffusion),
            diffusion,
        )
    del loss  # until here nothing that was kept is freed, and no address is used twice
    return PER_PARAMETER * sum(p.numel() for p in backbone.parameters()) + sum(kept.values())
