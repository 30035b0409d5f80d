"""The eigenvalues of one run, before and after training: from its run directory alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specreg.studies.configuration import ConfigurationError, Run
from specreg.studies.recorded_spectra import RunSpectra, read_spectra
from specreg.studies.run_directory import RunDirectory

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, eq=False)
class SpectrumReport:
    """A run's spectra, and what could not be read."""

    spectra: RunSpectra
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.spectra.to_dict(), "notes": list(self.notes)}


def collect(directory: Path) -> SpectrumReport:
    """Read a run's recorded spectra; raises `ConfigurationError` where there are none."""
    files, notes = RunDirectory(directory), list[str]()
    if not files.spectra():
        raise ConfigurationError(
            f"{directory}: no recorded spectra here; give the folder that holds run.toml and spectra/"
        )
    run: Run | None = None
    try:
        run = files.run()
    except ConfigurationError as error:
        notes.append(str(error))
    spectra = read_spectra(files, label(directory.resolve()), run, notes.append)
    if spectra is None:
        raise ConfigurationError(f"{directory}: {'; '.join(notes)}")
    return SpectrumReport(spectra, tuple(notes))


def label(path: Path) -> str:
    """A run's name: its folder, and where that is a number, the folder above."""
    return f"run {path.parent.name}/{path.name}" if path.name.isdigit() else f"run {path.name}"


def page(report: SpectrumReport) -> str:
    """The report as one HTML file that opens offline."""
    from specreg.studies import report_page

    return report_page.spectrum_page(report.spectra, report.notes)


def show(report: SpectrumReport, console: Console) -> None:
    """The report on a terminal."""
    from specreg.studies import report_terminal

    report_terminal.show_spectra(report.spectra, report.notes, console)
