"""States elsewhere too: in a folder, in S3; and what becomes of a run whose mirror fails."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Timer
from urllib.request import Request, urlopen

import pytest
import s3fs
from moto.server import ThreadedMotoServer
from test_states import DAMAGES, bits, contents, run, save, step_of, steps_in, tensors

from benchmarks.robustness.torture import MODELS_AND_CURVES, Workspace
from maskdm.runtime.errors import UserError
from maskdm.training.checkpoints.store import BEGUN, DATA, FACTS, WANTED, States

ROOT = Path(__file__).parent.parent
BEFORE_FACTS_ARE_READ = {"tensors missing"}  # damage that shows while fetching


def states(root, url, fingerprints=None):
    opened = States(root, "pretrain", fingerprints or run(), str(url))
    opened.open()
    return opened


def elsewhere(url, where):
    return Path(url) / where.folder.name


@pytest.fixture
def mirror(tmp_path):
    return tmp_path / "mirror"


# --- a folder ---


def test_what_is_saved_is_in_the_mirror_too_and_what_is_pruned_is_pruned_there_too(
    tmp_path, mirror
):
    where = states(tmp_path / "here", mirror)
    where.want(2)
    for step in range(1, 6):
        save(where, step)
        here = {
            n: c for n, c in contents(where.folder).items() if n.endswith((DATA, FACTS, WANTED))
        }
        assert contents(elsewhere(mirror, where)) == here
    assert steps_in(where) == [2, 4, 5]
    where.finish()
    left = {f"{where.name(2)}{suffix}" for suffix in (DATA, FACTS, WANTED)}
    assert set(contents(elsewhere(mirror, where))) == left


def test_a_file_has_its_name_in_the_mirror_only_once_it_is_whole(tmp_path, mirror, monkeypatch):
    where = states(tmp_path / "here", mirror)
    move, moved = where.mirror.system.mv, []

    def watched(source, target):
        names = set(contents(elsewhere(mirror, where)))
        assert Path(source).name == f"{Path(target).name}{BEGUN}"
        assert Path(target).name not in names
        assert Path(source).read_bytes() == (where.folder / Path(target).name).read_bytes()
        moved.append(Path(target).suffix)
        move(source, target)

    monkeypatch.setattr(where.mirror.system, "mv", watched)
    save(where, 3)
    assert moved == [DATA, FACTS]
    assert set(contents(elsewhere(mirror, where))) == set(contents(where.folder))
    assert not where.mirror.failed


def test_another_machine_fetches_the_newest_state(tmp_path, mirror, capsys):
    save(states(tmp_path / "here", mirror), 4, 6)
    there = states(tmp_path / "there", mirror)
    assert step_of(there.newest(100)) == 6
    said = capsys.readouterr()
    assert said.out == f"Fetching the state after step 6 from {elsewhere(mirror, there)}\n"
    assert said.err == ""
    assert contents(there.folder).keys() == {f"{there.name(6)}{suffix}" for suffix in (DATA, FACTS)}
    assert step_of(States(tmp_path / "there", "pretrain", run()).newest(100)) == 6  # it is here now


def test_another_machine_fetches_no_state_of_another_branch_or_of_more_steps(tmp_path, mirror):
    one = states(tmp_path / "here", mirror, run("a", after=4))
    for step in (4, 5, 6):
        one.want(step)
    save(one, 4, 5, 6)
    assert step_of(states(tmp_path / "b", mirror, run("b", after=4)).newest(100)) == 4
    assert step_of(states(tmp_path / "c", mirror, run("a", after=4)).newest(5)) == 5


def test_what_is_here_is_not_fetched(tmp_path, mirror, capsys):
    where = states(tmp_path / "here", mirror)
    save(where, 4)
    assert step_of(where.newest(100)) == 4
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_damaged_here_is_taken_from_the_mirror(damage, tmp_path, mirror, capsys):
    where = states(tmp_path / "here", mirror)
    save(where, 4, 6)
    suffix, spoil = DAMAGES[damage]
    spoil(where.folder / f"{where.name(6)}{suffix}")
    assert step_of(where.newest(100)) == 6
    said = capsys.readouterr()
    assert said.out.startswith("Fetching the state after step 6")
    assert "after step 6 is damaged" in said.err
    assert step_of(where.newest(100)) == 6
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_damaged_in_the_mirror_is_refused_and_the_one_before_it_fetched(
    damage, tmp_path, mirror, capsys
):
    where = states(tmp_path / "here", mirror)
    save(where, 4, 6)
    suffix, spoil = DAMAGES[damage]
    spoil(elsewhere(mirror, where) / f"{where.name(6)}{suffix}")
    there = states(tmp_path / "there", mirror)
    assert step_of(there.newest(100)) == 4
    said = capsys.readouterr()
    assert said.out.count("Fetching the state") == 2
    assert said.err.count("The state after step 6 is damaged") == 1
    assert said.err.count("\n") == 1 + (damage in BEFORE_FACTS_ARE_READ)
    assert steps_in(there) == steps_in(there, DATA) == [4]


def test_a_run_that_went_on_elsewhere_goes_on_here_again(tmp_path, mirror):
    here, there = (states(tmp_path / name, mirror) for name in ("here", "there"))
    save(here, 2, 4)
    assert step_of(there.newest(100)) == 4
    save(there, 6, 8)
    assert step_of(here.newest(100)) == 8


def test_a_run_that_went_on_elsewhere_prunes_what_the_first_machine_left(tmp_path, mirror):
    save(states(tmp_path / "here", mirror), 2, 4)
    there = states(tmp_path / "there", mirror)
    there.newest(100)
    save(there, 6, 8, 10)
    there.finish()
    assert contents(elsewhere(mirror, there)) == {}


# --- S3 ---


@pytest.fixture
def bucket(monkeypatch):
    """The address of a folder in an empty bucket, on a server of our own."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()  # all servers share it
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    for name in ("AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield "s3://bucket/states"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def objects(where):
    """Return what S3 holds, asked anew."""
    system = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    found = system.find(f"bucket/states/{where.folder.name}")
    return {Path(name).name: system.cat_file(name) for name in found}


def test_in_s3_there_is_what_is_here(tmp_path, bucket):
    where = states(tmp_path / "here", bucket)
    where.want(2)
    for step in range(1, 6):
        save(where, step)
        here = {
            n: c for n, c in contents(where.folder).items() if n.endswith((DATA, FACTS, WANTED))
        }
        assert objects(where) == here
    assert steps_in(where) == [2, 4, 5]
    where.finish()
    left = {f"{where.name(2)}{suffix}" for suffix in (DATA, FACTS, WANTED)}
    assert set(objects(where)) == left
    assert not where.mirror.failed


def test_states_in_s3_are_listed_anew_each_time(tmp_path, bucket):
    here = states(tmp_path / "here", bucket)
    s3fs.S3FileSystem.clear_instance_cache()  # or both would share one list
    there = states(tmp_path / "there", bucket)
    assert here.mirror.system is not there.mirror.system
    save(here, 2)
    assert step_of(there.newest(100)) == 2
    save(here, 4)
    assert step_of(there.newest(100)) == 4
    save(here, 6)
    cut = f"{there.mirror.folder}/{there.name(6)}{DATA}"
    here.mirror.system.pipe_file(cut, here.mirror.system.cat_file(cut)[:-1])
    assert step_of(there.newest(100)) == 4


def test_another_machine_goes_on_from_s3(tmp_path, bucket):
    """A second process, which has nothing but the address."""
    where = states(tmp_path / "here", bucket)
    save(where, 4, 6)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from test_states import bits, run, save, step_of, tensors\n"
        "from maskdm.training.checkpoints.store import States\n"
        "there = States(Path(sys.argv[1]), 'pretrain', run(), sys.argv[2])\n"
        "there.open()\n"
        "print(step_of(there.newest(100)))\n"  # which compares the bits
        "save(there, 8)\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    second = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "there"), bucket],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert second.stdout == (
        f"Fetching the state after step 6 from {bucket}/{where.folder.name}\n6\n"
    )
    assert second.stderr == ""
    found = where.newest(100)
    assert step_of(found) == 8  # and the first one from what the second wrote
    assert bits(found.tensors) == bits(tensors(8))


def test_an_empty_mirror_in_s3_has_not_failed(tmp_path, bucket, capsys):
    where = states(tmp_path / "here", bucket)
    assert where.newest(100) is None
    assert capsys.readouterr().err == ""
    assert not where.mirror.failed


# --- mirrors that fail ---


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device\nand a long trace")


def test_a_mirror_that_fails_is_said_once_and_saving_goes_on_here(
    tmp_path, mirror, monkeypatch, capsys
):
    where = states(tmp_path / "here", mirror)
    with monkeypatch.context() as patch:
        patch.setattr(where.mirror.system, "pipe_file", full)
        save(where, 2, 4, 6)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(elsewhere(mirror, where)) in said
    assert "No space left on device" in said
    assert "going on with those on this machine" in said
    assert steps_in(where) == [4, 6]
    assert contents(elsewhere(mirror, where)) == {}
    save(where, 8)  # it works again
    assert steps_in(where) == [6, 8]
    assert set(contents(elsewhere(mirror, where))) == {
        f"{where.name(8)}{suffix}" for suffix in (DATA, FACTS)
    }


@pytest.mark.parametrize("call", ["ls", "get_file"])
def test_a_mirror_that_cannot_be_read_leaves_what_is_here(
    call, tmp_path, mirror, monkeypatch, capsys
):
    """The newest state is only there, the one before it here too."""
    where = states(tmp_path / "here", mirror)
    save(where, 4, 6)
    where.remove(where.name(6))
    monkeypatch.setattr(where.mirror.system, call, full)
    assert step_of(where.newest(100)) == 4
    assert capsys.readouterr().err.count("The mirror of training states") == 1


def test_a_mirror_that_takes_nothing_new_keeps_what_it_has(tmp_path, mirror, monkeypatch):
    where = states(tmp_path / "here", mirror)
    save(where, 2, 4)
    monkeypatch.setattr(where.mirror.system, "pipe_file", full)
    save(where, 6, 8)
    monkeypatch.undo()
    assert step_of(states(tmp_path / "there", mirror).newest(100)) == 4


def test_no_facts_are_in_the_mirror_without_their_tensors(tmp_path, mirror, monkeypatch):
    where = states(tmp_path / "here", mirror)
    write = where.mirror.system.pipe_file
    monkeypatch.setattr(
        where.mirror.system,
        "pipe_file",
        lambda path, content: (full if DATA in path else write)(path, content),
    )
    save(where, 2)
    assert where.mirror.names(FACTS) == []


@pytest.mark.parametrize("url", ["nosuch://bucket/folder", "{file}/below"])
def test_a_mirror_that_cannot_be_used_is_the_users_to_mend(url, tmp_path):
    file = tmp_path / "file"
    file.touch()
    url = url.format(file=file)
    with pytest.raises(UserError) as caught:
        states(tmp_path / "here", url)
    assert "MASKDM_STATES_MIRROR" in str(caught.value)
    assert url in str(caught.value)
    assert "unset it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_busy_mirror_does_not_hold_up_saving_and_has_the_last_state_in_the_end(
    tmp_path, mirror, monkeypatch
):
    where = states(tmp_path / "here", mirror)
    system, begun, goes_on, written = where.mirror.system, Event(), Event(), []
    write = system.pipe_file

    def slow(path, content):
        begun.set()
        goes_on.wait(timeout=20)
        write(path, content)
        written.append(Path(path).name)

    monkeypatch.setattr(system, "pipe_file", slow)
    for step in (2, 4, 6):
        where.save(step, tensors(step), {"seconds": step / 3}, wait=False)
        assert begun.wait(timeout=20)
        assert written == []  # the first is still under way
    assert steps_in(where) == [4, 6]
    Timer(0.2, goes_on.set).start()
    save(where, 8)  # waits until the first is through
    assert [name.removesuffix(BEGUN) for name in written] == [
        f"{where.name(step)}{suffix}" for step in (2, 8) for suffix in (DATA, FACTS)
    ]
    left = {f"{where.name(8)}{suffix}" for suffix in (DATA, FACTS)}  # 2 is superfluous by now
    assert set(contents(elsewhere(mirror, where))) == left
    assert not where.mirror.failed


def test_a_killed_stage_goes_on_from_s3_on_a_machine_that_has_nothing(tmp_path, bucket):
    """The same command, with the same mirror, in a folder without states."""
    calm = Workspace.make(tmp_path / "calm", pretrain={"steps": 300})
    here, there = (Workspace(tmp_path / name) for name in ("here", "there"))
    for workspace in (here, there):
        shutil.copytree(calm.folder, workspace.folder)
        workspace.environment = {"MASKDM_STATES_MIRROR": bucket, "MASKDM_SAVE_STEPS": "25"}
    process = here.start("pretrain")
    listing = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    while not any(name.endswith(FACTS) for name in listing.find("bucket/states")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.kill()
    process.wait()
    said = there.stage("pretrain")
    assert "Fetching the state after step" in said
    assert "Going on from the state after step" in said
    calm.stage("pretrain")
    assert there.files(*MODELS_AND_CURVES) == calm.files(*MODELS_AND_CURVES)
