"""Previews: pictures on the way, the same for a run that was stopped, and seen while it runs."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.presets import names, read_preset
from maskdm.backbones.model_folder import ModelConfig
from maskdm.backbones.registry import ModelParams, backbone_without_weights, build_backbone
from maskdm.data.prepared import PreparedSet
from maskdm.diffusion.masking import MaskParams, make_mask
from maskdm.diffusion.tokens import to_images
from maskdm.runtime.errors import StoppedError
from maskdm.sampling.sampler import estimates
from maskdm.training import run as phase_run
from maskdm.training.curves import Curves
from maskdm.training.flops import training_flops
from maskdm.training.history import History
from maskdm.training.previews import COUNT, LEVELS, Previewer
from stages import curves
from tests.support.backbones import shaken
from tests.support.models import drawing
from tests.support.training import CPU, DIFFUSION, IMAGES, MODEL, Run, phase, whole


def previewer(**changes):
    return Previewer(
        **({"size": 32, "channels": 3, "patch": 4, "params": DIFFUSION, "device": CPU} | changes)
    )


def test_a_preview_is_what_ddim_draws_from_the_same_noise():
    network = build_backbone(MODEL, 32, 3, seed=0)
    ours = previewer()
    params = drawing(solver="ddim", nfe=LEVELS)
    *_, last = estimates(network, DIFFUSION, params, (64, 48), range(COUNT), CPU, start=ours.noise)
    assert np.array_equal(ours.draw(network), to_images(last, 4, 3).numpy())


def test_with_classes_an_image_keeps_its_class():
    network, ours = shaken(build_backbone(MODEL, 32, 3, seed=0, classes=3)), previewer(classes=3)
    assert ours.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]

    def drawn(labels):
        given = drawing(solver="ddim", nfe=LEVELS), (64, 48), range(COUNT), CPU
        *_, last = estimates(network, DIFFUSION, *given, labels=labels, start=ours.noise)
        return to_images(last, 4, 3).numpy()

    assert np.array_equal(ours.draw(network), drawn(ours.labels))
    assert not np.array_equal(ours.draw(network), drawn(ours.labels.flip(0)))


@pytest.mark.parametrize("stop", [1, 3, 4, 8])
def test_a_run_that_was_stopped_has_the_previews_of_one_that_was_not(stop, tmp_path):
    params = phase(steps=9, preview_every=2)
    never = Run(tmp_path / "never", params, whole(params))
    assert list(never.state.history.previews) == [0, 2, 4, 6, 8]
    with pytest.raises(StoppedError):
        Run(tmp_path / "often", params, whole(params), stop=stop)
    again = Run(tmp_path / "often", params, whole(params))
    for step, images in never.state.history.previews.items():
        assert np.array_equal(again.state.history.previews[step], images)
    assert again.state.history.previews.keys() == never.state.history.previews.keys()
    [(last, images)] = never.state.history.final_previews.items()
    assert last == 9
    assert np.array_equal(again.state.history.final_previews[9], images)
    assert list(never.state.history.drawn) == [0, 2, 4, 6, 8, 9]


def test_the_preview_of_a_runs_end_is_not_one_of_a_longer_run(tmp_path):
    short, long = phase(steps=3, preview_every=2), phase(steps=5, preview_every=2)
    assert list(Run(tmp_path, short, whole(short)).state.history.drawn) == [0, 2, 3]
    longer = Run(tmp_path, long, whole(long))
    assert list(longer.state.history.drawn) == [0, 2, 4, 5]
    once = Run(tmp_path / "once", long, whole(long))
    for step, images in once.state.history.drawn.items():
        assert np.array_equal(longer.state.history.drawn[step], images)


def test_previews_change_nothing_of_the_training(tmp_path):
    with_them, without = (
        Run(tmp_path / str(every), params, whole(params)).result()
        for every, params in ((n, phase(steps=5, preview_every=n)) for n in (2, 0))
    )
    assert with_them["rows"] == without["rows"]
    for name, tensor in without["tensors"].items():
        assert torch.equal(tensor, with_them["tensors"][name]), name
    assert not any("previews" in name for name in without["tensors"])


def test_curves_and_previews_are_on_disk_while_the_run_goes_on(tmp_path, monkeypatch):
    """At every look the files are whole, and hold what was done so far and nothing older."""
    params = phase(steps=8, preview_every=4, validate_every=2, log_every=2)
    network = build_backbone(MODEL, 32, 3, seed=0)
    folder = tmp_path / "reports"
    (folder / "previews").mkdir(parents=True)
    (folder / "previews/77.png").write_text("of another run")
    history, writer = History(), Curves(network, whole(params), 0)
    images = np.zeros((COUNT, 32, 32, 3), np.uint8)
    for step in range(9):
        if step:
            history.add(torch.ones(2))
        state = SimpleNamespace(step=step, history=history)
        if step % 2 == 0:
            history.validations[step] = {"raw": 1.0, "averaged": 1.0}
        if step % 4 == 0:
            history.previews[step] = images + step
        due = phase_run.shows_something(state, params)
        assert due == (step % 2 == 0)
        if due:
            writer.write(folder, history, params.log_every)
            with (folder / "validation.tsv").open() as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            assert [int(row["step"]) for row in rows] == list(range(0, step + 1, 2))
            shown = sorted(int(path.stem) for path in (folder / "previews").iterdir())
            assert shown == list(range(0, step + 1, 4))
    with Image.open(folder / "previews/8.png") as picture:
        assert picture.size == (COUNT * 32, 32)
        assert np.asarray(picture).max() == 8


def test_a_phase_writes_its_curves_while_it_trains(tmp_path, monkeypatch):
    """What stands on the disk after each step that has something to show, not at the end alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKDM_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    params = phase(steps=6, preview_every=3, validate_every=2)
    config = ModelConfig(
        size=32, channels=3, classes=None, seed=0, model=MODEL, diffusion=DIFFUSION, training=[]
    )
    about = {"size": 32, "channels": 3, "classes": None, "source": "test", "licence": "none"}
    images = PreparedSet(IMAGES, IMAGES[:14], None, None, **about, skipped=0, hash="abc")
    outputs = phase_run.Outputs(tmp_path / "model", tmp_path / "curves", tmp_path / "timing.json")
    seen = {}

    def watched(phase_name, steps, *rest):
        for step in steps:
            yield step
            rows = (outputs.curves / "validation.tsv").read_text().splitlines()[1:]
            shown = {int(path.stem) for path in (outputs.curves / "previews").iterdir()}
            seen[step] = (int(rows[-1].split("\t")[0]), max(shown))

    monkeypatch.setattr(phase_run, "progress", watched)
    phase_run.train_phase(
        "pretrain", config.backbone(), config, images, whole(params), params, outputs
    )
    expected = [(0, 0), (0, 0), (2, 0), (2, 3), (4, 3), (4, 3), (6, 6)]
    assert list(seen.values()) == expected


def test_the_film_strip_goes_from_the_first_masked_step_to_the_last_whole_one(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    row = np.zeros((32, 320), np.uint8)
    for phase_name, steps in (("pretrain", (0, 200, 1000)), ("finetune", (0, 50))):
        folder = tmp_path / "reports" / phase_name / "previews"
        folder.mkdir(parents=True)
        for step in steps:
            Image.fromarray(row).save(folder / f"{step}.png")
    strip = list(curves.film_strip())
    assert [name for name, _ in strip] == [
        "masked pretraining, step 0",
        "masked pretraining, step 200",
        "masked pretraining, step 1000",
        "finetuning, step 0",
        "finetuning, step 50",
    ]
    assert all(images.shape == (10, 32, 32, 1) for _, images in strip)


def test_a_row_without_a_finite_loss_is_no_point_of_the_curve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "reports/pretrain"
    folder.mkdir(parents=True)
    (folder / "training.tsv").write_text("step\tflops\tloss\n2\t100\t\n4\t200\t0.5\n")
    (folder / "validation.tsv").write_text("step\tflops\taveraged\n0\t0\t1.5\n4\t200\t\n")
    drawn = []
    monkeypatch.setattr(curves, "curves", lambda points, *_: drawn.extend(points))
    curves.main()
    assert [(point["quantity"], point["flops"], point["value"]) for point in drawn] == [
        ("loss", 200, 0.5),
        ("averaged", 0, 1.5),
    ]


@pytest.mark.parametrize("name", names())
def test_previews_cost_at_most_three_per_cent_of_the_training(name):
    params = read_preset(name)
    if name == "tiny":
        return  # it has them often, to test them
    data, model = params["data"], ModelParams(**params["model"])
    network = backbone_without_weights(model, data["resolution"], data["channels"])
    grid = data["resolution"] // model.patch
    mask = make_mask(MaskParams(**params["mask"]), grid)
    for phase_name, visible in (("pretrain", mask.visible), ("finetune", grid**2)):
        section = params[phase_name]
        if not section["preview_every"] or not section["steps"]:
            continue
        images = section["preview_every"] * section["batch_size"]
        cost = COUNT * LEVELS * network.forward_flops(grid**2)
        assert cost <= 0.03 * training_flops(network, visible, images)
