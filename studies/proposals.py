"""What a slot is given: parameters, a configuration and seeds, each a function of the study's seed and the slot.

Nothing depends on Optuna's trial numbers, which every kill and every retry shifts.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import optuna

from specreg.studies.configuration import Run
from specreg.studies.definition import Definition


def sampler(study_seed: int, slot: int, startup: int) -> optuna.samplers.BaseSampler:
    """TPE for one slot, random for the first `startup` trials that end; groups keep conditional parameters apart.

    Source: Bergstra et al., Algorithms for hyper-parameter optimization, NIPS 2011; Watanabe 2023, arXiv:2304.11127.
    """
    seed = int(np.random.SeedSequence([study_seed, slot]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`
        return optuna.samplers.TPESampler(n_startup_trials=startup, multivariate=True, group=True, seed=seed)


def configured(definition: Definition, trial: optuna.Trial, device: str, study_seed: int) -> Run:
    """The study's run for a trial, on this device and with the seed of its first repeat.

    Raises whatever `configure` raises, and TypeError where it returns something else than a Run.
    """
    run = definition.configure(trial)
    if not isinstance(run, Run):
        raise TypeError(f"configure has to return a Run, got {type(run).__name__}")
    run = replace(run, device=device)
    return replace(run, seed=training_seed(study_seed, run, repeat=0))


def training_seed(study_seed: int, run: Run, repeat: int) -> int:
    """The seed of one training run, from the study's seed, the configuration and the number of the repeat."""
    sequence = np.random.SeedSequence([study_seed, int(run.digest(), 16), repeat])
    return int(sequence.generate_state(1)[0])


def halved(run: Run) -> Run | None:
    """The run with half the examples a step, None where there is but one; no gradients are accumulated instead."""
    size = run.budget.batch_size
    return run.updated("budget.batch_size", size // 2) if size > 1 else None
