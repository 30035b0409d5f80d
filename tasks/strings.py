"""Random strings for formal languages: drawn, told apart by content so that splits share none, and laid out.

The space of short strings is small: there are four of two bits, and any stream meets them all. So the split is decided
by the string itself. A few of its symbols, read as a number, are its code; the code minus a digest of everything else,
modulo the number of codes, says which split the string belongs to. A string is drawn by drawing everything else, then a
number of the split's own, and solving for the code: every string of the split is equally likely, and nothing is
rejected.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from specreg.tasks.streams import below_each, words
from specreg.tasks.task import UNSCORED, Batch, Split

__all__ = [
    "Integers",
    "Words",
    "answered_at_every_step",
    "answered_once",
    "bits",
    "code_width",
    "digest",
    "follow",
    "real",
    "settle",
    "share",
    "string_to_string",
    "symbols",
]

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]

_HELD_OUT = 16  # of this many codes, one is validation's and one is test's
_LOW = np.uint64(0xFFFFFFFF)


def bits(
    draws: Words,  # (B, ⌈count/64⌉)
    count: int,
) -> Integers:  # (B, count), 0 or 1
    """Return fair bits, 64 a word."""
    octets = draws.astype("<u8").view(np.uint8)
    return np.unpackbits(octets, axis=1, count=count, bitorder="little").astype(np.int64)


def symbols(
    keys: Words,  # (B,)
    start: int,
    count: int,
    alphabet: int,
) -> Integers:  # (B, count), 0 … alphabet − 1
    """Return uniform symbols from words `start`, …: 64 bits a word, or two symbols of a larger alphabet."""
    if alphabet == 2:
        return bits(words(keys, start, -(-count // 64)), count)
    half = -(-count // 2)
    drawn = words(keys, start, half)
    chosen = np.empty((keys.size, 2 * half), dtype=np.int64)
    bound = np.uint64(alphabet)
    chosen[:, :half] = ((drawn >> np.uint64(32)) * bound) >> np.uint64(32)
    chosen[:, half:] = ((drawn & _LOW) * bound) >> np.uint64(32)
    return chosen[:, :count]


def real(
    counts: Integers,  # (B,)
    steps: int,
) -> NDArray[np.bool_]:  # (B, steps)
    """Return where the first `counts` steps of each row are."""
    return np.arange(steps) < counts[:, None]


def digest(
    strings: Integers,  # (B, N), 0 outside the string
    counts: Integers,  # (B,)
) -> Words:  # (B,)
    """Return a word a string, from its symbols and their number."""
    mixed = strings.view(np.uint64) @ _multipliers(strings.shape[1])
    return words(mixed + counts.astype(np.uint64), 0, 1)[:, 0]


def share(
    split: Split,
    draws: Words,  # (B,)
    sizes: Integers,  # (B,)
) -> Integers:  # (B,)
    """Return a number of the split's own among 0 … size − 1: a sixteenth each, one at least, for the held-out splits.

    Below three numbers there is nothing to hold out, and training has them all.
    """
    held_out = np.where(sizes < 3, 0, np.maximum(sizes // _HELD_OUT, 1))
    if split == "train":
        return below_each(draws, sizes - 2 * held_out)
    first = sizes - (2 if split == "validation" else 1) * held_out
    chosen: Integers = first + below_each(draws, held_out)
    return chosen


def code_width(alphabet: int) -> int:
    """Return how many symbols make a code, that is give sixteen codes or more."""
    width = 1
    while alphabet**width < _HELD_OUT:
        width += 1
    return width


def settle(
    split: Split,
    draws: Words,  # (B,)
    strings: Integers,  # (B, N), 0 outside the string
    counts: Integers,  # (B,)
    alphabet: int,
    places: Integers | None = None,  # (B, W)
    known: Integers | None = None,  # (B,), at most W
) -> None:
    """Replace, in place, the code of each string so that the string is one of the split's.

    The code is the symbols at the first `known` of `places`, which have to be uniform on 0 … alphabet − 1; without
    these it is the first symbols.
    """
    if places is None or known is None:
        width = min(code_width(alphabet), strings.shape[1])
        strings[:, :width] = 0
        code = _code(split, draws, strings, counts, alphabet ** np.minimum(counts, width))
        strings[:, :width] = code[:, None] // alphabet ** np.arange(width) % alphabet
        return
    used = [(rows, places[rows, place]) for place in range(places.shape[1]) for rows in [np.flatnonzero(known > place)]]
    for where in used:
        strings[where] = 0
    code = _code(split, draws, strings, counts, alphabet**known)
    for place, (rows, columns) in enumerate(used):
        strings[rows, columns] = code[rows] // alphabet**place % alphabet


def follow(
    table: Integers,  # (states, letters)
    letters: Integers,  # (B, N)
    start: int = 0,
) -> Integers:  # (B, N)
    """Return the state of an automaton after every letter."""
    width = table.shape[1]
    rows = (table * width).ravel()  # states as offsets of their rows, which saves a product a step
    columns = letters.T.copy()  # also of one row, whose transpose is contiguous already
    states = np.empty_like(columns)
    previous: Integers | int = start * width
    for column, state in zip(columns, states, strict=True):
        column += previous
        previous = np.take(rows, column, out=state, mode="clip")
    numbers: Integers = states.T // width
    return numbers


def answered_at_every_step(
    tokens: Integers,  # (B, N), padded
    counts: Integers,  # (B,)
    answers: Integers,  # (B, N)
    *,
    padded: bool,
) -> Batch:
    """Return strings with a target at every symbol."""
    if not padded:
        return Batch(torch.from_numpy(tokens), torch.from_numpy(answers))
    inside = real(counts, tokens.shape[1])
    targets = np.where(inside, answers, UNSCORED)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(inside))


def answered_once(
    tokens: Integers,  # (B, N), padded
    counts: Integers,  # (B,)
    answers: Integers,  # (B,)
    *,
    query: int | None,
    padded: bool,
) -> Batch:
    """Return strings with one target each: at the last symbol, or at a query token after it."""
    rows, steps = tokens.shape
    if query is not None:
        tokens = np.concatenate([tokens, np.full((rows, 1), query)], axis=1)
        counts, steps = counts + 1, steps + 1
    targets = np.full((rows, steps), UNSCORED)
    targets[np.arange(rows), counts - 1] = answers
    mask = torch.from_numpy(real(counts, steps)) if padded else None
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), mask)


def string_to_string(
    tokens: Integers,  # (B, N), padded with the query token
    counts: Integers,  # (B,)
    outputs: Integers,  # (B, M)
    *,
    lengths: Integers,  # (B,), outputs asked for
    scored: Integers,  # (B,), outputs scored, at most `lengths`
    query: int,
    padded: bool,
) -> Batch:
    """Return strings, each followed by as many query tokens as outputs are asked for, which are the targets there."""
    rows, extent = outputs.shape
    inputs = np.concatenate([tokens, np.full((rows, extent), query)], axis=1)
    targets = np.full_like(inputs, UNSCORED)
    places = counts[:, None] + np.arange(extent)
    np.put_along_axis(targets, places, np.where(real(scored, extent), outputs, UNSCORED), axis=1)
    mask = torch.from_numpy(real(counts + lengths, inputs.shape[1])) if padded else None
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), mask)


def _code(split: Split, draws: Words, strings: Integers, counts: Integers, sizes: Integers) -> Integers:
    """Return the codes, below `sizes`, that put strings without them into the split."""
    shift = (digest(strings, counts) % sizes.astype(np.uint64)).astype(np.int64)
    return (share(split, draws, sizes) + shift) % sizes


@cache
def _multipliers(count: int) -> Words:
    """Odd constants, one a position: those of the stream with key 0."""
    odd: Words = words(np.zeros(1, dtype=np.uint64), 0, count)[0] | np.uint64(1)
    return odd
