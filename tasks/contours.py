"""Contours of dashes as in the Pathfinder challenge, grown on bitboards: integer arithmetic only."""

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.contour_stamps import End, Geometry, Tables, inks, reach_of, tables_of, vector
from specreg.tasks.streams import words

__all__ = ["draw_images"]

Bytes = NDArray[np.uint8]
Paddle = tuple[int, int]  # where it starts on the board and the direction in which it is drawn
Contour = list[Paddle]

_WORDS = 512  # drawn at a time for one image
_SEED_TRIES = 64  # places tried for a distractor's first paddle
_PADDLE_TRIES = 3  # ends drawn for one paddle before its contour is given up, as published
_DISTRACTOR_TRIES = 5  # contours drawn for one distractor before it is left out, as published
_PAIR_TRIES = 100_000  # of the two contours; at the published settings one in 10 to 400 succeeds
_SECOND_TRIES = 300  # of the second, where it is grown after the first


def draw_images(
    geometry: Geometry,
    keys: NDArray[np.uint64],  # (B,)
    connected: NDArray[np.bool_],  # (B,)
) -> Bytes:  # (B, side, side)
    """Draw one image a key; where `connected`, the two markers stand at the ends of one contour.

    Raises ValueError where the contours find no room.
    """
    first = words(keys, 0, _WORDS).tolist()
    canvas = _Canvas(geometry, keys.size)
    for row, (drawn, same) in enumerate(zip(first, connected.tolist(), strict=True)):
        _draw_one(geometry, _Draws(keys[row : row + 1], drawn), bool(same), canvas, row)
    return canvas.finished()


class _Draws:
    """The words of one key, one after another."""

    def __init__(self, key: NDArray[np.uint64], first: list[int]) -> None:
        self._next = self._endless(key, first).__next__

    @staticmethod
    def _endless(key: NDArray[np.uint64], block: list[int]) -> Iterator[int]:
        start = 0
        while True:
            yield from block
            start += len(block)
            block = words(key, start, _WORDS)[0].tolist()

    def below(self, bound: int) -> int:
        """Return an integer uniform on 0 … bound − 1, by the rule of `streams.below`."""
        return ((self._next() >> 32) * bound) >> 32


def _draw_one(geometry: Geometry, draws: _Draws, connected: bool, canvas: "_Canvas", row: int) -> None:
    tables = tables_of(geometry, geometry.margins[draws.below(len(geometry.margins))])
    board = _Board(tables, geometry.side, draws)
    for _ in range(_PAIR_TRIES):
        pair = board.two_contours(geometry.contour_length, geometry.seed_distance, geometry.in_turn)
        if pair is not None:
            break
    else:
        raise ValueError(
            f"no two contours of {geometry.contour_length} paddles were found in {_PAIR_TRIES:,} tries at "
            f"{geometry.side}×{geometry.side}; give a smaller contour_length"
        )
    canvas.marks(row, tables, pair[draws.below(2)] if connected else _crossed(pair, draws.below(2)))
    for contour in pair:
        canvas.paddles(row, tables, contour, geometry.target_contrast)
    for _ in range(geometry.distractors):
        canvas.paddles(row, tables, board.distractor(geometry.distractor_length), geometry.distractor_contrast)


def _crossed(pair: tuple[Contour, Contour], first: int) -> Contour:
    """Return the first paddle of one contour and the last of the other."""
    return [pair[first][0], pair[1 - first][-1]]


class _Board:
    """What is taken, as the contours grow."""

    def __init__(self, tables: Tables, side: int, draws: _Draws) -> None:
        self._tables, self._side, self._draws = tables, side, draws
        self._taken, self._no_end = tables.frame, tables.wide_frame

    def two_contours(self, length: int, distance: int, in_turn: bool) -> tuple[Contour, Contour] | None:
        """Grow two contours, a paddle each in turn or one after the other; None, and nothing taken, where one fails."""
        tables, draws = self._tables, self._draws
        direction = tables.seed_directions[draws.below(len(tables.seed_directions))]
        places = tables.seeds[direction]
        start = places[draws.below(len(places))]
        first = _Growing(tables, start, direction)
        if in_turn:
            second = self._rival(first, start, distance)
            if second is None or not self._grow((first, second), length):
                return None
            return first.paddles, second.paddles
        before = self._taken, self._no_end
        if self._grow((first,), length):
            for _ in range(_SECOND_TRIES):
                second = self._rival(first, start, distance)
                if second is not None and self._grow((second,), length):
                    return first.paddles, second.paddles
            self._taken, self._no_end = before
        return None

    def _rival(self, first: "_Growing", start: int, distance: int) -> "_Growing | None":
        """Return the first paddle of the second contour; None where it meets what is there."""
        tables = self._tables
        row, column = vector(self._draws.below(360), distance)
        place, direction = start + row * tables.stride + column, self._draws.below(360)
        if ((self._taken | first.last) >> (place - tables.corner)) & tables.wide[direction]:
            return None
        return _Growing(tables, place, direction)

    def _grow(self, contours: "tuple[_Growing, ...]", length: int) -> bool:
        """Grow first paddles to whole contours, a paddle each in turn; False, and nothing taken, where one fails."""
        taken, no_end = self._taken, self._no_end
        for _ in range(length - 1):
            for this, rival in zip(contours, contours[::-1], strict=True):
                last, last_dilated = this.last, this.last_dilated
                if rival is this:
                    grown = this.extend(self._draws, taken, no_end)
                else:
                    grown = this.extend(self._draws, taken | rival.last, no_end | rival.last_dilated)
                if not grown:
                    return False
                taken |= last
                no_end |= last_dilated
        for contour in contours:
            taken |= contour.last
            no_end |= contour.last_dilated
        self._taken, self._no_end = taken, no_end
        return True

    def distractor(self, length: int) -> Contour:
        """Grow one short contour; an empty one where no room is found."""
        for _ in range(_DISTRACTOR_TRIES):
            contour = self._seed()
            if contour is None:
                return []
            if self._grow((contour,), length):
                return contour.paddles
        return []

    def _seed(self) -> "_Growing | None":
        """Return a first paddle, uniform over the places where it is free; None where none was found."""
        tables, draws, side = self._tables, self._draws, self._side
        direction = draws.below(360)
        stamp, corner, taken = tables.wide[direction], tables.corner, self._taken
        for _ in range(_SEED_TRIES):
            place = draws.below(side * side)
            start = (place // side + tables.reach) * tables.stride + place % side + tables.reach
            if not (taken >> (start - corner)) & stamp:
                return _Growing(tables, start, direction)
        return None


class _Growing:
    """A contour under way: where it turns next and what its last paddle takes."""

    __slots__ = ("_direction", "_pivot", "_tables", "last", "last_dilated", "paddles")

    def __init__(self, tables: Tables, start: int, direction: int) -> None:
        self._tables = tables
        self._pivot = start + tables.before[direction]
        self._direction = direction
        self.paddles: Contour = [(start, direction)]
        self.last = tables.core[direction] << (start - tables.corner)
        self.last_dilated = tables.dilated[direction] << (start - tables.corner)

    def extend(self, draws: _Draws, taken: int, no_end: int) -> bool:
        """Add a paddle that ends where `no_end` is free and keeps off `taken`; False where three tries fail."""
        tables = self._tables
        pivot = self._pivot + tables.tip[self._direction]
        above = pivot - tables.ring_corner
        sums, ends = tables.ends[self._direction]
        blocked = (no_end >> above) & tables.ring
        if blocked:
            sums, ends = _unblocked(ends, blocked)
            if not sums:
                return False
        corner, wide = above - tables.end_corner, tables.wide
        for _ in range(_PADDLE_TRIES):
            _, end, direction = ends[bisect_right(sums, draws.below(sums[-1]))]
            drawn = direction - 180 if direction >= 180 else direction + 180  # from its end back to the gap
            if not (taken >> (corner + end)) & wide[drawn]:
                break
        else:
            return False
        self._pivot, self._direction = pivot, direction
        self.paddles.append((above + end, drawn))
        self.last = tables.core[drawn] << (corner + end)
        self.last_dilated = tables.dilated[drawn] << (corner + end)
        return True


def _unblocked(ends: list[End], blocked: int) -> tuple[list[int], list[End]]:
    sums, free, total = [], [], 0
    for end in ends:
        if not (blocked >> end[1]) & 1:
            total += end[0]
            sums.append(total)
            free.append(end)
    return sums, free


class _Canvas:
    """The grey images of a batch: stamps are collected, then laid on one another by their maximum."""

    def __init__(self, geometry: Geometry, count: int) -> None:
        self._geometry, self._count = geometry, count
        self._reach = max(reach_of(geometry, margin) for margin in geometry.margins)
        self._stride = geometry.side + 2 * self._reach
        self._places: list[int] = []
        self._stamps: list[int] = []
        self._contrasts: list[int] = []

    def paddles(self, row: int, tables: Tables, contour: Contour, contrast: int) -> None:
        """Draw every paddle of a contour."""
        for start, direction in contour:
            self._stamp(row, tables, start, direction, contrast)

    def marks(self, row: int, tables: Tables, contour: Contour) -> None:
        """Draw the two markers, at the first start and the last end."""
        for start, _ in (contour[0], contour[-1]):
            self._stamp(row, tables, start, 360, 100)

    def _stamp(self, row: int, tables: Tables, start: int, stamp: int, contrast: int) -> None:
        down, right = divmod(start, tables.stride)
        place = (down - tables.reach + self._reach) * self._stride + right - tables.reach + self._reach
        self._places.append(row * self._stride**2 + place)
        self._stamps.append(stamp)
        self._contrasts.append(contrast)

    def finished(self) -> Bytes:
        """Return the images, each scaled so that its brightest pixel is 255, as the published ones are."""
        side, reach, stride = self._geometry.side, self._reach, self._stride
        pages = np.zeros(self._count * stride * stride, dtype=np.int32)
        stamps = inks(self._geometry)
        around = np.arange(stamps.shape[1]) - stamps.shape[1] // 2
        places = np.array(self._places)[:, None, None] + around[:, None] * stride + around
        values = stamps[self._stamps] * np.array(self._contrasts, dtype=np.int32)[:, None, None]
        seen = values > 0
        np.maximum.at(pages, places[seen], values[seen])
        images = pages.reshape(-1, stride, stride)[:, reach : reach + side, reach : reach + side]
        brightest = images.max(axis=(1, 2), keepdims=True)
        scaled: Bytes = ((images * 255 + brightest // 2) // brightest).astype(np.uint8)
        return scaled
