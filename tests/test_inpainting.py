"""Inpainting: what is known comes back to the bit, and what is drawn fits it."""

import numpy as np
import pytest
import torch
from PIL import Image

import maskdm
from maskdm.backbones.denoiser import Denoiser
from maskdm.diffusion.paths import PATHS
from maskdm.diffusion.tokens import to_tokens
from maskdm.runtime.errors import UserError
from maskdm.sampling.inpainting import known_part
from maskdm.sampling.model import TrainedModel
from maskdm.sampling.sampler import starting_noise
from maskdm.sampling.solvers import SOLVERS
from tests.support.models import arrays, saved

SIDE = 16
PICTURE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
# A disc, whose edge goes through patches.
DISC = np.hypot(*(np.indices((SIDE, SIDE)) - 7.3)) < 5.1
FEW = {solver: 5 if solver == "heun" else 4 for solver in SOLVERS}


class OneColour(Denoiser):
    """The exact x0-denoiser of images of one colour, each channel of it normal with scale s."""

    scale = 0.5

    def forward(self, tokens, positions, time, label=None, middle=None):
        level = PATHS["flow"].level(time, like=tokens)
        batch, patches, values = tokens.shape
        channels = tokens.view(batch, patches, -1, 3)
        count = patches * values // 3
        known = level.alpha * self.scale**2 * count
        mean = channels.mean(dim=(1, 2)) * (known / (level.alpha * known + level.sigma**2))[:, :, 0]
        return mean[:, None, None].expand_as(channels).reshape_as(tokens)


class Watching(Denoiser):
    """A network that notes what it is shown, and at which times."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, tokens, positions, time, label=None, middle=None):
        self.seen.append((time[0].item(), tokens.clone()))
        return self.network(tokens, positions, time, label, middle)


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_pixels_come_back_exactly_and_the_others_do_not(model, solver):
    drawn = arrays(model.inpaint(PICTURE, DISC, 3, solver=solver, nfe=FEW[solver]))
    assert np.array_equal(drawn[:, ~DISC], np.broadcast_to(PICTURE, drawn.shape)[:, ~DISC])
    assert (drawn[:, DISC] != PICTURE[DISC]).mean() > 0.9
    assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("solver", [name for name in SOLVERS if not SOLVERS[name].stochastic])
def test_at_every_level_the_network_sees_the_known_part_noised_to_it(model, solver):
    watching = Watching(model.backbone)
    TrainedModel(watching, model.config, model.device).inpaint(
        PICTURE, DISC, 2, solver=solver, nfe=FEW[solver]
    )
    assert len(watching.seen) == FEW[solver]
    known = known_part(PICTURE, DISC, SIDE, 3, 4)
    image = to_tokens(torch.from_numpy(PICTURE)[None], 4)
    noise = starting_noise(0, model.shape, range(2))
    path = PATHS[model.config.diffusion.path]
    for time, tokens in watching.seen:
        wanted = path.level(torch.full((2, 1, 1), time)).noisy(image, noise)
        assert torch.allclose(tokens[:, known.where], wanted[:, known.where], atol=2e-3), time
    assert (tokens - wanted)[:, ~known.where].abs().mean() > 0.1


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_drawn_fits_what_is_known_better_than_a_sample_that_is_pasted(model, solver):
    """Images of one colour: what is drawn must take the known colour; its seam must vanish."""
    exact = TrainedModel(OneColour(), model.config, model.device)
    colour = np.array([230, 60, 20], np.uint8)
    image = np.broadcast_to(colour, PICTURE.shape)
    nfe = {"heun": 41}.get(solver, 40)
    drawn = arrays(exact.inpaint(image, DISC, 4, solver=solver, nfe=nfe)).astype(int)
    pasted = arrays(exact.sample(4, solver=solver, nfe=nfe)).astype(int)
    assert np.abs(pasted - colour).mean() > 40
    assert np.abs(drawn - colour)[:, DISC].mean() < 6


def test_where_nothing_is_known_it_is_sampling(model):
    white = Image.new("L", (SIDE, SIDE), "white")
    drawn = model.inpaint(PICTURE, white, 2, seed=3, solver="dpmpp-2m")
    assert np.array_equal(arrays(drawn), arrays(model.sample(2, seed=3)))


def test_an_answer_is_the_same_in_any_count_and_another_with_another_seed(model):
    answers = arrays(model.inpaint(PICTURE, DISC, 3, seed=1, nfe=4))
    assert np.array_equal(arrays(model.inpaint(PICTURE, DISC, 2, seed=1, nfe=4)), answers[:2])
    assert not np.array_equal(arrays(model.inpaint(PICTURE, DISC, 2, seed=2, nfe=4)), answers[:2])


def test_pictures_and_arrays_say_the_same(model):
    answers = arrays(model.inpaint(PICTURE, DISC, nfe=4))
    grey = np.where(DISC, 128, 127).astype(np.uint8)
    colour = Image.fromarray(np.repeat(grey[:, :, None], 3, axis=2))
    for mask in (grey, Image.fromarray(grey), Image.fromarray(DISC), colour):
        given = model.inpaint(Image.fromarray(PICTURE), mask, nfe=4)
        assert np.array_equal(arrays(given), answers)


def test_grey_images_are_taken_by_grey_models_and_by_colour_models(model, tmp_path):
    grey = PICTURE[:, :, 0]
    (drawn,) = maskdm.load(saved(tmp_path, channels=1), device="cpu").inpaint(grey, DISC, nfe=2)
    assert drawn.mode == "L"
    assert np.array_equal(np.asarray(drawn)[~DISC], grey[~DISC])
    picture = Image.fromarray(grey)
    by_picture, by_palette, by_array = (
        arrays(model.inpaint(image, DISC, nfe=2)) for image in (picture, picture.convert("P"), grey)
    )
    assert np.array_equal(by_picture, by_array)
    assert np.array_equal(by_palette, by_array)
    assert np.array_equal(by_array[0][~DISC], np.repeat(grey[:, :, None], 3, axis=2)[~DISC])


def test_classes_and_guides_act_as_in_sampling(conditional, model):
    cat, owl = (
        arrays(conditional.inpaint(PICTURE, DISC, label=label, nfe=4)) for label in ("cat", 2)
    )
    assert not np.array_equal(cat, owl)
    worse = TrainedModel(OneColour(), model.config, model.device)
    plain = arrays(model.inpaint(PICTURE, DISC, nfe=4))
    guided = arrays(model.inpaint(PICTURE, DISC, nfe=4, guide=worse))
    assert not np.array_equal(plain, guided)
    assert np.array_equal(guided, arrays(model.guided_by(worse).inpaint(PICTURE, DISC, nfe=4)))


@pytest.mark.parametrize(
    ("image", "mask", "sentence"),
    [
        (PICTURE[:, :8], DISC, r"image has 8x16 pixels, and the model draws 16x16: resize it, im"),
        (PICTURE, DISC[:8], r"mask has 16x8 pixels.*mask\.resize\(\(16, 16\)\)"),
        (Image.new("RGBA", (16, 16)), DISC, r"mode RGBA, transparent in part, and the model draws"),
        (Image.new("CMYK", (16, 16)), DISC, r"mode CMYK, and the model draws RGB: convert it"),
        (PICTURE / 255, DISC, r"array \(16, 16, 3\) of float64: give a PIL image, or uint8"),
        (PICTURE[:, :, :2], DISC, r"array \(16, 16, 2\) of uint8"),
        (PICTURE[0, 0], DISC, r"array \(3,\) of uint8"),
        (PICTURE, DISC.astype(float), r"mask is an array \(16, 16\) of float64: give a PIL image"),
        (PICTURE, DISC[:, :, None], r"mask is an array \(16, 16, 1\) of bool"),
        (PICTURE, np.zeros_like(DISC), "mask is black everywhere"),
        (PICTURE, DISC.astype(np.uint8), "mask is black everywhere.*255, or True"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(model, image, mask, sentence):
    with pytest.raises(UserError, match=sentence):
        model.inpaint(image, mask)


def test_grey_models_refuse_colour_since_it_could_not_come_back(tmp_path):
    grey = maskdm.load(saved(tmp_path, channels=1), device="cpu")
    with pytest.raises(UserError, match=r"mode RGB, and the model draws L: .*convert\('L'\)"):
        grey.inpaint(Image.fromarray(PICTURE), DISC)
    with pytest.raises(UserError, match=r"array \(16, 16, 3\) of uint8"):
        grey.inpaint(PICTURE, DISC)


def test_by_default_noise_is_added_on_the_way(model):
    default = arrays(model.inpaint(PICTURE, DISC))
    assert np.array_equal(default, arrays(model.inpaint(PICTURE, DISC, solver="ddpm", nfe=50)))
    recommended = arrays(model.inpaint(PICTURE, DISC, solver="heun"))
    assert np.array_equal(recommended, arrays(model.inpaint(PICTURE, DISC, solver="heun", nfe=59)))
