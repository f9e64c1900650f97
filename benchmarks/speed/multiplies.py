"""The limit of what is computed: a machine's best matrix multiplies at the shapes of a network.

A linear layer is three products: its output, the gradient of its input and that of its weight. Each
is timed alone for a batch of whole images, its matrices lying in memory as the layer has them and
also row by row, and the faster counts. Attention's products count at the rate of the best of all.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maskdm.backbones.denoiser import Denoiser


class Product(NamedTuple):
    """One of the three products of a linear layer.

    Attributes:
        of: ``"output"``, ``"input"`` (its gradient) or ``"weight"`` (its gradient).
        inputs: numbers that the layer takes.
        outputs: numbers that it gives.
    """

    of: str
    inputs: int
    outputs: int

    def shape(self, rows: int) -> tuple[int, int, int]:
        """Return rows, inner side and columns of the product for ``rows`` tokens."""
        return {
            "output": (rows, self.inputs, self.outputs),
            "input": (rows, self.outputs, self.inputs),
            "weight": (self.outputs, rows, self.inputs),
        }[self.of]

    def ways(self) -> dict[str, str]:
        """Return which of its two matrices, A and B, lie column by column, by names."""
        own = {"output": "B", "input": "", "weight": "A"}[self.of]
        return {f"{self}, matrices {way or 'by rows'}": way for way in {own, "", "A"}}

    def __str__(self) -> str:
        """Return what it is called."""
        return f"{self.of} of {self.inputs} → {self.outputs}"


@dataclass(frozen=True)
class Products:
    """What a step or a forward pass multiplies.

    Attributes:
        linear: FLOPs of the linear layers, by product.
        flops: of all, attention included.
    """

    linear: Mapping[Product, int]
    flops: int

    def best_rate(self, rates: Mapping[Product, float]) -> float:
        """Return the FLOP/s of the whole if each product runs at its best rate."""
        linear = sum(flops / rates[product] for product, flops in self.linear.items())
        attention = self.flops - sum(self.linear.values())
        return self.flops / (linear + attention / max(rates.values()))


def products(backbone: Denoiser, visible: int, images: int, flops: int, step: bool) -> Products:
    """Return the products of a training step, or of a forward pass.

    Args:
        backbone: on the device ``meta``, where a forward pass computes nothing.
        visible: patches shown of each image.
        images: in the batch.
        flops: of all of it, by the cost model.
        step: whether the backward pass counts.
    """
    linear: Counter[Product] = Counter()

    def note(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for of in ("output", "input", "weight") if step else ("output",):
            product = Product(of, layer.in_features, layer.out_features)
            linear[product] += 2 * inputs[0].numel() * layer.out_features

    layers = [
        layer
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.Linear) and not name.startswith("refiner.")
    ]
    handles = [layer.register_forward_hook(note) for layer in layers]
    backbone(
        torch.empty(images, visible, layers[0].in_features, device="meta"),
        torch.empty(images, visible, dtype=torch.long, device="meta"),
        torch.empty(images, device="meta"),
    )
    for handle in handles:
        handle.remove()
    return Products(linear, flops)


def multiplies(
    products: Mapping[Product, int], rows: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """Return functions that multiply as the products do, one for each way, by its name."""
    return {
        name: multiply(product.shape(rows), way, dtype, device)
        for product in products
        for name, way in product.ways().items()
    }


def multiply(
    shape: tuple[int, int, int], way: str, dtype: torch.dtype, device: torch.device
) -> Callable[[], Tensor]:
    """Return a product of a (rows, inner) and an (inner, columns) matrix.

    Args:
        shape: rows, inner side, columns.
        way: which of the two, ``"A"`` or ``"B"``, lies column by column; ``""`` for none.
        dtype: of all three.
        device: where they are.
    """
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    if way == "A":
        a = a.t().contiguous().t()
    if way == "B":
        b = b.t().contiguous().t()
    return partial(torch.mm, a, b, out=torch.empty(rows, columns, dtype=dtype, device=device))


def best_rates(
    products: Mapping[Product, int], rows: int, seconds: Mapping[str, float]
) -> dict[Product, float]:
    """Return the FLOP/s of every product in the best of its ways, which took ``seconds``."""
    rates = {}
    for product in products:
        first, inner, last = product.shape(rows)
        rates[product] = 2 * first * inner * last / min(seconds[name] for name in product.ways())
    return rates
