"""Keyed streams: known words, and the laws drawn from them."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from specreg.tasks.streams import (
    below,
    distinct,
    exponential,
    inverse_power_law,
    permutation,
    stratified_order,
    stream_keys,
    weighted_distinct,
    words,
)


class TestStreams:
    """Random words, and the laws drawn from them."""

    def test_words_are_those_of_splitmix64(self) -> None:
        """The outputs published for state 1234567."""
        expected = [
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
            4593380528125082431,
            16408922859458223821,
        ]
        state = np.array([1234567], dtype=np.uint64)
        assert words(state, 0, 5).tolist() == [expected]
        assert words(state, 3, 2).tolist() == [expected[3:]]

    def test_words_do_not_depend_on_the_number_of_rows(self) -> None:
        keys = stream_keys(3, "train", np.arange(2000))
        assert np.array_equal(words(keys, 0, 100)[1234], words(keys[1234:1235], 0, 100)[0])

    def test_keys_of_seeds_domains_and_indices_differ(self) -> None:
        keys = [
            stream_keys(seed, domain, np.arange(2000))
            for seed in (0, 1, 2, 2**64 - 1)
            for domain in ("train", "validation", "test", "order", "split")
        ]
        assert np.unique(np.concatenate(keys)).size == 4 * 5 * 2000

    @pytest.mark.parametrize(("seed", "index"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**61)])
    def test_keys_refuse_what_has_no_stream(self, seed: int, index: int) -> None:
        with pytest.raises(ValueError, match="lies in 0"):
            stream_keys(seed, "train", index)

    def test_below_is_the_scaled_word(self) -> None:
        draws = np.array([0, 2**32 - 1, 2**32, 2**63, 2**64 - 1], dtype=np.uint64)
        assert below(draws, 10).tolist() == [0, 0, 0, 5, 9]
        assert below(draws, 2**32).tolist() == [0, 0, 1, 2**31, 2**32 - 1]
        with pytest.raises(ValueError, match=re.escape("1 … 2**32")):
            below(draws, 0)

    @pytest.mark.parametrize(("population", "count"), [(1, 1), (7, 3), (40, 40), (300, 17)])
    def test_distinct_is_the_textbook_shuffle(self, population: int, count: int) -> None:
        draws = words(stream_keys(5, "test", np.arange(600)), 0, count)
        expected = []
        for row in draws.tolist():
            table = list(range(population))
            for step, word in enumerate(row):
                partner = step + ((word >> 32) * (population - step) >> 32)
                table[step], table[partner] = table[partner], table[step]
            expected.append(table[:count])
        assert distinct(draws, population).tolist() == expected

    def test_distinct_selections_are_equally_likely(self) -> None:
        """All 60 ordered selections of 3 out of 5, χ² against 59 degrees of freedom (mean 59, deviation 10.9)."""
        chosen = distinct(words(stream_keys(1, "train", np.arange(60_000)), 0, 3), 5)
        counts = np.unique(chosen @ np.array([25, 5, 1]), return_counts=True)[1]
        assert counts.size == 60
        assert ((counts - 1000) ** 2 / 1000).sum() < 59 + 5 * 10.9

    def test_exponential_is_minus_the_logarithm(self) -> None:
        """Against −log₂ u from the word's own bits, in float64: the table errs by less than 2⁻²²."""
        draws = words(stream_keys(0, "train", np.arange(400)), 0, 50)
        zeros = [[(word | 1 << 32) & -(word | 1 << 32) for word in row] for row in draws.tolist()]
        exact = np.log2(np.array(zeros, dtype=np.float64)) + 1 - np.log2(1 + (draws >> np.uint64(32)) / 2**32)
        assert np.abs(exponential(draws) / 2**32 - exact).max() < 2**-22
        assert int(exponential(np.array([0], dtype=np.uint64))[0]) == 33 << 32

    def test_exponential_has_mean_and_deviation_one(self) -> None:
        drawn = exponential(words(stream_keys(0, "train", np.arange(1000)), 0, 1000)) * (math.log(2) / 2**32)
        assert abs(drawn.mean() - 1) < 5e-3
        assert abs(drawn.std() - 1) < 1e-2

    def test_inverse_weights_are_the_power_law(self) -> None:
        table = inverse_power_law(192, 0.01) / (2**26 - 1) * 192**0.99
        np.testing.assert_allclose(table, np.arange(1, 193) ** 0.99, rtol=192 * 2**-27)
        assert inverse_power_law(10, 1.0).tolist() == [2**26 - 1] * 10

    def test_weighted_draws_follow_successive_sampling(self) -> None:
        """First and second draws of three items with weights 6 : 3 : 2, whose law is enumerated."""
        inverse = np.array([2**20, 2**21, 3 * 2**20], dtype=np.uint64)
        rows = 100_000
        chosen = weighted_distinct(words(stream_keys(9, "train", np.arange(rows)), 0, 3), inverse, 2)
        weights = [6, 3, 2]
        for first in range(3):
            for second in {0, 1, 2} - {first}:
                p = weights[first] / 11 * weights[second] / (11 - weights[first])
                share = ((chosen[:, 0] == first) & (chosen[:, 1] == second)).mean()
                assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / rows)

    @pytest.mark.parametrize("draw", [lambda w: distinct(w, 3), lambda w: weighted_distinct(w[:, :3], w[0, :3], 4)])
    def test_more_than_there_are(self, draw: Callable[[np.ndarray], np.ndarray]) -> None:
        with pytest.raises(ValueError, match="at most 3"):
            draw(words(stream_keys(0, "train", np.arange(2)), 0, 4))

    def test_permutation_and_stratified_order(self) -> None:
        order = permutation(4, "order", 2, 1000)
        assert sorted(order.tolist()) == list(range(1000))
        assert not np.array_equal(order, permutation(4, "order", 3, 1000))
        labels = np.repeat(np.arange(5), [30, 20, 40, 20, 25])
        dealt = labels[stratified_order(labels)]
        assert np.bincount(dealt[:100]).tolist() == [20] * 5
        assert sorted(stratified_order(labels).tolist()) == list(range(135))
