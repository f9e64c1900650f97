"""VGGFace2 (Cao et al., 2018): 3.3 million faces in a folder for each of 9 131 people."""

from pathlib import Path

from maskdm.data.contract import Kind, Picture, Source, SourceParams, folder_labels, held_out
from maskdm.data.files import image_reader, open_files


def _listing(params: SourceParams, path: Path) -> Source:
    """List the training part. No person is on both sides, unless people are the classes."""
    files = open_files(path)
    images = (files.within("train") if "train" in files.folders() else files).images()
    loose = next((name for name in images.names if name.count("/") != 1), None)
    if loose is not None:
        raise VGGFACE2.wrong_path(f"'{loose}' in {images.path} is not of the form person/image.jpg")
    people = images.folders()
    label = folder_labels(people)

    def group(name: str) -> str:  # every class must be on both sides
        return name if params.classes else name.split("/")[0]

    return Source(
        name="VGGFace2",
        licence="not stated",
        classes=people,
        pictures=[
            Picture(name, held_out(group(name), params), label(name)) for name in images.names
        ],
        read=image_reader(images, params),
        left_out=images.left_out,
    )


VGGFACE2 = Kind(
    _listing,
    path="the folder or zip archive that holds train/PERSON/IMAGE.jpg, or PERSON/IMAGE.jpg",
    origin="those who have a copy, since its makers took it down",
    classes="people",
)
