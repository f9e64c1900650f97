"""Live trackers: they show what the curves have, reach no result, and may fail."""

import csv
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from maskdm.backbones.model_folder import ModelConfig
from maskdm.data.prepared import PreparedSet
from maskdm.runtime.errors import StoppedError
from maskdm.training import live, run
from maskdm.training.curves import Curves
from tests.support.clones import SMALLER, clone_tree
from tests.support.training import DIFFUSION, IMAGES, MODEL, phase, whole

ABOUT = {"size": 32, "channels": 3, "classes": None, "source": "test", "licence": "none"}
SET = PreparedSet(IMAGES, IMAGES[:14], None, None, **ABOUT, skipped=0, hash="abc")
CONFIG = ModelConfig(
    size=32, channels=3, classes=None, seed=0, model=MODEL, diffusion=DIFFUSION, training=[]
)
PARAMS = phase(steps=9, preview_every=4, validate_every=3, log_every=2)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """A whole phase in a folder of its own; the bytes of all that it writes, by name."""
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "MASKDM_LIVE"):
        monkeypatch.delenv(name, raising=False)

    def train(folder="run", params=PARAMS, **environment):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        monkeypatch.chdir(root)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        outputs = run.Outputs(root / "model", root / "curves", root / "timing.json", True)
        run.train_phase("pretrain", CONFIG.backbone(), CONFIG, SET, whole(params), params, outputs)
        written = [path for out in ("model", "curves") for path in (root / out).rglob("*.*")]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in written}

    return train


def break_after(monkeypatch, step):
    """Let the run end after a step without saving it, as a kill does."""
    real = run.progress

    def broken(name, steps, *rest):
        for made in real(name, steps, *rest):
            yield made
            if made == step:
                raise StoppedError("killed", 9)

    monkeypatch.setattr(run, "progress", broken)


def logged(folder):
    """Return the rows of DVCLive's files by metric, and the steps of its previews."""
    plots = folder / "plots"
    files = sorted((plots / "metrics").rglob("*.tsv"))
    rows = {
        path.relative_to(plots / "metrics").with_suffix("").as_posix(): list(
            csv.reader(path.open(), delimiter="\t")
        )[1:]
        for path in files
    }
    return rows, sorted(int(path.stem) for path in (plots / "images/previews").iterdir())


def test_dvclive_gets_every_row_of_the_curves_and_every_preview(train, tmp_path):
    written = train(MASKDM_LIVE="dvclive")
    rows, previews = logged(tmp_path / "run/live/workspace/pretrain")
    for curve in ("training", "validation"):
        lines = written[f"curves/{curve}.tsv"].decode().splitlines()
        table = list(csv.DictReader(lines, delimiter="\t"))
        columns = [name.removeprefix(f"{curve}/") for name in rows if name.startswith(curve)]
        for column in columns:
            shown = [
                (int(step), f"{float(value):.6g}") for step, value in rows[f"{curve}/{column}"]
            ]
            kept = [(int(row["step"]), f"{float(row[column]):.6g}") for row in table]
            assert shown == kept, column
    assert {"training/loss", "training/flops", "validation/averaged"} < rows.keys()
    assert [int(step) for step, _ in rows["training/loss"]] == [2, 4, 6, 8, 9]
    assert previews == [0, 4, 8, 9]
    with Image.open(tmp_path / "run/live/workspace/pretrain/plots/images/previews/8.png") as shown:
        shown = np.asarray(shown)
    with Image.open(tmp_path / "run/curves/previews/8.png") as kept:
        assert np.array_equal(shown, np.asarray(kept))
    assert (tmp_path / "run/live/workspace/pretrain/report.html").exists()


def test_a_model_is_the_same_to_the_byte_with_a_tracker_and_without(train):
    without = train("without")
    with_one = train("with", MASKDM_LIVE="dvclive")
    assert with_one == without
    assert "model/model.safetensors" in without


@pytest.mark.parametrize("stop", [1, 4, 5, 8])
def test_a_run_that_was_stopped_shows_no_step_twice_and_none_never(
    stop, train, tmp_path, monkeypatch
):
    """With a checkpoint every third step, so that some are shown, lost and made again."""
    train("never", MASKDM_LIVE="dvclive", MASKDM_CHECKPOINT_STEPS="3")
    with monkeypatch.context() as patch:
        break_after(patch, stop)
        with pytest.raises(StoppedError):
            train("often")
    stopped, _ = logged(tmp_path / "often/live/workspace/pretrain")
    steps = [int(row[0]) for rows in stopped.values() for row in rows]
    assert max(steps) == stop - stop % 2 if stop > 1 else max(steps) == 0
    train("often")
    never, again = (logged(tmp_path / n / "live/workspace/pretrain") for n in ("never", "often"))
    assert again == never


def test_experiments_have_folders_of_their_own_in_the_repository_that_dvc_names(train, tmp_path):
    root = tmp_path / "repository"
    root.mkdir()
    train(
        "temporary",
        MASKDM_LIVE="dvclive",
        DVC_ROOT=str(root),
        DVC_EXP_NAME="lousy-cows",
        MASKDM_CHECKPOINTS=str(tmp_path / "checkpoints"),
    )
    assert logged(root / "live/lousy-cows/pretrain")[1] == [0, 4, 8, 9]
    assert not (tmp_path / "temporary/live").exists()


class Broken:
    """A tracker that fails at a moment of its life."""

    def __init__(self, moment):
        self.moment = moment

    def __call__(self, *_):
        self.fail("start")
        return self

    def fail(self, moment):
        if moment == self.moment:
            raise OSError("the server\nhas gone")

    def log(self, step, values, preview):
        self.fail("log")

    def close(self):
        self.fail("close")


@pytest.mark.parametrize("moment", ["start", "log", "close"])
def test_a_tracker_that_fails_costs_one_line_and_nothing_else(moment, train, monkeypatch, capsys):
    without = train("without")
    monkeypatch.setitem(live.TRACKERS, "mlflow", Broken(moment))
    assert train("with", MASKDM_LIVE="mlflow") == without
    said = [line for line in capsys.readouterr().err.splitlines() if "MASKDM_LIVE" in line]
    assert said == ["MASKDM_LIVE=mlflow does not work here, going on without: the server"]


@pytest.mark.parametrize("package", live.TRACKERS)
def test_a_tracker_that_is_not_installed_is_named(package, train, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)  # so importing it fails
    train(MASKDM_LIVE=package)
    said = [line for line in capsys.readouterr().err.splitlines() if "MASKDM_LIVE" in line]
    assert len(said) == 1
    assert package in said[0].partition("without: ")[2]


def test_only_the_main_process_shows_anything(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKDM_LIVE", "dvclive")
    made = []
    monkeypatch.setitem(live.TRACKERS, "dvclive", lambda *given: made.append(given))
    for is_main in (False, True):
        live.Live("pretrain", Curves(None, whole(PARAMS), 0), CONFIG, PARAMS, is_main)
    assert [name for name, _ in made] == ["workspace/pretrain"]


def record(calls, *names):
    """Return a module whose functions note their calls."""

    def noted(name):
        return lambda *args, **given: calls.append((name, args, given))

    return SimpleNamespace(**{name: noted(name) for name in names})


def test_mlflow_is_told_the_parameters_every_step_and_the_end(train, monkeypatch):
    calls = []
    names = ("start_run", "log_params", "log_metrics", "log_image", "end_run")
    monkeypatch.setitem(sys.modules, "mlflow", record(calls, *names))
    train(MASKDM_LIVE="mlflow")
    assert calls[0] == ("start_run", (), {"run_name": "workspace/pretrain"})
    assert calls[1][1][0]["pretrain.lr"] == PARAMS.lr
    assert calls[1][1][0]["model.dim"] == MODEL.dim
    steps = [given["step"] for name, _, given in calls if name == "log_metrics"]
    assert steps == [0, 2, 3, 4, 6, 8, 9]
    shown = [(given["key"], given["step"]) for name, _, given in calls if name == "log_image"]
    assert shown == [("previews", 0), ("previews", 4), ("previews", 8), ("previews", 9)]
    assert calls[-1] == ("end_run", (), {})


def test_wandb_is_told_the_parameters_every_step_and_the_end(train, monkeypatch):
    calls, of_run = [], []
    module = record(calls, "init")
    module.Image = lambda picture: picture.size
    module.init = lambda **given: calls.append(given) or record(of_run, "log", "finish")
    monkeypatch.setitem(sys.modules, "wandb", module)
    train(MASKDM_LIVE="wandb")
    assert calls[0]["config"]["diffusion.path"] == DIFFUSION.path
    assert (calls[0]["project"], calls[0]["name"]) == ("maskdm", "workspace/pretrain")
    assert [given["step"] for name, _, given in of_run[:-1]] == [0, 2, 3, 4, 6, 8, 9]
    shown = [args[0]["previews"] for _, args, _ in of_run[:-1] if "previews" in args[0]]
    assert shown == [(320, 32)] * 4
    assert of_run[-1][0] == "finish"


@pytest.mark.slow
def test_neither_git_nor_dvc_sees_anything_of_it(tmp_path):
    """In the workspace and in the temporary folder of an experiment."""
    clone = clone_tree(tmp_path / "clone", SMALLER)
    asked = {"MASKDM_LIVE": "dvclive"}
    clone.dvc("repro", "pretrain")
    lock, outputs = (clone.path / "dvc.lock").read_bytes(), clone.outputs()
    shutil.rmtree(clone.path / "checkpoints")
    assert clone.dvc("repro", "--force", "--single-item", "pretrain", **asked) == {"pretrain"}
    assert logged(clone.path / "live/workspace/pretrain")[0]["training/loss"]
    assert (clone.path / "dvc.lock").read_bytes() == lock
    again = clone.outputs()
    assert again.keys() == outputs.keys()
    changed = [name for name, (digest, _) in again.items() if digest != outputs[name][0]]
    timing = "reports/timing/pretrain.json"
    assert set(changed) <= {timing}  # two runs may round to the same seconds …
    assert again[timing] != outputs[timing]  # … but it was written anew

    clone.git("add", "--all")
    assert "live" not in clone.git("diff", "--cached", "--name-only")
    clone.git("commit", "--quiet", "--message", "trained")
    run = ("exp", "run", "--temp", "--name", "shown", "-S", "pretrain.lr=0.002", "pretrain")
    assert "pretrain" in clone.dvc(*run, **asked)
    assert logged(clone.path / "live/shown/pretrain")[0]["training/loss"]
    assert clone.git("status", "--porcelain") == ""
    (experiment,) = clone.git(
        "for-each-ref", "--format=%(objectname)", "refs/exps/*/*/shown"
    ).split()
    changed = set(clone.git("diff", "--name-only", "HEAD", experiment).split())
    assert {"params.yaml", "dvc.lock"} < changed
    assert not any("live" in name for name in changed)
    assert clone.dvc("repro", "pretrain", **asked) == set()
