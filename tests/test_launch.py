"""How a stage starts: handed to a launcher, or refused, before it reads or computes anything."""

import runpy
import signal
import sys

import pytest

from maskdm.runtime.distributed import NAMES

SEVERAL = ("pretrain", "finetune", "sample", "reference", "fid")  # stages that use processes


def lines(said):
    return [line for line in said.splitlines() if line.strip()]


@pytest.fixture
def main(tmp_path, monkeypatch, capfd):
    """Return a stage's status and words, where its command runs in this very process."""
    for name in {*sum(NAMES, ()), "MASKDM_WORKER", "MASKDM_PROCESSES", "MASKDM_LAUNCHER"}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stage"])
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def main(stage):
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
        return end.value.code, "".join(capfd.readouterr())

    return main


@pytest.mark.parametrize("stage", SEVERAL)
def test_a_stage_hands_its_own_command_to_the_launcher(stage, main, monkeypatch):
    monkeypatch.setenv("MASKDM_LAUNCHER", "echo -n '4 workers:'")
    assert main(stage) == (0, f"4 workers: {sys.executable} -m stages.{stage}")


def test_a_launcher_that_does_not_exist_is_named_in_one_sentence(main, monkeypatch):
    monkeypatch.setenv("MASKDM_LAUNCHER", "no-such-launcher -n 2")
    status, said = main("pretrain")
    assert status == 1
    assert lines(said) == [
        "error: MASKDM_LAUNCHER is 'no-such-launcher -n 2', which cannot be run: "
        "No such file or directory."
    ]


def test_a_number_of_processes_that_is_none_is_named_in_one_sentence(main, monkeypatch):
    monkeypatch.setenv("MASKDM_PROCESSES", "abc")
    status, said = main("pretrain")
    assert status == 1
    assert lines(said) == ["error: MASKDM_PROCESSES is 'abc', but must be a whole number >= 1."]
