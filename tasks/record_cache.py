"""Records of equal size kept in one flat file, each drawn when first asked for and read from there afterwards."""

import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["RecordCache"]

_MAGIC = b"specreg records 1\n"
_CHECK = 4  # bytes of checksum before each record


@dataclass(frozen=True)
class RecordCache:
    """A file of `count` records of `size` bytes that belong to `digest`.

    The header holds the digest, the count and the size; a file with another header or of another length is replaced.
    Each record has its own checksum, so one that is not there yet, torn or altered counts as absent. The file is made
    under a temporary name and renamed, and starts sparse. Two processes may write at once: what they write is the same.
    """

    path: Path
    digest: bytes
    count: int
    size: int

    def read(
        self,
        indices: NDArray[np.int64],  # (B,)
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:  # (B, size), (B,)
        """Return the records at `indices`, and which of them are there."""
        records = np.zeros((indices.size, self.size), dtype=np.uint8)
        found = np.zeros(indices.size, dtype=np.bool_)
        with suppress(OSError), self.path.open("rb") as file:
            if not self._fits(file):
                return records, found
            for row, index in enumerate(indices.tolist()):
                file.seek(self._place(index))
                content = file.read(_CHECK + self.size)
                if len(content) == _CHECK + self.size and content[:_CHECK] == _checksum(index, content[_CHECK:]):
                    records[row] = np.frombuffer(content, np.uint8, offset=_CHECK)
                    found[row] = True
        return records, found

    def write(
        self,
        indices: NDArray[np.int64],  # (B,)
        records: NDArray[np.uint8],  # (B, size)
    ) -> None:
        """Keep records; where the file cannot be written, a full disk for one, nothing is kept and nothing is said."""
        with suppress(OSError):
            self._ensure()
            with self.path.open("r+b") as file:
                for index, record in zip(indices.tolist(), records, strict=True):
                    content = record.tobytes()
                    file.seek(self._place(index))
                    file.write(_checksum(index, content) + content)

    @property
    def _header(self) -> bytes:
        sizes = self.count.to_bytes(8, "little") + self.size.to_bytes(8, "little")
        return _MAGIC + self.digest + sizes

    def _place(self, index: int) -> int:
        return len(self._header) + index * (_CHECK + self.size)

    def _fits(self, file: BinaryIO) -> bool:
        return os.fstat(file.fileno()).st_size == self._place(self.count) and (
            file.read(len(self._header)) == self._header
        )

    def _ensure(self) -> None:
        with suppress(OSError), self.path.open("rb") as file:
            if self._fits(file):
                return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = mkstemp(dir=self.path.parent, prefix=f".{self.path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self._header)
                file.truncate(self._place(self.count))
            Path(name).replace(self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _checksum(index: int, content: bytes) -> bytes:
    """Return four bytes that are never all 0, as they are where nothing was written."""
    return (zlib.crc32(content, index & 0xFFFFFFFF) or 1).to_bytes(_CHECK, "little")
