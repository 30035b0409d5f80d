"""What the contours of Pathfinder are made of: published sizes, and stamps worked out once, in integers only.

A board is one Python integer, a bit a pixel, with a frame wide enough that no stamp wraps around; a paddle is placed by
one shift and tested by one AND. Directions are whole degrees. Sines come from a table of integers made in decimal
arithmetic, so that every processor draws the same pixels.
"""

from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

__all__ = ["GEOMETRY_VERSION", "End", "Geometry", "Tables", "inks", "published", "reach_of", "tables_of", "vector"]

GEOMETRY_VERSION = 1
"""Raised when other pixels are drawn from the same settings: images in caches are then drawn anew."""

End = tuple[int, int, int]
"""A weight, a shift from the ring's corner, a direction."""
Offset = tuple[int, int]
"""Rows and columns."""

_PI = "3.14159265358979323846264338327950288419716939937510582"
_TURN = 3600  # tenths of a degree
_ONE = 1 << 30  # of the sines


@dataclass(frozen=True)
class Geometry:
    """What is drawn, in pixels."""

    side: int
    contour_length: int
    """Paddles of each of the two long contours."""
    paddle_length: int
    thickness: int
    """Of a paddle, in units of 1/antialias pixel."""
    marker_radius: int
    """In units of 1/antialias pixel."""
    margins: tuple[int, ...]
    """The gap kept around paddles, one of these an image."""
    seed_distance: int
    """Between the first tips of the two contours."""
    continuity: int
    """How strongly a contour keeps its direction, in tenths."""
    distractor_length: int
    distractors: int
    target_contrast: int
    """In per cent of a marker's."""
    distractor_contrast: int
    in_turn: bool
    """Whether the two contours grow a paddle each in turn, as published, or one after the other."""
    padding: int = 1
    """Pixels left free at the edges."""
    antialias: int = 2
    """Fine pixels a pixel."""


# side: paddle length, thickness, marker radius, margins, seed distance, continuity, distractor paddles, contrasts
_SIDES = {
    16: (2, 1, 3, (1,), 3, 10, 4, 150, 200),
    32: (2, 1, 3, (1,), 7, 10, 20, 150, 200),
    64: (5, 2, 5, (1,), 12, 18, 22, 80, 80),
    128: (5, 3, 6, (2, 3), 20, 18, 35, 90, 90),
}


def published(side: int, contour_length: int) -> Geometry:
    """Return the settings of the Long Range Arena's images of a side of 32, 64 or 128; 16 is ours, for tests."""
    length, thickness, radius, margins, distance, continuity, paddles, target, distractor = _SIDES[side]
    short = max(1, contour_length // 3)
    return Geometry(
        side=side,
        contour_length=contour_length,
        paddle_length=length,
        thickness=thickness,
        marker_radius=radius,
        margins=margins,
        seed_distance=distance,
        continuity=continuity,
        distractor_length=short,
        distractors=paddles // short,
        target_contrast=target,
        distractor_contrast=distractor,
        in_turn=side < 64,  # on the larger boards one pair in 100 to 10,000 gets through
    )


@dataclass(frozen=True)
class Tables:
    """What is worked out once for a geometry and a margin; directions are whole degrees."""

    reach: int
    stride: int
    frame: int
    """The board's bits outside the free pixels."""
    wide_frame: int
    """The same, and all within the margin of it."""
    seeds: list[list[int]]
    """Where the first paddle of the first contour may start, by direction; directions without such a place are out."""
    seed_directions: list[int]
    corner: int
    """How far left of and above its start a stamp reaches, as a shift."""
    wide: list[int]
    """Stamps: where a paddle drawn here may meet no other."""
    core: list[int]
    """Stamps: what later paddles may not meet."""
    dilated: list[int]
    """Stamps: where no later paddle may end."""
    tip: list[int]
    """Shifts: from the pivot to the next one."""
    before: list[int]
    """Shifts: from a first paddle's start to its pivot."""
    ring_corner: int
    """How far left of and above the pivot the ring reaches, as a shift."""
    end_corner: int
    """The same of a stamp, from the end."""
    ring: int
    ends: list[tuple[list[int], list[End]]]
    """By direction: the ends that may come next, and their weights added up."""


@cache
def _sines() -> tuple[int, ...]:
    """Return the sine of each tenth of a degree in units of 2⁻³⁰, by powers of one rotation in 50 digits."""
    with localcontext(prec=50):
        step = Decimal(_PI) * 2 / _TURN
        terms = [Decimal(1)]
        for order in range(1, 20):
            terms.append(terms[-1] * step / order)
        cosine = sum((-1) ** (order // 2) * terms[order] for order in range(0, 20, 2))
        sine = sum((-1) ** (order // 2) * terms[order] for order in range(1, 20, 2))
        table, x, y = [], Decimal(1), Decimal(0)
        for _ in range(_TURN):
            table.append(int((y * _ONE).to_integral_value()))
            x, y = x * cosine - y * sine, x * sine + y * cosine
    return tuple(table)


def vector(degrees: int, distance: int) -> Offset:
    """Return the pixel nearest to a distance in a direction, 0 along a row and 90 down."""
    sines, tenths = _sines(), 10 * degrees
    row, column = sines[tenths % _TURN], sines[(tenths + _TURN // 4) % _TURN]
    return (distance * row + _ONE // 2) // _ONE, (distance * column + _ONE // 2) // _ONE


def reach_of(geometry: Geometry, margin: int) -> int:
    """How far from the image anything is looked at: from an end over the gap to the ring, or a stamp's box."""
    ring = geometry.paddle_length + 2 * margin + 2
    return max(ring, _box(geometry, margin) + margin, _box(geometry, 0))


def _box(geometry: Geometry, margin: int) -> int:
    """How far from its start a stamp reaches."""
    largest = max(geometry.thickness, geometry.marker_radius)
    return geometry.paddle_length + margin + -(-largest // geometry.antialias) + 1


@cache
def inks(geometry: Geometry) -> NDArray[np.int32]:  # (361, box, box)
    """Return the grey stamps of a paddle in each direction, and last that of a marker, full cover being antialias⁴."""
    box = _box(geometry, 0)
    lines = [_reduced(_fine_line(geometry, degrees, box), geometry.antialias) for degrees in range(360)]
    marker = _reduced(_fine_disc(geometry.marker_radius, box * geometry.antialias), geometry.antialias)
    return np.stack([*lines, marker]).astype(np.int32)


def _fine_line(geometry: Geometry, degrees: int, box: int) -> NDArray[np.int64]:
    """Return which fine pixels a paddle covers that starts at the middle: those whose centre lies in the rectangle."""
    reach = box * geometry.antialias
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.int64)
    sine, cosine = _sines()[10 * degrees], _sines()[(10 * degrees + _TURN // 4) % _TURN]
    along = rows * sine + columns * cosine
    across = 2 * (columns * sine - rows * cosine)
    half, length = geometry.thickness * _ONE, geometry.paddle_length * geometry.antialias * _ONE
    covered = (along >= 0) & (along <= length) & (across >= -half) & (across < half)
    return np.asarray(covered, dtype=np.int64)


def _fine_disc(radius: int, reach: int) -> NDArray[np.int64]:
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(rows**2 + columns**2 <= radius**2, dtype=np.int64)


def _reduced(fine: NDArray[np.int64], scale: int) -> NDArray[np.int64]:
    """Return means over the fine pixels around each pixel, weighted by a tent; full cover is scale⁴."""
    tent = scale - np.abs(np.arange(1 - scale, scale))
    padded = np.pad(fine, scale - 1)
    size = fine.shape[0]
    rows = sum(weight * padded[place : place + size] for place, weight in enumerate(tent.tolist()))
    both = sum(weight * rows[:, place : place + size] for place, weight in enumerate(tent.tolist()))
    return np.asarray(both)[::scale, ::scale]


def _dilated(picture: NDArray[np.int64], radius: int) -> NDArray[np.int64]:
    """Return where a disc of that radius around a pixel meets the picture."""
    grown = np.zeros_like(picture)
    disc = _fine_disc(radius, radius)
    padded = np.pad(picture, radius)
    for row, column in np.argwhere(disc).tolist():
        grown |= padded[row : row + picture.shape[0], column : column + picture.shape[1]]
    return grown


def _bits(picture: NDArray[np.bool_], stride: int) -> int:
    return sum(1 << (row * stride + column) for row, column in np.argwhere(picture).tolist())


@cache
def tables_of(geometry: Geometry, margin: int) -> Tables:
    reach = reach_of(geometry, margin)
    stride = geometry.side + 2 * reach
    box = _box(geometry, margin) + margin
    wide, core, dilated = _mask_stamps(geometry, margin, box, stride)
    tips = [vector(degrees, geometry.paddle_length + 2 * margin) for degrees in range(360)]
    backs = [vector(degrees + 180, margin) for degrees in range(360)]
    outside = np.ones((stride, stride), dtype=np.int64)
    edge = reach + geometry.padding
    outside[edge : stride - edge, edge : stride - edge] = 0
    seeds = _first_places(geometry, reach, stride)
    ring = geometry.paddle_length + margin
    ends = _next_ends(geometry, ring, stride)
    return Tables(
        reach=reach,
        stride=stride,
        frame=_bits(outside > 0, stride),
        wide_frame=_bits(_dilated(outside, margin) > 0, stride),
        seeds=seeds,
        seed_directions=[degrees for degrees, places in enumerate(seeds) if places],
        corner=box * (stride + 1),
        wide=wide,
        core=core,
        dilated=dilated,
        tip=[row * stride + column for row, column in tips],
        before=[row * stride + column for row, column in backs],
        ring_corner=ring * (stride + 1),
        end_corner=box * (stride + 1),
        ring=sum(1 << shift for shift in {end[1] for _, after in ends for end in after}),
        ends=ends,
    )


def _mask_stamps(geometry: Geometry, margin: int, box: int, stride: int) -> tuple[list[int], list[int], list[int]]:
    """Return the stamps of what a paddle keeps clear, by direction, from its line grown by the margin.

    Pixels covered by three quarters of it; those inked or wholly covered; and those within the margin of the latter.
    """
    scale = geometry.antialias
    wide, core, dilated = [], [], []
    for degrees in range(360):
        line = _fine_line(geometry, degrees, box)
        cover = _reduced(_dilated(line, margin * scale), scale)
        inked = 4 * _reduced(line, scale) >= scale**4
        kept = inked | (cover == scale**4)
        wide.append(_bits(inked | (4 * cover >= 3 * scale**4), stride))
        core.append(_bits(kept, stride))
        dilated.append(_bits(_dilated(kept.astype(np.int64), margin) > 0, stride))
    return wide, core, dilated


def _first_places(geometry: Geometry, reach: int, stride: int) -> list[list[int]]:
    """Return, by direction, the starts in the middle of the image from which a paddle's ink does not leave it."""
    low, high = 2 * geometry.seed_distance, geometry.side - 2 * geometry.seed_distance
    places = []
    for degrees in range(360):
        row, column = vector(degrees, geometry.paddle_length)
        places.append(
            [
                (y + reach) * stride + x + reach
                for y in range(low, high)
                for x in range(low, high)
                if low <= y + row < high and low <= x + column < high
            ]
        )
    return places


def _next_ends(geometry: Geometry, radius: int, stride: int) -> list[tuple[list[int], list[End]]]:
    """Return, by direction, the pixels of the ring with the weights cos²(min(continuity·turn, 90°)) that are not 0."""
    around = 710 * radius // 113  # 2π·radius, as many ends
    pixels = sorted({vector(360 * step // around, radius) for step in range(around)})
    shifts = [(row + radius) * stride + column + radius for row, column in pixels]
    towards = [_nearest_direction(row, column) for row, column in pixels]
    sines = _sines()
    after = []
    for degrees in range(360):
        turns = [min((new - degrees) % 360, (degrees - new) % 360) for new in towards]
        weights = [sines[_TURN // 4 - min(geometry.continuity * turn, _TURN // 4)] ** 2 >> 44 for turn in turns]
        ends = [end for end in zip(weights, shifts, towards, strict=True) if end[0]]
        after.append((list(accumulate(weight for weight, _, _ in ends)), ends))
    return after


def _nearest_direction(row: int, column: int) -> int:
    """Return the whole degree that points nearest to an offset."""
    sines = _sines()
    return max(range(360), key=lambda degrees: row * sines[10 * degrees] + column * sines[(10 * degrees + 900) % _TURN])
