"""Charts as Vega-Lite: one definition for the page, where they can be used, and for papers (SVG, PDF).

Each function takes a tidy table (its columns in the docstring; shares, shown in %) and gives one chart. `name` is the
short name of a row of the leaderboard; `names` are all of them, so that colours are the same in all charts of a report.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from harness.disturbance import SIGN

alt.data_transformers.disable_max_rows()  # tables are inside the page, nothing else is there to take them

Chart = alt.LayerChart

# Observable's categorical palette: made to be told apart on white and on black.
PALETTE = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
NEUTRAL = "#8a8f98"
SIGNS = {1: "#2f9e62", 0: NEUTRAL, -1: "#d1553f"}
CATEGORY = "category"  # the parameter by which the page tells charts which category is chosen; empty: none
CHOSEN = f"{CATEGORY} == '' || datum.category == {CATEGORY}"
PAPER = {  # the look of static figures; the page has its own, which follows light and dark
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {"gridColor": "#e3e5e8", "titleFontWeight": "normal", "labelLimit": 300},
    "legend": {"titleFontWeight": "normal", "labelLimit": 300},
}
OVER = {"epoch": "epoch", "images": "images seen by a training", "seconds": "seconds of training"}
PAPER_WIDTH = 480  # pixels, where a chart has no width of its own


def scatter(points: pd.DataFrame, metric: str, names: Sequence[str], lower: bool = False) -> Chart:
    """Accuracy over speed, with the Pareto front of each device; disturbed speeds are pale, and on no front.

    points: `name`, `device`, `speed` (images/s), `disturbed` (by what, or empty), `value`, `low`, `high` (NaN without
    an interval); lower: the lowest value is the best.
    """
    data = _percent(points, "value", "low", "high")
    data["label"] = data["name"] + data["disturbed"].where(data["disturbed"] == "", f" {SIGN}")
    quiet = data[data["disturbed"] == ""]
    front = pd.concat([quiet[:0], *(pareto(part, lower) for _, part in quiet.groupby("device", sort=False))])
    x = alt.X("speed:Q", title="throughput [images/s]", scale=alt.Scale(type="log", nice=False, padding=50))
    y = alt.Y("value:Q", title=f"{metric} [%]", scale=alt.Scale(zero=False, padding=14))
    shapes = {}
    if data["device"].nunique() > 1:
        shapes["shape"] = alt.Shape("device:N", legend=alt.Legend(title=None, orient="bottom", columns=1))
    base = _chart(data).encode(x=x, y=y)
    middle = float(data["speed"].min() * data["speed"].max()) ** 0.5

    def text(align: str, dx: int) -> alt.Chart:
        """Names stand towards the middle, where there is room for them."""
        half = base.transform_filter(f"datum.speed {'<=' if align == 'left' else '>'} {middle}")
        return half.mark_text(align=align, dx=dx, dy=-9, fontSize=11).encode(text="label:N")

    tooltip = ["name:N", *_spread_tooltip(metric), alt.Tooltip("speed:Q", title="images/s", format=",.1f"), "device:N"]
    tooltip += ["disturbed:N"] if len(quiet) < len(data) else []
    opacity = alt.condition("datum.disturbed == ''", alt.value(1), alt.value(0.35))
    layers = alt.layer(
        _chart(front)
        .mark_line(interpolate="step-before", strokeDash=[5, 4], color=NEUTRAL)
        .encode(x=x, y=y, detail="device:N"),
        base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y="low:Q", y2="high:Q", color=_colour(names)),
        base.mark_point(filled=True, size=130).encode(color=_colour(names), opacity=opacity, tooltip=tooltip, **shapes),
        text("left", 9),
        text("right", -9),
    )
    best = ", ".join(front["name"].unique()) or "none, as every speed was disturbed"
    return _wide(layers, 340, f"{metric} over throughput of {len(data)} models. On the Pareto front: {best}.")


def pareto(points: pd.DataFrame, lower: bool = False) -> pd.DataFrame:
    """The points (`speed`, `value`) that no other one equals or beats in both and beats in one, slowest first."""
    gain = -points["value"] if lower else points["value"]
    order = points.assign(gain=gain).sort_values(["speed", "gain"], ascending=False, kind="stable")
    best = order["gain"].cummax().shift(fill_value=-float("inf"))
    return order[order["gain"] > best].iloc[::-1].drop(columns="gain")


def heatmap(cells: pd.DataFrame, metric: str, names: Sequence[str]) -> Chart:
    """Rows × categories; a click chooses a category.

    cells: `name`, `category`, `value` (mean over seeds, NaN for a hole), `text` (in the cell), `note` (in the tooltip).
    """
    data = _percent(cells, "value")
    low, high = float(data["value"].min()), float(data["value"].max())
    side = alt.Axis(title=None, domain=False, ticks=False)
    top = alt.Axis(title=None, domain=False, ticks=False, orient="top", labelAngle=-40)
    base = _chart(data).encode(
        x=alt.X("category:N", sort=list(data["category"].unique()), axis=top),
        y=alt.Y("name:N", sort=list(names), axis=side),
        opacity=alt.when(CHOSEN).then(alt.value(1)).otherwise(alt.value(0.25)),
        tooltip=["name:N", "category:N", alt.Tooltip("value:Q", title=f"{metric} [%]", format=".2f"), "note:N"],
    )
    # Viridis: brightness rises with the value, for any eye and in grey.
    scale = alt.Scale(scheme="viridis", domain=[low, high] if low < high else [low - 1, high + 1])
    legend = alt.Legend(title=f"{metric} [%]", orient="bottom", gradientLength=200)
    dark = alt.when("datum.value == null").then(alt.value(NEUTRAL)).when(f"datum.value > {(low + high) / 2}")
    layers = alt.layer(
        base.mark_rect(cursor="pointer", cornerRadius=2).encode(color=alt.Color("value:Q", scale=scale, legend=legend)),
        base.mark_text(cursor="pointer", fontSize=11).encode(
            text="text:N", color=dark.then(alt.value("#111")).otherwise(alt.value("#fff"))
        ),
    )
    said = f"{metric} of {data['name'].nunique()} models on {data['category'].nunique()} categories"
    said += f", from {low:.1f} to {high:.1f} %." if low <= high else "."
    width, height = alt.Step(62), alt.Step(28)
    return layers.add_params(_category()).properties(width=width, height=height, description=said)


def learning(curves: pd.DataFrame, title: str, names: Sequence[str], *, share: bool, over: str = "epoch") -> Chart:
    """Mean over seeds by epoch, and the range of the seeds around it.

    Args:
        curves: `name`, `category` (empty: the mean over categories), `epoch`, `value`, `low`, `high`, and `over`.
        share: shown in %; else a ratio on a logarithmic scale.
        over: a column of OVER; all but epochs have a logarithmic scale.
    """
    data = _percent(curves, "value", "low", "high") if share else curves
    scale = alt.Scale(zero=False) if share else alt.Scale(type="log", nice=False)
    y, low = (alt.Y(f"{key}:Q", title=f"{title} [%]" if share else title, scale=scale) for key in ("value", "low"))
    colour = _colour(names, legend=True)
    base = _chart(data).transform_filter(f"datum.category == {CATEGORY}").encode(x=_over(data, over))
    shown = ".1f" if share else ".3g"
    known = [key for key in OVER if data[key].notna().all()]
    tooltip = [
        "name:N",
        *(alt.Tooltip(f"{key}:Q", title=OVER[key], format=",.4~r") for key in known),
        *(alt.Tooltip(f"{key}:Q", format=shown) for key in ("value", "low", "high")),
    ]
    layers = alt.layer(
        base.mark_area(opacity=0.16).encode(y=low, y2="high:Q", color=colour),
        base.mark_line(point={"size": 22}, strokeWidth=2).encode(y=y, color=colour, tooltip=tooltip),
    )
    said = f"{title} by {OVER[over]} of {data['name'].nunique()} models; bands span the seeds."
    return _wide(layers.add_params(_category()), 280, said)


def _over(data: pd.DataFrame, column: str) -> alt.X:
    if column != "epoch":
        scale = alt.Scale(type="log", nice=False)
        return alt.X(f"{column}:Q", title=OVER[column], scale=scale, axis=alt.Axis(format=",.3~r", labelSeparation=6))
    epochs = sorted(data["epoch"].unique().tolist())
    ticks = {"values": epochs} if len(epochs) <= 6 else {"tickMinStep": 1}
    return alt.X("epoch:Q", title="epoch", axis=alt.Axis(format="d", **ticks))


def differences(pairs: pd.DataFrame, metric: str) -> Chart:
    """Paired differences with their intervals, in points.

    pairs: `pair` (`first − second`), `value`, `low`, `high` (NaN without an interval), `sign` (of `Difference`).
    """
    data = _percent(pairs, "value", "low", "high")
    colour = alt.Color("sign:O", scale=alt.Scale(domain=list(SIGNS), range=list(SIGNS.values())), legend=None)
    x = alt.X("value:Q", title=f"{metric}, points", scale=alt.Scale(padding=12))
    base = _chart(data).encode(y=alt.Y("pair:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False)))
    zero = _chart(pd.DataFrame({"zero": [0]})).mark_rule(color=NEUTRAL, strokeDash=[3, 3]).encode(x="zero:Q")
    layers = alt.layer(
        zero,
        base.mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q"), x2="high:Q", color=colour),
        base.mark_point(filled=True, size=90, opacity=1).encode(
            x=x, color=colour, tooltip=["pair:N", *_spread_tooltip("points", "+.2f")]
        ),
    )
    beyond = int((data["sign"] != 0).sum())
    said = f"Paired differences in {metric}: {len(data)}, of which {beyond} exclude 0."
    return _wide(layers, 34 * len(data) + 30, said)


def ranks(means: pd.Series, groups: Sequence[Sequence[str]], limit: float, metric: str) -> Chart:
    """Critical-difference diagram (Demšar, 2006): average ranks on one line; bars join rows that do not differ.

    Args:
        means: average rank by name; groups: names joined by a bar, each of them; limit: the critical difference.
    """
    order = means.sort_values()
    count = len(order)
    left = (count + 1) // 2
    bars = [group for group in groups if len(group) > 1]
    below = 0.5 + 0.35 * len(bars)  # where the first label is
    lines = []
    for place, (name, rank) in enumerate(order.items()):
        level = below + (place if place < left else count - 1 - place) * 0.8
        edge = 0.9 if place < left else count + 0.1
        lines.append({"name": name, "rank": rank, "level": -level, "edge": edge, "top": 0, "left": place < left})
    data = pd.DataFrame(lines)
    data["label"] = [f"{name} {rank:.2f}" for name, rank in order.items()]
    spans = [{"from": order[list(b)].min() - 0.04, "to": order[list(b)].max() + 0.04} for b in bars]
    joined = pd.DataFrame(
        [{**span, "y": -0.35 - 0.35 * i} for i, span in enumerate(spans)], columns=["from", "to", "y"]
    )
    lowest = data["level"].min() - 1.1
    ruler = pd.DataFrame([{"from": 1, "to": 1 + limit, "y": lowest, "label": f"critical difference {limit:.2f}"}])
    x_scale = alt.Scale(domain=[0.9, count + 0.1], nice=False)
    y_scale = alt.Scale(domain=[lowest - 0.2, 0], nice=False)
    axis = alt.Axis(
        values=list(range(1, count + 1)), format="d", grid=False, orient="top", title=f"average rank, {metric}"
    )

    def x(field: str) -> alt.X:
        return alt.X(f"{field}:Q", scale=x_scale, axis=axis)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=y_scale, axis=None)

    base = _chart(data)

    def text(side: str, align: str, dx: int) -> alt.Chart:
        return (
            base.transform_filter(side)
            .mark_text(align=align, dx=dx, fontSize=12)
            .encode(x=x("edge"), y=y("level"), text="label:N")
        )

    layers = alt.layer(
        base.mark_rule(color=NEUTRAL).encode(x=x("rank"), y=y("top"), y2="level:Q"),
        base.mark_rule(color=NEUTRAL).encode(x=x("rank"), x2="edge:Q", y=y("level")),
        text("datum.left", "right", -5),
        text("!datum.left", "left", 5),
        _chart(joined).mark_rule(strokeWidth=5, strokeCap="round").encode(x=x("from"), x2="to:Q", y=y("y")),
        _chart(ruler).mark_rule(strokeWidth=2, color=NEUTRAL).encode(x=x("from"), x2="to:Q", y=y("y")),
        _chart(ruler).mark_text(align="left", dy=-8, color=NEUTRAL).encode(x=x("from"), y=y("y"), text="label:N"),
    )
    listed = ", ".join(f"{name} {rank:.2f}" for name, rank in order.items())
    return _wide(layers, int(40 * -lowest), f"Average ranks by {metric}: {listed}.")


def save(chart: Mapping[str, Any], path: Path) -> None:
    """Write a chart, as `to_dict` gives it, as `path`.svg and `path`.pdf."""
    import vl_convert

    spec = dict(chart)
    if spec.get("width") == "container":
        spec["width"] = PAPER_WIDTH
    spec["config"] = {**spec.get("config", {}), **PAPER}
    path.with_name(path.name + ".svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    path.with_name(path.name + ".pdf").write_bytes(vl_convert.vegalite_to_pdf(spec))


def javascript() -> str:
    """Vega, Vega-Lite and vega-embed, as one script that defines `vegaEmbed`."""
    import vl_convert

    return vl_convert.javascript_bundle()


def _chart(data: pd.DataFrame) -> alt.Chart:
    return alt.Chart(data.reset_index(drop=True))


def _percent(data: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return data.assign(**{column: 100 * data[column] for column in columns})


def _colour(names: Sequence[str], legend: bool = False) -> alt.Color:
    scale = alt.Scale(domain=list(names), range=[PALETTE[i % len(PALETTE)] for i in range(len(names))])
    shown = alt.Legend(title=None, orient="bottom", columns=2, symbolOpacity=1) if legend else None
    return alt.Color("name:N", scale=scale, legend=shown)


def _spread_tooltip(title: str, shown: str = ".2f") -> list[alt.Tooltip]:
    titles = {"value": title, "low": "95 % from", "high": "95 % to"}
    return [alt.Tooltip(f"{key}:Q", title=text, format=shown) for key, text in titles.items()]


def _category() -> alt.Parameter:
    return alt.param(name=CATEGORY, value="")


def _wide(chart: Chart, height: int, description: str) -> Any:
    """As wide as its place on the page."""
    return chart.properties(width="container", height=height, description=description)
