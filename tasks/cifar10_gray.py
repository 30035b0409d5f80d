"""Grey CIFAR-10, pixel by pixel: the Image task of the Long Range Arena."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import ClassVar, Self
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from specreg.tasks.cifar_files import (
    SIDE,
    TEST,
    TRAIN,
    CIFARTask,
    Images,
    checked,
    chosen_images,
    colour_files,
    has_colour,
    missing,
    pooled,
    read_colour,
    wrong,
)
from specreg.tasks.files import DataFormatError
from specreg.tasks.task import Batch, SpectralNeed, Split

__all__ = ["CIFAR10Gray"]

MEAN, STD = 0.4808, 0.2389
"""Mean and standard deviation of the grey levels of the training images, on a scale of 0 … 1."""

_ARCHIVE = "cifar10-gray.npz"

# what zipfile, zlib and numpy's header reader raise on damaged bytes
_DAMAGE = (BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, TokenError)

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class CIFAR10Gray(CIFARTask):
    """CIFAR-10 in grey levels as sequences of pixels, the Image task of the Long Range Arena.

    Probes long memory of a real signal: neighbouring rows lie 32 steps apart. An image is read row by row; a value is
    (grey/255 − 0.4808)/0.2389, the mean and standard deviation of the training images.

    Sizes: 45,000 for training, 5,000 for validation, 10,000 for test, which is the official test set in its order. The
    split of the 50,000 is FIXED, the same for every seed, so that results compare: stratified, 500 validation images a
    class. The seed sets the order of training only. `length` 1024 is the published task; 256, 64 and 16 are means over
    blocks of 2×2, 4×4 and 8×8 pixels, with the same two constants. Inputs (B, length, 1) float32, targets (B,),
    10 classes.

    Chance: 0.1, the classes being equally many.

    Data: a directory (`data`, else the environment variable SPECREG_DATA, else ~/.cache/specreg) that holds
    `cifar10-gray.npz` (uint8 arrays train_images (50000, 32, 32), train_labels, test_images (10000, 32, 32),
    test_labels), or else the folder `cifar-10-batches-bin` of the official binary version or its archive
    `cifar-10-binary.tar.gz`, read in place, or else the parquet files of the Hugging Face data set uoft-cs/cifar10
    (train-*.parquet and test-*.parquet in `cifar10/plain_text`, `plain_text`, `cifar10` or itself; pyarrow is needed;
    what an archive or parquet files hold is kept in the user's cache folder), each made grey by ITU-R 601 luma, (19595
    R + 38470 G + 7471 B + 32768) >> 16. An archive made from another copy of the images may differ by a few grey levels
    and hold them in another order, and then other images are held out: compare runs on the same files. Read once a
    process, when first asked for.

    Source: Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images; the task, Tay et al. (2020),
    arXiv:2011.04006.

    Raises ValueError for a length that is none of 16, 64, 256, 1024; MissingDataError (a FileNotFoundError) and
    DataFormatError (a ValueError) when images are first asked for.
    """

    probes: ClassVar[str] = "long memory of a real signal"
    source: ClassVar[str] = "Krizhevsky 2009; Tay et al. 2020, arXiv:2011.04006"

    @classmethod
    def tiny(cls) -> Self:
        """Return the images averaged to 8×8, and 1,000 of validation."""
        return cls(length=64, validation_examples=1000)

    @property
    def need(self) -> SpectralNeed:
        """Rows lie one side apart, the first pixel `length` from the last."""
        return SpectralNeed(memory=self.length, periods=(self.side,))

    @property
    def image_shape(self) -> tuple[int, int]:
        """The image, row by row."""
        return self.side, self.side

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and the Long Range Arena's Image task."""
        return {"tiny": cls.tiny(), "lra-image": cls()}

    def data_files(self) -> tuple[Path, ...]:
        """Return the files that are read; `digests` in `specreg.tasks.files` names their content."""
        return _sources(self.directory)

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the images at `indices`."""
        pixels, labels = chosen_images(_load(self.directory), split, indices)
        values = _normalised(SIDE * SIDE // self.length)[pooled(pixels, self.length)[..., None]]
        return Batch(torch.from_numpy(values), torch.from_numpy(labels))


@cache
def _normalised(block: int) -> NDArray[np.float32]:
    """Return the value of each possible sum over so many pixels; a table is the same everywhere, and quick."""
    largest = 255 * block
    return ((np.arange(largest + 1) / largest - MEAN) / STD).astype(np.float32)


@cache
def _load(directory: Path) -> Images:
    """Read the images once a process, from the archive where there is one, else from colour images."""
    first, *_ = _sources(directory)
    return _read_archive(first) if first.name == _ARCHIVE else read_colour(directory, _luma)


def _sources(directory: Path) -> tuple[Path, ...]:
    archive = directory / _ARCHIVE
    if archive.is_file():
        return (archive,)
    if has_colour(directory):
        return colour_files(directory)
    arrays = "uint8 arrays train_images, train_labels, test_images, test_labels"
    raise missing(directory, f", or put {_ARCHIVE} ({arrays}) in that directory")


def _luma(
    planes: Bytes,  # (n, 3, 32, 32)
) -> Bytes:  # (n, 32, 32)
    red, green, blue = planes.transpose(1, 0, 2, 3).astype(np.uint32)
    grey = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return np.asarray(grey, dtype=np.uint8)


def _read_archive(path: Path) -> Images:
    expected = {
        "train_images": (TRAIN, SIDE, SIDE),
        "train_labels": (TRAIN,),
        "test_images": (TEST, SIDE, SIDE),
        "test_labels": (TEST,),
    }
    content = BytesIO(path.read_bytes())  # what the file system refuses is said here, and damage alone below
    try:
        with ZipFile(content) as archive:
            train, train_labels, test, test_labels = (
                _read_array(path, archive, name, shape) for name, shape in expected.items()
            )
    except DataFormatError:
        raise
    except _DAMAGE as error:
        raise wrong(path, f"the archive is truncated or damaged ({error})") from error
    return checked(path, train, train_labels, test, test_labels)


def _read_array(path: Path, archive: ZipFile, name: str, shape: tuple[int, ...]) -> Bytes:
    """Return one array; its header is compared before the rest is read: a damaged file cannot ask for memory."""
    if f"{name}.npy" not in archive.namelist():
        raise wrong(path, f"it has no array {name!r}")
    count = math.prod(shape)
    with archive.open(f"{name}.npy") as member:
        try:
            version = np.lib.format.read_magic(member)
            found, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        except ValueError as error:
            raise wrong(path, f"{name} has no readable header ({error})") from error
        if (found, fortran, dtype, version) != (shape, False, np.dtype(np.uint8), (1, 0)):
            raise wrong(path, f"{name} is {dtype} {found}; it should be uint8 {shape}, in C order")
        content = member.read(count + 1)  # a byte more, so that the end is met and the checksum compared
    if len(content) != count:
        raise wrong(path, f"{name} holds {'more' if len(content) > count else 'fewer'} than {count:,} bytes")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
