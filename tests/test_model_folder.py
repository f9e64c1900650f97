"""A model on disk: everything comes back, nothing that does not fit gets in."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskdm.backbones.model_folder import (
    MOMENTS,
    ModelConfig,
    TrainedLeg,
    check_start,
    load_config,
    load_model,
    load_moments,
    load_weights,
    save_model,
    save_moments,
)
from maskdm.backbones.registry import ModelParams, build_backbone
from maskdm.diffusion.loss import DiffusionParams
from maskdm.runtime.errors import UserError
from tests.support.backbones import ALL


def config(**model):
    values = {"backbone": "uvit", "patch": 4, "dim": 32, "depth": 3, "heads": 2, "init": "paper"}
    return ModelConfig(
        size=16,
        channels=3,
        classes=None,
        seed=0,
        model=ModelParams(**(values | model)),
        diffusion=DiffusionParams(
            path="flow",
            prediction="x0",
            loss="velocity",
            times="uniform",
            times_mean=0.0,
            times_std=1.0,
        ),
        training=[
            TrainedLeg(
                phase=name,
                data="abc",
                mask="patch",
                mask_rate=0.75,
                visible=4,
                batch_size=4,
                steps=3,
                images=12,
                full_images=0,
                flops=100,
            )
            for name in ("pretrain", "finetune")
        ],
    )


@pytest.fixture(params=sorted(ALL))
def folder(request, tmp_path, own_is_registered):
    about = config(backbone=request.param)
    raw = dict(about.backbone().named_parameters())
    averaged = {name: tensor.detach() + 1 for name, tensor in raw.items()}
    save_model(tmp_path, about, raw, averaged)
    return tmp_path


def test_weights_and_config_come_back(folder):
    fresh = dict(load_config(folder).backbone().named_parameters())
    raw, about = load_model(folder, "raw")
    averaged, _ = load_model(folder, "averaged")
    assert about == load_config(folder)
    for name, tensor in raw.named_parameters():
        assert torch.equal(tensor, fresh[name])
        assert torch.equal(averaged.get_parameter(name), fresh[name] + 1)


@pytest.mark.parametrize("weights", ["raw", "averaged"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_never_written(weights, value, tmp_path):
    about = config()
    sets = {
        kind: {
            name: tensor.detach().clone() for name, tensor in about.backbone().named_parameters()
        }
        for kind in ("raw", "averaged")
    }
    next(iter(sets[weights].values())).flatten()[3] = value
    with pytest.raises(UserError, match=rf"not finite \({weights}\..* is one\): it is not written"):
        save_model(tmp_path / "model", about, sets["raw"], sets["averaged"])
    assert not (tmp_path / "model").exists()


def test_nothing_is_pickled(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    json.loads((folder / "config.json").read_text())


def test_the_same_model_gives_the_same_bytes(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("again")
    raw, about = load_model(folder, "raw")
    averaged, _ = load_model(folder, "averaged")
    save_model(other, about, dict(raw.named_parameters()), dict(averaged.named_parameters()))
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_the_cost_adds_up_over_phases():
    assert config().cost == {"steps": 6, "images": 24, "flops": 200}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("raw.head.weight"), r"head\.weight is missing"),
        (lambda t: t.update({"raw.extra": torch.zeros(1)}), r"extra is unexpected"),
        (
            lambda t: t.update({"raw.head.bias": torch.zeros(7)}),
            r"head\.bias has shape \(7,\) instead of \(48,\)",
        ),
    ],
)
def test_a_missing_unexpected_or_misshapen_tensor_is_refused_by_name(folder, change, sentence):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    network = load_config(folder).backbone()
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(UserError, match=sentence):
        load_weights(folder, "raw", network)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    load_weights(folder, "averaged", network)


def test_a_network_of_another_size_is_refused(folder):
    other = build_backbone(config(dim=64).model, 16, 3, 0)
    with pytest.raises(UserError, match=r"do not fit the network: "):
        load_weights(folder, "averaged", other)


def test_what_is_no_model_folder_says_so(tmp_path, folder):
    with pytest.raises(UserError, match=r"is no model folder: it has no config\.json"):
        load_model(tmp_path / "none", "raw")
    (folder / "model.safetensors").write_bytes(b"\x08")
    with pytest.raises(UserError, match="is damaged"):
        load_model(folder, "raw")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        load_config(folder)


def test_a_model_loads_at_twice_the_resolution_and_what_does_not_fit_is_still_refused(folder):
    about = load_config(folder)
    larger = build_backbone(about.model, 32, 3, seed=1)
    load_weights(folder, "raw", larger)
    before, _ = load_model(folder, "raw")
    stored = dict(before.named_parameters())
    same = [n for n, p in larger.named_parameters() if p.shape == stored[n].shape]
    assert all(torch.equal(larger.get_parameter(n), stored[n]) for n in same)
    assert len(stored) - len(same) <= 1  # learned positions, if there are any
    with pytest.raises(UserError, match=r"has shape \(32, 48\) instead of \(32, 16\)"):
        load_weights(folder, "raw", build_backbone(about.model, 32, 1, seed=1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"heads": 4}}, r"model\.heads '2', params\.yaml says '4'.*finetune\.init"),
        ({"model": {"backbone": "dit"}}, r"model\.backbone 'uvit', params\.yaml says 'dit'"),
        ({"diffusion": {"path": "vp-cosine"}}, r"diffusion\.path 'flow'.*says 'vp-cosine'"),
        ({"diffusion": {"prediction": "v"}}, r"diffusion\.prediction 'x0'.*says 'v'"),
        ({"classes": True}, r"has no classes: set data\.classes to false"),
    ],
)
def test_a_start_whose_weights_would_be_misread_is_refused(tmp_path, changes, sentence):
    """All of these have the same shapes, or a message about shapes would not name the cause."""
    before = config()
    model, diffusion = (
        getattr(before, name).model_copy(update=changes.get(name, {}))
        for name in ("model", "diffusion")
    )
    with pytest.raises(UserError, match=sentence):
        check_start(tmp_path, before, model, diffusion, changes.get("classes", False))
    check_start(tmp_path, before, before.model, before.diffusion, False)


def test_moments_come_back_and_learned_positions_are_fitted(tmp_path):
    about = config()
    network = about.backbone()
    averaged = dict(about.backbone().named_parameters())
    save_model(tmp_path, about, dict(network.named_parameters()), averaged)
    with pytest.raises(UserError, match=r"has no optimiser.safetensors.*set finetune.optimiser to"):
        load_moments(tmp_path, network)
    moments = {
        f"{kind}.{name}": made(p)
        for kind, made in {
            "exp_avg": torch.randn_like,  # of either sign
            "exp_avg_sq": torch.rand_like,
            "step": lambda _: torch.tensor(7.0),
        }.items()
        for name, p in network.named_parameters()
    }
    save_moments(tmp_path, moments)
    found = load_moments(tmp_path, network)
    assert found.keys() == moments.keys()
    assert all(torch.equal(found[name], moments[name]) for name in moments)

    larger = build_backbone(about.model, 32, 3, 0)  # a grid of 8 x 8 instead of 4 x 4
    fitted = load_moments(tmp_path, larger)
    for name, parameter in larger.named_parameters():
        assert fitted[f"exp_avg.{name}"].shape == parameter.shape
        assert fitted[f"exp_avg_sq.{name}"].min() >= 0
    assert fitted["exp_avg.positions"].min() < 0


# Model folders are files from strangers.


def saved(folder):
    """Write a model folder."""
    raw, averaged = (dict(config().backbone().named_parameters()) for _ in range(2))
    save_model(folder, config(), raw, averaged)


def hostile(**changes):
    """Return a change of config.json: a value by its dotted key."""

    def change(folder):
        path = folder / "config.json"
        content = json.loads(path.read_text())
        for key, value in changes.items():
            *above, last = key.split("__")
            inside = content
            for part in above:
                inside = inside[part]
            inside[last] = value
        path.write_text(json.dumps(content))

    return change


def raw_config(content):
    return lambda folder: (folder / "config.json").write_bytes(content)


def raw_weights(content):
    return lambda folder: (folder / "model.safetensors").write_bytes(content)


def not_finite(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )


def first_leg(**changes):
    def change(folder):
        path = folder / "config.json"
        content = json.loads(path.read_text())
        content["training"][0] |= changes
        path.write_text(json.dumps(content))

    return change


def of_type(kind, name="model.safetensors"):
    def change(folder):
        tensors = load_file(folder / name)
        save_file({name: tensor.to(kind) for name, tensor in tensors.items()}, folder / name)

    return change


def instead(make, name):
    """Return a change that puts something else where a file should be."""

    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (hostile(size=10**9), r"config\.size is 1000000000"),
        (hostile(size=0), r"config\.size is 0"),
        (hostile(channels=7), r"config\.channels is 7"),
        (hostile(channels=2), r"config\.channels is 2.*Allowed: 1 \(grey\) or 3 \(RGB\)"),
        (hostile(classes={}), r"config\.classes is \{\}"),
        (hostile(seed=-1), r"config\.seed is -1"),
        (hostile(seed=float("nan")), r"config\.seed is nan"),
        (hostile(model__dim=10**12), r"config\.model\.dim is 1000000000000"),
        (hostile(model__depth=10**9), r"config\.model\.depth is 1000000000"),
        (hostile(model__backbone="os.system"), "there is no such backbone"),
        (hostile(extra=1), r"config\.extra is not a parameter"),
        (hostile(**{f"k{i}": 1 for i in range(20_000)}), r"config\.k0 is not a parameter.* more"),
        (hostile(size="x" * 10**6), r"config\.size is 'x{199}…: "),
        (hostile(**{"x" * 10**6: 1}), r"config\.x{200}… is not a parameter"),
        (hostile(size=4096, model__patch=1), r"makes 16777216 patches .* at most 262144"),
        (hostile(model__dim=16384), r"config\.json: positions has shape \(17, 32\) instead"),
        (hostile(model__depth=255), r"config\.json: .* is missing; .* and \d+ more"),
        (hostile(classes={"cat": -1}), r"config\.classes\.cat is -1"),
        (hostile(classes={"cat": 10**31}), r"config\.classes\.cat is 10{31}"),
        (hostile(classes={"cat": 0, "dog": 0}), "no class has a training image"),
        (hostile(classes={"x" * 1001: 1}), r"config\.classes\.x{200}…"),
        (hostile(classes={f"{i}": 1 for i in range(10**5)}), "label_embedding.weight is missing"),
        (first_leg(steps=-1), r"config\.training\.0\.steps is -1"),
        (first_leg(flops=10**4000), r"config\.training\.0\.flops is 10{199}…: "),
        (first_leg(mask_rate=1.5), r"config\.training\.0\.mask_rate is 1\.5"),
        (first_leg(phase="x" * 10**6), r"config\.training\.0\.phase is 'x{199}…: "),
        (first_leg(phase="\x1b[31m"), r"phase is '\\x1b\[31m': it has control characters"),
        (first_leg(mask="a\x9b2J"), r"mask is 'a\\x9b2J': it has control characters"),
        (hostile(classes={"cat": 1, "\x1b[2J": 1}), "it has control characters"),
        (hostile(classes={"cat\ndog": 1}), "it has control characters"),
        (hostile(latents={"autoencoder": "a\x1bb"}), r"autoencoder is 'a\\x1bb': it has control"),
        (instead(os.mkfifo, "config.json"), "is damaged"),
        (instead(os.mkfifo, "model.safetensors"), "is no ordinary file"),
        (instead(os.mkdir, "config.json"), "is damaged"),
        (instead(os.mkdir, "model.safetensors"), "is no ordinary file"),
        (of_type(torch.int32), r"holds no weights: averaged\.embed\.bias is I32; .* more"),
        (of_type(torch.bool), "holds no weights: .* is BOOL"),
        (of_type(torch.complex64), "holds no weights: .* is C64"),
        (of_type(torch.float8_e4m3fn), "holds no weights: .* is F8_E4M3"),
        (raw_config(b"[]"), "config"),
        (raw_config(b"null"), "config"),
        (raw_config(b"\xff\xfe{}"), "is damaged"),
        (raw_config(b""), "is damaged"),
        (raw_config(b"[" * 100_000), "is damaged"),
        (raw_config(b'{"size": ' + b"9" * 5000 + b"}"), "config"),
        (raw_config(b" " * (2**24 + 1)), "is damaged"),
        (raw_weights(b""), "is damaged"),
        (raw_weights((2**62).to_bytes(8, "little") + b"{}"), "is damaged"),
        (raw_weights((2).to_bytes(8, "little") + b"{}"), "is missing"),
        (raw_weights((10**8).to_bytes(8, "little") + b" " * 1000), "is damaged"),
        (
            raw_weights(
                (95).to_bytes(8, "little")
                + b'{"raw.head.bias":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}'
                + b" " * 20
            ),
            "is damaged",
        ),
        (not_finite, r"weights in .* are not finite"),
    ],
)
def test_whatever_a_stranger_puts_into_a_model_folder_is_one_sentence(
    tmp_path, change, sentence, monkeypatch
):
    saved(tmp_path)
    change(tmp_path)
    if change is not not_finite:  # of all others the network is never built: it may be huge
        monkeypatch.setattr(ModelConfig, "backbone", None)
    with pytest.raises(UserError, match=sentence) as said:
        load_model(tmp_path, "raw")
    assert len(str(said.value)) < 7000
    assert "Traceback" not in str(said.value)


def test_weights_in_sixteen_bits_are_weights(tmp_path):
    saved(tmp_path)
    before, _ = load_model(tmp_path, "raw")
    of_type(torch.bfloat16)(tmp_path)
    after, _ = load_model(tmp_path, "raw")
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(old.bfloat16().float(), new)


def misshapen(folder):
    name = "exp_avg.head.weight"
    save_file(load_file(folder / MOMENTS) | {name: torch.zeros(3)}, folder / MOMENTS)


def incomplete(folder):
    tensors = load_file(folder / MOMENTS)
    save_file({n: t for n, t in tensors.items() if n != "step.head.bias"}, folder / MOMENTS)


def infinite(folder):
    tensors = load_file(folder / MOMENTS)
    save_file(tensors | {"step.head.bias": torch.tensor(torch.inf)}, folder / MOMENTS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (misshapen, r"exp_avg\.head\.weight has shape \(3,\) instead of \(48, 32\)\. Set finetune"),
        (incomplete, r"step\.head\.bias is missing"),
        (infinite, r"step\.head\.bias is not finite"),
        (of_type(torch.int32, MOMENTS), "holds no weights: .* is I32"),
        (lambda folder: (folder / MOMENTS).write_bytes(b"\x08"), "is damaged"),
    ],
)
def test_moments_from_a_stranger_that_do_not_fit_are_one_sentence(tmp_path, change, sentence):
    network = config().backbone()
    kinds = ("exp_avg", "exp_avg_sq", "step")
    save_moments(
        tmp_path,
        {
            f"{kind}.{name}": torch.zeros(() if kind == "step" else p.shape)
            for kind in kinds
            for name, p in network.named_parameters()
        },
    )
    load_moments(tmp_path, network)
    change(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_moments(tmp_path, network)


def test_positions_of_no_grid_at_all_are_refused_as_of_another_shape(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"raw.positions": torch.zeros(1, 32)}, path)
    with pytest.raises(UserError, match=r"positions has shape \(1, 32\) instead of \(17, 32\)"):
        load_weights(tmp_path, "raw", config().backbone())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_model_is_answered_with_its_folder(tmp_path, name):
    saved(tmp_path / "model")
    with pytest.raises(UserError, match=r"is a file of a model: give its folder, .*model\.$"):
        load_model(tmp_path / "model" / name, "raw")
