"""A dvc.lock that was cut short is put aside; a whole one is left alone."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.clones import ROOT
from tools import mend_lock


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository with this one's dvc.yaml, params.yaml and dvc.lock."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["dvc", "init", "--quiet"], cwd=tmp_path, check=True)
    for name in ("dvc.yaml", "params.yaml", "dvc.lock"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_whole_lock_is_left_alone(repository: Path) -> None:
    mend_lock.main()
    assert (repository / "dvc.lock").read_bytes() == (ROOT / "dvc.lock").read_bytes()


@pytest.mark.parametrize("share", [0.4, 0.5, 0.9])
def test_a_lock_that_was_cut_short_is_put_aside_and_dvc_goes_on(
    repository: Path, share: float
) -> None:
    whole = (ROOT / "dvc.lock").read_text()
    # In the middle of a line: between its key and its value.
    cut = whole[: whole.index(": ", int(len(whole) * share)) - 1]
    (repository / "dvc.lock").write_text(cut)
    status = ["dvc", "status", "--quiet"]
    assert b"dvc.lock" in subprocess.run(["dvc", "status"], capture_output=True).stderr
    mend_lock.main()
    assert not (repository / "dvc.lock").exists()
    assert (repository / "dvc.lock.damaged").read_text() == cut
    assert b"ERROR" not in subprocess.run(status, capture_output=True).stderr


def test_the_demo_mends_before_it_runs() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("demo: setup\n")[2]
    assert recipe.index("tools.mend_lock") < recipe.index("dvc repro")
