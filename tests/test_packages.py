"""A package that is not installed: one sentence that names it and the extra it is in."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

from maskdm.backbones.registry import BACKBONES
from maskdm.exchange.pushing import push_to_hub
from maskdm.runtime.errors import UserError
from maskdm.runtime.packages import require_package
from maskdm.sampling.solvers import SOLVERS
from tests.support.graph import ROOT

USES = {
    "diffusers": ("Solver 'unipc'", lambda: next(SOLVERS["unipc"].solve(None, None, [], 0, None))),
    "huggingface_hub": ("maskdm push", lambda: push_to_hub(Path(), "emoji")),
    "timm": ("Backbone 'vit'", lambda: BACKBONES["vit"](32, 3, 4, 16, 1, 2)),
}


@pytest.mark.parametrize("package", USES)
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    real = importlib.import_module

    def without(name, *rest):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(name, name=name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    user, use = USES[package]
    wanted = f"^{user} needs the package {package}, which is not installed: pip install {package} "
    with pytest.raises(UserError, match=wanted + r".*extra 'pipeline'"):
        use()


def test_a_package_that_needs_another_which_is_missing_says_which(tmp_path, monkeypatch):
    (tmp_path / "here_and_whole.py").write_text("import not_here.at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"needs the package not_here, .*: pip install not_here "):
        require_package("here_and_whole", "A test", "none")


def test_the_extra_that_is_named_has_the_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = [
        found
        for path in (ROOT / "maskdm").rglob("*.py")
        for found in re.findall(r'require_package\("(\w+)", .*?, "(\w+)"\)', path.read_text())
    ]
    assert len(named) > 5
    for package, extra in named:
        listed = {re.split(r"[>=\[<]", line)[0].replace("-", "_") for line in extras[extra]}
        assert package in listed, (package, extra)


def test_an_installed_package_is_returned():
    assert require_package("json.decoder", "A test", "none").__name__ == "json.decoder"
