"""Few images, or all the same: every report is JSON, and what cannot be measured is left out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskdm.data.prepared import Sample, write_prepared
from maskdm.evaluation.features.extraction import FeatureNetwork
from maskdm.evaluation.features.registry import EXTRACTORS
from maskdm.runtime.files import write_array, write_json
from stages import fid, neighbours, reference
from tools.report.experiments import experiments
from tools.report.page import compared, shown

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
KID, FRECHET = "kid_efficientnet_lite0", "fd_efficientnet_lite0"
COLOURS = FeatureNetwork(
    replace(EXTRACTORS["efficientnet-lite0"], count=3, side=8),
    lambda batch: batch.mean(dim=(2, 3)) / 255,
    torch.device("cpu"),
    "",
)


COSTS = {"network_passes": 16, "training": {"steps": 1, "images": 8, "flops": 1}}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that measures samples, and returns all reports by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    for stage in (reference, fid, neighbours):
        monkeypatch.setattr(stage, "load_network", lambda *_: COLOURS)

    def measured(train: int, heldout: int, samples: np.ndarray) -> dict[str, Any]:
        equal = [Sample(IMAGE, None, index >= train) for index in range(train + heldout)]
        write_prepared(
            Path("data/prepared"), equal, size=16, channels=3, classes=None, source="a test",
            licence="none",
        )  # fmt: skip
        Path("params.yaml").write_text("fid: {features: {extractor: efficientnet-lite0}}\n")
        write_array(Path("data/samples/samples.npy"), samples)
        write_json(Path("data/samples/samples.json"), {"count": len(samples)} | COSTS)
        for stage in (reference, fid, neighbours):
            stage.main()
        return {path.stem: read(path) for path in Path("reports").glob("*.json")}

    return measured


def read(path: Path) -> Any:
    """Return what a JSON file holds; NaN and Infinity are none."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def copies(count: int) -> np.ndarray:
    return np.repeat(IMAGE[None], count, axis=0)


NOISE = np.random.default_rng(1).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("samples", "same"), [(copies(20), True), (NOISE, False)])
def test_sixty_equal_images_have_finite_distances_and_no_ratio(measured, samples, same):
    found = measured(54, 6, samples)
    metrics, about = found["metrics"], found["neighbours"]
    for name in (KID, FRECHET, f"{KID}_heldout", f"{FRECHET}_heldout"):
        assert (abs(metrics[name]) < 1e-6) == same, name
    assert metrics[f"{KID}_std"] >= 0
    assert about["ratio"] is None
    assert about["distance_heldout"] == 0
    assert (about["distance"] == 0) == same
    assert metrics["manifold"]["precision"] == metrics["manifold"]["coverage"] == same
    scale = {name: values[KID] for name, values in found["yardsticks"].items()}
    assert abs(scale["heldout"]) < 1e-6 < scale["uniform_noise"]


def test_what_one_image_does_not_allow_is_left_out_and_said(measured, capsys):
    found = measured(59, 1, copies(1))
    assert not any(name.startswith(("kid", "fd")) for name in found["metrics"])
    assert found["yardsticks"]["heldout"] == {"manifold": {}}
    assert found["metrics"]["manifold"] == {}
    assert found["measured"]["samples"]["count"] == 1
    said = capsys.readouterr().out
    assert f"{KID} is left out: it needs at least 2 images on both sides, not 1 samples" in said
    assert f"{FRECHET} is left out: it needs at least 4 images on both sides" in said


def test_one_held_out_image_leaves_out_the_distances_to_it_alone(measured, capsys):
    found = measured(59, 1, NOISE)
    assert found["metrics"][KID] > 0
    assert f"{KID}_heldout" not in found["metrics"]
    assert "held-out images are left out: there is only 1" in capsys.readouterr().out


def test_one_training_image_leaves_out_the_distances_to_it_alone(measured):
    found = measured(1, 59, NOISE)
    assert KID not in found["metrics"]
    assert found["metrics"][f"{KID}_heldout"] > 0


def test_the_report_compares_runs_that_lack_a_distance(measured, tmp_path):
    measured(59, 1, copies(1))
    Path("reports/pretrain").mkdir()
    Path("reports/pretrain/training.tsv").write_text(
        "step\timages\tflops\tloss\n2\t16\t100\t\n4\t32\t200\t0.5\n"
    )
    (run,) = experiments([], tmp_path)
    rows = {name: [shown(value) for value in values] for name, values, _ in
            compared([run.metrics(), {KID: 0.5}, {KID: None}])}  # fmt: skip
    assert rows[KID] == ["–", "0.5", "–"]
    assert [row["value"] for row in run.curve("training", "loss")] == [None, 0.5]
