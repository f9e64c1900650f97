"""The one signature that all backbones have.

A backbone denoises a *set of tokens with positions*:
``denoiser(tokens (B, S, p²·C), positions (B, S), time (B,), label (B,) | None) → (B, S, p²·C)``.
A whole image is the set of all its patches, a masked image a subset; the backbone cannot tell.
"""

from torch import Tensor, nn

from maskdm.runtime.errors import UserError


class Denoiser(nn.Module):
    """The base of every backbone: callable on token sets, and able to say what a call costs.

    Attributes:
        classes: the number of classes; 0 for an unconditional network. Labels are 0 to
            ``classes`` − 1, and ``classes`` itself is the null label, which names no class.
        label_embedding: a row for each class and, last, for the null label; None for an
            unconditional network.
    """

    classes: int = 0
    label_embedding: nn.Embedding | None

    def __init__(self) -> None:
        super().__init__()
        self.label_embedding = None

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        time: Tensor,
        label: Tensor | None = None,
        middle: Tensor | None = None,
    ) -> Tensor:
        """Denoise a set of patches.

        Args:
            tokens: the noisy patches, ``(batch, visible, p²·C)``.
            positions: their positions on the grid, row by row, ``(batch, visible)`` int64.
            time: ``(batch,)`` in [0, 1], 1 being noise.
            label: the classes, ``(batch,)`` int64; None is the null label for all.
            middle: which of the patches given the blocks between the first and the last see,
                ``(batch, M)`` int64: indices into ``tokens``, ascending; None for all. The
                others skip these blocks (``maskdm/backbones/transformer.py``).

        Returns:
            The prediction for each patch, ``(batch, visible, p²·C)``.

        Raises:
            UserError: if a label is given to an unconditional network, or ``middle`` to one that
                has no blocks between the first and the last.
        """
        raise NotImplementedError

    def forward_flops(self, visible: int, middle: int | None = None) -> int:
        """Return the FLOPs of one image's forward pass with ``visible`` patches shown.

        Args:
            visible: patches shown.
            middle: how many of them the blocks between the first and the last see; None for all.

        Raises:
            UserError: if ``middle`` is given to a network that has no such blocks.
        """
        raise NotImplementedError

    def fit_weights(self, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a model that may have had another grid, fitted to this one's.

        Args:
            stored: tensors by parameter name; left as they are.
        """
        return stored

    def embed_label(self, label: Tensor | None, batch: int) -> Tensor:
        """Return the embedded labels, ``(batch, dim)``: the null label's where none is given.

        Raises:
            UserError: if a label is given to an unconditional network.
        """
        if self.label_embedding is None:
            raise UserError("This model was trained without classes: it takes no label.")
        if label is None:
            return self.label_embedding.weight[self.classes].expand(batch, -1)
        return self.label_embedding(label)
