"""Fingerprints: equal for runs that have done the same so far, and for no others."""

import importlib.util
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.diffusion.masking import nothing_masked
from maskdm.training.checkpoints.fingerprint import code_hash, digest, meaning, modules
from maskdm.training.schedule import Leg, Schedule
from maskdm.training.setup import COMPUTES_STEPS
from tests.support.training import GRID, masked

ROOT = Path(__file__).parent.parent
RECIPE = {
    "data": "3f",
    "seed": 0,
    "params": {"betas": [0.9, 0.99], "weight_decay": 0.0, "clip": 1.0, "ema_images": 64},
}
LEG = Leg(masked(0.5), 4000, batch_size=8, lr=1e-3, warmup=10)


def plain(steps, cooldown=0, leg=LEG, **changes):
    return Schedule((replace(leg, steps=steps),), steps, cooldown, **changes)


def fingerprint(recipe, schedule, step):
    """Return what maskdm.training.setup names a state by."""
    return digest({"recipe": recipe, "schedule": schedule.prefix(step)})


def shared(one, two, most=None):
    """Return after how many steps two schedules still have one fingerprint."""
    equal = [
        fingerprint(RECIPE, one, step) == fingerprint(RECIPE, two, step)
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
    "the optimiser": ({"params": RECIPE["params"] | {"betas": [0.9, 0.999]}}, {}),
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
        what: [fingerprint(RECIPE | other, plain(50, **changes), step) for step in range(1, 51)]
        for what, (other, changes) in (CHANGES | {"nothing": ({}, {})}).items()
    }
    assert len({text for run in prints.values() for text in run}) == 50 * len(prints)


def test_nominal_rates_that_round_to_one_window_are_one_run():
    one, two, other = (plain(9, leg=replace(LEG, mask=masked(r, "crop"))) for r in (0.7, 0.75, 0.8))
    assert one.mask(0).asked != two.mask(0).asked
    assert shared(one, two) == 9
    assert shared(one, other) == 0


def test_the_order_of_keys_does_not_count():
    turned = dict(reversed(RECIPE.items()))
    assert list(turned) != list(RECIPE)
    assert fingerprint(turned, plain(9), 5) == fingerprint(RECIPE, plain(9), 5)


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


@pytest.mark.slow
def test_all_that_is_loaded_for_a_step_counts_and_stages_and_evaluation_do_not():
    """Python itself says what the roots load; imports inside functions come on top."""
    script = (
        "import importlib, sys\n"
        "from maskdm.training.setup import COMPUTES_STEPS\n"
        "before = set(sys.modules)\n"
        "[sys.modules.pop(m) for m in before if m.split('.')[0] == 'maskdm']\n"
        "[importlib.import_module(root) for root in COMPUTES_STEPS]\n"
        "print(*[n for n, m in sys.modules.items() if n.startswith('maskdm.')"
        " and not hasattr(m, '__path__')])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    found = modules(COMPUTES_STEPS)
    assert {"maskdm.training.loop", "maskdm.training.ema", "maskdm.backbones.uvit"} <= set(loaded)
    assert set(loaded) <= set(found)
    assert not [name for name in found if name.startswith(("stages", "maskdm.evaluation"))]
    checkpoints = {name for name in found if name.startswith("maskdm.training.checkpoints.")}
    assert checkpoints == {"maskdm.training.checkpoints.fingerprint"}


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """``maskdm.training.checkpoints.fingerprint`` of a copy of the package, and the copy."""
    folder = tmp_path / "maskdm"
    shutil.copytree(ROOT / "maskdm", folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "training/checkpoints/fingerprint.py"
    spec = importlib.util.spec_from_file_location("copied_fingerprint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Of many hashes of nearly the same files, each file is parsed once.
    monkeypatch.setattr(module, "meaning", cache(module.meaning))
    parsed, imports = {}, module.imports

    def remembered(path):
        key = path.read_text()
        if key not in parsed:
            parsed[key] = list(imports(path))
        return parsed[key]

    monkeypatch.setattr(module, "imports", remembered)
    return module, folder


def changed(module, path, addition):
    """Return the code's hash when ``addition`` stands at the end of a file."""
    before = path.read_text()
    path.write_text(before + addition)
    module.code_hash.cache_clear()
    found = module.code_hash(*COMPUTES_STEPS)
    path.write_text(before)
    return found


def test_a_change_in_any_module_that_computes_a_step_changes_the_codes_hash(copied):
    module, folder = copied
    paths = module.modules(COMPUTES_STEPS).values()
    assert all(path.is_relative_to(folder) for path in paths)
    here = code_hash(*COMPUTES_STEPS)
    assert module.code_hash(*COMPUTES_STEPS) == here
    hashes = {changed(module, path, "\nADDED = 1\n") for path in paths}
    assert len(hashes - {here}) == len(paths) == len(modules(COMPUTES_STEPS))


def test_a_change_elsewhere_or_in_words_only_leaves_the_codes_hash(copied):
    module, folder = copied
    here = code_hash(*COMPUTES_STEPS)
    assert changed(module, folder / "training/loop.py", "\n# a remark\n") == here
    for other in (
        "training/checkpoints/checkpointer.py",
        "training/checkpoints/store.py",
        "training/run.py",
        "evaluation/distances.py",
        "__init__.py",
    ):
        assert (folder / other).exists()
        assert changed(module, folder / other, "\nADDED = 1\n") == here
