"""ListOps trees, grown, laid out and answered for a whole batch at once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.streams import below, words

__all__ = ["DIGIT", "END", "LARGEST_ARITY", "OPERATOR", "PADDING", "VOCABULARY", "Grammar", "tokens_and_values"]

VOCABULARY = (".", *(str(digit) for digit in range(10)), "[MIN", "[MAX", "[MED", "[SM", "]")
"""The tokens by number: padding, ten digits, four operators, the bracket that ends an operator's arguments."""
PADDING, DIGIT, OPERATOR, END = 0, 1, 11, 15
LARGEST_ARITY = 31
"""Counts of up to 31 equal arguments fit in the six bits that `_order_statistic` gives each digit."""

_SUM = 3
_TRIES = 4096
_AT_ONCE = 256  # trees grown together: enough to make calls cheap, few enough to stay in the cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio, the step of SplitMix64
_FIELD = 6  # bits a digit in a histogram
_ONES = np.uint64(sum(1 << (_FIELD * digit) for digit in range(10)))
_FLAGS = _ONES << np.uint64(_FIELD - 1)

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Grammar:
    """Which trees there are: the root is an operator at depth 1, a node an operator with probability ¼."""

    max_depth: int
    """Nodes at this depth are digits."""
    max_args: int
    """An operator has 2 … max_args arguments, each number equally likely."""
    longer_than: int
    """A tree with this many tokens or fewer is drawn anew."""
    shorter_than: int
    """A tree with this many tokens or more is drawn anew."""


@dataclass(frozen=True)
class _Level:
    """The nodes of one depth, tree by tree and from left to right; N of them, I operators."""

    tree: Integers  # (N,), which tree a node belongs to, ascending
    draws: Words  # (N,), the node's word: its high half says what it is, its low half which operator or digit
    inner: Integers  # (I,), which nodes are operators
    arguments: Integers  # (I,), how many children each operator has

    @property
    def first_children(self) -> Integers:
        """Where each operator's children begin in the next level, (I,)."""
        return np.cumsum(self.arguments) - self.arguments

    @property
    def digits(self) -> Integers:
        """The digit of every node; operators have one too, which nothing reads."""
        return below(self.draws << np.uint64(32), 10)

    @property
    def operators(self) -> Integers:
        """MIN, MAX, MED or SM as 0 … 3, (I,)."""
        return below(self.draws[self.inner] << np.uint64(32), 4)


def tokens_and_values(
    grammar: Grammar,
    keys: Words,  # (B,)
) -> tuple[Integers, Integers, Integers]:  # (B, shorter_than − 1), (B,), (B,)
    """Return each example's tokens, padded on the right, its length and its value; a function of its key alone.

    Try t of an example has the stream whose key is word t of the example's own. The first try whose length fits is
    taken: only structures are drawn until then, and operators and digits are filled in for that tree alone. Raises
    RuntimeError where 4096 tries give none, which a grammar that keeps a hundredth of its trees does once in 10¹⁷.
    """
    tokens = np.full((keys.size, grammar.shorter_than - 1), PADDING, dtype=np.int64)
    lengths, values = np.empty(keys.size, dtype=np.int64), np.empty(keys.size, dtype=np.int64)
    for first in range(0, keys.size, _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        levels, lengths[rows] = _grow(grammar, _kept(grammar, keys[rows]), filled=True)
        _write(tokens[rows], levels)
        values[rows] = _values(levels)
    return tokens, lengths, values


def _kept(grammar: Grammar, keys: Words) -> Words:
    """Return the key of each example's first tree that fits, (B,)."""
    chosen = np.zeros_like(keys)
    pending, tried = np.arange(keys.size), 0
    while pending.size:
        if tried >= _TRIES:
            raise RuntimeError(f"{_TRIES} trees were drawn and none fits {grammar}; allow more lengths")
        together = min(
            max(1, _AT_ONCE // pending.size), _TRIES - tried
        )  # later tries ahead of time, where rows are few
        candidates = words(keys[pending], tried, together)
        lengths = _grow(grammar, candidates.reshape(-1), filled=False)[1].reshape(candidates.shape)
        fits = (lengths > grammar.longer_than) & (lengths < grammar.shorter_than)
        found = fits.any(axis=1)
        chosen[pending[found]] = candidates[found, fits[found].argmax(axis=1)]
        pending, tried = pending[~found], tried + together
    return chosen


def _grow(
    grammar: Grammar,
    keys: Words,  # (B,)
    *,
    filled: bool,
) -> tuple[list[_Level], Integers]:  # one a depth; (B,)
    """Return the trees level by level and their lengths; a tree found to be too long is not grown to its end.

    Where they are not to be filled, the last level, which holds digits alone, is counted and not drawn.
    """
    trees = keys.size
    tree, lengths, nodes = np.arange(trees), np.zeros(trees, dtype=np.int64), np.zeros(trees, dtype=np.int64)
    here = np.ones(trees, dtype=np.int64)
    levels: list[_Level] = []
    for depth in range(1, grammar.max_depth + 1):
        lengths += here
        if not tree.size or (depth == grammar.max_depth and not filled):
            break
        level = _drawn(grammar, keys, tree, here, nodes, depth)
        levels.append(level)
        nodes += here
        tree = np.repeat(tree[level.inner], level.arguments)
        here = np.bincount(tree, minlength=trees)
        lengths += np.bincount(level.tree[level.inner], minlength=trees)  # operator and bracket count two
        too_long = lengths + here >= grammar.shorter_than
        if too_long.any():
            lengths[too_long] = grammar.shorter_than
            tree, here = tree[~too_long[tree]], np.where(too_long, 0, here)
    return levels, lengths


def _drawn(
    grammar: Grammar,
    keys: Words,  # (B,)
    tree: Integers,  # (N,), ascending
    here: Integers,  # (B,), how many nodes each tree has in this level
    nodes: Integers,  # (B,), and above it
    depth: int,
) -> _Level:
    """Return a level whose nodes belong to the trees given; each takes its tree's next word, left to right."""
    # a stream's state n steps on, so that word 0 from there is word n of the stream
    states = keys + (nodes - np.cumsum(here) + here).astype(np.uint64) * _GOLDEN
    draws = words(states[tree] + np.arange(tree.size, dtype=np.uint64) * _GOLDEN, 0, 1)[:, 0]
    choices = grammar.max_args - 1
    if depth == grammar.max_depth:
        return _Level(tree, draws, tree[:0], tree[:0])
    drawn = below(draws, 4 * choices)
    if depth == 1:
        drawn %= choices
    inner = np.flatnonzero(drawn < choices)
    return _Level(tree, draws, inner, 2 + drawn[inner])


def _write(
    tokens: Integers,  # (B, T), written to
    levels: list[_Level],
) -> None:
    """Write each tree as its operators, arguments and closing brackets follow one another."""
    spans = _spans(levels)
    flat, width = tokens.reshape(-1), tokens.shape[1]  # a view: the rows are contiguous
    starts = np.zeros(levels[0].tree.size, dtype=np.int64)
    for depth, level in enumerate(levels):
        written = level.digits + DIGIT
        written[level.inner] = level.operators + OPERATOR
        flat[level.tree * width + starts] = written
        if level.inner.size:
            begins = starts[level.inner]
            flat[level.tree[level.inner] * width + begins + spans[depth][level.inner] - 1] = END
            before = np.cumsum(spans[depth + 1]) - spans[depth + 1]
            starts = np.repeat(begins + 1 - before[level.first_children], level.arguments) + before


def _spans(levels: list[_Level]) -> list[Integers]:
    """Return how many tokens each node's subtree has, level by level."""
    spans: list[Integers] = []
    for level in reversed(levels):
        span = np.ones_like(level.tree)
        if level.inner.size:
            span[level.inner] = 2 + np.add.reduceat(spans[-1], level.first_children)
        spans.append(span)
    return spans[::-1]


def _values(levels: list[_Level]) -> Integers:
    """Return the value of each tree, (B,), from the leaves up."""
    values = np.zeros(0, dtype=np.int64)
    for level in reversed(levels):
        children, values = values, level.digits
        if level.inner.size:
            values[level.inner] = _applied(level, children)
    return values


def _applied(level: _Level, children: Integers) -> Integers:
    """Return each operator's value, (I,); MIN, MAX and MED are means of two order statistics, rounded down."""
    first, arguments, operators = level.first_children, level.arguments, level.operators
    histogram = np.add.reduceat(np.uint64(1) << (_FIELD * children).astype(np.uint64), first)
    last = arguments - 1
    lower = np.choose(operators, [0 * last, last, last // 2, 0 * last])
    upper = np.choose(operators, [0 * last, last, arguments // 2, 0 * last])
    ordered = (_order_statistic(histogram, lower) + _order_statistic(histogram, upper)) // 2
    return np.where(operators == _SUM, np.add.reduceat(children, first) % 10, ordered)


def _order_statistic(histogram: Words, rank: Integers) -> Integers:
    """Return the digit of the given rank, counted from 0: as many digits have a cumulative count of `rank` or less.

    A histogram has six bits a digit; times `_ONES` it is cumulative, and 31 − rank more sets a field's highest bit
    where the count exceeds the rank.
    """
    above = histogram * _ONES + (LARGEST_ARITY - rank).astype(np.uint64) * _ONES
    below_or_equal: Words = ~above & _FLAGS
    return np.bitwise_count(below_or_equal).astype(np.int64)
