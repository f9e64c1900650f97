"""What tokens show: pixels, or latents that an autoencoder decodes."""

import numpy as np
from torch import Tensor

from maskdm.backbones.autoencoder import Codec
from maskdm.diffusion.tokens import to_images, to_values


def images_of(tokens: Tensor, patch: int, channels: int, codec: Codec | None) -> np.ndarray:
    """Return the images of all their patches.

    Args:
        tokens: ``(batch, N, p²·C)`` in [−1, 1].
        patch: the side p of a patch, in pixels or latents.
        channels: C, of the pixels or latents.
        codec: what decodes latents; None if they are pixels.

    Returns:
        uint8 ``(batch, H, W, C)``.
    """
    if codec is None:
        return to_images(tokens, patch, channels).cpu().numpy()
    return codec.decode(to_values(tokens, patch, channels))
