"""Every parameter with values that make no sense: one sentence each, quickly, and no traceback."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.presets import read_preset
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import Params, merge
from stages import check as stage
from tests.support.clones import ROOT

WRONG = (
    *(None, True, "", "many", "1e-4", [], {}, [1, 2, 3], [[0.9]], "nan", "²", "a\0b", "../..", "~"),
    *(-1, 0, 0.5, 1, 3, -0.5, 10**6, 10**12, 10**30, 10**400, 1e308, -1e308, 1e-320),
    *(math.nan, math.inf, -math.inf),
)
SECONDS = 10  # that one check may take


def leaves(params: Params, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys of every value."""
    for key, value in params.items():
        if isinstance(value, dict):
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key)


PRESET = read_preset("laptop")
LEAVES = list(leaves(PRESET))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return a function that checks params, and says what a user would be told."""
    monkeypatch.chdir(tmp_path)

    def checked(params: Params) -> str:
        monkeypatch.setattr(stage, "read_params", lambda _: params)
        start = time.monotonic()
        try:
            stage.check(Path("params.yaml"))
            said = ""
        except UserError as error:
            said = str(error)
        assert time.monotonic() - start < SECONDS
        return said

    return checked


@pytest.mark.parametrize("keys", LEAVES, ids=".".join)
def test_a_value_that_makes_no_sense_is_one_sentence(keys: tuple[str, ...], checked: Any) -> None:
    name = ".".join(keys)
    for value in WRONG:
        change: Any = value
        for key in reversed(keys):
            change = {key: change}
        said = checked(merge(PRESET, change) if len(keys) == 1 else _set(keys, value))
        kind = type(value).__name__
        if said:
            assert keys[-1] in said, f"{name}: {value!r} ({kind}): {said}"
            assert len(said) < 1000, f"{name}: {value!r}: {said}"
        elif isinstance(value, bool):
            either = isinstance(_get(keys), bool) or name == "data.classes"  # auto
            assert either, f"{name}: {value!r} is accepted"
        elif isinstance(value, float):
            assert math.isfinite(value), f"{name}: {value!r} is accepted"


# Bounds that docs/parameters.md promises: the last value that is taken, and the next beyond it.
BOUNDS: dict[str, tuple[Any, Any]] = {
    "pretrain.ema_images": (10**15, 10**15 + 1),
    "finetune.ema_images": (10**15, 10**15 + 1),
    "pretrain.noise_shift": (100, 100.1),
    "diffusion.times_mean": (20, 20.1),
    "diffusion.times_std": (20, 20.1),
    "pretrain.weight_decay": (1000, 1000.1),
    "finetune.label_dropout": (1, 1.1),
    "finetune.hflip": (1, 1.1),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_is_taken_and_what_is_beyond_it_is_refused_by_name(name: str, checked: Any) -> None:
    keys, (last, beyond) = tuple(name.split(".")), BOUNDS[name]
    assert checked(_set(keys, last)) == ""
    assert name in checked(_set(keys, beyond))


def _get(keys: tuple[str, ...]) -> Any:
    """Return the preset's own value."""
    value: Any = PRESET
    for key in keys:
        value = value[key]
    return value


def _set(keys: tuple[str, ...], value: Any) -> Params:
    """Return the preset with one other value, which is not merged even if it is a dict."""
    params = merge(PRESET)
    section = params
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    return params


def test_the_preset_itself_is_accepted(checked: Any) -> None:
    assert checked(PRESET) == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no sections"),
        (b"- 1\n", "holds no sections"),
        (b"seed: 0\nseed: 1\n", "not valid YAML"),
        (b"seed:\t0\n\tdata: 1\n", "not valid YAML"),
        (b"seed: [0\n", "not valid YAML"),
        (b"\xff\xfes\0e\0", "not UTF-8"),
        (b"seed: \x00\n", "not valid YAML"),
        (b"[" * 10_000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_params_file_is_one_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        stage.check(tmp_path / "params.yaml")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    text = (ROOT / "presets/laptop.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8-sig")
    stage.check(tmp_path / "params.yaml")


@pytest.mark.parametrize("key", ["finetune.init", "sample.guide"])
def test_a_model_that_an_experiment_of_its_own_does_not_see_is_explained(
    key: str, checked: Any, tmp_path: Path
) -> None:
    section, name = key.split(".")
    said = checked(merge(PRESET, {section: {name: "models/emoji"}}))
    assert "'models/emoji': models/emoji is no model folder" in said
    assert "give an absolute path" in said
    said = checked(merge(PRESET, {section: {name: str(tmp_path / "models/emoji")}}))
    assert "absolute path" not in said
