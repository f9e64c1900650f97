"""The one signature that all backbones have.

A backbone denoises a *set of tokens with positions*:
``denoiser(tokens (B, S, p²·C), positions (B, S), time (B,), label (B,) | None) → (B, S, p²·C)``.
A whole image is the set of all its patches, a masked image a subset; the backbone cannot tell.
"""

from torch import Tensor, nn


class Denoiser(nn.Module):
    """What every backbone is: callable on token sets, and frank about what a call costs."""

    def forward(
        self, tokens: Tensor, positions: Tensor, time: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Denoise ``(batch, visible, p²·C)``, the tokens being at ``positions`` of the grid."""
        raise NotImplementedError

    def forward_flops(self, visible: int) -> int:
        """Return the FLOPs of one image's forward pass with ``visible`` patches shown."""
        raise NotImplementedError
