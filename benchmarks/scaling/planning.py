"""A budget of training FLOPs, spent: how large the network, how many steps of both phases.

Half of the budget is spent masked and half on whole images. What width a budget is best spent on
was measured where ``SIZES`` says so (``benchmarks.scaling.study``, docs/scaling.md).
"""

from dataclasses import dataclass
from typing import Any

from maskdm.backbones.autoencoder import latent_shape
from maskdm.backbones.registry import ModelParams, backbone_without_weights
from maskdm.data.registry import DataParams
from maskdm.diffusion.masking import MaskParams, make_mask
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Params, merge, read_section
from maskdm.training.flops import training_flops
from maskdm.training.phases import FinetuneParams, PretrainParams


@dataclass(frozen=True)
class Size:
    """What budgets from one on, up to the next size's, are spent on.

    Attributes:
        budget: the least one, in training FLOPs.
        dim: width.
        depth: blocks.
        heads: of attention.
        batches: images of a masked step, and of one on whole images.
        lr: peak learning rate of both phases.
        ema_images: horizon of the averaged weights.
        stands_on: what says so of the width; the rest is as it was run there.
    """

    budget: float
    dim: int
    depth: int
    heads: int
    batches: tuple[int, int]
    lr: float
    ema_images: int
    stands_on: str

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return it as sections of params.yaml."""
        phases = {
            phase: {"batch_size": batch, "lr": self.lr, "ema_images": self.ema_images}
            for phase, batch in zip(PHASES, self.batches, strict=True)
        }
        return {"model": {"dim": self.dim, "depth": self.depth, "heads": self.heads}, **phases}


PHASES = ("pretrain", "finetune")
# Of two widths that are as good in the same time the wider one is taken, which computes faster.
# Depth is that of what was run: at 1e13 the error rises from 5 blocks to 13, one seed each; 5 have
# no better samples than 7 where two seeds were run.
SIZES = (
    Size(0.0, 64, 7, 1, (32, 16), 1e-3, 4000, "the study at 1e13"),
    Size(1e13, 96, 7, 2, (32, 16), 1e-3, 4000, "the study at 4e13, at 1e13 in time, and the demo"),
    Size(1e14, 128, 7, 2, (32, 16), 1e-3, 4000, "nothing: between its neighbours"),
    Size(5e14, 192, 9, 3, (32, 16), 6e-4, 10_000, "the long run, at half of that"),
    Size(2e15, 256, 9, 4, (64, 32), 6e-4, 10_000, "nothing: between its neighbours"),
    Size(1e16, 384, 11, 6, (128, 64), 6e-4, 20_000, "the hero, at 2e16"),
    Size(1e17, 512, 13, 8, (256, 128), 6e-4, 20_000, "nothing: beyond all that was run"),
)
MASKED = 0.5  # share of the budget that is spent masked
COOLDOWN = 0.4  # share of finetuning over which the learning rate falls to 0
WARMUP, LONGEST_WARMUP = 0.05, 300  # share of a phase, and steps
VALIDATIONS = 4  # of a phase


def size_for(flops: float) -> Size:
    """Return the size that a budget is best spent on."""
    return max((size for size in SIZES if size.budget <= flops), key=lambda size: size.budget)


def step_flops(params: Params) -> tuple[float, int]:
    """Return the training FLOPs of a masked step, on average, and of a step on whole images.

    Args:
        params: all sections.

    Raises:
        UserError: if pretraining has several legs.
    """
    data = read_section(params, "data", DataParams)
    model = read_section(params, "model", ModelParams)
    pretrain = read_section(params, "pretrain", PretrainParams)
    finetune = read_section(params, "finetune", FinetuneParams)
    if pretrain.legs:
        raise UserError("A plan is for one mask rate: set pretrain.legs to null.")
    size, channels = seen(data)
    network = backbone_without_weights(model, size, channels, int(data.classes))
    grid = size // model.patch
    mask = make_mask(read_section(params, "mask", MaskParams), grid)
    masked = training_flops(network, mask.shown, pretrain.batch_size, mask.in_middle)
    mixed = training_flops(network, grid**2, pretrain.batch_size)
    whole = training_flops(network, grid**2, finetune.batch_size)
    return (1 - pretrain.full_share) * masked + pretrain.full_share * mixed, whole


def seen(data: DataParams) -> tuple[int, int]:
    """Return side and channels of what networks see: the images, or their latents."""
    if data.autoencoder is None:
        return data.resolution, data.channels
    return latent_shape(data.autoencoder, data.resolution, data.channels)


def spend(
    params: Params, flops: float, share: float = MASKED, cooldown: float = COOLDOWN
) -> dict[str, dict[str, Any]]:
    """Return the steps that spend a budget, to be laid over ``params``.

    Args:
        params: all sections; their steps, warm-ups, cool-downs and validations do not count.
        flops: training FLOPs.
        share: of them, how much is spent masked.
        cooldown: over which share of finetuning the learning rate falls to 0.

    Raises:
        UserError: if the budget is not enough for a step of each phase.
    """
    reset = {phase: {"steps": 1, "warmup": 0, "cooldown": 0} for phase in PHASES}
    masked, whole = step_flops(merge(params, reset))
    steps = {
        "pretrain": round(share * flops / masked),
        "finetune": round((1 - share) * flops / whole),
    }
    if not (steps["finetune"] and (steps["pretrain"] or share == 0)):
        raise UserError(
            f"{flops:.2g} FLOPs are not enough for a step of each phase, which cost {masked:.2g} "
            f"and {whole:.2g}."
        )
    return {
        phase: {
            "steps": count,
            "warmup": min(LONGEST_WARMUP, round(WARMUP * count)),
            "cooldown": round(cooldown * count) if phase == "finetune" else 0,
            "validate_every": max(1, round(count / VALIDATIONS)),
        }
        for phase, count in steps.items()
    }
