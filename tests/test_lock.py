"""The committed dvc.lock belongs to the committed code: a fresh clone computes nothing anew."""

import pytest
from dvc.repo import Repo

from tests.support.graph import ROOT


def changed_code(status: dict) -> set[str]:
    """Return the code that a status of DVC names as changed, with the stage it is in."""
    return {
        f"{stage.rpartition(':')[2]}: {path}"
        for stage, entries in status.items()
        for entry in entries
        if isinstance(entry, dict)
        for path, how in entry.get("changed deps", {}).items()
        if path.startswith(("maskdm", "stages")) and how != "up to date"
    }


def test_the_recorded_hashes_of_all_code_are_those_of_the_files(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GLOBAL_CONFIG", "SYSTEM_CONFIG", "SITE_CACHE"):
        monkeypatch.setenv(f"DVC_{name}_DIR", str(tmp_path / name))
    with Repo(str(ROOT)) as repo:
        stale = changed_code(repo.status())
    assert not stale, "run dvc repro, and commit dvc.lock and reports/ with the code"


def test_a_status_that_names_code_is_seen() -> None:
    status = {"fid": [{"changed deps": {"maskdm/runtime": "modified", "data/samples": "deleted"}}]}
    assert changed_code(status) == {"fid: maskdm/runtime"}
