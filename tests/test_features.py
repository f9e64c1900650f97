"""Features: names, resizing, the embedded extractor and Inception."""

import hashlib
import io
import shutil
import socket
import urllib.request
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer, make_resizer
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.evaluation.features import efficientnet, inception
from maskdm.evaluation.features.efficientnet import (
    build_efficientnet,
    efficientnet_weights,
    rename_weights,
)
from maskdm.evaluation.features.extraction import FeatureNetwork, bicubic, extract, resize
from maskdm.evaluation.features.registry import EXTRACTORS, FeatureParams, load_network
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import ParamsError, validate
from tests.support.images import discs

CPU = torch.device("cpu")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# Names


def test_only_inception_features_give_a_fid_or_a_kid():
    names = {name: (e.frechet, e.kernel) for name, e in EXTRACTORS.items()}
    assert names.pop("inception") == ("fid", "kid")
    for name, (frechet, kernel) in names.items():
        features = name.replace("-", "_")
        assert (frechet, kernel) == (f"fd_{features}", f"kid_{features}")


def test_the_parameter_takes_what_the_registry_has_and_nothing_else():
    for name in EXTRACTORS:
        assert validate({"extractor": name}, "fid.features", FeatureParams).extractor == name
    with pytest.raises(ParamsError, match=r"fid\.features\.extractor is 'vgg'.*inception"):
        validate({"extractor": "vgg"}, "fid.features", FeatureParams)


# Resizing


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(4, 80),
    width=st.integers(4, 80),
    side=st.sampled_from([16, 33, 224]),
    seed=st.integers(0, 99),
)
def test_images_are_resized_as_by_clean_fid(height, width, side, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = make_resizer("PIL", False, "bicubic", (side, side))(image)
    batch = torch.from_numpy(image)[None].permute(0, 3, 1, 2).float()
    ours = resize(batch, bicubic(height, side), bicubic(width, side))[0].permute(1, 2, 0)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-3)


def test_inceptions_images_are_those_of_clean_fids_mode_clean(rng):
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    side = EXTRACTORS["inception"].side
    seen = []
    network = FeatureNetwork(
        replace(EXTRACTORS["inception"], count=1),
        lambda batch: seen.append(batch) or batch[:, 0, 0, :1],
        CPU,
        "",
    )
    extract(image[None], network)
    assert seen[0].shape == (1, 3, side, side)
    expected = build_resizer("clean")(image)
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy(), expected, atol=1e-3)


# The embedded extractor


def test_all_296_tensors_of_efficientnet_get_their_names():
    import timm

    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    weights = torch.load(efficientnet_weights(), weights_only=True)
    renamed = rename_weights(weights, expected)
    assert len(renamed) == 296
    assert renamed.keys() == expected.keys()
    assert all(renamed[name].shape == expected[name].shape for name in expected)
    assert renamed["blocks.1.0.conv_pwl.weight"] is weights["_blocks.1._project_conv.weight"]
    assert renamed["bn2.running_var"] is weights["_bn1.running_var"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"conv.weight": torch.zeros(3, 3)}, "conv.weight"),
        (lambda w: {"bn.weight" if k == "bn.bias" else k: v for k, v in w.items()}, "tensors"),
        (lambda w: {k: w[k] for k in ("conv.weight", "bn.bias", "bn.weight")}, "bn.bias"),
        (lambda w: w | {"extra": torch.zeros(1)}, "tensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message):
    shapes = {"conv.weight": (2, 3), "bn.weight": (2,), "bn.bias": (2,)}
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    assert rename_weights(weights, weights).keys() == weights.keys()
    with pytest.raises(UserError, match=message):
        rename_weights(change(weights), weights)


@pytest.mark.parametrize(
    ("fold", "tolerance"), [("fold_batch_norms", 1e-4), ("fold_padding", 1e-5)]
)
def test_folding_changes_nothing(monkeypatch, fold, tolerance):
    side = EXTRACTORS["efficientnet-lite0"].side
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255
    with torch.inference_mode():
        folded = build_efficientnet(efficientnet_weights(), CPU)(images)
        monkeypatch.setattr(efficientnet, fold, lambda network: None)
        plain = build_efficientnet(efficientnet_weights(), CPU)(images)
    assert folded.shape == (2, 1280)
    torch.testing.assert_close(folded, plain, rtol=tolerance, atol=tolerance)


def test_images_are_scaled_as_the_network_was_trained_and_left_as_they_are(lite0):
    import timm

    plain = timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(efficientnet_weights(), weights_only=True)
    plain.load_state_dict(rename_weights(weights, plain.state_dict()))
    mean, std = (
        torch.tensor(plain.default_cfg[key]).view(3, 1, 1) * 255 for key in ("mean", "std")
    )
    images = torch.rand(2, 3, 64, 64) * 255
    kept = images.clone()
    with torch.inference_mode():
        found = lite0.network(images)
        expected = plain.forward_head(plain.forward_features((images - mean) / std), True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(images, kept)


def test_no_convolution_copies_its_input_to_pad_it_and_no_batch_norm_is_left(lite0):
    with torch.profiler.profile() as profile, torch.inference_mode():
        lite0.network(torch.rand(2, 3, 64, 64) * 255)
    operations = {event.key for event in profile.key_averages()}
    assert "aten::conv2d" in operations
    assert not {"aten::constant_pad_nd", "aten::pad", "aten::batch_norm"} & operations


def test_the_batch_size_does_not_change_the_features(rng, lite0, tmp_path):
    np.save(tmp_path / "images.npy", discs(rng, 5))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    together, alone = extract(images, lite0), extract(images, lite0, batch_size=2)
    assert together.shape == (5, 1280)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_grey_images_are_measured_as_grey_rgb(rng, lite0):
    grey = discs(rng, 2)[..., :1]
    rgb = grey.repeat(3, axis=3)
    np.testing.assert_allclose(extract(grey, lite0), extract(rgb, lite0), rtol=1e-5, atol=1e-5)


def test_the_origin_of_features_says_what_they_depend_on(lite0):
    weights = hashlib.sha256(efficientnet_weights().read_bytes()).hexdigest()
    assert lite0.origin == {
        "extractor": "efficientnet-lite0", "side": 224, "count": 1280, "weights": weights
    }  # fmt: skip


# Inception


@pytest.fixture
def weights_file(monkeypatch, tmp_path) -> Path:
    """Where the Inception weights belong in this test."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints" / "inception-2015-12-05.pt"


def serve(monkeypatch, source: Path) -> None:
    """Let every download return the bytes of ``source``."""
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: source.open("rb"))


class TinyInception(torch.nn.Module):
    """Has the part of the true network that clean-fid uses."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 2048, 1, stride=64), torch.nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, images):
        return self.layers(images)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_inception_is_downloaded_once_and_used_through_clean_fid(monkeypatch, weights_file, rng):
    served = weights_file.parent.parent / "served.pt"
    tiny = TinyInception().eval()
    torch.jit.script(tiny).save(str(served))
    serve(monkeypatch, served)
    images = discs(rng, 2)
    found = extract(images, load_network("inception", CPU))
    assert [path.name for path in weights_file.parent.iterdir()] == [weights_file.name]
    resized = np.stack([build_resizer("clean")(image) for image in images]).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        expected = tiny((torch.from_numpy(resized) - 128) / 128)[..., 0, 0].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(urllib.request, "urlopen", None)
    assert load_network("inception", CPU).origin["count"] == 2048


@pytest.mark.parametrize("error", [URLError("no route to host"), TimeoutError("timed out")])
def test_without_a_network_inception_fails_with_one_sentence(monkeypatch, weights_file, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError) as caught:
        load_network("inception", CPU)
    assert str(error) in str(caught.value)
    assert str(weights_file) in str(caught.value)
    assert "-S fid.features.extractor=efficientnet-lite0" in str(caught.value)
    assert not list(weights_file.parent.iterdir())


def test_a_download_that_breaks_off_leaves_nothing_behind(monkeypatch, weights_file):
    class BreaksOff(io.BytesIO):
        def read(self, *size):
            if self.tell() == 0:
                return super().read(*size)
            raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(urllib.request, "urlopen", lambda *args: BreaksOff(bytes(100)))
    with pytest.raises(UserError, match="connection reset by peer"):
        load_network("inception", CPU)
    assert not list(weights_file.parent.iterdir())


def test_broken_weights_that_another_process_has_removed_are_one_sentence(
    monkeypatch, weights_file
):
    weights_file.parent.mkdir()
    weights_file.write_bytes(b"broken")
    whole = inception.is_whole_archive

    def late(path):
        path.unlink()
        return whole(path)

    monkeypatch.setattr(inception, "is_whole_archive", late)
    with pytest.raises(UserError, match="were broken"):
        load_network("inception", CPU)


def test_a_silent_server_is_given_up(monkeypatch, weights_file):
    timeouts = []

    def silent(*args, **kwargs):
        timeouts.append(socket.getdefaulttimeout())
        raise TimeoutError

    monkeypatch.setattr(urllib.request, "urlopen", silent)
    before = socket.getdefaulttimeout()
    with pytest.raises(UserError):
        load_network("inception", CPU)
    assert 0 < timeouts[0] <= 60
    assert socket.getdefaulttimeout() == before


def test_broken_inception_weights_are_removed(monkeypatch, weights_file):
    whole = weights_file.parent.parent / "whole.pt"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("weights", bytes(range(256)) * 64)
    cut = whole.with_name("cut.pt")
    cut.write_bytes(whole.read_bytes()[:10_000])
    serve(monkeypatch, cut)
    with pytest.raises(UserError, match="removed"):
        load_network("inception", CPU)
    assert not weights_file.exists()

    shutil.copy(whole, weights_file)
    damaged = bytearray(whole.read_bytes())
    damaged[5000] ^= 1
    weights_file.write_bytes(damaged)
    with pytest.raises(UserError, match="removed"):
        load_network("inception", CPU)
    assert not weights_file.exists()
