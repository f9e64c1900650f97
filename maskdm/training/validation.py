"""Validation: how well held-out images are recovered from fixed noise.

The mean squared error of the clipped x0 estimate, on **whole** images in both phases, at levels of
λ = log(α/σ), half the log-SNR, that mean the same on every path: the numbers compare across
predictions, losses, paths, mask rates and phases. Images, levels and noise are fixed, so a curve's
wiggles are the model's.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from maskdm.data.prepared import spread
from maskdm.diffusion.estimate import x0_estimate
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.randomness import normal
from maskdm.diffusion.tokens import to_tokens
from maskdm.training.history import Errors

# λ of the bins, from almost only noise to almost none.
HALF_LOG_SNRS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
# At most this many images: each is used at one level, and levels get as many as each other, or one
# fewer.
MOST_IMAGES = 36 * len(HALF_LOG_SNRS)
# Images at a time: on a CPU no more than a small training batch needs memory for.
BATCH, BATCH_ELSEWHERE = 9, 84


class HeldOutValidator:
    """Fixed noisy versions of held-out images.

    Args:
        images: uint8 ``(count, H, W, C)``; ``MOST_IMAGES`` are used, spread over them.
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
        self.params, path = params, PATHS[params.path]
        used = spread(len(images), MOST_IMAGES)
        chosen = torch.from_numpy(np.array(images[used])).to(device)
        self.x0 = to_tokens(chosen, patch)
        self.labels = None
        if labels is not None:
            self.labels = torch.from_numpy(np.array(labels[used])).to(device)
        self.bins = torch.arange(len(self.x0), device=device) % len(HALF_LOG_SNRS)
        self.filled = min(len(HALF_LOG_SNRS), len(self.x0))  # a tiny set leaves the last bins empty
        self.time = path.time(torch.tensor(HALF_LOG_SNRS, device=device)[self.bins])
        # The seed of a run must not change how it is measured.
        noise = normal(0, "validation", 0, range(len(self.x0)), self.x0.shape[1:])
        level = path.level(self.time, like=self.x0)
        self.x_t = level.noisy(self.x0, noise.to(device))

    @torch.no_grad()  # inference_mode would spoil the tensors that sharded weights are gathered in
    def errors(self, denoise: Callable[..., Tensor]) -> Errors:
        """Return the x0 mean squared error: ``"mean"`` and one per λ (``"-3"`` … ``"3"``).

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
            x0 = x0_estimate(denoise, x_t, time, labels, self.params)
            x0 = x0.where(x0.isfinite(), torch.nan).clamp(-1, 1)  # clamped, ∞ would be a pixel
            per_image.append((x0 - self.x0[part]).square().mean(dim=(1, 2)))
        error = torch.cat(per_image)
        bins = [error[self.bins == b].mean().item() for b in range(len(HALF_LOG_SNRS))]
        return {
            "mean": sum(bins[: self.filled]) / self.filled,
            **{f"{level:g}": value for level, value in zip(HALF_LOG_SNRS, bins, strict=True)},
        }
