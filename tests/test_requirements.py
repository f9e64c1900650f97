"""requirements.lock: whole, with hashes, and what is installed must have one of them."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from maskdm.runtime.errors import UserError
from tests.support.clones import ROOT
from tools import audit, lock
from tools.install import CUDA, told_to_uv

PIN = re.compile(
    r"^([a-z0-9-]+)==(\S+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


def asked_for():
    """Return the requirements in pyproject.toml that `make setup` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    named = [project["build-system"]["requires"], project["project"]["dependencies"], *extras]
    named.append(project["dependency-groups"]["dev"])
    return [Requirement(text) for part in named for text in part]


def test_every_line_of_the_lock_is_a_version_with_hashes():
    rest = (ROOT / "requirements.lock").read_text()
    assert rest.startswith(lock.HEAD)
    rest, pinned = rest.removeprefix(lock.HEAD), {}
    while rest:
        found = PIN.match(rest)
        assert found, rest[:300]
        pinned[found[1]] = found[2]
        rest = rest[found.end() :]
    for requirement in asked_for():
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is {version}"


# How it is made anew


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program of a name on the path, which runs some Python, and work in a folder."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def program(name, code):
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}\nimport sys\n{code}")
        path.chmod(0o755)

    return program


UV = """
import pathlib
made = pathlib.Path(sys.argv[sys.argv.index("--output-file") + 1])
made.write_text("\\n".join([made.read_text(), sys.stdin.read(), *sys.argv]))
"""


def test_it_is_resolved_from_the_versions_that_are_there(program):
    program("uv", UV)
    lock.LOCK.write_text("old==1")
    lock.main(["small"])
    made = lock.LOCK.read_text()
    assert made.startswith(lock.HEAD + "old==1\nsetuptools>=")
    for word in ("--generate-hashes", "--no-emit-index-url", "--upgrade-package=small"):
        assert f"\n{word}\n" in made


def test_what_cannot_be_resolved_leaves_the_lock(program):
    program("uv", "sys.exit('a and b do not fit')")
    lock.LOCK.write_text("old==1")
    with pytest.raises(UserError, match="a and b do not fit"):
        lock.main()
    assert lock.LOCK.read_text() == "old==1"


# What is installed


def wheel(folder, name, content, version="1.0"):
    """Write a package of one module and return its hash."""
    stem, kind = f"{name.replace('-', '_')}-{version}", "py3-none-any"
    about = f"{stem}.dist-info"
    files = {
        f"{name}.py": content,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {kind}\n",
        f"{about}/RECORD": "",
    }
    path = folder / f"{stem}-{kind}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for within, text in files.items():
            archive.writestr(zipfile.ZipInfo(within), text)  # whose time is always the same
    return hashlib.sha256(path.read_bytes()).hexdigest()


# python -m uv: the one of the tests, or one that fails.
REAL = f"import os, sys; os.execv({shutil.which('uv')!r}, ['uv', *sys.argv[1:]])"
FAILS = "import sys; sys.exit('no uv today')"


def project(folder, contents):
    """Make a project of the Makefile and packages, and return what sets it up from their folder."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "tools").mkdir()
    shutil.copy(ROOT / "tools/install.py", folder / "tools")
    hashes = {name: wheel(folder, name, content) for name, content in contents.items()}
    lines = [f"{name}==1.0 \\\n    --hash=sha256:{of}\n" for name, of in hashes.items()]
    (folder / "requirements.lock").write_text("".join(lines))
    own = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        "UV_OFFLINE": "1",
        "UV_CACHE_DIR": str(folder / "cache"),
    }

    def install(*more, **environment):
        words = ["make", ".venv/.packages", f"PYTHON={sys.executable}", *more]
        environment = os.environ | own | environment
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)

    return install


@pytest.mark.slow
@pytest.mark.parametrize("other", ["setuptools", "small"])
@pytest.mark.parametrize("uv", [REAL, FAILS], ids=["uv", "pip"])
def test_setup_takes_packages_from_a_local_folder_but_none_with_another_hash(tmp_path, uv, other):
    install = project(tmp_path, {"setuptools": "", "small": "", "uv": uv})
    hashes = {
        "setuptools": wheel(tmp_path, "setuptools", ""),
        "small": wheel(tmp_path, "small", ""),
    }
    whole = wheel(tmp_path, other, "changed = True")
    refused = install()
    assert refused.returncode
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / ".venv/.packages").exists()
    assert wheel(tmp_path, other, "") == hashes[other] != whole
    taken = install()
    assert taken.returncode == 0, taken.stderr
    assert list((tmp_path / ".venv").rglob("small.py"))
    assert ("pip installs the packages" in taken.stderr) == (uv == FAILS)


@pytest.mark.slow
@pytest.mark.parametrize("build", ["", "cpu"])
@pytest.mark.parametrize("forbidden", ["", "1"])
def test_packages_are_compiled_where_python_may_not_compile_them_later(tmp_path, build, forbidden):
    install = project(tmp_path, {"uv": REAL, "setuptools": "", "torch": "", "small": ""})
    if build:
        wheel(tmp_path, "torch", "", f"1.0+{build}")
    done = install(f"TORCH={build}", PYTHONDONTWRITEBYTECODE=forbidden)
    assert done.returncode == 0, done.stderr
    for name in ("small", "torch"):
        assert list(tmp_path.rglob(f".venv/**/{name}.py"))
        assert bool(list(tmp_path.rglob(f".venv/**/{name}.*.pyc"))) == bool(forbidden)


@pytest.mark.slow
def test_torchs_builds_for_cpus_are_taken_without_what_gpus_need(tmp_path):
    gpus = ("nvidia-cublas", "triton", "cuda-toolkit")
    names = ("setuptools", "small", "torch", "torchvision", "nvidia-ml-py", *gpus)
    install = project(tmp_path, {"uv": REAL, **dict.fromkeys(names, "")})
    for name in ("torch", "torchvision"):
        wheel(tmp_path, name, "", "1.0+cpu")
    assert "invalid choice: 'gpu'" in install("TORCH=gpu").stderr
    taken = install("TORCH=cpu")
    assert taken.returncode == 0, taken.stderr
    there = {path.name.removesuffix(".dist-info") for path in tmp_path.rglob(".venv/**/*-info")}
    assert {"small-1.0", "torch-1.0+cpu", "torchvision-1.0+cpu", "nvidia_ml_py-1.0"} <= there
    assert not [name for name in there for gpu in gpus if name.startswith(gpu.replace("-", "_"))]


@pytest.mark.parametrize(
    ("installed", "asked", "told"), [("", "cpu", True), ("cpu", "cpu", False), ("", "", False)]
)
def test_another_build_of_torch_than_the_installed_one_is_not_ignored_silently(
    tmp_path, installed, asked, told
):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "tools/install.py", "pyproject.toml", "tools/plots_page.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in (".venv/.packages", ".venv/.complete", ".dvc/tmp/plots_page.html"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{installed}\n")
    said = subprocess.run(
        ["make", "setup", f"TORCH={asked}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    assert ("make clean, then make setup TORCH=cpu" in said.stdout) == told


def test_every_package_that_only_gpus_need_is_known():
    text = (ROOT / "requirements.lock").read_text()
    only_linux = re.findall(r"^([\w.-]+)==.*sys_platform == 'linux'", text, re.MULTILINE)
    assert only_linux
    assert {name for name in only_linux if CUDA.fullmatch(name)} == set(only_linux)
    assert not [name for name in ("torch", "nvidia-ml-py", "cudatext") if CUDA.fullmatch(name)]


def test_uv_is_told_what_pip_is_told_about_indexes():
    told = told_to_uv(
        ":env:.find-links='/env/wheels'\n"
        ":env:.disable-pip-version-check='1'\n"
        "global.cert='/etc/ca.pem'\n"
        "global.extra-index-url='file:///a\\nfile:///b'\n"
        "global.find-links='/global /wheels'\n"
        'global.index-url="https://mirror.example/it\'s"\n'
        "install.timeout='180'\n"
        "download.index-url='https://other.example'\n"
    )
    assert told == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/env/wheels",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "UV_INDEX": "file:///a file:///b",
        "UV_DEFAULT_INDEX": "https://mirror.example/it's",
        "UV_HTTP_TIMEOUT": "180",
    }
    assert told_to_uv("") == {"UV_INDEX_STRATEGY": "unsafe-best-match"}


# What is known of it


def audited(program, *packages):
    program("pip-audit", f"print('''{json.dumps({'dependencies': packages, 'fixes': []})}''')")
    audit.main()


FINE = {"name": "fine", "version": "1", "vulns": []}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}
KINDS = [{"id": "X-1", "fix_versions": ["3", "2.1"]}, {"id": "X-2", "fix_versions": []}]


def test_packages_that_could_not_be_looked_up_are_not_called_safe(program, capsys):
    audited(program, FINE, UNKNOWN, UNKNOWN)
    assert capsys.readouterr().out == "1 of 3 packages looked up among known vulnerabilities.\n"


def test_a_vulnerable_package_is_an_error_that_says_what_mends_it(program):
    with pytest.raises(UserError) as found:
        audited(program, FINE, {"name": "bad", "version": "1", "vulns": KINDS}, UNKNOWN)
    said = "  bad 1: X-1 (mended in 3, 2.1), X-2 (mended in no version yet)"
    assert str(found.value).splitlines()[1:] == [said]


def test_no_network_is_a_sentence_and_no_error(program, capsys):
    program("pip-audit", "sys.exit('many lines\\nConnection refused')")
    audit.main()
    assert "No package could be looked up" in capsys.readouterr().out
