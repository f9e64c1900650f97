"""A clone of this working tree, in which DVC commands run."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock
from ruamel.yaml import YAML

from tools.preset import whole_text

ROOT = Path(__file__).parents[2]
SMALLER_ROLL = {
    r"^SEED, SAMPLES = .*$": "SEED, SAMPLES = 0, 500",
    r"^MASKED, FULL = .*$": "MASKED, FULL = 4, 2",
}
SMALLER = {  # than the preset tiny; training takes long enough to be killed
    "data.limit": 24,
    "pretrain.steps": 120,
    "pretrain.log_every": 30,
    "pretrain.validate_every": 60,
    "finetune.steps": 40,
    "sample.count": 8,
    "sample.nfe": 3,
}
ALWAYS = {"source"}  # looks at the files of the images
SILENT = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)


class Clone:
    """A git clone in which DVC commands run, cut off from the user's settings and the network."""

    def __init__(self, path):
        self.path = path
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "DVC_GLOBAL_CONFIG_DIR": str(path.parent / "dvc-global"),
            "DVC_SYSTEM_CONFIG_DIR": str(path.parent / "dvc-system"),
            "DVC_SITE_CACHE_DIR": str(path.parent / "dvc-site"),
            "DVC_NO_ANALYTICS": "1",
            "http_proxy": "http://127.0.0.1:9",
            "https_proxy": "http://127.0.0.1:9",
        }
        # Without compiled files in the clone a dependency on a whole package would go unnoticed.
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def call(self, *command, code=0, **environment):
        """Run a command and return what it said; its exit status must be ``code``."""
        result = subprocess.run(
            command,
            cwd=self.path,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert result.returncode == code, result.stdout[-6000:]
        return result.stdout

    def start(self, *command):
        """Run a command and do not wait for processes that it leaves behind."""
        subprocess.run(command, cwd=self.path, env=self.environment, check=True, **SILENT)

    def copied(self, path):
        """Return a copy of the clone with all that it has computed."""
        shutil.copytree(self.path, path, symlinks=True)
        return Clone(path)

    def git(self, *arguments):
        return self.call("git", *arguments)

    def dvc(self, *arguments, **options):
        """Run DVC; return the set of the stages that really ran, but for those that always do."""
        said = self.call("dvc", *arguments, **options)
        return set(re.findall(r"^Running stage '(\w+)'", said, re.MULTILINE)) - ALWAYS

    def edit(self, name, old, new):
        path = self.path / name
        text = path.read_text()
        assert re.search(old, text, re.MULTILINE)
        path.write_text(re.sub(old, new, text, count=1, flags=re.MULTILINE))

    def outputs(self):
        """Return the digest and the time of change of every file that a stage wrote."""
        files = (
            p for folder in ("data", "models", "reports") for p in (self.path / folder).rglob("*")
        )
        return {
            path.relative_to(self.path).as_posix(): (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                path.stat().st_mtime_ns,
            )
            for path in files
            if path.is_file() and path.name != "checked"
        }


def clone_tree(path, params):
    """Return a clone of the working tree, uncommitted files too, committed, with nothing run.

    Args:
        path: where to.
        params: what differs from the preset tiny, by section.key.
    """
    clone = Clone(path)
    clone.path.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (clone.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone.path / name)
    for name in ("dvc.lock", "reports"):  # committed results of another configuration
        subprocess.run(["rm", "-rf", clone.path / name], check=True)

    yaml = YAML()
    content = yaml.load(whole_text("tiny"))
    for key, value in params.items():
        section, name = key.split(".")
        content[section][name] = value
    yaml.dump(content, clone.path / "params.yaml")

    for old, new in SMALLER_ROLL.items():
        clone.edit("stages/swissroll.py", old, new)

    clone.git("init", "--quiet", "--initial-branch", "main")
    clone.git("config", "user.name", "test")
    clone.git("config", "user.email", "test@example.com")
    clone.call("python", "-m", "tools.plots_page", ".dvc/tmp/plots_page.html")
    clone.call("dvc", "config", "--local", "plots.html_template", "tmp/plots_page.html")
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--message", "before")
    return clone


def finished_clone(folder):
    """Return a clone after a whole run, committed, and the stages that ran.

    After it the experiment 'other' ran, with another mask rate; its stages come second. The clone
    is made once, however many processes ask for it; nothing may be changed in it.

    Args:
        folder: where it is, or is to be.
    """
    ran = folder / "ran.json"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not ran.exists():
            shutil.rmtree(folder / "clone", ignore_errors=True)
            clone = clone_tree(folder / "clone", SMALLER)
            whole = clone.dvc("repro")
            clone.git("add", "--all")
            clone.git("commit", "--quiet", "--message", "finished")
            other = clone.dvc("exp", "run", "--name", "other", "--set-param", "mask.rate=0.6")
            clone.git("reset", "--quiet", "--hard")
            clone.call("dvc", "checkout", "--quiet", "--force")
            ran.write_text(json.dumps([sorted(whole), sorted(other)]))
    return Clone(folder / "clone"), *map(set, json.loads(ran.read_text()))
