"""Nothing that a stranger gives is run: what could run it is called nowhere, or in a safe way."""

import ast
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from maskdm.backbones.model_folder import load_model
from maskdm.data.pickled import read_pickle
from maskdm.data.prepared import open_prepared
from maskdm.runtime.params import read_params
from maskdm.training.checkpoints.store import METADATA, TENSORS
from stages import fid
from tests.support.checkpoints import save, store
from tests.support.clones import ROOT
from tests.support.searching import searched

FOLDERS = ("maskdm", "stages", "tools", "benchmarks")
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load"}
# file: what it may do, and why.
ALLOWED = {
    "maskdm/data/pickled.py": {"import pickle"},  # its class of unpickler finds classes of ours
    "maskdm/exchange/reading.py": {"import pickle"},  # for the error of torch's own safe reader
    "benchmarks/robustness/targets.py": {"import pickle"},  # writes what is damaged and fed to us
    "benchmarks/speed/measuring.py": {"exec"},  # code of the benchmark itself, in a process
}


def dotted(node: ast.expr) -> str:
    """Return the name of what is called, as it is written."""
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def dangers(code: str) -> Iterator[str]:
    """Yield what in a module could run what it reads; code in its strings, too."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"import {node.module}"
        elif isinstance(node, ast.Call):
            yield from _dangers_of_call(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
            try:
                yield from dangers(node.value)
            except SyntaxError:
                continue  # words


def _dangers_of_call(node: ast.Call) -> Iterator[str]:
    name = dotted(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in RUNNING:
        yield name
    if name.endswith("torch.load") and not is_true(given.get("weights_only")):
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and "allow_pickle" in given:
        yield "numpy.load with allow_pickle"
    if name in ("Image.open", "PIL.Image.open") and "formats" not in given:
        yield "Image.open of any format"  # one of them starts Ghostscript
    if "shell" in given:
        yield "shell="
    if name.endswith("YAML"):
        kind = given.get("typ")
        # Without a type ruamel reads and writes comments: it builds no objects either.
        if kind is not None and not (isinstance(kind, ast.Constant) and kind.value == "safe"):
            yield "YAML that is not safe"
    if name.startswith("yaml.") and name.endswith(("load", "load_all")) and "Loader" in given:
        yield "PyYAML"


def test_no_module_runs_what_it_reads_but_for_those_that_are_named_here() -> None:
    assert searched(FOLDERS, dangers) == ALLOWED


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch; torch.load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "import torch; torch.load(path, weights_only=wanted)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=wanted)",
        "Image.open(path)",
        "eval(text)",
        "os.system(text)",
        "YAML(typ='unsafe')",
        "yaml.load(text, Loader=yaml.Loader)",
        "CODE = '''\nimport pickle\n'''",
    ],
)
def test_the_search_finds_every_kind(code: str) -> None:
    assert list(dangers(code))


@pytest.mark.parametrize(
    "code",
    [
        "import torch; torch.load(path, weights_only=True)",
        "np.load(path, mmap_mode='r')",
        "subprocess.run(['ls', name])",
        "network.eval()",
        "YAML(typ='safe')",
        "re.compile(text)",
    ],
)
def test_the_search_finds_nothing_where_nothing_is(code: str) -> None:
    assert not list(dangers(code))


def test_the_page_about_security_names_the_one_reader_of_pickles() -> None:
    page = (ROOT / ".github/SECURITY.md").read_text(encoding="utf-8")
    assert "`maskdm/data/pickled.py`" in page
    assert "`tests/test_security.py`" in page


class Malicious:
    """What makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def into(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read_checkpoint(folder: Path, suffix: str, content: bytes) -> None:
    where = store(folder)
    save(where, 4)
    (path,) = where.folder.glob(f"*{suffix}")
    into(path, content)
    if where.read(4, lambda metadata: True) is None:
        raise ValueError("it is not taken for a checkpoint")


def read_model(folder: Path, model: Path, name: str, content: bytes) -> None:
    shutil.copytree(model, folder)
    into(folder / name, content)
    load_model(folder, "raw")


def read_prepared(folder: Path, array: bytes) -> None:
    about = b'{"size": 8, "channels": 3, "classes": null, "train": {"count": 1}}'
    into(folder / "dataset.json", about)
    into(folder / "train.npy", array)
    open_prepared(folder)


def test_no_loader_unpickles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.models import saved

    ran, model = tmp_path / "ran", saved(tmp_path / "model")
    pickled = pickle.dumps(Malicious(ran))
    np.save(tmp_path / "a.npy", np.array([Malicious(ran)], object), allow_pickle=True)
    array = (tmp_path / "a.npy").read_bytes()
    yaml = f"data: !!python/object/apply:os.mkdir [{ran}]".encode()
    loaders: dict[str, Callable[[], object]] = {
        "model": lambda: read_model(tmp_path / "m", model, "model.safetensors", pickled),
        "config": lambda: read_model(tmp_path / "c", model, "config.json", pickled),
        "tensors": lambda: read_checkpoint(tmp_path / "t", TENSORS, pickled),
        "metadata": lambda: read_checkpoint(tmp_path / "j", METADATA, pickled),
        "prepared": lambda: read_prepared(tmp_path / "p", array),
        "features": lambda: fid.load(into(tmp_path / "features.npy", array)),
        "params": lambda: read_params(into(tmp_path / "params.yaml", yaml)),
        "cifar": lambda: read_pickle(pickled),
    }
    for name, load in loaders.items():
        with pytest.raises(Exception, match=r".+"):  # what it says is for other tests
            load()
        assert not ran.exists(), name
    pickle.loads(pickled)  # whereas Python itself runs it
    assert ran.exists()
