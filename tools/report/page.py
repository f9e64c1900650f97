"""The report as one page: ``make report``, or ``python -m tools.report.page REVISION …``.

Charts, pictures and the JavaScript that draws them are inside the page: it needs no internet.
Without revisions it shows the workspace's run and then the evidence, otherwise the runs of the
revisions side by side.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.presets import DEFAULTS, path_of
from benchmarks.speed.machine import machine, versions
from maskdm.data.registry import with_classes
from maskdm.runtime.command import run
from maskdm.runtime.errors import UserError
from maskdm.runtime.files import write_text
from tools.report import definitions, evidence
from tools.report.charts import AXES, Spec, against_compute
from tools.report.evidence import inline
from tools.report.experiments import Experiment, experiment, experiments
from tools.report.measures import measures

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
PAGE = Path("reports/index.html")
CURVES = {
    "validation": ("averaged", "x0 error on held-out images"),
    "training": ("loss", "training loss"),
}
PICTURES = {  # of a run, if it has them
    "samples": "Samples",
    "classes": "A class a row, a noise a column",
    "neighbours": "Samples and the training images nearest to them, nearest first; the numbers "
    "are the distances to the nearest, in features",
    "previews": "What the model drew while it was trained, always from the same noise",
    "denoising": "From noise to sample",
    "interpolation": "Between two samples",
    "masks": "What pretraining sees: images, then three draws of the mask",
    "strategies": "The strategies of masking at three rates",
    "swissroll": "The idea in two dimensions",
}


def main(
    revisions: Annotated[
        list[str] | None,
        typer.Argument(help="revisions, experiments or 'workspace'; by default the workspace"),
    ] = None,
    out: Annotated[Path, typer.Option(help="the page to write")] = PAGE,
) -> None:
    """Write the report."""
    runs = experiments(revisions or [], ROOT)
    compared_with = beside(runs[0]) if len(runs) == 1 else None
    charts: dict[str, Spec] = {}

    def draw(name: str, spec: Spec) -> str:
        """Have the script draw a chart; return the name of its element."""
        charts[name] = spec
        return name

    found = {
        "revisions": revisions or [],
        "axes": AXES,
        "runs": runs,
        "beside": compared_with,
        "differs": different([*runs, compared_with] if compared_with else runs),
        "measures": measures(runs),
        "curves": {file: chart for file in CURVES if (chart := curves(runs, file))},
        "pictures": pictures(runs),
        "metrics": compared([one.metrics() for one in runs]),
        "params": compared([one.params() for one in runs]),
        "deciding": None if revisions else evidence.deciding(),
        "comparisons": [] if revisions else evidence.comparisons(),
        "screening": None if revisions else evidence.screening(),
        "transfer": None if revisions else evidence.transfer(),
        "defined": definitions.MEASURES,
        "machine": machine() | versions(),
        "draw": draw,
        "link": lambda path: os.path.relpath(ROOT / path, out.resolve().parent),
    }
    write_text(out, html(found, charts))
    print(f"{out}: {len(charts)} charts, {out.stat().st_size / 2**20:.1f} MiB")


def html(found: dict[str, Any], charts: dict[str, Spec]) -> str:
    """Return the page; filling it in also fills ``charts``."""
    import jinja2
    import vl_convert

    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.filters["shown"] = shown
    page = environment.get_template("page.html").render(found)
    bundle = vl_convert.javascript_bundle((HERE / "page.js").read_text(encoding="utf-8"))
    # A script ends at the first "</script", even inside a string.
    page = page.replace("@CHARTS@", json.dumps(charts).replace("</", "<\\/"))
    return page.replace("@BUNDLE@", bundle.replace("</script", "<\\/script"))


def shown(value: Any) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return evidence.NOTHING
    large = isinstance(value, int) and abs(value) >= 10**7
    return f"{value:.3g}" if large else str(value)


def curves(runs: Sequence[Experiment], file: str) -> Spec | None:
    """Return the chart of a curve of all runs, None if none has it."""
    column, title = CURVES[file]
    rows = [{"line": one.name, **row} for one in runs for row in one.curve(file, column)]
    return against_compute(rows, title, dashed=True) if rows else None


def different(runs: Sequence[Experiment]) -> list[tuple[str, list[Any], bool]]:
    """Return the parameters in which runs differ, as ``compared`` does."""
    return [row for row in compared([one.params() for one in runs]) if row[2]]


def beside(one: Experiment, root: Path = ROOT) -> Experiment:
    """Return what a run that is shown alone is compared with.

    That is the last commit, whose few differences are what was tried last, or the preset of the
    defaults if that has the same parameters, or none.
    """
    try:
        head = experiment("HEAD", root)
        if (before := head.params()) and before != one.params():
            return head
    except UserError:  # no history
        pass
    preset = path_of(DEFAULTS)
    return Experiment(f"the preset {DEFAULTS}", lambda _: preset.read_bytes())


def compared(found: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any], bool]]:
    """Return names, values in each of the runs, and whether these differ."""
    names = dict.fromkeys(name for one in found for name in one)
    rows = [(name, [one.get(name) for one in found]) for name in names]
    return [(name, values, any(v != values[0] for v in values)) for name, values in rows]


def pictures(runs: Sequence[Experiment]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return titles with every run's picture; runs with the same picture share one."""
    found = []
    for name, title in PICTURES.items():
        named: dict[bytes, list[str]] = {}
        for one in runs:
            params = one.params()
            if name == "classes" and not with_classes(
                params.get("data.classes"), params.get("data.source", "")
            ):
                continue
            png = one.read(f"reports/{name}.png")
            if png is not None:
                named.setdefault(png, []).append(one.name)
        if named:
            found.append((title, [(", ".join(names), inline(png)) for png, names in named.items()]))
    return found


if __name__ == "__main__":
    run(main)
