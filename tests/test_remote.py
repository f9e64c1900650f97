"""Checkpoints elsewhere too: in a folder, in S3; and what becomes of a run whose remote fails."""

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Timer

import pytest
import s3fs

from benchmarks.robustness.torture import MODELS_AND_CURVES
from maskdm.runtime import location
from maskdm.runtime.errors import UserError
from maskdm.training.checkpoints.store import BEGUN, KEEP, METADATA, TENSORS, Name
from tests.support.checkpoints import (
    DAMAGES,
    bits,
    contents,
    run,
    save,
    step_of,
    steps_in,
    store,
    tensors,
)
from tests.support.s3 import BUCKET
from tests.support.workspaces import like

ROOT = Path(__file__).parent.parent
BEFORE_METADATA_IS_READ = {"tensors missing"}  # damage that shows while fetching


def elsewhere(url, where):
    return Path(url) / where.folder.name


@pytest.fixture
def remote(tmp_path):
    return tmp_path / "remote"


# --- a folder ---


def test_what_is_saved_is_in_the_remote_too_and_what_is_pruned_is_pruned_there_too(
    tmp_path, remote
):
    where = store(tmp_path / "here", remote=remote)
    where.keep(2)
    for step in range(1, 6):
        save(where, step)
        here = {
            n: c for n, c in contents(where.folder).items() if n.endswith((TENSORS, METADATA, KEEP))
        }
        assert contents(elsewhere(remote, where)) == here
    assert steps_in(where.folder) == [2, 4, 5]
    where.finish()
    left = {f"{where.name(2)}{suffix}" for suffix in (TENSORS, METADATA, KEEP)}
    assert set(contents(elsewhere(remote, where))) == left


def target_of(name):
    """Return the name that a file has once it is whole; another machine's has another before."""
    return re.sub(rf"\.[0-9a-f]{{32}}{re.escape(BEGUN)}$", "", name)


def test_a_file_has_its_name_in_the_remote_only_once_it_is_whole(tmp_path, remote, monkeypatch):
    where = store(tmp_path / "here", remote=remote)
    move, moved = where.remote.system.mv, []

    def watched(source, target):
        names = set(contents(elsewhere(remote, where)))
        assert target_of(Path(source).name) == Path(target).name != Path(source).name
        assert Path(target).name not in names
        assert Path(source).read_bytes() == (where.folder / Path(target).name).read_bytes()
        moved.append(Path(target).suffix)
        move(source, target)

    monkeypatch.setattr(where.remote.system, "mv", watched)
    save(where, 3)
    assert moved == [TENSORS, METADATA]
    assert set(contents(elsewhere(remote, where))) == set(contents(where.folder))
    assert not where.remote.failed


def test_another_machine_fetches_the_newest_checkpoint(tmp_path, remote, capsys):
    save(store(tmp_path / "here", remote=remote), 4, 6)
    there = store(tmp_path / "there", remote=remote)
    assert step_of(there.newest(100)) == 6
    said = capsys.readouterr()
    assert said.out == f"Fetching the checkpoint after step 6 from {elsewhere(remote, there)}\n"
    assert said.err == ""
    files = {f"{there.name(6)}{suffix}" for suffix in (TENSORS, METADATA)}
    assert contents(there.folder).keys() == files
    assert step_of(store(tmp_path / "there").newest(100)) == 6  # it is here now


def test_another_machine_fetches_no_checkpoint_of_another_branch_or_of_more_steps(tmp_path, remote):
    one = store(tmp_path / "here", run("a", after=4), remote)
    for step in (4, 5, 6):
        one.keep(step)
    save(one, 4, 5, 6)
    assert step_of(store(tmp_path / "b", run("b", after=4), remote).newest(100)) == 4
    assert step_of(store(tmp_path / "c", run("a", after=4), remote).newest(5)) == 5


def test_what_is_here_is_not_fetched(tmp_path, remote, capsys):
    where = store(tmp_path / "here", remote=remote)
    save(where, 4)
    assert step_of(where.newest(100)) == 4
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_damaged_here_is_taken_from_the_remote(damage, tmp_path, remote, capsys):
    where = store(tmp_path / "here", remote=remote)
    save(where, 4, 6)
    suffix, spoil = DAMAGES[damage]
    spoil(where.folder / f"{where.name(6)}{suffix}")
    assert step_of(where.newest(100)) == 6
    said = capsys.readouterr()
    assert said.out.startswith("Fetching the checkpoint after step 6")
    assert "after step 6 is damaged" in said.err
    assert step_of(where.newest(100)) == 6
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_damaged_in_the_remote_is_refused_and_the_one_before_it_fetched(
    damage, tmp_path, remote, capsys
):
    where = store(tmp_path / "here", remote=remote)
    save(where, 4, 6)
    suffix, spoil = DAMAGES[damage]
    spoil(elsewhere(remote, where) / f"{where.name(6)}{suffix}")
    there = store(tmp_path / "there", remote=remote)
    assert step_of(there.newest(100)) == 4
    said = capsys.readouterr()
    assert said.out.count("Fetching the checkpoint") == 2
    assert said.err.count("The checkpoint after step 6 is damaged") == 1
    assert said.err.count("\n") == 1 + (damage in BEFORE_METADATA_IS_READ)
    assert steps_in(there.folder) == steps_in(there.folder, TENSORS) == [4]


def test_a_run_that_went_on_elsewhere_goes_on_here_again(tmp_path, remote):
    here, there = (store(tmp_path / name, remote=remote) for name in ("here", "there"))
    save(here, 2, 4)
    assert step_of(there.newest(100)) == 4
    save(there, 6, 8)
    assert step_of(here.newest(100)) == 8


def test_a_run_that_went_on_elsewhere_prunes_what_the_first_machine_left(tmp_path, remote):
    save(store(tmp_path / "here", remote=remote), 2, 4)
    there = store(tmp_path / "there", remote=remote)
    there.newest(100)
    save(there, 6, 8, 10)
    there.finish()
    assert contents(elsewhere(remote, there)) == {}


# --- S3 ---


@pytest.fixture
def bucket(s3):
    """The address of a folder in an empty bucket."""
    return f"s3://{BUCKET}/checkpoints"


def objects(where):
    """Return what S3 holds, asked anew."""
    system = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    found = system.find(f"bucket/checkpoints/{where.folder.name}")
    return {Path(name).name: system.cat_file(name) for name in found}


@pytest.mark.slow
def test_in_s3_there_is_what_is_here(tmp_path, bucket):
    where = store(tmp_path / "here", remote=bucket)
    where.keep(2)
    for step in range(1, 6):
        save(where, step)
        here = {
            n: c for n, c in contents(where.folder).items() if n.endswith((TENSORS, METADATA, KEEP))
        }
        assert objects(where) == here
    assert steps_in(where.folder) == [2, 4, 5]
    where.finish()
    left = {f"{where.name(2)}{suffix}" for suffix in (TENSORS, METADATA, KEEP)}
    assert set(objects(where)) == left
    assert not where.remote.failed


def test_checkpoints_in_s3_are_listed_anew_each_time(tmp_path, bucket):
    here = store(tmp_path / "here", remote=bucket)
    s3fs.S3FileSystem.clear_instance_cache()  # or both would share one list
    there = store(tmp_path / "there", remote=bucket)
    assert here.remote.system is not there.remote.system
    save(here, 2)
    assert step_of(there.newest(100)) == 2
    save(here, 4)
    assert step_of(there.newest(100)) == 4
    save(here, 6)
    cut = f"{there.remote.folder}/{there.name(6)}{TENSORS}"
    here.remote.system.pipe_file(cut, here.remote.system.cat_file(cut)[:-1])
    assert step_of(there.newest(100)) == 4


@pytest.mark.slow
def test_another_machine_goes_on_from_s3(tmp_path, bucket):
    """A second process, which has nothing but the address."""
    where = store(tmp_path / "here", remote=bucket)
    save(where, 4, 6)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.support.checkpoints import save, step_of, store\n"
        "there = store(Path(sys.argv[1]), remote=sys.argv[2])\n"
        "print(step_of(there.newest(100)))\n"  # which compares the bits
        "save(there, 8)\n"
    )
    second = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "there"), bucket],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert second.stdout == (
        f"Fetching the checkpoint after step 6 from {bucket}/{where.folder.name}\n6\n"
    )
    assert second.stderr == ""
    found = where.newest(100)
    assert step_of(found) == 8  # and the first one from what the second wrote
    assert bits(found.tensors) == bits(tensors(8))


def test_an_empty_remote_in_s3_has_not_failed(tmp_path, bucket, capsys):
    where = store(tmp_path / "here", remote=bucket)
    assert where.newest(100) is None
    assert capsys.readouterr().err == ""
    assert not where.remote.failed


# --- remotes that fail ---


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device\nand a long trace")


def test_a_remote_that_fails_is_said_once_and_saving_goes_on_here(
    tmp_path, remote, monkeypatch, capsys
):
    where = store(tmp_path / "here", remote=remote)
    with monkeypatch.context() as patch:
        patch.setattr(where.remote.system, "pipe_file", full)
        save(where, 2, 4, 6)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(elsewhere(remote, where)) in said
    assert "No space left on device" in said
    assert "going on with those on this machine" in said
    assert steps_in(where.folder) == [4, 6]
    assert contents(elsewhere(remote, where)) == {}
    save(where, 8)  # it works again
    assert steps_in(where.folder) == [6, 8]
    assert set(contents(elsewhere(remote, where))) == {
        f"{where.name(8)}{suffix}" for suffix in (TENSORS, METADATA)
    }


@pytest.mark.parametrize("call", ["ls", "get_file"])
def test_a_remote_that_cannot_be_read_leaves_what_is_here(
    call, tmp_path, remote, monkeypatch, capsys
):
    """The newest checkpoint is only there, the one before it here too."""
    where = store(tmp_path / "here", remote=remote)
    save(where, 4, 6)
    where.remove(where.name(6))
    monkeypatch.setattr(where.remote.system, call, full)
    assert step_of(where.newest(100)) == 4
    assert capsys.readouterr().err.count("The remote of checkpoints") == 1


def test_a_remote_that_takes_nothing_new_keeps_what_it_has(tmp_path, remote, monkeypatch):
    where = store(tmp_path / "here", remote=remote)
    save(where, 2, 4)
    monkeypatch.setattr(where.remote.system, "pipe_file", full)
    save(where, 6, 8)
    monkeypatch.undo()
    assert step_of(store(tmp_path / "there", remote=remote).newest(100)) == 4


def test_no_metadata_are_in_the_remote_without_their_tensors(tmp_path, remote, monkeypatch):
    where = store(tmp_path / "here", remote=remote)
    write = where.remote.system.pipe_file
    monkeypatch.setattr(
        where.remote.system,
        "pipe_file",
        lambda path, content: (full if TENSORS in path else write)(path, content),
    )
    save(where, 2)
    assert where.remote.names(METADATA) == []


@pytest.mark.parametrize("url", ["nosuch://bucket/folder", "{file}/below"])
def test_a_remote_that_cannot_be_used_is_the_users_to_mend(url, tmp_path):
    file = tmp_path / "file"
    file.touch()
    url = url.format(file=file)
    with pytest.raises(UserError) as caught:
        store(tmp_path / "here", remote=url)
    assert "MASKDM_CHECKPOINTS_REMOTE" in str(caught.value)
    assert url in str(caught.value)
    assert "unset it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_runs_branch_off_a_slow_remote_holds_up_nothing_and_gets_the_checkpoint(
    tmp_path, remote, monkeypatch
):
    """A stop must find the writer free: what is under way to the remote may take minutes."""
    where = store(tmp_path / "here", remote=remote)
    system, goes_on, written = where.remote.system, Event(), []
    write = system.pipe_file

    def slow(path, content):
        assert goes_on.wait(timeout=600)
        write(path, content)
        written.append(Path(path).name)

    monkeypatch.setattr(system, "pipe_file", slow)
    for step, required in ((2, False), (4, True), (6, False), (8, True)):
        where.save(step, tensors(step), {"seconds": 1.0}, wait=False, required=required)
    assert steps_in(where.folder) == [6, 8]
    assert written == []
    goes_on.set()
    where.finish()  # waits for all of it
    whole = [Name.of(target_of(name)) for name in written if METADATA in name]
    assert [name.step for name in whole] == [2, 4, 8]


@pytest.mark.parametrize("call", ["ls", "get_file"])
def test_a_remote_that_fails_for_a_moment_at_the_start_costs_no_steps(
    call, tmp_path, remote, monkeypatch
):
    save(store(tmp_path / "here", remote=remote), 4, 6)
    fresh = store(tmp_path / "fresh", remote=remote)
    works, left = getattr(fresh.remote.system, call), [1]

    def now_and_then(*arguments, **named):
        if left and left.pop():
            raise OSError(errno.EIO, "for a moment")
        return works(*arguments, **named)

    monkeypatch.setattr(location, "WAIT", 0)
    monkeypatch.setattr(fresh.remote.system, call, now_and_then)
    assert step_of(fresh.newest(100)) == 6
    assert not left


def test_a_busy_remote_does_not_hold_up_saving_and_has_the_last_checkpoint_in_the_end(
    tmp_path, remote, monkeypatch
):
    where = store(tmp_path / "here", remote=remote)
    system, begun, goes_on, written = where.remote.system, Event(), Event(), []
    write = system.pipe_file

    def slow(path, content):
        begun.set()
        assert goes_on.wait(timeout=600)
        write(path, content)
        written.append(Path(path).name)

    monkeypatch.setattr(system, "pipe_file", slow)
    for step in (2, 4, 6):
        where.save(step, tensors(step), {"seconds": step / 3}, wait=False)
        assert begun.wait(timeout=600)
        assert written == []  # the first is still under way
    assert steps_in(where.folder) == [4, 6]
    Timer(0.2, goes_on.set).start()
    save(where, 8)  # waits until the first is through
    assert [target_of(name) for name in written] == [
        f"{where.name(step)}{suffix}" for step in (2, 8) for suffix in (TENSORS, METADATA)
    ]
    left = {f"{where.name(8)}{suffix}" for suffix in (TENSORS, METADATA)}  # 2 is superfluous by now
    assert set(contents(elsewhere(remote, where))) == left
    assert not where.remote.failed


@pytest.mark.slow
def test_a_killed_stage_goes_on_from_s3_on_a_machine_that_has_nothing(prepared, tmp_path, bucket):
    """The same command, with the same remote, in a folder without checkpoints."""
    own = {"MASKDM_CHECKPOINTS_REMOTE": bucket, "MASKDM_CHECKPOINT_STEPS": "25"}
    # Endless: the others are as long as it has come until it is killed, and some steps more.
    here = like(prepared, tmp_path / "here", pretrain={"steps": 10**6})
    here.environment |= own
    process = here.start("pretrain")
    listing = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    while not any(name.endswith(METADATA) for name in listing.find("bucket/checkpoints")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.kill()
    process.wait()
    steps = {"steps": here.saved() + 100}
    there, calm = (like(prepared, tmp_path / name, pretrain=steps) for name in ("there", "calm"))
    there.environment |= own
    said = there.stage("pretrain")
    assert "Fetching the checkpoint after step" in said
    assert "Going on from the checkpoint after step" in said
    calm.stage("pretrain")
    assert there.files(*MODELS_AND_CURVES) == calm.files(*MODELS_AND_CURVES)
