"""A study whose trials sleep: long enough to be killed at any moment, with a closed form to compare results by."""

import os
import time

from specreg.studies.configuration import Run

OBJECTIVES = {"accuracy": "maximize", "macs": "minimize"}


def configure(trial):
    """A search space with a branch, as the studies of the package have."""
    kind = trial.suggest_categorical("kind", ["lru", "gru"])
    width = trial.suggest_int("width", 8, 128, log=True)
    radius = trial.suggest_float("radius", 0.5, 1.0) if kind == "lru" else 0.7
    return Run(model={"name": kind, "width": width, "radius": radius}, task={"name": "digits"})


def evaluate(run, report):
    """Four values on the way, a quarter of the time before each."""
    accuracy = run.model["radius"] - 1 / run.model["width"]
    for step in range(1, 5):
        time.sleep(float(os.environ.get("STUDY_PAUSE", "0")) / 4)
        report(step, accuracy * step / 4)
    return {"accuracy": accuracy, "macs": 1000 * run.model["width"]}
