"""Install requirements.lock into this Python: ``python -m tools.install``, in ``make setup``.

uv does it, which unpacks on all cores and links from its cache, in an eighth of pip's time; pip
where there is no uv, or where it cannot. uv does not read pip's configuration, so it is told what
pip is told about indexes. Needs nothing but Python.
"""

import os
import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

LOCK = Path("requirements.lock")
BUILDS = "setuptools"  # builds the packages that are source archives; has hashes like all others
LOCKED = ("--quiet", "--require-hashes", "--no-build-isolation", "--requirement", str(LOCK))
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


def main() -> int:
    """Install; return the exit status."""
    if status := _pip(_locked(BUILDS)):
        return status
    if _pip(_locked("uv"), "--only-binary=:all:") == 0:
        listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout
        if subprocess.run([*UV, *LOCKED], env=told_to_uv(listed) | os.environ).returncode == 0:
            return 0
    print("Not by uv, then: pip installs the packages, some five minutes.", file=sys.stderr)
    return subprocess.run([*PIP, "install", "--use-pep517", *LOCKED]).returncode


def _locked(name: str) -> str:
    """Return the lines of a package in the lock: its version and its hashes."""
    found = re.search(rf"^{name}==(.+\\\n)*.+$", LOCK.read_text(), re.MULTILINE)
    assert found, f"{LOCK} has no {name}"
    return found[0]


def _pip(requirement: str, *options: str) -> int:
    """Install one package of the lock; return the exit status."""
    words = [*PIP, "install", "--quiet", "--require-hashes", *options, "-r", "/dev/stdin"]
    return subprocess.run(words, input=requirement, text=True).returncode


if __name__ == "__main__":
    sys.exit(main())
