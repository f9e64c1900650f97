"""The pipeline, run for real by DVC in a clone of this working tree: what reruns, what is refused.

Every test starts from the same finished run of a very small configuration.
"""

import csv
import json
import os
import re
import shlex
import subprocess

import numpy as np
import pytest
from dvc.repo import Repo

from benchmarks.speed.guidance import INTERVALS, SCALES
from maskdm.runtime.errors import UNDO
from maskdm.runtime.params import read_params
from maskdm.sampling.solvers import SOLVERS
from tests.support.clones import ALWAYS, ROOT, Clone
from tests.support.graph import STAGES as GRAPH
from tests.support.preparing import save_images

pytestmark = pytest.mark.slow

DRAWN = {"sample", "pictures", "fid", "neighbours"}  # with the finetuned model
STAGES = {"check", "prepare", "masks", "reference", "pretrain", "finetune", "curves", *DRAWN}
ROLL = {"swissroll"}  # depends on no parameter


@pytest.fixture(scope="module")
def untouched(finished, tmp_path_factory):
    """A copy of the finished clone in which nothing is run."""
    return finished[0].copied(tmp_path_factory.mktemp("untouched") / "clone")


@pytest.fixture
def changed(untouched, monkeypatch):
    """Return the stages that DVC would run after an edit: those whose dependencies changed."""
    for name, value in untouched.environment.items():
        if name.startswith(("DVC", "GIT")):
            monkeypatch.setenv(name, value)

    def changed(name, old, new):
        before = (untouched.path / name).read_text()
        untouched.edit(name, old, new)
        with Repo(untouched.path) as repo:
            status = repo.status()
        (untouched.path / name).write_text(before)
        return {address.split(":")[-1] for address in status} - ALWAYS

    return changed


def test_all_stages_ran(finished):
    _, ran, _ = finished
    assert ran | ALWAYS == STAGES | ROLL | ALWAYS == set(GRAPH)


def test_a_finished_run_reruns_for_nothing_from_the_environment(clone):
    other = {
        "MASKDM_DEVICE": "cpu",
        "MASKDM_MICRO_BATCH": "2",
        "MASKDM_SAMPLE_BATCH": "3",
        "OMP_NUM_THREADS": "2",
    }
    assert clone.dvc("repro", **other) == set()


def test_comments_rerun_nothing(clone):
    clone.edit("params.yaml", r"^seed: 0.*$", "# another comment\nseed: 0  # and one more")
    assert clone.dvc("repro") == set()


# What a section's own stages are; what follows from there is shown in test_reruns.py. The extractor
# 'inception' cannot be run without its download.
@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        (r"^seed: \d+", "seed: 2", {"pretrain", "finetune"}),
        (r"hflip: 0.5", "hflip: 0.4", {"pretrain"}),  # the first is pretrain's
        (r"background: white", "background: black", {"prepare"}),
        (r"dim: 32", "dim: 16", {"masks", "pretrain", "finetune"}),
        (r"path: flow", "path: vp-cosine", {"pretrain", "finetune"}),
        (r"strategy: patch", "strategy: crop", {"masks", "pretrain"}),
        (r"init_weights: averaged", "init_weights: raw", {"finetune"}),
        (r"nfe: 3", "nfe: 5", {"sample", "pictures"}),
        (r"^  seed: 0", "  seed: 1", {"sample", "pictures"}),
        (
            r"extractor: efficientnet-lite0",
            "extractor: inception",
            {"reference", "fid", "neighbours"},
        ),
    ],
)
def test_each_section_changes_only_the_stages_that_read_it(changed, old, new, stages):
    assert changed("params.yaml", old, new) == stages | {"check"}


# The rooms of the code: the stages that depend on a folder, or on a file that stands in none.
@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("maskdm/figures.py", {"masks", "curves", "sample", "pictures", "neighbours"}),
        ("maskdm/sampling/solvers.py", {"check", "sample", "pictures", *ROLL}),
        ("maskdm/evaluation/distances.py", {"check", "reference", "fid", "neighbours"}),
        ("maskdm/data/sources/lsun.py", {"check", "prepare"}),
        ("maskdm/training/checkpoints/store.py", {"check", "pretrain", "finetune", *ROLL}),
        ("stages/fid.py", {"fid"}),
    ],
)
def test_an_edited_module_changes_the_stages_whose_rooms_it_stands_in_and_no_others(
    changed, module, stages
):
    assert changed(module, r"\Z", "# a comment\n") == stages


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("mask.rate=abc", r"mask\.rate is 'abc'.* Allowed: "),
        ("+mask.rat=0.7", r"mask\.rat is not a parameter.* Did you mean 'rate'"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_is_touched(clone, change, sentence):
    before = clone.outputs()
    said = clone.call("dvc", "exp", "run", "--set-param", change, code=255)
    assert re.search(sentence, said)
    assert clone.outputs() == before
    clone.call("sh", "-c", re.search(r"'(.*)' undoes", said)[1])
    assert clone.dvc("repro") == set()


def test_what_a_refusal_advises_works_where_git_alone_sees_no_change(tmp_path):
    """A value of equal length; a second or less of difference, which git is told not to look at."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-c", "core.checkStat=minimal"]
    git += ["-c", "core.trustctime=false"]

    def call(*words):
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)

    params, earlier = tmp_path / "params.yaml", (0, 10**18)
    params.write_text("mask: {rate: 0.9}\n")
    os.utime(params, ns=earlier)
    call("git", "init", "--quiet")
    call(*git, "add", "params.yaml")
    call(*git, "commit", "--quiet", "--message", "x")
    params.write_text("mask: {rate: 1.0}\n")
    os.utime(params, ns=earlier)
    call(*git, "checkout", "params.yaml")
    assert "1.0" in params.read_text()  # git by itself took it for the old one
    params.write_text("mask: {rate: 1.0}\nseed: 7\n")
    advised = re.search(r"'(.*)' undoes", UNDO)[1]
    call("sh", "-c", advised.replace("git ", f"{' '.join(git)} "))
    assert params.read_text() == "mask: {rate: 0.9}\n"  # another change is gone, as it says
    assert "every other change to params.yaml that is not committed" in UNDO


def test_what_the_readme_advises_to_commit_is_all_that_a_clone_needs(finished, tmp_path):
    """A run writes new files, too: previews of other steps, which ``git commit -a`` leaves out."""
    clone = finished[0].copied(tmp_path / "here")
    clone.dvc("exp", "run", "--set-param", "pretrain.steps=150")
    assert "?? reports/pretrain/previews" in clone.git("status", "--short")
    advised = set(re.findall(r"`(git add [^`]*)`", (ROOT / "README.md").read_text()))
    assert len(advised) == 1
    clone.call("sh", "-c", advised.pop())
    assert clone.git("status", "--short") == ""

    there = Clone(tmp_path / "there")
    subprocess.run(["git", "clone", "--quiet", clone.path, there.path], check=True)
    there.call("dvc", "config", "--local", "cache.dir", str(clone.path / ".dvc/cache"))
    there.call("dvc", "checkout")
    assert there.dvc("repro") == set()
    assert there.git("status", "--short") == ""


def test_only_what_changed_is_shown_of_an_experiment_and_no_dependency(clone):
    """As README.md and docs/experiments.md say; without --drop hashes of folders fill the table."""
    everywhere = [(ROOT / name).read_text() for name in ("README.md", "docs/experiments.md")]
    advised = {re.search(r"^dvc (exp show --only-changed.*?)\s*(#.*)?$", text, re.M)[1]
               for text in everywhere}  # fmt: skip
    assert len(advised) == 1
    shown = clone.call("dvc", *shlex.split(advised.pop()), "--csv")
    head, *rows = csv.reader(shown.splitlines())
    assert "other" in {row[head.index("Experiment")] for row in rows}
    assert "mask.rate" in head
    assert not [name for name in head if (clone.path / name).exists()]


def test_a_mistyped_key_is_refused_by_dvc(clone):
    said = clone.call("dvc", "exp", "run", "--set-param", "mask.rat=0.7", code=255)
    assert "mask.rat" in said
    assert clone.git("status", "--short") == ""


def test_a_number_in_scientific_notation_reaches_training(clone):
    clone.dvc("exp", "run", "--set-param", "pretrain.lr=1e-5", "pretrain")
    with (clone.path / "reports/pretrain/training.tsv").open(newline="") as file:
        assert float(list(csv.DictReader(file, delimiter="\t"))[-1]["lr"]) == 1e-5


def test_what_dvc_compares_are_numbers_and_settings_stand_elsewhere(clone):
    metrics = json.loads((clone.path / "reports/metrics.json").read_text())
    metrics |= metrics.pop("manifold") | metrics.pop("training")
    assert all(np.isfinite(value).all() for value in metrics.values())  # no words among them
    params = read_params(clone.path / "params.yaml")
    assert not metrics.keys() & (params["sample"].keys() | {"hash", "extractor", "side"})
    measured = json.loads((clone.path / "reports/measured.json").read_text())
    assert measured["samples"] == params["sample"]
    assert measured["features"]["extractor"] == params["fid"]["features"]["extractor"]
    assert measured["reference"]["train"] > measured["reference"]["heldout"] > 0


def test_solvers_are_measured_as_the_pipeline_measures_and_once(clone):
    command = ("python", "-m", "benchmarks.speed.solver_nfe", "--count", "8", "--evaluations", "3")
    said = clone.call(*command)
    report = json.loads((clone.path / "reports/solvers.json").read_text())
    cells = {cell["solver"]: cell for cell in report["cells"]}
    assert set(cells) == set(SOLVERS)
    metrics = json.loads((clone.path / "reports/metrics.json").read_text())
    found = cells["dpmpp-2m"]["kid_efficientnet_lite0"]
    assert found == pytest.approx(metrics["kid_efficientnet_lite0"], rel=1e-3)
    assert len({cell["kid_efficientnet_lite0"] for cell in report["cells"]}) > 1
    assert "solver" in said
    assert "solver'" not in clone.call(*command)
    report["cells"].pop()
    (clone.path / "reports/solvers.json").write_text(json.dumps(report))
    assert clone.call(*command).count("solver'") == 1
    assert (clone.path / "reports/solvers.png").read_bytes().startswith(b"\x89PNG")


def test_guidance_is_measured_at_every_scale_and_once(clone):
    command = ("python", "-m", "benchmarks.speed.guidance", "--count", "8")
    command += ("--draws", "2", "--solver", "dpmpp-2m")
    assert clone.call(*command).count("guide_scale'") == 1 + len(SCALES) * len(INTERVALS)
    report = json.loads((clone.path / "reports/guidance.json").read_text())
    plain, *guided = report["cells"]
    assert (plain["guide_scale"], plain["network_passes"]) == (1.0, 16)
    for cell in guided:
        everywhere = cell["guide_interval"] == [0.0, 1.0]
        assert (cell["network_passes"] == 32) == everywhere
        assert cell["network_passes"] > 16
    assert len({cell["kid_efficientnet_lite0"] for cell in report["cells"]}) > 3
    assert "guide_scale'" not in clone.call(*command)
    assert (clone.path / "reports/guidance.png").read_bytes().startswith(b"\x89PNG")


def test_images_that_are_added_removed_or_brought_back_are_what_is_prepared(clone, tmp_path):
    """Whatever DVC has in its caches of other settings and other days."""
    save_images(tmp_path / "photos", [f"{n:02}.png" for n in range(60)])

    def prepared(*settings):
        given = [word for setting in settings for word in ("--set-param", setting)]
        ran = clone.dvc("exp", "run", *given, "prepare") if given else clone.dvc("repro", "prepare")
        about = json.loads((clone.path / "data/prepared/dataset.json").read_text())
        return "prepare" in ran, about["train"]["count"] + about["heldout"]["count"]

    own = ("data.source=folder", f"data.path={tmp_path / 'photos'}", "data.limit=null")
    assert prepared(*own) == (True, 60)
    assert prepared() == (False, 60)
    assert prepared("data.background=black") == (True, 60)
    for n in range(10):
        (tmp_path / f"photos/{n:02}.png").unlink()
    assert prepared() == (True, 50)
    assert prepared("data.background=white") == (True, 50)
    save_images(tmp_path / "photos", [f"{n:02}.png" for n in range(5)])
    assert prepared() == (True, 55)

    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    said = clone.call("dvc", "repro", "prepare", code=255)
    assert "which does not exist: it must name the folder that holds the images" in said
    about = json.loads((clone.path / "data/prepared/dataset.json").read_text())
    assert about["train"]["count"] + about["heldout"]["count"] == 55  # nothing was deleted
    (tmp_path / "elsewhere").rename(tmp_path / "photos")
    assert prepared() == (False, 55)


def test_a_prepare_that_fails_leaves_the_set_that_was_there(clone, tmp_path):
    before = (clone.path / "data/prepared/dataset.json").read_bytes()
    save_images(tmp_path / "photos", [f"{n:02}.png" for n in range(9)])
    (tmp_path / "photos/0.png").write_text("no image")
    own = ("--set-param", "data.source=folder", "--set-param", f"data.path={tmp_path / 'photos'}")
    said = clone.call("dvc", "exp", "run", *own, "prepare", code=255)
    assert "1 of 10 images cannot be read" in said
    assert (clone.path / "data/prepared/dataset.json").read_bytes() == before
