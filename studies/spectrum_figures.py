"""Figures of a run's eigenvalues: unit discs, moduli near the circle, shares per bin, phases, the way in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from specreg.studies.influence_figures import influence_drawings
from specreg.studies.recorded_spectra import (
    BINS,
    QUANTILES,
    Complex,
    Floats,
    Head,
    Region,
    RunSpectra,
    Track,
    Values,
    shares,
)
from specreg.studies.report_figures import BLUE, FAINT, GREY, ORANGE, Drawing, figure
from specreg.studies.report_text import for_plotly

DISC = 1.25  # radius to which a disc panel reaches
MARKERS = 400  # drawn in a panel at most, evenly spaced
PANELS = 24  # discs; beyond, a layer's heads are pooled
ROWS = 12  # ridgelines in a panel at most
SMALLEST, LARGEST = -2.0, 6.0  # decades of τ that an axis may span
BEFORE, AFTER = GREY, BLUE
BLUE_FILL, TARGET_FILL = "rgba(42,127,193,0.55)", "rgba(230,159,0,0.18)"
DECAYING, LASTING = ("#1b4f91", "#3a7fc4", "#73b0de", "#b5d7ef"), ("#f3b98b", "#e0793a", "#b0521a")
BIN_COLOURS = DECAYING + LASTING
BANDS = ((0, 4, "5–95 %", "rgba(42,127,193,0.20)"), (1, 3, "25–75 %", "rgba(42,127,193,0.38)"))  # of QUANTILES


@dataclass(frozen=True)
class DecayAxis:
    """Moduli on an axis that spreads what lies near the unit circle.

    position = log₁₀ τ for |λ| < 1, with τ = −1/log|λ| steps; what decays slower than 10^decades steps, or grows slower,
    is one point at `decades`, and growth continues as its mirror image: 2·decades − log₁₀(1/log|λ|).
    """

    decades: int

    @classmethod
    def of(cls, values: Sequence[Floats]) -> DecayAxis:
        """The axis that resolves all but the slowest hundredth of the modes that decay, and has room for 0.99."""
        rates = -np.concatenate([*values])
        rates = rates[rates > 0]
        slowest = -math.log10(float(np.quantile(rates, 0.01))) if len(rates) else 2.0
        return cls(int(min(max(math.ceil(slowest + 0.5), 3), LARGEST)))  # half a decade clear of the circle

    def position(self, log_modulus: Floats) -> Floats:
        """Where moduli stand; increasing in |λ|."""
        rate = np.clip(np.abs(log_modulus), 10.0**-self.decades, 10.0**-SMALLEST)
        decades = -np.log10(rate)
        places: Floats = np.where(log_modulus < 0, decades, 2 * self.decades - decades)
        return places

    def ticks(self, growing: bool) -> tuple[list[float], list[str]]:
        """A tick a decade of τ, as the modulus over the time constant; the circle itself in the middle."""
        decays = [(float(d), f"{modulus_text(-(10.0**-d))}<br>{10**d:,}") for d in range(self.decades)]
        grows = [(2.0 * self.decades - d, f"{modulus_text(10.0**-d)}<br>") for d in range(self.decades - 1, -1, -1)]
        ticks = [*decays, (float(self.decades), "1<br>∞"), *(grows if growing else [])]
        return [at for at, _ in ticks], [text for _, text in ticks]

    def time_ticks(self) -> tuple[list[float], list[str]]:
        """A tick a decade of τ; past the circle, where nothing decays, the modulus."""
        decays = [(float(d), f"{10.0**d:,g}") for d in range(-1, self.decades)]
        grows = [(2.0 * self.decades - d, f"|λ| = {modulus_text(10.0**-d)}") for d in range(self.decades - 1, -1, -1)]
        ticks = [*decays, (float(self.decades), "|λ| = 1"), *grows]
        return [at for at, _ in ticks], [text for _, text in ticks]

    def interval(self, region: Region) -> tuple[float, float]:
        """Where a region begins and ends."""
        ends = [math.log(radius) if radius > 0 else -math.inf for radius in (region.low, region.high)]
        low, high = self.position(np.array(ends))
        return float(low), float(high)


def modulus_text(log_modulus: float) -> str:
    """A modulus with as many digits as its distance to 1 asks for."""
    digits = max(2, -math.floor(math.log10(abs(log_modulus)))) if abs(log_modulus) < 1 else 2
    return f"{math.exp(log_modulus):.{min(digits, 7)}f}"


def spectrum_drawings(spectra: RunSpectra) -> dict[str, list[Drawing]]:
    """Every figure of a run's spectra, by kind: "discs", "moduli", "shares", "phases", "along", "influence"."""
    heads = pooled(spectra.heads)
    axis = DecayAxis.of([values.log_modulus for head in spectra.heads for values in (head.before, head.after)])
    layers = list(dict.fromkeys(head.layer for head in heads))
    by_layer = {layer: [head for head in heads if head.layer == layer][:ROWS] for layer in layers}
    phases = {layer: [h for h in some if not (h.before.real and h.after.real)] for layer, some in by_layer.items()}
    return {
        "discs": [
            Drawing(f"disc-{place}", disc(head, spectra.regions), None, head_title(head))
            for place, head in enumerate(heads)
        ],
        "moduli": [
            Drawing(f"moduli-{n}", moduli(some, axis, spectra.regions), 130 + 64 * len(some), layer)
            for n, (layer, some) in enumerate(by_layer.items())
        ],
        "shares": [Drawing("shares", bin_shares(heads[: 2 * ROWS]), 110 + 46 * min(len(heads), 2 * ROWS))],
        "phases": [
            Drawing(f"phases-{n}", phase_ridges(phases[layer]), 130 + 64 * len(phases[layer]), layer)
            for n, layer in enumerate(layers)
            if phases[layer]
        ],
        "along": [
            Drawing(f"along-{n}", along(track, axis, spectra.regions), 320, track.layer)
            for n, track in enumerate(spectra.tracks)
            if len(track.steps) > 1
        ],
        "influence": influence_drawings(spectra.heads),
    }


def head_title(head: Head) -> str:
    """A panel's name."""
    return head.layer if head.head < 0 else head.label


def pooled(heads: Sequence[Head]) -> list[Head]:
    """The heads as they are, or all of a layer as one (numbered −1) where there are too many for a panel each."""
    if len(heads) <= PANELS:
        return list(heads)
    layers: dict[str, list[Head]] = {}
    for head in heads:
        layers.setdefault(head.layer, []).append(head)
    return [
        Head(layer, -1, joined([head.before for head in some]), joined([head.after for head in some]))
        for layer, some in layers.items()
    ]


def joined(values: Sequence[Values]) -> Values:
    """Eigenvalues of several heads as one set."""
    return Values(np.concatenate([v.log_modulus for v in values]), np.concatenate([v.phase for v in values]))


# Unit disc


def disc(head: Head, regions: Sequence[Region]) -> go.Figure:
    """Eigenvalues in the complex plane: before hollow, after filled; on the real axis as densities above and below."""
    drawn = figure("Re λ", "Im λ", 0, margin={"l": 40, "r": 6, "t": 4, "b": 40}, showlegend=False)
    for region in regions:
        for trace in region_traces(region):
            drawn.add_trace(trace)
    angle = np.linspace(0, 2 * math.pi, 181)
    drawn.add_trace(line(np.cos(angle), np.sin(angle), GREY, 1.2))
    if head.before.real and head.after.real:
        drawn.add_trace(real_density(head.before, False))
        drawn.add_trace(real_density(head.after, True))
        drawn.update_yaxes(title_text="density", showticklabels=False)  # its peak has the same height in every panel
    else:
        drawn.add_trace(markers(head.before, "before", {"symbol": "circle-open", "color": BEFORE, "size": 5}))
        drawn.add_trace(markers(head.after, "after", {"symbol": "circle", "color": AFTER, "size": 5, "opacity": 0.75}))
    ticks = {"tickvals": [-1, 0, 1], "range": [-DISC, DISC], "constrain": "domain"}
    drawn.update_xaxes(**ticks)
    drawn.update_yaxes(scaleanchor="x", scaleratio=1, **ticks)
    return drawn


def line(x: Floats, y: Floats, colour: str, width: float, dash: str = "solid") -> go.Scatter:
    """A curve without a name."""
    style = {"color": colour, "width": width, "dash": dash}
    return go.Scatter(x=x.round(4), y=y.round(4), mode="lines", line=style, hoverinfo="skip", showlegend=False)


def region_traces(region: Region) -> list[go.Scatter]:
    """A penalty's areas shaded, an initialisation's outlined; curves dotted, points as crosses."""
    traces = [filled(path) for path in region.areas] if region.shaded else []
    outlines = region.curves if region.shaded else region.areas + region.curves
    traces += [line(path.real, path.imag, ORANGE, 1.2, "dot") for path in outlines]
    return traces + [crosses(path) for path in region.points]


def filled(path: Complex) -> go.Scatter:
    """A shaded area."""
    return go.Scatter(
        x=path.real.round(4), y=path.imag.round(4), mode="lines", line={"width": 0}, fill="toself",
        fillcolor=TARGET_FILL, hoverinfo="skip", showlegend=False,
    )  # fmt: skip


def crosses(path: Complex) -> go.Scatter:
    """Single values that a target asks for."""
    style = {"symbol": "cross-thin", "size": 5, "line": {"color": ORANGE, "width": 1}}
    return go.Scatter(
        x=path.real.round(4), y=path.imag.round(4), mode="markers", marker=style, hoverinfo="skip", showlegend=False
    )


def markers(values: Values, name: str, style: dict[str, Any]) -> go.Scatter:
    """Eigenvalues and their conjugates, thinned to MARKERS."""
    step = -(-len(values.phase) // MARKERS)
    modulus, phase = np.minimum(values.modulus[::step], 1e3), values.phase[::step]
    x, y = modulus * np.cos(phase), modulus * np.sin(phase)
    return go.Scatter(
        x=np.concatenate([x, x]).round(5),
        y=np.concatenate([y, -y]).round(5),
        mode="markers",
        marker=style,
        name=name,
        hovertemplate=f"{name}: %{{x:.4f}} + %{{y:.4f}} i<extra></extra>",
    )


def real_density(values: Values, after: bool) -> go.Scatter:
    """A histogram on the real axis, its peak at 0.8: after training upwards and filled, before downwards."""
    real = values.modulus * np.cos(values.phase)
    counts, edges = np.histogram(real, bins=60, range=(-DISC, DISC))
    height = counts / max(counts.max(), 1) * (0.8 if after else -0.8)
    return go.Scatter(
        x=np.repeat(edges, 2)[1:-1].round(4),
        y=np.repeat(height, 2).round(4),
        mode="lines",
        line={"color": AFTER if after else BEFORE, "width": 1.2},
        fill="tozeroy",
        fillcolor=BLUE_FILL if after else FAINT,
        name="after" if after else "before",
        hoverinfo="skip",
    )


def outside(head: Head) -> float:
    """The share of eigenvalues after training beyond the disc panel's radius."""
    return float(np.mean(head.after.log_modulus > math.log(DISC)))


# Moduli and phases as ridgelines, one row a head


def moduli(heads: Sequence[Head], axis: DecayAxis, regions: Sequence[Region]) -> go.Figure:
    """Distributions of moduli on the axis that spreads the unit circle's neighbourhood, before and after."""
    every = [values.log_modulus for head in heads for values in (head.before, head.after)]
    places = [axis.position(log_modulus) for log_modulus in every]
    low = min(min(float(p.min()) for p in places) - 0.15, -0.4)
    high = max(max(float(p.max()) for p in places) + 0.15, axis.decades + 0.25)
    rows = [(head, sided(head.before.log_modulus, axis), sided(head.after.log_modulus, axis)) for head in heads]
    title = "modulus |λ|<br>time constant τ = −1/log|λ| (steps)"
    drawn = ridges(rows, (low, high), title, edge=float(axis.decades))
    for region in regions:
        shade_rows(drawn, axis.interval(region), region)
    drawn.add_vline(x=axis.decades, line={"color": GREY, "width": 1.2})
    at, text = axis.ticks(growing=high > axis.decades + 0.5)
    drawn.update_xaxes(tickvals=at, ticktext=text)
    return drawn


def sided(log_modulus: Floats, axis: DecayAxis) -> Floats:
    """Positions with what does not grow kept on the decaying side of the circle, also where the axis joins the two."""
    places = axis.position(log_modulus)
    below = np.nextafter(float(axis.decades), -math.inf)
    kept: Floats = np.where(log_modulus <= 0, np.minimum(places, below), places)
    return kept


def shade_rows(drawn: go.Figure, ends: Sequence[float], region: Region) -> None:
    """A target's extent behind the rows: shaded for a penalty, dotted for an initialisation or for single circles."""
    if region.shaded:
        drawn.add_vrect(x0=ends[0], x1=ends[1], fillcolor=TARGET_FILL, line_width=0, layer="below")
        return
    for end in ends:
        drawn.add_vline(x=end, line={"color": ORANGE, "width": 1.2, "dash": "dot"})


def phase_ridges(heads: Sequence[Head]) -> go.Figure:
    """Distributions of phases in [0, π], before and after."""
    rows = [(head, head.before.phase, head.after.phase) for head in heads]
    drawn = ridges(rows, (0.0, math.pi), "phase |arg λ| (radians a step)", edge=0.0)
    quarter = math.pi / 4
    drawn.update_xaxes(tickvals=[n * quarter for n in range(5)], ticktext=["0", "π/4", "π/2", "3π/4", "π"])
    return drawn


def bin_edges(bins: int, reach: tuple[float, float], edge: float) -> Floats:
    """Equal bins that cover the reach, one of them beginning exactly at `edge`."""
    low, high = reach
    width = (high - low) / bins
    first, last = -math.ceil((edge - low) / width - 1e-9), math.ceil((high - edge) / width - 1e-9)
    edges: Floats = edge + width * np.arange(first, last + 1, dtype=np.float64)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # rounding leaves no value outside
    return edges


def ridges(
    rows: Sequence[tuple[Head, Floats, Floats]], reach: tuple[float, float], title: str, edge: float
) -> go.Figure:
    """One row a head: histograms after training, filled, and before, outlined; equal areas, no bin across `edge`."""
    drawn = figure(title, "", 130 + 64 * len(rows))
    for place, (_, before, after) in enumerate(reversed(rows)):
        tallest = 0.0
        shapes = []
        for values in (after, before):
            bins = int(min(72, max(16, 2 * math.sqrt(len(values)))))
            counts, edges = np.histogram(values, bins=bin_edges(bins, reach, edge))
            tallest = max(tallest, counts.max() / len(values))
            shapes.append((counts / len(values), edges))
        for (share, edges), late in zip(shapes, (True, False), strict=True):
            drawn.add_trace(ridge(edges, place, 0.86 * share / max(tallest, 1e-12), late, legend=place == 0))
    labels = ["all heads" if head.head < 0 else f"head {head.head}" for head, _, _ in reversed(rows)]
    drawn.update_yaxes(tickvals=list(range(len(rows))), ticktext=labels, range=[-0.08, len(rows)], showgrid=False)
    drawn.update_xaxes(range=list(reach))
    return drawn


def ridge(edges: Floats, base: float, height: Floats, after: bool, legend: bool) -> go.Scatter:
    """A step curve over a base line, closed along it."""
    x = np.concatenate([[edges[0]], np.repeat(edges, 2)[1:-1], [edges[-1]]])
    y = base + np.concatenate([[0.0], np.repeat(height, 2), [0.0]])
    name = "after training" if after else "before"
    return go.Scatter(
        x=x.round(4),
        y=y.round(4),
        mode="lines",
        line={"color": AFTER if after else BEFORE, "width": 1.2 if after else 1.5},
        fill="toself" if after else "none",
        fillcolor=BLUE_FILL,
        name=name,
        legendgroup=name,
        showlegend=legend,
        hoverinfo="skip",
    )


# Shares and the way in training


def bin_shares(heads: Sequence[Head]) -> go.Figure:
    """Share of eigenvalues per modulus bin, before and after, as stacked bars: blue decays, orange does not."""
    rows = [(head, when, getattr(head, when)) for head in heads for when in ("before", "after")]
    names = [f"{for_plotly(head_title(head))} · {when}" for head, when, _ in rows]
    table = np.array([shares(values.log_modulus) for _, _, values in rows])
    drawn = figure("share of eigenvalues", "", 110 + 46 * len(heads), barmode="stack", bargap=0.25)
    drawn.update_layout(margin={"r": 30})
    for place, (label, colour) in enumerate(zip(BINS, BIN_COLOURS, strict=True)):
        drawn.add_trace(
            go.Bar(
                x=table[:, place],
                y=names,
                orientation="h",
                name=for_plotly(label),
                marker={"color": colour},
                hovertemplate=f"|λ| {for_plotly(label)}: %{{x:.1%}}<extra>%{{y}}</extra>",
            )
        )
    drawn.update_yaxes(autorange="reversed", type="category")
    drawn.update_xaxes(range=[0, 1.001], tickformat=".0%", dtick=0.25)
    drawn.update_layout(legend={"traceorder": "normal", "title": {"text": "|λ|"}})
    return drawn


def along(track: Track, axis: DecayAxis, regions: Sequence[Region]) -> go.Figure:
    """Quantile bands of the time constant against training steps, on the axis of the moduli."""
    places = axis.position(np.array(track.quantiles))
    steps = list(track.steps)
    drawn = figure("training step", "time constant τ (steps)", 320)
    for low, high, name, colour in BANDS:
        drawn.add_trace(
            go.Scatter(
                x=steps + steps[::-1],
                y=[*places[:, low], *places[::-1, high]],
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor=colour,
                name=name,
                hoverinfo="skip",
            )
        )
    median = places[:, QUANTILES.index(0.5)]
    style = {"mode": "lines+markers", "line": {"color": BLUE, "width": 2}, "marker": {"size": 4}}
    drawn.add_trace(go.Scatter(x=steps, y=median, name="median", hoverinfo="skip", **style))
    for region in regions:
        if region.role == "penalty":
            bottom, top = axis.interval(region)
            edge = {"color": ORANGE, "width": 1, "dash": "dot"}
            drawn.add_hrect(y0=bottom, y1=top, fillcolor="rgba(230,159,0,0.09)", line=edge, layer="below")
    reach = (float(places.min()) - 0.2, float(places.max()) + 0.2)
    if reach[1] > axis.decades:
        drawn.add_hline(y=axis.decades, line={"color": GREY, "width": 1.2})
    at, text = axis.time_ticks()
    drawn.update_yaxes(tickvals=at, ticktext=text, range=list(reach))
    return drawn
