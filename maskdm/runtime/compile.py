"""torch.compile where it gains something, and plain execution where it does not work.

On CPUs it gains at most 3 % and costs up to a minute a shape, so it is for GPUs only.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config as functorch
from torch import Tensor, nn

from maskdm.runtime.devices import is_broken
from maskdm.runtime.environment import COMPILE
from maskdm.runtime.errors import UserError, reason
from maskdm.runtime.execution import Execution


def compiled(module: nn.Module, execution: Execution) -> Callable[..., Tensor]:
    """Return ``module`` compiled where ``execution`` says so, itself elsewhere.

    A missing compiler shows only at the first call; then one line says so and the module runs
    uncompiled from there on, or, where ``execution`` is strict, a UserError says so.
    """
    if not execution.compiles:
        return module
    return with_fallback(compile_shapes(module), module, execution.strict)


def compile_shapes(module: nn.Module, **options: Any) -> Callable[..., Tensor]:
    """Return ``module`` compiled once for each shape that it meets, never for shapes in general.

    A shape is (images, visible patches); from the ninth on torch runs them uncompiled.

    Args:
        module: what to compile.
        options: further ones of ``torch.compile``.
    """
    # The backward pass is compiled with the forward pass, not when it is first run: there a failure
    # would be nobody's who could go on without.
    functorch.force_non_lazy_backward_lowering = True
    compiled: Callable[..., Tensor] = torch.compile(module, dynamic=False, **options)
    return compiled


def with_fallback(
    fast: Callable[..., Tensor], plain: Callable[..., Tensor], strict: bool = False
) -> Callable[..., Tensor]:
    """Return a function that calls ``fast``, or ``plain`` for good once ``fast`` has failed.

    An error that ``plain`` shares (out of memory, bad shapes) is raised by ``plain`` as usual.

    Args:
        fast: what compiles when it is first called.
        plain: the same, uncompiled.
        strict: raises a UserError in place of calling ``plain``; but what is no fault of compiling
            (memory, a broken device) as it is.
    """
    chosen = fast

    def call(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal chosen
        if chosen is plain:
            return plain(*args, **kwargs)
        try:
            return fast(*args, **kwargs)
        except Exception as error:  # compilers fail with errors of every kind
            first = reason(error)
            if strict and (isinstance(error, torch.OutOfMemoryError) or is_broken(error)):
                raise
            if strict:
                raise UserError(
                    f"torch.compile does not work here: {first}. To go on without, which gives "
                    f"other last bits, set {COMPILE.name}=0."
                ) from error
            print(f"torch.compile does not work here, going on without: {first}", file=sys.stderr)
            chosen = plain
            return plain(*args, **kwargs)

    return call
