"""Small PNG images, many at a time: 8 bits a channel, grey or RGB, not interlaced, which is what the data sets hold."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.files import DataFormatError

__all__ = ["decode_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2}  # channels: PNG's number
_KINDS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_TOGETHER = 2048  # images whose filters are undone at a time

Bytes = NDArray[np.uint8]


def decode_png(
    contents: Sequence[bytes],
    names: Sequence[object],  # as many, for messages
    shape: tuple[int, int, int],  # rows, columns, channels: 1 or 3
) -> Bytes:  # (N, rows, columns, channels)
    """Return the pixels of PNG images that all have one shape.

    Raises DataFormatError for one that is empty, truncated, damaged, of another shape or of another kind; no more is
    decompressed than the shape allows.
    """
    rows, columns, channels = shape
    images = np.empty((len(contents), *shape), dtype=np.uint8)
    for first in range(0, len(contents), _TOGETHER):
        part = slice(first, first + _TOGETHER)
        lines = [_scanlines(content, name, shape) for content, name in zip(contents[part], names[part], strict=True)]
        table = np.frombuffer(b"".join(lines), dtype=np.uint8).reshape(len(lines), rows, 1 + columns * channels)
        filters = table[..., 0]
        if filters.size and filters.max() > 4:
            raise _wrong(names[first + int((filters.max(axis=1) > 4).argmax())], "a row has a filter that PNG lacks")
        images[part] = _unfiltered(filters, table[..., 1:].reshape(-1, *shape))
    return images


def _scanlines(content: bytes, name: object, shape: tuple[int, int, int]) -> bytes:
    """Return the filtered rows, each after the number of its filter."""
    if not content:
        raise _wrong(name, "the file is empty")
    if not content.startswith(_SIGNATURE):
        raise _wrong(name, "it does not begin as a PNG file does")
    rows, columns, channels = shape
    size = rows * (1 + columns * channels)
    chunks = _chunks(content, name)
    _check_header(chunks[0], name, shape)
    if chunks[-1][0] != b"IEND":
        raise _wrong(name, "it is truncated: the end mark is missing")
    packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    stream = zlib.decompressobj()
    try:
        lines = stream.decompress(packed, size + 1)
    except zlib.error as error:
        raise _wrong(name, f"its pixels cannot be decompressed ({error})") from error
    if len(lines) != size:
        raise _wrong(name, f"it holds {'more' if len(lines) > size else 'fewer'} pixels than its size says")
    if not stream.eof:
        raise _wrong(name, "its pixels are truncated")
    return lines


def _chunks(content: bytes, name: object) -> list[tuple[bytes, bytes]]:
    """Return kinds and contents of the chunks to the end mark, whose checksums agree."""
    found: list[tuple[bytes, bytes]] = []
    place = len(_SIGNATURE)
    while place + 12 <= len(content) and (not found or found[-1][0] != b"IEND"):
        length = int.from_bytes(content[place : place + 4])
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        check = content[place + 8 + length : place + 12 + length]
        if len(check) < 4:
            raise _wrong(name, "it is truncated")
        if zlib.crc32(kind + body) != int.from_bytes(check):
            raise _wrong(name, "it is damaged: a checksum does not agree")
        found.append((kind, body))
        place += 12 + length
    if not found:
        raise _wrong(name, "it is truncated")
    return found


def _check_header(chunk: tuple[bytes, bytes], name: object, shape: tuple[int, int, int]) -> None:
    kind, body = chunk
    if kind != b"IHDR" or len(body) != 13:
        raise _wrong(name, "it has no PNG header")
    rows, columns, channels = shape
    width, height = int.from_bytes(body[:4]), int.from_bytes(body[4:8])
    depth, colour, interlaced = body[8], body[9], body[12]
    if (height, width) != (rows, columns):
        raise _wrong(name, f"it is {width}×{height} pixels; it should be {columns}×{rows}")
    if (depth, colour, interlaced) != (8, _COLOUR_TYPES[channels], 0):
        found = f"{depth}-bit {_KINDS.get(colour, f'colour type {colour}')}{', interlaced' if interlaced else ''}"
        raise _wrong(name, f"it is {found}; it should be 8-bit {_KINDS[_COLOUR_TYPES[channels]]}, not interlaced")


def _unfiltered(
    filters: Bytes,  # (N, rows)
    images: Bytes,  # (N, rows, columns, channels)
) -> Bytes:
    """Undo the filters row by row; a row of one filter is done for all images at once."""
    images = images.copy()
    above = np.zeros_like(images[:, 0])
    for row in range(images.shape[1]):
        line = images[:, row]
        for kind, undo in ((1, _sub), (2, _up), (3, _average), (4, _paeth)):
            chosen = np.flatnonzero(filters[:, row] == kind)
            if chosen.size:
                line[chosen] = undo(line[chosen], above[chosen])
        above = line
    return images


def _sub(line: Bytes, above: Bytes) -> Bytes:
    return np.cumsum(line, axis=1, dtype=np.uint8)


def _up(line: Bytes, above: Bytes) -> Bytes:
    return line + above


def _average(line: Bytes, above: Bytes) -> Bytes:
    left = np.zeros_like(line[:, 0])
    for column in range(line.shape[1]):
        line[:, column] += ((left.astype(np.uint16) + above[:, column]) // 2).astype(np.uint8)
        left = line[:, column]
    return line


def _paeth(line: Bytes, above: Bytes) -> Bytes:
    up = above.astype(np.int16)
    left, corner = np.zeros_like(up[:, 0]), np.zeros_like(up[:, 0])
    for column in range(line.shape[1]):
        over = up[:, column]
        by_left, by_over, by_corner = np.abs(over - corner), np.abs(left - corner), np.abs(left + over - 2 * corner)
        nearest = np.where(by_over <= by_corner, over, corner)
        nearest = np.where((by_left <= by_over) & (by_left <= by_corner), left, nearest)
        line[:, column] += nearest.astype(np.uint8)
        left, corner = line[:, column].astype(np.int16), over
    return line


def _wrong(name: object, what: str) -> DataFormatError:
    return DataFormatError(f"{name} is not a PNG image as it should be: {what}")
