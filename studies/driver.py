"""The driver of a study: it asks Optuna, starts workers, believes results once, and is the only writer of the storage.

A budget of N is N slots, each a trial with parameters that are chosen once. Whatever dies, a slot is run with the same
parameters until it is filled. Nothing here prints: `run_study` yields events.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from specreg.studies.configuration import Run
from specreg.studies.definition import Definition, StudyError
from specreg.studies.events import (
    Draining,
    Event,
    Reason,
    RungReached,
    StudyEnded,
    StudyStarted,
    TrialFinished,
    TrialRetried,
    TrialStarted,
)
from specreg.studies.interrupts import Interrupts
from specreg.studies.lease import Lease, locked
from specreg.studies.processes import Launcher, Worker
from specreg.studies.proposals import configured, halved, sampler, training_seed
from specreg.studies.pruning import RungRule
from specreg.studies.storage import UNFINISHED, StudyStore, checked_name, database_file, opened
from specreg.studies.worker import Job, cause, one_line

MAX_ATTEMPTS = 5  # of a trial whose worker dies; a driver's death does not count
SAME_IN_A_ROW = 3  # equal failures that stop the study: by then the code is at fault and not the configuration
TICK = 0.2  # seconds between looks at interrupts and at workers that died without a word


class StudyFailedError(RuntimeError):
    """The study was stopped because trials keep failing for the same reason."""


def run_study(
    definition: Definition,
    folder: Path,
    *,
    budget: int,
    workers: int = 1,
    deterministic: bool = False,
    storage_url: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    name: str | None = None,
) -> Iterator[Event]:
    """Run a study until `budget` slots are filled, continuing one that is there; a larger budget extends it.

    With `deterministic`, proposals are made in batches of as many as there were workers when the study began,
    and depend on earlier batches only: the configurations are the same however often anything was killed.
    The first interrupt (SIGINT) waits for the running trials, the second kills them; both can be continued.
    Closing the iterator is the second kind.

    Raises `StudyError` for arguments that cannot be used, `StudyInUseError` where another driver runs the study,
    `StudyChangedError` where the stored one is another, `StudyFailedError` for three equal failures in a row.
    """
    name = checked_name(definition.name if name is None else name)
    for what, value, least in (("budget", budget, 1), ("workers", workers, 1), ("seed", seed, 0)):
        if value < least:
            raise StudyError(f"{what} is a whole number from {least}, got {value}")
    file = database_file(storage_url, folder)
    made(file.parent)
    launcher = Launcher(device, workers)
    lease = Lease.of_this_process()
    with ExitStack() as stack:
        stack.enter_context(locked(file.with_name(f"{file.name}.{name}.lock"), lease, name))
        store = StudyStore(stack.enter_context(opened(file, read_only=False)), name, definition)
        take(store, lease)
        stack.callback(store.set, "lease", None)
        store.identify(definition, seed)
        interrupts = stack.enter_context(Interrupts())
        settings = Settings(definition, folder.absolute(), budget, workers, seed, device, lease.token)
        yield from Driver(settings, store, launcher, interrupts, deterministic).events()


def made(folder: Path) -> None:
    """Make a folder. Raises `StudyError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"{folder}: cannot make this folder for the study ({error.strerror})") from None


def take(store: StudyStore, lease: Lease) -> None:
    """Record who drives the study from now on. Raises `StudyInUseError` where the recorded process is alive."""
    recorded = store.attributes.get("lease")
    if recorded is not None and (other := Lease.from_mapping(recorded)).is_held_elsewhere():
        raise other.refusal(store.name)
    store.set("lease", asdict(lease))


@dataclass(frozen=True)
class Settings:
    """What `run_study` was asked for, checked."""

    definition: Definition
    folder: Path
    budget: int
    workers: int
    seed: int
    device: str
    token: str


@dataclass
class Attempt:
    """One try at a slot, in a process of its own."""

    slot: int
    number: int  # of the trial in Optuna
    token: str
    count: int  # 1-based
    place: int
    worker: Worker
    began: float  # seconds, monotonic
    rungs: list[tuple[int, float]] = field(default_factory=list)


class Driver:
    """The ask-and-tell loop of one call of `run_study`."""

    def __init__(
        self, settings: Settings, store: StudyStore, launcher: Launcher, interrupts: Interrupts, deterministic: bool
    ) -> None:
        self.settings = settings
        self.store = store
        self.launcher = launcher
        self.interrupts = interrupts
        self.startup: int = store.setdefault("startup", max(1, settings.budget // 4))
        self.batch: int | None = store.setdefault("batch", settings.workers) if deterministic else None
        direction = next(iter(settings.definition.objectives.values()))
        self.rule = RungRule(direction, warmup=max(RungRule.warmup, self.startup))
        self.running: dict[int, Attempt] = {}
        self.pending: deque[int] = deque()
        self.failures: list[str] = []  # causes of the latest failures, the last ones equal
        self.drain_told = False

    def events(self) -> Iterator[Event]:
        """Everything that happens until the budget is spent, or the study is interrupted or fails."""
        try:
            yield self.started()
            while True:
                yield from self.fill()
                if not self.running or self.interrupts.count > 1:
                    break
                yield from self.drain_notice()
                yield from self.listen()
        finally:
            outcome = "interrupted" if self.running else "drained"
            self.leave()
        yield self.ended(outcome)

    # Beginning and ending

    def started(self) -> StudyStarted:
        """Take over what an earlier driver has left: whole proposals are run again, half ones are failed."""
        for trial in self.store.trials():
            if trial.state == TrialState.RUNNING and not {"run", "slot"} <= trial.user_attrs.keys():
                self.abandon(trial)
        for slot, trial in sorted(self.store.slots().items()):
            if trial.state in UNFINISHED:
                self.take_up(slot, trial)
        settings = self.settings
        return StudyStarted(
            name=self.store.name,
            folder=settings.folder,
            objectives=settings.definition.objectives,
            budget=settings.budget,
            finished=self.store.finished(),
            unfinished=len(self.pending),
            workers=settings.workers,
        )

    def abandon(self, trial: FrozenTrial) -> None:
        """Fail a proposal that its driver did not live to complete; its slot is proposed again."""
        reason = trial.user_attrs.get("reason", "driver died")
        message = trial.user_attrs.get("message", "the driver died while it proposed this trial")
        self.store.finish(trial.number, TrialState.FAIL, reason=reason, message=message)

    def take_up(self, slot: int, trial: FrozenTrial) -> None:
        """Queue an unfinished slot, or leave it waiting where the budget has become smaller than that."""
        within = slot < self.settings.budget
        if within:
            self.pending.append(slot)
        if within and trial.state == TrialState.WAITING:
            self.store.resume(trial.number)
        if not within and trial.state == TrialState.RUNNING:
            self.store.park(trial.number)

    def leave(self) -> None:
        """Kill what runs; leave every unfinished slot waiting for the next driver."""
        for attempt in self.running.values():
            attempt.worker.kill()
            self.store.write(attempt.number, reason="interrupted")
        self.running.clear()
        for trial in self.store.slots().values():
            if trial.state == TrialState.RUNNING:
                self.store.park(trial.number)

    def ended(self, outcome: str) -> StudyEnded:
        """The last event."""
        finished, budget = self.store.finished(), self.settings.budget
        if finished >= budget:
            return StudyEnded("finished", finished, budget, advice="")
        advice = f"run the same command again to go on: {budget - finished} of {budget} trials are left"
        return StudyEnded("interrupted" if outcome == "interrupted" else "drained", finished, budget, advice)

    def drain_notice(self) -> Iterator[Event]:
        """Say once that an interrupt has been heard."""
        if self.interrupts.count and not self.drain_told:
            self.drain_told = True
            yield Draining(tuple(sorted(self.running)), "waiting for the running trials; interrupt again to stop them")

    # Proposing

    def fill(self) -> Iterator[Event]:
        """Propose what is due and give every free place a slot."""
        if self.interrupts.count:
            return
        while (due := self.due()) > 0:
            for _ in range(due):
                yield from self.propose(len(self.store.slots()))
        while self.pending and len(self.running) < self.settings.workers and not self.interrupts.count:
            yield self.launch(self.pending.popleft())

    def due(self) -> int:
        """How many slots to propose now."""
        proposed = len(self.store.slots())
        left = self.settings.budget - proposed
        busy = len(self.running) + len(self.pending)
        if self.batch is None:
            return min(left, self.settings.workers - busy)
        # a batch is proposed whole: before any of it runs, and after all earlier ones have ended
        begun = proposed % self.batch
        return min(left, self.batch - begun) if begun or not busy else 0

    def propose(self, slot: int) -> Iterator[Event]:
        """Choose the parameters of a slot, for good."""
        settings = self.settings
        trial = self.store.ask(sampler(settings.seed, slot, self.startup))
        try:
            run = configured(settings.definition, trial, settings.device, settings.seed)
        except Exception as error:
            yield from self.not_configured(slot, trial, error)
            return
        self.store.write(trial.number, run=run.to_json(), directory=f"trials/{slot:04d}", slot=slot)
        self.pending.append(slot)

    def not_configured(self, slot: int, trial: Trial, error: Exception) -> Iterator[Event]:
        """Fill a slot whose configuration could not even be made."""
        message = one_line(f"configure: {cause(error)}: {error}")
        told: dict[str, Any] = {"reason": "exception", "message": message, "slot": slot}
        self.store.finish(trial.number, TrialState.FAIL, **told)
        yield self.filled(slot, "exception", message)
        self.count_failure(cause(error), slot, message)

    # Running

    def launch(self, slot: int) -> TrialStarted:
        """Start an attempt at a slot."""
        trial = self.store.slots()[slot]
        run = Run.from_json(trial.user_attrs["run"])
        count = trial.user_attrs.get("attempts", 1)
        token = f"{self.settings.token}.{secrets.token_hex(4)}"
        self.store.write(trial.number, token=token, attempts=count)
        place = min(set(range(self.settings.workers)) - {attempt.place for attempt in self.running.values()})
        worker = self.launcher.start(self.job(run, trial, token), place)
        self.running[slot] = Attempt(slot, trial.number, token, count, place, worker, time.monotonic())
        return TrialStarted(slot, count, worker.pid, run, trial.params)

    def job(self, run: Run, trial: FrozenTrial, token: str) -> Job:
        """What the worker has to know."""
        settings = self.settings
        return Job(
            source=settings.definition.source,
            run=run.to_json(),
            seeds=tuple(training_seed(settings.seed, run, repeat) for repeat in range(settings.definition.repeats)),
            directory=str(settings.folder / trial.user_attrs["directory"]),
            token=token,
            threads=self.launcher.threads,
        )

    def listen(self) -> Iterator[Event]:
        """Hear every worker that has something to say, and notice those that never will again."""
        attempts = {attempt.worker.connection: attempt for attempt in self.running.values()}
        for connection in wait(list(attempts), timeout=TICK):
            yield from self.hear(attempts[connection])  # type: ignore[index]  # only ours were waited for
        for attempt in list(self.running.values()):
            if attempt.worker.is_lost():
                yield from self.lost(attempt)

    def hear(self, attempt: Attempt) -> Iterator[Event]:
        """Act on one message. One that lacks the attempt's token is not believed, and costs the attempt its life."""
        try:
            message = json.loads(attempt.worker.connection.recv_bytes())
        except (EOFError, OSError):
            message = {}
        if message.get("token") != attempt.token:
            yield from self.lost(attempt)
        elif message["kind"] == "rung":
            yield self.rung(attempt, message["step"], message["value"])
        elif message["kind"] == "result":
            yield from self.result(attempt, message["metrics"])
        else:
            yield from self.failure(attempt, message["reason"], message["message"], message["cause"])

    def rung(self, attempt: Attempt, step: int, value: float) -> RungReached:
        """Decide whether a trial goes on, and answer its worker."""
        attempt.rungs.append((step, value))
        stop = self.rule.stops(value, self.completed_values(attempt.slot, step))
        try:
            attempt.worker.connection.send_bytes(json.dumps({"stop": stop}).encode())
        except BrokenPipeError:
            stop = False  # the worker is dead, which `listen` finds out next
        return RungReached(attempt.slot, step, value, stop)

    def completed_values(self, slot: int, step: int) -> list[float]:
        """Rung values at this step of completed trials; of earlier batches only, where the study has batches.

        Within a batch the order in which trials end is chance, and must not decide.
        """
        horizon = slot - slot % self.batch if self.batch is not None else math.inf
        return [
            value
            for other, trial in self.store.slots().items()
            if other < horizon and trial.state == TrialState.COMPLETE
            for at, value in trial.user_attrs["rungs"]
            if at == step
        ]

    # Results

    def result(self, attempt: Attempt, metrics: dict[str, list[float | None]]) -> Iterator[Event]:
        """Tell Optuna the mean of each objective over the repeats."""
        columns: dict[str, Sequence[Any]] = {name: metrics[name] for name in self.settings.definition.objectives}
        values = {name: fmean(column) for name, column in columns.items()}
        if not all(math.isfinite(value) for value in values.values()):
            yield from self.failure(attempt, "diverged", "the mean over the repeats is not finite", "")
            return
        yield self.tell(attempt, TrialState.COMPLETE, None, "", values, metrics=metrics)
        self.failures.clear()
        self.keep_best(attempt.slot, values)

    def failure(self, attempt: Attempt, reason: Reason, message: str, cause: str) -> Iterator[Event]:
        """Tell Optuna of a trial without a result, or try it again with less memory.

        What the configuration is to blame for is told as PRUNED: of failed trials the sampler learns nothing.
        """
        if reason == "out of memory" and (retry := self.retry_smaller(attempt, message)) is not None:
            yield retry
            return
        state = TrialState.FAIL if reason == "exception" else TrialState.PRUNED
        yield self.tell(attempt, state, reason, message)
        if reason == "exception":
            self.count_failure(cause, attempt.slot, message)
        else:
            self.failures.clear()

    def retry_smaller(self, attempt: Attempt, message: str) -> TrialRetried | None:
        """Queue a trial once more with half the batch; None where it has been halved before or cannot be."""
        trial = self.store.slots()[attempt.slot]
        run = halved(Run.from_json(trial.user_attrs["run"]))
        if run is None or trial.user_attrs.get("halved", False):
            return None
        self.store.write(attempt.number, run=run.to_json(), halved=True)
        return self.again(attempt, "out of memory", message)

    def lost(self, attempt: Attempt) -> Iterator[Event]:
        """A worker has died: try again with the same parameters, up to MAX_ATTEMPTS times."""
        attempt.worker.kill()
        message = f"the worker ended with {attempt.worker.process.exitcode} in attempt {attempt.count}"
        if attempt.count < MAX_ATTEMPTS:
            yield self.again(attempt, "worker died", message)
            return
        yield self.tell(attempt, TrialState.PRUNED, "worker died", message)
        self.count_failure("worker died", attempt.slot, f"worker died ({message})")

    def again(self, attempt: Attempt, reason: Reason, message: str) -> TrialRetried:
        """Queue another attempt, before anything else."""
        attempt.worker.release()
        del self.running[attempt.slot]
        self.store.write(attempt.number, attempts=attempt.count + 1)
        self.pending.appendleft(attempt.slot)
        return TrialRetried(attempt.slot, reason, message, attempt.count)

    def tell(
        self,
        attempt: Attempt,
        state: TrialState,
        reason: Reason | None,
        message: str,
        values: dict[str, float] | None = None,
        **attributes: Any,
    ) -> TrialFinished:
        """Fill the slot of an attempt and free its place, once the process is gone and not when it says so."""
        attempt.worker.release()
        seconds = time.monotonic() - attempt.began
        attributes |= {"rungs": attempt.rungs, "seconds": seconds}
        if reason is not None or "reason" in self.store.slots()[attempt.slot].user_attrs:
            attributes |= {"reason": reason, "message": message}  # also over an "interrupted" of before
        self.store.finish(attempt.number, state, values, **attributes)
        del self.running[attempt.slot]
        return self.filled(attempt.slot, reason, message, values, seconds)

    def filled(
        self,
        slot: int,
        reason: Reason | None,
        message: str,
        values: dict[str, float] | None = None,
        seconds: float = 0.0,
    ) -> TrialFinished:
        """The event of a slot that is filled."""
        return TrialFinished(slot, reason, message, values or {}, seconds, self.store.finished(), self.settings.budget)

    def keep_best(self, slot: int, values: dict[str, float]) -> None:
        """Remember the best trial by the first objective."""
        name, direction = next(iter(self.settings.definition.objectives.items()))
        best = self.store.attributes.get("best")
        sign = 1 if direction == "maximize" else -1
        if best is None or sign * values[name] > sign * best["values"][name]:
            self.store.set("best", {"slot": slot, "values": values, "directory": f"trials/{slot:04d}"})

    def count_failure(self, cause: str, slot: int, message: str) -> None:
        """Raise `StudyFailedError` at the third equal failure in a row."""
        self.failures = [*(known for known in self.failures if known == cause), cause]
        if len(self.failures) == SAME_IN_A_ROW:
            where = self.settings.folder / "trials" / f"{slot:04d}"
            raise StudyFailedError(
                f"the last {SAME_IN_A_ROW} trials failed in the same way: {message}. Look into {where}. "
                "If the study's file needs no change, the same command goes on; a changed file needs another name"
            )
