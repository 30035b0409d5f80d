"""Figures of influence by lag: what a layer's heads read of each age, before and after training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from specreg.studies.recorded_spectra import Floats, Head, Influence
from specreg.studies.report_figures import BLUE, FAINT, GREY, Drawing, figure
from specreg.studies.report_text import number

LINES = 12  # heads with a line each; beyond, they are drawn as their median and a band
BAND = (0.05, 0.5, 0.95)  # quantiles over heads
DECADES = 6.0  # below the largest influence that are drawn at most
HEIGHT = 330
STYLES = {"before": ("before training", GREY, FAINT), "after": ("after training", BLUE, "rgba(42,127,193,0.25)")}


def influence_drawings(heads: Sequence[Head]) -> list[Drawing]:
    """A panel a layer of those whose influence was recorded and is not 0 throughout."""
    layers: dict[str, list[Head]] = {}
    for head in heads:
        layers.setdefault(head.layer, []).append(head)
    drawings = []
    for place, (layer, some) in enumerate(layers.items()):
        found = {when: recorded(some, when) for when in STYLES}
        if any(influence.mean.any() for influences in found.values() for influence in influences):
            drawings.append(Drawing(f"influence-{place}", influence_figure(found), HEIGHT, layer))
    return drawings


def recorded(heads: Sequence[Head], when: str) -> list[Influence]:
    """What these heads read before or after training, as far as it was recorded."""
    influences = [getattr(head, when).influence for head in heads]
    return [influence for influence in influences if influence is not None]


def influence_figure(found: dict[str, list[Influence]]) -> go.Figure:
    """Mean influence against lag, both in log, with a dot at each half-life; lag 0 has a place, as 1 + lag."""
    drawn = figure("lag τ (steps)", "mean influence", HEIGHT)
    for when, influences in found.items():
        if 0 < len(influences) <= LINES:
            head_lines(drawn, influences, when)
        elif influences:
            head_band(drawn, influences, when)
    every = [influence for influences in found.values() for influence in influences]
    longest = max(float(influence.lags[-1]) for influence in every)
    end = math.log10(1 + longest)
    ticks = [0, *(lag for lag in round_numbers(0, end, (1, 3)) if lag <= longest)]
    drawn.update_xaxes(type="log", range=[-0.03, end + 0.03])
    drawn.update_xaxes(tickvals=[1 + lag for lag in ticks], ticktext=[f"{lag:,.0f}" for lag in ticks])
    low, high = reach([influence.mean for influence in every])
    ticks = round_numbers(low, high, (1, 2, 5) if high - low < 2 else (1,))
    drawn.update_yaxes(type="log", range=[low, high], tickvals=ticks, ticktext=[number(tick) for tick in ticks])
    return drawn


def round_numbers(low: float, high: float, firsts: Sequence[int]) -> list[float]:
    """The numbers from 10^low to 10^high whose only digit is one of `firsts`."""
    found = [float(f"{first}e{power}") for power in range(math.floor(low), math.ceil(high) + 1) for first in firsts]
    return [value for value in found if low <= math.log10(value) <= high]


def head_lines(drawn: go.Figure, influences: Sequence[Influence], when: str) -> None:
    """A thin line and a dot for each head."""
    for place, influence in enumerate(influences):
        drawn.add_trace(curve(influence.lags, influence.mean, when, 1.3, legend=place == 0))
    drawn.add_trace(dots(influences, when))


def head_band(drawn: go.Figure, influences: Sequence[Influence], when: str) -> None:
    """The median over heads, a band of quantiles around it, and a dot at the median half-life."""
    _, _, shade = STYLES[when]
    lags, means = influences[0].lags, np.stack([influence.mean for influence in influences])
    low, middle, high = np.quantile(means, BAND, axis=0)
    floor = np.maximum(low, 10.0 ** reach([means])[0])  # a logarithmic axis has no place for 0
    x, y = np.concatenate([1 + lags, 1 + lags[::-1]]), np.concatenate([np.maximum(high, floor), floor[::-1]])
    style = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "fillcolor": shade}
    drawn.add_trace(go.Scatter(x=x, y=y, showlegend=False, hoverinfo="skip", **style))
    drawn.add_trace(curve(lags, middle, when, 2.0, legend=True))
    half_life = float(np.median([influence.half_life for influence in influences]))
    drawn.add_trace(dots([Influence(lags, middle, half_life, 0.0)], when))


def curve(lags: Floats, mean: Floats, when: str, width: float, legend: bool) -> go.Scatter:
    """Influence by lag."""
    name, colour, _ = STYLES[when]
    return go.Scatter(
        x=1 + lags,
        y=positive(mean),
        mode="lines",
        line={"color": colour, "width": width},
        name=name,
        legendgroup=name,
        showlegend=legend,
        text=[f"{int(lag):,}" for lag in lags],
        hovertemplate=f"{name}, lag %{{text}}: %{{y:.3g}}<extra></extra>",
    )


def dots(influences: Sequence[Influence], when: str) -> go.Scatter:
    """Half-lives on their curves."""
    name, colour, _ = STYLES[when]
    return go.Scatter(
        x=[1 + influence.half_life for influence in influences],
        y=positive(np.array([at_half_life(influence) for influence in influences])),
        mode="markers",
        marker={"color": colour, "size": 8, "symbol": "circle" if when == "after" else "circle-open"},
        legendgroup=name,
        showlegend=False,
        text=[f"{influence.half_life:.3g}" for influence in influences],
        hovertemplate=f"{name}, half-life %{{text}} steps<extra></extra>",
    )


def at_half_life(influence: Influence) -> float:
    """The influence there, on the straight line between the two lags beside it in the figure; 0 where nothing is."""
    known = influence.mean > 0
    if not known.any():
        return 0.0
    places, heights = np.log(1 + influence.lags[known]), np.log(influence.mean[known])
    return float(np.exp(np.interp(math.log1p(influence.half_life), places, heights)))


def positive(values: Floats) -> list[float | None]:
    """Six digits of each, None where a logarithmic axis has no place for it."""
    return [float(f"{value:.6g}") if value > 0 else None for value in values]


def reach(means: Sequence[Floats]) -> tuple[float, float]:
    """Ends of a logarithmic axis: at least one decade, and at most DECADES below the largest."""
    logs = [np.log10(mean[mean > 0]) for mean in means]
    every = np.concatenate(logs)
    high = float(every.max())
    low = max(float(every.min()), high - DECADES)
    middle, half = (low + high) / 2, max((high - low) / 2 + 0.1, 0.5)
    return middle - half, middle + half
