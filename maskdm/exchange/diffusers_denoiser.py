"""A backbone as a component of diffusers' pipelines; an exported folder carries this source.

Only ``maskdm/exchange/exporting.py`` reads it: importing it needs diffusers.
"""

from collections.abc import Callable
from typing import ClassVar

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from maskdm.backbones.denoiser import Denoiser


class MaskDMDenoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A denoiser on token sets.

    Args:
        size: side of the images in pixels.
        channels: 1 or 3.
        patch: side p of a patch.
        dim: width.
        depth: number of blocks.
        heads: attention heads.
        classes: the number of classes; 0 for an unconditional network.
        refine: channels of the convolution at the end; 0 for none.
    """

    network_class: ClassVar[Callable[..., Denoiser]]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        size: int,
        channels: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        classes: int = 0,
        refine: int = 0,
    ) -> None:
        super().__init__()
        self.network = self.network_class(
            size=size,
            channels=channels,
            patch=patch,
            dim=dim,
            depth=depth,
            heads=heads,
            classes=classes,
            **({"refine": refine} if refine else {}),
        )

    @property
    def classes(self) -> int:
        """The number of classes; 0 for an unconditional network."""
        return self.network.classes

    def forward(
        self, tokens: Tensor, positions: Tensor, time: Tensor, label: Tensor | None = None
    ) -> Tensor:
        """Denoise patches.

        Args:
            tokens: ``(batch, visible, p²·C)``.
            positions: ``(batch, visible)`` int64.
            time: ``(batch,)`` in [0, 1], 1 being noise.
            label: ``(batch,)`` int64, or None.

        Returns:
            The prediction, shaped like ``tokens``.
        """
        prediction: Tensor = self.network(tokens.to(self.dtype), positions, time, label)
        return prediction
