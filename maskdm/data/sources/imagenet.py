"""ImageNet's ILSVRC 2012 (Russakovsky et al., 2015): 1.28 million images of 1 000 synsets."""

from pathlib import Path

from maskdm.data.contract import Kind, Picture, Source, SourceParams, folder_labels, held_out
from maskdm.data.files import image_reader, open_files
from maskdm.runtime.errors import UserError


def _listing(params: SourceParams, path: Path) -> Source:
    """List the training part; the official validation part is held out if it is there."""
    files = open_files(path)
    train, val = files.within("train").images(), files.within("val").images()
    synsets = train.folders()
    if not synsets:
        raise IMAGENET.wrong_path(f"There is no train/SYNSET/ in {path}")
    label = folder_labels(synsets)
    stray = next((name for name in val.names if label(name) is None), None)
    if params.classes and stray is not None:
        raise UserError(
            f"data.classes is true, but val/{stray} in {path} is in no folder of a synset of "
            "train/: sort val/ into synset folders, as PyTorch's ImageNet example does, or take it "
            "away, and data.heldout of train/ is held out."
        )

    def in_train(name: str) -> Picture:
        return Picture(f"train/{name}", not val.names and held_out(name, params), label(name))

    return Source(
        name="ImageNet",
        licence="for non-commercial research only",
        classes=synsets,
        pictures=[
            *map(in_train, train.names),
            *(Picture(f"val/{name}", True, label(name)) for name in val.names),
        ],
        read=image_reader(files, params),
    )


IMAGENET = Kind(
    _listing,
    path="the folder that holds train/SYNSET/ and val/SYNSET/",
    origin="image-net.org/download",
    classes="synsets",
    labelled=True,
)
