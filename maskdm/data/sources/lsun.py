"""LSUN (Yu et al., 2015), outdoor churches: 126 227 images in an LMDB database."""

from functools import partial
from pathlib import Path

from PIL import Image

from maskdm.data.contract import Kind, Picture, Source, SourceParams, held_out
from maskdm.data.images import read_image
from maskdm.data.reading import once_per_process
from maskdm.runtime.errors import UserError
from maskdm.runtime.packages import require_package

FOLDER = "church_outdoor_train_lmdb"


def _listing(params: SourceParams, path: Path) -> Source:
    """List the training part, split by key; the official 300 validation images are too few."""
    lmdb = require_package("lmdb", "Source 'lsun-church'", "sources")
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    if not (folder / "data.mdb").is_file():
        raise CHURCH.wrong_path(f"There is no data.mdb in {folder}")
    opening = partial(lmdb.open, str(folder), readonly=True, lock=False, readahead=False)
    try:
        # The database is closed before anything is forked: LMDB wants each process to open it.
        with opening() as database, database.begin() as transaction:
            keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
    except lmdb.Error as error:
        raise UserError(f"{folder} is damaged ({error}): unpack it again.") from None
    opened = once_per_process(opening)
    names = [key.decode("latin-1") for key in keys]

    def read(name: str) -> Image.Image:
        with opened().begin() as transaction:
            content = transaction.get(name.encode("latin-1"))
        return read_image(content, params.resolution, params.background, params.max_pixels)

    return Source(
        name="LSUN church",
        licence="not stated",
        classes=None,
        pictures=[Picture(name, held_out(name, params), None) for name in names],
        read=read,
    )


CHURCH = Kind(
    _listing,
    path=f"the LMDB folder {FOLDER} (unzipped), or the folder around it",
    origin="github.com/fyu/lsun",
)
