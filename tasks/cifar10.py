"""CIFAR-10 in colour, pixel by pixel: sequential CIFAR."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from specreg.tasks.cifar_files import (
    SIDE,
    CIFARTask,
    Images,
    chosen_images,
    colour_files,
    pooled,
    read_colour,
)
from specreg.tasks.pixel_orders import PixelOrder, check_order, pixel_order
from specreg.tasks.task import Batch, SpectralNeed, Split

__all__ = ["CIFAR10"]

MEANS, STDS = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
"""Means and standard deviations of red, green and blue as the S4 repository gives them, on a scale of 0 … 1."""


@dataclass(frozen=True, kw_only=True)
class CIFAR10(CIFARTask):
    """CIFAR-10 in colour as sequences of 1024 pixels with three values each: sequential CIFAR (sCIFAR).

    Probes long memory of a real signal: neighbouring rows lie 32 steps apart. An image is read row by row; values are
    ((red, green, blue)/255 − (0.4914, 0.4822, 0.4465))/(0.247, 0.243, 0.261), as in the S4 repository. No augmentation.
    With `permuted` the pixels of every image are read in another order: "bit-reversal" of the numbers of the pixels, as
    the S4 repository's "br", or "random", one permutation that is the same for every seed.

    Sizes: 45,000 for training, 5,000 for validation, 10,000 for test, which is the official test set in its order. The
    split of the 50,000 is FIXED, the same for every seed and the same as the grey task's: stratified, 500 validation
    images a class. The seed sets the order of training only. `length` 1024 is the published task; 256, 64 and 16 are
    means over blocks of 2×2, 4×4 and 8×8 pixels. Inputs (B, length, 3) float32, targets (B,), 10 classes.

    Chance: 0.1, the classes being equally many.

    Data: a directory (`data`, else the environment variable SPECREG_DATA, else ~/.cache/specreg) that holds the folder
    `cifar-10-batches-bin` of the official binary version, or its archive `cifar-10-binary.tar.gz`, read in place, or
    else the parquet files of the Hugging Face data set uoft-cs/cifar10 (train-*.parquet and test-*.parquet in
    `cifar10/plain_text`, `plain_text`, `cifar10` or itself; pyarrow is needed). What an archive or parquet files hold
    is kept in the user's cache folder. Read once a process, when first asked for.

    Source: Krizhevsky (2009), Learning Multiple Layers of Features from Tiny Images; as sequences, Gu, Goel, Ré (2021),
    arXiv:2111.00396.

    Raises ValueError for a length or order that does not exist; MissingDataError (a FileNotFoundError) and
    DataFormatError (a ValueError) when images are first asked for.
    """

    probes: ClassVar[str] = "long memory of a real signal"
    source: ClassVar[str] = "Krizhevsky 2009; Gu et al. 2021, arXiv:2111.00396"
    channels: ClassVar[int] = 3
    """Red, green and blue."""

    permuted: PixelOrder = "none"
    """The order in which pixels are read: "none" is row by row."""

    def __post_init__(self) -> None:
        """Check length and order."""
        super().__post_init__()
        check_order(self.permuted)

    @classmethod
    def tiny(cls) -> Self:
        """Return the images averaged to 8×8, and 1,000 of validation."""
        return cls(length=64, validation_examples=1000)

    @property
    def need(self) -> SpectralNeed:
        """Rows lie one side apart unless permuted, the first step `length` from the last."""
        return SpectralNeed(memory=self.length, periods=(self.side,) if self.permuted == "none" else ())

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """The image, row by row; None where it is permuted."""
        return (self.side, self.side) if self.permuted == "none" else None

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", sequential CIFAR, and the S4 repository's permuted one."""
        return {"tiny": cls.tiny(), "scifar": cls(), "pscifar": cls(permuted="bit-reversal")}

    def data_files(self) -> tuple[Path, ...]:
        """Return the files that are read; `digests` in `specreg.tasks.files` names their content."""
        return colour_files(self.directory)

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the images at `indices`."""
        pixels, labels = chosen_images(_load(self.directory), split, indices)
        sums = pooled(pixels, self.length)[..., pixel_order(self.permuted, self.length)]
        table = _normalised(SIDE * SIDE // self.length)
        values = np.stack([table[channel][sums[:, channel]] for channel in range(3)], axis=-1)
        return Batch(torch.from_numpy(values), torch.from_numpy(labels))


@cache
def _normalised(block: int) -> NDArray[np.float32]:  # (3, 255·block + 1)
    """Return the value of each possible sum over a block of so many pixels."""
    levels = np.arange(255 * block + 1) / (255 * block)
    values: NDArray[np.float32] = ((levels - np.array(MEANS)[:, None]) / np.array(STDS)[:, None]).astype(np.float32)
    return values


@cache
def _load(directory: Path) -> Images:
    """Read the images once a process."""
    return read_colour(directory, np.ascontiguousarray)
