"""Training as a generator of steps: logging, pruning and stopping are the caller's `for` and `if`."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specreg.studies import checkpoints
from specreg.studies.building import Parts, build_parts, count_parameters, make_checked, optimiser_groups
from specreg.studies.configuration import ConfigurationError, Optimiser, Run
from specreg.studies.recording import EXAMPLES, encode, spectra_of, statistics, systems_of
from specreg.studies.run_directory import RunDirectory
from specreg.tasks.task import Batch, Split


class DivergedError(FloatingPointError):
    """A loss or gradient that is not finite: which, and at which step."""


@dataclass(frozen=True)
class Evaluation:
    """Figures on a held-out split."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Step:
    """One training step, and what was measured after it."""

    step: int  # steps done, from 1
    task_loss: float
    penalties: Mapping[str, float]  # unweighted, by expression
    evaluation: Evaluation | None  # on the validation split, where one was due
    spectrum: Mapping[str, float] | None  # statistics of the spectra recorded with it


@dataclass(frozen=True)
class Progress:
    """What early stopping knows."""

    best_accuracy: float = -1.0  # below every score, and a number that JSON knows
    best_step: int = 0
    best_loss: float = sys.float_info.max
    evaluations_since: int = 0

    def after(self, step: int, evaluation: Evaluation) -> Progress:
        """The state after an evaluation; equal accuracy counts as better where the loss is lower."""
        better = (evaluation.accuracy, -evaluation.loss) > (self.best_accuracy, -self.best_loss)
        if better:
            return Progress(evaluation.accuracy, step, evaluation.loss, 0)
        return replace(self, evaluations_since=self.evaluations_since + 1)


def train(run: Run, directory: Path | None = None, resume: bool = False) -> Iterator[Step]:
    """Train `run` step by step; with a directory, leave there all that a report or a resumed run needs.

    A run killed at any moment and resumed goes through the same losses as one never killed (CPU, float32, exactly).
    Raises `ConfigurationError` before anything is written, `DivergedError` for a loss that is not finite.
    """
    parts = build_parts(run)
    files = None if directory is None else RunDirectory(directory)
    optimiser = torch.optim.AdamW(optimiser_groups(parts.model, run.optimiser))
    probe = held_out(parts)  # reads the task's files: before anything is written
    done, progress = 0, Progress()
    if files is not None and resume:
        done, progress = restore(parts, optimiser, files)
    elif files is not None:
        files.create(run)
    started = time.monotonic()
    if files is not None and done == 0:
        record(files, parts, probe, 0)
    forward = compiled(run, parts)
    stopped = bool(run.budget.patience) and progress.evaluations_since >= (run.budget.patience or 0)
    while done < run.budget.steps and not stopped:
        task_loss, penalties = update(run, parts, optimiser, forward, done)
        done += 1
        last = done == run.budget.steps
        evaluation, figures = None, None
        if last or done % run.budget.evaluate_every == 0:
            evaluation = evaluate_split(parts, "validation", run.budget.evaluation_batch_size)
            progress = progress.after(done, evaluation)
            figures = measure(parts, probe) if files is None else record(files, parts, probe, done)
            stopped = run.budget.patience is not None and progress.evaluations_since >= run.budget.patience
        step = Step(done, task_loss, penalties, evaluation, figures)
        if files is not None:
            keep(files, run, parts, optimiser, step, progress, last or stopped, time.monotonic() - started)
        yield step
    if files is not None:
        files.write_summary(summarise(run, parts, probe, progress, done))


def update(
    run: Run, parts: Parts, optimiser: torch.optim.Optimizer, forward: Forward, done: int
) -> tuple[float, dict[str, float]]:
    """One optimiser step on the batch number `done`; the task loss and the unweighted penalties."""
    batch = parts.task.train_batch(done, run.budget.batch_size).to(parts.device)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * rate_factor(run.optimiser, done, run.budget.steps)
    parts.model.train()
    optimiser.zero_grad(set_to_none=True)
    with draws_of(run, parts, done), torch.autocast(parts.device.type, torch.bfloat16, enabled=run.autocast):
        task_loss, penalties, loss = forward(batch, done)
    figures = {name: value.item() for name, value in penalties.items()}
    check_finite(task_loss.item(), figures, done + 1)
    loss.backward()
    if run.optimiser.clip_norm:
        for group in optimiser.param_groups:  # apart, so that a steep penalty does not shrink the task's gradient
            torch.nn.utils.clip_grad_norm_(group["params"], run.optimiser.clip_norm)
    optimiser.step()
    return task_loss.item(), figures


Forward = Callable[[Batch, int], tuple[Tensor, dict[str, Tensor], Tensor]]


def compiled(run: Run, parts: Parts) -> Forward:
    """Task loss, penalties and total loss of a batch; systems are asked for only where a term reads them."""
    model = parts.model
    plain = torch.compile(model.forward) if run.compile else model.forward
    handing_out = torch.compile(model.with_systems) if run.compile else model.with_systems

    def forward(batch: Batch, done: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        active = [term for term in parts.terms if term.factor(done) != 0]  # 0 · x is not bit for bit nothing
        if not active:
            loss = parts.task.loss(plain(batch.inputs, batch.mask), batch)
            return loss, {}, loss
        logits, systems = handing_out(batch.inputs, batch.mask)
        task_loss = loss = parts.task.loss(logits, batch)
        penalties = {}
        for term in active:
            evaluation = term(systems, done)
            penalties[term.name] = torch.stack(list(evaluation.penalties.values())).mean()
            loss = loss + evaluation.loss
        return task_loss, penalties, loss

    return forward


@contextlib.contextmanager
def draws_of(run: Run, parts: Parts, done: int) -> Iterator[None]:
    """Dropout's random state for one step, a function of seed and step alone; the user's stays untouched."""
    if not any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in parts.model.modules()):
        yield
        return
    with torch.random.fork_rng(devices=[parts.device] if parts.device.type == "cuda" else []):
        torch.manual_seed((run.seed * 1_000_003 + done) % 2**63)
        yield


def rate_factor(settings: Optimiser, done: int, steps: int) -> float:
    """Share of the peak rate at a step: linear warm-up, then a cosine to `final_share`."""
    warmup = round(settings.warmup_share * steps)
    if done < warmup:
        return (done + 1) / warmup
    position = (done - warmup) / max(1, steps - warmup)
    return settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * position))


def check_finite(task_loss: float, penalties: Mapping[str, float], step: int) -> None:
    """Raise with the cause, rather than train on."""
    if not math.isfinite(task_loss):
        raise DivergedError(f"the task loss is {task_loss} at step {step}; a lower learning rate may help")
    for name, value in penalties.items():
        if not math.isfinite(value):
            raise DivergedError(f"the penalty {name} is {value} at step {step}")


@torch.no_grad()
def evaluate_split(parts: Parts, split: Split, batch_size: int) -> Evaluation:
    """Mean score and mean loss over a held-out split, in evaluation mode."""
    parts.model.eval()
    score, loss, count = 0.0, 0.0, 0
    for batch in parts.task.batches(split, batch_size):
        moved = batch.to(parts.device)
        logits = parts.model(moved.inputs, moved.mask)
        size = len(batch.inputs)
        score += parts.task.score(logits, moved).sum().item()
        loss += parts.task.loss(logits, moved).item() * size
        count += size
    return Evaluation(score / count, loss / count)


def held_out(parts: Parts) -> Batch:
    """The fixed batch on which spectra are recorded."""
    return make_checked(lambda: next(iter(parts.task.batches("validation", EXAMPLES))).to(parts.device))


def measure(parts: Parts, probe: Batch) -> dict[str, float]:
    """Spectral statistics on the held-out batch."""
    return statistics(spectra_of(systems_of(parts.model, probe)), parts.target)


def record(files: RunDirectory, parts: Parts, probe: Batch, step: int) -> dict[str, float]:
    """`measure`, with the eigenvalues themselves written to the run directory."""
    spectra = spectra_of(systems_of(parts.model, probe))
    files.write_spectra(step, encode(spectra, step))
    return statistics(spectra, parts.target)


def keep(
    files: RunDirectory,
    run: Run,
    parts: Parts,
    optimiser: torch.optim.Optimizer,
    step: Step,
    progress: Progress,
    last: bool,
    seconds: float,
) -> None:
    """Log a step; write the best model and a checkpoint where due."""
    line: dict[str, Any] = {"step": step.step, "train_loss": step.task_loss}
    if step.penalties:
        line["penalties"] = dict(step.penalties)
    if step.evaluation is not None:
        line |= {"validation_accuracy": step.evaluation.accuracy, "validation_loss": step.evaluation.loss}
        line["spectrum"] = dict(step.spectrum or {})
    files.log(line | {"timing": {"seconds": round(seconds, 3)}})
    checkpoint = checkpoints.Checkpoint(
        step.step, parts.model.state_dict(), checkpoints.optimiser_tensors(optimiser), {"progress": vars(progress)}
    )
    if progress.best_step == step.step:
        checkpoints.save(files.best, replace(checkpoint, optimiser={}))
    if last or step.step % run.budget.checkpoint_every == 0:
        files.sync_metrics()
        checkpoints.save(files.checkpoints, checkpoint)


def restore(parts: Parts, optimiser: torch.optim.Optimizer, files: RunDirectory) -> tuple[int, Progress]:
    """Put the last checkpoint back; the number of steps done and the progress then, or a start from nothing."""
    saved = checkpoints.saved(files.checkpoints)
    if not saved:
        files.keep_metrics_to(0)
        return 0, Progress()
    checkpoint = checkpoints.load(saved[-1])
    try:
        parts.model.load_state_dict(dict(checkpoint.model))
        checkpoints.restore_optimiser(optimiser, checkpoint.optimiser)
    except (RuntimeError, ValueError) as error:
        raise checkpoints.CheckpointError(f"{saved[-1]}: does not fit run.toml beside it ({error})") from None
    files.keep_metrics_to(checkpoint.step)
    return checkpoint.step, Progress(**checkpoint.state["progress"])


def summarise(run: Run, parts: Parts, probe: Batch, progress: Progress, done: int) -> dict[str, float]:
    """The figures that a study may take as objectives or relate to them."""
    return {
        "accuracy": progress.best_accuracy,
        "loss": progress.best_loss,
        "best_step": progress.best_step,
        "steps": done,
        "macs": parts.model.macs(parts.task.max_length),
        "parameters": count_parameters(parts.model),
        "chance": parts.task.chance,
        **measure(parts, probe),
    }


def load_best(directory: Path) -> tuple[Run, Parts]:
    """A trained run with the model of its best validation score."""
    files = RunDirectory(directory)
    run = files.run()
    saved = checkpoints.saved(files.best)
    if not saved:
        raise ConfigurationError(f"{directory}: no trained model here yet; go on with --resume")
    parts = build_parts(run)
    parts.model.load_state_dict(dict(checkpoints.load(saved[-1]).model))
    return run, parts


def test(directory: Path) -> Evaluation:
    """Accuracy of a run's best model on the test split, which no selection looks at; kept as test.json."""
    run, parts = load_best(directory)
    evaluation = evaluate_split(parts, "test", run.budget.evaluation_batch_size)
    RunDirectory(directory).write_summary({"accuracy": evaluation.accuracy, "loss": evaluation.loss}, "test")
    return evaluation


def evaluate(run: Run, report: Callable[..., None]) -> Mapping[str, float]:
    """What a trial of a study does by default: train, report each validation accuracy, return the summary."""
    directory: Path = report.directory  # type: ignore[attr-defined]
    for step in train(run, directory):
        if step.evaluation is not None:
            report(step.step, step.evaluation.accuracy)
    summary = RunDirectory(directory).summary()
    assert summary is not None
    return summary
