"""Numbers of 64 bits, where 32 are too few: times near 0 and 1, and the noise levels there."""

from collections.abc import Callable

from torch import Tensor

NARROW = {"mps"}  # devices that have no numbers of 64 bits


def in_64_bits(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return a function of ``x``, computed in 64 bits, in the type and on the device of ``x``.

    Where the device cannot, the CPU does; what is computed so is a number a sample.

    Args:
        function: of float64 to float64.
        x: any floating type, on any device.
    """
    there = x.cpu() if x.device.type in NARROW else x
    return function(there.double()).to(x.dtype).to(x.device)
