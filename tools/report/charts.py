"""The charts of the report, in Vega-Lite, written by Altair.

A chart against compute has a parameter ``axis`` (``flops``, ``seconds`` or ``images``) that the
page's one switch sets in all of them, with the title of the axis. Both axes are logarithmic, so
that equal speed-ups are equal distances.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

WIDTH, HEIGHT = 380, 260  # pixels
LINE = 17  # pixels, of a name
NARROW = 14  # letters of a name, of which two stand side by side
AXES = {"flops": "training FLOPs", "seconds": "seconds", "images": "images"}
APART = 10  # pixels between the numbers of an axis, at least
# 1, 2, 3 and 5 of every decade: of all nine, the first that fit would be written.
ROUND = "test(/^[1235]\\.0/, format(datum.value, '.1e')) ? datum.label : ''"

Spec = dict[str, Any]
Rows = Sequence[dict[str, Any]]


def against_compute(rows: Rows, title: str, dashed: bool = False) -> Spec:
    """Return lines against compute, each with a band if its rows have one.

    Args:
        rows: ``line, flops, seconds, images, value``, and for a band ``low`` and ``high``; with
            ``dashed`` also ``phase``, one dash each.
        title: what the values are.
        dashed: whether phases are told apart.
    """
    lines = list(dict.fromkeys(row["line"] for row in rows))
    axis = alt.param(name="axis", value="flops")
    logarithmic = alt.Scale(type="log", nice=False)
    x = alt.X("x:Q", title=AXES["flops"], scale=logarithmic, axis=_axis("~s", labelExpr=ROUND))
    # The start, at 0, has no logarithm.
    base = (
        alt.Chart(_data(rows))
        .transform_calculate(x="datum[axis]")
        .transform_filter("isValid(datum.x) && datum.x > 0")
        .encode(
            x=x,
            color=alt.Color(
                "line:N",
                title=None,
                scale=alt.Scale(domain=lines, scheme="tableau10"),
                legend=_legend(lines),
            ),
        )
    )
    y = alt.Y("value:Q", title=title, scale=logarithmic, axis=_axis("~g"))
    formats = {"x:Q": ".3~s", "value:Q": ".4~g"}
    tooltip = ["line:N", *(alt.Tooltip(name, format=how) for name, how in formats.items())]
    line = base.mark_line(strokeWidth=1.8).encode(y=y)
    if dashed:
        legend = alt.Legend(orient="bottom", columns=1, symbolType="stroke", symbolSize=400)
        line = line.encode(strokeDash=alt.StrokeDash("phase:N", title=None, legend=legend))
    # A layer of their own: as the line's overlay, points would take its legend's strokes away.
    points = base.mark_circle(size=14, opacity=1).encode(y=y, tooltip=tooltip)
    layers = [line, points]
    if any("low" in row for row in rows):
        band = base.mark_area(opacity=0.18).encode(
            y=alt.Y("low:Q", scale=logarithmic), y2=alt.Y2("high:Q")
        )
        layers.insert(0, band)
    chart = alt.layer(*layers).add_params(axis).properties(width="container", height=HEIGHT)
    return _spec(chart)


def side_by_side(charts: Mapping[str, Spec], columns: int = 2, apart: Sequence[str] = ()) -> Spec:
    """Return charts of one kind as one picture, by their titles.

    Args:
        charts: title → chart.
        columns: charts in a row.
        apart: channels that mean something else in every chart, such as ``color``.
    """
    parts, shared = list[Spec](), Spec()
    for title, chart in charts.items():
        part = chart | {"title": title, "width": WIDTH}
        shared = {key: part.pop(key) for key in ("$schema", "config", "params") if key in part}
        parts.append(part)
    scales = {"scale": dict.fromkeys(apart, "independent")}
    return {
        **shared, "concat": parts, "columns": columns, "resolve": scales, "background": "white",
    }  # fmt: skip


def dots(rows: Rows, title: str) -> Spec:
    """Return values as dots, best first, a line each.

    Args:
        rows: ``name, kind, value``; ``kind`` gives the colour.
        title: what the values are.
    """
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    chart = (
        alt.Chart(_data(rows))
        .mark_circle(size=70, opacity=1)
        .encode(
            x=alt.X("value:Q", title=title, scale=alt.Scale(zero=False)),
            y=alt.Y(
                "name:N",
                title=None,
                sort=alt.EncodingSortField("value"),
                axis=alt.Axis(labelLimit=300, grid=True),
            ),
            color=alt.Color(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=kinds, scheme="tableau10"),
                legend=_legend(kinds),
            ),
            tooltip=[alt.Tooltip("name:N"), alt.Tooltip("value:Q")],
        )
        .properties(width="container", height=LINE * len(rows))
    )
    return _spec(chart)


def regime_map(rows: Rows, shapes: Mapping[str, str]) -> Spec:
    """Return factors against budgets as marks, a column for each number of tokens.

    Args:
        rows: ``tokens, budget, factor, bound, dataset, seeds``, and a name on either side:
            ``before``, ``after``.
        shapes: bound → the shape of its mark.
    """
    names = list(dict.fromkeys(row["tokens"] for row in rows))
    datasets = sorted({row["dataset"] for row in rows})
    chart = (
        alt.layer(*_regimes(rows, shapes, datasets), data=_data(rows))
        .properties(width=WIDTH, height=HEIGHT)
        .facet(column=alt.Column("tokens:N", title=None, sort=names))
    )
    return _spec(chart) | {"background": "white"}


def regime_charts(rows: Rows, shapes: Mapping[str, str]) -> dict[str, Spec]:
    """Return the columns of ``regime_map`` as charts that a telephone's screen holds."""
    found = {}
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        own = [row for row in rows if row["tokens"] == tokens]
        datasets = sorted({row["dataset"] for row in rows})  # one colour each, in every chart
        layers = _regimes(own, shapes, datasets, orient="bottom", columns=2)
        chart = alt.layer(*layers, data=_data(own)).properties(width="container", height=HEIGHT)
        spec = _spec(chart)
        spec["config"]["legend"] = {
            "layout": {"bottom": {"anchor": "start", "direction": "vertical"}}
        }
        found[tokens] = spec
    return found


def _regimes(
    rows: Rows, shapes: Mapping[str, str], datasets: Sequence[str], **legend: Any
) -> list[alt.Chart]:
    """Return the line of equal compute and the marks."""
    logarithmic = alt.Scale(type="log", nice=False, padding=15)
    shape = alt.Scale(domain=list(shapes), range=list(shapes.values()))
    seeds = alt.Scale(domain=["one", "several"], range=[0.35, 1.0])
    beside = alt.Scale(domain=list(datasets), paddingOuter=0.7)  # or one set would hide another
    places = alt.Chart().encode(
        x=alt.X(
            "budget:O",
            title="scratch's budget, training FLOPs",
            axis=_axis("~s", labelAngle=0),
        ),
        xOffset=alt.XOffset("dataset:N", scale=beside),
        y=alt.Y(
            "factor:Q",
            title="scratch's compute ÷ the arm's, at equal error",
            scale=logarithmic,
            axis=alt.Axis(format="~g", values=[0.5, 0.7, 1, 1.4, 2, 3, 4]),
        ),
        color=alt.Color(
            "dataset:N",
            title=None,
            scale=alt.Scale(domain=list(datasets), scheme="tableau10"),
            legend=alt.Legend(**legend),
        ),
    )
    marks = places.mark_point(size=60, opacity=0.75).encode(
        shape=alt.Shape("bound:N", title="the factor is", scale=shape, legend=alt.Legend(**legend)),
        opacity=alt.Opacity("seeds:O", title="seeds", scale=seeds, legend=alt.Legend(**legend)),
    )
    before = places.mark_text(align="right", dx=-7, fontSize=9).encode(text="before:N")
    after = places.mark_text(align="left", dx=7, fontSize=9).encode(text="after:N")
    even = alt.Chart().mark_rule(strokeDash=[4, 4], color="#888").encode(y=alt.datum(1))
    return [even, marks, before, after]


def saved_compute(rows: Rows, kinds: Sequence[str]) -> Spec:
    """Return what arms have saved against what they have spent, a line each.

    Args:
        rows: ``arm, flops, saved, mark, seeds``.
        kinds: of marks: a bound from below first, then two others.
    """
    arms = sorted({row["arm"] for row in rows})
    base = alt.Chart().encode(
        x=alt.X("flops:Q", title="the arm's training FLOPs so far", axis=_axis("~s")),
        y=alt.Y("saved:Q", title="saved: scratch's − the arm's", axis=_axis("~s")),
        color=alt.Color(
            "arm:N",
            title=None,
            scale=alt.Scale(domain=arms, scheme="tableau10"),
            legend=_legend(arms),
        ),
    )
    line = base.mark_line(strokeWidth=1.2, opacity=0.6)
    shapes = alt.Scale(domain=list(kinds), range=["triangle-up", "circle", "square"])
    legend = alt.Legend(orient="bottom", columns=1)
    marks = base.mark_point(size=34, filled=True, opacity=1).encode(
        shape=alt.Shape("mark:N", title=None, scale=shapes, legend=legend),
        tooltip=["arm:N", "mark:N", "seeds:Q", alt.Tooltip("saved:Q", format=".3~s")],
    )
    even = alt.Chart().mark_rule(strokeDash=[4, 4], color="#888").encode(y=alt.datum(0))
    chart = alt.layer(even, line, marks, data=_data(rows))
    return _spec(chart.properties(width="container", height=HEIGHT))


def _axis(numbers: str, **more: Any) -> alt.Axis:
    """Return an axis with numbers of a format; those that would touch are left out."""
    return alt.Axis(format=numbers, labelOverlap="greedy", labelSeparation=APART, **more)


def _legend(names: Sequence[str]) -> alt.Legend:
    """Return a legend that a telephone's screen holds, its marks in full colour."""
    columns = 2 if max(map(len, names), default=0) <= NARROW else 1
    return alt.Legend(orient="bottom", columns=columns, labelLimit=300, symbolOpacity=1)


def _data(rows: Rows) -> alt.Data:
    return alt.Data(values=list(rows))


def _spec(chart: alt.TopLevelMixin) -> Spec:
    return dict(chart.to_dict())
