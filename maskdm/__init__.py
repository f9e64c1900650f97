"""maskdm: diffusion models trained fast by masked pretraining.

In Python, ``maskdm.load("models/finetune").sample(16, seed=0)`` draws images from a trained model.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskdm.sampling.model import load as load

    __version__: str

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """Find what is used, when it is first used: importing maskdm alone must not import torch."""
    if name == "load":
        from maskdm.sampling.model import load

        return load
    if name == "__version__":
        from importlib.metadata import version

        return version("maskdm")
    raise AttributeError(f"module 'maskdm' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return what the package offers."""
    return __all__
