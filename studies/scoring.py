"""MAD's aggregate score of a model, from the runs that were trained on its published settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from specreg.studies.building import build_task
from specreg.studies.configuration import ConfigurationError, Run
from specreg.studies.console import Output
from specreg.studies.evaluation import test
from specreg.studies.run_directory import RunDirectory
from specreg.tasks.mad import MADScore, best_runs, mad_setting


def score(directories: Sequence[Path], output: Output) -> dict[str, Any]:
    """Print a model's accuracy on each task of MAD, and the mean; the same as data.

    A run that was never tested is tested first. Raises `ConfigurationError` for a run on no published setting, and for
    runs of more than one model.
    """
    runs = {directory: RunDirectory(directory).run() for directory in directories}
    keys = {directory: setting_of(directory, run) for directory, run in runs.items()}
    check_one_model(runs.items())
    accuracies: dict[tuple[str, str], list[float]] = {}
    for directory, key in keys.items():
        accuracies.setdefault(key, []).append(accuracy_of(directory))
    found = best_runs(accuracies)
    if not output.json:
        show(found, len(runs))
    settings = {f"{task}:{name}": accuracy for (task, name), accuracy in found.settings.items()}
    missing = [f"{task}:{name}" for task, name in found.missing]
    return {"mean": found.mean, "tasks": found.tasks, "settings": settings, "missing": missing}


def setting_of(directory: Path, run: Run) -> tuple[str, str]:
    """The published setting that a run was trained on."""
    key = mad_setting(build_task(run))
    if key is None:
        raise ConfigurationError(
            f"{directory}: its task is no published setting of MAD; those are trained on with --task NAME:SETTING, as "
            "in --task compression:mad (`specreg tasks show compression` lists them)"
        )
    return key


def check_one_model(runs: Iterable[tuple[Path, Run]]) -> None:
    """Raise where the runs' models have different settings: learning rates, penalties and the like may differ."""
    (first, known), *others = runs
    for directory, run in others:
        if run.model != known.model:
            raise ConfigurationError(
                f"{directory} and {first} are of two models ({run.model} and {known.model}); the score is of one"
            )


def accuracy_of(directory: Path) -> float:
    """The accuracy that MAD publishes, on the test split."""
    known = (RunDirectory(directory).summary("test") or {}).get("published_accuracy")
    accuracy = test(directory).published_accuracy if known is None else known
    assert accuracy is not None  # every task of MAD publishes one
    return float(accuracy)


def show(found: MADScore, runs: int) -> None:
    """Each task, and the mean with what it is over."""
    settings, every = len(found.settings), len(found.settings) + len(found.missing)
    for task, mean in found.tasks.items():
        of_task = sum(key[0] == task for key in found.settings)
        print(f"{task:24} {mean:.4f}  ({of_task} of {of_task + sum(key[0] == task for key in found.missing)} settings)")
    if not found.missing:
        print(f"{'MAD score':24} {found.mean:.4f}  (all {every} settings, {runs} runs)")
        return
    task, name = found.missing[0]
    print(f"{'mean over tasks':24} {found.mean:.4f}  ({settings} of {every} settings, {runs} runs)")
    print(f"not MAD's score, which is over all settings: {len(found.missing)} have no run, {task}:{name} the first")
