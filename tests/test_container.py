"""The files for containers, as far as they can be tested without one: they name what there is."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from pathspec import GitIgnoreSpec

from tests.support.graph import ROOT

FOLDER = ROOT / ".devcontainer"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
IMAGE = re.compile(r"python:(\d+)\.(\d+)-bookworm")


def instructions(name: str) -> list[str]:
    """Return what stands behind an instruction of the Dockerfile, a line each."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def make_would(folder, target: str) -> str:
    """Return what make would do in a folder for a target, which it must know."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", target],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_both_have_one_image_with_a_python_that_maskdm_runs_on():
    about = json.loads((FOLDER / "devcontainer.json").read_text())
    assert instructions("FROM") == [about["image"]]
    found = IMAGE.fullmatch(about["image"])
    assert found is not None
    needed = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert needed is not None
    assert tuple(map(int, found.groups())) >= tuple(map(int, needed.groups()))


def test_what_they_call_are_targets_of_make():
    about = json.loads((FOLDER / "devcontainer.json").read_text())
    (command,) = instructions("CMD")
    called = [about["postCreateCommand"], *instructions("RUN"), shlex.join(json.loads(command))]
    for line in called:
        program, target = shlex.split(line)
        assert program == "make"
        assert make_would(ROOT, target)


@pytest.fixture
def layer(tmp_path):
    """A folder with what the Dockerfile copies before it installs packages, and nothing else."""
    *early, whole = instructions("COPY")
    assert whole == ". ."
    for line in early:
        *names, where = line.split()
        for name in names:
            (tmp_path / where).mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / where)
    return tmp_path


def test_the_layer_of_packages_needs_nothing_but_what_is_copied_before_it(layer):
    target = instructions("RUN")[0].split()[1]
    (module,) = re.findall(r"^python -m (tools\S+)", make_would(layer, target), re.MULTILINE)
    said = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=layer, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    for needed in ("requirements.lock", "tools/install.py"):
        (layer / needed).rename(layer / "away")
        with pytest.raises(AssertionError, match=re.escape(needed)):
            make_would(layer, target)
        (layer / "away").rename(layer / needed)


def test_the_image_can_be_built_without_cuda(layer, monkeypatch):
    """An argument of the build is a variable of the environment in what it runs."""
    (argument,) = instructions("ARG")
    monkeypatch.setenv(argument, "cpu")
    assert "--torch cpu" in make_would(layer, instructions("RUN")[0].split()[1])


def test_all_that_git_has_and_nothing_that_a_run_makes_goes_into_the_image():
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    ignored = GitIgnoreSpec.from_lines(lines)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:  # not in an archive of the source
        assert [name for name in listed.stdout.splitlines() if ignored.match_file(name)] == []
    for made in (".venv/bin/python", "data/prepared/train.npy", "models/finetune/config.json"):
        assert ignored.match_file(made)


def test_the_environment_of_the_host_is_not_the_containers():
    about = json.loads((FOLDER / "devcontainer.json").read_text())
    (mount,) = about["mounts"]
    target = dict(part.split("=", 1) for part in mount.split(","))["target"]
    assert target == "${containerWorkspaceFolder}/.venv"
    assert about["remoteEnv"]["PATH"].startswith(f"{target}/bin:")
