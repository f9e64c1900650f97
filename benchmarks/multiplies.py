"""The limit of what is computed: a machine's best matrix multiplies at the shapes of a network.

A linear layer is three products: its output, the gradient of its input and that of its weight. Each
is timed alone, its matrices lying in memory as the layer has them and also row by row, and the
faster counts. Attention's products count at the rate of the best of all.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from maskdm.backbones.denoiser import Denoiser

Shape = tuple[int, int, int]  # rows, inner, columns


@dataclass(frozen=True)
class Products:
    """The linear layers' products of a step or a forward pass.

    Attributes:
        counts: how often each shape occurs.
        flops: of all that is computed, attention included.
    """

    counts: Mapping[Shape, int]
    flops: int

    def best_rate(self, seconds: Mapping[str, float]) -> float:
        """Return the FLOP/s of the whole at the best multiplies.

        Args:
            seconds: of every way of every product, by the names of ``ways``.
        """
        fastest = {shape: min(seconds[name(shape, way)] for way in WAYS) for shape in self.counts}
        best = max(flops_of(shape) / fastest[shape] for shape in self.counts)
        linear = sum(count * fastest[shape] for shape, count in self.counts.items())
        attention = self.flops - sum(n * flops_of(shape) for shape, n in self.counts.items())
        return self.flops / (linear + attention / best)


def products(backbone: Denoiser, visible: int, images: int, flops: int, step: bool) -> Products:
    """Return the products of a training step, or of a forward pass.

    Args:
        backbone: on the device ``meta``, where a forward pass computes nothing.
        visible: patches shown of each image.
        images: in the batch.
        flops: of all of it, by the cost model.
        step: whether the backward pass counts.
    """
    counts: Counter[Shape] = Counter()

    def note(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows, inner, columns = inputs[0].numel() // layer.in_features, *layer.weight.shape[::-1]
        counts[rows, inner, columns] += 1
        if step:
            counts[rows, columns, inner] += 1
            counts[columns, rows, inner] += 1

    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    values = layers[0].in_features
    backbone(
        torch.empty(images, visible, values, device="meta"),
        torch.empty(images, visible, dtype=torch.long, device="meta"),
        torch.empty(images, device="meta"),
    )
    for handle in handles:
        handle.remove()
    return Products(counts, flops)


def ways(
    shapes: Mapping[Shape, int], dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """Return functions that multiply matrices of the shapes, by names with the ways they lie."""
    return {
        name(shape, way): multiply(shape, way, dtype, device) for shape in shapes for way in WAYS
    }


def multiply(
    shape: Shape, way: str, dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor]:
    """Return a product of a (rows, inner) and an (inner, columns) matrix."""
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    if "A" in way:
        a = a.t().contiguous().t()
    if "B" in way:
        b = b.t().contiguous().t()
    return partial(torch.mm, a, b, out=torch.empty(rows, columns, dtype=dtype, device=device))


# Which of the two matrices lie column by column: the weight in a forward pass (B), the output's
# gradient in that of the weight (A).
WAYS = ("", "A", "B")


def name(shape: Shape, way: str) -> str:
    """Return what a way of multiplying is called."""
    return "x".join(map(str, shape)) + way


def flops_of(shape: Shape) -> int:
    """Return the FLOPs of a product."""
    rows, inner, columns = shape
    return 2 * rows * inner * columns
