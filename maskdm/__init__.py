"""maskdm: diffusion models trained fast by masked pretraining.

In Python, ``maskdm.load("models/finetune").sample(16, seed=0)`` draws images from a trained model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskdm.sampling.model import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import ``load`` when it is first used: importing maskdm alone must not import torch."""
    if name != "load":
        raise AttributeError(f"module 'maskdm' has no attribute '{name}'")
    from maskdm.sampling.model import load

    return load
