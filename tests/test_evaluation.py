import hashlib
import io
import shutil
import socket
import urllib.request
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from cleanfid import fid as cleanfid_fid
from cleanfid.resize import build_resizer, make_resizer
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdm.evaluation import distances as distances_module
from maskdm.evaluation.distances import (
    covariance_root,
    frechet_distance,
    kernel_distance,
    measure,
    pair_sums,
)
from maskdm.evaluation.features.efficientnet import (
    build_efficientnet,
    efficientnet_weights,
    rename_weights,
)
from maskdm.evaluation.features.extraction import FeatureNetwork, bicubic, extract, resize
from maskdm.evaluation.features.registry import EXTRACTORS, FeatureParams, load_network
from maskdm.evaluation.yardsticks import mean_image, shuffled_patches, uniform_noise, yardsticks
from maskdm.runtime.errors import UserError
from maskdm.runtime.params import ParamsError, validate

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Keep out of the way of tests that run beside this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def lite0() -> FeatureNetwork:
    return load_network("efficientnet-lite0", CPU)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pictures(rng: np.random.Generator, count: int, side: int = 32) -> np.ndarray:
    """White pictures with one coloured disc each."""
    y, x = np.mgrid[:side, :side]
    centre = rng.uniform(0.3, 0.7, (2, count, 1, 1)) * side
    radius = rng.uniform(0.2, 0.4, (count, 1, 1)) * side
    inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    colours = rng.integers(0, 200, (count, 1, 1, 3))
    return np.where(inside[..., None], colours, 255).astype(np.uint8)


def with_moments(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Move rows to exactly this mean and sample covariance."""
    centred = rows - rows.mean(axis=0)
    whitened = centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred, rowvar=False))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


# Distances


def test_frechet_distance_of_gaussians_is_the_closed_form(rng):
    """Covariances that commute: tr(Σ₁ + Σ₂ − 2√(Σ₁Σ₂)) = Σ (√λ₁ − √λ₂)²."""
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    spreads = rng.uniform(0.1, 2, (2, 6))
    means = rng.normal(size=(2, 6))
    a, b = (
        with_moments(rng.normal(size=(50, 6)), mean, basis @ np.diag(spread**2) @ basis.T)
        for mean, spread in zip(means, spreads, strict=True)
    )
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((spreads[0] - spreads[1]) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_from_a_single_point_is_its_mean_squared_distance(rng):
    cloud = rng.normal(size=(500, 6))
    point = np.ones((1, 6)).repeat(500, axis=0)
    expected = np.sum((cloud.mean(axis=0) - 1) ** 2) + cloud.var(axis=0, ddof=1).sum()
    assert frechet_distance(point, cloud) == pytest.approx(expected, rel=1e-9)


def clean_fids_frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    moments = (np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy's, of sqrtm's arguments and of zeros
        return cleanfid_fid.frechet_distance(a.mean(axis=0), *moments)


def correlated(rng: np.random.Generator, count: int, features: int) -> np.ndarray:
    """Rows whose principal variances fall off as those of images' features do."""
    spreads = np.arange(1, features + 1) ** -0.5
    rows = rng.normal(size=(count, features)) * spreads
    return (rows @ rng.normal(size=(features, features))).astype(np.float32)


def constant_feature(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a[:, 3] = 0.7
    return a


@pytest.mark.parametrize(
    "change",
    [
        lambda a, b: (a, b),
        lambda a, b: (a[:40], b),
        lambda a, b: (a, b[:2]),
        lambda a, b: (a[:30], b[:20]),
        lambda a, b: (constant_feature(a), b),
        lambda a, b: (constant_feature(a), constant_feature(b) + 1),
        lambda a, b: (a[:50].repeat(4, axis=0), b),
        lambda a, b: (a[:1].repeat(9, axis=0), b),
        lambda a, b: (a, 1000 + b),
    ],
    ids=[
        "full rank", "few rows", "two rows", "few rows on both sides", "a constant feature",
        "the same feature constant in both", "rows that repeat", "a point", "far from zero",
    ],
)  # fmt: skip
def test_frechet_distance_is_that_of_clean_fid(rng, change):
    a, b = change(correlated(rng, 200, 64), correlated(rng, 150, 64))
    expected = clean_fids_frechet_distance(a, b)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=2e-7)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=2e-7)


def test_frechet_distance_of_singular_covariances_keeps_the_digits_that_clean_fid_loses(rng):
    """In the subspace that holds both sets the covariances are regular, the distance the same."""
    basis, _ = np.linalg.qr(rng.normal(size=(64, 8)))
    a, b = rng.normal(size=(200, 8)), rng.normal(size=(150, 8)) * 1.01
    inside = frechet_distance(a, b)
    assert frechet_distance(a @ basis.T, b @ basis.T) == pytest.approx(inside, rel=2e-7)
    assert clean_fids_frechet_distance(a, b) == pytest.approx(inside, rel=2e-7)


def test_a_set_is_at_frechet_distance_zero_from_itself(rng):
    a = correlated(rng, 200, 64)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9 * float(a.var(axis=0).sum()))


@pytest.mark.parametrize(("n", "rows"), [(50, 7), (50, 50), (8, 3), (5, 2), (2, 9)])
def test_the_root_of_a_covariance_is_one_in_whatever_pieces_it_is_taken(rng, monkeypatch, n, rows):
    monkeypatch.setattr(distances_module, "ROWS", rows)
    features = correlated(rng, n, 8) + 5
    root = covariance_root(features).numpy()
    assert root.shape == (min(n, 8), 8)
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(root.T @ root, expected, rtol=1e-9, atol=1e-12)


def test_a_frechet_distance_never_takes_the_root_of_a_matrix(rng, monkeypatch):
    """The root of a product of covariances is what made it 10 times as slow as need be."""
    import scipy.linalg

    monkeypatch.setattr(scipy.linalg, "sqrtm", None)
    assert frechet_distance(correlated(rng, 20, 8), correlated(rng, 20, 8)) > 0


@pytest.mark.parametrize(("n", "m", "size"), [(20, 5, 5), (5, 20, 5), (20, 30, 8)])
def test_a_frechet_distance_costs_what_its_smaller_set_does(rng, monkeypatch, n, m, size):
    eigenvalues, sizes = torch.linalg.eigvalsh, []
    monkeypatch.setattr(
        torch.linalg, "eigvalsh", lambda matrix: sizes.append(len(matrix)) or eigenvalues(matrix)
    )
    frechet_distance(correlated(rng, n, 8), correlated(rng, m, 8))
    assert sizes == [size]


def test_distances_of_mapped_features_are_those_of_features_in_memory(rng, tmp_path):
    a, b = correlated(rng, 40, 8), correlated(rng, 30, 8)
    np.save(tmp_path / "a.npy", a)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert frechet_distance(mapped, b) == frechet_distance(a, b)
    assert kernel_distance(mapped, b, seed=0) == kernel_distance(a, b, seed=0)


@pytest.mark.parametrize(
    ("subset_size", "block"), [(40, 1024), (40, 7), (9, 1024), (60, 7), (1000, 33)]
)
def test_kernel_distance_is_that_of_clean_fid(rng, monkeypatch, subset_size, block):
    """Subsets of 9 are so few pairs that each is computed for itself."""
    monkeypatch.setattr(distances_module, "BLOCK", block)
    a, b = rng.normal(size=(60, 5)), rng.normal(0.3, 1, size=(80, 5))
    np.random.seed(7)
    expected = [
        cleanfid_fid.kernel_distance(a, b, num_subsets=1, max_subset_size=subset_size)
        for _ in range(10)
    ]
    ours = kernel_distance(a, b, seed=7, subsets=10, subset_size=subset_size)
    assert ours == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-10)


def test_no_value_of_a_kernel_is_computed_twice_where_sets_are_small(rng, monkeypatch):
    computed = []

    def counted(x, y):
        computed.append(len(x) * len(y))
        return kernel(x, y)

    kernel = distances_module.kernel
    monkeypatch.setattr(distances_module, "kernel", counted)
    a, b = rng.normal(size=(60, 5)), rng.normal(size=(80, 5))
    for subsets, size, expected in [(10, 40, 60 * 80), (3, 10, 3 * 10 * 10), (1, 60, 60 * 60)]:
        computed.clear()
        places = [np.stack([rng.permutation(len(x))[:size] for _ in range(subsets)])
                  for x in (a, b)]  # fmt: skip
        pair_sums(a, b, *places)
        assert sum(computed) == expected


def test_kernel_distance_of_one_subset_of_everything_is_the_unbiased_mmd(rng):
    a, b = rng.normal(size=(12, 4)), rng.normal(0.5, 1, size=(12, 4))
    same = [
        (x @ y / 4 + 1) ** 3 for s in (a, b) for i, x in enumerate(s) for y in np.delete(s, i, 0)
    ]
    across = [(x @ y / 4 + 1) ** 3 for x in a for y in b]
    expected = 2 * np.mean(same) - 2 * np.mean(across)
    value, deviation = kernel_distance(a, b, seed=0)
    assert value == pytest.approx(expected, rel=1e-9)
    assert deviation == 0


def test_halves_of_one_set_are_at_kernel_distance_zero_and_other_sets_are_not(rng):
    def kid(shift):
        """Mean and standard error over independent pairs of sets."""
        values = [
            kernel_distance(
                rng.normal(size=(100, 8)), rng.normal(shift, 1, size=(100, 8)), seed=0, subsets=1
            )[0]
            for _ in range(50)
        ]
        return np.mean(values), np.std(values) / np.sqrt(50)

    mean, error = kid(shift=0)
    assert abs(mean) < 3 * error
    mean, error = kid(shift=0.5)
    assert mean > 20 * error


def test_kernel_distance_depends_on_its_seed_alone_and_leaves_numpys_generator_alone(rng):
    a, b = rng.normal(size=(40, 5)), rng.normal(size=(40, 5))
    np.random.seed(3)
    expected_next = np.random.RandomState(3).random(4)
    first = kernel_distance(a, b, seed=1, subsets=5, subset_size=20)
    assert (np.random.random(4) == expected_next).all()
    assert kernel_distance(a, b, seed=1, subsets=5, subset_size=20) == first
    assert kernel_distance(a, b, seed=2, subsets=5, subset_size=20) != first


def test_a_distance_of_one_image_is_refused(rng):
    one, more = rng.normal(size=(1, 5)), rng.normal(size=(9, 5))
    with pytest.raises(UserError, match=r"kernel distance needs at least 2 images.*not 1 and 9"):
        kernel_distance(one, more, seed=0)
    with pytest.raises(UserError, match=r"Fréchet distance needs at least 2 images.*not 9 and 1"):
        frechet_distance(more, one)


@pytest.mark.parametrize(("n", "m"), [(8, 9), (9, 8), (3, 3)])
def test_without_more_images_than_features_there_is_no_frechet_distance(rng, n, m):
    extractor = replace(EXTRACTORS["efficientnet-lite0"], count=8)
    values = measure(rng.normal(size=(n, 8)), rng.normal(size=(m, 8)), extractor)
    assert values.keys() == {"kid_efficientnet_lite0", "kid_efficientnet_lite0_std"}
    enough = measure(rng.normal(size=(9, 8)), rng.normal(size=(9, 8)), extractor)
    assert enough.keys() - values.keys() == {"fd_efficientnet_lite0"}


def test_distances_carry_six_digits(rng):
    extractor = replace(EXTRACTORS["inception"], count=4)
    values = measure(rng.normal(size=(30, 4)), rng.normal(size=(30, 4)), extractor)
    assert values.keys() == {"fid", "kid", "kid_std"}
    assert all(len(f"{value:.12g}".lstrip("-0.").replace(".", "").split("e")[0]) <= 6
               for value in values.values())  # fmt: skip


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


def test_all_296_tensors_of_efficientnet_find_their_place():
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
    images = torch.rand(2, 3, side, side) * 255
    with torch.inference_mode():
        folded = build_efficientnet(efficientnet_weights(), CPU)(images)
        monkeypatch.setattr(features_module, fold, lambda network: None)
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
    np.save(tmp_path / "images.npy", pictures(rng, 5))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    together, alone = extract(images, lite0), extract(images, lite0, batch_size=2)
    assert together.shape == (5, 1280)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


def test_grey_images_are_measured_as_grey_rgb(rng, lite0):
    grey = pictures(rng, 2)[..., :1]
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
    images = pictures(rng, 2)
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


# Yardsticks


@settings(max_examples=20, deadline=None)
@given(side=st.integers(4, 14), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_shuffling_keeps_every_whole_patch_and_the_rest_in_place(side, channels, seed):
    rng = np.random.default_rng(seed)
    images = uniform_noise(2, (side, side, channels), rng)
    kept = images.copy()
    shuffled = shuffled_patches(images, 4, rng)

    def patches(image):
        places = range(0, side - 3, 4)
        return sorted(image[y : y + 4, x : x + 4].tobytes() for y in places for x in places)

    assert [patches(image) for image in shuffled] == [patches(image) for image in images]
    whole = side // 4 * 4
    assert (shuffled[:, whole:] == images[:, whole:]).all()
    assert (shuffled[:, :, whole:] == images[:, :, whole:]).all()
    assert (images == kept).all()


def test_each_image_is_shuffled_its_own_way(rng):
    image = uniform_noise(1, (32, 32, 3), rng)
    shuffled = shuffled_patches(image.repeat(3, axis=0), 4, rng)
    assert len({one.tobytes() for one in [*image, *shuffled]}) == 4


def test_the_mean_image_is_the_mean():
    images = np.stack([np.zeros((2, 2, 1)), np.full((2, 2, 1), 101), np.full((2, 2, 1), 200)])
    assert (mean_image(images.astype(np.uint8)) == np.full((1, 2, 2, 1), 100)).all()


def test_the_yardsticks_are_in_the_order_that_the_eye_sees(rng, lite0):
    train = pictures(rng, 24)
    train_features = extract(train, lite0)
    heldout_features = extract(pictures(rng, 16), lite0)
    scale = yardsticks(train, train_features, heldout_features, lite0)
    assert list(scale) == ["uniform_noise", "mean_image", "shuffled_patches", "heldout"]
    kid = {name: values["kid_efficientnet_lite0"] for name, values in scale.items()}
    assert kid["heldout"] < 0.2 * min(kid["shuffled_patches"], kid["mean_image"])
    assert kid["shuffled_patches"] < kid["uniform_noise"]


def test_yardsticks_repeat_exactly_and_the_mean_images_distance_is_that_of_a_point(rng):
    colours = FeatureNetwork(
        replace(EXTRACTORS["efficientnet-lite0"], count=3, side=8),
        lambda batch: batch.mean(dim=(2, 3)),
        CPU,
        "",
    )
    train = pictures(rng, 60)
    features = extract(train, colours)
    scale = yardsticks(train, features, features[:20], colours)
    assert scale == yardsticks(train, features, features[:20], colours)
    point = extract(mean_image(train), colours)[0]
    gap = np.sum((features.mean(axis=0) - point) ** 2)
    expected = gap + features.astype(float).var(axis=0, ddof=1).sum()
    assert scale["mean_image"]["fd_efficientnet_lite0"] == pytest.approx(expected, rel=1e-5)
