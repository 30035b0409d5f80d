"""The report on a terminal: the same order, fewer words. No text is read as markup, no control reaches the screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from specreg.studies.console import trimmed
from specreg.studies.recorded_spectra import BINS, Head, RunSpectra, Values, shares
from specreg.studies.report import SPECTRAL_STATISTICS, StudyReport, TrialRow
from specreg.studies.report_statistics import Importances
from specreg.studies.report_text import (
    Column,
    bracket,
    duration,
    estimate,
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

TOP = 8  # trials listed
HEADS = 16  # listed; JSON has them all


def show(report: StudyReport, console: Console) -> None:
    """Print a study's report."""
    with trimmed(console):
        study_sections(report, console)


def show_spectra(spectra: RunSpectra, notes: Sequence[str], console: Console) -> None:
    """Print a run's spectra."""
    with trimmed(console):
        heading(console, shown(spectra.subject))
        remarks(notes, console)
        spectra_tables(spectra, console)


def study_sections(report: StudyReport, console: Console) -> None:
    """Everything in the order of a reader's questions."""
    heading(console, f"study {shown(report.name)}")
    verdict(report, console)
    remarks(report.notes, console)
    heading(console, "health")
    console.print(table_of_facts(report))
    heading(console, f"best trials by {shown(report.score)}")
    console.print(best_trials(report, console))
    if report.importances is not None:
        heading(console, "which parameters matter")
        importance_lines(report.importances, console)
    if report.spectra is not None:
        spectra_tables(report.spectra, console)
    if report.correlations:
        heading(console, "does the spectrum matter?")
        correlation_table(report, console)
    for command in report.commands()[:1]:
        heading(console, "reproduce")
        paragraph(console, "the best trial's first run; its run.toml has the study's own seed for that repeat", "dim")
        paragraph(console, printable(command))


def heading(console: Console, text: str) -> None:
    """A section's name."""
    console.print()
    console.print(Text(text, style="bold"))


def paragraph(console: Console, text: str, style: str = "") -> None:
    """Indented running text."""
    console.print(Padding(Text(text, style=style), (0, 0, 0, 2)))


def remarks(notes: Iterable[str], console: Console) -> None:
    """What could not be read."""
    for note in notes:
        console.print(Padding(Text(f"note: {shown(note)}", style="yellow"), (0, 0, 0, 2)))


def table(*columns: str, left: int = 1) -> Table:
    """An empty table: the first `left` columns are text, the others figures."""
    made = Table(box=None, padding=(0, 1), pad_edge=True, header_style="dim")
    for place, name in enumerate(columns):
        made.add_column(Text(name), justify="left" if place < left else "right", overflow="fold")
    return made


def cells(*values: str, style: str = "") -> list[Text]:
    """A row's texts, none of it markup."""
    return [Text(value, style=style) for value in values]


def verdict(report: StudyReport, console: Console) -> None:
    """The best trial, its scores, chance, and its settings."""
    if report.running:
        paragraph(console, "a driver holds this study: this is what is done so far", "yellow")
    best = report.best
    if best is None:
        paragraph(console, "no trial has been completed", "yellow")
        return
    test = "not measured" if best.test is None else f"{mean_and_spread(best.test)} ({seeds(best.test.count)})"
    score = f"{mean_and_spread(best.score)} ({over_seeds(best.score)})"
    lines = [
        ("best trial", str(best.trial.slot)),
        (f"{shown(report.score)}, validation", score),
        ("accuracy, test", test),
        *((shown(label), mean_and_spread(value)) for label, value in best.further()),
        ("chance", "unknown" if best.chance is None else number(best.chance, 3)),
        *((shown(name), shown(value)) for name, value in best.trial.parameters.items()),
    ]
    console.print(pairs(lines, strong=4 + len(best.further())))


def pairs(lines: Iterable[tuple[str, str]], strong: int = 0) -> Table:
    """Labels and values in two columns; the first `strong` values stand out."""
    made = Table.grid(padding=(0, 2))
    made.add_column(justify="left", max_width=34, overflow="fold")
    made.add_column(overflow="fold")
    for place, (label, value) in enumerate(lines):
        made.add_row(Text(f"  {label}", style="dim"), Text(value, style="bold" if place < strong else ""))
    return made


def table_of_facts(report: StudyReport) -> Table:
    """Counts, causes, versions and hardware."""
    health = report.health
    counts = ", ".join(f"{count} {outcome}" for outcome, count in health.outcomes.items())
    lines = [("trials", f"{counts}; {duration(health.seconds)} of training")]
    for reason, count in health.reasons.items():
        message = health.messages.get(reason)
        lines.append((shown(reason), f"{count}, the first: {shown(message)}" if message else str(count)))
    if health.retries:
        lines.append(("attempts repeated", str(health.retries)))
    return pairs([*lines, *((label, shown(fact)) for label, fact in health.facts.items())])


def best_trials(report: StudyReport, console: Console) -> Table:
    """The first TOP trials by the first objective."""
    sign = -1 if report.maximised else 1
    scored = [trial for trial in report.trials if trial.outcome == "completed"]
    scored.sort(key=lambda trial: (sign * trial.mean(report.score), trial.slot))
    costs = list(dict.fromkeys([*list(report.objectives)[1:], report.cost]))
    front = {point.slot for point in report.points if point.on_front}
    made = table("trial", *map(shown, (report.score, *costs)), "distance", "time", "settings")
    made.columns[-1].justify = "left"
    made.columns[-1].ratio = 1
    for trial in scored[:TOP]:
        values = [estimate(trial.estimate(name)) for name in (report.score, *costs, "spectral_distance")]
        mark = "*" if trial.slot in front else ""
        made.add_row(*cells(f"{trial.slot}{mark}", *values, duration(trial.seconds), settings(trial)))
    made.caption = Text("* on the Pareto front of score and cost", style="dim")
    made.caption_justify = "left"
    return made


def settings(trial: TrialRow) -> str:
    """A trial's parameters in one line."""
    return ", ".join(f"{shown(name)} {shown(value)}" for name, value in trial.parameters.items())


def importance_lines(found: Importances, console: Console) -> None:
    """Shares as bars, and how far to trust them."""
    if not found.reliable:
        paragraph(console, f"{found.trials} completed trials are too few to rely on this order", "yellow")
    made = table("parameter", "group", "share", "", left=2)
    made.columns[-1].justify = "left"
    made.columns[0].max_width = 34
    for entry in found.entries:
        style = "" if entry.share > found.floor else "dim"
        length = round(24 * entry.share)
        bar = ("━" if utf8(console) else "=") * length
        made.add_row(*cells(shown(entry.parameter), entry.group, number(entry.share, 2), bar, style=style))
    console.print(made)
    floor = f"a parameter without effect gets up to {number(found.floor, 2)} from as many trials"
    paragraph(console, f"{found.method}; {floor}", "dim")


def utf8(console: Console) -> bool:
    """Whether the stream takes characters beyond ASCII."""
    return console.encoding.lower().startswith("utf")


def modulus(probability: float, values: Values) -> str:
    """A quantile of the moduli, with a digit more near 1."""
    (found,) = values.quantiles(probability)
    return number(found, 4 if 0.9 < found < 1.1 else 3)


def share(place: int, values: Values) -> str:
    """The share in one bin of moduli, in per cent."""
    return percent(shares(values.log_modulus)[place])


MODULI = (
    *(
        Column(name, partial(modulus, probability))
        for name, probability in (("min |λ|", 0.0), ("median", 0.5), ("max", 1.0))
    ),
    Column("τ, steps", lambda v: number(v.time_constant(), 3)),
    Column("phase", lambda v: number(v.median_phase(), 3)),
)
SHARES = tuple(Column(name, partial(share, place)) for place, name in enumerate(BINS))


def spectra_tables(spectra: RunSpectra, console: Console) -> None:
    """Moduli, time constants, phases, reading, certainty and bin shares of each head, before and after."""
    heading(console, f"eigenvalues of {shown(spectra.run)}, gauge: {shown(spectra.gauge)}")
    for region in spectra.regions:
        reach = f"|λ| from {number(region.low)} to {number(region.high)}"
        paragraph(console, f"{region.role}: {shown(region.text)}, {reach}", "dim")
    heads, known = spectra.heads[:HEADS], known_columns(spectra.heads)
    for made in fitted([MODULI, *known.values(), SHARES], heads, console):
        console.print(made)
    paragraph(console, "τ and phase (radians) are medians; columns of |λ| are per cent of the eigenvalues", "dim")
    for meaning in known:
        paragraph(console, meaning, "dim")
    if len(spectra.heads) > HEADS:
        paragraph(console, f"the first {HEADS} of {len(spectra.heads)} heads", "dim")


def fitted(groups: Iterable[Sequence[Column]], heads: Sequence[Head], console: Console) -> Iterator[Table]:
    """As few tables as the width allows; a group of columns stays together."""
    unbounded = console.options.update(width=10_000)
    joined: list[Column] = []
    for group in groups:
        wider = table_of_heads([*joined, *group], heads)
        if joined and console.measure(wider, options=unbounded).maximum > console.width:
            yield table_of_heads(joined, heads)
            joined = []
        joined += group
    yield table_of_heads(joined, heads)


def table_of_heads(columns: Sequence[Column], heads: Sequence[Head]) -> Table:
    """Two rows a head, before and after; layer and head are named once."""
    made = table("layer", "head", "", *(column.name for column in columns))
    made.columns[2].justify = "left"
    for head in heads:
        before, after = ([column.cell(values) for column in columns] for values in (head.before, head.after))
        made.add_row(*cells(shown(head.layer), str(head.head), "before", *before, style="dim"))
        made.add_row(*cells("", "", "after", *after))
    return made


def correlation_table(report: StudyReport, console: Console) -> None:
    """Spearman's ρ of each spectral statistic with the score."""
    paragraph(console, "correlation in a searched sample, not an effect: the sampler went where scores were good")
    doubt = report.doubt()
    if doubt is not None:
        paragraph(console, doubt, "yellow")
    made = table("statistic", "n", "ρ", "95 % interval", "p", "partial ρ", "95 % interval")
    for entry in report.correlations:
        partial = (signed(entry.partial), bracket(entry.partial_low, entry.partial_high))
        interval = bracket(entry.low, entry.high)
        name = SPECTRAL_STATISTICS[entry.statistic]
        made.add_row(*cells(name, str(entry.count), signed(entry.rho), interval, number(entry.p_value, 2), *partial))
    console.print(made)
    held = f"; partial: {', '.join(map(shown, report.controls))} held fixed" if report.controls else ""
    paragraph(console, f"Spearman with {shown(report.score)}, permutation p, corrected by Holm{held}", "dim")
