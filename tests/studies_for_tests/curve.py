"""Two objectives, a condition, and a pause instead of training: the time is in the task's settings."""

import time

from specreg.studies.configuration import Run

OBJECTIVES = {"accuracy": "maximize", "macs": "minimize"}
REPEATS = 2


def configure(trial):
    """A search space with a branch."""
    kind = trial.suggest_categorical("kind", ["lru", "gru"])
    rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
    radius = trial.suggest_float("radius", 0.5, 1.0) if kind == "lru" else 0.5
    return Run(model={"name": kind, "radius": radius, "rate": rate}, task={"name": "digits"})


def evaluate(run, report):
    """A closed form of the configuration, the seed left out so that it can be checked."""
    accuracy = run.model["radius"] - run.model["rate"]
    for step in range(4):
        report(step, accuracy * (step + 1) / 4)
        time.sleep(0.01)
    (report.directory / "seed.txt").write_text(str(run.seed))
    return {"accuracy": accuracy, "macs": 1e3 * run.model["radius"], "seed": run.seed}
