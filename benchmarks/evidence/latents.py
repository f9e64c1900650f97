"""What it costs to keep latents as bytes: images decoded from them, and from exact latents.

``python -m benchmarks.evidence.latents`` trains a small autoencoder on the images in data/prepared
(so ``dvc repro prepare`` comes first), takes a second one as it is drawn at random, and measures
for both how far held-out images are from what is decoded, with the latents in floating point and
in bytes over several ranges. ``reports/latents.json`` has the values. The trained autoencoder is
kept where ``--out`` says, as data.autoencoder takes it. Minutes on two cores.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tqdm import tqdm

from maskdm.backbones.autoencoder import BATCH, REACH, Autoencoder, Codec, Encoder, Latents
from maskdm.data.prepared import PreparedSet, open_prepared
from maskdm.diffusion.tokens import in_range
from maskdm.runtime.command import run
from maskdm.runtime.devices import choose_device
from maskdm.runtime.files import write_json

REPORT = Path("reports/latents.json")
STEPS, IMAGES, LR, KL = 600, 16, 3e-3, 1e-6  # of the training; KL as in arXiv 2112.10752
WIDTHS = (16, 32, 32)  # of the blocks; the images are halved between them
CHANNELS = 4
MOST = 1024  # training images whose whole range is taken
COUNT = 200  # held-out images

Numbers = dict[str, float]


def main(
    steps: Annotated[int, typer.Option(help="of the autoencoder's training")] = STEPS,
    count: Annotated[int, typer.Option(help="held-out images to measure")] = COUNT,
    out: Annotated[Path | None, typer.Option(help="where the trained one is kept")] = None,
) -> None:
    """Train a small autoencoder; measure what bytes cost with it and with a random one."""
    prepared, device = open_prepared(Path("data/prepared")), choose_device()
    spread = np.linspace(0, len(prepared.heldout) - 1, min(count, len(prepared.heldout)))
    images = np.array(prepared.heldout[spread.round().astype(int)])
    report: dict[str, Any] = {
        "data": prepared.hash,
        "size": prepared.size,
        "images": len(images),
        "steps": steps,
        "images_a_step": IMAGES,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, length in (("random", 0), ("trained", steps)):
            place = out if out is not None and length else Path(folder) / name
            trained(prepared, length, device).save_pretrained(place)
            report[name] = measured(str(place), prepared, images, device)
            write_json(REPORT, report)
            for kept, numbers in report[name].items():
                print(f"{name:8} {kept:12}", *(f"{key} {value}" for key, value in numbers.items()))


def trained(prepared: PreparedSet, steps: int, device: torch.device) -> Any:
    """Return an AutoencoderKL that was trained on the images."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    network: Any = AutoencoderKL(
        in_channels=prepared.channels,
        out_channels=prepared.channels,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        block_out_channels=WIDTHS,
        norm_num_groups=8,
        latent_channels=CHANNELS,
        sample_size=prepared.size,
        mid_block_add_attention=False,
    ).to(device)
    optimiser = torch.optim.Adam(network.parameters(), LR, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=max(2, steps))
    random = np.random.default_rng(0)
    for _ in tqdm(range(steps), desc="autoencoder", unit="step", mininterval=10):
        chosen = np.sort(random.integers(len(prepared.train), size=IMAGES))
        pixels = torch.from_numpy(np.array(prepared.train[chosen])).to(device).permute(0, 3, 1, 2)
        x = pixels.float() / 127.5 - 1
        posterior = network.encode(x).latent_dist
        error = (network.decode(posterior.sample()).sample - x).square().sum((1, 2, 3))
        loss = error.mean() / x[0].numel() + KL * posterior.kl().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network


def measured(
    name: str, prepared: PreparedSet, images: np.ndarray, device: torch.device
) -> dict[str, Numbers]:
    """Return how near decoded images are to the images, for each way of keeping the latents.

    Args:
        name: the folder of the autoencoder.
        prepared: whose training images the ranges are taken from.
        images: uint8 ``(count, H, W, C)``, to be encoded and decoded.
        device: where to compute.
    """
    encoder = Encoder(name, prepared.size, prepared.channels, device)
    train = np.asarray(prepared.train)
    encoder.measure(train)
    about, network = encoder.about, encoder.autoencoder
    exact = decoded(images, lambda part: network.images(network.latents(part)))
    found = {"exact": {"psnr": psnr(exact, images)}}
    for kept, codec in ranges(network, about, train):
        drawn = decoded(images, partial(through_bytes, codec))
        found[kept] = {
            "psnr": psnr(drawn, images),
            "psnr_to_exact": psnr(drawn, exact),
            "clipped": clipped(codec, images),
        }
    return found


def ranges(network: Autoencoder, about: Latents, train: np.ndarray) -> Iterator[tuple[str, Codec]]:
    """Yield codecs of several ranges: standard deviations, and all that training images take up."""
    for deviations in (3.0, REACH, 5.0, 6.0):
        reach = [number * deviations / REACH for number in about.reach]
        yield f"{deviations:g} sd", Codec(network, about.model_copy(update={"reach": reach}))
    low, high = (torch.full((about.channels,), sign * torch.inf) for sign in (1, -1))
    spread = np.linspace(0, len(train) - 1, min(len(train), MOST)).round().astype(int)
    for first in range(0, len(spread), BATCH):
        latents = network.latents(train[spread[first : first + BATCH]]).flatten(0, 2).cpu()
        low, high = low.minimum(latents.amin(0)), high.maximum(latents.amax(0))
    whole = {"centre": ((low + high) / 2).tolist(), "reach": ((high - low) / 2).tolist()}
    yield "whole range", Codec(network, about.model_copy(update=whole))


def through_bytes(codec: Codec, images: np.ndarray) -> np.ndarray:
    """Return what becomes of a few images whose latents are kept as bytes."""
    return codec.decode(in_range(torch.from_numpy(codec.encode(images))))


def decoded(images: np.ndarray, decode: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return what becomes of images, a few at a time."""
    parts = range(0, len(images), BATCH)
    return np.concatenate([decode(images[first : first + BATCH]) for first in parts])


def clipped(codec: Codec, images: np.ndarray) -> float:
    """Return the share of latents that lie outside of the range."""
    outside = [
        ((codec.autoencoder.latents(images[first : first + BATCH]) - codec.centre).abs()
         > codec.reach).float().mean().item()
        for first in range(0, len(images), BATCH)
    ]  # fmt: skip
    return round(float(np.mean(outside)), 6)


def psnr(some: np.ndarray, others: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of uint8 images in dB, of their mean squared error."""
    error = np.square(some.astype(np.float64) - others).mean()
    return round(float(10 * np.log10(255**2 / max(error, 1e-12))), 3)


if __name__ == "__main__":
    run(main)
