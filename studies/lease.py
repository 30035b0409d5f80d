"""One driver a study: a file lock that the kernel frees when its holder dies, and a record of who holds it.

The lock decides, because it is atomic and cannot outlive a process. The record, kept in the study and in the lock file,
says who that is, and is a second barrier where somebody removed the lock file under a living driver.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specreg.studies.definition import StudyError


class StudyInUseError(StudyError):
    """Another driver is running this study."""


@dataclass(frozen=True)
class Lease:
    """Who drives a study. A process is known by its id and its start, because ids are used again."""

    host: str
    pid: int
    start_time: int | None  # clock ticks since boot; None where the system has no /proc
    token: str  # the first half of the token of every attempt that this driver makes

    @classmethod
    def of_this_process(cls) -> Lease:
        """A new lease, its token drawn by the operating system."""
        return cls(socket.gethostname(), os.getpid(), start_time(os.getpid()), secrets.token_hex(8))

    @classmethod
    def from_mapping(cls, data: dict[str, Any]) -> Lease:
        """The lease of `asdict`."""
        return cls(str(data["host"]), int(data["pid"]), data["start_time"], str(data["token"]))

    def is_held_elsewhere(self) -> bool:
        """Whether its holder is another living process of this host; of other hosts nothing can be known."""
        here = self.host == socket.gethostname() and self.pid != os.getpid()
        return here and self.start_time is not None and start_time(self.pid) == self.start_time

    def refusal(self, study: str) -> StudyInUseError:
        """The error for a driver that comes second."""
        return StudyInUseError(
            f"study {study!r} is being run by process {self.pid} on {self.host}: wait for it, stop it, "
            "or give another name"
        )


@contextmanager
def locked(path: Path, lease: Lease, study: str) -> Iterator[None]:
    """Hold the lock file at `path` for `lease`. Raises `StudyInUseError` at once where another process holds it."""
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise holder(path).refusal(study) from None
        file.truncate(0)
        file.write(json.dumps(asdict(lease)))
        file.flush()
        yield  # closing the file frees the lock, and so does the death of this process


def holder(path: Path) -> Lease:
    """The lease written in a lock file; one without a process where its holder has not come to writing it yet."""
    try:
        return Lease.from_mapping(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError):
        return Lease(socket.gethostname(), 0, None, "")


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since boot; None where there is no such process, or no /proc."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(status.rpartition(")")[2].split()[19])  # field 22; the second may hold spaces and brackets
