"""A package that is not installed: one sentence that names it and the extra it is in."""

import importlib
from pathlib import Path

import pytest

from maskdm.backbones.registry import BACKBONES
from maskdm.exchange.pushing import push_to_hub
from maskdm.runtime.command import plain_app
from maskdm.runtime.errors import UserError
from maskdm.runtime.packages import require_package
from maskdm.sampling.solvers import SOLVERS

USES = {
    "diffusers": ("Solver 'unipc'", lambda: next(SOLVERS["unipc"].solve(None, None, [], 0, None))),
    "huggingface_hub": ("maskdm push", lambda: push_to_hub(Path(), "emoji")),
    "timm": ("Backbone 'vit'", lambda: BACKBONES["vit"](32, 3, 4, 16, 1, 2)),
    "typer": ("A command", plain_app),
}


@pytest.mark.parametrize("package", USES)
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    user, use = USES[package]
    wanted = f"^{user} needs the package {package}, which is not installed: pip install {package} "
    with pytest.raises(UserError, match=wanted + r".*extra 'pipeline'"):
        use()


def test_an_installed_package_is_returned():
    assert require_package("json.decoder", "A test", "none").__name__ == "json.decoder"
