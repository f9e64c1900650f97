"""torch.compile where it gains something, and plain execution where it does not work.

On CPUs it gains at most 3 % and costs up to a minute a shape, so it is for GPUs only.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskdm.runtime.execution import Execution


def compiled(module: nn.Module, execution: Execution) -> Callable[..., Tensor]:
    """Return ``module`` compiled where ``execution`` says so, itself elsewhere.

    A missing compiler shows only at the first call; then one line says so and the module runs
    uncompiled from there on.
    """
    return with_fallback(compile_shapes(module), module) if execution.compiles else module


def compile_shapes(module: nn.Module, **options: Any) -> Callable[..., Tensor]:
    """Return ``module`` compiled once for each shape that it meets, never for shapes in general.

    A shape is (images, visible patches); from the ninth on torch runs them uncompiled.

    Args:
        module: what to compile.
        options: further ones of ``torch.compile``.
    """
    compiled: Callable[..., Tensor] = torch.compile(module, dynamic=False, **options)
    return compiled


def with_fallback(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """Return a function that calls ``fast``, or ``plain`` for good once ``fast`` has failed.

    An error that ``plain`` shares (out of memory, bad shapes) is raised by ``plain`` as usual.
    """
    chosen = fast

    def call(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal chosen
        if chosen is plain:
            return plain(*args, **kwargs)
        try:
            return fast(*args, **kwargs)
        except Exception as error:  # compilers fail with errors of every kind
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"torch.compile does not work here, going on without: {first}", file=sys.stderr)
            chosen = plain
            return plain(*args, **kwargs)

    return call
