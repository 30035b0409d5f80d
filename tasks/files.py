"""Where data files are looked for, and what is said when one is missing or is not what it should be."""

import os
from pathlib import Path

__all__ = ["ENVIRONMENT_VARIABLE", "DataFormatError", "MissingDataError", "data_directory"]

ENVIRONMENT_VARIABLE = "SPECREG_DATA"


class MissingDataError(FileNotFoundError):
    """A data file is not where it was looked for."""


class DataFormatError(ValueError):
    """A data file is truncated, damaged or of another layout."""


def data_directory(given: Path | None) -> Path:
    """Return the one directory that data files are read from.

    The task's `data` field where it is set, else the environment variable SPECREG_DATA, else `specreg` in the user's
    cache folder ($XDG_CACHE_HOME, or ~/.cache). The first that is set decides: a file missing there is not looked for
    elsewhere.
    """
    if given is not None:
        return Path(given).expanduser().absolute()
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "specreg"
