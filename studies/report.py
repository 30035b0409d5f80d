"""A study's report as data: read from the storage and the run directories, never trained, never measured again."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from specreg.studies.configuration import ConfigurationError, Run
from specreg.studies.lease import Lease
from specreg.studies.recorded_spectra import RunSpectra, read_spectra
from specreg.studies.report_statistics import (
    FEWEST_PAIRS,
    Correlation,
    Estimate,
    Importances,
    Sample,
    correlations,
    group_by_landing,
    importances,
    on_front,
)
from specreg.studies.report_text import seeds
from specreg.studies.run_directory import RunDirectory
from specreg.studies.storage import open_study
from specreg.studies.tested import accuracies_by_size, estimated, usable

Outcome = Literal["completed", "pruned", "failed", "unfinished"]
SPECTRAL_STATISTICS = {
    "spectral_distance": "distance to the target (log steps)",
    "effective_memory": "effective memory (share of the past)",
    "median_log_timescale": "median of log τ (log steps)",
    "spread_log_timescale": "interquartile range of log τ (log steps)",
    "share_below_0.1": "share of |λ| < 0.1",
    "share_above_0.9": "share of |λ| ≥ 0.9",
    "share_above_1": "share of |λ| > 1",
    "mean_phase": "mean phase (rad)",
}
COSTS = ("macs", "parameters", "seconds")  # the first that is known, where no second objective says


@dataclass(frozen=True)
class TrialRow:
    """One trial as the driver left it."""

    slot: int
    outcome: Outcome
    reason: str | None
    message: str
    parameters: Mapping[str, Any]
    metrics: Mapping[str, tuple[float, ...]]  # by name, one value a seed; finite ones alone
    rungs: tuple[tuple[int, float], ...]
    attempts: int
    seconds: float
    directory: str | None  # relative to the study's folder
    run: Mapping[str, Any] | None

    def estimate(self, metric: str) -> Estimate | None:
        """Mean and spread of a metric over the seeds; None where it was not measured."""
        if metric == "seconds":
            return Estimate(self.seconds, None, 1)
        values = self.metrics.get(metric, ())
        return Estimate.of(values) if values else None

    def mean(self, metric: str) -> float:
        """The mean over seeds, NaN where it was not measured."""
        estimate = self.estimate(metric)
        return math.nan if estimate is None else estimate.mean


@dataclass(frozen=True)
class Best:
    """The best trial by the first objective, and what is known of it."""

    trial: TrialRow
    score: Estimate
    test: Estimate | None  # accuracy on the test split, which no selection looked at
    published: Estimate | None  # the accuracy as its task publishes it, where that is another
    sizes: Mapping[str, Estimate]  # accuracy at sizes that it was not trained on, by name
    chance: float | None
    run_toml: str | None
    run_file: str | None  # where that stands; None: its run directory is gone

    def further(self) -> list[tuple[str, Estimate]]:
        """What else was measured on test data, with its label."""
        published = [] if self.published is None else [("accuracy, test, as published", self.published)]
        return published + [(f"accuracy, test, {name}", value) for name, value in self.sizes.items()]


@dataclass(frozen=True)
class Point:
    """A completed trial in the plane of cost and score."""

    slot: int
    cost: float
    score: Estimate
    distance: float | None  # spectral
    model: str
    on_front: bool


@dataclass(frozen=True)
class Health:
    """What ran and what broke."""

    outcomes: Mapping[str, int]
    reasons: Mapping[str, int]
    messages: Mapping[str, str]  # the first one of each reason
    retries: int
    seconds: float  # of training, summed over trials
    began: str | None
    ended: str | None
    facts: Mapping[str, str]  # versions, commit, hardware


@dataclass(frozen=True, eq=False)
class StudyReport:
    """Everything that the renderers need."""

    name: str
    folder: str
    objectives: Mapping[str, str]
    seed: int | None
    repeats: int
    digest: str | None
    running: bool  # a driver held the study when it was read
    trials: tuple[TrialRow, ...]
    best: Best | None
    health: Health
    cost: str
    points: tuple[Point, ...]
    importances: Importances | None
    correlations: tuple[Correlation, ...]
    controls: tuple[str, ...]
    spectra: RunSpectra | None  # of the best trial's first seed
    notes: tuple[str, ...]

    @property
    def score(self) -> str:
        """The first objective."""
        return next(iter(self.objectives))

    @property
    def maximised(self) -> bool:
        """Whether the first objective is to be high."""
        return self.objectives[self.score] == "maximize"

    def parameter_names(self) -> tuple[str, ...]:
        """Every parameter that a trial has, in the order of appearance."""
        return tuple(dict.fromkeys(name for trial in self.trials for name in trial.parameters))

    def commands(self) -> tuple[str, ...]:
        """How to train the best trial's first run again and see its spectrum; empty where its directory is gone."""
        if self.best is None or self.best.run_file is None:
            return ()
        train = f"specreg train --config {shlex.quote(self.best.run_file)} --out runs/again"
        return (train, "specreg spectrum runs/again")

    def doubt(self) -> str | None:
        """What to say where trials are too few for some of the correlations, or None."""
        few = [entry for entry in self.correlations if not entry.enough]
        if not few:
            return None
        if len(few) == len(self.correlations):
            most = max(entry.count for entry in few)
            return f"{most} completed trials are too few trials to rely on these correlations"
        return f"rows with n below {FEWEST_PAIRS} have too few trials to rely on"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: numbers that are not finite are None; eigenvalues as statistics."""
        best = None
        if self.best is not None:
            best = {**asdict(self.best), "trial": self.best.trial.slot, "parameters": dict(self.best.trial.parameters)}
        plain = {
            "name": self.name,
            "objectives": dict(self.objectives),
            "seed": self.seed,
            "repeats": self.repeats,
            "digest": self.digest,
            "running": self.running,
            "best": best,
            "health": asdict(self.health),
            "cost": self.cost,
            "front": [point.slot for point in self.points if point.on_front],
            "importances": None if self.importances is None else asdict(self.importances),
            "correlations": [asdict(entry) for entry in self.correlations],
            "controls": list(self.controls),
            "spectra": None if self.spectra is None else self.spectra.to_dict(),
            "trials": [asdict(trial) for trial in self.trials],
            "notes": list(self.notes),
        }
        cleaned: dict[str, Any] = finite(plain)
        return cleaned


def finite(value: Any) -> Any:
    """The same with None for every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def collect(folder: Path, name: str | None = None, storage_url: str | None = None) -> StudyReport:
    """Read a study's report from its storage and run directories, while a driver runs it or not.

    Raises `StudyError` where there is no such study; anything missing or damaged beside it becomes a note.
    """
    with open_study(folder, name=name, storage_url=storage_url) as study:
        frozen = study.get_trials(deepcopy=False)
        attributes, title = study.user_attrs, study.study_name
        objectives = attributes.get("objectives") or objectives_of(study)
    notes: list[str] = []
    rows = [row(trial, objectives) for trial in frozen]
    rows.sort(key=lambda trial: trial.slot)
    best = best_trial(rows, objectives)
    files = run_directories(folder, best, notes.append)
    run, run_file = read_run(files, best, notes.append)
    score, cost = next(iter(objectives)), cost_of(objectives, rows)
    control_names, control_values = controls(completed(rows, score))
    return StudyReport(
        name=title,
        folder=str(folder),
        objectives=objectives,
        seed=attributes.get("seed"),
        repeats=attributes.get("repeats", 1),
        digest=attributes.get("digest"),
        running=is_running(attributes.get("lease")),
        trials=tuple(rows),
        best=None if best is None else describe(best, score, files, (run, run_file), notes.append),
        health=health(rows, frozen, files, notes.append),
        cost=cost,
        points=tuple(points(rows, objectives, cost)),
        importances=important(rows, frozen, objectives),
        correlations=related(completed(rows, score), score, control_values),
        controls=control_names,
        spectra=spectra_of_best(best, files, run, notes.append),
        notes=tuple(notes),
    )


def is_running(lease: dict[str, Any] | None) -> bool:
    """Whether a study's recorded driver lives; one of another host, of which nothing can be known, counts as living."""
    if lease is None:
        return False
    recorded = Lease.from_mapping(lease)
    return recorded.is_held_elsewhere() or recorded.host != Lease.of_this_process().host


# Trials


def row(trial: FrozenTrial, objectives: Mapping[str, str]) -> TrialRow:
    """A stored trial; objectives of one that has no metrics come from the values told to Optuna."""
    attributes = trial.user_attrs
    states: dict[TrialState, Outcome] = {
        TrialState.COMPLETE: "completed",
        TrialState.FAIL: "failed",
        TrialState.PRUNED: "pruned" if attributes.get("reason", "pruned") == "pruned" else "failed",
    }
    outcome = states.get(trial.state, "unfinished")
    metrics = {name: tuple(v for v in values if usable(v)) for name, values in attributes.get("metrics", {}).items()}
    if outcome == "completed":
        told = dict(zip(objectives, trial.values, strict=True))
        metrics = {**{name: (float(value),) for name, value in told.items()}, **metrics}
    return TrialRow(
        slot=attributes.get("slot", trial.number),
        outcome=outcome,
        reason=None if outcome == "completed" else attributes.get("reason", outcome),
        message=attributes.get("message", ""),
        parameters=dict(trial.params),
        metrics=metrics,
        rungs=tuple((int(step), float(value)) for step, value in attributes.get("rungs", ())),
        attempts=attributes.get("attempts", 1),
        seconds=float(attributes.get("seconds", 0.0)),
        directory=attributes.get("directory"),
        run=json.loads(attributes["run"]) if "run" in attributes else None,
    )


def objectives_of(study: optuna.Study) -> dict[str, str]:
    """Directions by name, of a study that our driver has not begun."""
    names = study.metric_names or [f"objective {number}" for number in range(len(study.directions))]
    return {name: direction.name.lower() for name, direction in zip(names, study.directions, strict=True)}


def completed(rows: Iterable[TrialRow], score: str) -> list[TrialRow]:
    """Trials with a result."""
    return [trial for trial in rows if trial.outcome == "completed" and trial.estimate(score) is not None]


def best_trial(rows: Sequence[TrialRow], objectives: Mapping[str, str]) -> TrialRow | None:
    """The trial with the best mean of the first objective; the earliest of equal ones."""
    score, direction = next(iter(objectives.items()))
    sign = 1 if direction == "minimize" else -1
    return min(completed(rows, score), key=lambda trial: (sign * trial.mean(score), trial.slot), default=None)


def model_of(trial: TrialRow) -> str:
    """The name of the model that a trial trained."""
    return str(((trial.run or {}).get("model") or {}).get("name", "model"))


# Files of the best trial


def run_directories(folder: Path, best: TrialRow | None, note: Callable[[str], None]) -> list[RunDirectory]:
    """The run directories of the best trial, one for each seed; none outside the study's folder."""
    if best is None or best.directory is None:
        return []
    place = folder / best.directory
    if not place.resolve().is_relative_to(folder.resolve()):
        note("the best trial's directory lies outside the study's folder and is not read")
        return []
    numbered = [path for path in place.glob("[0-9]*") if path.name.isdigit() and (path / "run.toml").is_file()]
    if not numbered:
        note(f"trial {best.slot} has no run directories: its study does not train, or they were removed")
    return [RunDirectory(path) for path in sorted(numbered, key=lambda path: int(path.name))]


def read_run(
    files: Sequence[RunDirectory], best: TrialRow | None, note: Callable[[str], None]
) -> tuple[Run | None, Path | None]:
    """The best trial's configuration and its file, in the first run directory; or else from the storage, no file."""
    try:
        if files:
            return files[0].run(), files[0].path / "run.toml"
    except ConfigurationError as error:
        note(f"run.toml: {error}")
    try:
        return (None if best is None or best.run is None else Run.from_mapping(dict(best.run))), None
    except ConfigurationError as error:
        note(f"the stored configuration of trial {best.slot if best else '?'} cannot be read: {error}")
        return None, None


def describe(
    best: TrialRow,
    score: str,
    files: Sequence[RunDirectory],
    found: tuple[Run | None, Path | None],
    note: Callable[[str], None],
) -> Best:
    """The verdict, with test accuracy and chance level where they are known."""
    tests = [directory.summary("test") or {} for directory in files]
    tested = sum(usable(test.get("accuracy")) for test in tests)
    if files and tested < len(files):
        note(f"test accuracy is known for {tested} of {seeds(len(files))} of the best trial")
    summaries = [directory.summary() or {} for directory in files]
    chances = best.metrics.get("chance") or [s["chance"] for s in summaries if usable(s.get("chance"))]
    estimate = best.estimate(score)
    assert estimate is not None  # a trial without one is not the best
    run, run_file = found
    return Best(
        trial=best,
        score=estimate,
        test=estimated(test.get("accuracy") for test in tests),
        published=estimated(test.get("published_accuracy") for test in tests),
        sizes=accuracies_by_size(tests),
        chance=chances[0] if chances else None,
        run_toml=None if run is None else run.to_toml(),
        run_file=None if run_file is None else str(run_file),
    )


def spectra_of_best(
    best: TrialRow | None, files: Sequence[RunDirectory], run: Run | None, note: Callable[[str], None]
) -> RunSpectra | None:
    """Recorded spectra of the best trial's first seed."""
    if best is None or not files:
        return None
    return read_spectra(files[0], f"trial {best.slot}, seed {files[0].path.name}", run, note)


def health(
    rows: Sequence[TrialRow], frozen: Sequence[FrozenTrial], files: Sequence[RunDirectory], note: Callable[[str], None]
) -> Health:
    """Counts, causes and circumstances."""
    reasons = [trial for trial in rows if trial.reason is not None]
    messages: dict[str, str] = {}
    for trial in reasons:
        if trial.message:
            messages.setdefault(str(trial.reason), trial.message)
    starts = [trial.datetime_start for trial in frozen if trial.datetime_start is not None]
    ends = [trial.datetime_complete for trial in frozen if trial.datetime_complete is not None]
    return Health(
        outcomes=dict(Counter(trial.outcome for trial in rows)),
        reasons=dict(Counter(str(trial.reason) for trial in reasons)),
        messages=messages,
        retries=sum(trial.attempts - 1 for trial in rows),
        seconds=sum(trial.seconds for trial in rows),
        began=min(starts).isoformat(" ", "minutes") if starts else None,
        ended=max(ends).isoformat(" ", "minutes") if ends else None,
        facts=facts(files, note),
    )


def facts(files: Sequence[RunDirectory], note: Callable[[str], None]) -> dict[str, str]:
    """Versions, commit and hardware from the best trial's environment.json."""
    if not files:
        return {}
    try:
        content = json.loads((files[0].path / "environment.json").read_text())
        versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        note(f"environment.json of the best trial cannot be read: {type(error).__name__}")
        return {}
    cores = content.get("cores")
    hardware = [content.get("gpu"), content.get("processor"), f"{cores} cores" if cores else None]
    return {
        "versions": versions,
        "commit": content.get("commit") or "unknown (no repository)",
        "hardware": ", ".join(str(part) for part in hardware if part),
        "system": str(content.get("system", "unknown")),
    }


# The search


def cost_of(objectives: Mapping[str, str], rows: Sequence[TrialRow]) -> str:
    """What score is weighed against: the second objective, or the first known of COSTS."""
    if len(objectives) > 1:
        return list(objectives)[1]
    return next(name for name in COSTS if name == "seconds" or any(name in trial.metrics for trial in rows))


def points(rows: Sequence[TrialRow], objectives: Mapping[str, str], cost: str) -> Iterable[Point]:
    """Completed trials with cost and score, the front marked."""
    score = next(iter(objectives))
    known = [trial for trial in completed(rows, score) if trial.estimate(cost) is not None]
    signs = [1 if objectives.get(name, "minimize") == "minimize" else -1 for name in (cost, score)]
    front = on_front([(signs[0] * trial.mean(cost), signs[1] * trial.mean(score)) for trial in known])
    for trial, best in zip(known, front, strict=True):
        estimate, distance = trial.estimate(score), trial.estimate("spectral_distance")
        assert estimate is not None
        yield Point(
            trial.slot, trial.mean(cost), estimate, None if distance is None else distance.mean, model_of(trial), best
        )


def important(
    rows: Sequence[TrialRow], frozen: Sequence[FrozenTrial], objectives: Mapping[str, str]
) -> Importances | None:
    """Importances for the first objective, as a loss."""
    score, direction = next(iter(objectives.items()))
    sign = 1 if direction == "minimize" else -1
    losses = {trial.slot: sign * trial.mean(score) for trial in completed(rows, score)}
    samples = [
        Sample(trial.params, trial.distributions, losses[slot])
        for trial in frozen
        if (slot := trial.user_attrs.get("slot", trial.number)) in losses and trial.state == TrialState.COMPLETE
    ]
    return importances(samples, group_by_landing([(trial.parameters, trial.run or {}) for trial in rows]))


def controls(rows: Sequence[TrialRow]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """What may lie behind a correlation, where it varies: model, size, learning rate, steps; ``(trials, k)``."""
    columns: dict[str, list[float]] = {"size": [trial.mean("parameters") for trial in rows]}
    for label, table, key in (("learning rate", "optimiser", "learning_rate"), ("steps", "budget", "steps")):
        columns[label] = [float(((trial.run or {}).get(table) or {}).get(key, math.nan)) for trial in rows]
    models = sorted({model_of(trial) for trial in rows})
    for model in models[1:]:
        columns[f"model is {model}"] = [float(model_of(trial) == model) for trial in rows]
    finite_ones = {name: column for name, column in columns.items() if all(map(math.isfinite, column))}
    varying = {name: column for name, column in finite_ones.items() if len(set(column)) > 1}
    names = dict.fromkeys("model" if name.startswith("model is ") else name for name in varying)
    return tuple(names), np.array(list(varying.values())).reshape(len(varying), len(rows)).T


def related(rows: Sequence[TrialRow], score: str, held: NDArray[np.float64]) -> tuple[Correlation, ...]:
    """Correlation of each spectral statistic with the score over completed trials."""
    statistics = {name: [trial.mean(name) for trial in rows] for name in SPECTRAL_STATISTICS}
    return correlations(statistics, [trial.mean(score) for trial in rows], held)
