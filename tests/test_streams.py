"""Whatever a command has to say, and wherever it says it: no terminal makes it fail."""

import os
import resource
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from maskdm.runtime.command import say
from tests.support.clones import ROOT

STREAMS = {0: "<&-", 1: ">&-", 2: "2>&-"}
BUSY = """
import os, sys
from maskdm.runtime.command import run

def main(path: str):
    with open(path, "wb", buffering=0) as file:
        file.write(b"result")
        print("progress")
        print("progress", file=sys.stderr)
        os.write(1, b"from a library")
        os.write(2, b"from a library")
    sys.stdin.read()

run(main)
"""
MISTAKEN = """
from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError

def main():
    print("Größe \\udcff")
    raise UserError("Größe \\udcff")

run(main)
"""
TALKING = """
import os, sys
from maskdm.runtime.command import run

def main(path: str):
    for _ in range(100_000):
        print("word")
        print("word", file=sys.stderr)
    os.write(1, b"from a library")
    os.write(2, b"from a library")
    with open(path, "wb") as file:
        file.write(b"result")

run(main)
"""


def command(code, *arguments):
    return [sys.executable, "-c", code, *arguments]


def environment(**changes):
    return os.environ | {"PYTHONPATH": str(ROOT)} | changes


@pytest.mark.parametrize("closed", [c for count in (1, 2, 3) for c in combinations(STREAMS, count)])
def test_with_closed_streams_a_command_computes_the_same_and_no_word_gets_into_a_file(
    closed, tmp_path
):
    redirections = " ".join(STREAMS[number] for number in closed)
    shell = ["sh", "-c", f'exec "$@" {redirections}', "sh"]
    done = subprocess.run(
        [*shell, *command(BUSY, str(tmp_path / "file"))],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_bytes() == b"result"


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict", "utf-8:strict"])
def test_what_a_terminal_cannot_show_is_escaped(encoding):
    done = subprocess.run(
        command(MISTAKEN), env=environment(PYTHONIOENCODING=encoding), capture_output=True
    )
    assert done.returncode == 1
    shown = "Gr\\xf6\\xdfe" if encoding.startswith("ascii") else "Größe"
    sentence = f"{shown} \\udcff".encode(encoding.partition(":")[0])
    assert done.stdout.splitlines() == [sentence]
    assert done.stderr.split(b"\n") == [b"", b"error: " + sentence, b"", b""]


def test_what_a_message_quotes_of_a_stranger_is_not_obeyed_by_the_terminal(capsys):
    say("error: params.yaml has an unknown section '\x1b[2J\x9b\r'.\n\tcheck it")
    shown = "error: params.yaml has an unknown section '\\x1b[2J\\x9b\\x0d'.\n\tcheck it"
    assert capsys.readouterr().err == f"\n{shown}\n\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_reader_goes_away_computes_to_its_end(unbuffered, tmp_path):
    with subprocess.Popen(
        command(TALKING, str(tmp_path / "file")),
        env=environment(PYTHONUNBUFFERED=unbuffered),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout.read(4) == b"word"
        process.stdout.close()
        process.stderr.close()
    assert process.returncode == 0
    assert (tmp_path / "file").read_bytes() == b"result"


def test_a_full_disk_behind_what_is_said_does_not_fail_the_run(tmp_path):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command(TALKING, str(tmp_path / "file")), env=environment(), stdout=full, stderr=full
        )
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b"result"


def test_neither_does_a_limit_of_the_size_of_files(tmp_path):
    with (tmp_path / "said").open("wb") as said:
        done = subprocess.run(
            command(TALKING, str(tmp_path / "file")),
            env=environment(),
            stdout=said,
            stderr=said,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9999, 9999)),
        )
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b"result"
    assert (tmp_path / "said").stat().st_size <= 9999
