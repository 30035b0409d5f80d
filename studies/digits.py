"""Which mixer and which spectrum read the real digits best, at one parameter budget: accuracy against cost.

scikit-learn's 1,797 digits as sequences of 64 pixels. The search is over mixer, gate, short convolution, depth and
positions, over the spectrum at the start, and over a spectral penalty and its weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specreg.studies.configuration import Budget, Optimiser, Run, Settings

if TYPE_CHECKING:
    import optuna

OBJECTIVES = {"accuracy": "maximize", "macs": "minimize"}
REPEATS = 2  # seeds a trial

PARAMETERS = 40_000  # each trial's model, to ±10 %
MIXERS = ("lru", "mamba2", "pseudo-lti-mamba2", "softmax-attention", "linear-attention", "norm-attention")
INITIAL = {  # only where parameters set the eigenvalues
    "published": None,
    "ring": "ring(0.9, 0.99)",
    "log_uniform": "log_uniform_timescale(1, 64)",
    "two_cluster": "two_cluster(0.5, 0.1, 0.98)",
}
PENALTIES = {
    "none": None,
    "band": "band(0.5, 1.0)",
    "log_uniform": "timescale_distance(log_uniform_timescale(1, 64))",
}


def configure(trial: optuna.Trial) -> Run:
    """One configuration of the search space."""
    mixer = trial.suggest_categorical("mixer", MIXERS)
    model: Settings = {
        "name": mixer,
        "parameters": PARAMETERS,
        "depth": trial.suggest_int("depth", 1, 2),
        "gate": trial.suggest_categorical("gate", (False, True)),
        "convolution_width": trial.suggest_categorical("convolution_width", (0, 4)),
        "positions": trial.suggest_categorical("positions", ("none", "learned")),
        "d_state": 32,
    }
    init = None
    if mixer in ("lru", "mamba2", "pseudo-lti-mamba2"):
        init = INITIAL[trial.suggest_categorical("initial_spectrum", tuple(INITIAL))]
    penalty = PENALTIES[trial.suggest_categorical("penalty", tuple(PENALTIES))]
    weight = 0.0 if penalty is None else trial.suggest_float("penalty_weight", 1e-3, 1.0, log=True)
    return Run(
        model=model,
        task={"name": "digits"},
        init=init,
        penalties=() if penalty is None else (f"{penalty}*{weight:.6g}",),
        optimiser=Optimiser(learning_rate=trial.suggest_float("learning_rate", 3e-3, 1.5e-2, log=True)),
        budget=Budget(steps=600, batch_size=32, evaluate_every=150, checkpoint_every=300),
    )
