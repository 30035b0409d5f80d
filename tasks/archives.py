"""Archives read in place: zip, tar, tar.gz and tar.xz. Nothing is unpacked, and a hostile archive is refused.

Whatever it is named, the kind of an archive is told by its first bytes. Every member is checked, also those that nobody
reads: its name, its kind and its size, before a byte of it is read.
"""

import errno
import lzma
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from gzip import GzipFile
from pathlib import Path
from typing import IO, Protocol, Self
from zipfile import BadZipFile, ZipFile, ZipInfo

from specreg.tasks.files import DataFormatError

__all__ = ["Limits", "Member", "members"]

_BLOCK = 1 << 20
_LARGEST_HEADER = 1 << 20  # a tar's extended header is read whole
_LONGEST_RECORD = 22 + 65_535  # the record at a zip's end, with a comment
_UNCOUNTED = 65_535  # of more members the record gives no number

# what zipfile, tarfile and the decompressors raise on damaged bytes; RuntimeError: encryption, and endless nesting
_DAMAGE = (BadZipFile, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, struct.error, ValueError, RuntimeError)


@dataclass(frozen=True)
class Limits:
    """What an archive may hold; one that holds more is refused."""

    members: int = 200_000
    """Members, folders included."""
    member_bytes: int = 1 << 30
    """Bytes of one member, unpacked."""
    total_bytes: int = 2 << 30
    """Bytes of all members and of what describes them, unpacked."""


@dataclass(frozen=True)
class Member:
    """A file in an archive; it can be read until the next member is asked for."""

    name: str
    """Its path in the archive, parts separated by `/`, without a leading `./`."""
    size: int
    """Its bytes, unpacked."""
    archive: Path
    """The archive."""
    _open: Callable[[], IO[bytes]]

    def blocks(self, size: int = _BLOCK) -> Iterator[bytes]:
        """Yield the content in blocks of `size` bytes; raises DataFormatError where it is damaged."""
        read = 0
        with _damage_said(self.archive), self._open() as file:
            while block := file.read(size):
                read += len(block)
                yield block
        if read != self.size:
            raise DataFormatError(f"{self.archive}: {self.name!r} holds {read:,} bytes instead of {self.size:,}")

    def read(self) -> bytes:
        """Return the content."""
        return b"".join(self.blocks())


def members(path: Path, limits: Limits | None = None) -> Iterator[Member]:
    """Yield the files of an archive in its order, folders left out.

    Raises DataFormatError for an archive that is damaged, truncated, of another kind or larger than `limits`, and for
    one with a member twice, a link, a device, an absolute path or `..`; OSError where the file cannot be read.
    """
    checks = _Checks(path, limits or Limits())
    with _damage_said(path), path.open("rb") as file:
        head = file.read(6)
        file.seek(0)
        if head.startswith(b"PK"):
            yield from _zip_members(file, checks)
        elif head.startswith(b"\x1f\x8b"):
            with GzipFile(fileobj=file) as stream:
                yield from _tar_members(stream, checks)
        elif head == b"\xfd7zXZ\x00":
            with lzma.LZMAFile(file) as stream:
                yield from _tar_members(stream, checks)
        else:
            yield from _tar_members(file, checks)


@dataclass
class _Checks:
    """What has been seen of an archive."""

    path: Path
    limits: Limits
    total: int = 0
    names: set[str] = field(default_factory=set)

    def admit(self, name: str, size: int) -> str:
        """Return a member's name in one spelling; raises DataFormatError where it may not be, or is too large."""
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        plain, limits = "/".join(parts), self.limits
        if name[:1] in ("/", "\\") or name[1:2] == ":":
            raise self.refusal(f"{name!r} is an absolute path")
        if ".." in parts:
            raise self.refusal(f"{name!r} leads out of it by '..'")
        if plain in self.names:
            raise self.refusal(f"{name!r} stands in it twice")
        self.names.add(plain)
        self.total += size
        if len(self.names) > limits.members:
            raise self.refusal(f"it has more than {limits.members:,} members")
        if not 0 <= size <= limits.member_bytes:
            raise self.refusal(f"{name!r} has {size:,} bytes; up to {limits.member_bytes:,} are read")
        self.check_total(self.total)
        return plain

    def check_total(self, total: int) -> None:
        """Refuse too many bytes."""
        if total > self.limits.total_bytes:
            raise self.refusal(f"unpacked it has more than {self.limits.total_bytes:,} bytes")

    def refusal(self, what: str) -> DataFormatError:
        """Return the error that says what is wrong, and what to do."""
        return DataFormatError(f"{self.path} was refused: {what}. Replace it by the official archive")


def _zip_members(file: IO[bytes], checks: _Checks) -> Iterator[Member]:
    with ZipFile(file) as archive:
        if _announced(file) not in (len(archive.infolist()), _UNCOUNTED):
            raise BadZipFile("its table of contents is not whole")  # which zipfile does not look at
        for info in archive.infolist():
            name = checks.admit(info.filename, info.file_size)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise checks.refusal(f"{info.filename!r} is a {'link' if kind == stat.S_IFLNK else 'device'}")
            if not info.is_dir():
                yield Member(name, info.file_size, checks.path, _zip_opener(archive, info))


def _announced(file: IO[bytes]) -> int:
    """Return how many members the record at a zip's end says there are."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _LONGEST_RECORD))
    tail = file.read()
    record = tail[tail.rfind(b"PK\x05\x06") :]
    return int.from_bytes(record[10:12], "little")


def _zip_opener(archive: ZipFile, info: ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(info)


def _tar_members(stream: "_Stream", checks: _Checks) -> Iterator[Member]:
    forward = _Forward(stream, checks)
    with tarfile.TarFile(fileobj=forward, tarinfo=_StrictInfo) as archive:  # type: ignore[arg-type]
        for info in archive:
            name = checks.admit(info.name, info.size)
            if info.issym() or info.islnk():
                raise checks.refusal(f"{info.name!r} is a link")
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise checks.refusal(f"{info.name!r} is a device, a pipe or a sparse file")
            yield Member(name, info.size, checks.path, _tar_opener(archive, info))
    while forward.read(_BLOCK):  # to the end, where the checksum stands
        pass


def _tar_opener(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        file = archive.extractfile(info)
        assert file is not None  # a regular file
        return file

    return opened


class _StrictInfo(tarfile.TarInfo):
    """A tar header; a damaged or missing one is an error, where tarfile takes it for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # the block of zeros that ends an archive
                raise
            raise tarfile.ReadError(str(error)) from error


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, /) -> int: ...


class _Forward:
    """A file that tarfile may only walk forward in, so that no header leads it round in circles."""

    def __init__(self, stream: _Stream, checks: _Checks) -> None:
        self._stream, self._checks, self._place = stream, checks, 0

    def read(self, size: int) -> bytes:
        if size > max(_LARGEST_HEADER, _BLOCK):
            raise self._checks.refusal(f"it has a header of {size:,} bytes")
        block = self._stream.read(size)
        self._place += len(block)
        self._checks.check_total(self._place)
        return block

    def seek(self, place: int) -> int:
        if place < self._place:
            raise self._checks.refusal("a header of it leads backwards")
        self._checks.check_total(place)
        if place > self._place:
            self._stream.seek(place)
            self._place = place
        return place

    def tell(self) -> int:
        return self._place


@contextmanager
def _damage_said(path: Path) -> Iterator[None]:
    """Say in our words what the readers of archives raise on damaged bytes."""
    try:
        yield
    except DataFormatError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    except OSError as error:
        # a checksum of gzip's, or a seek to where no byte can be; anything else is the file system's own
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataFormatError:
    said = str(error) or type(error).__name__
    return DataFormatError(
        f"{path} is no zip, tar, tar.gz or tar.xz archive, or it is truncated or damaged ({said}). "
        "Replace it by the official archive"
    )
