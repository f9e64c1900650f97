"""Networks that learn the latents of an autoencoder: encoded once, decoded wherever one looks."""

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

import maskdm
from benchmarks.presets import read_preset
from maskdm import cli
from maskdm.backbones import autoencoder as autoencoder_module
from maskdm.backbones.autoencoder import (
    BATCH,
    REACH,
    Autoencoder,
    Codec,
    Encoder,
    Latents,
    autoencoder_hash,
    latent_shape,
    open_codec,
    stored_latents,
)
from maskdm.backbones.model_folder import ModelConfig, check_start, load_config
from maskdm.data.prepared import PreparedSet, Sample, open_prepared, write_prepared
from maskdm.exchange.exporting import export_to_diffusers
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import merge
from maskdm.sampling.model import check_guide, load_guided
from stages import (
    check,
    fid,
    finetune,
    masks,
    neighbours,
    pictures,
    prepare,
    pretrain,
    reference,
    sample,
    source,
)
from tests.support.autoencoders import saved_autoencoder
from tests.support.models import arrays, drawing, saved
from tests.support.preparing import save_images
from tests.support.training import CPU, DIFFUSION, MODEL

SIZE = 32
ABOUT: dict[str, Any] = {"size": SIZE, "channels": 3, "source": "test", "licence": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder: 32 pixels, 3 channels to 8x8, 4 channels."""
    return saved_autoencoder(tmp_path_factory.mktemp("autoencoder") / "vae")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of other weights."""
    return saved_autoencoder(tmp_path_factory.mktemp("other") / "vae", seed=1)


def smooth(count: int) -> np.ndarray:
    """Return images whose colours run, each another way, uint8 (count, 32, 32, 3)."""
    random, ramp = np.random.default_rng(0), np.linspace(0, 1, SIZE)
    waves = np.sin(ramp[:, None] * random.uniform(0, 9, (count, 1, 1, 3)) + ramp[:, None, None] * 5)
    return np.broadcast_to(128 + 100 * waves, (count, SIZE, SIZE, 3)).astype(np.uint8)


def written(folder: Path, encoder: Encoder | None, count: int = 20) -> PreparedSet:
    samples = [Sample(image, None, number % 5 == 0) for number, image in enumerate(smooth(count))]
    return write_prepared(folder, iter(samples), classes=None, encoder=encoder, **ABOUT)


def encoder(folder: Path) -> Encoder:
    return Encoder(str(folder), SIZE, 3, CPU)


def stored(kept: PreparedSet) -> Latents:
    about = stored_latents(kept.latents)
    assert about is not None
    return about


# The codec


def test_latents_are_the_mean_of_the_posterior_that_diffusers_computes(folder: Path) -> None:
    from diffusers import AutoencoderKL

    theirs: Any = AutoencoderKL.from_pretrained(str(folder))
    images = smooth(3)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        mean = theirs.encode(x).latent_dist.mean
        drawn = theirs.decode(mean).sample
    ours = Autoencoder(str(folder), CPU)
    torch.testing.assert_close(ours.latents(images), mean.permute(0, 2, 3, 1))
    wanted = ((drawn + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert np.array_equal(ours.images(mean.permute(0, 2, 3, 1)), wanted.numpy())


def test_bytes_are_the_latents_to_half_a_level_and_decode_to_what_those_do(folder: Path) -> None:
    images, made = smooth(20), encoder(folder)
    about = made.measure(images)
    exact = torch.cat(
        [made.autoencoder.latents(images[n : n + BATCH]) for n in range(0, 20, BATCH)]
    )
    numbers = exact.reshape(-1, 4).double()
    np.testing.assert_allclose(about["centre"], numbers.mean(0), atol=1e-6)
    np.testing.assert_allclose(about["reach"], REACH * numbers.std(0, correction=0), rtol=1e-5)

    kept = np.concatenate(list(made.encode(images)))
    assert kept.dtype == np.uint8
    assert kept.shape == (20, 8, 8, 4)
    codec = Codec(made.autoencoder, made.about)
    values = torch.from_numpy(kept).float() / 127.5 - 1
    error = (codec.centre + codec.reach * values - exact).abs()
    inside = (exact - codec.centre).abs() <= codec.reach
    assert inside.float().mean() > 0.98
    assert (error <= codec.reach / 255 * 1.001)[inside].all()
    difference = codec.decode(values).astype(int) - made.autoencoder.images(exact)
    assert np.abs(difference).mean() < 1


def test_a_channel_that_never_changes_is_kept(folder: Path) -> None:
    made = encoder(folder)
    images = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    made.autoencoder.network.encoder.conv_out.weight.zero_()
    made.measure(images)
    [kept] = made.encode(images)
    assert set(kept.ravel()) <= {127, 128}


def test_the_range_is_that_of_images_evenly_spread_over_the_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a set that is sorted by class the first few thousand are of a few classes."""
    monkeypatch.setattr(autoencoder_module, "MEASURED", 5)
    shades = np.linspace(0, 255, 17).astype(np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (17, SIZE, SIZE, 3))
    encoder = Encoder(str(folder), SIZE, 3, CPU)
    found = encoder.measure(images)
    spread = Encoder(str(folder), SIZE, 3, CPU).measure(images[[0, 4, 8, 12, 16]])
    first = Encoder(str(folder), SIZE, 3, CPU).measure(images[:5])
    assert found == spread
    assert found != first


def test_a_decoder_is_shared_and_another_one_or_none_is_refused(folder: Path, other: Path) -> None:
    made = encoder(folder)
    made.measure(smooth(4))
    one, again = (open_codec(made.about, CPU) for _ in range(2))
    assert one.autoencoder is again.autoencoder
    with pytest.raises(UserError, match="is not the one that the latents are from"):
        open_codec(made.about, CPU, str(other))
    with pytest.raises(UserError, match=r"autoencoder is needed.*no folder that is there"):
        open_codec(made.about, CPU, "nowhere")


# The prepared set


def test_a_set_has_images_for_people_and_latents_for_networks(folder: Path, tmp_path: Path) -> None:
    kept = written(tmp_path, encoder(folder))
    assert np.array_equal(kept.train, [i for n, i in enumerate(smooth(20)) if n % 5])
    train, heldout = kept.learned
    assert train.shape == (16, 8, 8, 4)
    assert heldout.shape == (4, 8, 8, 4)
    assert isinstance(train, np.memmap)
    found = json.loads((tmp_path / "dataset.json").read_text())["latents"]
    assert found["hash"] == autoencoder_hash(str(folder))
    decoded = open_codec(stored(kept), CPU).decode(
        torch.from_numpy(np.array(heldout)).float() / 127.5 - 1
    )
    network = Autoencoder(str(folder), CPU)
    exact = network.images(network.latents(kept.heldout))
    assert np.abs(decoded.astype(int) - exact).mean() < 1


def test_the_same_autoencoder_gives_the_same_bytes_wherever_it_lies_and_another_another_hash(
    folder: Path, other: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    first = written(tmp_path / "first", encoder(folder))
    second = written(tmp_path / "second", encoder(moved))
    assert np.array_equal(first.learned[0], second.learned[0])
    assert first.hash == second.hash
    assert first.hash != written(tmp_path / "third", encoder(other)).hash
    assert first.hash != written(tmp_path / "fourth", None).hash


def test_the_hash_depends_on_every_latent(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written(tmp_path / "before", encoder(folder))
    encode = Codec.encode

    def changed(self: Codec, images: np.ndarray) -> np.ndarray:
        kept = encode(self, images)
        kept[-1, -1, -1, -1] ^= 1
        return kept

    monkeypatch.setattr(Codec, "encode", changed)
    assert written(tmp_path / "after", encoder(folder)).hash != before.hash


def test_without_an_autoencoder_nothing_is_written_of_latents(folder: Path, tmp_path: Path) -> None:
    never = written(tmp_path / "never", None)
    written(tmp_path / "once", encoder(folder))
    again = written(tmp_path / "once", None)
    assert {path.name: path.read_bytes() for path in (tmp_path / "never").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "once").iterdir()
    }
    assert "latents" not in (tmp_path / "never/dataset.json").read_text()
    assert never.latents is None
    assert again.learned[0] is again.train


def test_a_set_whose_encoding_fails_is_the_old_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written(tmp_path, encoder(folder))
    made, calls = encoder(folder), iter(range(9))
    encode = Codec.encode

    def killed(self: Codec, images: np.ndarray) -> np.ndarray:
        if next(calls):
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(Codec, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, made, count=40)
    assert open_prepared(tmp_path).hash == before.hash
    assert not list(tmp_path.glob(".*"))


def test_latents_that_are_not_finite_are_refused(folder: Path) -> None:
    made = encoder(folder)
    made.autoencoder.network.encoder.conv_out.bias.fill_(torch.inf)
    with pytest.raises(UserError, match="latents that are not finite"):
        made.measure(smooth(2))


# What is refused


def settings(folder: Path | str, **changes: dict[str, Any]) -> dict[str, Any]:
    """Return the preset tiny with an autoencoder."""
    own: dict[str, Any] = {
        "data": {"autoencoder": str(folder)},
        "model": {"patch": 1},
        "pretrain": {"hflip": 0.0},
        "finetune": {"hflip": 0.0},
    }
    return merge(read_preset("tiny"), own, changes)


def write_params(path: Path, params: dict[str, Any]) -> None:
    YAML().dump(params, path)


def said_by_check(tmp_path: Path, params: dict[str, Any]) -> str:
    write_params(tmp_path / "params.yaml", params)
    with pytest.raises(UserError) as refused:
        check.check(tmp_path / "params.yaml")
    return str(refused.value)


def test_an_autoencoder_that_fits_is_accepted(folder: Path, tmp_path: Path) -> None:
    write_params(tmp_path / "params.yaml", settings(folder))
    check.check(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": {"resolution": 34}}, r"data\.resolution is 34.*set .* to a multiple of 4"),
        ({"data": {"channels": 1}}, r"data\.channels is 1, but the autoencoder .* in_channels 3"),
        ({"data": {"autoencoder": "nowhere"}}, "is no folder that is there.*absolute path"),
        ({"data": {"autoencoder": ""}}, r"data\.autoencoder is ''.*no folder has this name"),
        ({"pretrain": {"hflip": 0.5}}, r"pretrain\.hflip is 0\.5, but .* latents.*set it to 0"),
        ({"finetune": {"hflip": 0.1}}, r"finetune\.hflip is 0\.1"),
        ({"model": {"patch": 16}}, "patch"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    folder: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    said = said_by_check(tmp_path, settings(folder, **changes))
    assert len(said.splitlines()) == 1
    assert re.search(sentence, said), said


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("no config", "has no config.json"),
        ("no weights", "has no diffusion_pytorch_model.safetensors"),
        ("no json", "has a config.json that cannot be read"),
        ("class", "is a model 'UNet2DModel', no AutoencoderKL"),
        ("blocks", "has no list of block_out_channels"),
        ("latents", "has no number of latent_channels"),
    ],
)
def test_a_folder_that_is_no_autoencoder_is_one_sentence(
    folder: Path, tmp_path: Path, damage: str, sentence: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "vae")
    config = copy / "config.json"
    if damage == "no config":
        config.unlink()
    elif damage == "no weights":
        (copy / "diffusion_pytorch_model.safetensors").unlink()
    elif damage == "no json":
        config.write_text("{")
    else:
        wrong = {
            "class": {"_class_name": "UNet2DModel"},
            "blocks": {"block_out_channels": 8},
            "latents": {"latent_channels": "four"},
        }
        config.write_text(json.dumps(json.loads(config.read_text()) | wrong[damage]))
    said = said_by_check(tmp_path, settings(copy))
    assert sentence in said
    assert "must be the folder of a model AutoencoderKL" in said


@pytest.mark.parametrize("damage", ["cut", "other shapes", "missing"])
def test_weights_that_do_not_fit_are_not_replaced_by_random_ones(
    folder: Path, tmp_path: Path, damage: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "vae")
    weights = copy / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "other shapes":
        wider = saved_autoencoder(tmp_path / "wider", latents=8)
        shutil.copy(wider / weights.name, weights)
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        save_file({n: t for n, t in tensors.items() if n != "decoder.conv_in.bias"}, weights)
    with pytest.raises(UserError, match=r"cannot be loaded|weights that do not fit") as refused:
        Autoencoder(str(copy), CPU)
    assert len(str(refused.value).splitlines()) == 1


def test_diffusers_is_asked_for_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "diffusers":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(UserError, match=r"data\.autoencoder needs the package diffusers"):
        latent_shape(str(folder), SIZE, 3)


# Models


def of_latents(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return what a config says of latents."""
    made = encoder(folder)
    return {**made.measure(smooth(8)), **changes}


def test_a_model_of_pixels_says_nothing_of_latents(tmp_path: Path) -> None:
    config = saved(tmp_path) / "config.json"
    assert "latents" not in json.loads(config.read_text())
    assert load_config(tmp_path).latents is None


def test_a_model_draws_images_wherever_its_autoencoder_is_now(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = MODEL.model_copy(update={"patch": 1}).model_dump()
    about = of_latents(folder)
    there = saved(tmp_path / "there", size=SIZE, model=small, latents=about)
    model = maskdm.load(there, device="cpu")
    assert "by latents of 8x8x4" in repr(model)
    images = model.sample(3, nfe=4)
    assert images[0].size == (SIZE, SIZE)
    assert len({image.tobytes() for image in images}) == 3

    lost = saved(tmp_path / "lost", size=SIZE, model=small, latents={**about, "autoencoder": "x"})
    with pytest.raises(UserError, match=r"their autoencoder is needed.*--autoencoder say where"):
        maskdm.load(lost, device="cpu")
    found = maskdm.load(lost, device="cpu", autoencoder=folder)
    assert np.array_equal(arrays(found.sample(3, nfe=4)), arrays(images))
    guided = found.sample(3, nfe=4, guide=lost, guide_scale=1.0)
    assert np.array_equal(arrays(guided), arrays(images))

    cli.sample(lost, count=3, out=tmp_path / "out", nfe=4, guide=lost, guide_scale=1.0,
               autoencoder=folder)  # fmt: skip
    with Image.open(tmp_path / "out/00002.png") as written:
        assert np.array_equal(np.asarray(written), np.asarray(images[2]))
    cli.info(lost)
    said = capsys.readouterr().out
    assert "32x32 colour images" in said
    assert "latents of 8x8x4, decoded by the autoencoder x" in said


def test_latents_have_no_pixels_that_could_be_kept_and_no_decoder_to_export(
    folder: Path, tmp_path: Path
) -> None:
    small = MODEL.model_copy(update={"patch": 1}).model_dump()
    model = saved(tmp_path / "model", size=SIZE, model=small, latents=of_latents(folder))
    white = Image.new("L", (SIZE, SIZE), 255)
    with pytest.raises(UserError, match="inpaint with a model of pixels"):
        maskdm.load(model, device="cpu").inpaint(white.convert("RGB"), white)
    with pytest.raises(UserError, match="only models of pixels"):
        export_to_diffusers(model, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_what_latents_do_not_fit_is_said_before_their_autoencoder_is_looked_for(
    folder: Path, tmp_path: Path
) -> None:
    """Otherwise the advice would be to say where it is now, which would not help."""
    small = MODEL.model_copy(update={"patch": 1}).model_dump()
    lost = of_latents(folder, autoencoder="lost")
    latents = saved(tmp_path / "latents", size=SIZE, model=small, latents=lost)
    pixels, out = saved(tmp_path / "pixels", size=SIZE), tmp_path / "exported"
    led = drawing(guide=f"{latents}", guide_scale=2.0)
    for sentence, call in (
        ("only models of pixels", lambda: export_to_diffusers(latents, out)),
        ("its latents", lambda: export_to_diffusers(pixels, out, guide=latents)),
        ("its latents", lambda: maskdm.load(pixels, device="cpu").sample(1, guide=latents)),
        ("its latents", lambda: load_guided(pixels, led)),
    ):
        with pytest.raises(UserError, match=sentence):
            call()
    assert not out.exists()


def config_of(latents: dict[str, Any] | None) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "size": SIZE,
            "channels": 3,
            "classes": None,
            "seed": 0,
            "model": MODEL.model_dump(),
            "diffusion": DIFFUSION.model_dump(),
            "training": [],
            "latents": latents,
        }
    )


def test_start_and_guide_must_have_learned_the_same_latents(folder: Path, other: Path) -> None:
    about = of_latents(folder)
    ours, pixels, others = config_of(about), config_of(None), config_of(of_latents(other))
    wider = config_of({**about, "reach": [2 * reach for reach in about["reach"]]})
    check_guide(ours, ours)
    for guide in (pixels, others, wider):
        with pytest.raises(UserError, match="its latents"):
            check_guide(guide, ours)

    def start(before: ModelConfig, autoencoder: str | None) -> None:
        check_start(Path("x"), before, MODEL, DIFFUSION, classes=False, autoencoder=autoencoder)

    start(ours, about["hash"])
    start(wider, about["hash"])  # in other units: a start all the same
    start(pixels, None)
    for before, autoencoder in ((pixels, about["hash"]), (ours, None), (others, about["hash"])):
        with pytest.raises(UserError, match="its weights would be misread"):
            start(before, autoencoder)


@pytest.mark.parametrize(
    "wrong",
    [{"reach": [1.0] * 3}, {"reach": [1.0, 0.0, 1.0, 1.0]}, {"hash": "abc"}, {"channels": 0}],
)
def test_a_damaged_description_is_refused(folder: Path, tmp_path: Path, wrong: Any) -> None:
    model = saved(tmp_path)
    content = json.loads((model / "config.json").read_text())
    content["latents"] = {**of_latents(folder), **wrong}
    (model / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="latents"):
        load_config(model)


# The whole path


@pytest.mark.slow
def test_from_images_to_a_distance_by_latents(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(folder, tmp_path / "vae")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASKDM_DEVICE", "cpu")
    save_images(tmp_path / "photos", [f"{n:02}.png" for n in range(40)])
    own = {"source": "folder", "path": str(tmp_path / "photos"), "autoencoder": str(folder)}
    write_params(tmp_path / "params.yaml", settings(folder, data=own))
    stages = (check, source, prepare, masks, pretrain, finetune, sample, pictures)
    for stage in (*stages, reference, fid, neighbours):
        stage.main()

    found = json.loads((tmp_path / "data/source.json").read_text())
    assert found["autoencoder"] == autoencoder_hash(str(folder))
    prepared = open_prepared(tmp_path / "data/prepared")
    assert prepared.learned[0].shape[1:] == (8, 8, 4)
    config = load_config(tmp_path / "models/finetune")
    assert config.latents == stored(prepared)
    drawn = np.load(tmp_path / "data/samples/samples.npy")
    assert drawn.shape == (24, SIZE, SIZE, 3)
    model = maskdm.load("models/finetune", device="cpu").guided_by(
        maskdm.load("models/pretrain", device="cpu")
    )
    settings_used = read_preset("tiny")["sample"]
    names = ("solver", "nfe", "guide_scale", "guide_interval")
    same = model.sample(24, **{name: settings_used[name] for name in names})
    assert np.abs(arrays(same).astype(int) - drawn).max() <= 1
    with Image.open(tmp_path / "reports/pretrain/previews/0.png") as preview:
        assert preview.size == (10 * SIZE, SIZE)
    reported = json.loads((tmp_path / "data/reference/reference.json").read_text())
    assert reported["size"] == SIZE
    metrics = json.loads((tmp_path / "reports/metrics.json").read_text())
    assert metrics["kid_efficientnet_lite0"] > 0

    # Other weights in the folder: prepare has to run again, and until then nothing is drawn.
    shutil.copytree(other, folder, dirs_exist_ok=True)
    source.main()
    again = json.loads((tmp_path / "data/source.json").read_text())
    assert again["autoencoder"] == autoencoder_hash(str(other)) != found["autoencoder"]
    with pytest.raises(UserError, match="is not the one that the latents are from"):
        sample.main()
