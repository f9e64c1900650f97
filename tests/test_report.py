"""The report: one's own run first, beside yardsticks; the evidence with what its names mean."""

import json
import re
import shutil
from itertools import pairwise

import pytest

from benchmarks.evidence import results
from benchmarks.evidence.plan import read_matrix
from benchmarks.evidence.results import read_results, read_step_times
from benchmarks.evidence.summary import entries, transfers
from tests.support.browser import drawings, needs_browser, visit, written
from tests.support.clones import ROOT, Clone, clone_tree
from tools.report import definitions
from tools.report.charts import AXES
from tools.report.evidence import plus_minus, rows_of
from tools.report.experiments import Experiment
from tools.report.measures import about, measures
from tools.report.page import DEFAULTS, beside, different

LETTER = 5.5  # pixels, of the charts' font of 10

METRICS = {
    "fd_efficientnet_lite0": 71.9269,
    "fd_efficientnet_lite0_infinity": 66.38,
    "fd_efficientnet_lite0_infinity_interval": [64.51, 68.25],
    "kid_efficientnet_lite0": 0.0490027,
    "kid_efficientnet_lite0_std": 0.00111694,
    "manifold": {"recall": 0.12},
    "kid_efficientnet_lite0_heldout": 0.052091,
    "kid_efficientnet_lite0_std_heldout": 0.0018356,
    "network_passes": 34,
}
YARDSTICKS = {
    "heldout": {
        "kid_efficientnet_lite0": 0.0065,
        "kid_efficientnet_lite0_std": 0.0008,
        "manifold": {"recall": 0.74},
    },
    "uniform_noise": {"kid_efficientnet_lite0": 0.617, "fd_efficientnet_lite0": 334.0},
}
NEIGHBOURS = {
    "distance": 11.4731,
    "ratio": 1.2107,
    "ratio_null": [0.962, 1.0384],
    "close": 0.0,
    "close_null": [0.0, 0.0333],
}


def run(name: str, params: str = "", metrics=METRICS, reference: str = "one") -> Experiment:
    files = {
        "params.yaml": params.encode(),
        "reports/metrics.json": json.dumps(metrics).encode(),
        "reports/measured.json": json.dumps({"reference": {"hash": reference}}).encode(),
        "reports/neighbours.json": json.dumps(NEIGHBOURS if metrics else {}).encode(),
        "reports/yardsticks.json": json.dumps(YARDSTICKS).encode(),
    }
    return Experiment(name, files.get)


def test_a_measure_stands_beside_its_yardsticks_with_its_spread():
    found = measures([run("workspace")])
    assert found["head"] == ["workspace", "held-out images", "noise"]
    rows = {name: (better, cells) for name, _, better, cells in found["rows"]}
    assert rows["kid_efficientnet_lite0"] == (
        "lower",
        ["0.049 ± 0.001", "0.0065 ± 0.0008", "0.617"],
    )
    assert rows["fd_efficientnet_lite0"] == ("lower", ["71.9", None, "334"])
    limit = ["66.4 (64.5 … 68.2)", None, None]
    assert rows["fd_efficientnet_lite0_infinity"] == ("lower", limit)
    assert rows["manifold.recall"] == ("higher", ["0.12", "0.74", None])
    assert rows["kid_efficientnet_lite0_heldout"][1][0] == "0.0521 ± 0.002"
    assert rows["neighbours.ratio"] == ("not lower", ["1.21", "0.962 … 1.04", None])
    assert rows["neighbours.close"] == ("not higher", ["0", "0 … 0.0333", None])
    assert not {
        name for name in rows if "_std" in name or "interval" in name or name == "network_passes"
    }


def test_every_distance_is_a_measure_inceptions_too():
    for name in ("fid", "kid", "kid_heldout", "fd_dinov2_vits14", "kid_efficientnet_lite0"):
        assert about(name), name
    assert about("kid_std") is about("kid_std_heldout") is about("reference.hash") is None


def test_the_seconds_of_a_step_are_those_of_all_of_them_whoever_made_them():
    """A run that was stopped after step 90 of 100 and went on has made 10 of them itself."""
    files = {
        "reports/pretrain/training.tsv": b"step\timages\tflops\tloss\n50\t1\t1\t1\n100\t2\t2\t1\n",
        "reports/timing/pretrain.json": b'{"seconds": 200.0, "steps_computed": 10}',
    }
    rows = Experiment("resumed", files.get).curve("training", "loss")
    assert [row["seconds"] for row in rows] == [100.0, 200.0]
    del files["reports/timing/pretrain.json"]
    rows = Experiment("untimed", files.get).curve("training", "loss")
    assert [row["seconds"] for row in rows] == [None, None]


def test_a_run_measured_against_other_images_is_named():
    assert measures([run("a"), run("b")])["other"] == []
    assert measures([run("a"), run("b", reference="another")])["other"] == ["b"]
    assert measures([run("a", metrics={})]) is None


def test_only_the_parameters_that_differ_come_first():
    runs = [run("a", "mask: {rate: 0.75}\nseed: 0"), run("b", "mask: {rate: 0.6}\nseed: 0")]
    assert different(runs) == [("mask.rate", [0.75, 0.6], True)]


def test_a_run_alone_is_compared_with_the_last_commit_and_else_with_the_preset(
    tmp_path, monkeypatch
):
    """A run of another preset differs from the defaults in many, from the last commit in one."""
    defaults = (ROOT / f"presets/{DEFAULTS}.yaml").read_text()
    committed = defaults.replace("rate: 0.75", "rate: 0.5", 1)
    changed = committed.replace("seed: 0  ", "seed: 7  ", 1)
    assert len({defaults, committed, changed}) == 3
    clone = Clone(tmp_path / "clone")
    clone.path.mkdir()
    for name, value in clone.environment.items():
        if name.startswith(("DVC", "GIT")):
            monkeypatch.setenv(name, value)
    nothing = beside(run("workspace", defaults), clone.path)  # no history, no DVC
    assert nothing.name == f"the preset {DEFAULTS}"
    (clone.path / "params.yaml").write_text(committed)
    clone.git("init", "--quiet")
    clone.call("dvc", "init", "--quiet")
    clone.git("add", "--all")
    clone.git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "--message", "x")
    one, same = run("workspace", changed), run("workspace", committed)
    head, preset = beside(one, clone.path), beside(same, clone.path)
    assert (head.name, preset.name) == ("HEAD", nothing.name)
    assert different([one, head]) == [("seed", [7, 0], True)]
    assert different([same, preset]) == [("mask.rate", [0.5, 0.75], True)]


def test_every_arm_and_tuning_of_the_matrix_has_words_of_its_own():
    matrix = read_matrix()
    arms, tunings = (
        dict(what(matrix[key]))
        for what, key in ((definitions.arms, "arms"), (definitions.tunings, "tunings"))
    )
    assert set(arms) == set(matrix["arms"])
    assert set(tunings) == set(matrix["tunings"])
    assert len(set(arms.values())) == len(arms)
    assert "75 %" in arms["patch-75"]
    assert "2×2" in arms["block-75"]
    assert "90 % → 75 % → 50 %" in arms["staged-kept"]
    assert "0.001" in tunings["lr-10_batch-8"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with the reports that are committed."""
    clone = clone_tree(tmp_path_factory.mktemp("report") / "clone", {"data.limit": 24})
    shutil.copytree(ROOT / "reports", clone.path / "reports", dirs_exist_ok=True)
    return clone


@pytest.fixture(scope="module")
def page(clone):
    """The report of the clone."""
    clone.call("python", "-m", "tools.report.page")
    return clone.path / "reports/index.html"


@pytest.mark.slow
def test_the_run_and_what_differs_come_before_the_evidence(page):
    text = page.read_text()
    places = [text.index(f'id="{part}"') for part in ("run", "evidence", "parameters", "machine")]
    assert places == sorted(places)
    run = text[places[0] : places[1]]
    # The clone's parameters are those of a smaller preset.
    assert run.index("What differs from the preset") < run.index("How good it is")
    assert re.search(r'class="differs"><td>data.limit</td>', run)
    assert "held-out images</th>" in run
    metrics = json.loads((page.parent / "metrics.json").read_text())
    assert f">{metrics['fd_efficientnet_lite0']:.3g}</td>" in run
    assert "A class a row" not in text  # it has none


@pytest.mark.slow
def test_every_chapter_is_named_once_and_linked_at_the_top(page):
    text = page.read_text().partition('<script type="application/json"')[0]
    chapters = re.findall(r"<h2(.*?)>(.*?)</h2>", text)
    assert len({title for _, title in chapters}) == len(chapters) >= 7
    linked = re.findall(r'href="#(\S+)"', text[text.index("<nav>") : text.index("</nav>")])
    assert [f' id="{place}"' for place in linked] == [place for place, _ in chapters]


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(("width", "stacked"), [(400, True), (1200, False)])
def test_measures_and_yardsticks_are_on_the_screen_of_a_telephone(page, tmp_path, width, stacked):
    """A script that is added to the page writes down how wide what is there became."""
    probe = (
        "<script>setTimeout(() => { const table = document.querySelector('.stack');"
        "document.body.dataset.found = JSON.stringify([table.parentElement.scrollWidth, "
        "table.parentElement.clientWidth, getComputedStyle(table.rows[1]).display]); }, 50)"
        "</script></body>"
    )
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", probe))
    dom, _ = visit(probed, tmp_path / "profile", f"--window-size={width},900")
    needed, there, display = json.loads(
        re.search(r'data-found="([^"]*)"', dom)[1].replace("&quot;", '"')
    )
    assert needed <= there
    assert (display == "block") == stacked


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself(page):
    text = page.read_text()
    body = text[: text.index('<script type="application/json"')]
    pictures = re.findall(r"""\bsrc=["']([^"']*)""", body)
    assert len(pictures) >= 10
    assert all(address.startswith("data:") for address in pictures)
    links = re.findall(r"""\bhref=["']([^"']*)""", body)
    named = re.findall(r'id="([^"]*)"', body)
    for address in links:  # to places on the page, and to files beside it
        assert (
            address.startswith("data:")
            or (address.startswith("#") and address[1:] in named)
            or (page.parent / address).is_file()
        ), address
    assert any(address.endswith("docs/evidence.md") for address in links)
    assert "url(" not in body
    assert "@import" not in body


@pytest.mark.slow
def test_the_page_has_the_evidence_in_tables(page):
    rows = re.findall(r"<tr>(.*?)</tr>", page.read_text())
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    found = entries(read_results("confirmation"), read_step_times())
    wanted = [line for row in found for line in rows_of(row)]
    assert len(wanted) == 8 * 3  # arms, sets and budgets × measures
    assert all(line in cells for line in wanted)
    gains = [row["improvement_percent"]["error"] for row in transfers(read_results("transfer"))]
    assert len(gains) == 4
    for gain in gains:
        assert any(f"{plus_minus(gain)} %" in line for line in cells)


@pytest.mark.slow
@needs_browser
def test_an_axis_that_a_chart_has_no_values_for_is_not_offered(clone, page, tmp_path):
    step_times = clone.path / "reports/timing/step_times.json"
    step_times.unlink()
    clone.call("python", "-m", "tools.report.page", "--out", f"{tmp_path}/other.html")
    shutil.copy(results.STEP_TIMES, step_times)
    dom, said = visit(tmp_path / "other.html", tmp_path / "profile", part="seconds")
    assert said == []
    assert 'data-axis="flops"' in dom
    disabled = re.findall(r'value="(\w+)"[^>]* disabled', dom)
    assert disabled == ["seconds"]


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    ("axis", "flags"),
    [
        ("flops", ["--window-size=1500,900"]),
        ("images", ["--window-size=390,844"]),
        ("seconds", ["--blink-settings=preferredColorScheme=0"]),  # dark
    ],
)
def test_every_value_of_the_evidence_is_drawn_against_every_axis(page, tmp_path, axis, flags):
    dom, said = visit(page, tmp_path, *flags, part=axis)
    assert said == []
    assert f'data-axis="{axis}"' in dom
    specs = json.loads(re.search(r'id="charts">(.*?)</script', dom, re.DOTALL).group(1))
    measures = {name.rpartition("-")[2] for name in specs if name.startswith("part-")}
    assert measures == {"error", "fd", "kid"}
    drawn = drawings(dom)
    assert f'data-drawn="{len(specs)}"' in dom
    assert len(drawn) == len(specs)
    for (name, spec), chart in zip(specs.items(), drawn, strict=True):
        values = spec["data"]["values"]
        shown = [row for row in values if "params" not in spec or row[axis]]
        points = re.findall(r'aria-roledescription="(?:point|circle)" transform="([^"]*)"', chart)
        assert len(points) == len(shown) > 0, name
        assert "NaN" not in chart, name
        texts = list(written(chart))
        titles = [text for role, along, _, text in texts if (role, along) == ("axis-title", "X")]
        assert titles == [AXES[axis]] or "params" not in spec, name
        width = float(re.search(r'width="([\d.]+)"', chart).group(1))
        legend = [(x, text) for role, _, x, text in texts if role == "legend-label"]
        assert legend, name
        assert all(x + LETTER * len(text) <= width for x, text in legend), name  # none is cut off
        numbers = [
            (x, text) for role, along, x, text in texts if (role, along) == ("axis-label", "X")
        ]
        for (x, text), (following, other) in pairwise(sorted(numbers)):  # nor do numbers touch
            assert x + LETTER / 2 * len(text + other) < following, name
