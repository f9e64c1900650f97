"""Make requirements.lock anew: ``python -m tools.lock``, by uv (docs.astral.sh/uv).

Versions stay as they are unless pyproject.toml no longer allows them or ``--upgrade`` names them.
Every version stands with the SHA-256 of all its files in the package index, for every Python and
system: whichever is installed must be one of them.
"""

import subprocess
import tomllib
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from maskdm.runtime import command
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_text

PROJECT, LOCK = Path("pyproject.toml"), Path("requirements.lock")
HEAD = """\
# What `make setup` installs: everything in pyproject.toml, its extras, its group dev, and what
# builds it. Valid on Linux, macOS and Windows; on Linux torch brings CUDA along. Each file that is
# installed must have one of the hashes. Made anew by python -m tools.lock, which keeps versions.
"""
COMPILE = (
    *("uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
    *("--fork-strategy", "fewest", "--all-extras", "--group", "dev", "--generate-hashes"),
    *("--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links"),
)


def main(
    upgrade: Annotated[list[str] | None, typer.Option(help="a package, to its newest")] = None,
) -> None:
    """Resolve what pyproject.toml asks for, and write it with the hashes of all files."""
    builds = "\n".join(tomllib.loads(PROJECT.read_text())["build-system"]["requires"])
    newest = [f"--upgrade-package={name}" for name in upgrade or ()]
    with TemporaryDirectory() as folder:
        made = Path(folder) / LOCK.name
        if LOCK.exists():
            copyfile(LOCK, made)  # uv keeps the versions that it finds there
        words = [*COMPILE, *newest, "--output-file", str(made), str(PROJECT), "-"]
        ended = subprocess.run(words, input=builds, text=True, stderr=subprocess.PIPE, check=False)
        if ended.returncode:
            raise UserError(f"uv could not resolve {PROJECT}:\n{ended.stderr.strip()}")
        write_text(LOCK, HEAD + made.read_text())


if __name__ == "__main__":
    command.run(main)
