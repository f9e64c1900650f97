"""The pipeline, run for real by DVC in a clone of this working tree: what reruns, what is refused.

Every test starts from the same finished run of a very small configuration.
"""

import csv
import html.parser
import json
import re
import shutil

import pytest
from browser import drawings, needs_browser, visit
from clones import clone_tree
from tests.support.graph import modules_of

from maskdm.sampling.solvers import SOLVERS

SMALLER = {  # than presets/tiny.yaml
    "data.limit": 24,
    "pretrain.steps": 4,
    "pretrain.log_every": 1,
    "pretrain.validate_every": 4,
    "sample.count": 8,
    "sample.nfe": 3,
}
DRAWN = {"sample", "pictures", "fid", "neighbours"}  # with the finetuned model
STAGES = {"check", "prepare", "masks", "reference", "pretrain", "finetune", "curves", *DRAWN}
ROLL = {"swissroll"}  # depends on no parameter


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A clone of the working tree, uncommitted files too, after a whole run, committed."""
    clone = clone_tree(tmp_path_factory.mktemp("pipeline") / "clone", SMALLER)
    assert clone.dvc("repro") == STAGES | ROLL
    shutil.copytree(clone.path / "models/finetune", clone.path / "models/other")  # another start
    clone.git("add", "--all")
    clone.git("commit", "--quiet", "--message", "finished")
    return clone


@pytest.fixture(scope="module")
def other_run(finished):
    """The stages that ran in an experiment named 'other', with another mask rate."""
    return finished.dvc("exp", "run", "--name", "other", "--set-param", "mask.rate=0.6")


@pytest.fixture
def clone(finished, other_run):
    """The finished clone, as it was."""
    finished.git("reset", "--quiet", "--hard")
    finished.git("clean", "--quiet", "--force", "-d")
    finished.call("dvc", "checkout", "--quiet", "--force")
    return finished


def test_a_finished_run_reruns_for_nothing_from_the_environment(clone):
    other = {
        "MASKDM_DEVICE": "cpu",
        "MASKDM_MICRO_BATCH": "2",
        "MASKDM_SAMPLE_BATCH": "3",
        "OMP_NUM_THREADS": "2",
    }
    assert "Data and pipelines are up to date." in clone.call("dvc", "repro", **other)


def test_comments_rerun_nothing(clone):
    clone.edit("params.yaml", r"^seed: 0.*$", "# another comment\nseed: 0  # and one more")
    assert clone.dvc("repro") == set()


# The rerun table of the design. The check runs for every parameter; the picture of the masks and
# the one of the curves run with what they show.
@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        ("data.limit=20", STAGES),
        ("seed=1", {"check", "pretrain", "finetune", "curves", *DRAWN}),
        ("pretrain.steps=0", {"check", "pretrain", "finetune", "curves", *DRAWN}),
        ("finetune.init=models/other", {"check", "finetune", "curves", *DRAWN}),
        ("sample.seed=1", {"check", *DRAWN}),
    ],
)
def test_a_changed_parameter_reruns_what_depends_on_it_and_nothing_else(clone, change, rerun):
    assert clone.dvc("exp", "run", "--set-param", change) == rerun
    assert clone.dvc("repro") == set()


def test_another_size_is_not_answered_with_the_images_of_the_last(clone):
    """DVC's run cache leaves out parameters called size."""
    assert "prepare" in clone.dvc("exp", "run", "--set-param", "data.size=16", "prepare")
    about = json.loads((clone.path / "data/prepared/dataset.json").read_text())
    assert about["size"] == 16


def test_another_mask_rate_reruns_what_depends_on_it_and_nothing_else(other_run):
    assert other_run == {"check", "masks", "pretrain", "finetune", "curves", *DRAWN}


# What a section's own stages are; that the change goes on from there is shown above. The extractor
# 'inception' cannot be run without its download.
@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        (r"^seed: \d+", "seed: 2", {"pretrain", "finetune"}),
        (r"hflip: 0.5", "hflip: 0.4", {"pretrain"}),  # the first is pretrain's
        (r"background: white", "background: black", {"prepare"}),
        (r"dim: 32", "dim: 16", {"masks", "pretrain", "finetune"}),
        (r"path: flow", "path: vp-cosine", {"pretrain", "finetune"}),
        (r"strategy: patch", "strategy: crop", {"masks", "pretrain"}),
        (r"init_weights: averaged", "init_weights: raw", {"finetune"}),
        (r"nfe: 3", "nfe: 5", {"sample", "pictures"}),
        (
            r"extractor: efficientnet-lite0",
            "extractor: inception",
            {"reference", "fid", "neighbours"},
        ),
    ],
)
def test_each_section_changes_only_the_stages_that_read_it(clone, old, new, changed):
    clone.edit("params.yaml", old, new)
    status = json.loads(clone.call("dvc", "status", "--json"))
    assert set(status) == changed | {"check"}


def test_an_edited_module_reruns_the_stages_that_import_it_and_no_others(clone):
    with (clone.path / "maskdm/training/ema.py").open("a") as file:
        file.write("# a comment\n")
    importing = {stage for stage in STAGES | ROLL if "maskdm/training/ema.py" in modules_of(stage)}
    # Training is reproducible to the byte, so nothing behind it runs.
    assert clone.dvc("repro") == importing == {"pretrain", "finetune", *ROLL}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("mask.rate=abc", r"mask\.rate is 'abc'.* Allowed: "),
        ("+mask.rat=0.7", r"mask\.rat is not a parameter.* Did you mean 'rate'"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_is_touched(clone, change, sentence):
    before = clone.outputs()
    said = clone.call("dvc", "exp", "run", "--set-param", change, code=255)
    assert re.search(sentence, said)
    assert "git checkout params.yaml" in said
    assert clone.outputs() == before
    clone.call("touch", "params.yaml")
    clone.git("checkout", "params.yaml")
    assert clone.dvc("repro") == set()


def test_a_mistyped_key_is_refused_by_dvc(clone):
    said = clone.call("dvc", "exp", "run", "--set-param", "mask.rat=0.7", code=255)
    assert "mask.rat" in said
    assert clone.git("status", "--short") == ""


def test_a_number_in_scientific_notation_reaches_training(clone):
    clone.dvc("exp", "run", "--set-param", "pretrain.lr=1e-5", "pretrain")
    with (clone.path / "reports/pretrain/training.tsv").open(newline="") as file:
        assert float(list(csv.DictReader(file, delimiter="\t"))[-1]["lr"]) == 1e-5


def test_solvers_are_measured_as_the_pipeline_measures_and_once(clone):
    command = ("python", "-m", "benchmarks.speed.solver_nfe", "--count", "8", "--evaluations", "3")
    said = clone.call(*command)
    report = json.loads((clone.path / "reports/solvers.json").read_text())
    cells = {cell["solver"]: cell for cell in report["cells"]}
    assert set(cells) == set(SOLVERS)
    metrics = json.loads((clone.path / "reports/metrics.json").read_text())
    found = cells["dpmpp-2m"]["kid_efficientnet_lite0"]
    assert found == pytest.approx(metrics["kid_efficientnet_lite0"], rel=1e-3)
    assert len({cell["kid_efficientnet_lite0"] for cell in report["cells"]}) > 1
    assert "solver" in said
    assert "solver'" not in clone.call(*command)
    report["cells"].pop()
    (clone.path / "reports/solvers.json").write_text(json.dumps(report))
    assert clone.call(*command).count("solver'") == 1
    assert (clone.path / "reports/solvers.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def comparison(clone):
    """The clone, the parsed page that ``dvc plots diff`` writes in it for two runs, its path."""
    clone.dvc("plots", "diff", "HEAD", "other")
    path = clone.path / "dvc_plots/index.html"
    return clone, Page(path), path


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
    for title, spec in page.charts.items():
        assert {row["rev"] for row in spec["data"]["values"]} == {"HEAD", "other"}, title
    experiment = clone.git("rev-parse", "--glob=refs/exps/*/*/other").strip()
    for name, commit in {"HEAD": "HEAD", "other": experiment}.items():
        picture = f"static/{name}_reports_samples.png"
        assert page.pictures.count(picture) == 1
        shown = clone.git("hash-object", f"dvc_plots/{picture}")
        assert shown == clone.git("rev-parse", f"{commit}:reports/samples.png")


@needs_browser
def test_plots_are_drawn_without_a_network(comparison, tmp_path):
    _, page, path = comparison
    dom, _ = visit(path, tmp_path)
    drawn = drawings(dom)
    assert len(drawn) == len(page.charts)
    assert all(">HEAD<" in chart and ">other<" in chart for chart in drawn)


@pytest.fixture(scope="module")
def report(finished, other_run):
    """The report of the finished run and of an experiment, side by side."""
    finished.call("python", "-m", "tools.report.page", "HEAD", "other")
    return finished.path / "reports/index.html"


def test_the_report_has_the_runs_side_by_side(finished, report):
    text = report.read_text()
    assert re.search(r'<tr class="differs"><td>mask.rate</td><td[^>]*>0.75</td><td[^>]*>0.6<', text)
    assert '<tr class="differs"><td>data.size' not in text
    assert "<tr><td>data.size</td>" in text
    metrics = json.loads(finished.git("show", "HEAD:reports/metrics.json"))
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
