"""What all tests share: the order of their files, and fixtures."""

import tests.support.environment  # noqa: F401, the first of all

# isort: split
import os
import shutil

import hypothesis
import numpy as np
import pytest

from benchmarks.robustness.interrupts import hear
from tests.support.clones import ROOT

hear()
# No test measures time: on a busy machine an example may take seconds.
slow = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("maskdm", deadline=None, suppress_health_check=slow)
hypothesis.settings.load_profile("maskdm")


# Files that take minutes, the longest first: begun last, one would keep a single worker busy.
# The second that needs the finished run comes when the first has made it.
LONG = (
    "pipeline", "distributed", "reruns", "storm", "recovery", "faults", "evidence", "kit", "clock",
    "report", "pieces", "live", "remote", "shards", "notebook", "parent", "cli",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Have the long files first; the order within a file stays."""
    ranks = {f"test_{name}": rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(ranks)))


def _here():
    """Return when what runs have left here, in this working tree, was last changed."""
    folders = [ROOT / name for name in ("data", "models") if (ROOT / name).is_dir()]
    inside = [path for folder in folders for path in folder.iterdir()]
    evidence = (ROOT / "benchmarks/evidence/runs").glob("*/*")  # of each part and set
    return {path: path.stat().st_mtime_ns for path in (*folders, *inside, *evidence)}


@pytest.fixture(autouse=True)
def nothing_is_written_here():
    """No test touches images, models and results of this working tree; seen where nobody works."""
    before = _here() if os.environ.get("CI") else None
    yield
    assert before is None or _here() == before


@pytest.fixture
def own_is_registered(monkeypatch):
    """The backbone of docs/own-backbone.md is known as 'own'."""
    from maskdm.backbones.registry import BACKBONES
    from tests.support.backbones import ALL

    monkeypatch.setitem(BACKBONES, "own", ALL["own"])


@pytest.fixture(scope="session")
def emoji() -> np.ndarray:
    """128 emoji, uint8 (128, 32, 32, 3)."""
    from maskdm.data.registry import DataParams, open_source, read_samples

    params = DataParams(
        source="openmoji",
        path=None,
        resolution=32,
        channels=3,
        background="white",
        heldout=0.1,
        group="file",
        classes=False,
        limit=128,
        max_unreadable=0.0,
    )
    return np.stack([sample.pixels for sample in read_samples(open_source(params, None), params)])


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model of random weights for colour images of 16 pixels, without classes."""
    import maskdm
    from tests.support.models import saved

    return maskdm.load(saved(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture(scope="session")
def conditional(tmp_path_factory):
    """The same with the classes cat, dog and owl."""
    import maskdm
    from tests.support.models import CLASSES, saved

    folder = saved(tmp_path_factory.mktemp("conditional"), classes=CLASSES)
    return maskdm.load(folder, device="cpu")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A workspace with prepared images of the preset tiny, and no training yet."""
    from benchmarks.robustness.torture import Workspace

    return Workspace.make(tmp_path_factory.mktemp("prepared") / "workspace")


@pytest.fixture
def s3(monkeypatch):
    """The environment that finds an S3-compatible server with one empty bucket; set here too."""
    import s3fs

    from tests.support.s3 import serving

    for name in ("AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield environment
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def device_error():
    """Makes torch's error of a device, by CUDA's number and its words."""
    import torch

    def made(number, words):
        error = torch.AcceleratorError(words)
        error.error_code = number
        return error

    return made


@pytest.fixture(scope="session")
def lite0():
    """The embedded extractor on the CPU."""
    import torch

    from maskdm.evaluation.features.registry import load_network

    return load_network("efficientnet-lite0", torch.device("cpu"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A clone after a whole run, the stages that ran, and those of an experiment 'other' after it.

    All processes of pytest share it: copy it before changing anything.
    """
    from tests.support.clones import finished_clone

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return finished_clone(folder / "finished")


@pytest.fixture(scope="module")
def own(finished, tmp_path_factory):
    """A copy of the finished clone; models/other is another start for finetuning."""
    own = finished[0].copied(tmp_path_factory.mktemp("pipeline") / "clone")
    shutil.copytree(own.path / "models/finetune", own.path / "models/other")
    return own


@pytest.fixture
def clone(own):
    """The finished clone, as it was."""
    own.git("reset", "--quiet", "--hard")
    own.git("clean", "--quiet", "--force", "-d")
    own.call("dvc", "checkout", "--quiet", "--force")
    return own
