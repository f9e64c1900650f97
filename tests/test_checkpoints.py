"""Checkpoints on disk: whole or not there, and found by exactly the runs that passed them."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_tensors
from maskdm.training.checkpoints import store as store_module
from maskdm.training.checkpoints.store import (
    BEGUN,
    KEEP,
    METADATA,
    TENSORS,
    CheckpointStore,
    clear,
    entries,
    folders,
    in_use,
    last_step,
)
from tests.support.checkpoints import (
    DAMAGES,
    bits,
    contents,
    cut,
    run,
    save,
    step_of,
    steps_in,
    store,
    tensors,
)

ROOT = Path(__file__).parent.parent

# --- what is saved and found ---


def test_a_checkpoint_comes_back_bit_for_bit_with_its_metadata(tmp_path):
    metadata = {
        "scaler": {"scale": 2.0**120, "_growth_tracker": 3},
        "validations": {0: {"raw": 0.1 + 0.2, "raw[-3]": float("nan")}, 4: {"raw": 5e-324}},
        "numerics": [{"device": "cpu", "précision": "fp32"}],
    }
    store(tmp_path).save(7, tensors(7), metadata)
    found = store(tmp_path).newest(100)
    assert found.name == store(tmp_path).name(7)
    assert bits(found.tensors) == bits(tensors(7))
    returned = {name: found.metadata[name] for name in metadata}
    assert json.dumps(returned) == json.dumps(metadata)  # NaN is not equal to itself
    assert found.metadata["step"] == 7


def test_the_newest_checkpoint_is_the_last_one_within_the_steps_asked_for(tmp_path):
    where = store(tmp_path)
    for step in (9, 10, 100):  # as text, 9 comes last
        where.keep(step)
    save(where, 9, 10, 100)
    assert [step_of(where.newest(most)) for most in (8, 9, 99, 100, 1000)] == [
        None,
        9,
        10,
        100,
        100,
    ]


def test_a_checkpoint_whose_metadata_does_not_fit_is_passed_over_and_stays(tmp_path, capsys):
    where = store(tmp_path)
    save(where, 2, 4)
    assert step_of(where.newest(9, lambda metadata: metadata["step"] != 4)) == 2
    assert steps_in(where.folder) == [2, 4]
    assert capsys.readouterr().err == ""


def test_a_checkpoint_is_had_once_its_metadata_is_there(tmp_path):
    where = store(tmp_path)
    assert not where.has(3)
    save(where, 3)
    assert where.has(3)
    assert not where.has(2)


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be made .*MASKDM_CHECKPOINTS"):
        store(tmp_path / "file")


# --- damage ---


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_said_removed_and_the_one_before_it_taken(damage, tmp_path, capsys):
    where = store(tmp_path)
    save(where, 4, 6)
    suffix, spoil = DAMAGES[damage]
    spoil(where.folder / f"{where.name(6)}{suffix}")
    assert step_of(where.newest(9)) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "The checkpoint after step 6 is damaged" in said
    assert sorted(contents(where.folder)) == [f"{where.name(4)}{s}" for s in (METADATA, TENSORS)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_without_another_is_none(damage, tmp_path, capsys):
    where = store(tmp_path)
    save(where, 6)
    suffix, spoil = DAMAGES[damage]
    spoil(where.folder / f"{where.name(6)}{suffix}")
    assert where.newest(9) is None
    assert capsys.readouterr().err.count("\n") == 1
    assert contents(where.folder) == {}


@pytest.mark.parametrize(
    "left", ["nothing of the metadata", "half of the metadata", "half of the tensors"]
)
def test_a_checkpoint_that_a_killed_writer_began_is_not_there(left, tmp_path, capsys):
    where = store(tmp_path)
    save(where, 4, 6)
    data, metadata = (where.folder / f"{where.name(6)}{suffix}" for suffix in (TENSORS, METADATA))
    half = metadata.with_name(metadata.name + BEGUN)
    if left == "half of the metadata":
        half.write_bytes(metadata.read_bytes()[:9])
    metadata.unlink()
    if left == "half of the tensors":
        cut(data.replace(data.with_name(data.name + BEGUN)))
    assert not where.has(6)
    assert step_of(where.newest(9)) == 4
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def one_checkpoint(tmp_path_factory):
    where = store(tmp_path_factory.mktemp("checkpoints"))
    save(where, 6)
    return where, contents(where.folder)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([TENSORS, METADATA]), st.integers(0, 10**6), st.integers(0, 7))
def test_no_flipped_bit_passes_as_another_checkpoint(one_checkpoint, suffix, position, bit):
    where, whole = one_checkpoint
    for name, content in whole.items():
        (where.folder / name).write_bytes(content)
    path = where.folder / f"{where.name(6)}{suffix}"
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(content)
    found = where.newest(9)
    assert found is None


# --- writes that fail ---

# A write synchronises a file, then its folder; a save writes two files.
FAILURES = [
    ("the tensors' file", "fsync", 1),
    ("the tensors' rename", "replace", 1),
    ("the tensors' folder", "fsync", 2),
    ("the metadata's file", "fsync", 3),
    ("the metadata's rename", "replace", 2),
    ("the metadata's folder", "fsync", 4),
]


@pytest.mark.parametrize(("what", "call", "nth"), FAILURES)
def test_a_save_that_fails_leaves_the_old_checkpoints_and_nothing_else(
    what, call, nth, tmp_path, monkeypatch
):
    where = store(tmp_path)
    save(where, 2, 4)
    before = contents(where.folder)
    owner = os if call == "fsync" else Path
    real, calls = getattr(owner, call), []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, call, failing)
        with pytest.raises(OSError, match="No space left"):
            save(where, 6)
    assert len(calls) == nth
    assert contents(where.folder) == before
    save(where, 6)
    assert step_of(where.newest(9)) == 6


def test_a_file_has_its_name_only_once_it_is_whole_and_tensors_come_before_metadata(
    tmp_path, monkeypatch
):
    where = store(tmp_path)
    renamed, synchronised = [], []
    real_replace, real_fsync = Path.replace, os.fsync

    def replace_(path, target):
        assert path.name == f"{target.name}{BEGUN}"
        assert not target.exists()
        assert len(synchronised) == 2 * len(renamed) + 1  # the file, not yet its folder
        renamed.append(target.suffix)
        return real_replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_)
    monkeypatch.setattr(os, "fsync", lambda fd: (synchronised.append(fd), real_fsync(fd)))
    save(where, 6)
    assert renamed == [TENSORS, METADATA]


def test_who_takes_over_removes_what_killed_writers_left_and_nothing_else(tmp_path):
    where, other = store(tmp_path), store(tmp_path, run("other", after=1))
    where.keep(9)
    save(where, 2, 4)
    save(other, 3)
    assert where.acquire()
    where.take_over("process 1 on here")
    (where.folder / "notes.txt").touch()
    before = contents(where.folder)
    for left in (f"{where.name(6)}{TENSORS}", f"{other.name(7)}{TENSORS}"):
        (where.folder / left).write_bytes(b"tensors without metadata")
    begun = [(where.name(6), METADATA), (where.name(8), TENSORS), (other.name(3), TENSORS)]
    for name, suffix in begun:
        (where.folder / f"{name}{suffix}{BEGUN}").write_bytes(b"half")
    (where.folder / ".tmpXIXBz").write_bytes(b"half of the library's own")
    where.take_over("process 1 on here")
    assert contents(where.folder) == before


# --- what is kept ---


def test_checkpoints_at_branches_are_kept_and_of_the_others_the_newest_two(tmp_path):
    where = store(tmp_path)
    where.keep(2)
    where.keep(5)
    kept = []
    for step in range(1, 8):
        save(where, step)
        kept.append(steps_in(where.folder))
    assert kept[3:] == [[2, 3, 4], [2, 3, 4, 5], [2, 4, 5, 6], [2, 5, 6, 7]]
    assert steps_in(where.folder, TENSORS) == [2, 5, 6, 7]
    assert where.kept() == {2, 5}


def test_a_run_can_have_a_checkpoint_kept_that_another_one_is_to_pass(tmp_path):
    trunk, branch = store(tmp_path, run("a", after=5)), store(tmp_path, run("b", after=5))
    branch.keep(4)
    branch.keep(7)
    assert trunk.kept() == {4}
    save(trunk, 2, 4, 5, 6, 7, 8)
    assert steps_in(trunk.folder) == [4, 7, 8]
    assert step_of(branch.newest(9)) == 4


def test_a_finished_run_keeps_only_those_at_branches(tmp_path):
    where = store(tmp_path)
    where.keep(4)
    where.keep(9)
    save(where, 4, 6, 8, 9)
    where.finish()
    assert steps_in(where.folder) == steps_in(where.folder, TENSORS) == [4, 9]
    assert steps_in(where.folder, KEEP) == [4, 9]


def test_runs_with_another_first_step_have_another_folder(tmp_path):
    one, two = store(tmp_path, run("a")), store(tmp_path, run("b"))
    again = CheckpointStore(tmp_path, "finetune", run("a"))
    assert len({one.folder, two.folder, again.folder}) == 3
    assert store(tmp_path, run("c", after=1)).folder == store(tmp_path, run("d", after=1)).folder


def test_checkpoints_of_another_branch_are_never_returned_and_never_removed(tmp_path):
    one, two = store(tmp_path, run("a", after=4)), store(tmp_path, run("b", after=4))
    assert one.folder == two.folder
    save(two, 3, 5, 6)
    theirs = contents(two.folder)
    assert step_of(one.newest(9)) is None  # two has pruned the shared one
    save(one, 5, 6, 7, 8)
    one.finish()
    assert one.acquire()
    one.take_over("process 1 on here")
    one.release()
    assert one.own(METADATA) == []
    assert contents(one.folder) == theirs
    assert step_of(two.newest(9)) == 6


def test_what_two_branches_share_is_found_by_both(tmp_path):
    one, two = store(tmp_path, run("a", after=4)), store(tmp_path, run("b", after=4))
    save(one, 4, 5)
    assert (step_of(one.newest(9)), step_of(two.newest(9))) == (5, 4)
    assert two.has(4)
    assert not two.has(5)


def test_what_was_just_saved_stays_whatever_newer_checkpoints_are_there(tmp_path):
    """With MASKDM_EXACT=1 a run begins anew below checkpoints made under other numerics."""
    where = store(tmp_path)
    save(where, 6, 8)
    save(where, 2)
    assert where.has(2)


# --- one writer at a time ---


def test_only_one_holds_the_checkpoints_of_runs_that_begin_alike(tmp_path):
    one, two = store(tmp_path, run("a", after=3)), store(tmp_path, run("b", after=3))
    other = store(tmp_path, run("c"))
    assert one.acquire()
    assert not two.acquire()
    assert other.acquire()
    assert (one.is_held, two.is_held, other.is_held) == (True, False, True)
    assert all(in_use(where.folder) for where in (one, other))
    one.release()
    assert two.acquire()
    assert folders(tmp_path) == sorted([one.folder, other.folder])


def test_a_killed_process_holds_nothing(tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from maskdm.training.checkpoints.store import CheckpointStore\n"
        "held = CheckpointStore(Path(sys.argv[1]), 'pretrain', lambda step: sys.argv[2])\n"
        "held.open()\n"
        "assert held.acquire()\n"
        "held.take_over('process 1 on here')\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    name = run()(1)
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), name], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        where = store(tmp_path)
        assert not where.acquire()
        assert where.holder() == ": process 1 on here"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert where.acquire()
        assert where.is_held
        where.release()
        assert where.holder() == ""
    finally:
        holder.kill()
        holder.communicate()


# --- what is listed and cleared ---


def test_a_listing_says_what_is_kept_and_what_is_damaged_and_removes_nothing(tmp_path):
    where = store(tmp_path)
    where.keep(4)
    where.keep(9)  # not there yet
    save(where, 4, 6, 8)
    cut(where.folder / f"{where.name(6)}{METADATA}")
    listed = list(entries(where.folder))
    assert [(entry.step, entry.kept) for entry in listed] == [(4, True), (6, False), (8, False)]
    assert [bool(entry.damage) for entry in listed] == [False, True, False]
    assert [entry.metadata and entry.metadata["step"] for entry in listed] == [4, None, 8]
    assert last_step(tmp_path) == 8
    assert steps_in(where.folder) == [4, 6, 8]


def test_a_folder_that_is_held_is_not_cleared(tmp_path):
    where = store(tmp_path)
    save(where, 4)
    assert where.acquire()
    assert not clear(where.folder, None)
    assert steps_in(where.folder) == [4]
    where.release()
    assert clear(where.folder, None)
    assert folders(tmp_path) == []
    assert last_step(tmp_path) == 0


STRANGERS = ("notes.txt", "model.safetensors", "12.json", "000000004-a.json", ".hidden", "a.begun")


def test_a_folder_of_somebody_else_is_no_folder_of_checkpoints_though_it_has_a_lock(tmp_path):
    for name in ("thesis", "pretrain", "pretrain-2024", "Pretrain-0123456789abcdef"):
        for file in ("lock", "000000004-0123456789abcdef.json", *STRANGERS):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).write_text("mine")
    (tmp_path / "pretrain-0123456789abcdef/lock").mkdir(parents=True)  # no file
    assert folders(tmp_path) == []


def test_clearing_leaves_what_no_run_has_put_there_here_and_in_the_remote(tmp_path):
    where = store(tmp_path / "here", remote=tmp_path / "there")
    save(where, 4, 6)
    where.keep(4)
    (where.folder / "000000008-0123456789abcdef.safetensors.begun").touch()
    (where.folder / ".tmpX1").touch()
    there = tmp_path / "there" / where.folder.name
    (there / f"000000008-0123456789abcdef.safetensors.{'0f' * 16}.begun").touch()  # of a killed run
    mine = tmp_path / "mine.safetensors"
    mine.write_text("mine")
    for folder in (where.folder, there):
        (folder / "sub").mkdir()
        (folder / "sub/a.json").write_text("mine")
        for name in STRANGERS:
            (folder / name).write_text("mine")
    (where.folder / "000000009-0123456789abcdef.safetensors").symlink_to(mine)
    assert clear(where.folder, str(tmp_path / "there"))
    for folder in (where.folder, there):
        left = {path.name for path in folder.iterdir() if not path.is_symlink()}
        assert left == {*STRANGERS, "sub"}
        assert (folder / "sub/a.json").read_text() == "mine"
    assert mine.read_text() == "mine"


def test_clearing_removes_a_folder_that_holds_nothing_else(tmp_path):
    where = store(tmp_path / "here", remote=tmp_path / "there")
    save(where, 4)
    assert clear(where.folder, str(tmp_path / "there"))
    assert list((tmp_path / "here").iterdir()) == []
    assert list((tmp_path / "there").iterdir()) == []


def test_a_checkpoint_that_a_run_removes_while_it_is_listed_is_none(tmp_path, monkeypatch):
    where = store(tmp_path)
    save(where, 2, 4)
    names = store_module._names(where.folder)
    (where.folder / f"{names[0]}{METADATA}").unlink()
    monkeypatch.setattr(store_module, "_names", lambda folder: names)
    assert [entry.step for entry in entries(where.folder)] == [4]


def test_a_lock_whose_folder_is_gone_is_free_and_makes_no_folder(tmp_path):
    where = store(tmp_path)
    assert where.acquire()
    assert in_use(where.folder)
    where.release()
    assert not in_use(where.folder)
    assert not in_use(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


def test_a_run_that_comes_while_a_folder_is_cleared_keeps_it_and_the_remotes_copies_go(
    tmp_path, monkeypatch
):
    where = store(tmp_path / "here", remote=tmp_path / "there")
    save(where, 4)
    rmdir = Path.rmdir

    def late(path):
        where.keep(6)
        rmdir(path)

    monkeypatch.setattr(Path, "rmdir", late)
    assert clear(where.folder, str(tmp_path / "there"))
    assert [path.name for path in where.folder.iterdir()] == [f"{where.name(6)}{KEEP}"]
    assert list((tmp_path / "there").iterdir()) == []


def test_a_run_whose_folder_is_cleared_before_it_begins_has_one(tmp_path):
    where = store(tmp_path)
    assert clear(where.folder, None)
    assert not where.folder.exists()
    where.keep(4)
    assert where.kept() == {4}
    assert where.acquire()


@pytest.mark.parametrize("call", ["keep", "open"])
def test_a_full_disk_where_a_folder_is_opened_is_one_sentence(call, tmp_path, monkeypatch):
    where = store(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(UserError, match=r"No space left on device\): name another one in MASKDM_"):
        getattr(where, call)(*([4] if call == "keep" else []))


# --- files ---


def test_what_is_written_is_the_librarys_format_with_the_modes_of_any_file(tmp_path):
    content = {"b": torch.arange(3), "a": torch.rand(2, 5), "c": torch.zeros(())}
    write_tensors(content, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == safetensors.torch.save(content)
    (tmp_path / "y").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_what_the_system_says_of_a_file_is_raised_as_its_error(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError):
        write_tensors({"a": torch.zeros(3)}, tmp_path / "x")
