"""Install requirements.lock into this Python: ``python -m tools.install``, in ``make setup``.

``--torch cpu`` takes torch's builds for CPUs, which are several gigabytes smaller. PyPI has none
for Linux; uv knows where PyTorch keeps them, and takes them from pip's indexes if they are there.
The lock has no hashes of them: they come by version.

uv does it, which unpacks on all cores and links from its cache, in a fraction of pip's time; pip
where there is no uv, or where it cannot. uv does not read pip's configuration, so it is told what
pip is told about indexes. Needs nothing but Python.
"""

import argparse
import os
import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

LOCK = Path("requirements.lock")
BUILDS = "setuptools"  # builds the packages that are source archives; has hashes like all others
LOCKED = ("--quiet", "--require-hashes", "--no-build-isolation", "--requirement")
TORCH = ("torch", "torchvision")  # which have builds for CPUs
CUDA = re.compile(r"triton|cuda-.*|nvidia-(?!ml-py$).*")  # what they need on GPUs
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
UV = (sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable)
# pip's options, and the variables by which uv is told the same.
SAME = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
LEVELS = ("global", "install", ":env:")  # where pip is told; a later one outweighs


def told_to_uv(listed: str) -> dict[str, str]:
    """Return the variables that tell uv what pip is told.

    Args:
        listed: what ``pip config list`` prints, lines of ``level.option='value'``.
    """
    # Any index that has a version will do, as for pip: the hashes say that it is the right one.
    told = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    options = re.findall(r"^(.+)\.([\w-]+)=('.*'|\".*\")$", listed, re.MULTILINE)
    for level in LEVELS:
        for where, option, value in options:
            if where == level and (name := SAME.get(option)):
                separator = "," if name == "UV_FIND_LINKS" else " "
                told[name] = separator.join(literal_eval(value).split())
    return told


def main(words: list[str] | None = None) -> int:
    """Install; return the exit status."""
    parser = argparse.ArgumentParser(description="Install requirements.lock into this Python.")
    parser.add_argument("--torch", choices=["cpu"], help="smaller builds, without CUDA")
    cpu = parser.parse_args(words).torch == "cpu"
    packages = locked()
    if status := _pip(packages[BUILDS]):
        return status
    if _pip(packages["uv"], "--only-binary=:all:") == 0:
        listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
        environment = told_to_uv(listed) | os.environ
        if sys.dont_write_bytecode:
            environment.setdefault("UV_COMPILE_BYTECODE", "1")
        if cpu:
            return _by_uv_for_cpus(packages, environment)
        if subprocess.run([*UV, *LOCKED, str(LOCK)], env=environment).returncode == 0:
            return 0
    if cpu:
        print("TORCH=cpu needs uv, which cannot be had here.", file=sys.stderr)
        return 1
    print("Not by uv, then: pip installs the packages, some five minutes.", file=sys.stderr)
    return subprocess.run([*PIP, "install", "--use-pep517", *LOCKED, str(LOCK)]).returncode


def locked() -> dict[str, str]:
    """Return the lines of every package in the lock: its version and its hashes."""
    found = re.findall(r"^(([\w.-]+)==(?:.+\\\n)*.+)$", LOCK.read_text(), re.MULTILINE)
    return {name: lines for lines, name in found}


def _by_uv_for_cpus(packages: dict[str, str], environment: dict[str, str]) -> int:
    """Install all but torch by their hashes, torch's builds for CPUs by version."""
    kept = [
        lines for name, lines in packages.items() if name not in TORCH and not CUDA.fullmatch(name)
    ]
    versions = [packages[name].split()[0] for name in TORCH if name in packages]
    rest = subprocess.run([*UV, *LOCKED, "-"], input="\n".join(kept), text=True, env=environment)
    if rest.returncode:
        return rest.returncode
    torch = [*UV, "--quiet", "--no-deps", "--torch-backend=cpu", *versions]
    return subprocess.run(torch, env=environment).returncode


def _pip(requirement: str, *options: str) -> int:
    """Install one package of the lock; return the exit status."""
    words = [*PIP, "install", "--quiet", "--require-hashes", *options, "-r", "/dev/stdin"]
    return subprocess.run(words, input=requirement, text=True).returncode


if __name__ == "__main__":
    sys.exit(main())
