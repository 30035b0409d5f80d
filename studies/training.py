"""Training as a generator of steps: logging, pruning and stopping are the caller's `for` and `if`."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specreg.spectrum import Spectrum
from specreg.studies import checkpoints
from specreg.studies.batches import train_batches
from specreg.studies.building import Parts, build_parts, count_parameters, make_checked, optimiser_groups
from specreg.studies.configuration import ConfigurationError, Optimiser, Run
from specreg.studies.evaluation import SplitScore, evaluate_split, evaluation_batch_size
from specreg.studies.recording import (
    EXAMPLES,
    Memory,
    encode,
    mean_memory,
    memories_of,
    spectra_of,
    statistics,
    systems_of,
)
from specreg.studies.run_directory import RunDirectory
from specreg.tasks.files import data_directory, digests
from specreg.tasks.task import Batch, Task

if TYPE_CHECKING:
    from specreg.studies.worker import Report


class DivergedError(FloatingPointError):
    """A loss or gradient that is not finite: which, and at which step."""


@dataclass(frozen=True)
class Step:
    """One training step, and what was measured after it."""

    step: int  # steps done, from 1
    task_loss: float
    penalties: Mapping[str, float]  # unweighted, by expression
    evaluation: SplitScore | None  # on the validation split, where one was due
    spectrum: Mapping[str, float] | None  # statistics of the spectra recorded with it


@dataclass(frozen=True)
class Progress:
    """What early stopping knows."""

    best_accuracy: float = -1.0  # below every score, and a number that JSON knows
    best_step: int = 0
    best_loss: float = sys.float_info.max
    evaluations_since: int = 0

    def after(self, step: int, evaluation: SplitScore) -> Progress:
        """The state after an evaluation; equal accuracy counts as better where the loss is lower."""
        better = (evaluation.accuracy, -evaluation.loss) > (self.best_accuracy, -self.best_loss)
        if better:
            return Progress(evaluation.accuracy, step, evaluation.loss, 0)
        return replace(self, evaluations_since=self.evaluations_since + 1)


def train(run: Run, directory: Path | None = None, resume: bool = False) -> Generator[Step, None, None]:
    """Train `run` step by step; with a directory, leave there all that a report or a resumed run needs.

    A run killed at any moment and resumed goes through the same losses as one never killed (CPU, float32, exactly);
    leaving the loop early writes a checkpoint first.
    Raises `ConfigurationError` before anything is written, `DivergedError` for a loss that is not finite.
    """
    parts = build_parts(run)
    files = None if directory is None else RunDirectory(directory)
    optimiser = torch.optim.AdamW(optimiser_groups(parts.model, run.optimiser))
    probe = held_out(parts)  # reads the task's files: before anything is written
    done, progress, seconds = 0, Progress(), 0.0
    if files is not None and resume:
        done, progress, seconds = restore(run, parts, optimiser, files)
    elif files is not None:
        files.create(run, data_digests(parts.task))
    started = time.monotonic() - seconds
    if files is not None and done == 0:
        record(files, parts, probe, 0)
    forward = compiled(run, parts)
    stopped = bool(run.budget.patience) and progress.evaluations_since >= (run.budget.patience or 0)
    batches = train_batches(parts.task, run.budget.batch_size, done, parts.device)
    while done < run.budget.steps and not stopped:
        task_loss, penalties = update(run, parts, optimiser, forward, next(batches), done)
        done += 1
        last = done == run.budget.steps
        evaluation, figures = None, None
        if last or done % run.budget.evaluate_every == 0:
            evaluation = evaluate_split(parts, "validation", evaluation_batch_size(run, parts))
            if not math.isfinite(evaluation.loss):
                raise DivergedError(f"the validation loss is {evaluation.loss} at step {done}")
            progress = progress.after(done, evaluation)
            figures = measure(parts, probe) if files is None else record(files, parts, probe, done)
            stopped = run.budget.patience is not None and progress.evaluations_since >= run.budget.patience
        step = Step(done, task_loss, penalties, evaluation, figures)
        seconds = time.monotonic() - started
        if files is not None:
            log(files, step, seconds)
            if progress.best_step == done:
                save(files.best, parts, None, done, progress, seconds)
            if last or stopped or done % run.budget.checkpoint_interval == 0:
                save(files.checkpoints, parts, optimiser, done, progress, seconds)
        try:
            yield step
        except GeneratorExit:  # the caller leaves: nothing that was done is lost
            if files is not None:
                save(files.checkpoints, parts, optimiser, done, progress, seconds)
            raise
    if files is not None:
        files.write_summary(summarise(run, parts, probe, progress, done))


def data_digests(task: Task) -> dict[str, str]:
    """SHA-256 of the data files that a task reads, by name."""
    return digests(task.data_files(), data_directory(getattr(task, "data", None)))


def update(
    run: Run, parts: Parts, optimiser: torch.optim.Optimizer, forward: Forward, batch: Batch, done: int
) -> tuple[float, dict[str, float]]:
    """One optimiser step on the batch number `done`; the task loss and the unweighted penalties."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * rate_factor(run.optimiser, done, run.budget.steps)
    parts.model.train()
    optimiser.zero_grad(set_to_none=True)
    with draws_of(run, parts, done), torch.autocast(parts.device.type, torch.bfloat16, enabled=run.autocast):
        task_loss, penalties, loss = forward(batch, done)
    figures = {name: value.item() for name, value in penalties.items()}
    check_finite(task_loss.item(), figures, done + 1)
    loss.backward()
    for spectral in (False, True):  # apart: a steep penalty on eigenvalues should not shrink the rest
        parameters = [p for group in optimiser.param_groups if group["spectral"] == spectral for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, run.optimiser.clip_norm or math.inf)
        if not math.isfinite(norm.item()):
            raise DivergedError(
                f"the gradient's norm is {norm.item()} at step {done + 1}; a lower learning rate may help"
            )
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


def held_out(parts: Parts) -> Batch:
    """The fixed batch on which spectra are recorded."""
    return make_checked(lambda: next(iter(parts.task.batches("validation", EXAMPLES))).to(parts.device))


def measure(parts: Parts, probe: Batch) -> dict[str, float]:
    """Spectral statistics on the held-out batch."""
    return figures_of(parts, spectra_of(systems_of(parts.model, probe)), memories_of(parts.model, probe))


def record(files: RunDirectory, parts: Parts, probe: Batch, step: int) -> dict[str, float]:
    """`measure`, with the eigenvalues themselves and what is read of the past written to the run directory."""
    spectra, memories = spectra_of(systems_of(parts.model, probe)), memories_of(parts.model, probe)
    files.write_spectra(step, encode(spectra, memories, step))
    return figures_of(parts, spectra, memories)


def figures_of(parts: Parts, spectra: Mapping[str, Spectrum], memories: Mapping[str, Memory]) -> dict[str, float]:
    """Statistics of the eigenvalues, and effective memory, which no gauge changes."""
    return statistics(spectra, parts.target) | {"effective_memory": mean_memory(memories)}


def log(files: RunDirectory, step: Step, seconds: float) -> None:
    """Write one line of metrics."""
    line: dict[str, Any] = {"step": step.step, "train_loss": step.task_loss}
    if step.penalties:
        line["penalties"] = dict(step.penalties)
    if step.evaluation is not None:
        line |= {"validation_accuracy": step.evaluation.accuracy, "validation_loss": step.evaluation.loss}
        line["spectrum"] = dict(step.spectrum or {})
    files.log(line | {"timing": {"seconds": round(seconds, 3)}})
    if step.evaluation is not None:
        files.sync_metrics()


def save(
    folder: Path,
    parts: Parts,
    optimiser: torch.optim.Optimizer | None,  # None: the model alone
    done: int,
    progress: Progress,
    seconds: float,
) -> None:
    """Write a checkpoint of this moment."""
    tensors = {} if optimiser is None else checkpoints.optimiser_tensors(optimiser)
    state = {"progress": vars(progress), "seconds": seconds}
    checkpoints.save(folder, checkpoints.Checkpoint(done, parts.model.state_dict(), tensors, state))


def restore(
    run: Run, parts: Parts, optimiser: torch.optim.Optimizer, files: RunDirectory
) -> tuple[int, Progress, float]:
    """Put the last checkpoint back: the steps done, the progress and the seconds by then; or a start from nothing."""
    if changed := files.run().differences(run):
        raise ConfigurationError(
            f"{files.path} holds another run: {', '.join(changed)} differ; resume the run in run.toml"
        )
    saved = checkpoints.saved(files.checkpoints)
    done, progress, seconds = 0, Progress(), 0.0
    if saved:
        checkpoint = checkpoints.load_into(parts.model, saved[-1])
        try:
            checkpoints.restore_optimiser(optimiser, checkpoint.optimiser)
        except (RuntimeError, ValueError) as error:
            raise checkpoints.CheckpointError(f"{saved[-1]}: does not fit run.toml beside it ({error})") from None
        state = checkpoint.state
        done, progress, seconds = checkpoint.step, Progress(**state["progress"]), state["seconds"]
    files.note_resumption(run)
    files.go_back_to(done)
    return done, progress, seconds


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


def evaluate(run: Run, report: Report) -> Mapping[str, float]:
    """What a trial of a study does by default: train, report each validation accuracy, return the summary."""
    for step in train(run, report.directory):
        if step.evaluation is not None:
            report(step.step, step.evaluation.accuracy)
    summary = RunDirectory(report.directory).summary()
    assert summary is not None
    return summary
