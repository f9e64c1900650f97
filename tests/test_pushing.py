"""Pushing to a hub: what was exported, its card, and nothing else; a sentence for what is wrong."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

import maskdm
from maskdm.exchange.exporting import export_to_diffusers
from maskdm.exchange.pushing import push_to_hub
from maskdm.runtime.errors import UserError
from tests.support.graph import ROOT
from tests.support.hub import READS, WRITES, Hub, Repo, serving
from tests.support.models import arrays, saved

# Of a process that knows diffusers and not maskdm: draws with what it gets from the hub.
ELSEWHERE = """
import sys
sys.modules["maskdm"] = None  # importing it fails
import numpy as np
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("someone/emoji", trust_remote_code=True)
np.save("drawn.npy", pipeline(num_images=3, seed=4, output_type="np").images)
"""


@pytest.fixture
def hub():
    with serving() as hub:
        yield hub


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    export_to_diffusers(saved(tmp_path / "model"), tmp_path / "emoji", licence="cc-by-sa-4.0")
    return tmp_path / "emoji"


def run(hub: Hub, folder: Path, *words: object, **environment: str) -> tuple[int, str]:
    """Return exit status and words of a process that knows this hub and no other."""
    away = {"HF_HOME": str(folder / "hub"), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    told = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    told |= away | {"PYTHONPATH": f"{ROOT}", "NO_PROXY": "127.0.0.1"}
    told["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    ended = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**told, **environment},
        capture_output=True,
        text=True,
    )
    return ended.returncode, ended.stdout + ended.stderr


def push(hub: Hub, folder: Path, *words: object, token: str = WRITES) -> tuple[int, str]:
    return run(hub, folder.parent, "-m", "maskdm.cli", "push", folder, *words, HF_TOKEN=token)


@pytest.mark.slow
def test_diffusers_draws_the_same_images_from_the_hub(hub, exported, tmp_path):
    assert push(hub, exported, "emoji") == (0, f"{hub.url}/someone/emoji\n")
    repo = hub.repos["someone/emoji"]
    assert repo.private
    assert len(repo.commits) == 1
    written = {
        path.relative_to(exported).as_posix(): path.read_bytes() for path in exported.rglob("*.*")
    }
    card = repo.files.pop("README.md").decode()
    assert written.pop("README.md").decode() == card.replace("someone/emoji", "emoji")
    assert YAML(typ="safe").load(card.split("---\n")[1])["license"] == "cc-by-sa-4.0"
    assert repo.files == written

    status, said = run(hub, tmp_path, "-W", "ignore", "-c", ELSEWHERE, HF_TOKEN=READS)
    assert status == 0, said
    expected = arrays(maskdm.load(tmp_path / "model").sample(3, 4)).astype(int)
    assert np.abs(np.load(tmp_path / "drawn.npy") - expected).max() <= 1


@pytest.mark.slow
def test_a_repository_that_is_there_gets_one_more_commit_and_stays_as_visible(hub, exported):
    hub.repos["club/emoji"] = Repo(private=False)
    status, said = push(hub, exported, "club/emoji")
    assert status == 1
    assert "club/emoji is public: say --public" in said
    assert not hub.repos["club/emoji"].files
    assert push(hub, exported, "club/emoji", "--public") == (0, f"{hub.url}/club/emoji\n")
    assert push(hub, exported, "club/emoji", "--public")[0] == 0
    assert len(hub.repos["club/emoji"].commits) == 2
    assert push(hub, exported, "club/other", "--public")[0] == 0
    assert not hub.repos["club/other"].private


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repo", "token", "sentence"),
    [
        ("emoji", "", "There is no token for the hub"),
        ("emoji", "hf_unknown", "does not know the token: say another by 'hf auth login'"),
        ("emoji", READS, "The token may not write to emoji"),
        ("a/b/c", WRITES, "a/b/c was not pushed"),
    ],
)
def test_who_may_not_push_is_told_what_to_do(hub, exported, repo, token, sentence):
    status, said = push(hub, exported, repo, token=token)
    assert status == 1
    assert sentence in " ".join(said.split())
    assert "Traceback" not in said
    assert not hub.repos


@pytest.mark.slow
def test_without_internet_it_is_one_sentence(exported):
    with serving() as hub:
        pass
    with socket.socket() as closed:  # nobody listens at its port, and nobody else can
        closed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        closed.bind(("127.0.0.1", int(hub.url.rpartition(":")[2])))
        status, said = push(hub, exported, "emoji")
    assert status == 1
    assert f"emoji was not pushed to {hub.url}" in said
    assert "Traceback" not in said


def test_only_what_was_exported_is_pushed(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"model is no exported folder.*maskdm export MODEL FOLDER"):
        push_to_hub(tmp_path / "model", "emoji")
    with pytest.raises(UserError, match="none is no exported folder"):
        push_to_hub(tmp_path / "none", "emoji")
    (exported / "denoiser/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (exported / ".DS_Store").write_bytes(b"")
    with pytest.raises(UserError, match=r"does not write: \.DS_Store, denoiser/.*\.bin\. Take it"):
        push_to_hub(exported, "emoji")
