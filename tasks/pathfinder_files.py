"""The official Pathfinder images: PNG files, and lists of them that are named .npy but are text."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.files import ENVIRONMENT_VARIABLE, DataFormatError, MissingDataError
from specreg.tasks.png import decode_png
from specreg.tasks.streams import stratified_order
from specreg.tasks.task import Split

__all__ = ["LEVELS", "OfficialImages", "official_images", "read_images"]

LEVELS = {6: "curv_baseline", 9: "curv_contour_length_9", 14: "curv_contour_length_14"}
"""The folder of the images with contours of so many paddles."""

_EMPTY = {("pathfinder32", "curv_baseline", "imgs/0/sample_172.png")}
_FOLDER = re.compile(r"imgs/[0-9]{1,9}")
_NAME = re.compile(r"sample_[0-9]{1,9}\.png")
_LARGEST_LIST = 1 << 24  # bytes; an official list has 1,000 lines of about 60
_LARGEST_IMAGE = 1 << 20
_LEAST_IMAGES = 10  # so that each split has one


@dataclass(frozen=True)
class OfficialImages:
    """What the lists name, in their order."""

    folder: Path
    names: tuple[str, ...]
    """Paths in the folder."""
    labels: NDArray[np.int64]
    """1 where the markers stand on one contour."""
    members: dict[Split, NDArray[np.int64]]
    """Which of them each split holds: a tenth for validation and for test, the rest for training."""


@cache
def official_images(directory: Path, side: int, level: str) -> OfficialImages:
    """Return the images of a side and level; the lists are read once a process.

    Raises MissingDataError where they are not there, DataFormatError where a list is not as it should be.
    """
    folder = next(
        (found for found in _candidates(directory, side, level) if (found / "metadata").is_dir()),
        None,
    )
    if folder is None:
        raise MissingDataError(
            f"the official Pathfinder images were not found: there is no folder pathfinder{side}/{level}/metadata in "
            f"{directory}. Unpack lra_release.gz of https://github.com/google-research/long-range-arena there, or name "
            f"another directory by the task's `data` field or the environment variable {ENVIRONMENT_VARIABLE}"
        )
    lists = sorted((folder / "metadata").glob("*.npy"), key=_number)
    if not lists:
        raise MissingDataError(f"{folder / 'metadata'} holds no list (*.npy); unpack the whole of lra_release.gz")
    entries = [entry for path in lists for entry in _entries(path)]
    skipped = {name for root, where, name in _EMPTY if (root, where) == (f"pathfinder{side}", level)}
    kept = [(name, label) for name, label in entries if name not in skipped]
    if len(kept) < _LEAST_IMAGES:
        raise _wrong(folder / "metadata", f"the lists name {len(kept)} images; {_LEAST_IMAGES} are needed at least")
    labels = np.array([label for _, label in kept], dtype=np.int64)
    return OfficialImages(folder, tuple(name for name, _ in kept), labels, _split(labels))


def read_images(
    images: OfficialImages,
    chosen: NDArray[np.int64],  # (B,)
    side: int,
) -> NDArray[np.uint8]:  # (B, side, side)
    """Return the pixels of some of the images."""
    paths = [images.folder / images.names[index] for index in chosen.tolist()]
    return decode_png([_content(path) for path in paths], paths, (side, side, 1))[..., 0]


def _split(labels: NDArray[np.int64]) -> dict[Split, NDArray[np.int64]]:
    held_out = labels.size // 10
    validation, test, train = np.split(stratified_order(labels), [held_out, 2 * held_out])
    return {"train": np.sort(train), "validation": validation, "test": test}


def _candidates(directory: Path, side: int, level: str) -> list[Path]:
    inside = Path(f"pathfinder{side}", level)
    return [directory / inside, directory / "lra_release" / inside, directory / "lra_release" / "lra_release" / inside]


def _number(path: Path) -> int:
    if not path.stem.isdecimal():
        raise DataFormatError(
            f"{path} is not one of the official lists, which are called 0.npy, 1.npy, …; move it away"
        )
    return int(path.stem)


def _entries(path: Path) -> list[tuple[str, int]]:
    """Return the names and labels of one list: lines of folder, file, number, label and settings."""
    if path.stat().st_size > _LARGEST_LIST:
        raise _wrong(path, f"it has {path.stat().st_size:,} bytes; a list has at most {_LARGEST_LIST:,}")
    content = path.read_bytes()
    if content.startswith(b"\x93NUMPY"):
        raise _wrong(path, "it is a numpy array; the official lists are text, whatever their name says")
    try:
        lines = content.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise _wrong(path, "it is not text") from error
    return [_entry(path, number, line) for number, line in enumerate(lines, 1)]


def _entry(path: Path, number: int, line: str) -> tuple[str, int]:
    words = line.split()
    if len(words) < 4 or not _FOLDER.fullmatch(words[0]) or not _NAME.fullmatch(words[1]) or words[3] not in ("0", "1"):
        raise _wrong(
            path, f"line {number} is {line[:80]!r}; it should be like 'imgs/0 sample_3.png 3 1 …', the label 0 or 1"
        )
    return f"{words[0]}/{words[1]}", int(words[3])


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise MissingDataError(f"{path} is missing; unpack the whole of lra_release.gz")
    if path.stat().st_size > _LARGEST_IMAGE:
        raise DataFormatError(f"{path} has {path.stat().st_size:,} bytes; an image has at most {_LARGEST_IMAGE:,}")
    return path.read_bytes()


def _wrong(path: Path, what: str) -> DataFormatError:
    return DataFormatError(f"{path} is not a list of Pathfinder images as it should be: {what}")
