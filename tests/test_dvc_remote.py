"""Results on another machine: what one clone pushed, another pulls, and computes nothing."""

import subprocess

import pytest

from tests.support.clones import Clone
from tests.support.s3 import BUCKET


@pytest.mark.slow
def test_a_clone_that_pulled_from_s3_computes_nothing(finished, s3, tmp_path):
    """The commands are those of docs/running.md; the second clone shares no cache with the first.

    Args:
        finished: a clone in which everything was computed.
        s3: the environment that finds the server.
        tmp_path: for both clones.
    """
    here = finished[0].copied(tmp_path / "here/clone")
    here.environment |= s3 | {"no_proxy": "127.0.0.1"}
    here.call("dvc", "remote", "add", "--default", "storage", f"s3://{BUCKET}/results")
    here.call("dvc", "remote", "modify", "storage", "endpointurl", s3["AWS_ENDPOINT_URL"])
    here.git("add", "--all")
    here.git("commit", "--quiet", "--message", "results, and where they are")
    here.call("dvc", "push")
    computed = content(here)

    there = Clone(tmp_path / "there/clone")
    subprocess.run(["git", "clone", "--quiet", here.path, there.path], check=True)
    there.environment |= {key: here.environment[key] for key in (*s3, "no_proxy")}
    del there.environment["AWS_ENDPOINT_URL"]  # the repository knows where
    assert content(there).keys() < computed.keys()  # git has no large files
    there.call("dvc", "pull")
    assert content(there) == computed
    assert there.dvc("repro") == set()
    assert content(there) == computed
    assert there.git("status", "--porcelain") == ""


def content(clone):
    """Return the digest of every file that a stage wrote, but for locks."""
    found = clone.outputs().items()
    return {name: digest for name, (digest, _) in found if not name.endswith(".lock")}
