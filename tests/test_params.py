"""Wrong parameters get a sentence that names the key, the value and what is allowed."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from benchmarks.presets import read_preset
from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.model_folder import ModelConfig, save_model
from maskdm.backbones.registry import BACKBONES, ModelParams
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.masking import MaskParams
from maskdm.runtime.errors import UserError
from maskdm.runtime.folders import same_folder
from maskdm.runtime.params import (
    ParamsError,
    fault_of_name,
    read_params,
    read_section,
    validate,
)
from maskdm.training.phases import PretrainParams
from stages.check import check

LAPTOP = "presets/laptop.yaml"


def written(content, path):
    """Write params and return their file."""
    with path.open("w") as file:
        YAML().dump(content, file)
    return path


@pytest.fixture
def with_change(tmp_path):
    """Return a function that writes the laptop preset with some keys changed, and its path."""

    def write(*changes):
        content = read_params(LAPTOP)
        for key, value in zip(changes[::2], changes[1::2], strict=True):
            *sections, last = key.split(".")
            section = content
            for name in sections:
                section = section[name]
            if value is ...:
                del section[last]
            else:
                section[last] = value
        return written(content, tmp_path / "params.yaml")

    return write


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("mask.rate", "abc", r"mask\.rate is 'abc'.*valid number.*0 <= rate < 1"),
        ("mask.rate", None, r"mask\.rate is None.*0 <= rate < 1"),
        ("mask.rate", [1, 2], r"mask\.rate is \[1, 2\].*0 <= rate < 1"),
        ("mask.rate", float("inf"), r"mask\.rate is inf.*0 <= rate < 1"),
        ("mask.rate", float("nan"), r"mask\.rate is nan.*0 <= rate < 1"),
        ("mask.rate", 1.0, r"mask\.rate is 1\.0.*less than 1"),
        ("mask.rate", True, r"mask\.rate is True.*0 <= rate < 1"),
        ("mask.rat", 0.5, r"mask\.rat is not a parameter.*strategy, rate, block_size.*'rate'\?"),
        ("mask.strategy", "blok", r"mask\.strategy is 'blok'.*patch.*block.*crop"),
        ("mask.rate", ..., r"mask\.rate is missing.*share of patches hidden"),
        ("seed", "zero", r"seed is 'zero'.*whole number >= 0"),
        ("seed", -1, r"seed is -1.*whole number >= 0"),
        ("pretrain.steps", 10.5, r"pretrain\.steps is 10\.5.*whole number"),
        ("pretrain.betas", [0.9], r"pretrain\.betas.*list of two numbers"),
        (
            "pretrain.legs",
            [{"rat": 0.75, "steps": 5}],
            r"legs\.0\.rat is not a parameter; 'pretrain\.legs\.0' takes rate, steps, "
            r"batch_size, lr, warmup\. Did you mean 'rate'\?",
        ),
        (
            "pretrain.legs",
            [{"rate": 0.75, "steps": 5}, {"rate": 1.5, "steps": 5}],
            r"pretrain\.legs\.1\.rate is 1\.5.*the share of patches hidden, 0 <= rate < 1",
        ),
        ("pretrain.legs", [], r"pretrain\.legs is \[\].*a list of \{rate, steps"),
        ("pretrain.lr", 1e-320, r"pretrain\.lr is 1e-320.*AdamW, >= 1e-10"),
        ("pretrain.clip", 1e-320, r"pretrain\.clip is 1e-320.*norm, >= 1e-8, or null"),
        ("finetune.weight_decay", 1e308, r"finetune\.weight_decay is 1e\+308.*0 to 1000"),
        (
            "pretrain.legs",
            [{"rate": 0.75, "steps": 5, "lr": 1e-320}],
            r"pretrain\.legs\.0\.lr is 1e-320.*AdamW, >= 1e-10",
        ),
        ("pretrain.lr", "fast", r"pretrain\.lr is 'fast'.*peak learning rate"),
        ("finetune.clip", 0, r"finetune\.clip is 0.*greater than or equal to "),
        ("finetune.precision", "int8", r"finetune\.precision is 'int8'.*fp32.*bf16.*fp16"),
        ("data.source", "imagenette", r"data\.source is 'imagenette'.*openmoji"),
        ("data.background", "vanilla", r"data\.background is 'vanilla'.*colour"),
        ("data.heldout", 0, r"data\.heldout is 0.*between 0 and 1"),
        ("fid.features.extractor", "vgg", r"fid\.features\.extractor is 'vgg'.*inception"),
        ("model.patch", 5, r"model\.patch is 5.*data\.resolution 32.*1, 2, 4, 8, 16, 32"),
        ("model.depth", 8, r"model\.depth is 8.*odd number, 7 or 9"),
        ("model.heads", 5, r"model\.dim is 96.*multiple of 20 for 5 heads.*100"),
        ("finetune.init", "models/none", r"finetune\.init is 'models/none'.*no model folder"),
        ("finetune.cooldown", 10**6, r"finetune\.cooldown \(1000000\).*longer than.*shorten"),
        ("sample.eta", 0.5, r"sample\.eta is 0\.5.*ddpm always adds all of its noise.*ddim"),
        ("msk", {"rate": 0.5}, r"unknown section 'msk'.*seed, data, model"),
        ("mask", ..., r"no section 'mask'"),
        ("mask", 0.5, r"mask is 0\.5"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_what_is_allowed(
    with_change, key, value, sentence
):
    path = with_change(key, value)
    with pytest.raises(UserError) as refusal:
        check(path)
    assert re.search(sentence, str(refusal.value), re.DOTALL), str(refusal.value)


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [("data.size", 32, "data.resolution"), ("pretrain.stages", None, "pretrain.legs")],
)
def test_a_key_of_a_former_version_is_refused_by_its_new_name_and_by_nothing_else(
    with_change, old, value, new
):
    """The new key is not there, but that it is missing is no second fault."""
    with pytest.raises(ParamsError) as refusal:
        check(with_change(old, value, new, ...))
    assert str(refusal.value).endswith(f"params.yaml: {old} is called {new} now: rename it.")
    with pytest.raises(ParamsError) as refusal:  # the rest is still told
        check(with_change(old, value, new, ..., f"{old.split('.')[0]}.nonsense", 1))
    assert "missing" not in str(refusal.value)
    assert "nonsense is not a parameter" in str(refusal.value)
    check(with_change())


def test_a_key_that_is_missing_is_told_beside_one_that_was_renamed(with_change):
    path = with_change("pretrain.stages", None, "pretrain.legs", ..., "pretrain.lr", ...)
    with pytest.raises(ParamsError) as refusal:
        check(path)
    assert "pretrain.stages is called pretrain.legs now" in str(refusal.value)
    assert "pretrain.lr is missing" in str(refusal.value)
    assert "pretrain.legs is missing" not in str(refusal.value)


def test_a_block_size_that_does_not_fit_is_refused_only_where_blocks_are_used(with_change):
    content = read_params(LAPTOP)["mask"] | {"block_size": 3}
    check(with_change("mask", content | {"strategy": "patch"}))
    with pytest.raises(UserError, match=r"block_size is 3.*8×8.*1, 2, 4, 8"):
        check(with_change("mask", content | {"strategy": "block"}))


def test_all_faults_are_told_at_once(with_change):
    path = with_change("seed", -1, "mask.rate", "abc", "pretrain.lr", 0)
    with pytest.raises(ParamsError) as refusal:
        check(path)
    assert all(key in str(refusal.value) for key in ("seed", "mask.rate", "pretrain.lr"))


@pytest.mark.parametrize("text", ["1e-5", "1e-05", "1E-5", "1.0e-5", "0.00001"])
def test_numbers_as_dvc_writes_them_are_numbers(tmp_path, text):
    content = Path(LAPTOP).read_text().replace("lr: 1.0e-3", f"lr: {text}")
    path = tmp_path / "params.yaml"
    path.write_text(content)
    assert read_section(path, "pretrain", PretrainParams).lr == 1e-5


@settings(max_examples=50)
@given(st.text(min_size=1))
def test_no_text_passes_for_a_number(text):
    with pytest.raises(ParamsError, match=r"mask\.rate"):
        validate({"strategy": "patch", "rate": text, "block_size": 1}, "mask", MaskParams)


def test_a_missing_or_broken_file_is_told(tmp_path):
    with pytest.raises(ParamsError, match=r"There is no .*nothing\.yaml"):
        read_params(tmp_path / "nothing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("seed: [1")
    with pytest.raises(ParamsError, match="not valid YAML"):
        read_params(broken)
    broken.write_text("just text")
    with pytest.raises(ParamsError, match="no sections"):
        read_params(broken)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3\n", 'line 3, column 1: found duplicate key "a" with value "3"'),
        ("a:\n\tb: 1\n", "line 2, column 1: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: but found another document"),
        ("a: \x07\n", "unacceptable character #x0007"),
        ("a: !!bool x\n", "'x'"),
        ("? [[a]]\n: 1\n? {b: 2}\n: 3\n", "unhashable type"),
        ("a: 2020-13-45\n", "month must be in 1..12"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
)
def test_a_fault_of_yaml_is_one_line_that_says_where(tmp_path, text, fault):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError) as caught:
        read_params(path)
    said = str(caught.value)
    assert said.startswith(f"{path} is not valid YAML: ")
    assert fault in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("cat", None),
        ("Größe 猫 👩‍⚖️", None),
        ("x" * 1000, None),
        ("x" * 1001, "more than 1000"),
        ("a\udcff", "UTF-8"),
        ("\x1b[31mred", "control characters"),
        ("a\nb", "control characters"),
        ("a\x9b1m", "control characters"),
        ("a\u2028b", "control characters"),
    ],
)
def test_a_name_is_text_that_no_terminal_obeys(name, fault):
    found = fault_of_name(name)
    assert (found is None) == (fault is None)
    assert (fault or "") in (found or "")


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (Path.mkdir, "is a folder"),
        (os.mkfifo, "is no ordinary file"),  # it would be waited for without end
        (lambda path: path.symlink_to("/dev/zero"), "is no ordinary file"),
        (lambda path: path.write_text("a: 1\n" * 10**5), "is larger than 32768 bytes"),
    ],
)
def test_what_is_no_small_file_is_no_params_file(tmp_path, make, fault):
    make(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match=f"params.yaml is no params file: it {fault}"):
        read_params(tmp_path / "params.yaml")


def nested(first, line):
    """Return ten sections of which each holds the one before nine times."""
    names = "bcdefghijk"
    lines = [f"{name}: &{name} {line(['*' + 'abcdefghij'[n]] * 9)}" for n, name in enumerate(names)]
    return "\n".join([f"a: &a {first}", *lines, "seed: *k"])


@pytest.mark.parametrize(
    "text",
    [
        nested("[x]", lambda names: f"[{', '.join(names)}]"),
        nested("{x: 1}", lambda n: f"{{{', '.join(f'k{i}: {a}' for i, a in enumerate(n))}}}"),
        nested("{x: 1}", lambda names: f"{{<<: [{', '.join(names)}]}}"),
        f"a: &a {'x' * 9000}\nseed: [{'*a, ' * 5000}]",
    ],
)
def test_aliases_do_not_make_much_of_little(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match="its aliases stand for more than 65536 characters"):
        read_params(path)


def test_aliases_of_a_usual_size_are_taken_and_one_of_itself_is_not(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: &a {x: 1}\nb: {<<: *a, y: *a}\nc: [*a, *a]")
    assert read_params(path) == {
        "a": {"x": 1},
        "b": {"x": 1, "y": {"x": 1}},
        "c": [{"x": 1}, {"x": 1}],
    }
    path.write_text("a: &a {x: *a}")
    with pytest.raises(ParamsError, match="an alias stands for what it is in"):
        read_params(path)


def test_many_unknown_sections_of_long_names_are_a_short_message(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(f"{'x' * 400}{n}: 1" for n in range(60)))
    with pytest.raises(ParamsError, match="has 30 more of them") as caught:
        check(path)
    assert len(str(caught.value)) < 20_000


def test_sections_cannot_be_changed_after_reading():
    params = read_section(LAPTOP, "pretrain", PretrainParams)
    with pytest.raises(ValueError, match="frozen"):
        params.steps = 5


@pytest.mark.parametrize(
    ("phase", "key", "value", "instead"),
    [("finetune", "guidance_scale", 1.5, 1), ("pretrain", "guide_class", "hidden", "shown")],
)
def test_guidance_of_a_network_that_never_saw_the_null_label_is_refused(
    phase, key, value, instead, tmp_path
):
    content, path = read_preset("laptop"), tmp_path / "params.yaml"
    content["sample"][key] = value
    check(written(content, path))
    content[phase]["label_dropout"] = 0.0
    sentence = rf"sample\.{key} is {value}, but {phase}\.label_dropout is 0.* {key} to {instead}\."
    with pytest.raises(UserError, match=sentence):
        check(written(content, path))
    content["sample"][key] = instead
    check(written(content, path))


def test_a_middle_is_masked_only_where_there_is_one(tmp_path, monkeypatch):
    content, path = read_preset("laptop"), tmp_path / "params.yaml"
    content["mask"]["scope"] = "middle"
    check(written(content, path))
    content["model"]["depth"] = 1
    with pytest.raises(UserError, match=r"model\.depth is 1, which leaves no blocks between"):
        check(written(content, path))

    class Whole(Denoiser):
        def forward(self, tokens, positions, time, label=None):
            return tokens

    monkeypatch.setitem(BACKBONES, "whole", lambda *args, **kwargs: Whole())
    content["model"]["backbone"] = "whole"
    with pytest.raises(UserError, match=r"'whole' takes no argument 'middle'.*scope to image"):
        check(written(content, path))


def test_moments_are_kept_only_from_a_model_that_has_some(tmp_path):
    content, path = read_preset("laptop"), tmp_path / "params.yaml"
    content["finetune"]["optimiser"] = "kept"
    content["data"]["classes"] = False
    check(written(content, path))  # pretraining will leave them
    model = read_section(content, "model", ModelParams)
    diffusion = read_section(content, "diffusion", DiffusionParams)
    about = ModelConfig(
        size=32, channels=3, classes=None, seed=0, model=model, diffusion=diffusion, training=[]
    )
    raw, averaged = (dict(about.backbone().named_parameters()) for _ in range(2))
    save_model(tmp_path / "other", about, raw, averaged)
    content["finetune"]["init"] = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"has no optimiser\.safetensors.*to fresh"):
        check(written(content, path))


NAMES = ["models/{}", "./models/{}", "models/{}/", "models//{}", "models/../models/{}", "{here}"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_the_pipeline_is_known_by_whatever_name(with_change, name):
    """They are not there yet: pretraining will make the one, and the other is no guide."""
    pretrain, finetune = (
        name.format(folder, here=Path(f"models/{folder}").absolute())
        for folder in ("pretrain", "finetune")
    )
    check(with_change("finetune.init", pretrain, "sample.guide", pretrain))
    with pytest.raises(UserError, match="which is no other model"):
        check(with_change("sample.guide", finetune, "sample.guide_scale", 2.0))
    with pytest.raises(UserError, match=r"pretrain\.steps: 0 leaves untrained"):
        check(with_change("sample.guide", pretrain, "pretrain.steps", 0))
    assert not same_folder("models/\0", "models/pretrain")
