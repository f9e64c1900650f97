"""What the system refuses is one sentence that says what to do, wherever a command meets it."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks.presets import read_preset
from maskdm.runtime.command import ADVICE, _fault_of_the_machine, run_commands
from maskdm.runtime.params import merge
from tests.support.clones import ROOT
from tests.support.models import saved
from tests.support.preparing import save_images

Change = Callable[[Path], None]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: parameters of the preset tiny, a few images, no results."""
    save_images(tmp_path / "images", [f"{n}.png" for n in range(12)])
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if "MASKDM" in name or name == "DVC_ROOT"]:
        monkeypatch.delenv(name)
    return tmp_path


def write_params(folder: Path, **changes: dict[str, object]) -> None:
    """Write params.yaml for the images beside it, some sections changed."""
    images = {"source": "folder", "path": f"{folder / 'images'}", "limit": None}
    images |= {"resolution": 16, "group": "file", "classes": False}
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(merge(read_preset("tiny"), {"data": images}, changes), file)


def said(
    words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int = 1
) -> str:
    """Run ``stages.NAME …`` or ``maskdm …`` in this process; return what it says at its end."""
    command, *arguments = words.split()
    name = "maskdm.cli" if command == "maskdm" else command
    module = import_module(name)
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    if hasattr(module, "app"):
        app = module.app
    else:
        from maskdm.runtime.command import plain_app

        app = plain_app()
        app.command()(module.main)
    with pytest.raises(SystemExit) as ended:
        run_commands(app)
    text = capfd.readouterr().err
    assert ended.value.code == status, text
    return text.rpartition("error: ")[2].strip() if status else text


def put(name: str, kind: str = "file") -> Change:
    """Return what puts something where a command wants something else."""

    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if kind == "file":
            path.write_text("in the way")
        elif kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(path.name)

    return change


def model(then: Change | None = None) -> Change:
    """Return what writes a model, and changes something of it."""

    def change(folder: Path) -> None:
        saved(folder / "model")
        if then:
            then(folder)

    return change


def parameter(section: str, key: str, value: object) -> Change:
    def change(folder: Path) -> None:
        own: dict[str, object] = {"classes": False} if section == "data" else {}
        write_params(folder, **{section: own | {key: value}})

    return change


def nothing(folder: Path) -> None:
    pass


LONG, IN_THE_WAY = "x" * 300, "something else is in the way: move it"


@pytest.mark.parametrize(
    ("change", "words", "sentence"),
    [
        (put("data/prepared"), "stages.prepare", f"(data/prepared): {IN_THE_WAY}"),
        (put("data"), "stages.source", IN_THE_WAY),
        (put("data/source.json", "folder"), "stages.source", f"→ data/source.json): {IN_THE_WAY}"),
        (put("checkpoints"), "stages.prepare", IN_THE_WAY),
        (put("checkpoints"), "stages.checkpoints list", f"(checkpoints): {IN_THE_WAY}"),
        (
            put("params.yaml", "loop"),
            "stages.source",
            "(params.yaml): a link there leads",
        ),
        (put("params.yaml", "pipe"), "stages.source", "no params file: it is no ordinary file"),
        (put("params.yaml", "folder"), "stages.check", "no params file: it is a folder"),
        (
            model(put("model/config.json", "loop")),
            "maskdm info model",
            "model is no model folder: a link on the way to its config.json leads to itself",
        ),
        (
            model(put("model/model.safetensors", "loop")),
            "maskdm sample model --count 1",
            "(model/model.safetensors): a link there leads to itself",
        ),
        (
            model(put("notdir")),
            "maskdm sample model --count 1 --nfe 2 --out notdir/x",
            f"(notdir/x): {IN_THE_WAY}",
        ),
        (
            model(),
            "maskdm sample model --count 1 --nfe 2 --out /dev/null/x",
            f"(/dev/null/x): {IN_THE_WAY}",
        ),
        (model(), f"maskdm sample model --out {LONG}", "no file can be called that"),
        (model(put("notdir")), "maskdm export model notdir/x", IN_THE_WAY),
        (nothing, f"maskdm import {LONG} out --layout uvit", "no file can be called that"),
        (nothing, f"maskdm info {LONG}", "no model folder: no folder can be called that"),
        (
            put("names", "pipe"),
            "maskdm import a.pt out --layout uvit --classes names",
            "names is no file of names, one a line: it is no ordinary file",
        ),
        (
            model(put("metrics", "pipe")),
            "maskdm export model out --metrics metrics",
            "metrics is no file of metrics, such as reports/metrics.json: it is no ordinary file",
        ),
        (
            parameter("finetune", "init", "x" * 5000),
            "stages.check",
            "is no model folder: no folder can be called that",
        ),
        (
            parameter("sample", "guide", "x" * 5000),
            "stages.check",
            "is no model folder: no folder can be called that",
        ),
    ],
)
def test_what_is_in_the_way_is_one_sentence(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    change: Change,
    words: str,
    sentence: str,
) -> None:
    change(here)
    found = said(words, monkeypatch, capfd)
    assert sentence in found
    assert len(found) < 1000


@pytest.mark.parametrize("command", ["stages.checkpoints list", "stages.prepare"])
@pytest.mark.parametrize("place", ["/dev/null", "/proc/x", "x" * 400, "a-file"])
def test_a_place_that_holds_no_checkpoints_is_one_sentence(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    place: str,
) -> None:
    put("a-file")(here)
    monkeypatch.setenv("MASKDM_CHECKPOINTS", place)
    if (place, command) == ("/proc/x", "stages.checkpoints list"):  # it may still be made
        assert said(command, monkeypatch, capfd, 0) == ""
        return
    found = said(command, monkeypatch, capfd)
    assert place[:200] in found
    assert len(found.splitlines()) == 1


def test_nothing_to_clear_is_no_mistake(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASKDM_CHECKPOINTS", "nowhere")
    assert said("stages.checkpoints clear --all", monkeypatch, capfd, 0) == ""
    assert "Nothing is named" in said("stages.checkpoints clear", monkeypatch, capfd)


def test_a_limit_of_the_size_of_files_is_one_sentence(here: Path) -> None:
    save_images(here / "images", [f"{n}.png" for n in range(60)])
    ended = subprocess.run(
        [sys.executable, "-m", "stages.prepare"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20 * 1024, 20 * 1024)),
    )
    assert ended.returncode == 1, ended.stderr
    assert "allow more (ulimit -f)" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_system_is_one_sentence(number: int) -> None:
    sentence = _fault_of_the_machine(OSError(number, os.strerror(number), "a/file"))
    assert sentence is not None
    assert "(a/file): " in sentence or number in (errno.ENOSPC, errno.EDQUOT)
    assert len(sentence.splitlines()) == 1
    assert sentence.endswith(".")


def test_what_the_system_does_not_number_is_a_defect_of_the_program() -> None:
    assert _fault_of_the_machine(OSError("something")) is None
    assert _fault_of_the_machine(ValueError("something")) is None


@pytest.mark.parametrize("name", [None, b"a/file", 3, ""])
def test_names_of_files_may_be_of_any_kind(name: object) -> None:
    sentence = _fault_of_the_machine(OSError(errno.EIO, None, name)) or ""
    assert sentence.startswith("Input/output error (a/file): " if name == b"a/file" else "Input")
    assert "None" not in sentence


def test_errors_have_advice_of_their_own() -> None:
    own = ("EEXIST", "ENOTDIR", "EISDIR", "ENOTEMPTY", "ENOENT", "ELOOP", "ENAMETOOLONG")
    more = ("EFBIG", "ENOMEM", "EAGAIN", "ENOSPC", "EROFS", "EIO", "EMFILE")
    assert all(getattr(errno, name) in ADVICE for name in own + more)
