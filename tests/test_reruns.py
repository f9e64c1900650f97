"""The rerun table: a changed parameter or module reruns what depends on it, and nothing else.

In a clone of the finished run of a very small configuration, by DVC.
"""

import json

import pytest

from maskdm.runtime.params import read_params
from tests.support.graph import STAGES as GRAPH
from tests.support.graph import lies_under

pytestmark = pytest.mark.slow

DRAWN = {"sample", "pictures", "fid", "neighbours"}  # with the finetuned model
STAGES = {"check", "prepare", "masks", "reference", "pretrain", "finetune", "curves", *DRAWN}
ROLL = {"swissroll"}  # depends on no parameter


def test_another_mask_rate_reruns_what_depends_on_it_and_nothing_else(finished):
    _, _, other = finished
    assert other == {"check", "masks", "pretrain", "finetune", "curves", *DRAWN}


# The rerun table of the design. The check runs for every parameter; the picture of the masks and
# the one of the curves run with what they show. Which stages read a parameter is asked of all
# sections in test_pipeline.py; here is what follows.
@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ("data.limit=20", STAGES),
        (
            "pretrain.steps=0 sample.guide_scale=1",
            {"check", "pretrain", "finetune", "curves", *DRAWN},
        ),
        ("finetune.init=models/other", {"check", "finetune", "curves", *DRAWN}),
    ],
)
def test_a_changed_parameter_reruns_what_depends_on_it_and_nothing_else(clone, change, rerun):
    given = [word for setting in change.split() for word in ("--set-param", setting)]
    assert clone.dvc("exp", "run", *given) == rerun
    assert clone.dvc("repro") == set()


def test_a_guide_is_a_dependency_where_it_is_used_and_only_there(clone):
    """A sample stage that is guided by no other model depends on its own alone."""
    own = ("--set-param", "sample.guide=models/finetune", "--set-param", "sample.guide_scale=1")
    clone.dvc("exp", "run", *own)
    assert clone.dvc("repro") == set()
    deps = read_params(clone.path / "dvc.lock")["stages"]["sample"]["deps"]
    assert "models/pretrain" not in {dep["path"] for dep in deps}
    other = ("--set-param", "sample.guide=models/other", "--set-param", "sample.guide_scale=2")
    assert clone.dvc("exp", "run", *other) == {"check", *DRAWN}
    deps = read_params(clone.path / "dvc.lock")["stages"]["sample"]["deps"]
    assert "models/other" in {dep["path"] for dep in deps}


def test_another_size_is_not_answered_with_the_images_of_the_last(clone):
    """DVC's run cache would, if the parameter were called size."""
    assert "prepare" in clone.dvc("exp", "run", "--set-param", "data.resolution=16", "prepare")
    about = json.loads((clone.path / "data/prepared/dataset.json").read_text())
    assert about["size"] == 16


def test_an_edited_module_reruns_these_stages_and_nothing_behind_them(clone):
    """Training is reproducible to the byte."""
    with (clone.path / "maskdm/training/ema.py").open("a") as file:
        file.write("# a comment\n")
    of_training = {
        stage
        for stage, entry in GRAPH.items()
        if any(lies_under("maskdm/training/ema.py", dep) for dep in entry["deps"])
    }
    assert clone.dvc("repro") == of_training == {"check", "pretrain", "finetune", *ROLL}
