"""A run that stops and goes on, is extended or branched off, is the run that never was."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from maskdm.training.checkpoints.saver import Saver
from safetensors.torch import load_file
from test_training import CPU, DIFFUSION, MODEL, masked, phase

from maskdm.backbones.registry import build_backbone
from maskdm.diffusion.masking import nothing_masked
from maskdm.runtime.distributed import ALONE
from maskdm.runtime.errors import StoppedError, UserError
from maskdm.runtime.numerics import arithmetic
from maskdm.training.batches import Batches
from maskdm.training.checkpoints.fingerprint import prefix
from maskdm.training.checkpoints.store import DATA, FACTS, Name, States
from maskdm.training.loop import train
from maskdm.training.schedule import Leg, Schedule
from maskdm.training.setup import ELSEWHERE
from maskdm.training.state import State
from maskdm.training.validation import Validation

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(40) % 3


class Run:
    """Training as a stage does it, in a folder of states, up to the step it is stopped at."""

    def __init__(self, root, params, schedule, classes=False, stop=None, spoil=None):
        labels, few = (LABELS, LABELS[:14]) if classes else (None, None)
        backbone = build_backbone(MODEL, 32, 3, 0, 3 if classes else 0)
        self.state = State.start(backbone, params)
        batches = Batches(IMAGES, schedule, 4, 0.5, 0, "test", labels, backbone.classes, 0.2)
        if spoil:
            batches = spoil(batches)
        validation = Validation(IMAGES[:14], 4, DIFFUSION, CPU, few)
        trajectory = params.model_dump(exclude=ELSEWHERE) | {"classes": classes}
        self.states = States(root, "test", lambda step: prefix(trajectory, schedule, step))
        self.saver = Saver(self.states, self.state, schedule, arithmetic(CPU, ALONE, None), ALONE)
        reports = train(self.state, batches, validation, DIFFUSION, params, CPU)
        self.computed, self.last = 0, None
        with self.saver.watching():
            for report in reports:
                self.computed += report.lr is not None
                if report.step == stop:
                    os.kill(os.getpid(), signal.SIGTERM)
                self.saver.after_step()
                self.last = report

    def result(self):
        """Return everything that a stage would write."""
        history = self.state.history
        return {
            "tensors": {name: t.clone() for name, t in self.state.tensors().items()},
            "rows": [vars(row) for row in history.rows(3)],
            "validations": history.validations | {self.last.step: self.last.validation},
        }


def same(one, other):
    assert one["rows"] == other["rows"]
    assert str(one["validations"]) == str(other["validations"])  # NaN where a level has no image
    assert one["tensors"].keys() == other["tensors"].keys()
    for name, tensor in one["tensors"].items():
        assert torch.equal(tensor, other["tensors"][name]), name


def whole(params):
    return Schedule((leg(nothing_masked(8), params),), params.steps, params.cooldown)


def leg(mask, params, steps=None):
    return Leg(mask, steps or params.steps, params.batch_size, params.lr, params.warmup)


def steps_in(folder):
    return sorted(Name.of(path).step for path in folder.rglob(f"*{FACTS}"))


KINDS = {
    "whole images": lambda: (phase(steps=9, validate_every=4, warmup=2), {}),
    "a cool-down": lambda: (phase(steps=9, cooldown=5, validate_every=4), {}),
    "classes": lambda: (phase(steps=9, validate_every=4), {"classes": True}),
    "bf16": lambda: (phase(steps=4, validate_every=4, precision="bf16"), {}),
    "fp16": lambda: (phase(steps=9, validate_every=4, precision="fp16"), {}),
    "no clipping": lambda: (phase(steps=9, validate_every=2, clip=None), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_after_any_step_goes_on_to_the_same_bits(kind, tmp_path):
    params, options = KINDS[kind]()
    never = Run(tmp_path / "never", params, whole(params), **options)
    for stop in range(1, params.steps):
        root = tmp_path / str(stop)
        with pytest.raises(StoppedError, match=f"Stopped after step {stop};.*goes on from there"):
            Run(root, params, whole(params), stop=stop, **options)
        again = Run(root, params, whole(params), **options)
        assert again.computed == params.steps - stop
        same(again.result(), never.result())


def test_a_staged_mixture_stopped_three_times_goes_on_to_the_same_bits(tmp_path):
    params = phase(steps=12, validate_every=5, full_share=0.25)
    legs = (leg(masked(0.75), params, 5), replace(leg(masked(0.5), params, 7), batch_size=4))
    schedule = Schedule(legs, 12, 0, 0.25)
    never = Run(tmp_path / "never", params, schedule)
    for stop in (3, 5, 8):
        with pytest.raises(StoppedError):
            Run(tmp_path / "often", params, schedule, stop=stop)
    again = Run(tmp_path / "often", params, schedule)
    assert again.computed == 4
    same(again.result(), never.result())


def test_a_second_run_of_the_same_computes_nothing(tmp_path, capsys):
    params = phase(steps=5)
    first = Run(tmp_path, params, whole(params))
    capsys.readouterr()
    second = Run(tmp_path, params, whole(params))
    assert (first.computed, second.computed) == (5, 0)
    same(second.result(), first.result())
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "Found the finished state of these 5 steps: nothing is computed. To compute" in said
    assert f"it anew: python -m stages.checkpoints clear {first.states.folder.name}\n" in said


def test_a_longer_run_computes_only_what_is_new(tmp_path):
    """The last row and the last validation of the shorter one are in no curve of the longer."""
    short, long = (phase(steps=s, validate_every=4, log_every=3) for s in (7, 14))
    assert Run(tmp_path, short, whole(short)).computed == 7
    extended = Run(tmp_path, long, whole(long))
    assert extended.computed == 7
    same(extended.result(), Run(tmp_path / "never", long, whole(long)).result())
    assert set(extended.result()["validations"]) == {0, 4, 8, 12, 14}


def test_a_cool_down_branches_off_the_trunk_and_the_trunk_goes_on(tmp_path):
    cooled = phase(steps=10, cooldown=4)
    later = phase(steps=14, cooldown=4)
    straight = phase(steps=10)
    assert Run(tmp_path, cooled, whole(cooled)).computed == 10
    assert steps_in(tmp_path) == [6, 10]  # the trunk where the cool-down leaves it, and the end
    assert Run(tmp_path, straight, whole(straight)).computed == 4
    assert Run(tmp_path, later, whole(later)).computed == 4  # off the straight run's end
    assert Run(tmp_path, cooled, whole(cooled)).computed == 0
    for params in (straight, later):
        found = Run(tmp_path, params, whole(params))
        assert found.computed == 0
        same(found.result(), Run(tmp_path / f"n{params.steps}", params, whole(params)).result())


def test_legs_that_differ_later_share_the_first(tmp_path):
    params = phase(steps=8)
    first = leg(masked(0.75), params, 5)
    runs = [
        Run(tmp_path, params, Schedule((first, leg(mask, params, 3)), 8))
        for mask in (masked(0.5), nothing_masked(8))
    ]
    assert [run.computed for run in runs] == [8, 3]


@pytest.mark.parametrize(
    "change", [{"lr": 2e-3}, {"betas": [0.8, 0.99]}, {"ema_images": 32}, {"validate_every": 2}]
)
def test_what_acts_from_the_first_step_shares_nothing(change, tmp_path):
    params, other = phase(steps=3), phase(steps=3, **change)
    Run(tmp_path, params, whole(params))
    assert Run(tmp_path, other, whole(other)).computed == 3


def test_rows_of_the_curve_can_be_had_closer_without_computing(tmp_path):
    params, closer = phase(steps=6, log_every=3), phase(steps=6, log_every=1)
    Run(tmp_path, params, whole(params))
    again = Run(tmp_path, closer, whole(closer))
    assert again.computed == 0
    assert len(again.state.history.rows(1)) == 6


def test_states_of_another_arithmetic_are_gone_on_with_and_said_unless_exactness_is_asked_for(
    tmp_path, capsys, monkeypatch
):
    params, longer = phase(steps=3), phase(steps=5)
    monkeypatch.setattr("test_resume.arithmetic", lambda *_: {"device": "cpu", "threads": 64})
    Run(tmp_path, params, whole(params))
    monkeypatch.setattr("test_resume.arithmetic", lambda *_: {"device": "cpu", "threads": 1})
    monkeypatch.setenv("MASKDM_EXACT", "1")
    assert Run(tmp_path, params, whole(params)).computed == 3  # and its state replaces the other
    monkeypatch.setattr("test_resume.arithmetic", lambda *_: {"device": "cpu", "threads": 2})
    monkeypatch.delenv("MASKDM_EXACT")
    capsys.readouterr()
    run = Run(tmp_path, longer, whole(longer))
    assert run.computed == 2
    assert "threads 1 → 2: equal up to rounding" in capsys.readouterr().out
    assert [part["threads"] for part in run.saver.arithmetic] == [1, 2]


def test_the_interval_in_steps_is_kept_and_what_is_superfluous_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDM_SAVE_STEPS", "2")
    params = phase(steps=9, cooldown=2)
    with pytest.raises(StoppedError):
        Run(tmp_path, params, whole(params), stop=6)
    assert steps_in(tmp_path) == [4, 6]
    Run(tmp_path, params, whole(params))
    assert steps_in(tmp_path) == [7, 9]


def spoiled(at):
    """Batches that hold NaN at the steps ``at``."""

    class Spoiled(Batches):
        def at(self, step, part=slice(None)):
            batch = super().at(step, part)
            return batch._replace(tokens=batch.tokens * torch.nan) if step in at else batch

    return lambda batches: Spoiled(**vars(batches))


def test_a_step_that_is_not_finite_changes_no_weight_and_is_counted(tmp_path):
    params = phase(steps=6, log_every=3)
    run = Run(tmp_path / "a", params, whole(params), spoil=spoiled({3}))
    before = Run(tmp_path / "b", phase(steps=3), whole(phase(steps=3)))
    after = Run(tmp_path / "c", phase(steps=4), whole(phase(steps=4)), spoil=spoiled({3}))
    for name, tensor in before.state.tensors().items():
        if name.startswith(("raw.", "exp_avg", "step")):
            assert torch.equal(tensor, after.state.tensors()[name]), name
    assert [row.skipped for row in run.state.history.rows(3)] == [0, 1]
    assert np.isfinite([row.loss for row in run.state.history.rows(3)]).all()
    assert all(weight.isfinite().all() for weight in run.state.averaged.values())


def test_too_many_such_steps_in_a_row_stop_the_run_and_keep_the_last_good_state(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MASKDM_SAVE_STEPS", "1")
    params = phase(steps=60, log_every=7)
    sentence = r"not been finite from step 5 to step \d+ .*Lower the learning rate"
    with pytest.raises(UserError, match=sentence):
        Run(tmp_path, params, whole(params), spoil=spoiled(set(range(4, 60))))
    good = Run(tmp_path / "good", phase(steps=4), whole(phase(steps=4))).state.tensors()
    kept = load_file(max(tmp_path.glob(f"test-*/*{DATA}")))
    assert kept.keys() == good.keys()
    for name, tensor in kept.items():
        if name.startswith(("raw.", "exp_avg", "step")):
            assert torch.equal(tensor, good[name]), name


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MASKDM_SAVE_STEPS", "1")
    params = phase(steps=2, lr=1e38)
    with pytest.raises(StoppedError):
        Run(tmp_path, params, whole(params), stop=1)
    assert steps_in(tmp_path) == []
    assert "not finite: not saved" in capsys.readouterr().err
