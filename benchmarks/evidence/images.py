"""The images of a dataset of the matrix, prepared, and their features: once for all its runs."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.evidence.plan import ROOT, data_of, entry, read_matrix
from benchmarks.evidence.train import SETS, write_params
from maskdm.data.prepared import PreparedSet, Sample, open_prepared, write_prepared
from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_json
from maskdm.runtime.params import merge
from stages import prepare, reference

PREPARED = Path("data/prepared")
FEATURES = reference.REFERENCE / "reference.json"  # the last that is written of them


def main(
    dataset: Annotated[str, typer.Argument(help="a key of datasets in matrix.yaml")],
    path: Annotated[
        str | None, typer.Option(help="the folder of images of the dataset own")
    ] = None,
) -> None:
    """Prepare the images of a dataset and extract their features, unless that has been done."""
    make(dataset, path)


def make(dataset: str, path: str | None = None, features: bool = True) -> None:
    """Run the stages prepare and reference for a dataset, in a folder of its own.

    A dataset with ``select`` is a part of its images: ``classes`` names the classes that are kept,
    or ``without`` those that are not; of the training images ``share`` are kept, while distances
    are measured to all of them. Of the held-out images ``heldout`` keeps the first or the second
    half, so that what is chosen by one can be tested on the other: in the order of their names, so
    that neighbours, which belong together, stay together.

    Args:
        dataset: a key of ``datasets``.
        path: where its images are, in place of ``data.path``.
        features: whether they are wanted, too: where distances are measured.
    """
    matrix = read_matrix()
    params = data_of(matrix, dataset)
    select = entry(matrix, "datasets", dataset).get("select")
    if path is not None:
        params["data"]["path"] = str(Path(path).resolve())
    if select and "share" in select:
        params["data"]["classes"] = True
    # Paths in the matrix are the repository's, and the same on every machine.
    given = params["data"]["path"] and str(ROOT / params["data"]["path"])
    folder = SETS / dataset
    wanted = {"params": params, "select": select}
    mark = folder.resolve() / "made.json"
    # The content of a folder of one's own may have changed.
    if (
        path is not None
        or not mark.exists()
        or json.loads(mark.read_text()) != json.loads(json.dumps(wanted))
    ):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "data").mkdir(parents=True)
        with chdir(folder):
            write_params(params if given is None else merge(params, {"data": {"path": given}}))
            prepare.main()
            select_from(select or {})
            kept = open_prepared(PREPARED)
        print(f"{dataset}: {len(kept.train)} images to train on, {len(kept.heldout)} held out")
        write_json(mark, wanted)
    if features and not (folder / FEATURES).exists():
        with chdir(folder):
            reference.main()


def select_from(select: dict[str, Any]) -> None:
    """Leave of the prepared images here what a dataset selects."""
    if "share" in select:
        keep(open_prepared(PREPARED), classes_kept(select))
    if "heldout" in select:
        keep(open_prepared(PREPARED), None, heldout=select["heldout"])
    if select.get("share", 1) < 1:
        reference.main()  # of all, to which distances are measured
        keep(open_prepared(PREPARED), None, select["share"])


def classes_kept(select: dict[str, Any]) -> Callable[[str], bool]:
    """Return a function that says whether the class of a name is kept."""

    def kept(name: str) -> bool:
        if "classes" in select:
            return name in select["classes"]
        return name not in select["without"]

    return kept


def keep(
    found: PreparedSet,
    classes: Callable[[str], bool] | None,
    share: float = 1.0,
    heldout: str | None = None,
) -> None:
    """Replace a prepared set by a part of it, without labels.

    Args:
        found: the set, which is replaced.
        classes: says whether the class of a name is kept; None: all images are.
        share: of the training images, how many are kept, evenly spaced.
        heldout: ``"first"`` or ``"second"`` half of the held-out images; None for all.

    Raises:
        UserError: if no image is left on one of the sides.
    """

    def samples() -> Iterator[Sample]:
        for images, labels, held_out in (
            (found.train, found.train_labels, False),
            (found.heldout, found.heldout_labels, True),
        ):
            indices = np.arange(len(images))
            if classes is not None:
                assert labels is not None
                assert found.classes is not None
                names = np.array(found.classes)[labels]
                indices = indices[[classes(str(name)) for name in names]]
            if not len(indices):
                raise UserError(f"No image is left of the classes {found.classes}.")
            if held_out and heldout:
                middle = len(indices) // 2
                indices = indices[:middle] if heldout == "first" else indices[middle:]
            if not held_out:
                count = max(1, round(share * len(indices)))
                indices = indices[np.linspace(0, len(indices) - 1, count).round().astype(int)]
            for index in indices:
                yield Sample(np.array(images[index]), None, held_out)

    write_prepared(
        PREPARED,
        samples(),
        size=found.size,
        channels=found.channels,
        classes=None,
        source=found.source,
        licence=found.licence,
    )


if __name__ == "__main__":
    run(main)
