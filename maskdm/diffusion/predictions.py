"""What a network predicts (x0, ε or v), and how one prediction becomes another.

A network that sees ``x_t = α·x0 + σ·ε`` and knows one of the three knows all of them.
"""

from typing import Literal

from torch import Tensor

from maskdm.diffusion.paths import Level

Prediction = Literal["epsilon", "x0", "v"]

# Divisions by α or σ: the loss would be ruled by the ends of time, where one of them vanishes, so
# there divisors stop at 0.05 (as in JiT, Li & He 2025); elsewhere only infinities are avoided.
SMALLEST_IN_LOSS = 0.05
SMALLEST_EXACT = 1e-3


def to_x0(
    output: Tensor,
    x_t: Tensor,
    level: Level[Tensor],
    prediction: Prediction,
    smallest: float = SMALLEST_EXACT,
) -> Tensor:
    """Return the x0 that a network's output stands for.

    Args:
        output: what the network predicted, ``(batch, …)``.
        x_t: what it saw, the same shape.
        level: the noise level of each sample, with as many axes.
        prediction: what ``output`` is.
        smallest: divisors are not taken below this.
    """
    if prediction == "epsilon":
        return (x_t - level.sigma * output) / level.alpha.clamp(min=smallest)
    if prediction == "v":
        _, b = level.velocity_weights
        return b * x_t - level.sigma * output
    return output


def to_epsilon(
    output: Tensor,
    x_t: Tensor,
    level: Level[Tensor],
    prediction: Prediction,
    smallest: float = SMALLEST_EXACT,
) -> Tensor:
    """Return the noise ε that a network's output stands for; arguments as in ``to_x0``."""
    if prediction == "x0":
        return (x_t - level.alpha * output) / level.sigma.clamp(min=smallest)
    if prediction == "v":
        a, _ = level.velocity_weights
        return level.alpha * output - a * x_t
    return output


def to_velocity(
    output: Tensor,
    x_t: Tensor,
    level: Level[Tensor],
    prediction: Prediction,
    smallest: float = SMALLEST_EXACT,
) -> Tensor:
    """Return the velocity that a network's output stands for; arguments as in ``to_x0``."""
    if prediction == "v":
        return output
    a, b = level.velocity_weights
    x0 = to_x0(output, x_t, level, prediction, smallest)
    epsilon = to_epsilon(output, x_t, level, prediction, smallest)
    return a * x0 + b * epsilon


def from_truth(x0: Tensor, noise: Tensor, level: Level[Tensor], prediction: Prediction) -> Tensor:
    """Return what a perfect network outputs for ``x_t`` made of ``x0`` and ``noise``."""
    if prediction == "v":
        a, b = level.velocity_weights
        return a * x0 + b * noise
    return x0 if prediction == "x0" else noise
