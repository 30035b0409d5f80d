"""Formal languages: how strings are divided and drawn, published rules and defects, chance and needs."""

import itertools
import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from specreg.tasks.binary import digits_of, integers
from specreg.tasks.cumulative_parity import CumulativeParity
from specreg.tasks.cycle_navigation import CycleNavigation
from specreg.tasks.even_pairs import EvenPairs
from specreg.tasks.group_words import GroupWords
from specreg.tasks.groups import group
from specreg.tasks.majority import Majority
from specreg.tasks.missing_duplicate import MissingDuplicate
from specreg.tasks.modular_arithmetic import ModularArithmetic
from specreg.tasks.modular_arithmetic_brackets import ModularArithmeticBrackets
from specreg.tasks.parity import Parity
from specreg.tasks.solve_equation import SolveEquation
from specreg.tasks.strings import bits, follow, share, symbols
from specreg.tasks.task import Task
from specreg.testing.examples import SPLITS, real_tokens

TASKS = (
    *(CumulativeParity, CycleNavigation, EvenPairs, GroupWords, Majority, MissingDuplicate),
    *(ModularArithmetic, ModularArithmeticBrackets, Parity, SolveEquation),
)


def contents(task: Task, split: str, count: int) -> set[tuple[int, ...]]:
    """Return the different strings among the first examples of a split."""
    return {tuple(tokens) for tokens in real_tokens(task.draw(split, np.arange(count)))}  # type: ignore[arg-type]


class TestSplitsByContent:
    """Small spaces are divided, not sampled."""

    @pytest.mark.parametrize("variant", ["xlstm", "chomsky"])
    @pytest.mark.parametrize("bits", [2, 3, 5, 7])
    def test_every_bit_string_is_in_one_split(self, variant: Any, bits: int) -> None:
        """Down to two bits, which is parity at length 3; a sixteenth is validation's and a sixteenth test's."""
        length = bits + (variant == "xlstm")
        task = Parity(variant=variant, shortest=length, longest=length)
        parts = [contents(task, split, 3000) for split in SPLITS]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 2**bits
        assert len(parts[1]) == len(parts[2]) == max(1, 2**bits // 16)

    def test_every_word_of_s3_is_in_one_split(self) -> None:
        task = GroupWords(group="S3", shortest=3, longest=3)
        parts = [contents(task, split, 5000) for split in SPLITS]
        assert sum(map(len, parts)) == len(set().union(*parts)) == 6**3
        assert len(parts[1]) == len(parts[2]) == 12

    def test_the_split_does_not_depend_on_the_seed(self) -> None:
        task = Parity(shortest=6, longest=6)
        held_out = contents(task, "test", 200)
        for seed in (1, 2**64 - 1):
            assert contents(replace(task, seed=seed), "test", 200) == held_out

    def test_strings_of_a_split_are_equally_likely(self) -> None:
        task = Parity(shortest=6, longest=6)
        counts = Counter(tuple(tokens) for tokens in real_tokens(task.train_batch(0, 28_000)))
        assert len(counts) == 28
        assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 27 + 5 * math.sqrt(54)

    def test_strings_too_few_to_divide_are_trained_on_only(self) -> None:
        task = Parity(variant="chomsky", shortest=1, longest=4)
        assert (0, 2) in contents(task, "train", 200)
        assert min(len(string) for string in contents(task, "test", 500)) == 3
        with pytest.raises(ValueError, match=re.escape("fewer than three such strings")):
            Parity(variant="chomsky", shortest=1, longest=1)

    def test_lengths_are_uniform(self) -> None:
        """3 … 40 with the answer counted, each a 38th of the training strings."""
        batch = Parity().train_batch(0, 38_000)
        counts = (batch.lengths + 1).bincount(minlength=41)[3:]
        assert counts.sum() == 38_000
        assert float(((counts - 1000.0) ** 2 / 1000).sum()) < 37 + 5 * math.sqrt(74)

    def test_symbols_are_uniform(self) -> None:
        """Of long words, code and all: every element is met at every place."""
        words = GroupWords(group="A5", shortest=8, longest=8, start=False).train_batch(0, 30_000).inputs
        for place in range(8):
            counts = words[:, place].bincount(minlength=60)
            assert float(((counts - 500.0) ** 2 / 500).sum()) < 59 + 5 * math.sqrt(118)


class TestRules:
    """Published examples, sizes and defects."""

    def test_layout_of_xlstm(self) -> None:
        """The length counts the answer, so two bits are the shortest, and the context of 40 holds 39."""
        task = Parity.presets()["xlstm"]
        assert (task.max_length, task.vocab_size, task.num_classes, task.chance) == (39, 3, 3, 0.5)
        assert int(task.train_batch(0, 3000).lengths.min()) == 2
        longer = task.extrapolations()["length-40-256"]
        lengths = longer.batch("test", np.arange(2000)).lengths + 1
        assert (int(lengths.min()), int(lengths.max())) == (40, 256)

    @pytest.mark.parametrize(
        ("expression", "expected"), [("1+2*3", 2), ("1-1-1", 4), ("0*1+4*3-2", 0), ("3", 3), ("2-3*4*4", 4)]
    )
    def test_products_bind_first(self, expression: str, expected: int) -> None:
        task = ModularArithmetic(variant="chomsky")
        symbols = np.array([["01234+-*".index(symbol) for symbol in expression]])
        assert task.solve(symbols, np.array([len(expression)])).tolist() == [expected]

    @pytest.mark.parametrize("faithful", [False, True])
    def test_an_even_lower_bound_is_rounded_down_as_published(self, faithful: bool) -> None:
        """Tested on 40 … 256, xLSTM's code draws length 39, which is trained on; 3 … 40 is the same either way."""
        longer = ModularArithmetic(faithful=faithful).extrapolations()["length-40-256"]
        lengths = longer.slices(longer.train_batch(0, 4000))["length"].max(dim=1).values
        assert sorted(set(lengths.tolist())) == list(range(39 if faithful else 41, 256, 2))
        trained = ModularArithmetic(faithful=faithful).train_batch(0, 2000)
        assert sorted(set((trained.lengths + 1).tolist())) == list(range(3, 40, 2))
        assert torch.equal(trained.inputs, ModularArithmetic().train_batch(0, 2000).inputs)

    def test_even_lengths_are_reduced_by_one(self) -> None:
        """DeepMind's lengths 1 … 8 give 1, 3, 5 and 7 equally often."""
        task = ModularArithmetic(variant="chomsky", shortest=1, longest=8)
        batch = task.train_batch(0, 8000)
        counts = task.slices(batch)["length"].max(dim=1).values.bincount()
        assert counts.nonzero().flatten().tolist() == [1, 3, 5, 7]
        assert float(((counts[1::2] - 2000.0) ** 2 / 2000).sum()) < 3 + 5 * math.sqrt(6)

    def test_brackets_grow_by_the_grammar(self) -> None:
        """At length 7 the left part has 1, 2 or 3 symbols equally often; digits and operators are uniform."""
        task = ModularArithmeticBrackets(variant="chomsky", shortest=7, longest=7)
        tokens = task.train_batch(0, 9000).inputs
        operators = [next(i for i in (2, 3, 4) if row[i] in (5, 6, 7) and row[i - 1] != 8) for row in tokens.tolist()]
        shares = Counter(operators)
        assert all(abs(shares[place] - 3000) < 5 * math.sqrt(2000) for place in (2, 3, 4))
        drawn = Counter(tokens[range(9000), torch.tensor(operators)].tolist())
        assert all(abs(drawn[operator] - 3000) < 5 * math.sqrt(2000) for operator in (5, 6, 7))

    def test_short_lengths_of_brackets_become_five(self) -> None:
        task = ModularArithmeticBrackets(longest=8)
        counts = task.slices(task.train_batch(0, 6000))["length"].max(dim=1).values.bincount()
        assert counts.nonzero().flatten().tolist() == [5, 6, 7, 8]
        assert abs(int(counts[5]) - 3000) < 5 * math.sqrt(1500)

    def test_unknowns_stand_at_every_digit(self) -> None:
        """In (d+d), from a uniform one of five symbols on: the first digit has the first two symbols and the last."""
        tokens = SolveEquation(shortest=7, longest=7).train_batch(0, 5000).inputs
        assert abs(int((tokens[:, 1] == 9).sum()) - 3000) < 5 * math.sqrt(1200)
        assert bool(((tokens[:, 1] == 9) | (tokens[:, 3] == 9)).all())


class TestLevelsAndNeeds:
    """Chance by enumeration, and the declared spectra."""

    def test_chance_of_modular_arithmetic(self) -> None:
        """Over all expressions of three digits."""
        values = Counter(
            eval(f"{a}{o}{b}{p}{c}") % 5
            for a, b, c in itertools.product(range(5), repeat=3)
            for o, p in itertools.product("+-*", repeat=2)
        )
        for task in (
            ModularArithmetic(shortest=7, longest=7),
            ModularArithmetic(variant="chomsky", shortest=5, longest=6),
        ):
            assert math.isclose(task.chance, max(values.values()) / sum(values.values()))

    def test_chance_of_brackets(self) -> None:
        """Over all (d∘d), and over all (d∘(d)) and its like, by value: leaves are uniform whatever their form."""
        five = Counter(eval(f"{a}{o}{b}") % 5 for a in range(5) for b in range(5) for o in "+-*")
        task = ModularArithmeticBrackets(variant="chomsky", shortest=5, longest=7)
        assert math.isclose(task.chance, max(five.values()) / 75)
        assert ModularArithmeticBrackets(multiplication=False).chance == 0.2

    def test_chance_of_cycle_navigation(self) -> None:
        walks = [
            sum(moves) % 5
            for n in (3, 4)
            for moves in itertools.product((-1, 0, 1), repeat=n)
            for _ in range(3 ** (4 - n))
        ]
        task = CycleNavigation(variant="chomsky", shortest=3, longest=4)
        assert math.isclose(task.chance, walks.count(0) / len(walks))

    def test_chance_of_majority(self) -> None:
        strings = list(itertools.product((0, 1), repeat=4))
        assert Majority(shortest=4, longest=4).chance == sum(2 * sum(s) <= 4 for s in strings) / 16
        steps = [2 * sum(s[:end]) >= end for s in strings for end in range(1, 5)]
        assert Majority(shortest=4, longest=4, cumulative=True).chance == sum(steps) / 64

    def test_needs(self) -> None:
        assert Parity().need.periods == (2,)
        assert CycleNavigation().need.periods == (5,)
        assert GroupWords(group="Z60").need.periods == group("Z60").element_orders
        assert "no diagonal spectrum suffices" in GroupWords(group="S5").need.note
        assert "one diagonal layer" in GroupWords(group="A4xZ5").need.note
        assert MissingDuplicate(shortest=20, longest=20).need.lags == (10,)

    @pytest.mark.parametrize("member", TASKS)
    def test_presets_and_extrapolations(self, member: type[Task]) -> None:
        """Every published setting, and every longer one, gives a batch; slices are in the shape of the targets."""
        for name, task in member.presets().items():
            assert eval(repr(task)) == task
            longer = task.extrapolations()
            assert {"length-100", "length-256", "length-500"} <= set(longer), name
            for each in (task, *longer.values()):
                batch = each.batch("test", np.arange(3))
                (lengths,) = each.slices(batch).values()
                assert torch.equal(lengths >= 0, batch.scored)
                assert batch.inputs.shape[1] <= each.max_length
                assert all(each.token_name(token) for token in range(each.vocab_size))
                assert all(each.class_name(label) for label in range(each.num_classes))


class TestPieces:
    """What the tasks are made of."""

    def test_bits_are_those_of_the_words(self) -> None:
        draws = np.array([[2**63 + 5, 3]], dtype=np.uint64)
        assert bits(draws, 66).tolist() == [[1, 0, 1, *[0] * 60, 1, 1, 1]]

    def test_symbols_do_not_depend_on_the_rows(self) -> None:
        keys = np.arange(9, dtype=np.uint64)
        for alphabet in (2, 3, 120):
            drawn = symbols(keys, 2, 7, alphabet)
            assert np.array_equal(symbols(keys[4:5], 2, 7, alphabet), drawn[4:5])
            assert 0 <= drawn.min() <= drawn.max() < alphabet

    def test_shares_cover_all_numbers_once(self) -> None:
        draws = np.linspace(0, 2**64 - 2**11, 4000).astype(np.uint64)
        for size in (3, 4, 15, 16, 31, 32, 120):
            parts = [set(share(split, draws, np.full(4000, size)).tolist()) for split in SPLITS]  # type: ignore[arg-type]
            assert sorted(number for part in parts for number in part) == list(range(size))
            assert len(parts[1]) == len(parts[2]) == max(1, size // 16)
        assert set(share("train", draws, np.full(4000, 2)).tolist()) == {0, 1}

    def test_follow_leaves_its_letters_alone(self) -> None:
        table = np.array([[1, 0], [2, 1], [0, 2]])
        for rows in (1, 3):
            letters = np.zeros((rows, 5), dtype=np.int64)
            assert follow(table, letters, start=1).tolist() == [[2, 0, 1, 2, 0]] * rows
            assert not letters.any()

    def test_numbers_of_any_length(self) -> None:
        values = [1, 255, 256, 2**200 - 1, 3**100]
        assert integers(digits_of(values, 201)) == values
