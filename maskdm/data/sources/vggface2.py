"""VGGFace2 (Cao et al., 2018): 3.3 million faces in a folder for each of 9 131 people."""

from pathlib import Path

from maskdm.data.contract import Kind, Picture, Source, SourceParams, held_out
from maskdm.data.files import open_files
from maskdm.data.images import read_image
from maskdm.runtime.errors import UserError


def _listing(params: SourceParams, path: Path) -> Source:
    """The training part, split by person; by image if people are classes.

    No person is on both sides, unless people are the classes: then each must be.
    """
    files = open_files(path)
    people = (files.within("train") if "train" in files.folders() else files).images()
    loose = next((name for name in people.names if name.count("/") != 1), None)
    if loose is not None:
        raise UserError(
            f"'{loose}' in {people.path} is not of the form person/image.jpg: data.path must name "
            f"{VGGFACE2.path}."
        )
    label = {person: index for index, person in enumerate(people.folders())}
    return Source(
        name="VGGFace2",
        licence="not stated",
        classes=list(label) if params.classes else None,
        pictures=[
            Picture(
                name=name,
                heldout=held_out(name if params.classes else name.split("/")[0], params),
                label=label[name.split("/")[0]] if params.classes else None,
            )
            for name in people.names
        ],
        read=lambda name: read_image(people.read(name), params.resolution, params.background),
    )


VGGFACE2 = Kind(
    _listing,
    path="the folder or zip archive that holds train/PERSON/IMAGE.jpg, or PERSON/IMAGE.jpg",
    origin="those who have a copy, since its makers took it down",
    classes="people",
)
