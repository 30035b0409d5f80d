"""Sequential and permuted MNIST: handwritten digits, 28×28, pixel by pixel, from the user's files."""

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from specreg.tasks.files import ENVIRONMENT_VARIABLE, DataFormatError, Download, MissingDataError
from specreg.tasks.pixel_orders import PixelOrder, check_order, pixel_order
from specreg.tasks.streams import permutation
from specreg.tasks.task import Batch, FileTask, SpectralNeed, Split

__all__ = ["MNIST"]

_SIDE = 28
_TRAIN, _TEST, _VALIDATION = 60_000, 10_000, 6_000
_FOLDERS = ("", "mnist", "MNIST", "MNIST/raw")
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", _TRAIN),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", _TEST),
}
_SOURCE = "https://storage.googleapis.com/cvdf-datasets/mnist"
_DIGESTS = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class _Images:
    train: Bytes  # (60000, 784)
    train_labels: NDArray[np.int64]  # (60000,)
    test: Bytes  # (10000, 784)
    test_labels: NDArray[np.int64]  # (10000,)


@dataclass(frozen=True, kw_only=True)
class MNIST(FileTask):
    """MNIST as sequences of 784 pixels: sequential, or permuted so that neighbours lie far apart.

    Probes long memory of a real signal: the borders of an image are empty, so what is written must be kept for a
    hundred steps and more. A value is a pixel over 255, in [0, 1], not normalised, as in the S4 repository. `permuted`
    names the order of the pixels, the same for every image: "none" is row by row (sMNIST); "bit-reversal" is the S4
    repository's psMNIST; "random" is one permutation, the same for every seed, where others take numpy's
    RandomState(92916), which differs. Say which one a number belongs to.

    Sizes: 54,000 for training, 6,000 for validation, 10,000 for test, which is the official test set in its order. The
    split of the 60,000 is FIXED, the same for every seed, and not the S4 repository's draw. The seed sets the order of
    training only. Inputs (B, 784, 1) float32, targets (B,), 10 classes.

    Chance: 0.1135, the share of the commonest class (1) in the official test set.

    Data: a directory (`data`, else the environment variable SPECREG_DATA, else ~/.cache/specreg) that holds, itself or
    in `mnist`, `MNIST` or `MNIST/raw`, the four official files `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`,
    `t10k-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`, as they are or with .gz. Read in place, once a process, when
    first asked for. Data sets of the same layout (Fashion-MNIST) are read as well; their chance level is another.

    Source: LeCun, Bottou, Bengio, Haffner (1998), doi:10.1109/5.726791; as sequences, Le, Jaitly, Hinton (2015),
    arXiv:1504.00941.

    Raises ValueError for an order that does not exist; MissingDataError (a FileNotFoundError) and DataFormatError (a
    ValueError) when images are first asked for.
    """

    probes: ClassVar[str] = "long memory of a real signal"
    source: ClassVar[str] = "LeCun et al. 1998, doi:10.1109/5.726791; Le et al. 2015, arXiv:1504.00941"
    num_classes: ClassVar[int] = 10
    max_length: ClassVar[int] = _SIDE * _SIDE
    chance: ClassVar[float] = 0.1135
    """The share of ones in the official test set, 1135 of 10,000."""

    permuted: PixelOrder = "none"
    """The order in which pixels are read: "none" is row by row."""

    def __post_init__(self) -> None:
        """Check the order."""
        super().__post_init__()
        check_order(self.permuted)

    @classmethod
    def tiny(cls) -> Self:
        """Return sequential MNIST with 200 images of validation; the files hold no smaller one."""
        return cls(validation_examples=200)

    @property
    def need(self) -> SpectralNeed:
        """Rows lie 28 steps apart unless permuted, the first step 783 from the last."""
        return SpectralNeed(memory=self.max_length, periods=(_SIDE,) if self.permuted == "none" else ())

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """The image, row by row; None where it is permuted."""
        return (_SIDE, _SIDE) if self.permuted == "none" else None

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", sMNIST, psMNIST as the S4 repository has it, and psMNIST with a random permutation."""
        return {
            "tiny": cls.tiny(),
            "smnist": cls(),
            "psmnist": cls(permuted="bit-reversal"),
            "psmnist-random": cls(permuted="random"),
        }

    def data_files(self) -> tuple[Path, ...]:
        """Return the four files, as they are or packed."""
        folder = _folder(self.directory)
        return tuple(_found(folder, name) for images, labels, _ in _FILES.values() for name in (images, labels))

    def downloads(self) -> tuple[Download, ...]:
        """Return the four official files, packed, in a folder of their own."""
        digests = _DIGESTS.items()
        return tuple(Download(f"{_SOURCE}/{name}", f"mnist/{name}", sha256, 20 << 20) for name, sha256 in digests)

    def whole(self, split: Split) -> int:
        """Return the number of images in a split."""
        return {"train": _TRAIN - _VALIDATION, "validation": _VALIDATION, "test": _TEST}[split]

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the images at `indices`."""
        images = _load(self.directory)
        if split == "test":
            pixels, labels = images.test[indices], images.test_labels[indices]
        else:
            chosen = _members(split)[indices]
            pixels, labels = images.train[chosen], images.train_labels[chosen]
        values = _scale()[pixels[:, pixel_order(self.permuted, self.max_length), None]]
        return Batch(torch.from_numpy(values), torch.from_numpy(labels))


@cache
def _scale() -> NDArray[np.float32]:
    return (np.arange(256) / 255).astype(np.float32)


@cache
def _members(split: Split) -> NDArray[np.int64]:
    """Return which of the 60,000 training images a split holds."""
    validation, train = np.split(permutation(0, "split", 0, _TRAIN), [_VALIDATION])
    return np.sort(train) if split == "train" else validation


@cache
def _load(directory: Path) -> _Images:
    """Read the images once a process."""
    folder = _folder(directory)
    (train, train_labels), (test, test_labels) = (
        (
            _read(folder, images, (count, _SIDE, _SIDE)).reshape(count, -1),
            _read_labels(folder, labels, count),
        )
        for images, labels, count in _FILES.values()
    )
    return _Images(train, train_labels, test, test_labels)


def _folder(directory: Path) -> Path:
    """Return the first folder that holds one of the files."""
    folders = [directory / name for name in _FOLDERS]
    for folder in folders:
        if any(_path(folder, name) is not None for images, labels, _ in _FILES.values() for name in (images, labels)):
            return folder
    names = ", ".join(name for images, labels, _ in _FILES.values() for name in (images, labels))
    raise MissingDataError(
        f"MNIST was not found in {directory} or its folders {', '.join(_FOLDERS[1:])}. Download {names} (with .gz, "
        f"12 MB in all) from {_SOURCE} to one of them; another directory is named by the task's `data` field (`--data` "
        f"on the command line) or the environment variable {ENVIRONMENT_VARIABLE}"
    )


def _path(folder: Path, name: str) -> Path | None:
    """Return the file of that name, unpacked or not; some copies write a dot before idx."""
    spelt = (name, name.replace("-idx", ".idx"))
    candidates = [folder / f"{given}{packed}" for packed in ("", ".gz") for given in spelt]
    return next((path for path in candidates if path.is_file()), None)


def _found(folder: Path, name: str) -> Path:
    path = _path(folder, name)
    if path is None:
        raise MissingDataError(f"{folder / name} is missing, with or without .gz; download it from {_SOURCE}")
    return path


def _read_labels(folder: Path, name: str, count: int) -> NDArray[np.int64]:
    labels = _read(folder, name, (count,))
    if labels.max() > 9:
        raise _wrong(folder / name, f"it holds the label {labels.max()}; labels are 0 … 9")
    return labels.astype(np.int64)


def _read(folder: Path, name: str, shape: tuple[int, ...]) -> Bytes:
    """Return the array of an IDX file, no more of which is read or unpacked than there should be."""
    path = _found(folder, name)
    header = bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4) for size in shape)
    expected = len(header) + int(np.prod(shape))
    content = _content(path, expected + 1)
    if content[: len(header)] != header:
        sizes = "×".join(map(str, shape))
        raise _wrong(
            path, f"it does not begin as an IDX file of {sizes} bytes does (magic number 0x{header[:4].hex()})"
        )
    if len(content) != expected:
        raise _wrong(path, f"it has {'more' if len(content) > expected else 'fewer'} than {expected:,} bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(shape)


def _content(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        if path.suffix != ".gz":
            return file.read(most)
        try:
            with gzip.open(file) as unpacked:
                return unpacked.read(most)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _wrong(path, f"it is truncated or damaged ({error})") from error


def _wrong(path: Path, what: str) -> DataFormatError:
    return DataFormatError(f"{path} is not MNIST as it should be: {what}. Replace it: the files are at {_SOURCE}")
