"""The autoencoder between images and their latents, on which a network can be trained instead.

It is a folder of diffusers' ``AutoencoderKL`` (Rombach et al. 2022, arXiv 2112.10752):
``config.json`` and ``diffusion_pytorch_model.safetensors``. The latents of an image are the mean of
its posterior. They are kept as bytes, as pixels are, so that nothing between the prepared set and
the samples need know which of them it has: in every channel, 0 to 255 are ``REACH`` standard
deviations below the mean to as many above. The config's scaling would cancel, and is not used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from maskdm.runtime.errors import UserError, reason
from maskdm.runtime.files import file_hash
from maskdm.runtime.packages import require_package
from maskdm.runtime.params import LONGEST_PATH, Section, fault_of_name, validate
from maskdm.runtime.reading import read_small

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KIND = "AutoencoderKL"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
REACH = 4.0  # standard deviations; docs/data.md has what that costs
MEASURED = 4096  # training images, evenly spread, from which mean and deviation are taken
BATCH = 8  # images at a time: the first layers of a decoder take most of the memory of all
MOST_BYTES, MOST_BLOCKS, MOST_CHANNELS = 2**20, 16, 1024  # of a config; halvings; of latents
WANTED = (
    f"it must be the folder of a model {KIND} of diffusers, with {CONFIG} and {WEIGHTS} "
    "(docs/data.md)"
)

Numbers = list[Annotated[float, Field(allow_inf_nan=False)]]


class Latents(Section):
    """How images and the bytes of their latents become each other, in dataset.json and config.json.

    Byte b of a channel is the latent ``centre + reach * (b / 127.5 - 1)``.
    """

    autoencoder: str = Field(description="the folder of the autoencoder")
    hash: str = Field(pattern="^[0-9a-f]{64}$", description="of its config and weights")
    size: int = Field(ge=1, le=4096, description="side of the latents of an image")
    channels: int = Field(ge=1, le=MOST_CHANNELS, description="of the latents")
    centre: Numbers = Field(description="of each channel: its mean")
    reach: Numbers = Field(description="of each channel: how far from there bytes reach, > 0")

    @field_validator("autoencoder")
    @classmethod
    def _autoencoder_is_a_name(cls, autoencoder: str) -> str:
        if fault := fault_of_name(autoencoder, LONGEST_PATH):
            raise ValueError(fault)
        return autoencoder

    @model_validator(mode="after")
    def _channels_agree(self) -> Latents:
        if not len(self.centre) == len(self.reach) == self.channels or min(self.reach) <= 0:
            raise ValueError("centre and reach are not one number a channel, or a reach is not > 0")
        return self


def stored_latents(about: Mapping[str, object] | None) -> Latents | None:
    """Return what a prepared set says of its latents; None of a set without."""
    if about is None:
        return None
    return validate(dict(about), "latents", Latents, where="The prepared set")


def autoencoder_folder(name: str) -> Path:
    """Return the folder of an autoencoder, in which a leading ``~`` is the user's home.

    Raises:
        UserError: if there is none.
    """
    try:
        folder = Path(name).expanduser()
        missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
        there = folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # no right to look, no such home
        raise _wrong(name, f"cannot be opened ({error})") from None
    if not there:
        beside = "" if folder.is_absolute() else "; a queued experiment needs an absolute path"
        raise _wrong(name, f"is no folder that is there{beside}")
    if missing:
        raise _wrong(name, f"has no {missing[0]}")
    return folder


def latent_shape(name: str, resolution: int, channels: int) -> tuple[int, int]:
    """Return side and channels of the latents of images, from an autoencoder's config.

    Args:
        name: the folder of the autoencoder.
        resolution: side of the images in pixels.
        channels: of the images, 1 or 3.

    Raises:
        UserError: if it is no autoencoder, or none for such images, or diffusers is missing.
    """
    config = _config(name)
    blocks, latents = config.get("block_out_channels", [64]), config.get("latent_channels", 4)
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= MOST_BLOCKS:
        raise _wrong(name, f"has no list of block_out_channels in its {CONFIG}")
    if not isinstance(latents, int) or not 1 <= latents <= MOST_CHANNELS:
        raise _wrong(name, f"has no number of latent_channels in its {CONFIG}")
    for key in ("in_channels", "out_channels"):
        if (found := config.get(key, 3)) != channels:
            raise UserError(
                f"data.channels is {channels}, but the autoencoder in {name} has {key} {found}: "
                "set data.channels to that, if it is 1 or 3, or give another data.autoencoder."
            )
    factor = 2 ** (len(blocks) - 1)
    if resolution % factor:
        raise UserError(
            f"data.resolution is {resolution}, which the autoencoder in {name} cannot divide by "
            f"its {factor}: set data.resolution to a multiple of {factor}."
        )
    require_package("diffusers", "data.autoencoder", "pipeline")
    return resolution // factor, latents


def autoencoder_hash(name: str) -> str:
    """Return a hash of an autoencoder's config and weights.

    Raises:
        UserError: if there is none.
    """
    digest = hashlib.sha256()
    for file in (CONFIG, WEIGHTS):
        digest.update(bytes.fromhex(file_hash(autoencoder_folder(name) / file)))
    return digest.hexdigest()


def _config(name: str) -> Mapping[str, Any]:
    path = autoencoder_folder(name) / CONFIG
    try:
        content: Any = json.loads(read_small(path, MOST_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise _wrong(name, f"has a {CONFIG} that cannot be read ({error})") from None
    if not isinstance(content, dict) or content.get("_class_name") != KIND:
        found = content.get("_class_name") if isinstance(content, dict) else None
        raise _wrong(name, f"is a model {found!r:.100}, no {KIND}")
    return content


def _wrong(name: str, fault: str) -> UserError:
    return UserError(f"The autoencoder '{name}' {fault}: {WANTED}.")


class Autoencoder:
    """The network, on a device.

    Args:
        name: its folder.
        device: where to compute.

    Attributes:
        name: its folder.

    Raises:
        UserError: if it is no autoencoder, its weights do not fit, or diffusers is missing.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        folder = autoencoder_folder(name)
        _config(name)  # another class would be loaded as this one
        kind = require_package("diffusers", "data.autoencoder", "pipeline").AutoencoderKL
        try:
            network, report = kind.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except Exception as error:  # each damage has an error of its own
            raise _wrong(name, f"cannot be loaded ({reason(error):.300})") from None
        # diffusers would go on with random weights in their place.
        wrong = [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]]
        if wrong:
            raise _wrong(name, f"has weights that do not fit its {CONFIG} ({wrong[0]!s:.100})")
        self.name = name
        self.network = network.float().eval().requires_grad_(False)
        self.to(device)

    def to(self, device: torch.device) -> None:
        """Move it to a device."""
        self.network.to(device)
        self.device = device

    def latents(self, images: np.ndarray) -> Tensor:
        """Return the latents of at most ``BATCH`` images, uint8 ``(batch, H, W, C)``.

        Returns:
            ``(batch, h, w, c)`` float32.
        """
        import torch

        with torch.no_grad():
            pixels = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2)
            posterior = self.network.encode(pixels.float() / 127.5 - 1).latent_dist
            latents: Tensor = posterior.mode().permute(0, 2, 3, 1)
            return latents

    def images(self, latents: Tensor) -> np.ndarray:
        """Return the images of latents, ``(batch, h, w, c)``.

        Returns:
            uint8 ``(batch, H, W, C)``.
        """
        import torch

        drawn = []
        # Previews are drawn under autocast, and half precision shows in what is decoded.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for part in latents.float().split(BATCH):
                pixels = self.network.decode(part.permute(0, 3, 1, 2)).sample
                levels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
                drawn.append(levels.permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(drawn)


class Codec:
    """Images to the bytes of their latents, and what a network draws back to images.

    Args:
        autoencoder: the network.
        about: its latents' range.
    """

    def __init__(self, autoencoder: Autoencoder, about: Latents) -> None:
        import torch

        self.autoencoder, self.about = autoencoder, about
        self.centre, self.reach = (
            torch.tensor(numbers, dtype=torch.float32, device=autoencoder.device)
            for numbers in (about.centre, about.reach)
        )

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Return the latents of at most ``BATCH`` images as bytes.

        Args:
            images: uint8 ``(batch, H, W, C)``.

        Returns:
            uint8 ``(batch, h, w, c)``.
        """
        import torch

        values = (self.autoencoder.latents(images) - self.centre) / self.reach
        levels = ((values + 1) * 127.5).round().clamp(0, 255)
        return levels.to(torch.uint8).cpu().numpy()

    def decode(self, values: Tensor) -> np.ndarray:
        """Return images.

        Args:
            values: latents in units of their reach, ``(batch, h, w, c)`` in [−1, 1].

        Returns:
            uint8 ``(batch, H, W, C)``.
        """
        values = values.to(self.centre.device).float()
        return self.autoencoder.images(self.centre + self.reach * values)


class Encoder:
    """Makes the latents of a set that is being prepared.

    Args:
        name: the folder of the autoencoder.
        resolution: side of the images in pixels.
        channels: of the images.
        device: where to compute.

    Attributes:
        shape: of the latents of an image, ``(h, w, c)``.

    Raises:
        UserError: if it is no autoencoder, or none for such images.
    """

    def __init__(self, name: str, resolution: int, channels: int, device: torch.device) -> None:
        import torch

        size, latents = latent_shape(name, resolution, channels)
        self.name, self.shape = name, (size, size, latents)
        self.hash, self.device = autoencoder_hash(name), device
        # Refused before hours of reading; processes that read are forked before a GPU is used.
        self.autoencoder = Autoencoder(name, torch.device("cpu"))

    def measure(self, images: np.ndarray) -> dict[str, object]:
        """Take mean and standard deviation of each channel from training images.

        Args:
            images: uint8 ``(count, H, W, C)``; ``MEASURED`` of them are used, evenly spread.

        Returns:
            What decodes, for dataset.json.

        Raises:
            UserError: if a latent is not finite.
        """
        self.autoencoder.to(self.device)
        count = min(MEASURED, len(images))
        used = np.linspace(0, len(images) - 1, count).round().astype(int)
        total, squares, numbers = np.zeros(self.shape[2]), np.zeros(self.shape[2]), 0
        for first in range(0, count, BATCH):
            found = self.autoencoder.latents(images[used[first : first + BATCH]])
            latents = found.cpu().double().numpy().reshape(-1, self.shape[2])
            total, squares = total + latents.sum(0), squares + np.square(latents).sum(0)
            numbers += len(latents)
        if not np.isfinite(squares).all():
            raise _wrong(self.name, "makes latents that are not finite")
        mean = total / numbers
        deviation = np.sqrt(np.maximum(squares / numbers - np.square(mean), 0))
        self.about = Latents(
            autoencoder=self.name,
            hash=self.hash,
            size=self.shape[0],
            channels=self.shape[2],
            centre=mean.tolist(),
            # A channel that is always the same has no deviation.
            reach=np.maximum(REACH * deviation, 1e-6).tolist(),
        )
        return self.about.model_dump()

    def encode(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the latents of images as bytes, uint8 ``(batch, h, w, c)``, in their order.

        Args:
            images: uint8 ``(count, H, W, C)``, memory-mapped or not.
        """
        from tqdm import tqdm

        codec = Codec(self.autoencoder, self.about)
        with tqdm(total=len(images), desc="latents", unit=" images", mininterval=1.0) as bar:
            for first in range(0, len(images), BATCH):
                yield (encoded := codec.encode(images[first : first + BATCH]))
                bar.update(len(encoded))


def open_codec(about: Latents, device: torch.device, elsewhere: str | None = None) -> Codec:
    """Return what decodes the latents of a prepared set or a model.

    Args:
        about: what it says of them.
        device: where to compute.
        elsewhere: the folder of the autoencoder, if it is not where it was.

    Raises:
        UserError: if the autoencoder is not there, or is not the one they are from.
    """
    name = about.autoencoder if elsewhere is None else elsewhere
    try:
        found = autoencoder_hash(name)
    except UserError as error:
        raise UserError(
            f"Images are decoded from latents, for which their autoencoder is needed. {error} "
            "maskdm.load(…, autoencoder=…) and maskdm sample --autoencoder say where it is now."
        ) from None
    if found != about.hash:
        raise UserError(
            f"The autoencoder '{name}' is not the one that the latents are from (hash "
            f"{found[:12]}, theirs {about.hash[:12]}): bring that one back, or run dvc repro to "
            "prepare and train with the one that is there."
        )
    return Codec(_opened(name, found, str(device)), about)


@lru_cache(maxsize=1)
def _opened(name: str, content: str, device: str) -> Autoencoder:
    """Return the network of a folder with some content; a model and its guide share one."""
    import torch

    return Autoencoder(name, torch.device(device))
