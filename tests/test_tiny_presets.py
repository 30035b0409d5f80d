"""Twenty steps on the `tiny` preset of every task, through the function behind `specreg train` and as commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from specreg.studies import members
from specreg.studies.building import task_settings
from specreg.studies.configuration import Budget, ConfigurationError, Run
from specreg.studies.training import train
from specreg.tasks.files import ENVIRONMENT_VARIABLE

DATA = Path(os.environ.get(ENVIRONMENT_VARIABLE) or Path(__file__).parents[2] / "shared" / "data")
EACH, ALL = 3.0, 120.0  # seconds on a machine that does nothing else
SHARED = 3  # processor time does not count what others do, but grows beside them: caches and cores are shared


@pytest.fixture(scope="module")
def spent() -> Iterator[list[float]]:
    """Seconds of processor time of the tasks so far; those of all that this process trained are limited too."""
    threads, seconds = torch.get_num_threads(), list[float]()
    torch.set_num_threads(1)  # others would spend processor time waiting for one another
    yield seconds
    torch.set_num_threads(threads)
    print(f"{len(seconds)} tasks: {sum(seconds):.1f} s")
    assert sum(seconds) <= ALL * SHARED


@pytest.mark.parametrize("name", sorted(members.tasks()))
def test_twenty_steps(name: str, spent: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From cold: what is kept of data files is not there yet, and the first task imports what training needs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the user's own stays as it is
    began = time.process_time()
    settings = task_settings(f"{name}:tiny")
    if hasattr(members.tasks()[name], "data"):
        settings["data"] = str(DATA)
    budget = Budget(steps=20, batch_size=16, evaluate_every=20)
    run = Run(model={"name": "lru", "d_model": 16, "depth": 1}, task=settings, budget=budget)
    try:
        steps = list(train(run, tmp_path / "run"))
    except ConfigurationError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            pytest.skip(f"{name}: its files are not in {DATA}")
        raise
    spent.append(time.process_time() - began)
    print(f"{name}: {spent[-1]:.2f} s")
    assert len(steps) == 20
    assert steps[-1].evaluation is not None
    assert spent[-1] <= EACH * SHARED


@pytest.mark.parametrize(
    ("name", "file"), [("mqar", None), ("digits", None), ("wikitext", "wikitext-2-v1.zip"), ("imdb", "aclImdb*.tar.*")]
)
def test_twenty_steps_as_a_command(name: str, file: str | None, tmp_path: Path) -> None:
    if file is not None and not any(DATA.glob(file)):
        pytest.skip(f"{name}: {file} is not in {DATA}")
    command = [sys.executable, "-m", "specreg.studies.cli", "train", "--model", "lru", "--task", f"{name}:tiny"]
    data = [] if file is None else ["--data", str(DATA)]
    done = subprocess.run(
        [*command, *data, "--steps", "20", "--out", "run", "--json"],
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])["data"]
    assert result["steps"] == 20
    assert 0 <= result["accuracy"] <= 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 20
