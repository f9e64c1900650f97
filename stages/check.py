"""Check the whole of params.yaml, before any other stage deletes or computes anything."""

import os
from inspect import signature
from pathlib import Path
from typing import Any

from maskdm.backbones.autoencoder import Latents, autoencoder_hash, latent_shape
from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.model_folder import MOMENTS, ModelConfig, check_start, load_config
from maskdm.backbones.registry import ModelParams, backbone_without_weights
from maskdm.data.prepared import block_of
from maskdm.data.registry import DataParams
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.masking import Mask, MaskParams, describe
from maskdm.evaluation.distances import FidParams
from maskdm.evaluation.features.registry import EXTRACTORS
from maskdm.runtime.command import run
from maskdm.runtime.errors import UNDO, UserError, shortened
from maskdm.runtime.files import write_text
from maskdm.runtime.folders import same_folder
from maskdm.runtime.params import (
    MOST_FAULTS,
    ParamsError,
    Seed,
    read_params,
    read_section,
)
from maskdm.runtime.shard_cache import check_room
from maskdm.runtime.shard_sender import usable
from maskdm.runtime.sharded import Window
from maskdm.sampling.model import check_guide
from maskdm.sampling.sampler import SampleParams, check_sampling
from maskdm.training.memory import NUMBER, Memory, batch_bytes, check_memory, least_bytes
from maskdm.training.phases import (
    FinetuneParams,
    PhaseParams,
    PretrainParams,
    check_mirroring,
    finetuning_schedule,
    pretraining_schedule,
)

PARAMS = Path("params.yaml")
PRIMER = "models/pretrain"
SMALLER = (
    "lower model.dim, model.depth or data.resolution, or spread the weights over several "
    "processes with MASKDM_SHARD=1"
)
SECTIONS = {
    "seed": Seed,
    "data": DataParams,
    "model": ModelParams,
    "diffusion": DiffusionParams,
    "mask": MaskParams,
    "pretrain": PretrainParams,
    "finetune": FinetuneParams,
    "sample": SampleParams,
    "fid": FidParams,
}


def main() -> None:
    """Check params.yaml.

    Reads all of params.yaml, and downloads the weights of fid.features.extractor if they are not
    there yet. Writes data/checked, a file that is always the same: the other stages come after it,
    so they start only once this one has passed, yet never rerun for it.
    """
    try:
        check(PARAMS)
        EXTRACTORS[read_section(PARAMS, "fid", FidParams).features.extractor].weights()
    except UserError as error:
        raise UserError(f"{error}\nNothing was computed or deleted. {UNDO}") from None
    write_text(Path("data/checked"), "params.yaml was checked.\n")


def check(path: Path) -> None:
    """Check every section of a params file, and that they fit together.

    Raises:
        UserError: saying everything that is wrong with the sections, or the first thing that does
            not fit.
    """
    content = read_params(path)
    unknown = [shortened(str(name)) for name in content if name not in SECTIONS]
    faults = [
        f"{path} has an unknown section '{name}'; it takes {', '.join(SECTIONS)}."
        for name in unknown[:MOST_FAULTS]
    ]
    if unknown[MOST_FAULTS:]:
        faults.append(f"{path} has {len(unknown) - MOST_FAULTS} more of them.")
    sections: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        try:
            sections[name] = read_section(content, name, kind, where=str(path))
        except ParamsError as error:
            faults.append(str(error))
    if faults:
        raise ParamsError("\n".join(faults))
    _check_fit(**sections)


def _check_fit(
    data: DataParams,
    model: ModelParams,
    diffusion: DiffusionParams,
    mask: MaskParams,
    pretrain: PretrainParams,
    finetune: FinetuneParams,
    sample: SampleParams,
    fid: FidParams,
    seed: int,
) -> None:
    """Check what more than one section, or more than one key, decides."""
    latents = _planned_latents(data)
    size = latents.size if latents else data.resolution
    channels = latents.channels if latents else data.channels
    # All the checks of the real thing, none of its memory.
    network = backbone_without_weights(model, size, channels, int(data.classes))
    grid = size // model.patch
    masked, whole = pretraining_schedule(pretrain, mask, grid), finetuning_schedule(finetune, grid)
    if data.window and data.shards:
        shape = (data.resolution, data.resolution, data.channels)
        check_room(Window(data.window, block_of(shape)).room(shape))
        usable(data.shards)
    memory = Memory.of_this_machine()
    for name, schedule in (("pretrain", masked), ("finetune", whole)):
        least = least_bytes(network, schedule, model.dim, model.depth)
        check_memory(name, least, memory.device, SMALLER)
        least = batch_bytes(schedule, model.patch**2 * channels)
        check_memory(f"A batch of {name}", least, memory.host, f"lower {name}.batch_size")
    _check_samples_fit(sample, data, fid, memory)
    for name, phase in (("pretrain", pretrain), ("finetune", finetune)):
        check_mirroring(name, phase.hflip, latents is not None)
    for leg in masked.legs:
        if leg.mask.in_middle is not None:
            _check_middle(network, model.backbone, leg.mask)
        print(describe(leg.mask))
    _check_start(finetune, data, latents, model, diffusion)
    check_sampling(sample, conditional=data.classes)
    if sample.guided:
        _check_guide(sample, pretrain, data, latents, model, diffusion, seed)
    _check_null_labels(sample, pretrain, finetune, data)


def _check_samples_fit(
    sample: SampleParams, data: DataParams, fid: FidParams, memory: Memory
) -> None:
    """Check that the samples, and then their features, fit into memory."""
    pixels = sample.count * data.resolution**2 * data.channels
    features = sample.count * EXTRACTORS[fid.features.extractor].count * NUMBER
    least = max(pixels, features)
    check_memory("sample.count", least, memory.host, f"lower it from {sample.count}")


def _check_start(
    finetune: FinetuneParams,
    data: DataParams,
    latents: Latents | None,
    model: ModelParams,
    diffusion: DiffusionParams,
) -> None:
    """Check that finetuning can start from the model that it names, unless that is the primer."""
    if same_folder(finetune.init, PRIMER):
        return
    start = Path(finetune.init)
    try:
        before = load_config(start)
    except UserError as error:
        raise UserError(
            f"finetune.init is '{shortened(finetune.init)}': {error}{_where(start)}"
        ) from None
    autoencoder = latents.hash if latents else None
    check_start(start, before, model, diffusion, data.classes, autoencoder=autoencoder)
    if finetune.optimiser == "kept" and not (start / MOMENTS).exists():
        raise UserError(
            f"finetune.optimiser is kept, but {start} has no {MOMENTS}, which pretraining "
            "leaves in its own folder: set finetune.optimiser to fresh."
        )


def _check_null_labels(
    sample: SampleParams, pretrain: PretrainParams, finetune: FinetuneParams, data: DataParams
) -> None:
    """Check that networks that sampling asks without a label have learned without one."""
    name, last = ("finetune", finetune) if finetune.steps else ("pretrain", pretrain)
    if sample.guidance_scale != 1:
        _check_null_label(name, last, "guidance_scale", f"{sample.guidance_scale:g}", "1")
    by_primer = sample.guided and same_folder(sample.guide, PRIMER)
    if data.classes and by_primer and sample.guide_class == "hidden":
        _check_null_label("pretrain", pretrain, "guide_class", "hidden", "shown")


def _check_null_label(name: str, phase: PhaseParams, key: str, value: str, instead: str) -> None:
    """Check that a network also learns without labels, as a key of ``sample`` needs it to."""
    if phase.label_dropout == 0:
        raise UserError(
            f"sample.{key} is {value}, but {name}.label_dropout is 0: guidance needs a network "
            f"that also learns without labels. Set label_dropout above 0, such as 0.1, or {key} "
            f"to {instead}."
        )


def _planned_latents(data: DataParams) -> Latents | None:
    """Return the latents to be learned, their range aside; None if pixels are.

    Raises:
        UserError: if data.autoencoder names none, or none for such images.
    """
    if data.autoencoder is None:
        return None
    size, channels = latent_shape(data.autoencoder, data.resolution, data.channels)
    unknown = [1.0] * channels
    return Latents(
        autoencoder=data.autoencoder,
        hash=autoencoder_hash(data.autoencoder),
        size=size,
        channels=channels,
        centre=unknown,
        reach=unknown,
    )


def _where(path: Path) -> str:
    """Return what to say of a relative path, which counts from the experiment's own folder."""
    if path.is_absolute() or os.path.exists(path):  # noqa: PTH110 - no name makes it raise
        return ""
    return (
        " Experiments that are queued or run with --temp have folders of their own, in which only "
        "what Git or DVC tracks is there: give an absolute path."
    )


def _check_middle(network: Denoiser, backbone: str, mask: Mask) -> None:
    """Check that a network has middle blocks, which can be masked alone."""
    if "middle" not in signature(network.forward).parameters:
        raise UserError(
            f"mask.scope is middle, but the backbone '{backbone}' takes no argument 'middle' "
            "(docs/own-backbone.md): set mask.scope to image."
        )
    network.forward_flops(mask.shown, mask.in_middle)


def _check_guide(
    sample: SampleParams,
    pretrain: PretrainParams,
    data: DataParams,
    latents: Latents | None,
    model: ModelParams,
    diffusion: DiffusionParams,
    seed: int,
) -> None:
    """Check that the guide is a trained model that fits the one to be trained."""
    if same_folder(sample.guide, PRIMER):
        if not pretrain.steps:
            raise UserError(
                f"sample.guide is {PRIMER}, which pretrain.steps: 0 leaves untrained: set "
                "sample.guide_scale to 1, or sample.guide to another model."
            )
        return
    try:
        guide = load_config(Path(sample.guide or ""))
    except UserError as error:
        raise UserError(
            f"sample.guide is '{shortened(sample.guide or '')}': {error}"
            f"{_where(Path(sample.guide or ''))}"
        ) from None
    planned = ModelConfig(
        size=data.resolution,
        channels=data.channels,
        # Their names are known once the images are.
        classes=(guide.classes or {"those of the images": 0}) if data.classes else None,
        seed=seed,
        model=model,
        diffusion=diffusion,
        training=[],
        latents=latents,
    )
    if latents and guide.latents and latents.hash == guide.latents.hash:
        # Their range is measured once the images are there; the stages compare it.
        planned = planned.model_copy(update={"latents": guide.latents})
    check_guide(guide, planned)


if __name__ == "__main__":
    run(main)
