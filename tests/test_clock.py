"""No result depends on the clock: it may jump, and files may come from 1901 or from 2106."""

import os
import signal
from pathlib import Path

import pytest

from benchmarks.robustness.torture import MODELS_AND_CURVES, ROOT
from maskdm.data.inventory import inventory
from tests.support.preparing import params, save_images
from tests.support.workspaces import PAUSING, like, paused

DAYS = {"1901": -(2**31), "1970": 0, "2106": 2**32}  # seconds
STEPS = 300

# Every time that Python is asked for is another day, before or after the one of before.
JUMPING = """
import random, time
real, draw = time.time, random.Random(0)
time.time = lambda: real() + draw.uniform(-1e9, 1e9)
time.time_ns = lambda: int(1e9 * time.time())
"""


def set_times(folder: Path, moment: int) -> int:
    """Let all files below a folder have been changed at a moment; return how many there are."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        os.utime(path, (moment, moment), follow_symlinks=False)
    return len(files)


@pytest.fixture(scope="module")
def calm(prepared, tmp_path_factory):
    """A workspace in which pretraining came to its end, undisturbed."""
    workspace = like(prepared, tmp_path_factory.mktemp("calm") / "w", pretrain={"steps": STEPS})
    workspace.stage("pretrain")
    return workspace


@pytest.mark.slow
@pytest.mark.parametrize("moment", [DAYS["1970"], DAYS["2106"]])
def test_a_run_goes_on_to_the_same_bytes_whatever_the_clock_says(moment, prepared, calm, tmp_path):
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock/sitecustomize.py").write_text(JUMPING + PAUSING.read_text())
    workspace = like(prepared, tmp_path / "w", pretrain={"steps": STEPS})
    workspace.environment |= {
        "MASKDM_CHECKPOINT_STEPS": "20",
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "clock"), str(ROOT)]),
        "PAUSED_PHASE": "pretrain",
    }
    process = workspace.start("pretrain")
    paused(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    del workspace.environment["PAUSED_PHASE"]
    assert set_times(workspace.folder, moment) > 5
    newest = max(workspace.checkpoints.rglob("*.safetensors"))
    os.utime(newest, (moment - 1000, moment - 1000))  # and looks older than the one before it
    step = workspace.saved()
    assert f"Going on from the checkpoint after step {step} of" in workspace.stage("pretrain")
    assert workspace.files(*MODELS_AND_CURVES) == calm.files(*MODELS_AND_CURVES)


@pytest.mark.slow
def test_dvc_computes_nothing_for_another_day(finished, tmp_path):
    clone = finished[0].copied(tmp_path / "clone")
    for moment in DAYS.values():
        for folder in ("data", "models", "reports", "maskdm", "stages"):
            assert set_times(clone.path / folder, moment)
        assert clone.dvc("repro") == set()


@pytest.mark.parametrize("moment", DAYS.values(), ids=DAYS)
def test_images_of_any_day_are_told_from_those_of_another(moment, tmp_path):
    photos = tmp_path / "photos"
    save_images(photos, ["a.png", "b.png"])
    today = inventory(params(path=str(photos)))
    set_times(photos, moment)
    then = inventory(params(path=str(photos)))
    assert then == inventory(params(path=str(photos))) != today
