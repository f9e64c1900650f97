"""Faults at writes: they strike where they are told to, and what they do is seen."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from benchmarks.robustness import writes
from benchmarks.robustness.forks import Ended
from benchmarks.robustness.writes import Fault, Storm, strikes, unclear
from maskdm.runtime.errors import UserError
from tests.support.clones import ROOT

WRITE = os.O_WRONLY | os.O_CREAT


def happens(fault, *names, event="open"):
    """Tell a fault of files that are opened for writing, or of another event."""
    for name in names:
        path = f"{fault.folder}{name}"
        fault(event, (path, "w", WRITE) if event == "open" else (path,))


def test_only_writes_in_the_workspace_count(tmp_path):
    fault = Fault(tmp_path)
    happens(fault, "a", "b")
    happens(fault, "a", event="os.rename")
    fault("open", (str(tmp_path / "a"), "r", os.O_RDONLY))
    fault("open", ("/dev/null", "w", WRITE))
    fault("open", (3, "w", WRITE))
    fault("os.listdir", (str(tmp_path),))
    assert fault.written() == 3


def test_a_full_disk_stays_full_but_lets_files_be_renamed(tmp_path):
    fault = Fault(tmp_path, "full", 2)
    happens(fault, "a")
    for name in "bc":
        with pytest.raises(OSError, match="No space left") as caught:
            happens(fault, name)
        assert caught.value.errno == errno.ENOSPC
    happens(fault, "a", event="os.rename")
    read_only = Fault(tmp_path, "read-only", 1)
    with pytest.raises(OSError, match="Read-only"):
        happens(read_only, "a", event="os.rename")


@pytest.mark.parametrize("kind", writes.SIGNALS)
def test_a_signal_strikes_once_at_its_write(kind, tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))
    happens(Fault(tmp_path, kind, 2), "a", "b", "c")
    assert sent == [(os.getpid(), writes.SIGNALS[kind])]


def test_a_disk_that_fails_once_works_again_and_handles_are_needed_to_open_only(tmp_path):
    failing, handles = Fault(tmp_path, "failing", 2), Fault(tmp_path, "handles", 1)
    happens(failing, "a")
    with pytest.raises(OSError, match="Input/output"):
        happens(failing, "a", event="os.rename")
    happens(failing, "a")
    happens(handles, "a", event="os.mkdir")
    with pytest.raises(OSError, match="Too many open files"):
        happens(handles, "a")


def test_rounds_of_some_faults_are_all_of_them_in_the_end():
    rounds = [set(strikes(5, 4, shift)) for shift in range(4)]
    kinds = (*writes.SIGNALS, *writes.ERRORS)
    assert set.union(*rounds) == {(kind, number) for kind in kinds for number in range(1, 6)}
    assert sum(map(len, rounds)) == 40


@pytest.mark.parametrize(
    ("kind", "status", "said", "wrong"),
    [
        ("SIGKILL", -signal.SIGKILL, "", False),
        ("SIGKILL", 0, "", True),
        ("SIGTERM", -signal.SIGTERM, "", False),
        ("SIGTERM", 143, "Stopped after step 3", False),
        ("SIGTERM", 0, "", False),
        ("SIGTERM", 1, "error: x", True),
        ("SIGINT", 130, "Traceback", True),
        ("full", 1, "error: The disk is full", False),
        ("full", 0, "", False),
        ("full", 1, "", True),
        ("full", 1, "error: x\nTraceback", True),
        ("full", -signal.SIGSEGV, "error: x", True),
        (None, 0, "", False),
        (None, 1, "error: x", True),
    ],
)
def test_what_a_command_may_end_with(kind, status, said, wrong):
    assert unclear(Ended(status, said, 0, 0, 0), kind) == wrong


def test_a_storm_tells_lost_files_from_wrong_and_from_left_ones():
    storm = Storm()
    storm.compare("here", {"a": b"1", "b": b"1", "c": b"1"}, {"b": b"2", "c": b"1", "d": b""})
    assert (storm.lost, storm.wrong, storm.left) == ({"here: a"}, {"here: b"}, {"here: d"})
    assert Storm.of(storm.figures()) == storm


@pytest.mark.slow
def test_whatever_befalls_the_first_stages_their_files_are_those_of_a_calm_run(tmp_path):
    command = [sys.executable, "-m", "benchmarks.robustness.writes", "--every", "8"]
    command += ["--stages", "check", "--stages", "prepare"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for rounds in (1, 2):  # the second command goes on where the first was
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        figures = json.loads((tmp_path / "reports/robustness.json").read_text())[writes.FIGURES]
        assert figures["rounds"] == rounds
        assert [figures[name] for name in ("lost", "wrong", "left", "unclear")] == [[]] * 4
    assert figures["stages"] == ["check", "prepare"]
    assert figures["of_all_faults"] == 2 / 8
    assert figures["faults"] >= 15
    assert len(figures["kinds"]) >= 5
    measured = figures["longest"]["first_round"]
    assert measured["mib"] > 100 < measured["kib_on_disk"]
    assert measured["temporary_files"] == 0


def test_rounds_add_up_to_those_of_the_same_faults_alone():
    asked = {"every": 8, "stages": ["check", "prepare"]}
    assert writes.counted_before({}, asked) == asked
    before = asked | {"rounds": 3, "of_all_faults": 3 / 8, "faults": 50}
    assert writes.counted_before(before, asked) == asked | {"rounds": 3, "of_all_faults": 3 / 8}
    for other in ({"every": 9}, {"stages": ["prepare"]}):
        with pytest.raises(UserError, match="begin --anew"):
            writes.counted_before(before, asked | other)
        begun = before | {"rounds": 0}  # no round of it is whole
        assert writes.counted_before(begun, asked | other)["rounds"] == 0
