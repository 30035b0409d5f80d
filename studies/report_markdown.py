"""The report as Markdown: the same content as the page but for its figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from specreg.studies.recorded_spectra import BINS, RunSpectra, Values, shares
from specreg.studies.report import SPECTRAL_STATISTICS, StudyReport
from specreg.studies.report_text import (
    Column,
    bracket,
    duration,
    estimate,
    for_markdown,
    known_columns,
    mean_and_spread,
    number,
    over_seeds,
    percent,
    printable,
    seeds,
    shown,
    signed,
)


def markdown(report: StudyReport) -> str:
    """A study's report as Markdown."""
    sections = [
        [f"# {for_markdown(report.name)}"],
        verdict(report),
        [f"- note: {for_markdown(note)}" for note in report.notes],
        health(report),
        front(report),
        importance(report),
        [] if report.spectra is None else spectra(report.spectra),
        relation(report),
        trials(report),
        reproduce(report),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """A table; the first `left` columns are text. The cells are escaped by the caller."""
    rule = [":--" if place < left else "--:" for place in range(len(header))]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]


def verdict(report: StudyReport) -> list[str]:
    """The best trial and its settings."""
    best = report.best
    if best is None:
        return ["No trial has been completed."]
    test = "not measured" if best.test is None else f"{mean_and_spread(best.test)} ({seeds(best.test.count)})"
    score = f"{mean_and_spread(best.score)} ({over_seeds(best.score)})"
    chance = "unknown" if best.chance is None else number(best.chance, 3)
    settings = [(for_markdown(name), for_markdown(value)) for name, value in best.trial.parameters.items()]
    rows = [
        ("best trial", str(best.trial.slot)),
        (f"{for_markdown(report.score)}, validation", score),
        ("accuracy, test (never used to select)", test),
        *((for_markdown(label), mean_and_spread(value)) for label, value in best.further()),
        ("chance", chance),
        *settings,
    ]
    return table(("", ""), rows, left=2)


def health(report: StudyReport) -> list[str]:
    """Counts, causes and circumstances."""
    found = report.health
    lines = ["## Health", ""]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in found.outcomes.items())
    lines.append(f"- trials: {counts}; {duration(found.seconds)} of training, {found.retries} attempts repeated")
    for reason, count in found.reasons.items():
        message = found.messages.get(reason, "no message")
        lines.append(f"- {for_markdown(reason)}: {count}; the first: {for_markdown(message)}")
    return [*lines, *(f"- {label}: {for_markdown(fact)}" for label, fact in found.facts.items())]


def front(report: StudyReport) -> list[str]:
    """The trials that no other dominates."""
    chosen = sorted((point for point in report.points if point.on_front), key=lambda point: point.cost)
    if not chosen:
        return []
    rows = [(str(p.slot), for_markdown(p.model), estimate(p.score), number(p.cost), shown(p.distance)) for p in chosen]
    header = ("trial", "model", for_markdown(report.score), for_markdown(report.cost), "spectral distance")
    return ["## Pareto front", "", *table(header, rows, left=2)]


def importance(report: StudyReport) -> list[str]:
    """Parameters by share."""
    found = report.importances
    if found is None:
        return ["## Which parameters matter", "", "Too few completed trials, or too little that varies, to say."]
    warning = [] if found.reliable else [f"**{found.trials} completed trials are too few to rely on this order.**", ""]
    rows = [(for_markdown(e.parameter), e.group, number(e.share, 2)) for e in found.entries]
    floor = f"{found.method}; a parameter without effect gets up to {number(found.floor, 2)} from as many trials."
    lines = table(("parameter", "group", "share"), rows, left=2)
    return ["## Which parameters matter", "", *warning, *lines, "", floor]


def spectra(found: RunSpectra) -> list[str]:
    """Every head before and after."""
    known = known_columns(found.heads)
    added = [column for columns in known.values() for column in columns]
    moduli_names = [f"{name} \\|λ\\|" for name in ("min", "median", "max")]
    names = [*(column.name for column in added), *map(for_markdown, BINS)]
    rows = [
        (for_markdown(head.layer), str(head.head), when, *spectrum_cells(values, added))
        for head in found.heads
        for when, values in (("before", head.before), ("after", head.after))
    ]
    steps = f"step {found.first_step} and step {found.last_step}"
    place = f"Recorded at {steps} of {for_markdown(found.run)}, gauge: {for_markdown(found.gauge)}."
    meaning = "Moduli, medians of τ and phase, and per cent of the eigenvalues in each bin [a, b) of the modulus."
    lines = table(("layer", "head", "", *moduli_names, "τ, steps", "phase", *names), rows, left=3)
    notes = ["", *(f"- {text}" for text in known)] if known else []
    return ["## Eigenvalues of the best trial", "", f"{place} {meaning}", "", *lines, *notes]


def spectrum_cells(values: Values, added: Sequence[Column]) -> list[str]:
    """The figures of one head at one step."""
    moduli = [number(modulus) for modulus in values.quantiles(0, 0.5, 1)]
    medians = [number(values.time_constant(), 3), number(values.median_phase(), 3)]
    own = [for_markdown(column.cell(values)) for column in added]
    return [*moduli, *medians, *own, *(for_markdown(percent(part)) for part in shares(values.log_modulus))]


def relation(report: StudyReport) -> list[str]:
    """Correlations of spectral statistics with the score."""
    if not report.correlations:
        return []
    rows = [
        (
            SPECTRAL_STATISTICS[e.statistic].replace("|", "\\|"), str(e.count), signed(e.rho), bracket(e.low, e.high),
            number(e.p_value, 2), signed(e.partial), bracket(e.partial_low, e.partial_high),
        )
        for e in report.correlations
    ]  # fmt: skip
    header = ("statistic", "n", "ρ", "95 % interval", "p", "partial ρ", "95 % interval")
    held = f" Held fixed in partial: {', '.join(map(for_markdown, report.controls))}." if report.controls else ""
    sentence = "This is correlation in a searched sample, not an effect: the sampler chose these trials."
    sentence += f" Spearman, permutation p, corrected by Holm.{held}"
    doubt = report.doubt()
    warning = [] if doubt is None else [f"**{doubt}.**", ""]
    return ["## Does the spectrum matter?", "", sentence, "", *warning, *table(header, rows)]


def trials(report: StudyReport) -> list[str]:
    """Every trial."""
    names = report.parameter_names()
    header = ("trial", "outcome", *map(for_markdown, report.objectives), "time", *map(for_markdown, names))
    rows = []
    for trial in report.trials:
        values = [estimate(trial.estimate(metric)) for metric in report.objectives]
        settings = [for_markdown(trial.parameters.get(name)) for name in names]
        outcome = for_markdown(trial.reason or trial.outcome)
        rows.append((str(trial.slot), outcome, *values, duration(trial.seconds), *settings))
    return ["## Trials", "", *table(header, rows, left=2)]


def reproduce(report: StudyReport) -> list[str]:
    """Commands and configuration."""
    if report.best is None or report.best.run_toml is None:
        return []
    content = "\n".join(map(printable, report.best.run_toml.splitlines()))
    seed = "the seed in it is the study's own for its first repeat"
    if report.best.run_file is None:
        lines = [f"The best trial's configuration as stored; {seed}. Its run directory is gone."]
    else:
        commands = "\n".join(map(printable, report.commands()))
        lines = [f"{for_markdown(report.best.run_file)} holds the best trial's configuration; {seed}.", ""]
        lines += fenced(commands, "console")
    return ["## How to reproduce", "", *lines, "", *fenced(content, "toml")]


def fenced(content: str, language: str) -> list[str]:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, content, fence]
