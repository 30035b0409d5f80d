"""What a person sees of a task, its presets on the command line, and accuracy by slices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from specreg.studies import members, task_view
from specreg.studies.building import build_task, task_settings
from specreg.studies.cli import app
from specreg.studies.configuration import ConfigurationError, Run
from specreg.studies.slices import SliceScores, gathered
from specreg.tasks.files import ENVIRONMENT_VARIABLE
from specreg.tasks.mqar import MQAR
from specreg.tasks.task import SpectralNeed, Task

runner = CliRunner()


@pytest.mark.parametrize("name", sorted(members.tasks()))
def test_presets_are_the_settings_that_they_name(name: str) -> None:
    cls: type[Task] = members.tasks()[name]
    for preset, task in cls.presets().items():
        run = Run(model={"name": "lru"}, task=task_settings(f"{name}:{preset}"))
        assert build_task(run) == task


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="no preset of mqar 'tly': did you mean tli"):
        task_settings("mqar:tly")
    assert task_settings("mqar") == {"name": "mqar"}


def test_show_prints_examples_with_what_is_scored() -> None:
    result = runner.invoke(app, ["tasks", "show", "mqar:tiny", "--examples", "2"])
    assert result.exit_code == 0
    task = MQAR.tiny()
    batch = task.batch("validation", [0, 1])
    assert " ".join(str(token) for token in batch.inputs[1].tolist()) in result.stdout
    for place in batch.scored[1].nonzero().flatten().tolist():
        assert f"{place}→{int(batch.targets[1, place])}" in result.stdout
    for fact in (task.source, f"{task.chance:.4g}", "validation 200", "one a position"):
        assert fact in result.stdout


def test_show_draws_images() -> None:
    result = runner.invoke(app, ["tasks", "show", "digits", "--examples", "1"])
    assert result.exit_code == 0
    assert "@@" in result.stdout
    image = np.zeros((2, 3), np.float32)
    image[1, 2] = 1
    assert task_view.drawing(image).split("\n")[1:] == [6 * " ", 4 * " " + "@@"]
    assert task_view.drawing(np.zeros((128, 128), np.float32)).count("\n") == 64


def test_show_as_data_and_with_settings() -> None:
    result = runner.invoke(app, ["tasks", "show", "mqar", "--set", "length=32", "--examples", "3", "--json"])
    data = json.loads(result.stdout)["data"]
    assert data["length"] == 32
    assert len(data["examples"]) == 3
    refused = runner.invoke(app, ["tasks", "show", "mqar", "--set", "pairs=90", "--set", "length=64"])
    assert refused.exit_code == 2
    assert "4·pairs ≤ length" in refused.stderr
    assert runner.invoke(app, ["tasks", "show", "mqra"]).exit_code == 2


def test_needs_are_described_in_few_words() -> None:
    assert task_view.described(SpectralNeed()) == ""
    need = SpectralNeed(memory=40, lags=(3,), periods=(2, 4), note="complex eigenvalues")
    assert task_view.described(need) == "memory 40; lag 3; periods 2, 4; complex eigenvalues"
    assert task_view.listed(range(1, 9)) == "1, 2, 3, 4, 5, 6, …"


def test_table_has_a_row_for_every_task_and_stands_in_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))  # no data: what only files tell is left open
    result = runner.invoke(app, ["tasks", "table"])
    assert result.stdout.strip() in (Path(__file__).parent.parent / "README.md").read_text()
    lines = result.stdout.strip().splitlines()
    assert [line.split("|")[1].strip(" `") for line in lines[2:]] == sorted(members.tasks())
    assert all(line.count("|") == len(task_view.COLUMNS) + 1 for line in lines)


def test_slices_count_each_answer_once() -> None:
    generator = np.random.default_rng(0)
    values, right = generator.integers(-1, 5, (40, 9)), generator.random((40, 9)) < 0.3
    scores = SliceScores()
    for part in np.split(np.arange(40), 4):
        scores.add({"lag": torch.from_numpy(values[part])}, torch.from_numpy(right[part]))
    assert scores.accuracies() == {"lag": {value: right[values == value].mean() for value in range(5)}}


def test_many_values_are_gathered_by_powers_of_two() -> None:
    assert gathered({0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 63: 6, 64: 7}) == {0: 1, 1: 2, 2: 7, 4: 5, 32: 6, 64: 7}
    scores = SliceScores()
    scores.add({"lag": torch.arange(100)}, torch.arange(100) % 2 == 0)
    assert scores.accuracies()["lag"] == {0: 1, 1: 0, 2: 0.5, 4: 0.5, 8: 0.5, 16: 0.5, 32: 0.5, 64: 0.5}
