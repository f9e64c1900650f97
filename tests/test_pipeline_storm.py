"""The storm over DVC: it strikes whom it says, and tells what is lost, wrong or left running."""

import os
import random
import signal
import subprocess
import time

import pytest

from benchmarks.robustness import pipeline, report
from benchmarks.robustness.pipeline import KINDS, Storm, kill, living, strike
from maskdm.runtime.errors import UserError


@pytest.fixture
def both(tmp_path):
    """Two programs in a folder, DVC and a stage that ends when it does; and one elsewhere."""
    (tmp_path / "folder/below").mkdir(parents=True)
    dvc = subprocess.Popen(["dvc", "100"], executable="sleep", cwd=tmp_path / "folder")
    stage = subprocess.Popen(["sleep", "100"], cwd=tmp_path / "folder/below")
    elsewhere = subprocess.Popen(["sleep", "100"], cwd=tmp_path)
    yield tmp_path / "folder", dvc, stage, elsewhere
    for process in (dvc, stage, elsewhere):
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["SIGKILL to all", "SIGINT to all"])
def test_all_that_runs_in_the_folder_gets_the_signal_and_nothing_else_does(kind, both):
    folder, dvc, stage, elsewhere = both
    assert strike(folder, kind) == set()
    assert [dvc.wait(), stage.wait(), elsewhere.poll()] == [-KINDS[kind], -KINDS[kind], None]


def test_a_stage_that_goes_on_without_dvc_is_named_and_killed(both, monkeypatch):
    monkeypatch.setattr(pipeline, "PATIENCE", 2)
    folder, dvc, stage, _ = both
    assert strike(folder, "SIGTERM to DVC alone") == {"sleep 100"}
    assert [dvc.wait(), stage.wait()] == [-signal.SIGTERM, -signal.SIGKILL]


def test_lost_and_wrong_files_are_told_and_figures_go_on():
    before = {"kills": {"SIGINT to all": 2}, "counts": {"files_compared": 5}, "lost": ["x"]}
    storm = Storm(before, note=lambda _: None)
    storm.compare({"a": 1, "b": 1, "c": 1}, {"b": 2, "c": 1, "d": 1})
    assert storm.figures() == {
        "kills": {"SIGINT to all": 2},
        "counts": {"files_compared": 8},
        "lost": ["a", "x"],
        "wrong": ["b"],
        "left_running": [],
        "failed": [],
    }


@pytest.mark.parametrize("end", [UserError("dvc repro ended with 1"), KeyboardInterrupt()])
def test_whatever_ends_it_what_was_found_so_far_is_written_and_a_failure_with_it(
    end, tmp_path, monkeypatch
):
    """A command that fails after a kill is the worst outcome, and must not go unnoted."""
    struck = []

    class Failing:
        kinds = ("SIGKILL to all",)

        def __init__(self, folder):
            self.folder = folder

        def start(self):
            pass

        def finish(self):
            pass

        def results(self):
            return {"a": 1}

        def ended_within(self, seconds):
            if len(struck) == 2:
                raise end
            return False

    monkeypatch.setattr(pipeline, "clone", lambda path: path)
    monkeypatch.setattr(pipeline, "strike", lambda folder, kind: struck.append(kind) or set())
    monkeypatch.setattr(pipeline, "mended", lambda folder: 0)
    noted = []
    storm = Storm({}, note=noted.append)
    with pytest.raises(type(end)):
        storm.blow(Failing, tmp_path, 9, random.Random(0))
    assert [figures["kills"] for figures in noted] == [
        *({"SIGKILL to all": 1}, {"SIGKILL to all": 2}, {"SIGKILL to all": 2})
    ]
    failed = ["dvc repro ended with 1"] if isinstance(end, UserError) else []
    assert noted[-1]["failed"] == failed


def test_figures_of_one_way_leave_those_of_another_that_runs_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "REPORT", tmp_path / "robustness.json")
    pipeline.note("repro", {"kills": 1})
    pipeline.note("queue", {"kills": 2})
    pipeline.note("repro", {"kills": 3})
    kept = {"repro": {"kills": 3}, "queue": {"kills": 2}}
    assert report.read_report() == {pipeline.FIGURES: kept}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A folder in which ``dvc`` leaves a worker behind that holds what dvc was given to write."""
    (tmp_path / "bin").mkdir()
    dvc = tmp_path / "bin/dvc"
    dvc.write_text("#!/bin/sh\nsleep 100 &\n")
    dvc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    folder = tmp_path / "clone"
    folder.mkdir()
    yield folder
    kill(folder)


def test_the_queue_is_killed_as_by_a_power_failure_and_queues_again_what_is_not_done(
    monkeypatch, clone
):
    called = []
    lock = "stages: {a: {outs: [{path: models/a, md5: x}, {path: reports/timing/a, md5: y}]}}"
    answers = {
        "queue status": "Task Name Created Status\n1 second 12:00 Queued\n2 first 12:01 Running\n",
        "for-each-ref": "refs/exps/12/34/first\nrefs/exps/12/34/other\n",
        "show": lock,
    }

    def call(folder, *words):
        called.append(" ".join(words))
        return next((said for name, said in answers.items() if name in called[-1]), "")

    monkeypatch.setattr(pipeline, "call", call)
    queue = pipeline.WAYS["queue"](clone)
    assert queue.kinds == ("SIGKILL to all",)
    assert queue.results() == {"first: models/a": "x"}
    begun = time.monotonic()
    queue.start()
    assert living(clone)  # workers are there, and start did not wait for their end
    assert time.monotonic() - begun < 50
    assert strike(clone, "SIGKILL to all") == set()
    assert not [words for words in called if "--queue" in words]
    answers["queue status"] = answers["for-each-ref"] = ""
    queue.start()
    assert sum("--queue" in words for words in called) == len(pipeline.EXPERIMENTS)
