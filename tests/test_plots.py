"""What DVC and the report draw of two runs: on one page, side by side, without a network."""

import html.parser
import json
import re

import pytest

from tests.support.browser import drawings, needs_browser, visit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(finished, tmp_path_factory):
    """A copy of the finished clone."""
    return finished[0].copied(tmp_path_factory.mktemp("plots") / "clone")


@pytest.fixture(scope="module")
def comparison(clone):
    """The clone, the parsed page that ``dvc plots diff`` writes in it for two runs, its path."""
    clone.dvc("plots", "diff", "HEAD", "other")
    path = clone.path / "dvc_plots/index.html"
    return clone, Page(path), path


CHARTS = {
    "training loss against compute",
    "x0 error on held-out images against compute",
    *(f"gradient norm in {phase}" for phase in ("pretraining", "finetuning")),
    *(f"x0 error of the raw weights in {phase}" for phase in ("pretraining", "finetuning")),
}


class Page(html.parser.HTMLParser):
    """What a page loads, its pictures, and the data of its charts."""

    def __init__(self, path):
        super().__init__()
        text = path.read_text()
        self.loads, self.pictures = [], []
        self.feed(text)
        specs = re.findall(r"var spec = (\{.*\});$", text, re.MULTILINE)
        self.charts = {spec["title"]["text"]: spec for spec in map(json.loads, specs)}
        assert len(self.charts) == len(specs)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        source = attributes.get("src") or (tag == "link" and attributes.get("href"))
        if source:
            (self.pictures if tag == "img" else self.loads).append(source)


def test_plots_of_two_runs_are_one_page_that_loads_nothing(comparison):
    clone, page, _ = comparison
    assert page.loads == []
    assert page.charts.keys() == CHARTS
    for title, spec in page.charts.items():
        assert {row["rev"] for row in spec["data"]["values"]} == {"HEAD", "other"}, title
    experiment = clone.git("rev-parse", "--glob=refs/exps/*/*/other").strip()
    for name, commit in {"HEAD": "HEAD", "other": experiment}.items():
        picture = f"static/{name}_reports_samples.png"
        assert page.pictures.count(picture) == 1
        shown = clone.git("hash-object", f"dvc_plots/{picture}")
        assert shown == clone.git("rev-parse", f"{commit}:reports/samples.png")


def test_axes_are_logarithmic_and_hold_nothing_without_a_logarithm(comparison):
    """On linear ones both runs lie on the floor; the start, at no compute, has no place here."""
    for title, spec in comparison[1].charts.items():
        axes = [spec["encoding"][axis] for axis in ("x", "y")]
        assert [axis["scale"]["type"] for axis in axes] == ["log", "log"], title
        assert [rule["filter"] for rule in spec["transform"]] == [
            {"field": axis["field"], "gt": 0} for axis in axes
        ]


@needs_browser
def test_plots_are_drawn_without_a_network(comparison, tmp_path):
    _, page, path = comparison
    dom, said = visit(path, tmp_path)
    drawn = drawings(dom)
    assert len(drawn) == len(page.charts)
    assert said == []
    assert all(">HEAD<" in chart and ">other<" in chart for chart in drawn)


@pytest.fixture(scope="module")
def report(clone):
    """The report of the finished run and of an experiment, side by side."""
    clone.call("python", "-m", "tools.report.page", "HEAD", "other")
    return clone.path / "reports/index.html"


def test_the_report_has_the_runs_side_by_side(clone, report):
    text = report.read_text()
    assert re.search(r'<tr class="differs"><td>mask.rate</td><td[^>]*>0.75</td><td[^>]*>0.6<', text)
    assert '<tr class="differs"><td>data.resolution' not in text
    assert "<tr><td>data.resolution</td>" in text
    metrics = json.loads(clone.git("show", "HEAD:reports/metrics.json"))
    for name, value in metrics.items():
        if isinstance(value, float):
            assert f'>{name}</td><td class="long">{value}<' in text
    assert text.count("<figcaption>HEAD</figcaption>") >= 3  # pictures that differ
    assert "<figcaption>HEAD, other</figcaption>" in text  # the same picture stands once


@needs_browser
def test_the_reports_charts_have_a_line_a_run(report, tmp_path):
    dom, said = visit(report, tmp_path)
    drawn = drawings(dom)
    assert len(drawn) == len(json.loads(re.search(r'id="charts">(.*?)</script', dom).group(1))) == 2
    assert all(">HEAD<" in chart and ">other<" in chart for chart in drawn)
    assert said == []


@pytest.mark.parametrize(("name", "why"), [("nowhere", "no revision"), ("HEAD~1", "no finished")])
def test_a_report_of_what_is_no_run_is_refused(clone, name, why):
    said = clone.call("python", "-m", "tools.report.page", "HEAD", name, code=1)
    assert why in said
    assert "Traceback" not in said
