"""A run that stops and goes on, is extended or branched off, is the run that never was."""

from dataclasses import replace
from time import sleep

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskdm.diffusion.masking import nothing_masked
from maskdm.runtime.errors import StoppedError, UserError
from maskdm.training.batches import Batches
from maskdm.training.checkpoints.store import TENSORS, CheckpointStore
from maskdm.training.schedule import Schedule
from tests.support.checkpoints import steps_in
from tests.support.training import Run, leg, masked, phase, whole


def same(one, other):
    assert one["rows"] == other["rows"]
    assert str(one["validations"]) == str(other["validations"])  # NaN where a level has no image
    assert one["tensors"].keys() == other["tensors"].keys()
    for name, tensor in one["tensors"].items():
        assert torch.equal(tensor, other["tensors"][name]), name


KINDS = {
    "whole images": lambda: (phase(steps=9, validate_every=4, warmup=2), {}),
    "a cool-down": lambda: (phase(steps=9, cooldown=5, validate_every=4), {}),
    "classes": lambda: (phase(steps=9, validate_every=4), {"classes": True}),
    "bf16": lambda: (phase(steps=4, validate_every=4, precision="bf16"), {}),
    "fp16": lambda: (phase(steps=9, validate_every=4, precision="fp16"), {}),
    "no clipping": lambda: (phase(steps=9, validate_every=2, clip=None), {}),
}


@pytest.mark.slow
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


def test_a_mixture_of_legs_stopped_three_times_goes_on_to_the_same_bits(tmp_path):
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
    assert "Found the finished checkpoint of these 5 steps: nothing is computed. To compute" in said
    assert f"it anew: python -m stages.checkpoints clear {first.store.folder.name}\n" in said


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


def test_checkpoints_of_other_numerics_are_gone_on_with_and_said_unless_exactness_is_asked_for(
    tmp_path, capsys, monkeypatch
):
    params, longer = phase(steps=3), phase(steps=5)
    Run(tmp_path, params, whole(params), changed={"threads": 64})
    monkeypatch.setenv("MASKDM_EXACT", "1")
    again = Run(tmp_path, params, whole(params), changed={"threads": 1})
    assert again.computed == 3  # and its checkpoint replaces the other
    monkeypatch.delenv("MASKDM_EXACT")
    capsys.readouterr()
    run = Run(tmp_path, longer, whole(longer), changed={"threads": 2})
    assert run.computed == 2
    assert "threads 1 → 2: equal up to rounding" in capsys.readouterr().out
    assert [part["threads"] for part in run.checkpointer.numerics] == [1, 2]


def test_the_checkpoints_are_held_until_the_last_write_has_ended(tmp_path, monkeypatch):
    """A run that fails during a write would else let another one remove what it is writing."""
    save, held = CheckpointStore.save, []

    def slow(store, *arguments, **named):
        sleep(0.5)
        held.append(store.is_held)
        save(store, *arguments, **named)

    class Failing(Batches):
        def at(self, step, *where):
            if step == 3:
                raise OSError("the images are gone")
            return super().at(step, *where)

    monkeypatch.setattr(CheckpointStore, "save", slow)
    monkeypatch.setenv("MASKDM_CHECKPOINT_STEPS", "2")
    params = phase(steps=6)
    with pytest.raises(OSError, match="images are gone"):
        Run(tmp_path, params, whole(params), spoil=lambda batches: Failing(**vars(batches)))
    assert held == [True]
    assert steps_in(tmp_path) == [2]


def test_the_interval_in_steps_is_kept_and_what_is_superfluous_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKDM_CHECKPOINT_STEPS", "2")
    params = phase(steps=9, cooldown=2)
    with pytest.raises(StoppedError):
        Run(tmp_path, params, whole(params), stop=6)
    assert steps_in(tmp_path) == [4, 6]
    Run(tmp_path, params, whole(params))
    assert steps_in(tmp_path) == [7, 9]


def spoiled(at):
    """Batches that hold NaN at the steps ``at``."""

    class Spoiled(Batches):
        def at(self, step, *where):
            batch = super().at(step, *where)
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


def test_too_many_such_steps_in_a_row_stop_the_run_and_keep_the_last_good_checkpoint(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MASKDM_CHECKPOINT_STEPS", "1")
    params = phase(steps=60, log_every=7)
    sentence = r"not been finite from step 5 to step \d+ .*Lower the learning rate"
    with pytest.raises(UserError, match=sentence):
        Run(tmp_path, params, whole(params), spoil=spoiled(set(range(4, 60))))
    good = Run(tmp_path / "good", phase(steps=4), whole(phase(steps=4))).state.tensors()
    kept = load_file(max(tmp_path.glob(f"test-*/*{TENSORS}")))
    assert kept.keys() == good.keys()
    for name, tensor in kept.items():
        if name.startswith(("raw.", "exp_avg", "step")):
            assert torch.equal(tensor, good[name]), name


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MASKDM_CHECKPOINT_STEPS", "1")
    params = phase(steps=2, lr=1e38)
    with pytest.raises(StoppedError):
        Run(tmp_path, params, whole(params), stop=1)
    assert steps_in(tmp_path) == []
    assert "not finite: not saved" in capsys.readouterr().err
