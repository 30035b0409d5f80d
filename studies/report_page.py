"""The report as one HTML file that opens offline: autoescaped, plotly's script inlined once, under a strict policy."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from specreg.studies import report_text
from specreg.studies.influence_figures import DECADES, LINES
from specreg.studies.recorded_spectra import BINS, RunSpectra, shares
from specreg.studies.report import SPECTRAL_STATISTICS, StudyReport
from specreg.studies.report_figures import Drawing, study_drawings
from specreg.studies.spectrum_figures import DISC, MARKERS, outside, spectrum_drawings

FOLDER = Path(__file__).parent

DRAW = """
"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const style = () => getComputedStyle(document.documentElement);
const ink = (name) => style().getPropertyValue(name).trim();
function template() {
  const axis = {gridcolor: ink("--grid"), linecolor: ink("--rule"), tickcolor: ink("--rule"), ticks: "outside",
                ticklen: 4, showline: true, zerolinecolor: ink("--grid"), title: {standoff: 8, font: {size: 13}}};
  return {layout: {paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: ink("--sans"), size: 12, color: ink("--ink")}, xaxis: axis, yaxis: axis,
    hoverlabel: {bgcolor: ink("--paper"), bordercolor: ink("--rule"), font: {color: ink("--ink")}}}};
}
const config = {responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]],
                toImageButtonOptions: {format: "svg", filename: document.body.dataset.name}};
function draw() {
  return Promise.all(Object.entries(figures).map(([key, figure]) => Plotly.react(
    "plot-" + key, figure.data, {...figure.layout, template: template(), autosize: true}, config)));
}
const drawn = () => { document.documentElement.dataset.drawn = Object.keys(figures).length; };
draw().then(drawn);
dark.addEventListener("change", draw);
"""


def page(report: StudyReport) -> str:
    """A study's report as HTML."""
    search = study_drawings(report)
    spectra = {} if report.spectra is None else spectrum_drawings(report.spectra)
    values = {"report": report, "search": search, "drawings": spectra}
    return render("report.html", report.name, [*search.values(), *flat(spectra)], values)


def spectrum_page(spectra: RunSpectra, notes: Iterable[str]) -> str:
    """A run's spectra as HTML."""
    drawings = spectrum_drawings(spectra)
    values = {"spectra": spectra, "drawings": drawings, "notes": list(notes)}
    return render("spectrum.html", f"{spectra.subject}, {spectra.run}", flat(drawings), values)


def flat(drawings: dict[str, list[Drawing]]) -> list[Drawing]:
    """All drawings of all kinds."""
    return [drawing for kind in drawings.values() for drawing in kind]


def render(template: str, name: str, drawings: list[Drawing], values: Mapping[str, Any]) -> str:
    """Fill a template; every value is escaped, and control characters in text are written out."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        text=report_text,
        shares=shares,
        outside=outside,
        bins=BINS,
        statistics=SPECTRAL_STATISTICS,
        disc_radius=DISC,
        most_markers=MARKERS,
        decades=DECADES,
        most_lines=LINES,
    )
    plotly = get_plotlyjs()
    return environment.get_template(template).render(
        name=name,
        plotly=Markup(plotly),
        draw=Markup(DRAW),
        policy=policy(plotly, DRAW),
        figures=Markup(embedded({drawing.key: drawing.to_json() for drawing in drawings})),
        style=Markup((FOLDER / "report.css").read_text()),
        **values,
    )


def visible(value: Any) -> Any:
    """Text without control and direction characters; anything else as it is."""
    return report_text.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def policy(*scripts: str) -> str:
    """A content security policy under which these scripts run, no other, and nothing is fetched from anywhere."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(data: Any) -> str:
    """JSON that may stand in a script element: no "<", no line separators."""
    plain = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        plain = plain.replace(char, f"\\u{ord(char):04x}")
    return plain
