"""From noise to images: a network as an x0-denoiser, a grid of noise levels, a solver."""

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from numbers import Integral, Real
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field, Strict, ValidationInfo, field_validator
from torch import Tensor

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.model_folder import Weights
from maskdm.diffusion.loss import DiffusionParams
from maskdm.diffusion.paths import PATHS, ProbabilityPath
from maskdm.diffusion.randomness import normal, stream
from maskdm.diffusion.reverse import sampling_grid
from maskdm.runtime.errors import UserError
from maskdm.runtime.folders import same_folder
from maskdm.runtime.params import Section
from maskdm.sampling.guidance import Guidance, X0Network, x0_denoiser
from maskdm.sampling.inpainting import Known
from maskdm.sampling.solvers import SOLVERS

# The model that draws. DVC needs a path where a stage depends on a parameter, null will not do.
ITSELF = "models/finetune"
# The least and the most that each number of ``sample`` may be, and which of them are whole.
RANGES = {
    "count": (1, 10**7),
    "nfe": (2, 10**5),
    "eta": (0, 1),
    "guidance_scale": (0, 1000),
    "guide_scale": (0, 1000),
    "seed": (0, 2**31 - 1),
}
WHOLE = "count", "nfe", "seed"
INTERVALS = "guidance_interval", "guide_interval"

Interval = Annotated[tuple[float, float], Strict(False)]
GuideClass = Literal["shown", "hidden"]


class SampleParams(Section):
    """The section ``sample``: how images are drawn from the trained model."""

    count: int = Field(description="how many images, a whole number from 1 to 1e7")
    solver: str = Field(description=", ".join(SOLVERS))
    nfe: int = Field(description="network evaluations an image, a whole number from 2 to 1e5")
    eta: float = Field(description="noise added by ddim, 0 (none) to 1; 0 for others")
    guidance_scale: float = Field(
        description="classifier-free guidance, 0 to 1000; 1 for none (and without classes)"
    )
    guidance_interval: Interval = Field(
        description="the times between which guidance acts, [low, high] within 0 (image) to 1 "
        "(noise)"
    )
    guide: str | None = Field(
        None,
        description="a worse model to be led away from, such as models/pretrain; models/finetune "
        "itself for none",
    )
    guide_scale: float = Field(1.0, description="guidance by that model, 0 to 1000; 1 for none")
    guide_interval: Interval = Field(
        (0.0, 1.0), description="the times between which the guide acts"
    )
    guide_class: GuideClass = Field(
        "shown",
        description="shown (the guide draws the same class) or hidden (it draws any, and away from "
        "it is also towards the class); without classes they are one",
    )
    weights: Weights = Field(description="averaged or raw")
    seed: int = Field(description="seed of the sampling noise, a whole number from 0 to 2³¹ − 1")

    @property
    def guided(self) -> bool:
        """Whether a guide is used."""
        return self.guide_scale != 1

    @field_validator("solver")
    @classmethod
    def _solver_exists(cls, solver: str) -> str:
        if solver not in SOLVERS:
            raise ValueError("there is no such solver")
        return solver

    @field_validator(*RANGES, *INTERVALS)
    @classmethod
    def _is_in_range(cls, value: Any, info: ValidationInfo) -> Any:
        if fault := fault_of_setting(str(info.field_name), value):
            raise ValueError(fault)
        return value


def fault_of_setting(name: str, value: Any) -> str | None:
    """Return what is wrong with one setting by itself, None if nothing is.

    Both SampleParams and an exported pipeline, which has no pydantic, ask here.

    Args:
        name: of ``RANGES``, ``INTERVALS``, or guide_class.
        value: that was given, of any type.

    Returns:
        What to say after the value, such as "it is no number from 0 to 1".
    """
    if name == "guide_class":
        known = get_args(GuideClass)
        return None if value in known else f"it is neither {' nor '.join(known)}"
    if name in INTERVALS:
        match value:
            case [low, high] if _is_number(low) and _is_number(high) and 0 <= low <= high <= 1:
                return None
        return "the times are not in order, or not within 0 to 1"
    (low, high), whole = RANGES[name], name in WHOLE
    if _is_number(value, Integral if whole else Real) and low <= value <= high:
        return None
    return f"it is no {'whole ' * whole}number from {low} to {high}"


def _is_number(value: object, kind: type = Real) -> bool:
    """Return whether a value is a number of a kind, and not True or False."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_sampling(
    params: SampleParams, conditional: bool, called: Callable[[str], str] = "sample.{}".format
) -> None:
    """Check what more than one key of ``sample``, or the model, decides.

    Args:
        params: the section ``sample``.
        conditional: whether the model has classes.
        called: what the caller's settings are called, by key.

    Raises:
        UserError: saying what does not fit and what would.
    """
    solver = SOLVERS[params.solver]
    if params.eta > 0 and params.solver != "ddim":
        adds = "always adds all of its noise" if solver.stochastic else "adds no noise"
        raise UserError(
            f"{called('eta')} is {params.eta:g}, but {params.solver} {adds}: set it to 0, or "
            f"{called('solver')} to ddim."
        )
    if (params.nfe - 1) % solver.evaluations:
        near = (params.nfe - 1, params.nfe + 1)
        allowed = " or ".join(str(nfe) for nfe in near if not fault_of_setting("nfe", nfe))
        raise UserError(
            f"{called('nfe')} is {params.nfe}, but {params.solver} makes two evaluations a step "
            f"and one at the end: take an odd number, {allowed}."
        )
    if params.guided and (params.guide is None or same_folder(params.guide, ITSELF)):
        raise UserError(
            f"{called('guide_scale')} is {params.guide_scale:g}, but {called('guide')} is "
            f"{params.guide}, which is no other model: set {called('guide')} to models/pretrain, "
            f"or {called('guide_scale')} to 1."
        )
    if params.guidance_scale != 1 and not conditional:
        raise UserError(
            f"{called('guidance_scale')} is {params.guidance_scale:g}, but a model without classes "
            "has nothing to be guided by: set it to 1, or train with data.classes: true."
        )


def network_passes(params: SampleParams, path: ProbabilityPath, conditional: bool) -> int:
    """Return how many passes through a network an image costs, those of guidance included.

    Args:
        params: the section ``sample``.
        path: that the network was trained on.
        conditional: whether the model has classes.
    """
    kinds = [Guidance(params.guidance_scale, params.guidance_interval)] if conditional else []
    if params.guided:
        kinds.append(Guidance(params.guide_scale, params.guide_interval))
    passes = 0

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        nonlocal passes
        passes += 1 + sum(kind.acts(time.item()) for kind in kinds)
        return x

    solver, nothing = SOLVERS[params.solver], torch.zeros(1, 1, 1)
    grid = sampling_grid(path, solver.levels(params.nfe))
    for _ in solver.solve(denoise, nothing, grid, params.eta, lambda step: nothing):
        pass
    return passes


def draw_labels(counts: Sequence[int], seed: int, indices: range) -> Tensor:
    """Return the classes of samples ``indices``, as frequent as among the training images.

    Args:
        counts: training images of each class.
        seed: of the sampling noise.
        indices: of the samples.

    Returns:
        ``(len(indices),)`` int64.
    """
    ends = list(accumulate(counts))
    draws = (stream(seed, "sample/labels", 0, index).random() for index in indices)
    return torch.tensor([bisect(ends, draw * ends[-1]) for draw in draws], dtype=torch.long)


def class_labels(
    classes: Mapping[str, int] | None, label: int | str | None, seed: int, indices: range
) -> Tensor | None:
    """Return the labels of samples ``indices``: the class asked for, or as in training.

    Args:
        classes: of the model, each with its training images; None without classes.
        label: a class by number or name, or None.
        seed: of the sampling noise.
        indices: of the samples.

    Returns:
        ``(len(indices),)`` int64, or None without classes.

    Raises:
        UserError: if there is no such class.
    """
    if classes is None:
        if label is not None:
            raise UserError(f"There is no class {label!r}: this model was trained without classes.")
        return None
    if label is None:
        return draw_labels(list(classes.values()), seed, indices)
    names = list(classes)
    number = names.index(label) if isinstance(label, str) and label in names else label
    if not _is_number(number, Integral) or not 0 <= int(number) < len(names):
        raise UserError(
            f"There is no class {label!r}; this model has 0 to {len(names) - 1}: "
            f"{', '.join(names[:20])}{' …' if names[20:] else ''}."
        )
    return torch.full((len(indices),), int(number))


def starting_noise(seed: int, shape: tuple[int, int], indices: range, step: int = 0) -> Tensor:
    """Return the standard normal numbers of samples ``indices``, ``(len(indices), *shape)``.

    Args:
        seed: of the sampling noise.
        shape: tokens of an image, numbers of a token.
        indices: of the samples.
        step: 0 for the noise that sampling starts from, later for what is added on the way.
    """
    return normal(seed, "sample", step, indices, shape)


def check_finite(samples: Tensor) -> None:
    """Check that samples are numbers, of which images can be made.

    Raises:
        UserError: if one is not finite.
    """
    if not samples.isfinite().all():
        raise UserError(
            "A sample is not finite: lower guidance_scale or guide_scale if one is large; else the "
            "model has diverged and must be trained again."
        )


@torch.inference_mode()
def estimates(
    backbone: Denoiser,
    diffusion: DiffusionParams,
    params: SampleParams,
    shape: tuple[int, int],
    indices: range,
    device: torch.device,
    labels: Tensor | None = None,
    start: Tensor | None = None,
    guide: X0Network | None = None,
    known: Known | None = None,
) -> Iterator[Tensor]:
    """Yield the x0 estimates of samples ``indices`` at every level; the last are the samples.

    Sample i depends on (weights, parameters, seed, i, its label) only: it is the same in any
    batch, up to the rounding of matrix products of different sizes.

    Args:
        backbone: the trained network, on ``device``.
        diffusion: how it was trained.
        params: solver, NFE, η, guidance and seed.
        shape: tokens of an image, numbers of a token: ``(N, p²·C)``.
        indices: of the samples.
        device: where to compute.
        labels: their classes, ``(len(indices),)`` int64; None for an unconditional model.
        start: standard normal noise to start from instead of the samples' own.
        guide: the network to be led away from, on ``device``; None for none.
        known: what is known of an image, to be kept in all samples; None for nothing.

    Yields:
        ``(len(indices), N, p²·C)``, once a level.
    """
    solver = SOLVERS[params.solver]
    grid = sampling_grid(PATHS[diffusion.path], solver.levels(params.nfe))
    denoise = x0_denoiser(
        X0Network(backbone.eval(), diffusion),
        None if labels is None else labels.to(device),
        Guidance(params.guidance_scale, params.guidance_interval),
        guide,
        Guidance(params.guide_scale, params.guide_interval),
        params.guide_class == "shown",
    )

    def noise(step: int) -> Tensor:
        return starting_noise(params.seed, shape, indices, step + 1).to(device)

    first = starting_noise(params.seed, shape, indices) if start is None else start
    x = grid[0].sigma * first.to(device)
    if known is not None:
        known = known.to(device)
        x, denoise = known.noisy(x, first.to(device), grid[0]), known.kept(denoise)
    yield from solver.solve(denoise, x, grid, params.eta, noise)
