"""All backbones there are, and the one that docs/own-backbone.md shows."""

import re
from typing import Any

from maskdm.backbones.registry import BACKBONES
from tests.support.graph import ROOT


def own_backbone() -> Any:
    """Return the class that docs/own-backbone.md shows, made from the page's code."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/own-backbone.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names["PlainTransformer"]


ALL = {**BACKBONES, "own": own_backbone()}
