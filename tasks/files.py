"""Data files: where they are looked for, their digests, downloads that were asked for, and a cache of what was read."""

import hashlib
import json
import os
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "DataFormatError",
    "Download",
    "DownloadError",
    "Flat",
    "MissingDataError",
    "cache_directory",
    "cached",
    "data_directory",
    "digest",
    "digests",
    "download",
    "fetch",
]

ENVIRONMENT_VARIABLE = "SPECREG_DATA"

_BLOCK = 1 << 20
_AGENT = "specreg"  # some servers refuse Python's own name
_MAGIC = b"specreg flat file 1\n"
_ALIGNMENT = 64
_DTYPES = ("uint8", "uint16", "int32", "int64")
_ARRAYS = ("data", "offsets", "labels")
_known: dict[tuple[str, str], str] = {}  # digests by path and stamp


class MissingDataError(FileNotFoundError):
    """A data file is not where it was looked for."""


class DataFormatError(ValueError):
    """A data file is truncated, damaged or of another layout."""


class DownloadError(OSError):
    """A download did not arrive, or is not what was asked for."""


@dataclass(frozen=True)
class Download:
    """A public file that a task reads, and where it is."""

    url: str
    """Its address."""
    file: str
    """Its name in the data directory."""
    sha256: str | None = None
    """The digest of its content as somebody published it; None: none is known, and whatever arrives is taken."""
    largest: int = 1 << 30
    """The most bytes it may have."""


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
    return _user_cache()


def cache_directory() -> Path:
    """Return the folder of what was read once, `specreg/read` in the user's cache; it may be emptied at any time."""
    return _user_cache() / "read"


def _user_cache() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "specreg"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, or of a folder's listing as `sha256sum` writes it, sorted by name.

    Computed once for each size and time of change, of a folder those of its files, and kept in the cache folder.
    """
    path = path.absolute()
    stamp = _stamp(path)
    if found := _known.get((str(path), stamp)):
        return found
    note = cache_directory() / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.sha256.json"
    found = _noted(note, path, stamp)
    if found is None:
        found = _folder_digest(path) if path.is_dir() else _file_digest(path)
        if _stamp(path) != stamp:
            raise DataFormatError(f"{path} was changed while it was read; try again when it is complete")
        content = {"path": str(path), "stamp": stamp, "sha256": found}
        with suppress(OSError), _replacing(note) as file:  # without a cache it is computed again
            file.write(json.dumps(content).encode())
    _known[str(path), stamp] = found
    return found


def digests(paths: Iterable[Path], directory: Path) -> dict[str, str]:
    """Return name → SHA-256 of data files, what a run directory records; those in `directory` are named from there."""
    return {_name(path, directory): digest(path) for path in paths}


def _name(path: Path, directory: Path) -> str:
    return (path.relative_to(directory) if path.is_relative_to(directory) else path).as_posix()


def _stamp(path: Path) -> str:
    """Return what changes with a file's content, or with that of any file of a folder."""
    if not path.is_dir():
        status = path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"
    with os.scandir(path) as entries:
        listed = [(entry.name, entry.stat()) for entry in entries]
    lines = sorted(f"{name}\0{status.st_size} {status.st_mtime_ns}\0" for name, status in listed)
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def _noted(note: Path, path: Path, stamp: str) -> str | None:
    try:
        content = json.loads(note.read_bytes())
        if content["path"] == str(path) and content["stamp"] == stamp and len(content["sha256"]) == 64:
            return str(content["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not there, or damaged: computed again
    return None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder_digest(folder: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file():
            state.update(f"{_file_digest(path)}  ".encode() + os.fsencode(path.name) + b"\n")
    return state.hexdigest()


def fetch(files: Iterable[Download], directory: Path, say: Callable[[str], None]) -> None:
    """Download those of a task's files that are not in the data directory, saying of each what it is and was.

    Raises DownloadError; what had arrived before stays, and is not fetched again.
    """
    for each in files:
        to = directory / each.file
        if to.exists():
            continue
        say(f"downloading {each.url} to {to}")
        found = download(each.url, to, each.sha256, each.largest)
        known = "as published" if each.sha256 is not None else "recorded, not checked: no digest of it is known"
        say(f"SHA-256 {found}, {known}")


def download(url: str, to: Path, sha256: str | None = None, largest: int = 8 << 30, timeout: float = 60.0) -> str:
    """Fetch a file over http or https and return its SHA-256; nothing in this package calls it unasked.

    A file that is already there with that digest stays, and nothing is fetched. The content goes to a temporary name
    in the same folder and takes its place only when it is complete and its digest agrees. Raises ValueError for
    another kind of address; DownloadError where the server refuses, the content is longer than `largest` bytes or
    shorter than announced, or its digest is another; and then nothing is left behind.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} cannot be downloaded: give an address that begins with https:// or http://")
    if sha256 is not None and to.is_file() and digest(to) == sha256.lower():
        return digest(to)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": _AGENT})
        with urllib.request.urlopen(request, timeout=timeout) as answer, _replacing(to) as file:
            return _received(url, answer, file, sha256, largest)
    except DownloadError:
        raise
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # it is the server's answer too
        raise DownloadError(f"{url} could not be downloaded to {to}: {error}") from error


def _received(url: str, answer: Any, file: IO[bytes], sha256: str | None, largest: int) -> str:
    state, size = hashlib.sha256(), 0
    announced = answer.headers.get("Content-Length")
    while block := answer.read(_BLOCK):
        size += len(block)
        if size > largest:
            raise DownloadError(f"{url} was not downloaded: it has more than the {largest:,} bytes allowed")
        state.update(block)
        file.write(block)
    if announced is not None and announced.isdigit() and int(announced) != size:
        raise DownloadError(f"{url} broke off after {size:,} of {int(announced):,} bytes: try again")
    if sha256 is not None and state.hexdigest() != sha256.lower():
        raise DownloadError(f"{url} is not the file asked for: SHA-256 {state.hexdigest()} instead of {sha256.lower()}")
    return state.hexdigest()


@dataclass(frozen=True, eq=False)
class Flat:
    """Sequences one after another, read-only."""

    data: NDArray[Any]
    """All sequences, (N,) of one of the integer types uint8, uint16, int32, int64."""
    offsets: NDArray[np.int64]
    """Where each begins, and the end, (S + 1,)."""
    labels: NDArray[Any]
    """What goes with them: their labels, or none."""
    notes: Mapping[str, Any]
    """What else was found, as JSON holds it: a vocabulary, counts."""


def cached(name: str, build: Callable[[], Flat], *, source: str, version: int, settings: Mapping[str, Any]) -> Flat:
    """Return what `build` reads, from the cache where the same source was read with the same settings before.

    `source` is the digest of what is read, `version` that of the reader: a change of either, or of the settings, reads
    anew, and so does a damaged file, which is replaced. Where the cache cannot be written, nothing is kept.
    """
    about = json.loads(json.dumps({"name": name, "source": source, "version": version, "settings": dict(settings)}))
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_directory() / f"{name}-{key}.flat"
    found = _read_flat(path, about)
    if found is None:
        found = build()
        with suppress(OSError), _replacing(path) as file:
            _write_flat(file, about, found)
    return found


def _write_flat(file: IO[bytes], about: Mapping[str, Any], flat: Flat) -> None:
    arrays = {name: np.ascontiguousarray(getattr(flat, name)) for name in _ARRAYS}
    if wrong := {str(array.dtype) for array in arrays.values()} - set(_DTYPES):
        raise TypeError(f"a flat file holds {', '.join(_DTYPES)}, not {', '.join(wrong)}")
    body, place, checksum = [], 0, 0
    layout = {}
    for name, array in arrays.items():
        content = array.tobytes() + bytes(-array.nbytes % _ALIGNMENT)
        layout[name] = {"dtype": str(array.dtype), "shape": array.shape, "place": place}
        checksum = zlib.crc32(content, checksum)
        place += len(content)
        body.append(content)
    header = {"about": about, "notes": dict(flat.notes), "arrays": layout, "bytes": place, "crc32": checksum}
    text = json.dumps(header).encode()
    opening = _MAGIC + len(text).to_bytes(8, "little") + zlib.crc32(text).to_bytes(4, "little") + text
    file.write(opening + bytes(-len(opening) % _ALIGNMENT))
    file.writelines(body)


def _read_flat(path: Path, about: Mapping[str, Any]) -> Flat | None:
    """Return a flat file's content, mapped into memory; None where there is none, or not a whole one about this."""
    try:
        content: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        start = len(_MAGIC) + 12
        opening = content[:start].tobytes()
        length, check = int.from_bytes(opening[-12:-4], "little"), int.from_bytes(opening[-4:], "little")
        text = content[start : start + length].tobytes()
        if not opening.startswith(_MAGIC) or zlib.crc32(text) != check:
            return None
        header = json.loads(text)
        body = content[start + length + -(start + length) % _ALIGNMENT :]
        if header["about"] != about or body.size != header["bytes"] or zlib.crc32(body.data) != header["crc32"]:
            return None
        return Flat(**{name: _array(body, header["arrays"][name]) for name in _ARRAYS}, notes=header["notes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _array(body: NDArray[np.uint8], layout: Mapping[str, Any]) -> NDArray[Any]:
    count = int(np.prod(layout["shape"], dtype=np.int64))
    array: NDArray[Any] = np.frombuffer(body, layout["dtype"], count, layout["place"]).reshape(layout["shape"])
    return array


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write to a temporary name in the same folder, which becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
