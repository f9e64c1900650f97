"""Commands of former versions are refused with the name that they have now."""

import subprocess
import sys

import pytest

from maskdm.runtime.renamed import refuse_renamed

NAMES = {"package.old": "package.new"}


@pytest.mark.parametrize(
    "command", [["-m", "package.old"], ["-W", "ignore", "-mpackage.old"]], ids=" ".join
)
def test_a_former_name_is_refused_with_the_present_one(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["-m", "list", "-m"])
    monkeypatch.setattr(sys, "orig_argv", ["python", *command, "list", "-m"])
    with pytest.raises(SystemExit, match=r"error: python -m package.old is python -m package.new"):
        refuse_renamed(NAMES)


@pytest.mark.parametrize(
    ("argv", "whole"),
    [
        (["-m"], ["python", "-m", "package.new"]),
        (["-m", "package.old"], ["python", "-m", "pytest", "package.old"]),
        (["script.py", "-m", "package.old"], ["python", "script.py", "-m", "package.old"]),
        (["-c"], ["python", "-c", "import package"]),
        ([], ["python"]),
    ],
)
def test_nothing_else_is_refused(argv, whole, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", whole)
    refuse_renamed(NAMES)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("stages.states", "stages.checkpoints"),
        ("benchmarks.speed", "benchmarks.speed.bench"),
        ("benchmarks.report.page", "tools.report.page"),
        ("benchmarks.evidence.run", "benchmarks.evidence.matrix"),
    ],
)
def test_an_old_command_ends_with_one_sentence(old, new):
    done = subprocess.run([sys.executable, "-m", old], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: python -m {old} is python -m {new} now."
