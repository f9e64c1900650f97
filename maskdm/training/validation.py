"""Validation: how well held-out images are recovered from fixed noise.

The mean squared error of the clipped x0 estimate, on **whole** images in both phases, at log-SNR
levels that mean the same on every path: the numbers compare across predictions, losses, paths,
mask rates and phases. Images, levels and noise are fixed, so a curve's wiggles are the model's.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.predictions import to_x0
from maskdm.diffusion.randomness import stream
from maskdm.diffusion.tokens import all_positions, to_tokens
from maskdm.training.history import Errors

# λ = log(α/σ) of the bins, from almost only noise to almost none.
LOG_SNRS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
# At most this many images: each is used at one level, every level gets the same number.
MOST_IMAGES = 36 * len(LOG_SNRS)
# Images at a time: on a CPU no more than a small training batch needs memory for.
BATCH, BATCH_ELSEWHERE = 9, 84


class HeldOutValidator:
    """Fixed noisy versions of held-out images.

    Args:
        images: uint8 ``(count, H, W, C)``; ``MOST_IMAGES`` are used, spread evenly over them, since
            many sets are sorted by class.
        patch: side of a patch in pixels.
        params: the section ``diffusion``.
        device: where to compute.
        labels: the images' classes, int64 ``(count,)``, or None.
    """

    def __init__(
        self,
        images: np.ndarray,
        patch: int,
        params: DiffusionParams,
        device: torch.device,
        labels: np.ndarray | None = None,
    ) -> None:
        self.params = params
        self.path = PATHS[params.path]
        used = np.linspace(0, len(images) - 1, min(MOST_IMAGES, len(images))).round().astype(int)
        chosen = torch.from_numpy(np.array(images[used])).to(device)
        self.x0 = to_tokens(chosen, patch)
        self.labels = None
        if labels is not None:
            self.labels = torch.from_numpy(np.array(labels[used])).to(device)
        self.bins = torch.arange(len(self.x0), device=device) % len(LOG_SNRS)
        self.filled = min(len(LOG_SNRS), len(self.x0))  # a tiny set leaves the last bins empty
        self.time = self.path.time(torch.tensor(LOG_SNRS, device=device)[self.bins])
        noise = np.empty(self.x0.shape, np.float32)
        for sample in range(len(noise)):
            # The seed of a run must not change how it is measured.
            stream(0, "validation", 0, sample).standard_normal(out=noise[sample], dtype=np.float32)
        level = self.path.level(self.time, like=self.x0)
        self.x_t = level.noisy(self.x0, torch.from_numpy(noise).to(device))
        self.positions = all_positions(len(self.x0), self.x0.shape[1], device)

    @torch.no_grad()  # inference_mode would spoil the tensors that sharded weights are gathered in
    def errors(self, denoise: Callable[..., Tensor]) -> Errors:
        """Return the x0 mean squared error: ``"mean"`` and one per log-SNR (``"-3"`` … ``"3"``).

        A level without images has NaN and does not count; an error that is not finite does.

        Args:
            denoise: ``(tokens, positions, time, labels)`` → the network's output.
        """
        per_image = []
        batch = BATCH if self.x0.device.type == "cpu" else BATCH_ELSEWHERE
        for start in range(0, len(self.x0), batch):
            part = slice(start, start + batch)
            x_t, time = self.x_t[part], self.time[part]
            labels = None if self.labels is None else self.labels[part]
            output = denoise(x_t, self.positions[part], time, labels).float()
            level = self.path.level(time, like=x_t)
            x0 = to_x0(output, x_t, level, self.params.prediction)
            x0 = x0.where(x0.isfinite(), torch.nan).clamp(-1, 1)  # clamped, ∞ would be a pixel
            per_image.append((x0 - self.x0[part]).square().mean(dim=(1, 2)))
        error = torch.cat(per_image)
        bins = [error[self.bins == b].mean().item() for b in range(len(LOG_SNRS))]
        return {
            "mean": sum(bins[: self.filled]) / self.filled,
            **{f"{level:g}": value for level, value in zip(LOG_SNRS, bins, strict=True)},
        }
