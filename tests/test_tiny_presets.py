"""Twenty steps on the `tiny` preset of every task, through the function behind `specreg train`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from specreg.studies import members
from specreg.studies.building import task_settings
from specreg.studies.configuration import Budget, ConfigurationError, Run
from specreg.studies.training import train
from specreg.tasks.files import ENVIRONMENT_VARIABLE

DATA = Path(os.environ.get(ENVIRONMENT_VARIABLE) or Path(__file__).parents[2] / "shared" / "data")


@pytest.mark.parametrize("name", sorted(members.tasks()))
def test_twenty_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the user's own stays as it is
    settings = task_settings(f"{name}:tiny")
    cls = members.tasks()[name]
    if hasattr(cls, "data"):
        settings["data"] = str(DATA)
    budget = Budget(steps=20, batch_size=16, evaluate_every=20)
    run = Run(model={"name": "lru", "d_model": 16, "depth": 1}, task=settings, budget=budget)
    began = time.process_time()
    try:
        steps = list(train(run, tmp_path / "run"))
    except ConfigurationError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            pytest.skip(f"{name}: its files are not here")
        raise
    assert len(steps) == 20
    assert steps[-1].evaluation is not None
    print(f"{name}: {time.process_time() - began:.2f} s")
