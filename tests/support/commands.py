"""Commands whose work is only noted: whether every option reaches it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def recorded(function: Callable[..., Any], made: dict[str, Any], result: Any = None) -> Any:
    """Return what stands in for a function: it notes its arguments by name, defaults too.

    Args:
        function: which.
        made: where they are noted.
        result: what it returns.
    """

    def noted(*arguments: Any, **named: Any) -> Any:
        bound = inspect.signature(function).bind(*arguments, **named)
        bound.apply_defaults()
        made.update(bound.arguments)
        return result

    return noted


def given(options: Mapping[str, object]) -> list[str]:
    """Return options as they are typed."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
