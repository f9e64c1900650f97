"""A dvc.lock that was cut short is put aside; a whole one is left alone."""

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zc.lockfile
from dvc.repo import Repo

from tests.support.clones import ROOT, Clone
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


@pytest.mark.parametrize("share", [0.1, 0.4, 0.5, 0.9])
def test_a_lock_that_was_cut_short_is_put_aside_and_dvc_goes_on(
    repository: Path, share: float
) -> None:
    whole = (ROOT / "dvc.lock").read_text()
    # In the middle of a key that has others before it, and no value: YAML has no word for that.
    cut = whole[: whole.index("\n      size: ", int(len(whole) * share)) + len("\n      siz")]
    (repository / "dvc.lock").write_text(cut)
    assert b"dvc.lock" in subprocess.run(["dvc", "status"], capture_output=True).stderr
    mend_lock.main()
    assert not (repository / "dvc.lock").exists()
    assert (repository / "dvc.lock.damaged").read_text() == cut
    assert b"ERROR" not in subprocess.run(["dvc", "status"], capture_output=True).stderr


def test_wherever_a_lock_was_cut_it_is_put_aside_or_dvc_can_read_it(repository: Path) -> None:
    whole = (ROOT / "dvc.lock").read_bytes()
    ends = {False: 0, True: 0}
    for length in random.Random(0).sample(range(len(whole)), 40):
        (repository / "dvc.lock").write_bytes(whole[:length])
        ends[mend_lock.put_aside(repository) is not None] += 1
        with Repo(str(repository)) as dvc:
            dvc.status()
    assert min(ends.values()) > 5


def test_a_second_damage_does_not_replace_what_the_first_one_left(repository: Path) -> None:
    for content in (b"first", b"second", b"third"):
        (repository / "dvc.lock").write_bytes(content)
        mend_lock.main()
    names = ("dvc.lock.damaged", "dvc.lock.damaged.2", "dvc.lock.damaged.3")
    assert [(repository / name).read_bytes() for name in names] == [b"first", b"second", b"third"]


def test_the_demo_mends_before_it_runs() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("demo: setup\n")[2]
    assert recipe.index("tools.mend_lock") < recipe.index("dvc repro")


@pytest.mark.parametrize(
    "content", [b"", b"schema: '2.0'\nstages:\n  a", b"\xff\xfe\xfa", bytes(99)]
)
def test_no_content_that_dvc_refuses_is_taken_for_a_whole_lock(
    repository: Path, content: bytes
) -> None:
    (repository / "dvc.lock").write_bytes(content)
    mend_lock.main()
    assert (repository / "dvc.lock.damaged").read_bytes() == content


@pytest.mark.parametrize(
    ("file", "lock"), [("dvc.lock", ".dvc/tmp/lock"), (".dvc/tmp/rwlock", ".dvc/tmp/rwlock.lock")]
)
def test_what_dvc_may_be_writing_just_now_is_left_alone(
    file: str, lock: str, repository: Path
) -> None:
    (repository / file).write_bytes(b"")
    held = zc.lockfile.LockFile(str(repository / lock))
    try:
        mend_lock.main()
    finally:
        held.close()
    assert (repository / file).exists()


def test_a_whole_lock_that_dvc_refuses_for_another_reason_is_left_alone(repository: Path) -> None:
    (repository / ".gitignore").write_text("dvc.lock\n")
    mend_lock.main()
    assert (repository / "dvc.lock").exists()


def test_outside_a_repository_of_dvc_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_bytes(b"")
    mend_lock.main()
    assert Path("dvc.lock").exists()


@pytest.mark.parametrize("notes", ["", "{", '{"write": 3}', '{"write": {}, "read": {}}'])
def test_notes_of_who_is_at_work_that_were_cut_short_are_removed(
    repository: Path, notes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = repository / ".dvc/tmp/rwlock"
    path.write_text(notes)
    damaged = "read" not in notes
    mend_lock.main()
    assert path.exists() != damaged
    assert ("rwlock was damaged" in capsys.readouterr().out) == damaged


def test_nobody_writes_notes_while_damaged_ones_are_removed(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = repository / ".dvc/tmp"
    (folder / "rwlock").write_text("{")
    unlink, held = Path.unlink, list[bool]()

    def seen(path: Path, missing_ok: bool = False) -> None:
        if path.name == "rwlock":
            lock = mend_lock.make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder))
            try:
                with lock:
                    held.append(False)
            except mend_lock.LockError:
                held.append(True)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", seen)
    assert mend_lock.remove_notes(repository)
    assert held == [True]


# Every run of a stage leaves a word in a file that DVC does not know.
GRAPH = """
stages:
  first:
    cmd: echo first >> ran && cat source > first
    deps: [source]
    outs: [first]
  second:
    cmd: echo second >> ran && cat first > second
    deps: [first]
    outs: [second]
"""


@pytest.mark.slow
def test_after_it_dvc_brings_all_back_and_computes_nothing(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "repository")
    clone.path.mkdir()
    clone.environment["PYTHONPATH"] = str(ROOT)
    clone.git("init", "--quiet")
    clone.call("dvc", "init", "--quiet")
    (clone.path / "dvc.yaml").write_text(GRAPH)
    (clone.path / "source").write_text("content")
    clone.dvc("repro")
    lock = clone.path / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: whole.index("second:") + 3])
    (clone.path / "second").unlink()

    clone.call("dvc", "repro", code=255)
    clone.call(sys.executable, "-m", "tools.mend_lock")
    clone.dvc("repro")
    assert (clone.path / "second").read_text() == "content"
    assert lock.read_text() == whole
    assert (clone.path / "ran").read_text().split() == ["first", "second"]


def test_git_ignores_what_is_put_aside() -> None:
    for name in (mend_lock.ASIDE, f"{mend_lock.ASIDE}.2"):
        assert not subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode
