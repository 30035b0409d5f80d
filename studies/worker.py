"""A worker: one process that computes one trial, knows nothing of Optuna, and writes only into its run directories.

It gets a job as JSON text and answers with JSON text over one pipe, so that the same words could go over a network.
It ends when its driver ends: by the end of file on the pipe, and by the kernel's parent-death signal.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import math
import os
import queue
import random
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from specreg.studies.configuration import Run
from specreg.studies.definition import Definition, load_study
from specreg.studies.events import Reason
from specreg.studies.expressions import unknown
from specreg.studies.pruning import RUNGS

Evaluate = Callable[[Run, "Report"], Mapping[str, float]]
AskDriver = Callable[[int, float], bool]
PR_SET_PDEATHSIG = 1
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MESSAGE_LENGTH = 300
DRIVER_GONE = 3  # exit status


class Pruned(Exception):  # noqa: N818 - an outcome, not an error
    """The driver has stopped this trial; raised by `report`, to be let through by `evaluate`."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs, as text."""

    source: str  # of the study module: see Definition.source
    run: str  # JSON of the Run
    seeds: tuple[int, ...]  # one training run each
    directory: str  # of the trial; run directories are 0, 1, … in it
    token: str  # goes back with every message: the driver believes no other
    threads: int

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job of `to_json`."""
        data = json.loads(text)
        return cls(**{**data, "seeds": tuple(data["seeds"])})


class Report:
    """What `evaluate` gets beside its run: a directory to write in, and a call for each value on the way.

    The first, second, fourth, … value goes to the driver, which may stop the trial there. Without a driver, as in
    a script of one's own, nothing is ever stopped.
    """

    def __init__(self, directory: Path, ask_driver: AskDriver | None = None) -> None:
        self.directory = directory
        self._ask_driver = ask_driver
        self._count = 0

    def __call__(self, step: int, value: float) -> None:
        """Report the value of the first objective after `step` steps.

        Raises `Pruned` where the driver stops the trial, FloatingPointError where the value is not finite.
        """
        value = float(value)
        if not math.isfinite(value):
            raise FloatingPointError(f"the value reported at step {step} is {value}")
        self._count += 1
        if self._ask_driver is not None and self._count in RUNGS and self._ask_driver(int(step), value):
            raise Pruned(f"stopped at step {step} with {value:.6g}")


def work(text: str, connection: Connection) -> None:
    """The whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the driver's to handle
    die_with_parent()
    job = Job.from_json(text)
    write_output_to(Path(job.directory))
    driver = DriverLine(connection, job.token)
    use_threads(job.threads)
    driver.send(outcome(job, driver.ask))


def outcome(job: Job, ask_driver: AskDriver) -> dict[str, Any]:
    """Compute the trial: a message of kind "result" with metrics, or "failure" with reason, message and cause."""
    directory = Path(job.directory)
    with alone_in(directory):
        try:
            return {"kind": "result", "metrics": compute(job, directory, ask_driver)}
        except Pruned as stop:
            return {"kind": "failure", "reason": "pruned", "message": one_line(str(stop)), "cause": ""}
        except (Exception, SystemExit) as error:
            (directory / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            message = one_line(f"{cause(error)}: {error}")
            return {"kind": "failure", "reason": classified(error), "message": message, "cause": cause(error)}


def compute(job: Job, directory: Path, ask_driver: AskDriver) -> dict[str, list[float | None]]:
    """Every metric, once for each seed. Only the first seed's values can stop a trial; it stands for the others."""
    definition = load_study(job.source)
    evaluate = definition.evaluate or training()
    run = Run.from_json(job.run)
    columns: dict[str, list[float | None]] = {}
    for repeat, seed in enumerate(job.seeds):
        reseed(seed)
        report = Report(emptied(directory / str(repeat)), ask_driver if repeat == 0 else None)
        metrics = evaluate(replace(run, seed=seed), report)
        for name, value in checked_metrics(metrics, definition).items():
            columns.setdefault(name, [None] * repeat).append(value)
    return columns


def training() -> Evaluate:
    """The evaluation of a study that has none of its own: train the run, return its metrics."""
    from specreg.studies.training import evaluate  # imports torch: in the worker, and only when it is needed

    return evaluate


def checked_metrics(metrics: Mapping[str, float], definition: Definition) -> dict[str, float | None]:
    """Metrics as plain numbers, None for one that is not finite.

    Raises FloatingPointError where an objective is not finite, KeyError where it is missing.
    """
    for name in definition.objectives:
        if name not in metrics:
            raise KeyError(f"evaluate returned {unknown('objective', name, list(metrics))}")
        if not math.isfinite(metrics[name]):
            raise FloatingPointError(f"{name} is {float(metrics[name])}")
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


def classified(error: BaseException) -> Reason:
    """Why a trial failed, as far as the kind of error tells."""
    torch = sys.modules.get("torch")
    out_of_memory = (MemoryError, torch.OutOfMemoryError) if torch is not None else (MemoryError,)
    if isinstance(error, FloatingPointError):
        return "diverged"
    # torch's CPU allocator has no error type of its own
    if isinstance(error, out_of_memory) or "can't allocate memory" in str(error):
        return "out of memory"
    return "exception"


def cause(error: BaseException) -> str:
    """An error's type and where it was raised: what makes two failures the same one."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"


def one_line(text: str) -> str:
    """Text for a table cell: printable characters only, of bounded length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MESSAGE_LENGTH else line[: MESSAGE_LENGTH - 1] + "…"


class DriverLine:
    """A worker's end of the pipe. A thread listens, so that the driver's death is noticed during computation too."""

    def __init__(self, connection: Connection, token: str) -> None:
        self._connection = connection
        self._token = token
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message, signed with the token of this attempt."""
        try:
            self._connection.send_bytes(json.dumps({**message, "token": self._token}).encode())
        except BrokenPipeError:
            os._exit(DRIVER_GONE)

    def ask(self, step: int, value: float) -> bool:
        """Report a rung value; whether the trial is to stop here."""
        self.send({"kind": "rung", "step": step, "value": value})
        return self._answers.get()

    def _listen(self) -> None:
        try:
            while True:
                self._answers.put(json.loads(self._connection.recv_bytes())["stop"])
        except (EOFError, OSError):
            os._exit(DRIVER_GONE)  # nobody else may use this result


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that forked it ends (Linux; elsewhere the pipe has to do).

    That is the forkserver, or the driver of a spawned worker. A forkserver ends with its last client, and every worker
    counts as one through a descriptor that it inherits: closing it leaves the driver as the only one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    server: Any = forkserver._forkserver  # there is no public way to it
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None


def write_output_to(directory: Path) -> None:
    """Append what this process prints, crashes included, to `directory`/output.txt: the streams are the driver's."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "output.txt").open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Hold a trial's directory once the worker of an earlier attempt is gone; the kernel frees it on death."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def emptied(directory: Path) -> Path:
    """A run directory without what an attempt that died has left in it."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    return directory


def use_threads(threads: int) -> None:
    """Compute with this many threads, in libraries that are loaded already and in those that will be."""
    os.environ.update(thread_variables(threads))
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)


def thread_variables(threads: int) -> dict[str, str]:
    """The environment that numerical libraries read their number of threads from, when they are first loaded."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def allowed_threads(share: int) -> int:
    """A worker's share of the cores, or fewer if the user's environment says so."""
    asked = [int(value) for name in THREAD_VARIABLES if (value := os.environ.get(name, "")).isdigit() and int(value)]
    return max(1, min([share, *asked]))


def reseed(seed: int) -> None:
    """Seed the global generators: processes of one forkserver begin with the same state."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)
