"""Every variable of the environment: its default, its values, what is refused, its former name."""

import os
import re
import subprocess
import sys

import pytest
import typer

from maskdm.runtime import environment
from maskdm.runtime.command import run_commands
from maskdm.runtime.environment import RENAMED, VARIABLES, checkpoints_folder
from maskdm.runtime.errors import UserError
from maskdm.training.live import TRACKERS
from tests.support.clones import ROOT

BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
WHOLE, FEW, SWITCH = "a whole number from 1 to 999999999", "a whole number from 1 to 64", "0 or 1"
TRACKER = "dvclive, wandb or mlflow"
DEVICES = "'cpu', 'cuda', 'cuda:N' or 'mps'"
MUCH = "a whole number from 1 to 1000000"
# name: what it is if unset; texts and their values; what is allowed, None where any text is
TABLE = {
    "MASKDM_CHECKPOINTS": ("checkpoints", {"/a/b": "/a/b"}, None),
    "MASKDM_CHECKPOINTS_REMOTE": (None, {"s3://bucket/a": "s3://bucket/a"}, None),
    "MASKDM_CHECKPOINT_SECONDS": (60, {"1": 1, "600": 600}, WHOLE),
    "MASKDM_CHECKPOINT_STEPS": (None, {"1": 1, "25": 25}, WHOLE),
    "MASKDM_SHARDS_CACHE": ("shards", {"/a/b": "/a/b"}, None),
    "MASKDM_SHARDS_CACHE_GIB": (16, {"1": 1, "1000000": 10**6}, MUCH),
    "MASKDM_DEVICE": ("", {name: name for name in ("cpu", "cuda", "cuda:1", "mps")}, DEVICES),
    "MASKDM_PROCESSES": (None, {"2": 2, "64": 64}, FEW),
    "MASKDM_LAUNCHER": ("", {"srun -n 4": "srun -n 4"}, None),
    "MASKDM_SHARD": (False, {"0": False, "1": True}, SWITCH),
    "MASKDM_MICRO_BATCH": (None, {"1": 1, "16": 16}, WHOLE),
    "MASKDM_COMPILE": (True, {"0": False, "1": True}, SWITCH),
    "MASKDM_REPLAY": (True, {"0": False, "1": True}, SWITCH),
    "MASKDM_SAMPLE_BATCH": (64, {"8": 8}, WHOLE),
    "MASKDM_LIVE": (None, {"dvclive": "dvclive", "mlflow": "mlflow"}, TRACKER),
    "MASKDM_EXACT": (False, {"0": False, "1": True}, SWITCH),
    "MASKDM_PARENT": (None, {"7": 7}, WHOLE),
    "MASKDM_WORKER": (False, {"0": False, "1": True}, SWITCH),
}
WRONG = {
    WHOLE: ("0", "-1", "1.5", "many", " 1", "1e3", "٣", "²", "1" * 5000),
    MUCH: ("0", "1000001", "0.5", "²"),
    FEW: ("0", "65", "1000", "²"),
    SWITCH: ("2", "yes", "true", "01", " 1", "-0"),
    DEVICES: ("meta", "gpu", "cuda:", "cuda:1:2", "cuda:²", "cuda:1234", " cpu", "CPU"),
    TRACKER: ("1", "tensorboard", "DVCLive", " dvclive"),
    None: (),
}


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: variable.name)
def test_a_variable_has_its_default_takes_its_values_and_refuses_all_others(variable, monkeypatch):
    default, values, allowed = TABLE[variable.name]
    monkeypatch.delenv(variable.name, raising=False)
    assert variable.get() == default
    monkeypatch.setenv(variable.name, "")
    assert variable.get() == default
    for text, value in values.items():
        monkeypatch.setenv(variable.name, text)
        assert variable.get() == value
        assert type(variable.get()) is type(value)
    for text in WRONG[allowed]:
        monkeypatch.setenv(variable.name, text)
        sentence = f"{variable.name} is '{text}', but must be {allowed}."
        with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
            variable.get()


def test_every_variable_is_in_the_table_once_and_says_what_it_does():
    defined = [v for v in vars(environment).values() if isinstance(v, environment.Variable)]
    names = [variable.name for variable in VARIABLES]
    assert sorted(names) == sorted(variable.name for variable in defined) == sorted(TABLE)
    assert all(variable.meaning and variable.otherwise for variable in VARIABLES)


def test_every_tracker_can_be_asked_for(monkeypatch):
    for name in TRACKERS:
        monkeypatch.setenv("MASKDM_LIVE", name)
        assert environment.LIVE.get() == name
    assert set(TRACKERS) == set(re.findall(r"\w+", TRACKER)) - {"or"}


@pytest.fixture
def app():
    """A typer application, and the calls that it gets."""
    calls, made = [], typer.Typer()
    made.command()(lambda: calls.append(1))
    return made, calls


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("MASKDM_STATES", "MASKDM_CHECKPOINTS"),
        ("MASKDM_STATES_MIRROR", "MASKDM_CHECKPOINTS_REMOTE"),
        ("MASKDM_SAVE_SECONDS", "MASKDM_CHECKPOINT_SECONDS"),
        ("MASKDM_SAVE_STEPS", "MASKDM_CHECKPOINT_STEPS"),
    ],
)
def test_a_command_refuses_a_variable_of_a_former_version(app, monkeypatch, capsys, old, new):
    command, calls = app
    monkeypatch.setattr("sys.argv", ["command"])
    monkeypatch.setenv(old, "5")
    with pytest.raises(SystemExit) as end:
        run_commands(command)
    assert (end.value.code, calls) == (1, [])
    assert f"error: {old} is called {new} now: set that instead" in capsys.readouterr().err
    assert RENAMED[old] == new

    monkeypatch.setenv(old, "")
    with pytest.raises(SystemExit) as end:
        run_commands(command)
    assert (end.value.code, calls) == (0, [1])


def test_checkpoints_are_in_the_repository_that_dvc_names(monkeypatch, tmp_path):
    monkeypatch.delenv("MASKDM_CHECKPOINTS", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert checkpoints_folder() == tmp_path / "checkpoints"
    monkeypatch.setenv("MASKDM_CHECKPOINTS", "/elsewhere")
    assert str(checkpoints_folder()) == "/elsewhere"


def test_a_stage_bounds_how_long_openmp_spins_before_torch_is_there():
    code = (
        "import os, sys, stages; assert 'torch' not in sys.modules;"
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    )

    def said(**own):
        inherited = {k: v for k, v in os.environ.items() if k not in BY_USER}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=inherited | own,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert not done.returncode, done.stderr
        return done.stdout.split()

    assert said() == [environment.SPINS, "None"]
    assert said(GOMP_SPINCOUNT="7") == ["7", "None"]
    assert said(OMP_WAIT_POLICY="PASSIVE") == ["None", "PASSIVE"]


def omp_settings(code, **own):
    """Return what OpenMP itself says it has been set to, in a process that runs some code."""
    inherited = {k: v for k, v in os.environ.items() if k not in BY_USER}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": str(ROOT)} | own,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    return dict(re.findall(r"(\w+) = '(.*)'", done.stderr))


@pytest.mark.slow
def test_the_bound_of_spinning_reaches_openmp_whichever_stage_is_first():
    """It reads its variables once, when torch loads it."""
    unset = omp_settings("import torch")
    if "GOMP_SPINCOUNT" not in unset:
        pytest.skip("torch has another OpenMP here than GNU's")
    assert unset["GOMP_SPINCOUNT"] != environment.SPINS
    for stage in ("pretrain", "swissroll"):
        assert omp_settings(f"import stages.{stage}, torch")["GOMP_SPINCOUNT"] == environment.SPINS
    assert omp_settings("import stages, torch", GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7"
