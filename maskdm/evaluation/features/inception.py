"""Inception as clean-fid uses it: the features of FID (Heusel et al. 2017; Parmar et al. 2022)."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from maskdm.evaluation.features.extraction import INSTEAD, Extractor, Network
from maskdm.runtime.downloads import download
from maskdm.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

FILE = "inception-2015-12-05.pt"


def inception_weights() -> Path:
    """Return the Inception weights that clean-fid uses, downloaded once into torch's cache.

    clean-fid itself would keep a download that broke off, and wait forever for a silent server.

    Raises:
        UserError: if they cannot be downloaded, or the file is incomplete.
    """
    import torch
    from cleanfid.downloads_helper import check_download_inception

    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading the Inception weights (95 MB) to {path}", file=sys.stderr)
        otherwise = f"connect to the internet once, put them at {path} by hand, or {INSTEAD}."
        with (
            download("The Inception weights, which FID needs,", otherwise),
            TemporaryDirectory(dir=path.parent) as folder,
        ):
            Path(check_download_inception(folder)).replace(path)
    if not is_whole_archive(path):
        path.unlink(missing_ok=True)  # several processes find it
        raise UserError(
            f"The Inception weights at {path} were broken (a download cut short?) and have been "
            f"removed: run again to download them, or {INSTEAD}."
        )
    return path


def build_inception(file: Path, device: torch.device) -> Network:
    """Return the Inception of clean-fid's mode ``clean``."""
    from cleanfid.inception_torchscript import InceptionV3W

    network: nn.Module = InceptionV3W(str(file.parent), download=False, resize_inside=False)
    return network.eval().to(device)


def is_whole_archive(path: Path) -> bool:
    """Return whether a TorchScript file is complete: it is a zip archive with checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, FileNotFoundError):
        return False


INCEPTION = Extractor(
    name="inception",
    frechet="fid",
    kernel="kid",
    count=2048,
    side=299,
    weights=inception_weights,
    build=build_inception,
)
