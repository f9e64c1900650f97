"""The charts of the report, in Vega-Lite, written by Altair.

A chart against compute has a parameter ``axis`` (``flops``, ``seconds`` or ``images``) that the
page's one switch sets in all of them. Both axes are logarithmic, so that equal speed-ups are equal
distances.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

WIDTH, HEIGHT = 380, 260  # pixels
LINE = 17  # pixels, of a name
AXES = {"flops": "training FLOPs", "seconds": "seconds", "images": "images"}

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
    x = alt.X("x:Q", title=None, scale=logarithmic, axis=alt.Axis(format="~s"))
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
                legend=alt.Legend(orient="bottom", columns=2, labelLimit=400),
            ),
        )
    )
    y = alt.Y("value:Q", title=title, scale=logarithmic, axis=alt.Axis(format="~g"))
    formats = {"x:Q": ".3~s", "value:Q": ".4~g"}
    tooltip = ["line:N", *(alt.Tooltip(name, format=how) for name, how in formats.items())]
    line = base.mark_line(point=alt.OverlayMarkDef(size=14), strokeWidth=1.8).encode(
        y=y, tooltip=tooltip
    )
    if dashed:
        legend = alt.Legend(orient="bottom", symbolType="stroke", symbolStrokeColor="gray")
        line = line.encode(strokeDash=alt.StrokeDash("phase:N", title=None, legend=legend))
    layers = [line]
    if any("low" in row for row in rows):
        band = base.mark_area(opacity=0.18).encode(
            y=alt.Y("low:Q", scale=logarithmic), y2=alt.Y2("high:Q")
        )
        layers.insert(0, band)
    chart = alt.layer(*layers).add_params(axis).properties(width="container", height=HEIGHT)
    return _spec(chart)


def side_by_side(charts: Mapping[str, Rows], columns: int = 2) -> Spec:
    """Return charts against training FLOPs as one picture, by their titles.

    Args:
        charts: title → rows as of ``against_compute``.
        columns: charts in a row.
    """
    parts, shared = [], {}
    for title, rows in charts.items():
        part = against_compute(rows, "") | {"title": f"{title}, against FLOPs", "width": WIDTH}
        shared = {key: part.pop(key) for key in ("$schema", "config", "params")}
        parts.append(part)
    return {**shared, "concat": parts, "columns": columns, "background": "white"}


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
                legend=alt.Legend(orient="bottom", columns=4),
            ),
            tooltip=[alt.Tooltip("name:N"), alt.Tooltip("value:Q")],
        )
        .properties(width="container", height=LINE * len(rows))
    )
    return _spec(chart)


def regime_map(rows: Rows, shapes: Mapping[str, str]) -> Spec:
    """Return factors against budgets as marks, a column for each number of tokens.

    Args:
        rows: ``tokens, budget, factor, bound, dataset, seeds``.
        shapes: bound → the shape of its mark.
    """
    logarithmic = alt.Scale(type="log", nice=False, padding=15)
    marks = (
        alt.Chart()
        .mark_point(size=60, opacity=0.75)
        .encode(
            x=alt.X(
                "budget:Q",
                title="scratch's budget, training FLOPs",
                scale=logarithmic,
                axis=alt.Axis(format=".3~e", values=sorted({row["budget"] for row in rows})),
            ),
            y=alt.Y(
                "factor:Q",
                title="scratch's compute ÷ the arm's, at equal error",
                scale=logarithmic,
                axis=alt.Axis(format="~g", values=[0.5, 0.7, 1, 1.4, 2, 3, 4]),
            ),
            color=alt.Color("dataset:N", title=None, scale=alt.Scale(scheme="tableau10")),
            shape=alt.Shape(
                "bound:N",
                title="the factor is",
                scale=alt.Scale(domain=list(shapes), range=list(shapes.values())),
            ),
            opacity=alt.Opacity(
                "seeds:N",
                title="seeds",
                scale=alt.Scale(domain=["one", "several"], range=[0.35, 1.0]),
            ),
        )
    )
    even = alt.Chart().mark_rule(strokeDash=[4, 4]).encode(y=alt.datum(1))
    names = list(dict.fromkeys(row["tokens"] for row in rows))
    chart = (
        alt.layer(even, marks, data=_data(rows))
        .properties(width=WIDTH, height=HEIGHT)
        .facet(column=alt.Column("tokens:N", title=None, sort=names))
    )
    return _spec(chart) | {"background": "white"}


def _data(rows: Rows) -> alt.Data:
    return alt.Data(values=list(rows))


def _spec(chart: alt.TopLevelMixin) -> Spec:
    return dict(chart.to_dict())
