"""Numbers and other people's words as they are shown: rounded as their spread allows, and escaped."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specreg.studies.console import printable as printable
from specreg.studies.report_statistics import Estimate

if TYPE_CHECKING:
    from specreg.studies.recorded_spectra import Head, Values

LONGEST = 300  # characters of somebody's text in a report


def shown(value: Any) -> str:
    """A value in a cell: four significant digits, or text without control characters, cut at LONGEST."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 1e5:
        return str(value)
    if isinstance(value, int | float):
        return number(float(value))
    text = printable(str(value)).replace("\n", " ").replace("\t", " ")
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def number(value: float, digits: int = 4) -> str:
    """Four significant digits or fewer; a hundred thousand and above with a letter; ∞ for what has no end."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "undefined"
    for least, size, letter in ((1e12, 1e12, "T"), (1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e5, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.3g} {letter}"
    if abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 1e3 else f"{value:.{digits}g}"


def mean_and_spread(estimate: Estimate) -> str:
    """Mean ± standard deviation to the same decimal: three for accuracies, else the second digit of the deviation."""
    if estimate.deviation is None:
        return number(estimate.mean)
    if estimate.deviation == 0 or abs(estimate.mean) >= 1e4:
        return f"{number(estimate.mean)} ± {number(estimate.deviation, 2)}"
    decimals = min(max(1 - math.floor(math.log10(estimate.deviation)), 0), 6)
    if 0.05 <= abs(estimate.mean) <= 1:
        decimals = min(max(decimals, 3), 4) if estimate.deviation < 1e-3 else 3
    return f"{estimate.mean:.{decimals}f} ± {estimate.deviation:.{decimals}f}"


def estimate(value: Estimate | None) -> str:
    """An estimate in a cell; no spread where it is 0."""
    if value is None:
        return "–"
    return number(value.mean) if not value.deviation else mean_and_spread(value)


def seeds(count: int) -> str:
    """How many seeds."""
    return "1 seed" if count == 1 else f"{count} seeds"


def over_seeds(value: Estimate) -> str:
    """What an estimate was made of; one seed has no spread to speak of."""
    return seeds(1) if value.deviation is None else f"mean ± sd of {seeds(value.count)}"


def percent(share: float) -> str:
    """A share in per cent; "·" for none, so that a table's pattern is seen."""
    if share == 0:
        return "·"
    return "<1" if share < 0.005 else f"{100 * share:.0f}"


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def signed(value: float | None) -> str:
    """A correlation: two decimals with a sign."""
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def bracket(low: float | None, high: float | None) -> str:
    """An interval of correlations."""
    return "–" if low is None or high is None else f"[{signed(low)}, {signed(high)}]"


def for_plotly(value: Any) -> str:
    """Text for plotly, which reads a little HTML."""
    return html.escape(shown(value), quote=False)


def for_markdown(value: Any) -> str:
    """Text for Markdown: neither markup nor HTML nor the end of a table's cell."""
    return re.sub(r"([\\`*_{}\[\]#!|~$]|:(?=//))", r"\\\1", html.escape(shown(value), quote=False))


@dataclass(frozen=True)
class Column:
    """A figure of one head at one step, and its name, in a table of any kind."""

    name: str
    cell: Callable[[Values], str]


READING = (
    Column("half-life", lambda v: "–" if v.influence is None else number(v.influence.half_life, 3)),
    Column("memory", lambda v: "–" if v.influence is None else number(v.influence.effective_memory, 2)),
)
CERTAINTY = (
    Column("κ max", lambda v: "–" if v.worst_condition is None else number(v.worst_condition, 3)),
    Column("certificate", lambda v: shown(v.certificate)),
)
MEANING = (
    "half-life: the age in steps by which half of what is read lies; memory: its mean age as a share of the past",
    "κ: to first order an eigenvalue moves by κ times a change of the transition at most; closed form: the eigenvalues "
    "are parameters of a normal transition, κ = 1",
)


def known_columns(heads: Iterable[Head]) -> dict[str, tuple[Column, ...]]:
    """By its meaning, what was recorded of reading and of certainty: nothing by an earlier version."""
    values = [values for head in heads for values in (head.before, head.after)]
    known = (any(v.influence is not None for v in values), any(v.certificate is not None for v in values))
    columns = zip(MEANING, (READING, CERTAINTY), known, strict=True)
    return {meaning: some for meaning, some, recorded in columns if recorded}
