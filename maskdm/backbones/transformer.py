"""What U-ViT, DiT and ViT share: arguments, ends, labels, initialisation, cost.

A backbone in this package names its layers (``build``), draws their weights (``initialise``) and
connects them (``forward``), as its paper does.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.layers import check_sizes, embed_time, scaled_by_inputs
from maskdm.backbones.refiner import Refiner

Init = Literal["paper", "spatial"]


class PatchTransformer(Denoiser):
    """A transformer over embedded patches.

    Args:
        size: side of the images in pixels.
        channels: 1 or 3.
        patch: side p of a patch.
        dim: width D.
        depth: number of blocks.
        heads: attention heads.
        init: ``"paper"`` (as the backbone's paper draws its weights) or ``"spatial"`` (weights
            scaled by their inputs).
        classes: the number of classes; 0 for an unconditional network.
        refine: channels of the convolution that ends the network on whole images; 0 for none.

    Attributes:
        grid: patches along a side of the image.
        values: of a patch, p²·C.
        extras: tokens in front of the patches, for time and class.

    Raises:
        UserError: if patch, width, depth or heads do not fit together.
    """

    extras: int = 0

    def __init__(
        self,
        size: int,
        channels: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        init: Init = "paper",
        classes: int = 0,
        refine: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(size, patch, dim, heads)
        self.dim, self.depth, self.heads, self.classes = dim, depth, heads, classes
        self.grid, self.values = size // patch, patch**2 * channels
        self.embed = nn.Linear(self.values, dim)
        self.build()
        self.refiner = Refiner(self.grid, patch, channels, refine) if refine else None
        with torch.no_grad():
            self.initialise(init)

    def build(self) -> None:
        """Make all layers but ``embed``, the label embedding among them."""
        raise NotImplementedError

    def initialise(self, init: Init) -> None:
        """Draw the initial weights; called once, without gradients."""
        raise NotImplementedError

    def new_label_embedding(self) -> nn.Embedding | None:
        """Return an embedding of the classes and, last, the null label; None without classes."""
        return nn.Embedding(self.classes + 1, self.dim) if self.classes else None

    def initialise_linears(self, init: Init, paper: Callable[[Tensor], Tensor]) -> None:
        """Draw the weights of all linear layers, and zero their biases.

        Args:
            init: as in the constructor.
            paper: fills a weight as the backbone's paper does.
        """
        draw = scaled_by_inputs if init == "spatial" else paper
        for module in self.modules():
            if isinstance(module, nn.Linear):
                draw(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def initialise_labels(self, draw: Callable[[Tensor], Tensor]) -> None:
        """Draw the label embedding, if there are classes."""
        if self.label_embedding is not None:
            draw(self.label_embedding.weight)

    def extra_tokens(self, label: Tensor | None, time: Tensor, dtype: torch.dtype) -> Tensor:
        """Return time and, if there are classes, class as tokens, ``(batch, 1 or 2, dim)``.

        Args:
            label: as in ``forward``.
            time: as in ``forward``.
            dtype: that of the patches' tokens.

        Raises:
            UserError: if a label is given to an unconditional network.
        """
        extra = embed_time(time, self.dim).to(dtype)[:, None]
        if self.label_embedding is None and label is None:
            return extra
        chosen = self.embed_label(label, len(time))[:, None]
        return torch.cat([extra, chosen.to(dtype)], dim=1)

    def refined(
        self, prediction: Tensor, tokens: Tensor, positions: Tensor, time: Tensor
    ) -> Tensor:
        """Return what the head predicts, refined if the network has a convolution at its end.

        Args:
            prediction: ``(batch, visible, p²·C)``.
            tokens: as in ``forward``.
            positions: as in ``forward``.
            time: as in ``forward``.
        """
        if self.refiner is None:
            return prediction
        return self.refiner(prediction, tokens, positions, time)

    def forward_flops(self, visible: int) -> int:
        """Return the FLOPs of one image's forward pass with ``visible`` patches shown.

        Two per multiply-add (docs/method.md, "Network"); norms and activations are left out.
        """
        length, dim = visible + self.extras, self.dim
        linear = 12 * self.depth * dim**2 * length
        attention = 2 * self.depth * dim * length**2
        ends = 2 * visible * self.values * dim
        refined = self.refiner.multiplies(visible) if self.refiner else 0
        return 2 * (linear + attention + ends + refined + self.further_multiplies(length))

    def further_multiplies(self, length: int) -> int:
        """Return the multiply-adds beyond plain blocks, embedding and head, for one image.

        Args:
            length: number of tokens, extras included.
        """
        return 0
