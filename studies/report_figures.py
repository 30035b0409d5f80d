"""Figures of a search: score against cost, history, importances, correlations; one look for all reports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from specreg.studies.report import SPECTRAL_STATISTICS, Point, StudyReport, TrialRow, completed, model_of
from specreg.studies.report_text import for_plotly, number

# Okabe and Ito's palette, safe for colour-blind readers; each holds on white and on near-black
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#2a7fc1", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
GREY, FAINT = "#8b929b", "rgba(139,146,155,0.35)"
GROUP_COLOURS = {"spectrum": BLUE, "architecture": ORANGE, "training": GREY}
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "pentagon", "cross")
NEAR_TO_FAR = [[0.0, "#3c4fb5"], [0.5, "#56b4e9"], [1.0, "#f0b429"]]


@dataclass(frozen=True)
class Drawing:
    """A figure with its place on a page."""

    key: str  # unique on the page, ours
    figure: go.Figure
    height: int | None  # pixels; None: a square
    title: str = ""  # of a small multiple

    def to_json(self) -> dict[str, Any]:
        """What plotly's script draws; colours of ink and grid are the page's."""
        plain: dict[str, Any] = json.loads(self.figure.to_json())
        plain["layout"].pop("template", None)
        return plain


def figure(x_title: str, y_title: str, height: int, **layout: Any) -> go.Figure:
    """An empty figure in the report's style."""
    margin = {"l": 64, "r": 16, "t": 16, "b": 52}
    drawn = go.Figure(layout={"height": height or None, "margin": margin, "hovermode": "closest", "showlegend": True})
    drawn.update_layout(legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0, "xanchor": "left"})
    drawn.update_xaxes(title_text=x_title, automargin=True, zeroline=False)
    drawn.update_yaxes(title_text=y_title, automargin=True, zeroline=False)
    drawn.update_layout(**layout)
    return drawn


def units(metric: str) -> str:
    """An axis title with its unit."""
    known = {
        "accuracy": "validation accuracy",
        "loss": "validation loss (nats)",
        "macs": "multiply–accumulates a sequence",
        "parameters": "trained parameters",
        "seconds": "training time (s)",
        "spectral_distance": "distance to target",
    }
    return known.get(metric, for_plotly(metric))


def study_drawings(report: StudyReport) -> dict[str, Drawing]:
    """Every figure of the search for which there are data."""
    drawings = []
    if report.points:
        drawings.append(Drawing("front", front(report), 440))
    if any(trial.outcome != "unfinished" for trial in report.trials):
        drawings.append(Drawing("history", history(report), 380))
    if report.importances is not None:
        height = 120 + 30 * len(report.importances.entries)
        drawings.append(Drawing("importances", importance_bars(report, height), height))
    if report.correlations:
        drawings.append(Drawing("relation", relation(report), 400))
    return {drawing.key: drawing for drawing in drawings}


def front(report: StudyReport) -> go.Figure:
    """Score against cost, one marker a trial, its shape the model, its colour the spectral distance."""
    drawn = figure(units(report.cost), units(report.score), 440)
    points = report.points
    drawn.add_trace(front_line(report))
    scale = DistanceScale.of([point.distance for point in points])
    models = sorted({point.model for point in points})
    for place, model in enumerate(models):
        some = [point for point in points if point.model == model]
        measured, others = ([p for p in some if (p.distance is None) == absent] for absent in (False, True))
        for part, colours in ((measured, scale), (others, None)):
            if part:
                drawn.add_trace(front_markers(part, SYMBOLS[place % len(SYMBOLS)], colours))
        drawn.add_trace(legend_entry(model, SYMBOLS[place % len(SYMBOLS)]))
    if scale is not None:
        drawn.update_layout(coloraxis=scale.axis())
    chance_line(drawn, report)
    costs = [point.cost for point in points]
    if min(costs) > 0 and max(costs) > 10 * min(costs):
        drawn.update_xaxes(type="log")
    return drawn


def front_line(report: StudyReport) -> go.Scatter:
    """The front as a staircase."""
    chosen = sorted((p for p in report.points if p.on_front), key=lambda p: p.cost)
    return go.Scatter(
        x=[p.cost for p in chosen],
        y=[p.score.mean for p in chosen],
        mode="lines",
        line={"shape": "hv", "color": GREY, "width": 1.5, "dash": "dot"},
        name="Pareto front",
        hoverinfo="skip",
    )


def front_markers(points: Sequence[Point], symbol: str, scale: DistanceScale | None) -> go.Scatter:
    """One model's trials, grey without a scale of spectral distances; those off the front are faint."""
    colour: dict[str, Any] = {"color": GREY}
    if scale is not None:
        colour = {"color": [scale.position(p.distance) for p in points], "coloraxis": "coloraxis"}
    return go.Scatter(
        x=[p.cost for p in points],
        y=[p.score.mean for p in points],
        error_y={"array": [p.score.deviation or 0 for p in points], "thickness": 1, "width": 0, "color": FAINT},
        mode="markers",
        marker={
            "symbol": symbol,
            "size": [11 if p.on_front else 8 for p in points],
            "opacity": [1.0 if p.on_front else 0.55 for p in points],
            "line": {"width": [1.5 if p.on_front else 0.5 for p in points], "color": GREY},
            **colour,
        },
        showlegend=False,
        text=[front_hover(p) for p in points],
        hovertemplate="%{text}<extra></extra>",
    )


def front_hover(point: Point) -> str:
    """What a marker says."""
    spread = "" if point.score.deviation is None else f" ± {number(point.score.deviation, 2)}"
    distance = "" if point.distance is None else f"<br>spectral distance {number(point.distance, 3)}"
    return f"trial {point.slot}, {for_plotly(point.model)}<br>{number(point.score.mean)}{spread}{distance}"


def legend_entry(model: str, symbol: str) -> go.Scatter:
    """A model's shape in the legend, without a colour of the scale."""
    marker = {"symbol": symbol, "size": 9, "color": GREY}
    return go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=for_plotly(model))


@dataclass(frozen=True)
class DistanceScale:
    """Colours for spectral distances, by their logarithm where they span more than a decade and a half."""

    logarithmic: bool
    low: float  # on the scale
    high: float

    @classmethod
    def of(cls, distances: Sequence[float | None]) -> DistanceScale | None:
        """The scale of the distances that are known; None if none is."""
        known = [distance for distance in distances if distance is not None]
        if not known:
            return None
        logarithmic = min(known) > 0 and max(known) > 30 * min(known)
        ends = [math.log10(value) if logarithmic else value for value in (min(known), max(known))]
        return cls(logarithmic, ends[0], ends[1])

    def position(self, distance: float | None) -> float | None:
        """Where a distance stands on the scale."""
        return math.log10(distance) if self.logarithmic and distance else distance

    def axis(self) -> dict[str, Any]:
        """plotly's colour axis with a slim bar."""
        title = {"text": "spectral<br>distance", "side": "top"}
        bar: dict[str, Any] = {"title": title, "thickness": 10, "len": 0.8, "outlinewidth": 0}
        if self.logarithmic:
            decades = range(math.ceil(self.low), math.floor(self.high) + 1)
            bar |= {"tickvals": list(decades), "ticktext": [f"{10.0**decade:g}" for decade in decades]}
        return {"colorscale": NEAR_TO_FAR, "cmin": self.low, "cmax": self.high, "colorbar": bar}


def chance_line(drawn: go.Figure, report: StudyReport) -> None:
    """Where guessing stands, if the score is an accuracy."""
    if report.score == "accuracy" and report.best is not None and report.best.chance is not None:
        drawn.add_hline(
            y=report.best.chance,
            line={"color": VERMILION, "width": 1, "dash": "dash"},
            annotation={"text": "chance", "font": {"size": 11, "color": VERMILION}, "showarrow": False},
            annotation_position="bottom left",
        )


def history(report: StudyReport) -> go.Figure:
    """Score of each trial and the best so far, against the training time spent."""
    ended = [trial for trial in report.trials if trial.outcome != "unfinished"]
    spent = cumulated([trial.seconds for trial in ended])
    size, unit = next((s, u) for s, u in ((3600.0, "h"), (60.0, "min"), (1.0, "s")) if spent[-1] >= 2 * s or s == 1)
    at = {trial.slot: seconds / size for trial, seconds in zip(ended, spent, strict=True)}
    drawn = figure(f"training time spent, all trials in order ({unit})", units(report.score), 380)
    scored = completed(ended, report.score)
    best = running_best([trial.mean(report.score) for trial in scored], report.maximised)
    drawn.add_trace(
        go.Scatter(
            x=[*(at[trial.slot] for trial in scored), spent[-1] / size],
            y=[*best, *best[-1:]],
            mode="lines",
            line={"shape": "hv", "color": BLUE, "width": 2.5},
            name="best so far",
            hoverinfo="skip",
        )
    )
    drawn.add_trace(history_markers(scored, at, report.score))
    for outcome, symbol, colour in (("pruned", "line-ns-open", GREY), ("failed", "x-thin-open", VERMILION)):
        lost = [trial for trial in ended if trial.outcome == outcome]
        if lost:
            drawn.add_trace(history_ticks(lost, at, outcome, symbol, colour))
    drawn.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True})
    chance_line(drawn, report)
    return drawn


def history_markers(trials: Sequence[TrialRow], at: Mapping[int, float], score: str) -> go.Scatter:
    """Completed trials, with whiskers over seeds."""
    estimates = [trial.estimate(score) for trial in trials]
    return go.Scatter(
        x=[at[trial.slot] for trial in trials],
        y=[trial.mean(score) for trial in trials],
        error_y={
            "array": [e.deviation or 0 if e else 0 for e in estimates],
            "thickness": 1,
            "width": 0,
            "color": FAINT,
        },
        mode="markers",
        marker={"color": GREY, "size": 7},
        name="completed",
        text=[f"trial {trial.slot}: {number(trial.mean(score))}" for trial in trials],
        hovertemplate="%{text}<extra></extra>",
    )


def history_ticks(
    trials: Sequence[TrialRow], at: Mapping[int, float], outcome: str, symbol: str, colour: str
) -> go.Scatter:
    """Trials without a result, as ticks along the foot."""
    return go.Scatter(
        x=[at[trial.slot] for trial in trials],
        y=[0.03] * len(trials),
        yaxis="y2",
        mode="markers",
        marker={"symbol": symbol, "size": 9, "color": colour, "line": {"width": 1.5, "color": colour}},
        name=outcome,
        text=[f"trial {trial.slot}: {for_plotly(trial.reason)}" for trial in trials],
        hovertemplate="%{text}<extra></extra>",
    )


def cumulated(values: Sequence[float]) -> list[float]:
    """Running sums."""
    total, sums = 0.0, []
    for value in values:
        total += value
        sums.append(total)
    return sums


def running_best(values: Sequence[float], maximised: bool) -> list[float]:
    """The best value up to each."""
    best, found = -math.inf if maximised else math.inf, []
    for value in values:
        best = max(best, value) if maximised else min(best, value)
        found.append(best)
    return found


def importance_bars(report: StudyReport, height: int) -> go.Figure:
    """Parameter importances by group, with the floor that a parameter without effect reaches."""
    found = report.importances
    assert found is not None
    drawn = figure("share of importance", "", height, barmode="overlay", bargap=0.35)
    order = [for_plotly(entry.parameter) for entry in reversed(found.entries)]
    for group, colour in GROUP_COLOURS.items():
        some = [entry for entry in found.entries if entry.group == group]
        if some:
            drawn.add_trace(
                go.Bar(
                    x=[entry.share for entry in some],
                    y=[for_plotly(entry.parameter) for entry in some],
                    orientation="h",
                    marker={"color": colour},
                    name=group,
                    hovertemplate="%{y}: %{x:.2f}<extra></extra>",
                )
            )
    drawn.add_vrect(x0=0, x1=found.floor, fillcolor=GREY, opacity=0.16, line_width=0, layer="above")
    drawn.add_vline(x=found.floor, line={"color": GREY, "width": 1, "dash": "dash"})
    drawn.update_yaxes(categoryorder="array", categoryarray=order, type="category")
    drawn.update_xaxes(range=[0, max(1.05 * max([found.floor, *(e.share for e in found.entries)]), 0.1)])
    return drawn


def relation(report: StudyReport) -> go.Figure:
    """The statistic of the strongest correlation against the score, one marker a trial."""
    strongest = report.correlations[0].statistic
    drawn = figure(SPECTRAL_STATISTICS[strongest], units(report.score), 400)
    scored = completed(report.trials, report.score)
    models = {trial.slot: model_of(trial) for trial in scored}
    for place, model in enumerate(sorted(set(models.values()))):
        some = [trial for trial in scored if models[trial.slot] == model and trial.estimate(strongest) is not None]
        drawn.add_trace(
            go.Scatter(
                x=[trial.mean(strongest) for trial in some],
                y=[trial.mean(report.score) for trial in some],
                mode="markers",
                marker={
                    "symbol": SYMBOLS[place % len(SYMBOLS)],
                    "size": 9,
                    "color": (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION)[place % 6],
                },
                name=for_plotly(model),
                text=[f"trial {trial.slot}" for trial in some],
                hovertemplate="%{text}<br>%{x:.3g}, %{y:.4g}<extra></extra>",
            )
        )
    chance_line(drawn, report)
    return drawn
