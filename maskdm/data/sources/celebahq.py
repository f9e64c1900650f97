"""CelebA-HQ (Karras et al., 2018): 30 000 faces of CelebA at up to 1024 x 1024 pixels."""

from pathlib import Path, PurePosixPath

from maskdm.data.contract import Kind, Picture, Source, SourceParams, held_out
from maskdm.data.files import image_reader, open_files

MASKED = "CelebA-HQ-img"  # CelebAMask-HQ's folder of images; another holds face masks


def _listing(params: SourceParams, path: Path) -> Source:
    """List every image, in any sub-folder; the split is by name, without the ending."""
    images = open_files(path).images()
    faces = [name for name in images.names if MASKED in name.split("/")] or images.names
    return Source(
        name="CelebA-HQ",
        licence="CC BY-NC 4.0",
        classes=None,
        pictures=[
            Picture(name, held_out(PurePosixPath(name).stem, params), None) for name in faces
        ],
        read=image_reader(images, params),
        left_out=images.left_out,
    )


CELEBAHQ = Kind(
    _listing,
    path="the folder or zip archive of its images",
    origin="github.com/tkarras/progressive_growing_of_gans or, as CelebAMask-HQ, "
    "github.com/switchablenorms/CelebAMask-HQ",
)
