"""Keyed streams of random words: counter-based, integer arithmetic only, so the same bytes come on every platform.

An example's stream is a function of (seed, domain, index) and of nothing else: no generator state, no call order, no
batch size, no worker count. The words are SplitMix64's (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195). Every
function works on a whole batch of rows at once.
"""

from decimal import Decimal, localcontext
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Domain",
    "below",
    "below_each",
    "distinct",
    "exponential",
    "inverse_power_law",
    "permutation",
    "stratified_order",
    "stream_keys",
    "weighted_distinct",
    "words",
    "words_at",
]

Domain = Literal["train", "validation", "test", "order", "split"]
Words = NDArray[np.uint64]
Integers = NDArray[np.int64]

_DOMAINS: dict[Domain, int] = {"train": 0, "validation": 1, "test": 2, "order": 3, "split": 4}
_DOMAIN_COUNT = 8  # a power of two above the largest number, so that (index, domain) ↦ 8·index + domain is one to one
_GOLDEN = 0x9E3779B97F4A7C15  # 2⁶⁴ over the golden ratio, the step of SplitMix64
_LARGEST_INDEX = 2**64 // _DOMAIN_COUNT - 1
_FRACTION_BITS = 32  # of `exponential`
_NODE_BITS = 10  # of the table of logarithms: interpolation errs by less than 2⁻²²
_INVERSE_BITS = 26  # of an inverse weight; with the 38 bits of an exponential the product fills a word and no more
_BLOCK = 1 << 15  # words mixed at a time, so that scratch memory stays in the cache: six times as fast as all at once
_ROWS = 256  # rows of `distinct` worked on at a time, for the same reason


def stream_keys(seed: int, domain: Domain, indices: ArrayLike) -> Words:
    """Return the key of each example's stream, (B,), from its index.

    For one seed the map (domain, index) ↦ key is one to one, so the splits can share no stream. Raises ValueError for
    a seed outside 0 … 2⁶⁴ − 1 or an index outside 0 … 2⁶¹ − 1.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; a data seed lies in 0 … 2**64 - 1")
    positions = np.atleast_1d(np.asarray(indices))
    if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) <= _LARGEST_INDEX:
        raise ValueError(f"indices reach from {positions.min()} to {positions.max()}; an index lies in 0 … 2**61 - 1")
    counter = positions.astype(np.uint64) * np.uint64(_DOMAIN_COUNT) + np.uint64(_DOMAINS[domain])
    # the step is added so that exchanging seed and counter gives another key
    root = _mix(np.array([seed], dtype=np.uint64) + np.uint64(_GOLDEN))
    return _mix(_mix(counter) ^ root)


def words(
    keys: Words,  # (B,)
    start: int,
    count: int,
) -> Words:  # (B, count)
    """Return words start … start + count − 1 of each stream: word j of key k is SplitMix64's output j from state k."""
    steps = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    drawn = np.empty((keys.size, count), dtype=np.uint64)
    rows = max(1, _BLOCK // max(1, count))
    for first in range(0, keys.size, rows):
        drawn[first : first + rows] = _mix(keys[first : first + rows, None] + steps)
    return drawn


def words_at(
    keys: Words,  # (B,)
    positions: Integers,  # (B, N)
) -> Words:  # (B, N)
    """Return the words of each stream at positions of its own."""
    return _mix(keys[:, None] + (positions + 1).astype(np.uint64) * np.uint64(_GOLDEN))


def below(
    draws: Words,  # (..., N)
    bound: int,
) -> Integers:  # (..., N), in 0 … bound − 1
    """Return integers uniform on 0 … bound − 1, one a word, by the high half of a product.

    Lemire (2019, arXiv:1805.10941), but nothing is rejected, which keeps the word count fixed: a probability is off by
    less than 2⁻³², a relative bound·2⁻³². Raises ValueError for a bound outside 1 … 2³².
    """
    if not 1 <= bound <= 2**32:
        raise ValueError(f"bound is {bound}; it lies in 1 … 2**32")
    return _scaled(draws, np.uint64(bound)).astype(np.int64)


def below_each(
    draws: Words,  # (...)
    bounds: Integers | int,  # (...), 1 … 2³²
) -> Integers:  # (...)
    """Return integers uniform below bounds of their own, as `below` does below one for all; bounds are not checked."""
    return _scaled(draws, np.asarray(bounds, dtype=np.uint64)).astype(np.int64)


def distinct(
    draws: Words,  # (B, K)
    population: int,
) -> Integers:  # (B, K), in 0 … population − 1
    """Return K distinct integers a row, every ordered selection equally likely.

    K steps of Fisher and Yates's shuffle, in lockstep over the rows. Raises ValueError where K exceeds the population.
    """
    rows, count = draws.shape
    if count > population:
        raise ValueError(f"{count} distinct integers were asked of {population}; ask for at most {population}")
    steps = np.arange(count, dtype=np.uint64)
    partners = (steps + _scaled(draws, np.uint64(population) - steps)).astype(np.int64)
    chosen = np.empty((rows, count), dtype=np.int64)
    for first in range(0, rows, _ROWS):
        chosen[first : first + _ROWS] = _shuffle_heads(partners[first : first + _ROWS], population)
    return chosen


def exponential(draws: Words) -> Words:
    """Return −log₂ u for u uniform on (0, 1), in units of 2⁻³², one a word.

    u = 2^{−g}·(1 + x)/2 with g the zeros that end the word's low half, a geometric variable, and x its high half over
    2³²; hence −log₂ u = g + 1 − log₂(1 + x), the last term interpolated in a table of integers. At most 33·2³².
    """
    low = draws | np.uint64(1 << 32)  # ends the run of zeros at 32
    zeros = np.bitwise_count(~low & (low - np.uint64(1))).astype(np.uint64)
    high = draws >> np.uint64(32)
    cell = (high >> np.uint64(32 - _NODE_BITS)).astype(np.intp)
    rest = high & np.uint64((1 << (32 - _NODE_BITS)) - 1)
    table, drops = _logarithms()
    fraction = table[cell] - ((drops[cell] * rest) >> np.uint64(32 - _NODE_BITS))
    return (zeros << np.uint64(_FRACTION_BITS)) + fraction


def weighted_distinct(
    draws: Words,  # (B, N), one word an item
    inverse_weights: Words,  # (N,), from `inverse_power_law`
    count: int,
) -> Integers:  # (B, count), in 0 … N − 1, in the order drawn
    """Return `count` items a row, drawn one after another without replacement in proportion to their weights.

    An exponential race: the items arranged by −log(u_i)/w_i have the law of successive draws in which an item once
    drawn is left out (Efraimidis and Spirakis 2006, doi:10.1016/j.ipl.2005.11.003), which is the law of
    `numpy.random.choice(p=…, replace=False)`. Raises ValueError where `count` exceeds N.
    """
    items = inverse_weights.size
    if count > items:
        raise ValueError(f"{count} distinct items were asked of {items}; ask for at most {items}")
    low = np.uint64((1 << items.bit_length()) - 1)
    arrival = exponential(draws) * inverse_weights
    # the item's number stands in the low bits: one sort of plain words gives the order, and no two arrivals are equal
    arrival = np.sort((arrival & ~low) | np.arange(items, dtype=np.uint64), axis=1)
    return (arrival[:, :count] & low).astype(np.int64)


@cache
def inverse_power_law(items: int, power: float) -> Words:
    """Return 1/w_i for the weights w_i ∝ (i + 1)^(power − 1), i = 0 … items − 1, as integers, the largest 2²⁶ − 1.

    Decimal arithmetic, which gives the same digits everywhere; `pow` on floats does not. `power` lies in (0, 1].
    Rounding changes the first weight, the most affected, by a relative items·2⁻²⁷ at most.
    """
    with localcontext(prec=30):
        exponent = 1 - Decimal(repr(power))
        inverse = [Decimal(item) ** exponent for item in range(1, items + 1)]
        table = np.array([round(value * (2**_INVERSE_BITS - 1) / inverse[-1]) for value in inverse], dtype=np.uint64)
    table.flags.writeable = False
    return table


@lru_cache(maxsize=8)
def permutation(seed: int, domain: Domain, index: int, size: int) -> Integers:
    """Return a random order of 0 … size − 1, a function of its arguments alone (read-only, kept for the next call)."""
    draws = words(stream_keys(seed, domain, index), 0, size)[0]
    order = np.argsort(draws, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def stratified_order(
    labels: Integers,  # (N,), 0 … classes − 1
) -> Integers:  # (N,)
    """Return a fixed order of the examples that deals them out class by class, shuffled inside each class.

    Any run of classes·k examples at its head holds k of every class, which makes it a stratified split. It does not
    depend on a data seed, so that results with different seeds are about the same held-out examples.
    """
    rank = np.empty_like(labels)
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == label)
        rank[members[permutation(0, "split", label, members.size)]] = np.arange(members.size)
    return np.lexsort((labels, rank)).astype(np.int64)


def _mix(values: Words) -> Words:
    """SplitMix64's output function, a bijection of 64-bit words."""
    shifted = values >> np.uint64(30)  # one scratch array: fresh memory costs more than the arithmetic
    mixed = values ^ shifted
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= np.right_shift(mixed, np.uint64(27), out=shifted)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= np.right_shift(mixed, np.uint64(31), out=shifted)
    return mixed


def _scaled(draws: Words, bound: Words | np.uint64) -> Words:
    scaled: Words = ((draws >> np.uint64(32)) * bound) >> np.uint64(32)
    return scaled


def _shuffle_heads(partners: Integers, population: int) -> Integers:
    """Return the first K entries of each row's shuffle, where step i exchanges entries i and partners[:, i]."""
    rows, count = partners.shape
    table = np.tile(np.arange(population, dtype=np.min_scalar_type(population)), (rows, 1))
    flat = table.reshape(-1)
    offsets = np.arange(rows, dtype=np.int64) * population
    places = np.ascontiguousarray(partners.T) + offsets
    heads = np.empty((count, rows), dtype=table.dtype)
    for step in range(count):
        heads[step] = flat[places[step]]
        flat[places[step]] = flat[offsets + step]  # entry `step` itself is never looked at again
    return heads.T.astype(np.int64)


@cache
def _logarithms() -> tuple[Words, Words]:
    """Return 1 − log₂(1 + j/2¹⁰) in units of 2⁻³², and how much each cell falls."""
    nodes = 1 << _NODE_BITS
    with localcontext(prec=30):
        two = Decimal(2).ln()
        values = [(1 - (1 + Decimal(node) / nodes).ln() / two) * 2**_FRACTION_BITS for node in range(nodes + 1)]
        table = np.array([int(value.to_integral_value()) for value in values], dtype=np.uint64)
    return table[:-1].copy(), table[:-1] - table[1:]
