"""The orders in which the pixels of an image are read."""

from functools import cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.streams import permutation

__all__ = ["PixelOrder", "check_order", "pixel_order"]

PixelOrder = Literal["none", "bit-reversal", "random"]

_RANDOM = 1000  # which permutation of the fixed streams; the classes' own have numbers below


def check_order(given: str) -> None:
    """Raise ValueError for an order that does not exist."""
    if given not in get_args(PixelOrder):
        raise ValueError(f"permuted is {given!r}; it is one of {', '.join(get_args(PixelOrder))}")


@cache
def pixel_order(order: PixelOrder, length: int) -> NDArray[np.int64]:  # (length,)
    """Return which pixel, counted row by row, is read at each step (read-only).

    "bit-reversal" counts through the smallest power of two that holds the length, reverses the bits of each number and
    leaves out those that are no pixel, as the S4 repository does. "random" is one permutation, the same for every data
    seed; published ones come from numpy's RandomState(92916) and differ.
    """
    if order == "none":
        places = np.arange(length, dtype=np.int64)
    elif order == "bit-reversal":
        bits = (length - 1).bit_length()
        turned = [int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits)]
        places = np.array([number for number in turned if number < length], dtype=np.int64)
    else:
        places = permutation(0, "split", _RANDOM, length)
    places.flags.writeable = False
    return places
