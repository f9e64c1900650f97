"""The documentation says what is: computed tables are fresh, links lead somewhere."""

import json
import re
from itertools import chain
from pathlib import Path

import pytest

from maskdm.runtime.params import read_params
from tools.tables import pages

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]

WORDS = {"null", "true", "false"}  # of JSON
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def headings(path):
    """Return the anchors that a page's headings get."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        assert not anchor or anchor in headings(path), target


@each_page
def test_modules_and_files_named_in_code_type_exist(page):
    folders = "maskdm|stages|presets|tests|benchmarks|tools|docs"
    text = page.read_text()
    named = re.findall(rf"`((?:{folders})/[\w./-]*\w)`", text)
    named += [f"tests/{name}" for name in re.findall(r"`(test_\w+\.py)`", text)]
    assert [name for name in named if not (ROOT / name).exists()] == []


# docs/solvers.md takes a minute: test_sampling.py compares it, which computes the same errors.
@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "solvers"], ids=lambda p: p.stem)
def test_computed_tables_are_what_the_command_computes(page):
    text = page.read_text()
    assert pages.filled(text) == text, "python -m tools.tables.pages writes them anew"


def test_every_table_stands_on_a_page():
    marks = [re.findall(r"<!-- table (\w+) -->", page.read_text()) for page in PAGES]
    assert set(chain(*marks)) == set(pages.TABLES)


def test_the_table_of_parameters_has_every_default():
    page = (ROOT / "docs/parameters.md").read_text()
    found = {
        f"{section}.{key}": json.loads(default)
        if default[0] in "[0123456789" or default in WORDS
        else default
        for section, rows in re.findall(r"### `(\w+)`\n\n\| key.*\n(.*\n(?:\|.*\n)+)", page)
        for key, default in re.findall(r"^\| `([\w.]+)` .* \| `(.*)` \|$", rows, re.MULTILINE)
    }
    defaults = dict(flat(read_params(ROOT / "presets/laptop.yaml")))
    del defaults["seed"]
    assert found == defaults


def flat(params, prefix=""):
    for key, value in params.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
