"""The pipeline under DVC: killed, extended, queued, repeated in another clone."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from maskdm.runtime.files import listed
from maskdm.training.checkpoints.store import KEEP
from tests.support.clones import SMALLER, Clone, clone_tree
from tests.support.workspaces import paused, pausing

pytestmark = pytest.mark.slow

TIMING = "reports/timing/pretrain.json"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone in which nothing has run; git knows the timing file, so experiments carry it."""
    clone = clone_tree(tmp_path_factory.mktemp("recovery") / "clone", SMALLER)
    (clone.path / TIMING).parent.mkdir(parents=True)
    (clone.path / TIMING).write_text("{}")
    clone.git("add", TIMING)
    clone.git("commit", "--quiet", "--message", "timing")
    return clone


@pytest.fixture
def pretrained(clone):
    """The clone, pretraining finished and committed."""
    clone.git("reset", "--quiet", "--hard")
    clone.dvc("repro", "pretrain")
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--allow-empty", "--message", "pretrained")
    return clone


def contents(clone):
    """Return the digests of all that stages wrote, but for what the clock said."""
    return {
        name: digest
        for name, (digest, _) in clone.outputs().items()
        if not name.startswith("reports/timing/")
    }


def computed(clone, experiment):
    """Return the steps that pretraining really computed in an experiment."""
    commit = clone.git("rev-parse", f"--glob=refs/exps/*/*/{experiment}").strip()
    return json.loads(clone.git("show", f"{commit}:{TIMING}"))["steps_computed"]


def test_a_killed_dvc_repro_ends_as_one_in_another_clone_that_nobody_touched(clone, finished):
    """DVC and all that it started get SIGKILL in the middle of pretraining, then of finetuning."""
    for phase, saved in (("pretrain", 30), ("finetune", 1)):
        process = subprocess.Popen(
            ["dvc", "repro"],
            cwd=clone.path,
            env=clone.environment | {"MASKDM_CHECKPOINT_STEPS": str(saved), **pausing(phase)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        paused(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (clone.path / "models" / phase).exists()
    said = clone.call("dvc", "repro")
    assert "checkpoint" in said
    assert "Running stage 'pretrain'" not in said

    other, *_ = finished
    assert contents(clone) == contents(other)
    assert (clone.path / "dvc.lock").read_bytes() == (other.path / "dvc.lock").read_bytes()


def test_a_forced_run_says_that_it_found_a_finished_checkpoint(pretrained):
    said = pretrained.call("dvc", "repro", "--force", "--single-item", "pretrain")
    lines = [line for line in said.splitlines() if "Found the finished checkpoint" in line]
    assert len(lines) == 1
    assert "To compute it anew: python -m stages.checkpoints clear pretrain-" in lines[0]


def test_a_longer_experiment_computes_the_difference(pretrained):
    experiment = ["exp", "run", "--name"]
    pretrained.dvc(*experiment, "longer", "--set-param", "pretrain.steps=160", "pretrain")
    assert computed(pretrained, "longer") == 40
    pretrained.dvc(*experiment, "temp", "--temp", "-S", "pretrain.steps=170", "pretrain")
    assert computed(pretrained, "temp") == 10


def test_two_queue_workers_compute_what_they_share_once(pretrained):
    """Whichever is first: the other waits, and takes the checkpoint that it needs."""
    clone = Clone(pretrained.path)
    clone.environment |= {"MASKDM_CHECKPOINT_STEPS": "100", **pausing("pretrain")}
    # The short one is queued first: on a busy machine it may end before the other begins, and a
    # run that comes after a longer one has nothing to take but that one's end.
    for name, steps in (("short", 420), ("long", 500)):
        change = ["--set-param", "pretrain.lr=0.002", "--set-param", f"pretrain.steps={steps}"]
        clone.call("dvc", "exp", "run", "--queue", "--name", name, *change, "pretrain")
    clone.start("dvc", "queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 900
    while (said := status_of_queue(clone)).count("Success") < 2:
        assert time.monotonic() < deadline, said
        # Each stands where it saves its second checkpoint, until the short one has said what it
        # needs: the long one may be first.
        if listed(clone.path / "checkpoints", f"pretrain-*/000000420-*{KEEP}"):
            for process in psutil.process_iter(["cwd", "status"]):
                inside = (process.info["cwd"] or "").startswith(str(clone.path))
                if inside and process.info["status"] == psutil.STATUS_STOPPED:
                    process.send_signal(signal.SIGCONT)
        time.sleep(1)
    assert computed(clone, "long") + computed(clone, "short") == 500
    for file in (clone.path / ".dvc/tmp/exps/celery").glob("*.pid"):
        process = file.read_text()
        with suppress(OSError):  # it has ended, as it should; at times a worker of DVC's stays
            if "queue-worker" in Path(f"/proc/{process}/cmdline").read_text():
                os.kill(int(process), signal.SIGKILL)


def status_of_queue(clone):
    """Return what DVC says of its queue, also where that fails, as workers change what it reads."""
    return subprocess.run(
        ["dvc", "queue", "status"],
        cwd=clone.path,
        env=clone.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ).stdout


def start(clone, **environment):
    """Start pretraining under DVC in a clone."""
    return subprocess.Popen(
        ["dvc", "repro", "pretrain"],
        cwd=clone.path,
        env=clone.environment | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def fresh(clone, tmp_path):
    """Return a function that makes clones in which nothing has run."""

    def fresh(name):
        clone.git("reset", "--quiet", "--hard")
        clone.git("clone", "--quiet", str(clone.path), str(tmp_path / name / "clone"))
        return Clone(tmp_path / name / "clone")

    return fresh


def test_of_two_at_once_in_one_working_copy_one_computes_and_the_other_says_why_not(
    fresh, pretrained
):
    copy, expected = fresh("one"), contents_of_pretraining(pretrained)
    processes = [start(copy), start(copy)]
    said = [process.communicate(timeout=600)[0] for process in processes]
    statuses = [process.returncode for process in processes]
    assert 0 in statuses, said
    for status, words in zip(statuses, said, strict=True):
        assert "Traceback" not in words
        assert status == 0 or "ERROR" in words, words
    assert copy.dvc("repro", "pretrain") == set()
    assert contents_of_pretraining(copy) == expected


def test_two_at_once_in_two_working_copies_share_what_they_compute(fresh, pretrained, tmp_path):
    """They have one folder of checkpoints and one cache of DVC's."""
    expected, copies = contents_of_pretraining(pretrained), [fresh("one"), fresh("two")]
    for copy in copies:
        copy.call("dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
        # One that comes when the other is done takes all from the cache, and computes nothing.
        (copy.path / TIMING).write_text('{"steps_computed": 0}')
    processes = [start(copy, MASKDM_CHECKPOINTS=str(tmp_path / "checkpoints")) for copy in copies]
    for process in processes:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    timings = [json.loads((copy.path / TIMING).read_text()) for copy in copies]
    assert sum(timing["steps_computed"] for timing in timings) == SMALLER["pretrain.steps"]
    assert [contents_of_pretraining(copy) for copy in copies] == [expected, expected]


def contents_of_pretraining(clone):
    """Return the digests of the images, the model and the curves."""
    parts = ("data/prepared/", "models/pretrain/", "reports/pretrain/")
    return {name: digest for name, digest in contents(clone).items() if name.startswith(parts)}
