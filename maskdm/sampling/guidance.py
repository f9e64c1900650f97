"""A network as an x0-denoiser, and guidance: its estimate led away from a worse one.

Two estimates are worse and at hand: the network's own without the class, and that of another
network, the guide. Masked pretraining leaves one behind for nothing, the primer. With w_c and w_g,
the scales (1 is none):

    D = D_θ(x, c) + (w_c − 1)·(D_θ(x, c) − D_θ(x, ∅)) + (w_g − 1)·(D_θ(x, c) − D_g(x, c))

(Ho & Salimans 2022, eq. 6, and Karras et al. 2024, arXiv 2406.02507, eq. 3, both for x0.) A guide
that does not see the class, D_g(x, ∅), leads away from both by one pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskdm.backbones.denoiser import Denoiser
from maskdm.diffusion.estimate import x0_estimate
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.reverse import X0Denoiser


@dataclass(frozen=True)
class X0Network:
    """A network as an estimate of x0.

    Attributes:
        backbone: the network.
        diffusion: what it was trained to predict, and on which path.
    """

    backbone: Denoiser
    diffusion: DiffusionParams

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """Return the estimate for whole images, not clipped.

        Args:
            x: noisy tokens, ``(batch, N, p²·C)``.
            time: ``(batch,)``.
            labels: the classes, ``(batch,)`` int64; None without classes.
        """
        return x0_estimate(self.backbone, x, time, labels, self.diffusion)


@dataclass(frozen=True)
class Guidance:
    """How strongly an estimate is led away from a worse one, and when.

    Attributes:
        scale: w; 1 is not at all.
        interval: the times between which it acts (Kynkäänniemi et al. 2024).
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def acts(self, time: float) -> bool:
        """Return whether there is anything to compute at a time."""
        low, high = self.interval
        return self.scale != 1 and low <= time <= high


NONE = Guidance()


def x0_denoiser(
    network: X0Network,
    labels: Tensor | None = None,
    by_class: Guidance = NONE,
    guide: X0Network | None = None,
    by_guide: Guidance = NONE,
    guide_sees_class: bool = True,
) -> X0Denoiser:
    """Return the guided x0-denoiser D, its estimates clipped to [−1, 1].

    Args:
        network: D_θ.
        labels: the classes c, ``(batch,)`` int64; None for an unconditional model.
        by_class: w_c and its times; without labels there is none.
        guide: D_g, on the same path and tokens; None for none.
        by_guide: w_g and its times.
        guide_sees_class: whether it is D_g(x, c), or D_g(x, ∅).
    """
    guide_labels = labels
    if guide is not None and labels is not None and not guide_sees_class:
        guide_labels = torch.full_like(labels, guide.backbone.classes)

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        now = time[0].item()
        if labels is None or not by_class.acts(now):
            guided = estimate = network(x, time, labels)
        else:
            # Both from one batch twice as large.
            null = torch.full_like(labels, network.backbone.classes)
            both = network(x.repeat(2, 1, 1), time.repeat(2), torch.cat([labels, null]))
            estimate, unconditional = both.chunk(2)
            guided = estimate + (by_class.scale - 1) * (estimate - unconditional)
        if guide is not None and by_guide.acts(now):
            guided = guided + (by_guide.scale - 1) * (estimate - guide(x, time, guide_labels))
        return guided.clamp(-1, 1)

    return denoise
