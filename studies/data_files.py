"""A task's data files: what to say where they are missing, and their download where it was asked for."""

from __future__ import annotations

from collections.abc import Callable

from specreg.studies.configuration import ConfigurationError
from specreg.tasks.files import DataFormatError, MissingDataError, data_directory, fetch
from specreg.tasks.task import Task


def require(task: Task) -> None:
    """Raise `ConfigurationError` where files are missing: which, and from where `--download` would fetch them."""
    try:
        task.data_files()
    except MissingDataError as error:
        raise ConfigurationError(f"{error}{offer(task)}") from error
    except DataFormatError as error:
        raise ConfigurationError(str(error)) from error


def offer(task: Task) -> str:
    """What `--download` would fetch, as the end of a message; nothing where no public address is known."""
    addresses = [each.url for each in task.downloads()]
    if not addresses:
        return ""
    listed = addresses[0] if len(addresses) == 1 else f"{', '.join(addresses[:-1])} and {addresses[-1]}"
    return f". With --download, `specreg train` and `specreg tasks show` fetch {listed} to it"


def fetch_missing(task: Task, say: Callable[[str], None]) -> None:
    """Download a task's public files into its data directory if they are missing; raises what `fetch` raises.

    Raises `ConfigurationError` where files are missing that are at no public address, or that came and do not suffice.
    """
    try:
        task.data_files()
    except MissingDataError as error:
        if not task.downloads():
            raise ConfigurationError(f"{error}. There is nothing that --download could fetch") from error
        fetch(task.downloads(), data_directory(getattr(task, "data", None)), say)
        require(task)
