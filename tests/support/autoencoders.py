"""Small autoencoders of random weights, in folders as diffusers writes them."""

from pathlib import Path

import torch


def saved_autoencoder(folder: Path, seed: int = 0, channels: int = 3, latents: int = 4) -> Path:
    """Write an autoencoder that halves images twice, and return its folder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=latents,
    ).save_pretrained(folder)
    return folder
