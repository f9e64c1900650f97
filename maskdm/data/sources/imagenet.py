"""ImageNet's ILSVRC 2012 (Russakovsky et al., 2015): 1.28 million images of 1 000 synsets."""

from pathlib import Path

from maskdm.data.contract import Kind, Picture, Source, SourceParams, held_out
from maskdm.data.files import Files, open_files
from maskdm.data.images import read_image
from maskdm.runtime.errors import UserError


def _listing(params: SourceParams, path: Path) -> Source:
    """The training part; the official validation part is held out, where it is there."""
    files = open_files(path)
    train, val = files.within("train").images(), files.within("val").images().names
    synsets = train.folders()
    if not synsets:
        raise UserError(
            f"There is no train/SYNSET/ in {path}: data.path must name {IMAGENET.path}."
        )
    label = {synset: index for index, synset in enumerate(synsets)}
    if params.classes:
        _require_synsets(files, val, label)

    def picture(part: str, name: str, heldout: bool) -> Picture:
        return Picture(
            f"{part}/{name}", heldout, label[name.split("/")[0]] if params.classes else None
        )

    return Source(
        name="ImageNet",
        licence="for non-commercial research only",
        classes=synsets if params.classes else None,
        pictures=[
            *(picture("train", name, not val and held_out(name, params)) for name in train.names),
            *(picture("val", name, True) for name in val),
        ],
        read=lambda name: read_image(files.read(name), params.resolution, params.background),
    )


def _require_synsets(files: Files, val: list[str], label: dict[str, int]) -> None:
    """Check that the validation images are sorted into folders of known synsets."""
    stray = next((name for name in val if name.split("/")[0] not in label), None)
    if stray is not None:
        raise UserError(
            f"data.classes is true, but val/{stray} in {files.path} is in no folder of a synset of "
            "train/: sort val/ into synset folders, as PyTorch's ImageNet example does, or take it "
            "away, and data.heldout of train/ is held out."
        )


IMAGENET = Kind(
    _listing,
    path="the folder that holds train/SYNSET/ and val/SYNSET/",
    origin="image-net.org/download",
    classes="synsets",
)
