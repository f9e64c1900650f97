"""CelebA-HQ (Karras et al., 2018): 30 000 faces of CelebA at up to 1024 x 1024 pixels."""

from pathlib import Path, PurePosixPath

from maskdm.data.contract import Kind, Picture, Source, SourceParams, held_out
from maskdm.data.files import open_files
from maskdm.data.images import read_image

MASKED = "CelebA-HQ-img"  # CelebAMask-HQ's folder of images, beside one of face masks


def _listing(params: SourceParams, path: Path) -> Source:
    """Every image, wherever it lies: a hash of its name, without its ending, makes the split."""
    images = open_files(path).images()
    faces = [name for name in images.names if MASKED in name.split("/")] or images.names
    return Source(
        name="CelebA-HQ",
        licence="CC BY-NC 4.0",
        classes=None,
        pictures=[
            Picture(name, held_out(PurePosixPath(name).stem, params), None) for name in faces
        ],
        read=lambda name: read_image(images.read(name), params.resolution, params.background),
    )


CELEBAHQ = Kind(
    _listing,
    path="the folder or zip archive of its images",
    origin="github.com/tkarras/progressive_growing_of_gans or, as CelebAMask-HQ, "
    "github.com/switchablenorms/CelebAMask-HQ",
)
