"""What U-ViT, DiT and ViT share: arguments, ends, labels, initialisation, cost.

A backbone in this package names its layers (``build``), draws their weights (``initialise``) and
connects them (``forward``), as its paper does.

With a *sparse middle* the blocks at both ends see all tokens given and those between them a subset
(SPRINT, Park et al. 2025, arXiv 2510.21986). The others go past the middle through the residual
stream, as in TREAD (Krause et al. 2025, arXiv 2501.04765), so no layer and no weight is added:
where SPRINT merges mask tokens with what entered the middle, a U-ViT's last block has its long
skip.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from maskdm.backbones.denoiser import Denoiser
from maskdm.backbones.layers import check_sizes, embed_time, scaled_by_inputs
from maskdm.backbones.refiner import Refiner
from maskdm.runtime.errors import UserError

Init = Literal["paper", "spatial"]
# Dense blocks at each end, which see all tokens given; the blocks inside them are the middle.
OUTER = 1


def take(x: Tensor, chosen: Tensor | None) -> Tensor:
    """Return the chosen tokens, ``(batch, M, dim)``.

    Args:
        x: ``(batch, tokens, dim)``.
        chosen: their indices, ``(batch, M)`` int64; None for all tokens.
    """
    return x if chosen is None else x.gather(1, chosen[:, :, None].expand(-1, -1, x.shape[2]))


def put_back(dense: Tensor, sparse: Tensor, chosen: Tensor | None) -> Tensor:
    """Return ``dense`` with the chosen tokens replaced, the inverse of ``take``.

    Args:
        dense: ``(batch, tokens, dim)``; left as it is.
        sparse: the new values, ``(batch, M, dim)``.
        chosen: as in ``take``, no index twice in a row; None for all tokens.
    """
    if chosen is None:
        return sparse
    # Under autocast a block may answer in another precision than the stream that it was given.
    return dense.scatter(1, chosen[:, :, None].expand_as(sparse), sparse.to(dense.dtype))


def chain(
    blocks: Iterable[nn.Module], x: Tensor, chosen: Tensor | None, *condition: Tensor
) -> Tensor:
    """Return what blocks make of tokens one after another, ``(batch, tokens, dim)``.

    Args:
        blocks: all blocks of the network; those inside the outer ones see the chosen tokens only.
        x: ``(batch, tokens, dim)``.
        chosen: as in ``take``; None for all tokens.
        condition: what every block is given beside the tokens.
    """
    ordered = list(blocks)
    first, inner, last = ordered[:OUTER], ordered[OUTER:-OUTER], ordered[OUTER:][-OUTER:]
    for block in first:
        x = block(x, *condition)
    sparse = take(x, chosen)
    for block in inner:
        sparse = block(sparse, *condition)
    x = put_back(x, sparse, chosen)
    for block in last:
        x = block(x, *condition)
    return x


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
        if self.embed.weight.device.type != "meta":  # or there is nothing to draw
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

    def seen_by_middle(self, middle: Tensor | None) -> Tensor | None:
        """Return the indices of the middle's tokens in the sequence, ``(batch, extras + M)``.

        The extras, which stand in front, are always among them.

        Args:
            middle: as in ``forward``; None stays None, all tokens.

        Raises:
            UserError: if the network has no middle.
        """
        if middle is None:
            return None
        self.require_middle()
        extras = torch.arange(self.extras, device=middle.device).expand(len(middle), -1)
        return torch.cat([extras, middle + self.extras], dim=1)

    def require_middle(self) -> None:
        """Check that there are blocks between the outer ones.

        Raises:
            UserError: if there are none.
        """
        if self.depth <= 2 * OUTER:
            raise UserError(
                f"model.depth is {self.depth}, which leaves no blocks between the first and the "
                "last that could see fewer patches than those: take a depth of "
                f"{2 * OUTER + 1} or more, or show all blocks the same patches."
            )

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

    def forward_flops(self, visible: int, middle: int | None = None) -> int:
        """Return the FLOPs of one image's forward pass with ``visible`` patches shown.

        Two per multiply-add (docs/method.md, "Network"); norms and activations are left out.

        Args:
            visible: patches shown.
            middle: how many of them the middle blocks see; None for all.

        Raises:
            UserError: if ``middle`` is given to a network that has no middle.
        """
        if middle is None:
            middle = visible
        else:
            self.require_middle()
        length, inner_length, dim = visible + self.extras, middle + self.extras, self.dim
        outer = min(2 * OUTER, self.depth)
        inner = self.depth - outer
        linear = 12 * dim**2 * (outer * length + inner * inner_length)
        attention = 2 * dim * (outer * length**2 + inner * inner_length**2)
        ends = 2 * visible * self.values * dim
        refined = self.refiner.multiplies(visible) if self.refiner else 0
        further = self.further_multiplies(length, inner_length)
        return 2 * (linear + attention + ends + refined + further)

    def further_multiplies(self, length: int, inner_length: int) -> int:
        """Return the multiply-adds beyond plain blocks, embedding and head, for one image.

        Args:
            length: number of tokens, extras included.
            inner_length: number of those that the middle blocks see, extras included.
        """
        return 0
