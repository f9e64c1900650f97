"""DINOv2's features: timm's network and settings, weights from a file or from its hub."""

import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from benchmarks.presets import read_preset
from maskdm.evaluation.features.dinov2 import SIDE
from maskdm.evaluation.features.extraction import bicubic, extract, resize
from maskdm.evaluation.features.registry import EXTRACTORS, load_network
from maskdm.runtime.errors import UserError
from stages import check
from tests.support.images import discs

CPU = torch.device("cpu")
SMALL = "vit_small_patch14_dinov2.lvd142m"


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """timm's network as DINOv2 trained it, for 518 pixels, with random weights; their file."""
    torch.manual_seed(0)
    network = timm.create_model(SMALL, dynamic_img_size=True).eval()
    for name, tensor in network.named_parameters():
        if name.endswith("gamma"):  # begins at 1e-5, where no block does anything
            torch.nn.init.ones_(tensor)
    file = tmp_path_factory.mktemp("weights") / f"{SMALL}.safetensors"
    save_file(network.state_dict(), file)
    return network, file


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """Torch's cache in this test, in which nothing is, and a hub that has nothing either."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)

    def refuse(*_, **__):
        raise LocalEntryNotFoundError("Please check your connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    folder = tmp_path / "torch/checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_features_are_the_class_tokens_of_timms_network_at_224_pixels(random_model, cache):
    """The network of 518 pixels, whose positions are resampled as it runs, says the same."""
    network, file = random_model
    (cache / file.name).symlink_to(file)
    images = discs(np.random.default_rng(0), 2)
    found = extract(images, load_network("dinov2-vits14", CPU))
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    lines = bicubic(images.shape[1], SIDE), bicubic(images.shape[2], SIDE)
    settings = timm.data.resolve_model_data_config(network)
    mean, std = (torch.tensor(settings[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        tokens = network.forward_features((resize(batch, *lines) / 255 - mean) / std)
    assert found.shape == (2, 384)
    assert np.abs(found[0] - found[1]).max() > 0.1
    np.testing.assert_allclose(found, tokens[:, 0].numpy(), rtol=1e-3, atol=1e-4)


def test_the_hub_is_asked_once_for_timms_own_file(random_model, cache, monkeypatch):
    _, file = random_model
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *given, **_: asked.append(given) or str(file)
    )
    assert EXTRACTORS["dinov2-vits14"].weights() == file
    assert asked == [(f"timm/{SMALL}", "model.safetensors")]
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(file))
    assert EXTRACTORS["dinov2-vits14"].weights() == file
    assert len(asked) == 1


@pytest.mark.parametrize("name", ["dinov2-vits14", "dinov2-vitl14"])
def test_counts_and_sides_are_those_of_timms_networks(name):
    extractor = EXTRACTORS[name]
    model = extractor.weights.args[0]
    with torch.device("meta"):
        network = timm.create_model(model, img_size=extractor.side, num_classes=0)
    assert network.num_features == extractor.count
    assert timm.models.get_pretrained_cfg(model).hf_hub_id == f"timm/{model}"


def test_without_internet_check_says_so_before_anything_is_deleted(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = read_preset("tiny")
    params["fid"]["features"]["extractor"] = "dinov2-vits14"
    Path("params.yaml").write_text(json.dumps(params))
    with pytest.raises(UserError) as caught:
        check.main()
    said = str(caught.value)
    assert f"The DINOv2 weights timm/{SMALL} could not be downloaded" in said
    assert str(cache / f"{SMALL}.safetensors") in said
    assert "-S fid.features.extractor=efficientnet-lite0" in said
    assert "Nothing was computed or deleted" in said
    assert not Path("data/checked").exists()


@pytest.mark.parametrize("content", [b"no weights", None])
def test_a_file_that_does_not_fit_is_refused_in_a_sentence(content, cache):
    file = cache / f"{SMALL}.safetensors"
    if content:
        file.write_bytes(content)
    else:
        save_file({"cls_token": torch.zeros(1, 1, 384)}, file)
    with pytest.raises(UserError, match=r"do not fit timm's vit_small_patch14_dinov2"):
        load_network("dinov2-vits14", CPU)
