"""Guidance by a worse model: the primer, that masked pretraining leaves behind."""

import json

import numpy as np
import pytest
import torch

import maskdm
from maskdm.backbones.denoiser import Denoiser
from maskdm.diffusion.paths import PATHS
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import read_params
from maskdm.sampling.guidance import Guidance, X0Network, x0_denoiser
from maskdm.sampling.model import load_guided
from maskdm.sampling.sampler import check_sampling, network_passes
from maskdm.sampling.solvers import SOLVERS
from stages import sample
from stages.check import check
from tests.support.graph import ROOT
from tests.support.models import arrays, drawing, saved
from tests.support.training import DIFFUSION, MODEL

TIMES = (0.1, 0.5, 0.9)


class Says(Denoiser):
    """Estimates a number for every pixel, another one for the null label."""

    def __init__(self, value, null=0.0, classes=0):
        super().__init__()
        self.value, self.null, self.classes = value, null, classes
        self.called = []

    def forward(self, tokens, positions, time, label=None):
        self.called.append(len(tokens))
        values = torch.full((len(tokens),), self.value)
        if label is not None:
            values[label == self.classes] = self.null
        return values[:, None, None].expand_as(tokens)


def estimate(time, **settings):
    return x0_denoiser(**settings)(torch.zeros(2, 1, 4), torch.full((2,), time))


def network(*values, **options):
    return X0Network(Says(*values, **options), DIFFUSION)


def test_the_estimate_is_led_away_from_the_guide_within_its_interval():
    model, guide = network(0.2), network(0.1)
    by_guide = Guidance(3.0, (0.2, 0.7))
    for time in TIMES:
        led = estimate(time, network=model, guide=guide, by_guide=by_guide)
        expected = 0.2 + 2 * 0.1 if time == 0.5 else 0.2
        torch.testing.assert_close(led, torch.full_like(led, expected))
    assert guide.backbone.called == [2]
    assert estimate(0.5, network=model, guide=guide, by_guide=Guidance(99.0)).max() == 1  # clipped


def test_guidance_by_class_and_by_the_guide_add_up():
    model, guide = network(0.2, 0.15, classes=3), network(0.1, classes=3)
    both = {"by_class": Guidance(2.0), "guide": guide, "by_guide": Guidance(1.5)}
    led = estimate(0.5, network=model, labels=torch.tensor([0, 2]), **both)
    expected = 0.2 + 1.0 * (0.2 - 0.15) + 0.5 * (0.2 - 0.1)
    torch.testing.assert_close(led, torch.full_like(led, expected))


def test_a_guide_that_does_not_see_the_class_leads_towards_it_in_the_same_pass():
    model, guide = network(0.2, classes=3), network(0.1, 0.05, classes=3)
    hidden = {"guide": guide, "by_guide": Guidance(1.5), "guide_sees_class": False}
    led = estimate(0.5, network=model, labels=torch.tensor([0, 2]), **hidden)
    torch.testing.assert_close(led, torch.full_like(led, 0.2 + 0.5 * (0.2 - 0.05)))
    assert guide.backbone.called == [2]
    without = estimate(0.5, network=network(0.2), **(hidden | {"guide": network(0.1)}))
    torch.testing.assert_close(without, torch.full_like(without, 0.2 + 0.5 * (0.2 - 0.1)))


def test_whether_the_guide_sees_the_class_is_a_setting_of_everything_that_draws(tmp_path):
    classes = {"cat": 1, "owl": 1}
    model = maskdm.load(saved(tmp_path / "model", classes=classes), device="cpu")
    guided = model.guided_by(maskdm.load(saved(tmp_path / "guide", classes=classes, seed=1)))
    shown, hidden = (arrays(guided.sample(4, guide_class=how)) for how in ("shown", "hidden"))
    assert not np.array_equal(shown, hidden)
    assert np.array_equal(hidden, arrays(guided.sample(4)))
    with pytest.raises(UserError, match=r"sample\.guide_class.*'shown' or 'hidden'"):
        guided.sample(4, guide_class="seen")


@pytest.mark.parametrize("solver", SOLVERS)
def test_passes_are_counted_as_they_are_made(solver, tmp_path, monkeypatch):
    model = maskdm.load(saved(tmp_path / "model", classes={"cat": 1, "owl": 1}), device="cpu")
    guided = model.guided_by(maskdm.load(saved(tmp_path / "guide", classes={"cat": 1, "owl": 1})))
    params = drawing(
        solver=solver,
        nfe=7,
        guidance_scale=2.0,
        guidance_interval=[0.5, 1.0],
        guide="guide",
        guide_scale=1.5,
        guide_interval=[0.2, 0.9],
    )
    rows = 0

    def count(module, inputs, output):
        nonlocal rows
        rows += len(output)

    for one in (guided, guided.guide):
        one.backbone.register_forward_hook(count)
    guided.draw(params, range(3), guided.labels(None, 0, range(3)))
    passes = network_passes(params, PATHS["flow"], conditional=True)
    assert rows == 3 * passes
    assert passes > network_passes(drawing(solver=solver, nfe=7), PATHS["flow"], True) == 7


def test_a_model_that_guides_itself_changes_nothing_and_another_does(tmp_path):
    one, other = saved(tmp_path / "one"), saved(tmp_path / "other", seed=1)
    model = maskdm.load(one, device="cpu")
    plain, by_itself, by_other = (
        arrays(model.sample(3, nfe=4, guide=guide)).astype(int) for guide in (None, one, other)
    )
    assert abs(plain - by_itself).max() <= 1  # rounding
    assert abs(plain - by_other).max() > 1
    loaded = maskdm.load(other, device="cpu")
    assert np.array_equal(by_other, arrays(model.sample(3, nfe=4, guide=loaded)))
    assert np.array_equal(by_other, arrays(model.guided_by(loaded).sample(3, nfe=4)))
    assert np.array_equal(plain, arrays(model.sample(3, nfe=4, guide=other, guide_scale=1.0)))


def test_what_python_takes_by_default_is_what_the_demo_takes(tmp_path):
    section = read_params(ROOT / "presets/laptop.yaml")["sample"]
    taken = {key: section[key] for key in ("guide_scale", "guide_interval", "guide_class")}
    classes = {"cat": 1, "owl": 1}
    other = saved(tmp_path / "other", seed=1, classes=classes)
    model = maskdm.load(saved(tmp_path / "one", classes=classes))
    by_default, as_the_demo = model.sample(3, guide=other), model.sample(3, guide=other, **taken)
    assert np.array_equal(arrays(by_default), arrays(as_the_demo))
    everywhere = model.sample(3, guide=other, guide_interval=(0.0, 1.0))
    assert not np.array_equal(arrays(by_default), arrays(everywhere))
    shown = model.sample(3, guide=other, guide_class="shown")
    assert not np.array_equal(arrays(by_default), arrays(shown))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 32}, r"its resolution: 32; the model's: 16"),
        ({"channels": 1}, r"its channels: 1; the model's: 3"),
        (
            {"model": MODEL.model_copy(update={"patch": 2}).model_dump()},
            r"its patch: 2; the model's: 4",
        ),
        ({"classes": {"cat": 1}}, r"its classes: \['cat'\]; the model's: \[\]"),
        (
            {"diffusion": DIFFUSION.model_copy(update={"path": "vp-cosine"}).model_dump()},
            r"its path: vp-cosine; the model's: flow.*trained like the model",
        ),
    ],
)
def test_a_guide_that_does_not_fit_is_refused_with_what_differs(change, sentence, tmp_path):
    model = maskdm.load(saved(tmp_path / "model"), device="cpu")
    other = saved(tmp_path / "guide", **change)
    with pytest.raises(UserError, match=sentence):
        model.sample(1, guide=other)
    with pytest.raises(UserError, match=sentence):
        load_guided(tmp_path / "model", drawing(guide=str(other), guide_scale=2.0))


@pytest.mark.parametrize("guide", [None, "models/finetune"])
def test_a_scale_without_a_guide_is_refused(guide):
    check_sampling(drawing(guide=guide), conditional=False)
    with pytest.raises(
        UserError, match=r"guide_scale is 2, but sample\.guide is .*models/pretrain"
    ):
        check_sampling(drawing(guide=guide, guide_scale=2.0), conditional=False)


def test_the_check_refuses_a_guide_that_will_not_be_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = read_params(ROOT / "presets/laptop.yaml")
    assert params["sample"]["guide"] == "models/pretrain"
    assert params["sample"]["guide_scale"] != 1
    params["data"]["classes"] = False
    path = tmp_path / "params.yaml"

    def refused(match, **changes):
        changed = {
            name: (section | changes.get(name, {}) if isinstance(section, dict) else section)
            for name, section in params.items()
        }
        path.write_text(json.dumps(changed))
        if match is None:
            return check(path)
        with pytest.raises(UserError, match=match):
            check(path)
        return None

    scratch = {"steps": 0, "warmup": 0}
    refused(None)
    refused(r"models/pretrain, which pretrain\.steps: 0 leaves untrained", pretrain=scratch)
    refused(None, pretrain=scratch, sample={"guide_scale": 1.0})
    refused(r"sample\.guide is 'models/none': .*no model folder", sample={"guide": "models/none"})
    saved(tmp_path / "models/small")
    refused(r"its resolution: 16; the model's: 32", sample={"guide": "models/small"})
    saved(tmp_path / "models/cats", size=32, classes={"cat": 1})
    refused(r"its classes: \['cat'\]; the model's: \[\]", sample={"guide": "models/cats"})
    refused(None, sample={"guide": "models/cats"}, data={"classes": True})


def test_the_stage_draws_with_the_guide_and_says_what_it_cost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "models/finetune")
    saved(tmp_path / "models/pretrain", seed=1)

    def drawn(**changes):
        section = drawing(guide="models/pretrain", **changes).model_dump(mode="json")
        (tmp_path / "params.yaml").write_text(json.dumps({"sample": section}))
        sample.main()
        about = json.loads((tmp_path / "data/samples/samples.json").read_text())
        return np.load(tmp_path / "data/samples/samples.npy"), about

    plain, about = drawn()
    assert about["network_passes"] == about["nfe"] == 5
    guided, about = drawn(guide_scale=2.0)
    assert about["network_passes"] == 10
    assert not np.array_equal(plain, guided)
    model = maskdm.load("models/finetune", device="cpu")
    options = {"guide": "models/pretrain", "guide_interval": (0.0, 1.0)}
    expected = model.sample(4, nfe=5, guide_scale=2.0, **options)
    assert np.array_equal(guided, arrays(expected))
