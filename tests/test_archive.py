"""An archive of the source, without Git's history, is a place to work in, too."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.support.clones import ROOT


def test_dvc_works_in_an_archive_of_the_source(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml", "dvc.lock", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    environment = os.environ | {"DVC_SITE_CACHE_DIR": str(tmp_path / "site")}

    def call(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )  # fmt: skip

    assert "not a git repository" in call("dvc status").stderr
    [told] = re.findall(r"^\ttest -e \.git \|\| (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert call(f"test -e .git || {told}").returncode == 0
    assert call("dvc status").returncode == 0
