"""What a stage hands to its phase, and the phase to loop, optimiser and files.

Each piece has tests of its own; here are the lines that join them. A run that is compared with
another one of the same code cannot tell whether they are there.
"""

import csv
import json
from itertools import combinations, product
from math import exp
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from benchmarks.presets import read_preset
from maskdm.backbones.model_folder import (
    MOMENTS,
    ModelConfig,
    load_model,
    load_moments,
    save_model,
    save_moments,
)
from maskdm.backbones.registry import build_backbone
from maskdm.data.prepared import Sample, open_prepared, write_prepared
from maskdm.runtime.errors import UserError
from maskdm.runtime.execution import Execution
from maskdm.runtime.params import merge
from maskdm.training import ema, loop
from maskdm.training import run as phase_run
from maskdm.training.previews import Previewer
from maskdm.training.schedule import Leg, Schedule
from maskdm.training.setup import COMPUTES_STEPS
from maskdm.training.state import State
from maskdm.training.validation import HeldOutValidator
from stages import finetune, masks, pretrain
from tests.support.backbones import shaken
from tests.support.training import CPU, DIFFUSION, IMAGES, MODEL, Run, masked, phase, whole

TINY = read_preset("tiny")
PRIMER = Path("models/pretrain")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with twenty prepared images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKDM_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    samples = (Sample(image, None, number >= 16) for number, image in enumerate(IMAGES[:20]))
    about = {"size": 32, "channels": 3, "source": "none", "licence": "none"}
    write_prepared(Path("data/prepared"), samples, classes=None, **about)
    return tmp_path


def write(**changes):
    """Write params.yaml: the preset tiny, sections changed."""
    Path("params.yaml").write_text(json.dumps(merge(TINY, changes)))


def about():
    """Return the config of a model as the preset tiny makes it."""
    sections = {name: TINY[name] for name in ("model", "diffusion")}
    return ModelConfig.model_validate(
        {"size": 32, "channels": 3, "classes": None, "seed": 0, "training": [], **sections}
    )


def primer(folder, shift=0.0):
    """Write a model whose raw and averaged weights differ, and its moments."""
    config = about()
    raw = dict(shaken(config.backbone()).named_parameters())
    averaged = {name: tensor.detach() + 1 + shift for name, tensor in raw.items()}
    save_model(folder, config, raw, averaged)
    moments = {
        f"{kind}.{name}": torch.full((), 7.0) if kind == "step" else tensor.detach() ** power
        for kind, power in (("exp_avg", 1), ("exp_avg_sq", 2), ("step", 0))
        for name, tensor in raw.items()
    }
    save_moments(folder, moments)


def weights(folder, kind):
    network, _ = load_model(folder, kind)
    return dict(network.named_parameters())


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_picture_of_masks_has_three_draws_of_the_same_images(here, monkeypatch):
    shown = []
    monkeypatch.setattr(masks, "grid", lambda images, columns, scale: shown.append(images))
    monkeypatch.setattr(masks, "save", lambda picture, path: None)
    write()
    masks.main()
    ((whole, *drawn),) = (np.split(images, 1 + masks.DRAWS) for images in shown)
    hidden = [(images != whole).any(axis=-1) for images in drawn]
    assert all(0.5 < where.mean() < 1 for where in hidden)
    assert not any(np.array_equal(one, other) for one, other in combinations(hidden, 2))


@pytest.mark.parametrize("kind", ["raw", "averaged"])
def test_finetuning_starts_from_the_weights_that_are_asked_for(here, kind):
    """Without a step both sets that it leaves are those."""
    primer(PRIMER)
    write(finetune={"steps": 0, "warmup": 0, "cooldown": 0, "init_weights": kind})
    finetune.main()
    wanted = weights(PRIMER, kind)
    assert not equal(weights(PRIMER, "raw"), weights(PRIMER, "averaged"))
    for made in ("raw", "averaged"):
        assert equal(weights(Path("models/finetune"), made), wanted)


def test_a_checkpoint_of_finetuning_belongs_to_all_that_it_started_from(here, monkeypatch):
    """Another model, its other weights, its moments: the name says which, in so many words."""
    starts = {}
    monkeypatch.setattr(finetune, "train_phase", lambda *given: starts.update({key: given[-2:]}))
    primer(PRIMER)
    primer(Path("models/other"), shift=1.0)
    for key in product((str(PRIMER), "models/other"), ("raw", "averaged"), ("fresh", "kept")):
        init, kind, optimiser = key
        write(finetune={"init": init, "init_weights": kind, "optimiser": optimiser})
        finetune.main()
    assert len({start for start, _ in starts.values()}) == len(starts)
    for (init, _, optimiser), (_, moments) in starts.items():
        kept = load_moments(Path(init), about().backbone())
        assert (moments is None) if optimiser == "fresh" else equal(moments, kept)


def test_pretraining_leaves_the_moments_that_finetuning_may_keep(here, monkeypatch):
    states = []
    start = State.start.__func__
    monkeypatch.setattr(
        State, "start", classmethod(lambda *given: states.append(start(*given)) or states[-1])
    )
    write(pretrain={"steps": 3, "warmup": 0})
    pretrain.main()
    made = states[0].optimiser.tensors()
    assert equal(load_moments(PRIMER, about().backbone()), made)
    assert all(tensor == 3 for name, tensor in made.items() if name.startswith("step."))
    assert any(tensor.min() < 0 for name, tensor in made.items() if name.startswith("exp_avg."))

    write(finetune={"steps": 0, "warmup": 0, "cooldown": 0, "optimiser": "kept"})
    finetune.main()
    assert equal(states[1].optimiser.tensors(), made)
    write(finetune={"steps": 0, "warmup": 0, "cooldown": 0, "optimiser": "fresh"})
    finetune.main()
    assert not any(tensor.any() for tensor in states[2].optimiser.tensors().values())
    assert not (Path("models/finetune") / MOMENTS).exists()


def test_a_phase_writes_raw_weights_as_raw_and_averaged_ones_as_averaged(here):
    """The errors of what it wrote are those that its curve ends with."""
    write(pretrain={"steps": 6, "lr": 3e-3, "warmup": 0, "validate_every": 6})
    pretrain.main()
    with Path("reports/pretrain/validation.tsv").open() as file:
        *_, last = csv.DictReader(file, delimiter="\t")
    diffusion = about().diffusion
    validator = HeldOutValidator(
        open_prepared(Path("data/prepared")).heldout, about().model.patch, diffusion, CPU
    )
    found = {}
    for kind in ("raw", "averaged"):
        network, _ = load_model(PRIMER, kind)
        found[kind] = validator.errors(network)["mean"]
        assert found[kind] == pytest.approx(float(last[kind]), rel=1e-4)
    assert found["raw"] != pytest.approx(found["averaged"], rel=1e-3)


def test_processes_are_asked_whether_they_agree_before_a_step_is_made(here, monkeypatch):
    def refused(phase_name, fingerprint, schedule, execution):
        raise UserError(f"{phase_name}, {schedule.steps} steps: {fingerprint(1)[:3]}")

    monkeypatch.setattr(phase_run, "_check_agreement", refused)
    write(pretrain={"steps": 3, "warmup": 0})
    with pytest.raises(UserError, match=r"^pretrain, 3 steps: [0-9a-f]{3}$"):
        pretrain.main()
    assert not Path("checkpoints").exists()


def test_the_code_is_hashed_before_others_are_waited_for(here, monkeypatch):
    """The files may be edited meanwhile: checkpoints would be taken for those of the new code."""
    asked = []
    monkeypatch.setattr(phase_run, "code_hash", lambda *roots: asked.append(roots))
    monkeypatch.setattr(
        phase_run.Execution, "from_environment", Mock(side_effect=UserError("nobody joined"))
    )
    write(pretrain={"steps": 3, "warmup": 0})
    with pytest.raises(UserError, match="nobody joined"):
        pretrain.main()
    assert asked == [COMPUTES_STEPS]


def test_every_step_has_the_rates_of_its_schedule(monkeypatch):
    """Warm-up and cool-down, legs, whole images in between, and the average's horizon, by hand."""
    given = []

    class Spy:
        def __init__(self, *_):
            pass

        def __call__(self, batch, batch_size, rates):
            given.append((batch_size, *rates))
            return torch.ones(2)

    monkeypatch.setattr(loop, "TrainingStep", Spy)
    legs = (Leg(masked(0.75), 3, 8, 1.0, 1, shift=0.5), Leg(masked(0.5), 3, 4, 0.5, 0, shift=0.25))
    schedule = Schedule(legs, 6, cooldown=2, full_share=0.5)
    params = phase(ema_images=2)
    batches = SimpleNamespace(schedule=schedule, at=lambda *_: None)
    nothing = SimpleNamespace(errors=lambda _: {})
    state = State.start(build_backbone(MODEL, 32, 3, 0), params)
    made = loop.train(state, batches, nothing, DIFFUSION, params, Execution(CPU))
    assert list(made) == list(range(7))
    sizes, learning, averaging, shifts = zip(*given, strict=True)
    assert sizes == (8, 8, 8, 4, 4, 4)
    assert learning == pytest.approx((0.5, 1, 1, 0.5, 0.5 * 2 / 3, 0.5 / 3))
    # A tenth of the 8 and 16 images seen, then 2.
    kept = (exp(-8 / 0.8), exp(-8 / 1.6), exp(-4), exp(-2), exp(-2), exp(-2))
    assert averaging == pytest.approx([1 - weight for weight in kept])
    assert shifts == (0.5, 0, 0.5, 0, 0.25, 0)


def test_previews_are_drawn_by_the_averaged_weights(tmp_path):
    params = phase(steps=4, preview_every=4, lr=3e-3)
    state = Run(tmp_path, params, whole(params)).state
    previewer = Previewer(32, 3, 4, DIFFUSION, CPU)
    by_raw = previewer.draw(state.backbone)
    with ema.applied(dict(state.backbone.named_parameters()), state.averaged):
        by_averaged = previewer.draw(state.backbone)
    assert np.array_equal(state.history.previews[4], by_averaged)
    assert not np.array_equal(by_raw, by_averaged)
