"""What the documentation writes after ``-S`` gets through the shell and DVC, to what it means."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides, get_hydra_sweeps

from maskdm.runtime.params import read_params, read_section
from stages.check import SECTIONS
from tests.support.clones import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"dvc exp run [^\n`]+")


def settings() -> list[list[str]]:
    """Return what stands after -S in every ``dvc exp run`` of the documentation, a list each."""
    found = []
    for page in PAGES:
        for command in COMMAND.findall(page.read_text(encoding="utf-8")):
            words = shlex.split(command, comments=True)
            found.append([words[n + 1] for n, word in enumerate(words) if word == "-S"])
    examples = ("…", "section.key=value", "model.backbone=plain")  # the second one's is in the page
    return [given for given in found if given and given[0] not in examples]


@pytest.mark.parametrize("given", settings(), ids=" ".join)
def test_what_the_documentation_sets_is_understood(given: list[str], tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for sweep in get_hydra_sweeps({"params.yaml": given}):
        shutil.copy(ROOT / "presets/laptop.yaml", path)
        apply_overrides(path, sweep["params.yaml"])
        params = read_params(path)
        for name, kind in SECTIONS.items():
            read_section(params, name, kind)


def test_the_regular_expression_arrives_as_it_was_meant(tmp_path: Path) -> None:
    [expression] = [word for given in settings() for word in given if word.startswith("data.group")]
    shutil.copy(ROOT / "presets/laptop.yaml", tmp_path / "params.yaml")
    apply_overrides(tmp_path / "params.yaml", [expression])
    assert read_params(tmp_path / "params.yaml")["data"]["group"] == "^([^_]+)_"
