"""Training states on disk: whole or not there, and found by exactly the runs that passed them."""

import errno
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from filelock import Timeout
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.diffusion.masking import MaskParams, make_mask, nothing_masked
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_tensors
from maskdm.training.checkpoints import fingerprint
from maskdm.training.checkpoints.fingerprint import digest, meaning, modules, prefix
from maskdm.training.checkpoints.store import BEGUN, DATA, FACTS, WANTED, Name, States, folders
from maskdm.training.schedule import Leg, Schedule

ROOT = Path(__file__).parent.parent


def run(name="run", after=0):
    """Return the fingerprints of a run that leaves the common trunk after step ``after``."""
    return lambda step: digest([name if step > after else "trunk", step])


def states(root, fingerprints=None):
    opened = States(root, "pretrain", fingerprints or run())
    opened.open()
    return opened


def tensors(seed):
    """Return the kinds of tensors that a run saves, with the values that are easily lost."""
    odd = [0x7FC00001, -0x003EDCBB, 0x7F800001, 0x7F800000, -0x80000000, 1, -0x7FFFFFFF]
    generator = torch.Generator().manual_seed(seed)
    return {
        "raw.weight": torch.randn(3, 5, generator=generator),
        "step.weight": torch.tensor(float(seed)),
        "history.losses": torch.tensor(odd, dtype=torch.int32).view(torch.float32),
        "history.norms": torch.empty(0),
    }


def bits(found):
    return {
        name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes())
        for name, tensor in found.items()
    }


def save(where, *steps):
    for step in steps:
        where.save(step, tensors(step), {"seconds": step / 3})


def step_of(found):
    """Return the step of a state that was found, or None; its tensors must be what was saved."""
    if found is None:
        return None
    step = found.name.step
    assert bits(found.tensors) == bits(tensors(step))
    assert (found.facts["step"], found.facts["seconds"]) == (step, step / 3)
    return step


def steps_in(where, suffix=FACTS):
    return sorted(Name.of(path).step for path in where.folder.glob(f"*{suffix}"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


# --- what is saved and found ---


def test_a_state_comes_back_bit_for_bit_with_its_facts(tmp_path):
    facts = {
        "scaler": {"scale": 2.0**120, "_growth_tracker": 3},
        "validations": {0: {"raw": 0.1 + 0.2, "raw[-3]": float("nan")}, 4: {"raw": 5e-324}},
        "arithmetic": [{"device": "cpu", "précision": "fp32"}],
    }
    states(tmp_path).save(7, tensors(7), facts)
    found = states(tmp_path).newest(100)
    assert found.name == states(tmp_path).name(7)
    assert bits(found.tensors) == bits(tensors(7))
    returned = {name: found.facts[name] for name in facts}
    assert json.dumps(returned) == json.dumps(facts)  # NaN is not equal to itself
    assert found.facts["step"] == 7


def test_the_newest_state_is_the_last_one_within_the_steps_asked_for(tmp_path):
    where = states(tmp_path)
    for step in (9, 10, 100):  # as text, 9 comes last
        where.want(step)
    save(where, 9, 10, 100)
    assert [step_of(where.newest(most)) for most in (8, 9, 99, 100, 1000)] == [
        None,
        9,
        10,
        100,
        100,
    ]


def test_a_state_whose_facts_do_not_fit_is_passed_over_and_stays(tmp_path, capsys):
    where = states(tmp_path)
    save(where, 2, 4)
    assert step_of(where.newest(9, lambda facts: facts["step"] != 4)) == 2
    assert steps_in(where) == [2, 4]
    assert capsys.readouterr().err == ""


def test_a_state_is_had_once_its_facts_are_there(tmp_path):
    where = states(tmp_path)
    assert not where.has(3)
    save(where, 3)
    assert where.has(3)
    assert not where.has(2)


def test_a_folder_that_cannot_be_made_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be made .*MASKDM_STATES"):
        states(tmp_path / "file")


# --- damage ---


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 16  # a tensor's last value: the file can still be read
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def rewrite(change):
    def rewritten(path):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(change(facts)))

    return rewritten


def another_second(facts):
    return facts | {"seconds": facts["seconds"] + 1}


def no_checksum(facts):
    return {key: value for key, value in facts.items() if key != "checksum"}


DAMAGES = {
    "tensors cut": (DATA, cut),
    "tensors with one bit flipped": (DATA, flip),
    "tensors emptied": (DATA, empty),
    "tensors missing": (DATA, Path.unlink),
    "facts cut": (FACTS, cut),
    "facts with one digit changed": (FACTS, rewrite(another_second)),
    "facts without checksum": (FACTS, rewrite(no_checksum)),
    "facts emptied": (FACTS, empty),
    "facts that are a list": (FACTS, rewrite(list)),
    "facts that are null": (FACTS, rewrite(lambda facts: None)),
    "facts that are no text": (FACTS, lambda path: path.write_bytes(b"\xff\xfe{")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_said_removed_and_the_one_before_it_taken(damage, tmp_path, capsys):
    where = states(tmp_path)
    save(where, 4, 6)
    suffix, spoil = DAMAGES[damage]
    spoil(where.folder / f"{where.name(6)}{suffix}")
    assert step_of(where.newest(9)) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "The state after step 6 is damaged" in said
    assert sorted(contents(where.folder)) == [f"{where.name(4)}{s}" for s in (FACTS, DATA)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_without_another_is_no_state(damage, tmp_path, capsys):
    where = states(tmp_path)
    save(where, 6)
    suffix, spoil = DAMAGES[damage]
    spoil(where.folder / f"{where.name(6)}{suffix}")
    assert where.newest(9) is None
    assert capsys.readouterr().err.count("\n") == 1
    assert contents(where.folder) == {}


@pytest.mark.parametrize(
    "left", ["nothing of the facts", "half of the facts", "half of the tensors"]
)
def test_a_state_that_a_killed_writer_began_is_not_there(left, tmp_path, capsys):
    where = states(tmp_path)
    save(where, 4, 6)
    data, facts = (where.folder / f"{where.name(6)}{suffix}" for suffix in (DATA, FACTS))
    half = facts.with_name(facts.name + BEGUN)
    if left == "half of the facts":
        half.write_bytes(facts.read_bytes()[:9])
    facts.unlink()
    if left == "half of the tensors":
        cut(data.replace(data.with_name(data.name + BEGUN)))
    assert not where.has(6)
    assert step_of(where.newest(9)) == 4
    assert capsys.readouterr().err == ""


@pytest.fixture(scope="module")
def one_state(tmp_path_factory):
    where = states(tmp_path_factory.mktemp("states"))
    save(where, 6)
    return where, contents(where.folder)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([DATA, FACTS]), st.integers(0, 10**6), st.integers(0, 7))
def test_no_flipped_bit_passes_as_another_state(one_state, suffix, place, bit):
    where, whole = one_state
    for name, content in whole.items():
        (where.folder / name).write_bytes(content)
    path = where.folder / f"{where.name(6)}{suffix}"
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    found = where.newest(9)
    assert found is None


# --- writes that fail ---

# A write synchronises a file, then its folder; a save writes two files.
FAILURES = [
    ("the tensors' file", "fsync", 1),
    ("the tensors' rename", "replace", 1),
    ("the tensors' folder", "fsync", 2),
    ("the facts' file", "fsync", 3),
    ("the facts' rename", "replace", 2),
    ("the facts' folder", "fsync", 4),
]


@pytest.mark.parametrize(("what", "call", "nth"), FAILURES)
def test_a_save_that_fails_leaves_the_old_states_and_nothing_else(
    what, call, nth, tmp_path, monkeypatch
):
    where = states(tmp_path)
    save(where, 2, 4)
    before = contents(where.folder)
    owner = os if call == "fsync" else Path
    real, calls = getattr(owner, call), []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, call, failing)
        with pytest.raises(OSError, match="No space left"):
            save(where, 6)
    assert len(calls) == nth
    assert contents(where.folder) == before
    save(where, 6)
    assert step_of(where.newest(9)) == 6


def test_a_file_has_its_name_only_once_it_is_whole_and_tensors_come_before_facts(
    tmp_path, monkeypatch
):
    where = states(tmp_path)
    renamed, synchronised = [], []
    real_replace, real_fsync = Path.replace, os.fsync

    def replace_(path, target):
        assert path.name == f"{target.name}{BEGUN}"
        assert not target.exists()
        assert len(synchronised) == 2 * len(renamed) + 1  # the file, not yet its folder
        renamed.append(target.suffix)
        return real_replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_)
    monkeypatch.setattr(os, "fsync", lambda fd: (synchronised.append(fd), real_fsync(fd)))
    save(where, 6)
    assert renamed == [DATA, FACTS]


def test_sweeping_removes_what_killed_writers_left_and_nothing_else(tmp_path):
    where, other = states(tmp_path), states(tmp_path, run("other", after=1))
    where.want(9)
    save(where, 2, 4)
    save(other, 3)
    where.owner.write_text("process 1 on here")
    (where.folder / "notes.txt").touch()
    before = contents(where.folder)
    for left in (f"{where.name(6)}{DATA}", f"{other.name(7)}{DATA}"):
        (where.folder / left).write_bytes(b"tensors without facts")
    for left in (f"{where.name(6)}{FACTS}", f"{where.name(8)}{DATA}", f"{other.name(3)}{DATA}"):
        (where.folder / f"{left}{BEGUN}").write_bytes(b"half")
    (where.folder / ".tmpXIXBz").write_bytes(b"half of the library's own")
    where.sweep()
    assert contents(where.folder) == before


# --- what is kept ---


def test_wanted_states_are_kept_and_of_the_others_the_newest_two(tmp_path):
    where = states(tmp_path)
    where.want(2)
    where.want(5)
    kept = []
    for step in range(1, 8):
        save(where, step)
        kept.append(steps_in(where))
    assert kept[3:] == [[2, 3, 4], [2, 3, 4, 5], [2, 4, 5, 6], [2, 5, 6, 7]]
    assert steps_in(where, DATA) == [2, 5, 6, 7]
    assert where.wanted() == {2, 5}


def test_a_run_can_want_a_state_that_another_one_is_to_pass(tmp_path):
    trunk, branch = states(tmp_path, run("a", after=5)), states(tmp_path, run("b", after=5))
    branch.want(4)
    branch.want(7)
    assert trunk.wanted() == {4}
    save(trunk, 2, 4, 5, 6, 7, 8)
    assert steps_in(trunk) == [4, 7, 8]
    assert step_of(branch.newest(9)) == 4


def test_a_finished_run_keeps_only_what_is_wanted(tmp_path):
    where = states(tmp_path)
    where.want(4)
    where.want(9)
    save(where, 4, 6, 8, 9)
    where.finish()
    assert steps_in(where) == steps_in(where, DATA) == [4, 9]
    assert steps_in(where, WANTED) == [4, 9]


def test_runs_with_another_first_step_have_another_folder(tmp_path):
    one, two = states(tmp_path, run("a")), states(tmp_path, run("b"))
    again = States(tmp_path, "finetune", run("a"))
    assert len({one.folder, two.folder, again.folder}) == 3
    assert states(tmp_path, run("c", after=1)).folder == states(tmp_path, run("d", after=1)).folder


def test_states_of_another_branch_are_never_returned_and_never_removed(tmp_path):
    one, two = states(tmp_path, run("a", after=4)), states(tmp_path, run("b", after=4))
    assert one.folder == two.folder
    save(two, 3, 5, 6)
    theirs = contents(two.folder)
    assert step_of(one.newest(9)) is None  # two has pruned the shared one
    save(one, 5, 6, 7, 8)
    one.finish()
    one.sweep()
    assert one.own(FACTS) == []
    assert contents(one.folder) == theirs
    assert step_of(two.newest(9)) == 6


def test_what_two_branches_share_is_found_by_both(tmp_path):
    one, two = states(tmp_path, run("a", after=4)), states(tmp_path, run("b", after=4))
    save(one, 4, 5)
    assert (step_of(one.newest(9)), step_of(two.newest(9))) == (5, 4)
    assert two.has(4)
    assert not two.has(5)


def test_what_was_just_saved_stays_whatever_newer_states_are_there(tmp_path):
    """With MASKDM_EXACT=1 a run begins anew below states of another arithmetic."""
    where = states(tmp_path)
    save(where, 6, 8)
    save(where, 2)
    assert where.has(2)


# --- fingerprints ---

GRID = 8
TRAJECTORY = {
    "data": "3f",
    "seed": 0,
    "params": {"betas": [0.9, 0.99], "weight_decay": 0.0, "clip": 1.0, "ema_images": 64},
}


def masked(rate, strategy="patch", block_size=2):
    return make_mask(MaskParams(strategy=strategy, rate=rate, block_size=block_size), GRID)


LEG = Leg(masked(0.5), 4000, batch_size=8, lr=1e-3, warmup=10)


def plain(steps, cooldown=0, leg=LEG, **changes):
    return Schedule((replace(leg, steps=steps),), steps, cooldown, **changes)


def shared(one, two, most=None):
    """Return after how many steps two schedules still have one fingerprint."""
    equal = [
        prefix(TRAJECTORY, one, step) == prefix(TRAJECTORY, two, step)
        for step in range(1, (most or min(one.steps, two.steps)) + 1)
    ]
    assert equal == sorted(equal, reverse=True), "shared again after they had parted"
    return sum(equal)


def test_a_run_of_2000_steps_is_the_beginning_of_one_of_4000():
    assert shared(plain(2000), plain(4000)) == 2000


def test_a_cool_down_shares_the_trunk_and_not_its_own_first_step():
    assert shared(plain(100, cooldown=20), plain(100)) == 80
    assert shared(plain(100, cooldown=20), plain(200, cooldown=20)) == 80
    assert shared(plain(100, cooldown=20), plain(100, cooldown=30)) == 70
    assert shared(plain(100, cooldown=20), plain(100, cooldown=20)) == 100


def test_legs_that_differ_later_share_what_is_before():
    first = replace(LEG, steps=30)
    one, two = (
        Schedule((first, replace(LEG, mask=mask, steps=20)), 50)
        for mask in (masked(0.25), nothing_masked(GRID))
    )
    assert shared(one, two) == 30
    assert shared(one, plain(50)) == 30
    assert shared(one, Schedule((first,), 30), most=30) == 30


CHANGES = {
    "the data": ({"data": "4f"}, {}),
    "the seed": ({"seed": 1}, {}),
    "the optimiser": ({"params": TRAJECTORY["params"] | {"betas": [0.9, 0.999]}}, {}),
    "the mask rate": ({}, {"leg": replace(LEG, mask=masked(0.75))}),
    "the strategy": ({}, {"leg": replace(LEG, mask=masked(0.5, "block"))}),
    "the block size": ({}, {"leg": replace(LEG, mask=masked(0.5, "block", 4))}),
    "the batch size": ({}, {"leg": replace(LEG, batch_size=16)}),
    "the learning rate": ({}, {"leg": replace(LEG, lr=2e-3)}),
    "the warm-up": ({}, {"leg": replace(LEG, warmup=11)}),
    "the share of whole images": ({}, {"full_share": 0.25}),
    "a cool-down from the start": ({}, {"cooldown": 50}),
}


def test_what_acts_from_the_first_step_parts_all_fingerprints():
    prints = {
        what: [prefix(TRAJECTORY | other, plain(50, **changes), step) for step in range(1, 51)]
        for what, (other, changes) in (CHANGES | {"nothing": ({}, {})}).items()
    }
    assert len({text for run in prints.values() for text in run}) == 50 * len(prints)


def test_nominal_rates_that_round_to_one_window_are_one_run():
    one, two, other = (plain(9, leg=replace(LEG, mask=masked(r, "crop"))) for r in (0.7, 0.75, 0.8))
    assert one.mask(0).asked != two.mask(0).asked
    assert shared(one, two) == 9
    assert shared(one, other) == 0


def test_the_order_of_keys_does_not_count():
    turned = dict(reversed(TRAJECTORY.items()))
    assert list(turned) != list(TRAJECTORY)
    assert prefix(turned, plain(9), 5) == prefix(TRAJECTORY, plain(9), 5)


masks = st.sampled_from([masked(0.5), masked(0.75), masked(0.5, "block"), nothing_masked(GRID)])
legs = st.builds(
    Leg,
    mask=masks,
    steps=st.integers(1, 4),
    batch_size=st.sampled_from([2, 4]),
    lr=st.sampled_from([0.1, 0.2]),
    warmup=st.integers(0, 2),
)


@st.composite
def ends(draw, legs):
    """Return steps and a cool-down that fit, as those of a phase do (phases._fitting)."""
    steps = draw(st.integers(1, sum(leg.steps for leg in legs)))
    last = Schedule(legs, steps).stretches(steps)[-1]
    cooldown = draw(st.integers(0, max(0, last.steps - last.leg.warmup)))
    return steps, cooldown


@st.composite
def pairs(draw):
    """Return two schedules that often begin alike."""
    trunk = draw(st.lists(legs, max_size=2))
    shares = st.sampled_from([0.0, 0.25, 0.3])
    share = draw(shares)
    both = []
    for _ in range(2):
        row = tuple(trunk + draw(st.lists(legs, min_size=1, max_size=2)))
        both.append(Schedule(row, *draw(ends(row)), draw(st.just(share) | shares)))
    return both


def what_is_done(schedule, step):
    """Return what the step with index ``step`` does, from the functions that the loop asks."""
    size = schedule.leg(step)[0].batch_size
    return schedule.learning_rate(step), schedule.mask(step).identity, size


@settings(deadline=None, max_examples=300)
@given(pairs())
def test_equal_fingerprints_mean_equal_steps(schedules):
    one, two = schedules
    for step in range(shared(one, two)):
        assert what_is_done(one, step) == what_is_done(two, step)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_runs_on_the_same_legs_part_at_the_first_step_that_differs(data):
    row = tuple(data.draw(st.lists(legs, min_size=1, max_size=3)))
    share = data.draw(st.sampled_from([0.0, 0.3]))
    one, two = (Schedule(row, *data.draw(ends(row)), share) for _ in range(2))
    most = min(one.steps, two.steps)
    differing = [k for k in range(most) if what_is_done(one, k) != what_is_done(two, k)]
    assert shared(one, two) == min([most, *differing])


# --- the code ---

SOURCE = '''"""What it is."""

import torch

RATE = 0.5


@cache
def step(x: float, twice: bool = False) -> float:
    """Make a step."""
    # as in the paper
    y = x * RATE + 1
    if twice:
        check(x)
    check(y)
    print("done")
    return y
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    # as in the paper\n", ""),
        ("+ 1", "+ 1  # why"),
        ('    """Make a step."""\n', ""),
        ("Make a step.", "Make a step.\n\n    Args:\n        x: where."),
        ('"""What it is."""\n', ""),
        ("RATE = 0.5", "RATE = (\n    0.5\n)\n\n"),
        ('"done"', "'done'"),
        ("(x: float, twice: bool = False)", "(\n    x: float,\n    twice: bool = False,\n)"),
    ],
)
def test_comments_docstrings_and_layout_mean_nothing(old, new):
    assert SOURCE.count(old) == 1
    assert meaning(SOURCE.replace(old, new)) == meaning(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.5", "0.25"),
        ("x * RATE", "x / RATE"),
        ("x * RATE + 1", "x * (RATE + 1)"),
        ("twice: bool = False", "twice: bool = True"),
        ("twice: bool = False", "twice: bool"),
        ("@cache\n", ""),
        ("@cache", "@torch.no_grad()"),
        ("    check(y)\n", ""),
        ("        check(x)\n", "        pass\n"),
        ("    check(y)\n", "    check(y)\n    check(y)\n"),
        ('"done"', '"over"'),
        ('    print("done")\n', '    note = "done"\n'),
        ("    return y\n", "return y\n"),
        ("import torch\n", "import numpy as torch\n"),
    ],
)
def test_everything_else_means_something(old, new):
    assert SOURCE.count(old) == 1
    changed = SOURCE.replace(old, new)
    assert meaning(changed) != meaning(SOURCE)


def test_a_function_that_is_only_a_docstring_still_has_a_meaning():
    assert meaning('def f():\n    """Do nothing."""\n') == meaning("def f():\n    pass\n")


def test_imports_are_followed_also_inside_functions_and_not_out_of_the_package(tmp_path):
    files = {
        "top": "import os\nimport ours.plain\nfrom ours import named\n",
        "plain": "def f():\n    from ours.inside import g\n    return g\n",
        "named": "class A:\n    def f(self):\n        import ours.deep.below\n",
        "inside": "from ours.top import circle\nfrom theirs import x\n",
        "deep/below": "",
        "lonely": "import ours.top\n",
    }
    for name, text in files.items():
        path = tmp_path / f"ours/{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "theirs.py").touch()
    found = modules(("ours.top",), tmp_path, ("ours",))
    assert set(found) == {"ours.top", "ours.plain", "ours.named", "ours.inside", "ours.deep.below"}
    assert found["ours.deep.below"] == tmp_path / "ours/deep/below.py"


def test_all_that_is_loaded_for_a_step_counts_and_stages_and_evaluation_do_not():
    """Python itself says what the roots load; imports inside functions come on top."""
    script = (
        "import importlib, sys\n"
        "from maskdm.training.checkpoints.fingerprint import ROOTS\n"
        "before = set(sys.modules)\n"
        "[sys.modules.pop(m) for m in before if m.split('.')[0] == 'maskdm']\n"
        "[importlib.import_module(root) for root in ROOTS]\n"
        "print(*[n for n, m in sys.modules.items() if n.startswith('maskdm.')"
        " and not hasattr(m, '__path__')])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    found = modules()
    assert {"maskdm.training.loop", "maskdm.training.ema", "maskdm.backbones.uvit"} <= set(loaded)
    assert set(loaded) <= set(found)
    assert not [name for name in found if name.startswith(("stages", "maskdm.evaluation"))]
    assert not {"maskdm.training.checkpoints.store", "maskdm.training.checkpoints.saver", "maskdm.training.checkpoints.remote"} & set(found)


@pytest.fixture
def copied(tmp_path):
    """``maskdm.training.checkpoints.fingerprint`` of a copy of the package, and the copy."""
    folder = tmp_path / "maskdm"
    shutil.copytree(ROOT / "maskdm", folder, ignore=shutil.ignore_patterns("__pycache__"))
    spec = importlib.util.spec_from_file_location("copied_fingerprint", folder / "fingerprint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, folder


def changed(module, path, addition):
    """Return the code's hash when ``addition`` stands at the end of a file."""
    before = path.read_text()
    path.write_text(before + addition)
    module.code.cache_clear()
    found = module.code()
    path.write_text(before)
    return found


def test_a_change_in_any_module_that_computes_a_step_changes_the_codes_hash(copied):
    module, folder = copied
    paths = module.modules().values()
    assert all(path.is_relative_to(folder) for path in paths)
    assert module.code() == fingerprint.code()
    hashes = {changed(module, path, "\nADDED = 1\n") for path in paths}
    assert len(hashes - {fingerprint.code()}) == len(paths) == len(modules())


def test_a_change_elsewhere_or_in_words_only_leaves_the_codes_hash(copied):
    module, folder = copied
    assert changed(module, folder / "training.py", "\n# a remark\n") == fingerprint.code()
    for other in ("saving.py", "states.py", "evaluation/distances.py", "__init__.py"):
        assert (folder / other).exists()
        assert changed(module, folder / other, "\nADDED = 1\n") == fingerprint.code()


# --- one writer at a time ---


def test_only_one_holds_the_states_of_a_trajectory(tmp_path):
    one, two = states(tmp_path, run("a", after=3)), states(tmp_path, run("b", after=3))
    other = states(tmp_path, run("c"))
    one.lock.acquire(timeout=0)
    with pytest.raises(Timeout):
        two.lock.acquire(timeout=0)
    with other.lock.acquire(timeout=0):
        pass
    one.lock.release()
    with two.lock.acquire(timeout=0):
        pass
    assert list(folders(tmp_path)) == sorted([one.folder, other.folder])


def test_a_killed_process_holds_nothing(tmp_path):
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from maskdm.training.checkpoints.store import States\n"
        "held = States(Path(sys.argv[1]), 'pretrain', lambda step: sys.argv[2])\n"
        "held.open()\n"
        "held.lock.acquire(timeout=0)\n"
        "held.owner.write_text('process 1 on here')\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    name = run()(1)
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), name], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        where = states(tmp_path)
        with pytest.raises(Timeout):
            where.lock.acquire(timeout=0)
        assert where.holder() == ": process 1 on here"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with where.lock.acquire(timeout=0):
            assert where.lock.is_locked
    finally:
        holder.kill()
        holder.communicate()


def test_what_is_written_is_the_librarys_format_with_the_modes_of_any_file(tmp_path):
    content = {"b": torch.arange(3), "a": torch.rand(2, 5), "c": torch.zeros(())}
    write_tensors(content, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == safetensors.torch.save(content)
    (tmp_path / "y").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


def test_what_the_system_says_of_a_file_is_raised_as_its_error(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(IsADirectoryError):
        write_tensors({"a": torch.zeros(3)}, tmp_path / "x")
