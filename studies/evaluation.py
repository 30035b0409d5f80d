"""What a trained model scores on held-out data: whole, by slices, as it is published, and at sizes never trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specreg.studies import checkpoints
from specreg.studies.building import Parts, build_parts
from specreg.studies.configuration import ConfigurationError, Run
from specreg.studies.run_directory import RunDirectory
from specreg.studies.slices import SliceScores
from specreg.tasks.task import Split, Task

EVALUATED_STEPS = 2**15  # time steps in an evaluation batch: larger ones outgrow the caches


@dataclass(frozen=True)
class SplitScore:
    """Figures on a held-out split."""

    accuracy: float
    loss: float
    slices: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # accuracy by lag, by length, …
    published_accuracy: float | None = None  # where the task's is another; of the test split


@dataclass(frozen=True)
class Extrapolation:
    """What a model scores at a size that it was not trained on."""

    length: int  # the longest sequence
    chance: float
    accuracy: float | None  # None: not measured
    reason: str = ""  # why not


def evaluation_batch_size(run: Run, parts: Parts, task: Task | None = None) -> int:
    """Examples at a time where no gradient is kept: as asked, else as many as fill `EVALUATED_STEPS`.

    For another `task` than the run's own, as many as have no more steps.
    """
    length = parts.task.max_length
    asked = run.budget.evaluation_batch_size
    steps = EVALUATED_STEPS if asked is None else asked * length
    return max(1, steps // (length if task is None else max(length, task.max_length)))


@torch.no_grad()
def evaluate_split(parts: Parts, split: Split, batch_size: int) -> SplitScore:
    """Mean score and mean loss over a held-out split, in evaluation mode; of the test split more."""
    task = parts.task
    parts.model.eval()
    score, loss, count, slices = 0.0, 0.0, 0, SliceScores()
    publish = task.published_accuracy if split == "test" else None
    answers: list[Tensor] = []
    targets: list[Tensor] = []
    for batch in task.batches(split, batch_size):
        moved = batch.to(parts.device)
        logits = parts.model(moved.inputs, moved.mask)
        size = len(batch.inputs)
        score += task.score(logits, moved).sum().item()
        loss += task.loss(logits, moved).item() * size
        count += size
        if split == "test":
            slices.add(task.slices(batch), task.right(logits, moved).cpu())
        if publish is not None:
            answers.extend(logits.argmax(-1).cpu())
            targets.extend(batch.targets)
    published = None if publish is None else publish(answers, targets)
    return SplitScore(score / count, loss / count, slices.accuracies(), published)


def load_best(directory: Path) -> tuple[Run, Parts]:
    """A trained run with the model of its best validation score."""
    files = RunDirectory(directory)
    run = files.run()
    summary = files.summary()
    if summary is None:
        raise ConfigurationError(f"{directory}: this run has not ended; go on with --resume")
    parts = build_parts(run)
    checkpoints.load_into(parts.model, files.best / f"step-{summary['best_step']:08d}")
    return run, parts


def test(directory: Path) -> SplitScore:
    """Accuracy of a run's best model on the test split, which no selection looks at; kept as test.json."""
    run, parts = load_best(directory)
    evaluation = evaluate_split(parts, "test", evaluation_batch_size(run, parts))
    figures: dict[str, Any] = {"accuracy": evaluation.accuracy, "loss": evaluation.loss}
    if evaluation.published_accuracy is not None:
        figures["published_accuracy"] = evaluation.published_accuracy
    if evaluation.slices:
        figures["slices"] = evaluation.slices
    RunDirectory(directory).write_summary(figures, "test")
    return evaluation


def extrapolate(directory: Path, longest: float = math.inf) -> Iterator[tuple[str, Extrapolation]]:
    """Accuracy of a run's best model on the test split of each size of `Task.extrapolations`, added to test.json.

    A size beyond `longest` steps, or longer than the model can take, is given with the reason in place of an accuracy.
    """
    run, parts = load_best(directory)
    files = RunDirectory(directory)
    known, found = files.summary("test") or {}, {}
    for name, task in parts.task.extrapolations().items():
        found[name] = extrapolated(run, parts, task, longest)
        sizes = {each: asdict(measured) for each, measured in found.items()}
        files.write_summary({**known, "extrapolations": sizes}, "test")
        yield name, found[name]


def extrapolated(run: Run, parts: Parts, task: Task, longest: float) -> Extrapolation:
    """The accuracy at one size, or why there is none."""
    length, reach = task.max_length, parts.model.longest
    if reach is not None and length > reach:
        return Extrapolation(length, task.chance, None, f"the model's positions were learned up to {reach:,} steps")
    if length > longest:
        return Extrapolation(length, task.chance, None, f"{length:,} steps are more than the {longest:,} asked for")
    score = evaluate_split(replace(parts, task=task), "test", evaluation_batch_size(run, parts, task))
    return Extrapolation(length, task.chance, score.accuracy)
