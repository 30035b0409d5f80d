"""The colour images of CIFAR-10, from the official binary version or Hugging Face's parquet files."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.archives import Limits, members
from specreg.tasks.files import ENVIRONMENT_VARIABLE, DataFormatError, Download, Flat, MissingDataError, cached, digests
from specreg.tasks.png import decode_png
from specreg.tasks.streams import stratified_order
from specreg.tasks.task import FileTask, Split

__all__ = [
    "LENGTHS",
    "SIDE",
    "SOURCE",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "CIFARTask",
    "Images",
    "checked",
    "chosen_images",
    "colour_files",
    "has_colour",
    "missing",
    "pooled",
    "read_colour",
    "wrong",
]

SIDE = 32
TRAIN, TEST, VALIDATION = 50_000, 10_000, 5_000
LENGTHS = (16, 64, 256, 1024)
"""Sequence lengths: whole images, or means over blocks of 8×8, 4×4 and 2×2 pixels."""
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"

_ARCHIVE = "cifar-10-binary.tar.gz"
_DOWNLOAD = Download(SOURCE, _ARCHIVE, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", 200 << 20)
_BINARY = "cifar-10-batches-bin"
_PYTHON = "cifar-10-batches-py"
_BINARY_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_BINARY_TEST = "test_batch.bin"
_PER_FILE = 10_000
_RECORD = 1 + 3 * SIDE * SIDE  # a label, then the red, green and blue planes
_PARQUET_FOLDERS = ("cifar10/plain_text", "plain_text", "cifar10", "")
_PARQUET = {"train-*.parquet": TRAIN, "test-*.parquet": TEST}
_VERSION = 1  # of what is kept of an archive or of parquet files
_LIMITS = Limits(members=20, member_bytes=64 << 20, total_bytes=256 << 20)
_ROWS = 2000  # of a parquet file read at a time
_LARGEST_PNG = 1 << 16

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Images:
    """The two official sets."""

    train: Bytes  # (50000, 32, 32), or (50000, 3, 32, 32): red, green and blue planes
    train_labels: NDArray[np.int64]  # (50000,)
    test: Bytes  # (10000, …)
    test_labels: NDArray[np.int64]  # (10000,)

    @cached_property
    def members(self) -> dict[Split, NDArray[np.int64]]:
        """Which of the 50,000 training images are for training and for validation; stratified, and fixed."""
        validation, train = np.split(stratified_order(self.train_labels), [VALIDATION])
        return {"train": np.sort(train), "validation": validation}


@dataclass(frozen=True, kw_only=True)
class CIFARTask(FileTask):
    """CIFAR-10 as sequences of pixels: the official test set, and a fixed, stratified split of the training images."""

    num_classes: ClassVar[int] = 10
    """Airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck."""
    chance: ClassVar[float] = 0.1
    """The reader accepts no file where the classes are not equally many."""

    length: int = SIDE * SIDE
    """Sequence length T: 1024, or 256, 64, 16 for images averaged to 16×16, 8×8, 4×4."""

    def __post_init__(self) -> None:
        """Check the length."""
        super().__post_init__()
        if self.length not in LENGTHS:
            allowed = ", ".join(f"{size} ({math.isqrt(size)}×{math.isqrt(size)})" for size in LENGTHS)
            raise ValueError(f"length is {self.length}; the images are square: allowed are {allowed}")

    @property
    def max_length(self) -> int:
        """The length of every sequence."""
        return self.length

    @property
    def side(self) -> int:
        """Rows and columns of an image."""
        return math.isqrt(self.length)

    def downloads(self) -> tuple[Download, ...]:
        """Return the archive of the official binary version."""
        return (_DOWNLOAD,)

    def whole(self, split: Split) -> int:
        """Return the number of images in a split."""
        return {"train": TRAIN - VALIDATION, "validation": VALIDATION, "test": TEST}[split]


def has_colour(directory: Path) -> bool:
    """Whether a directory holds the binary version, unpacked or not, or parquet files."""
    binary = (directory / _BINARY).is_dir() or (directory / _ARCHIVE).is_file()
    return binary or _parquet_folder(directory) is not None


def missing(directory: Path, besides: str = "") -> MissingDataError:
    """Return the error for a directory without CIFAR-10; `besides` says what else might be put there."""
    found = f"; {_PYTHON} is there, but pickles are not read" if (directory / _PYTHON).is_dir() else ""
    return MissingDataError(
        f"CIFAR-10 was not found in {directory}{found}. Put the binary version (162 MB) from {SOURCE} there, as it is "
        f"or unpacked so that {directory / _BINARY / _BINARY_TEST} exists, or the parquet files of the Hugging Face "
        f"data set uoft-cs/cifar10 in {directory / _PARQUET_FOLDERS[0]}{besides}; another directory is named by the "
        f"task's `data` field (`--data` on the command line) or the environment variable {ENVIRONMENT_VARIABLE}"
    )


def colour_files(directory: Path) -> tuple[Path, ...]:
    """Return the files that `read_colour` reads. Raises MissingDataError where there are none."""
    binary, folder = directory / _BINARY, _parquet_folder(directory)
    if binary.is_dir():
        return tuple(binary / name for name in (*_BINARY_TRAIN, _BINARY_TEST))
    if (directory / _ARCHIVE).is_file():
        return (directory / _ARCHIVE,)
    if folder is None:
        raise missing(directory)
    return tuple(path for pattern in _PARQUET for path in sorted(folder.glob(pattern)))


def read_colour(directory: Path, convert: Callable[[Bytes], Bytes]) -> Images:
    """Return the images of the binary version, else of the parquet files, each (n, 3, 32, 32) planes converted.

    Raises MissingDataError and DataFormatError. What an archive or parquet files hold is kept in the cache folder.
    """
    files = colour_files(directory)
    folder = files[0].parent
    if folder.name == _BINARY:
        train = _collected((_read_records(path) for path in files[:-1]), convert)
        return checked(folder, *train, *_collected([_read_records(files[-1])], convert))
    flat = cached(
        "cifar10-planes",
        lambda: _unpacked(files[0]) if files[0].name == _ARCHIVE else _flat(files),
        source=_source(files),
        version=_VERSION,
        settings={"images": TRAIN + TEST},
    )
    planes, labels = flat.data.reshape(-1, 3, SIDE, SIDE), flat.labels
    parts = [slice(first, first + _PER_FILE) for first in range(0, TRAIN + TEST, _PER_FILE)]
    train, test = (
        _collected(((planes[part], labels[part]) for part in chosen), convert)
        for chosen in (parts[: TRAIN // _PER_FILE], parts[TRAIN // _PER_FILE :])
    )
    return checked(folder, *train, *test)


def _source(files: tuple[Path, ...]) -> str:
    found = digests(files, files[0].parent)
    return sha256(repr(sorted(found.items())).encode()).hexdigest()


def _flat(files: tuple[Path, ...]) -> Flat:
    """Return the planes and labels of the parquet files, training images first; decoding them takes seconds."""
    sets = []
    for pattern, count in _PARQUET.items():
        parts = (part for path in files if path.match(pattern) for part in _read_parquet(path))
        pixels, labels = _collected(parts, np.asarray)
        if labels.size != count:
            raise wrong(files[0].parent / pattern, f"there are {labels.size:,} images; there should be {count:,}")
        sets.append((pixels, labels))
    offsets = np.arange(TRAIN + TEST + 1, dtype=np.int64) * (3 * SIDE * SIDE)
    data = np.concatenate([pixels for pixels, _ in sets]).reshape(-1)
    return Flat(data, offsets, np.concatenate([labels for _, labels in sets]), {})


def _unpacked(archive: Path) -> Flat:
    """Return the planes and labels in the archive of the binary version, training images first."""
    names = [f"{_BINARY}/{name}" for name in (*_BINARY_TRAIN, _BINARY_TEST)]
    contents = {member.name: member.read() for member in members(archive, _LIMITS) if member.name in names}
    if lacking := [name for name in names if name not in contents]:
        raise wrong(archive, f"it has no {', '.join(lacking)}")
    for name, content in contents.items():
        _check_size(archive, name, len(content))
    parts = (_split(np.frombuffer(contents[name], np.uint8)) for name in names)
    pixels, labels = _collected(parts, np.asarray)
    offsets = np.arange(TRAIN + TEST + 1, dtype=np.int64) * (3 * SIDE * SIDE)
    return Flat(pixels.reshape(-1), offsets, labels, {})


def _collected(parts: Iterable[tuple[Bytes, Bytes]], convert: Callable[[Bytes], Bytes]) -> tuple[Bytes, Bytes]:
    converted = [(convert(planes), labels) for planes, labels in parts]
    if not converted:
        return np.empty((0,), np.uint8), np.empty((0,), np.uint8)
    return np.concatenate([planes for planes, _ in converted]), np.concatenate([labels for _, labels in converted])


def checked(path: Path, train: Bytes, train_labels: Bytes, test: Bytes, test_labels: Bytes) -> Images:
    """Return the images where the classes are equally many in either set, as they officially are."""
    for name, labels, count in (("training", train_labels, TRAIN), ("test", test_labels, TEST)):
        counts = np.bincount(labels, minlength=10).tolist()
        if counts != [count // 10] * 10:
            raise wrong(path, f"its {name} classes have {counts} images; each should have {count // 10:,}")
    return Images(train, train_labels.astype(np.int64), test, test_labels.astype(np.int64))


def chosen_images(
    images: Images,
    split: Split,
    indices: NDArray[np.int64],  # (B,)
) -> tuple[Bytes, NDArray[np.int64]]:  # (B, …), (B,)
    """Return the images and labels at `indices` of a split."""
    if split == "test":
        return images.test[indices], images.test_labels[indices]
    chosen = images.members[split][indices]
    return images.train[chosen], images.train_labels[chosen]


def pooled(
    pixels: Bytes,  # (..., 32, 32)
    length: int,
) -> NDArray[np.intp]:  # (..., length)
    """Return sums over square blocks, `length` of them."""
    side = math.isqrt(length)
    block = SIDE // side
    if block == 1:
        return pixels.astype(np.intp).reshape(*pixels.shape[:-2], length)
    blocks = pixels.reshape(*pixels.shape[:-2], side, block, side, block)
    sums: NDArray[np.intp] = blocks.sum(axis=(-3, -1), dtype=np.intp)
    return sums.reshape(*pixels.shape[:-2], length)


def wrong(path: Path, what: str) -> DataFormatError:
    """Return the error for a file that is not what it should be."""
    return DataFormatError(
        f"{path} is not CIFAR-10 as it should be: {what}. Replace it: the official binary version is at {SOURCE}"
    )


def _read_records(path: Path) -> tuple[Bytes, Bytes]:
    """Return planes (10000, 3, 32, 32) and labels (10000,) of one official file."""
    if not path.is_file():
        raise MissingDataError(f"{path} is missing; unpack the whole of {SOURCE} there")
    _check_size(path, "it", path.stat().st_size)
    return _split(np.fromfile(path, dtype=np.uint8))


def _check_size(path: Path, what: str, size: int) -> None:
    if size != _PER_FILE * _RECORD:
        raise wrong(path, f"{what} has {size:,} bytes; it should have {_PER_FILE * _RECORD:,}")


def _split(content: Bytes) -> tuple[Bytes, Bytes]:
    """Return planes (10000, 3, 32, 32) and labels (10000,) of one official file's bytes."""
    records = content.reshape(_PER_FILE, _RECORD)
    return records[:, 1:].reshape(-1, 3, SIDE, SIDE), records[:, 0]


def _parquet_folder(directory: Path) -> Path | None:
    folders = [directory / name for name in _PARQUET_FOLDERS]
    return next((folder for folder in folders if any(folder.glob("train-*.parquet"))), None)


def _read_parquet(path: Path) -> Iterator[tuple[Bytes, Bytes]]:
    """Yield planes (n, 3, 32, 32) and labels (n,) of a file with the columns img (PNG images) and label."""
    parquet = _pyarrow(path)
    try:
        with parquet.ParquetFile(path) as file:
            rows, names = file.metadata.num_rows, set(file.schema_arrow.names)
            if not {"img", "label"} <= names:
                raise wrong(path, f"its columns are {sorted(names)}; they should be img and label")
            if rows > TRAIN:
                raise wrong(path, f"it has {rows:,} rows; it should have at most {TRAIN:,}")
            for batch in file.iter_batches(_ROWS, columns=["img", "label"]):
                yield _rows(path, batch.column("img").to_pylist(), batch.column("label").to_pylist())
    except DataFormatError:
        raise
    except (OSError, ValueError, import_module("pyarrow").ArrowException) as error:
        raise wrong(path, f"it is truncated, damaged or no parquet file ({error})") from error


def _rows(path: Path, images: list[Any], labels: list[Any]) -> tuple[Bytes, Bytes]:
    contents: list[bytes] = []
    for image, label in zip(images, labels, strict=True):
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes) or len(content) > _LARGEST_PNG:
            raise wrong(path, "an image is not the bytes of a small PNG file")
        contents.append(content)
        if not isinstance(label, int) or not 0 <= label <= 9:
            raise wrong(path, f"it holds the label {label!r}; labels are the numbers 0 … 9")
    pixels = decode_png(contents, [f"an image in {path}"] * len(contents), (SIDE, SIDE, 3))
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), np.array(labels, dtype=np.uint8)


def _pyarrow(path: Path) -> Any:
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingDataError(
            f"{path} needs pyarrow, which is not installed: run `pip install pyarrow`, or use the official binary "
            f"version of CIFAR-10 from {SOURCE}"
        ) from error
