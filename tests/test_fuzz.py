"""Readers of strangers' bytes take what is whole, and refuse everything else by a sentence."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.robustness import fuzz
from benchmarks.robustness.targets import TARGETS, Target
from tests.support.clones import ROOT

EVERY = pytest.mark.parametrize("name", TARGETS)


@pytest.fixture(scope="module")
def fed(tmp_path_factory):
    """What reads for a target, opened once, and the target's whole files."""
    opened = {}

    def fed(name):
        if name not in opened:
            folder = tmp_path_factory.mktemp(name)
            opened[name] = TARGETS[name].fed(folder), TARGETS[name].seeds()
        return opened[name]

    return fed


@EVERY
def test_a_whole_file_is_taken_and_half_of_it_is_not(name, fed):
    taken, seeds = fed(name)
    assert taken(seeds[0])
    assert not taken(seeds[0][: len(seeds[0]) // 2])


@EVERY
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_are_taken_or_refused(name, fed, data):
    taken, seeds = fed(name)
    content = bytearray(data.draw(st.sampled_from(seeds)))
    at = data.draw(st.integers(0, len(content)))
    content[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    taken(bytes(content))


def test_an_error_that_is_no_refusal_is_none():
    def feed(content):
        raise (ValueError if content else KeyError)(content)

    taken = Target(list, lambda folder: feed, (ValueError,)).fed(Path())
    assert not taken(b"x")
    with pytest.raises(KeyError):
        taken(b"")


def test_turns_are_added_up():
    said = (
        "#9\tNEW    cov: 70 ft: 9\n#12\tDONE   cov: 90 ft: 9\nstat::number_of_executed_units: 12\n"
    )
    first = fuzz._added({}, 3.2, said + "stat::peak_rss_mb:              80\n")
    assert first == {"seconds": 3, "files": 12, "edges": 90, "most_mib": 80}
    assert fuzz._added(first, 4, "") == first | {"seconds": 7}


DEFECT = """
from benchmarks.robustness import targets

def feed(content):
    if content[:2] == b"PK":
        raise KeyError("a defect")

targets.TARGETS["archives"] = targets.Target(lambda: [b"PK", b"none"], lambda folder: feed)
"""


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="it has no atheris")
@pytest.mark.parametrize("defect", [False, True])
def test_a_turn_of_fuzzing_is_written_down_and_a_defect_is_kept(tmp_path, defect):
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    if defect:
        (tmp_path / "sitecustomize.py").write_text("import sys\n" + DEFECT)
    command = [sys.executable, "-m", "benchmarks.robustness.fuzz", "--only", "archives"]
    command += ["--only", "pickles"] * (not defect) + ["--runs", "300"]

    def fuzzed(*more):
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        ended = subprocess.run([*command, *more], **options)
        report = json.loads((tmp_path / "reports/robustness.json").read_text())
        return ended, report[fuzz.FIGURES]

    ended, figures = fuzzed()
    assert ended.returncode == int(defect), ended.stderr
    assert all(own["found"] == own["defects"] == int(defect) for own in figures.values())
    if defect:
        assert "not read as they should be" in ended.stderr
        (found,) = (tmp_path / fuzz.KEPT / "archives").glob("crash-*")
        assert found.read_bytes()[:2] == b"PK"
        (again, same), files = fuzzed("--minutes", "0"), figures["archives"]["files"]
        assert again.returncode == 1
        assert same == figures
        (tmp_path / "sitecustomize.py").unlink()  # the defect is mended
        mended, figures = fuzzed("--minutes", "0")
        assert mended.returncode == 0, mended.stderr
        counted = {name: figures["archives"][name] for name in ("files", "found", "defects")}
        assert counted == {"files": files, "found": 1, "defects": 0}
    else:
        assert figures.keys() == {"archives", "pickles"}
        assert all(own["files"] >= 300 and own["edges"] > 50 for own in figures.values())
