"""A study on disk: an Optuna storage of which the driver is the only writer, and what it keeps there.

Every slot of the budget is one trial. Its user attributes hold what Optuna has no place for: "slot", "run", "token",
"attempts", "halved", "metrics", "rungs", "reason", "message", "directory", "seconds". A proposal counts from the moment
that its "slot" is stored, the last of its attributes. A trial that waits to be run again is in Optuna's state WAITING.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from specreg.studies.definition import Definition, StudyError
from specreg.studies.expressions import unknown

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
BUSY_TIMEOUT = 60  # seconds to wait for another process's transaction
UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


class StudyChangedError(StudyError):
    """The stored study is another one than the definition's: going on would mix two."""


def checked_name(name: str) -> str:
    """A study's name, if it is safe as a file name, in a URL and on a terminal."""
    if not NAME.fullmatch(name):
        raise StudyError(
            f"{name[:120]!r} cannot name a study: use 1 to 100 letters, digits, '.', '_' and '-', "
            "the first a letter or digit"
        )
    return name


def database_file(storage_url: str | None, folder: Path) -> Path:
    """The SQLite file behind a URL, `folder`/study.db without one. Errors show neither password nor query."""
    if storage_url is None:
        return checked_file(folder / "study.db")
    try:
        url = make_url(storage_url)
    except (ArgumentError, ValueError):
        raise StudyError("the storage is no URL: write it as sqlite:///folder/study.db") from None
    if url.get_backend_name() != "sqlite":
        raise StudyError(f"{without_secrets(url)}: studies are kept in SQLite, as in sqlite:///folder/study.db")
    if not url.database or url.database == ":memory:" or url.query or url.host or url.username or url.password:
        raise StudyError(
            f"{without_secrets(url)}: the URL has to name a file and nothing else: sqlite:///folder/study.db"
        )
    return checked_file(Path(url.database))


def checked_file(path: Path) -> Path:
    """An absolute path that stays itself inside a URL."""
    if "?" in str(path.absolute()):
        raise StudyError(f"{path}: a storage's path cannot have a question mark")
    return path.absolute()


def without_secrets(url: URL) -> str:
    """Scheme, host and database of a URL: no user, no password, no query."""
    return f"{url.drivername}://{url.host or ''}/{url.database or ''}"


@contextmanager
def opened(file: Path, *, read_only: bool) -> Iterator[RDBStorage]:
    """The storage in a SQLite file, connections closed afterwards.

    For writing, the file is created where it is missing and put into write-ahead mode, in which a reader never blocks
    the writer and a killed writer loses nothing that it committed. Raises `StudyError` where it cannot be opened.
    """
    try:
        if not read_only:
            create(file)
        url = f"sqlite:///file:{quote(str(file))}?mode=ro&uri=true" if read_only else f"sqlite:///{file}"
        engine = {"connect_args": {"timeout": BUSY_TIMEOUT}}
        storage = RDBStorage(url, engine_kwargs=engine, skip_table_creation=read_only)
    except (OSError, sqlite3.Error, SQLAlchemyError, RuntimeError) as error:
        raise StudyError(f"{file} cannot be opened as a study's storage: {first_line(error)}") from None
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def create(file: Path) -> None:
    """Make a SQLite file in write-ahead mode; nothing changes where there is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file, timeout=BUSY_TIMEOUT)) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise OSError(f"its file system allows no write-ahead log (mode {mode}); use a local disk")


@contextmanager
def open_study(folder: Path, *, name: str | None = None, storage_url: str | None = None) -> Iterator[optuna.Study]:
    """A stored study for reading, while a driver runs it or not; the database is opened read-only.

    `name` may be left out where the storage holds one study. Raises `StudyError` where there is none of that name.
    """
    file = database_file(storage_url, folder)
    if not file.is_file():
        raise StudyError(f"no study in {folder}: {file} does not exist; begin one with `specreg study run`")
    with opened(file, read_only=True) as storage:
        names = [study.study_name for study in storage.get_all_studies()]
        if name is None and len(names) != 1:
            raise StudyError(f"{file} holds {len(names)} studies ({', '.join(sorted(names))}): give the name of one")
        if name is not None and name not in names:
            raise StudyError(unknown("study", name, names))
        yield optuna.load_study(study_name=name or names[0], storage=storage)


class StudyStore:
    """The driver's hold on a study: slots and attributes, in Optuna's storage."""

    def __init__(self, storage: RDBStorage, name: str, definition: Definition) -> None:
        """Load the study or begin it. Raises `StudyChangedError` where the stored directions are others."""
        self._storage = storage
        if name not in {study.study_name for study in storage.get_all_studies()}:
            with quiet_optuna():
                optuna.create_study(storage=storage, study_name=name, directions=list(definition.objectives.values()))
        self._id = storage.get_study_id_from_name(name)
        self._study = optuna.load_study(study_name=name, storage=storage)
        self.name = name

    @property
    def attributes(self) -> dict[str, Any]:
        """User attributes: "objectives", "digest", "seed", "repeats", "startup", "batch", "lease", "best"."""
        return self._study.user_attrs

    def set(self, key: str, value: Any) -> None:
        """Store a user attribute of the study."""
        self._study.set_user_attr(key, value)

    def identify(self, definition: Definition, seed: int) -> None:
        """Store what the study is when it is new; otherwise raise `StudyChangedError` where it is another one."""
        expected = {
            "objectives": dict(definition.objectives),
            "digest": definition.digest,
            "seed": seed,
            "repeats": definition.repeats,
        }
        stored = self.attributes
        if "objectives" not in stored and self.trials():
            raise StudyChangedError(f"study {self.name!r} was not begun here: give another name to begin a new study")
        for key, value in expected.items():
            if key not in stored:
                self.set(key, value)
            elif stored[key] != value:
                raise StudyChangedError(self._changed(key, stored[key], value))

    def _changed(self, key: str, stored: Any, given: Any) -> str:
        what = {"digest": "code and search space", "repeats": "number of seeds a trial"}.get(key, key)
        values = "are others now" if key == "digest" else f"were {stored!r} and are {given!r} now"
        back = f"give seed {stored} again" if key == "seed" else "put the module back"
        return f"study {self.name!r}: its {what} {values}; {back}, or give another name to begin a new study"

    def setdefault(self, key: str, value: Any) -> Any:
        """The study's user attribute, stored first if it has none."""
        if key not in self.attributes:
            self.set(key, value)
        return self.attributes[key]

    def trials(self) -> list[FrozenTrial]:
        """All trials by number."""
        return self._study.get_trials(deepcopy=False)

    def slots(self) -> dict[int, FrozenTrial]:
        """The trial of each slot that has been proposed."""
        return {trial.user_attrs["slot"]: trial for trial in self.trials() if "slot" in trial.user_attrs}

    def finished(self) -> int:
        """How many slots are filled."""
        return sum(trial.state.is_finished() for trial in self.slots().values())

    def ask(self, sampler: BaseSampler) -> Trial:
        """A new running trial, its parameters to be suggested by `sampler`."""
        self._study.sampler = sampler
        return self._study.ask()

    def write(self, number: int, **attributes: Any) -> None:
        """Store user attributes of a trial in the order given."""
        for key, value in attributes.items():
            self._storage.set_trial_user_attr(self._trial_id(number), key, value)

    def finish(
        self, number: int, state: TrialState, values: Mapping[str, float] | None = None, **attributes: Any
    ) -> None:
        """Fill a slot: attributes first, so that a trial that is told is whole."""
        self.write(number, **attributes)
        self._study.tell(number, list(values.values()) if values is not None else None, state=state)

    def resume(self, number: int) -> None:
        """Take an unfinished trial up again."""
        self._storage.set_trial_state_values(self._trial_id(number), TrialState.RUNNING)

    def park(self, number: int) -> None:
        """Leave a running trial for a later driver; nothing is left RUNNING without one."""
        self._storage.set_trial_state_values(self._trial_id(number), TrialState.WAITING)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from announcing on standard error what our own events tell."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def first_line(error: Exception) -> str:
    """An error's type and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
