"""Other sizes and published accuracies in a study's report, in the terminal, Markdown and HTML."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from specreg.studies import report_markdown, report_page, report_terminal
from specreg.studies.cli import app
from specreg.studies.report import StudyReport, collect
from specreg.studies.report_statistics import Estimate
from specreg.studies.report_text import mean_and_spread

STUDY = """
from specreg.studies.configuration import Budget, Run

OBJECTIVES = {"accuracy": "maximize"}
REPEATS = 2


def configure(trial):
    trial.suggest_float("rate", 1e-3, 1e-2)
    model = {"name": "lru", "d_model": 8, "depth": 1, "d_state": 4}
    task = {"name": "parity", "validation_examples": 20, "test_examples": 20}
    return Run(model=model, task=task, budget=Budget(steps=2, batch_size=4, evaluate_every=2))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of one trial with two seeds, as `specreg study run` leaves it."""
    here = tmp_path_factory.mktemp("study")
    (here / "parities.py").write_text(STUDY)
    command = ["study", "run", str(here / "parities.py"), "--trials", "1", "--out", str(here / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert "at 4 other sizes too: length-100, length-256, length-40-256, length-500" in result.stderr
    return here / "out"


def rendered(report: StudyReport) -> list[str]:
    stream = io.StringIO()
    report_terminal.show(report, Console(file=stream, width=100))
    return [stream.getvalue(), report_markdown.markdown(report), report_page.page(report)]


def kept_tests(folder: Path) -> list[Path]:
    return sorted(folder.glob("trials/*/*/test.json"))


def test_sizes_are_reported(folder: Path) -> None:
    files = [json.loads(path.read_text()) for path in kept_tests(folder)]
    assert len(files) == 2
    report = collect(folder, name="parities")
    assert report.best is not None
    assert list(report.best.sizes) == ["length-100", "length-256", "length-40-256", "length-500"]
    for name, estimate in report.best.sizes.items():
        assert estimate == Estimate.of([file["extrapolations"][name]["accuracy"] for file in files])
        for text in rendered(report):
            assert f"accuracy, test, {name}" in text and mean_and_spread(estimate) in text
    data = report.to_dict()["best"]
    assert data["sizes"]["length-500"]["count"] == 2 and data["published"] is None


def damaged(change: Callable[[dict[str, object]], None], folder: Path) -> StudyReport:
    """The report of test.json files that were changed, which are then put back."""
    kept = {path: path.read_text() for path in kept_tests(folder)}
    for path, text in kept.items():
        content = json.loads(text)
        change(content)
        path.write_text(json.dumps(content))
    try:
        return collect(folder, name="parities")
    finally:
        for path, text in kept.items():
            path.write_text(text)


def test_a_published_accuracy_is_named(folder: Path) -> None:
    report = damaged(lambda content: content.update(published_accuracy=0.625), folder)
    assert all("accuracy, test, as published" in text and "0.625" in text for text in rendered(report))


@pytest.mark.parametrize(
    "what", [None, 3, [1], {"<blink>\x1b[31m": {"accuracy": 0.5}}, {"a": {"accuracy": "x"}}, {"a": 1}]
)
def test_what_others_wrote_is_shown_as_text_or_not_at_all(what: object, folder: Path) -> None:
    report = damaged(lambda content: content.update(extrapolations=what), folder)
    terminal, markdown, page = rendered(report)
    assert "\x1b[31m" not in terminal + markdown + page
    assert "<blink>" not in markdown + page
