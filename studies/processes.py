"""Starting and ending workers: forked from a server that has torch loaded on the CPU, spawned on CUDA."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import ModuleType

from specreg.studies.definition import StudyError
from specreg.studies.expressions import unknown
from specreg.studies.worker import Job, allowed_threads, thread_variables, work

# torch._dynamo is imported by the first optimiser that is built, and takes longer than torch itself
PRELOADED = ["torch", "torch._dynamo", "optuna", "specreg.studies.worker", "specreg.studies.training"]
DEVICES = ("cpu", "cuda")
LAST_WORDS = 5.0  # seconds that a worker has to end by itself after its result


@dataclass(frozen=True)
class Worker:
    """A running process and the driver's end of its pipe."""

    process: BaseProcess
    connection: Connection

    @property
    def pid(self) -> int:
        """The process id."""
        assert self.process.pid is not None  # it has been started
        return self.process.pid

    def is_lost(self) -> bool:
        """Whether the process has ended and everything it said has been heard."""
        return self.process.exitcode is not None and not self.connection.poll()

    def release(self) -> None:
        """Wait for a worker that has given its result to end, not for long."""
        self.process.join(LAST_WORDS)
        self.kill()

    def kill(self) -> None:
        """End the process now, and return when it is gone."""
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.connection.close()


class Launcher:
    """Starts workers, `workers` places for them, each with its share of the cores or with one CUDA device."""

    def __init__(self, device: str, workers: int) -> None:
        """Raises `StudyError` for a device that is unknown or absent."""
        if device not in DEVICES:
            raise StudyError(
                f"{unknown('device', device, list(DEVICES))}; CUDA_VISIBLE_DEVICES says which of several GPUs are used"
            )
        self.threads = allowed_threads(cores() // workers)
        self._devices = cuda_devices() if device == "cuda" else []
        self._context = get_context("spawn") if device == "cuda" else get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def start(self, job: Job, place: int) -> Worker:
        """A new process for this job. `place` is 0 … workers − 1, one that no living worker has."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=work, args=(job.to_json(), theirs), daemon=False)
        with variables(self._environment(place)), main_module_hidden():
            process.start()
        theirs.close()  # so that the worker's death is an end of file here
        return Worker(process, ours)

    def _environment(self, place: int) -> dict[str, str]:
        visible = {"CUDA_VISIBLE_DEVICES": self._devices[place % len(self._devices)]} if self._devices else {}
        return {**thread_variables(self.threads), **visible}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def cuda_devices() -> list[str]:
    """The devices to share out, as CUDA_VISIBLE_DEVICES names them. Raises `StudyError` where there is none."""
    import torch  # counts devices without opening one

    count = torch.cuda.device_count()
    if count == 0:
        raise StudyError("no CUDA device is visible: use --device cpu, or see `specreg doctor`")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """The environment with these variables: a process that is started here reads them before any library is loaded."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def main_module_hidden() -> Iterator[None]:
    """Start processes without the caller's main module.

    multiprocessing has every child import it. Ours need nothing of it, it costs time, and a script that lacks
    the `if __name__ == "__main__"` would run its study again in each worker.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
