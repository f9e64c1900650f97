"""The protocol of what can be checkpointed: all that this room knows of training."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor


class Checkpointable(Protocol):
    """Something that advances in steps and can be saved and restored between two of them.

    Attributes:
        step: steps made.
    """

    step: int

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that are to be saved, by name; the tensors themselves."""

    def metadata(self) -> dict[str, Any]:
        """Return everything else that is to be saved, as JSON can hold it."""

    def restore(
        self, step: int, metadata: Mapping[str, Any], load: Callable[[str, Tensor], object]
    ) -> None:
        """Become the state after ``step`` steps.

        Args:
            step: steps made.
            metadata: as ``metadata`` returned it, perhaps through JSON.
            load: copies the saved tensor of a name into the tensor given.
        """
