"""Handwritten digits, 8×8, pixel by pixel, in their order or permuted: real images that need no file."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from specreg.tasks.pixel_orders import PixelOrder, check_order, pixel_order
from specreg.tasks.streams import stratified_order
from specreg.tasks.task import Batch, SpectralNeed, Split, Task

__all__ = ["Digits"]

_HELD_OUT = 270  # of the 1,797 images, for validation and as many for test
_LARGEST_PIXEL = 16.0  # a pixel counts the ink of a 4×4 block; /16 is exact in float32


@dataclass(frozen=True)
class _Images:
    values: NDArray[np.float32]  # (1797, 64, 1)
    labels: NDArray[np.int64]  # (1797,)
    members: dict[Split, NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Digits(Task):
    """The 1,797 handwritten digits of scikit-learn as sequences of 64 pixels.

    Probes memory of a short real signal: the smallest real image task, there wherever scikit-learn is. An 8×8 image is
    read row by row; a value is a pixel over 16, in [0, 1]. With `permuted` the pixels of every image are read in
    another order: "bit-reversal" of 0 … 63, which is how the S4 repository permutes MNIST, or "random", one permutation
    that is the same for every seed (published ones come from numpy's RandomState and differ).

    Sizes: 1,257 for training, 270 for validation, 270 for test. The split is FIXED, the same for every seed, so that
    results compare: stratified, 27 images of each class in either held-out part. The seed sets the order of training
    only. The writers of training and held-out images are not kept apart. Inputs (B, 64, 1) float32, targets (B,),
    10 classes.

    Chance: 0.1, the share of the commonest class in the test split, counted.

    Source: Alpaydin, Kaynak (1998), Optical Recognition of Handwritten Digits, UCI, doi:10.24432/C50P49, the test part,
    as shipped with scikit-learn (Pedregosa et al. 2011, arXiv:1201.0490).

    Raises ValueError for an order that does not exist.
    """

    probes: ClassVar[str] = "memory of a short real signal"
    source: ClassVar[str] = "Alpaydin, Kaynak 1998, doi:10.24432/C50P49"
    num_classes: ClassVar[int] = 10
    max_length: ClassVar[int] = 64

    permuted: PixelOrder = "none"
    """The order in which pixels are read: "none" is row by row."""

    def __post_init__(self) -> None:
        """Check the order."""
        super().__post_init__()
        check_order(self.permuted)

    @classmethod
    def tiny(cls) -> Self:
        """Return the task itself, which is small."""
        return cls()

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", which is row by row, and the two permuted tasks."""
        return {
            "tiny": cls.tiny(),
            "permuted-bit-reversal": cls(permuted="bit-reversal"),
            "permuted-random": cls(permuted="random"),
        }

    @property
    def chance(self) -> float:
        """The share of the commonest class in the test split."""
        images = _images()
        labels = images.labels[images.members["test"]]
        return float(np.bincount(labels).max() / labels.size)

    @property
    def need(self) -> SpectralNeed:
        """Rows lie 8 steps apart unless permuted, the first step 63 from the last."""
        return SpectralNeed(memory=64, periods=(8,) if self.permuted == "none" else ())

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """Eight rows of eight pixels; None where they are permuted."""
        return (8, 8) if self.permuted == "none" else None

    def size(self, split: Split) -> int:
        """Return the number of images in a split."""
        return int(_images().members[split].size)

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the images at `indices`."""
        images = _images()
        chosen = images.members[split][indices]
        values = images.values[chosen]
        if self.permuted != "none":
            values = values[:, pixel_order(self.permuted, 64)]
        return Batch(torch.from_numpy(values), torch.from_numpy(images.labels[chosen]))


@cache
def _images() -> _Images:
    # imported here: scikit-learn takes a second to import, which other tasks need not pay
    from sklearn.datasets import load_digits

    digits = load_digits()
    values = (digits.images.reshape(-1, 64, 1) / _LARGEST_PIXEL).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = stratified_order(labels)
    test, validation, train = np.split(order, [_HELD_OUT, 2 * _HELD_OUT])
    return _Images(values, labels, {"train": np.sort(train), "validation": validation, "test": test})
