"""A study that really trains, for twenty steps: two models, an initial spectrum where there is one, a penalty."""

from specreg.studies.configuration import Budget, Run

OBJECTIVES = {"accuracy": "maximize", "macs": "minimize"}
REPEATS = 2


def configure(trial):
    """Four trials see both models for any seed that the tests use."""
    name = trial.suggest_categorical("mixer", ["lru", "softmax-attention"])
    weight = trial.suggest_float("penalty_weight", 1e-3, 1.0, log=True)
    return Run(
        model={"name": name, "depth": 2, "d_model": trial.suggest_int("d_model", 8, 16, step=4)},
        task={"name": "digits"},
        init="ring(0.9, 0.99)" if name == "lru" else None,
        penalties=(f"timescale_distance(log_uniform_timescale(1, 64))*{weight:.6g}",),
        budget=Budget(steps=20, evaluate_every=10, checkpoint_every=20),
    )
