"""Formal languages whose answer is a string: conformance, published examples, laws, splits by content."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specreg.tasks.binary_addition import BinaryAddition
from specreg.tasks.binary_multiplication import BinaryMultiplication
from specreg.tasks.bucket_sort import BucketSort
from specreg.tasks.duplicate_string import DuplicateString
from specreg.tasks.formal_language import StringToString
from specreg.tasks.odds_first import OddsFirst
from specreg.tasks.reverse_string import ReverseString
from specreg.tasks.square_root import SquareRoot
from specreg.tasks.stack_manipulation import StackManipulation
from specreg.tasks.task import Task
from specreg.testing.examples import SPLITS, digests
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike

TASKS = (
    *(BinaryAddition, BinaryMultiplication, BucketSort, DuplicateString),
    *(OddsFirst, ReverseString, SquareRoot, StackManipulation),
)


def asked(task: Any, batch: BatchLike) -> Iterator[tuple[list[int], int]]:
    """Yield each example's string and how many queries follow it; nothing else does."""
    query = task.vocab_size - 1
    for row, tokens in enumerate(batch.inputs.tolist()):
        tokens = tokens if batch.mask is None else tokens[: int(batch.mask[row].sum())]
        string = tokens[: tokens.index(query)]
        assert tokens[len(string) :] == [query] * (len(tokens) - len(string))
        yield string, len(tokens) - len(string)


class StringConformance(TaskConformance):
    """The reference answers one string with the outputs that are scored, from the first query on."""

    repeats = 0.5  # training meets short strings again

    def answer(self, string: list[int]) -> list[int]:
        """Return the scored outputs."""
        raise NotImplementedError

    def queries(self, length: int) -> int:
        """Return how many queries follow a string."""
        return length

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        answers = torch.zeros_like(batch.targets)
        for row, (string, queries) in enumerate(asked(task, batch)):
            outputs = self.answer(string)
            assert queries == self.queries(len(string))
            places = list(range(len(string), len(string) + len(outputs)))
            assert (batch.targets[row] == 0).nonzero().flatten().tolist() == places
            answers[row, places] = torch.tensor(outputs)
        return answers


class TestReverseStringConformance(StringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(ReverseString.tiny(), validation_examples=1000)

    def answer(self, string: list[int]) -> list[int]:
        return string[::-1]


class TestPublishedReverseStringConformance(TestReverseStringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return ReverseString()


class TestDuplicateStringConformance(StringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(DuplicateString.tiny(), validation_examples=1000)

    def queries(self, length: int) -> int:
        return 2 * length

    def answer(self, string: list[int]) -> list[int]:
        return string + string


class TestDuplicateStringOfOneLengthConformance(TestDuplicateStringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return DuplicateString(shortest=9, longest=9, symbols=7)


class TestOddsFirstConformance(StringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(OddsFirst.tiny(), validation_examples=1000)

    def answer(self, string: list[int]) -> list[int]:
        return string[::2] + string[1::2]


class TestCodedOddsFirstConformance(StringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return OddsFirst(variant="coded")

    def answer(self, string: list[int]) -> list[int]:
        return string[1::2] + string[::2]


class TestBucketSortConformance(StringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(BucketSort.tiny(), validation_examples=1000)

    def answer(self, string: list[int]) -> list[int]:
        return sorted(string)


class TestStackManipulationConformance(StringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(StackManipulation.tiny(), validation_examples=1000)

    def queries(self, length: int) -> int:
        return length + 1

    def answer(self, string: list[int]) -> list[int]:
        stack: list[int] = []
        for symbol in string:
            if symbol == 2:
                del stack[-1:]
            else:
                stack.append(symbol - 3 if symbol > 2 else symbol)
        return [*stack[::-1], 2]


class TestPublishedStackManipulationConformance(TestStackManipulationConformance):
    @cached_property
    def task(self) -> TaskLike:
        return StackManipulation()


class TestBinaryAdditionConformance(StringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(BinaryAddition.tiny(), validation_examples=1000)

    def queries(self, length: int) -> int:
        return length + 1

    def answer(self, string: list[int]) -> list[int]:
        first, second = numbers(string)
        return [*(int(bit) for bit in f"{first + second:b}"[::-1]), 2]


class TestPublishedBinaryAdditionConformance(TestBinaryAdditionConformance):
    @cached_property
    def task(self) -> TaskLike:
        return BinaryAddition()


class TestBinaryMultiplicationConformance(StringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(BinaryMultiplication.tiny(), validation_examples=1000)

    def answer(self, string: list[int]) -> list[int]:
        first, second = numbers(string)
        return [*(int(bit) for bit in f"{first * second:b}"[::-1]), 2]


class TestLongBinaryMultiplicationConformance(TestBinaryMultiplicationConformance):
    @cached_property
    def task(self) -> TaskLike:
        return BinaryMultiplication(shortest=190, longest=200)


class TestSquareRootConformance(StringConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(SquareRoot.tiny(), validation_examples=1000)

    def queries(self, length: int) -> int:
        return (length + 1) // 2

    def answer(self, string: list[int]) -> list[int]:
        number = int("".join(map(str, string)), 2)
        assert number > 0
        root = next(r for r in range(2 ** ((len(string) + 1) // 2)) if r * r <= number < (r + 1) ** 2)
        return [int(bit) for bit in f"{root:0{(len(string) + 1) // 2}b}"]


class TestPublishedSquareRootConformance(TestSquareRootConformance):
    @cached_property
    def task(self) -> TaskLike:
        return SquareRoot()

    def answer(self, string: list[int]) -> list[int]:
        number = int("".join(map(str, string)), 2)
        outputs: list[int] = []
        for _ in range((len(string) + 1) // 2):  # bit by bit, the highest first
            rest = (len(string) + 1) // 2 - len(outputs) - 1
            trial = int("".join(map(str, [*outputs, 1])), 2) << rest
            outputs.append(int(trial**2 <= number))
        return outputs


def numbers(string: list[int]) -> tuple[int, int]:
    """Read two numbers, units first, each with a bit or more and none of them 0."""
    sign = string.index(2)
    first, second = string[:sign], string[sign + 1 :]
    assert set(first + second) <= {0, 1}
    values = tuple(sum(bit * 2**place for place, bit in enumerate(part)) for part in (first, second))
    assert min(values) > 0
    return values[0], values[1]


class TestPublishedExamples:
    """The examples in the descriptions of DeepMind's tasks."""

    @pytest.mark.parametrize(
        ("task", "string", "expected"),
        [
            (ReverseString(), "011010", "010110"),
            (ReverseString(symbols=4), "123021", "120321"),
            (DuplicateString(), "101", "101101"),
            (OddsFirst(), "00110101", "01000111"),
            (OddsFirst(), "110", "101"),
            (OddsFirst(variant="coded"), "110", "110"),
            (OddsFirst(variant="coded"), "00110101", "01110100"),
            (BucketSort(), "10204112", "00111224"),
            (BucketSort(symbols=2), "1110001", "0001111"),
            (StackManipulation(), "0110422", "1102"),
            (StackManipulation(), "110222", "2"),
            (BinaryAddition(), "001201101", "010112"),
            (BinaryAddition(), "10012000001", "1001012"),
            (BinaryMultiplication(), "001201101", "00011012"),
            (BinaryMultiplication(), "10012000001", "0000010012"),
            (SquareRoot(), "100101", "110"),
            (SquareRoot(), "111", "10"),
        ],
    )
    def test_answer(self, task: StringToString, string: str, expected: str) -> None:
        row = np.zeros((1, task.longest), dtype=np.int64)
        row[0, : len(string)] = [int(symbol) for symbol in string]
        outputs, scored = task.solve(row, np.array([len(string)]))
        assert outputs[0, : scored[0]].tolist() == [int(symbol) for symbol in expected]


class TestSplitsByContent:
    """Small spaces are divided, not sampled."""

    @pytest.mark.parametrize(
        ("task", "everything"),
        [
            (ReverseString(shortest=2, longest=2), 2**2),
            (DuplicateString(shortest=5, longest=5), 2**5),
            (BucketSort(shortest=3, longest=3), 5**3),
            (StackManipulation(shortest=2, longest=2), 2 * 3),
            (StackManipulation(shortest=4, longest=4), 2 * 27 + 4 * 9 + 8 * 3),
            (BinaryAddition(shortest=4, longest=4), 3 + 3),
            (BinaryMultiplication(shortest=6, longest=6), 2 * (1 * 15 + 3 * 7)),
            (SquareRoot(shortest=2, longest=2), 3),
            (SquareRoot(shortest=7, longest=7), 127),
        ],
    )
    def test_every_string_is_in_one_split(self, task: Task, everything: int) -> None:
        parts = [set(digests(task.draw(split, np.arange(6000)))) for split in SPLITS]
        assert sum(map(len, parts)) == len(set().union(*parts)) == everything
        assert all(parts)

    def test_numbers_are_uniform(self) -> None:
        """Of the sums at length 6 each width has a quarter, and of a width each training sum its share."""
        task = BinaryAddition(shortest=6, longest=6)
        strings = Counter(tuple(string) for string, _ in asked(task, task.train_batch(0, 40_000)))
        widths: Counter[int] = Counter()
        for string, count in strings.items():
            widths[string.index(2)] += count
        assert all(abs(widths[width] - 10_000) < 5 * math.sqrt(7500) for width in (1, 2, 3, 4))
        singles = [count for string, count in strings.items() if string.index(2) == 1]
        assert len(singles) == 13, "1 and a number of four bits, of which two are held out"
        expected = sum(singles) / 13
        assert sum((count - expected) ** 2 / expected for count in singles) < 12 + 5 * math.sqrt(24)

    def test_long_numbers_are_uniform(self) -> None:
        """Every bit of a number of forty bits is 1 half of the time."""
        strings = SquareRoot(shortest=40, longest=40).train_batch(0, 20_000).inputs[:, :40].double()
        assert float((strings.mean(dim=0) - 0.5).abs().max()) < 5 * math.sqrt(0.25 / 20_000)

    def test_stack_heights_are_uniform(self) -> None:
        """A string of five is a stack of 1 … 4 bits and actions; three actions are equally likely."""
        tokens = StackManipulation(shortest=5, longest=5).train_batch(0, 20_000).inputs[:, :5]
        heights = (tokens < 2).sum(dim=1).bincount(minlength=5)[1:]
        assert float((heights - 5000.0).abs().max()) < 5 * math.sqrt(20_000 * 0.25 * 0.75)
        actions = tokens[:, -1].bincount(minlength=5)[2:]
        assert float((actions - 20_000 / 3).abs().max()) < 5 * math.sqrt(20_000 * 2 / 9)


class TestLevels:
    """Chance by enumeration, other sizes and slices."""

    def test_chance_of_stack_manipulation(self) -> None:
        """Over all strings of four, weighted as they are drawn."""
        bit = mark = 0.0
        reference = TestStackManipulationConformance()
        for height in (1, 2, 3):
            strings = list(product(*[(0, 1)] * height, *[(2, 3, 4)] * (4 - height)))
            answers = [reference.answer(list(string)) for string in strings]
            bit += sum(answer.count(0) / len(answer) for answer in answers) / len(answers) / 3
            mark += sum(1 / len(answer) for answer in answers) / len(answers) / 3
        assert math.isclose(StackManipulation(shortest=4, longest=4).chance, max(bit, mark))

    @pytest.mark.parametrize("member", TASKS)
    def test_extrapolations_and_slices(self, member: type[Task]) -> None:
        """Every published setting and every longer one gives a batch; slices give the length at scored steps."""
        for task in member.presets().values():
            for each in (task, *task.extrapolations().values()):
                batch = each.batch("test", np.arange(3))
                lengths = [len(string) for string, _ in asked(each, batch)]
                assert each.slices(batch)["length"].max(dim=1).values.tolist() == lengths
                assert batch.inputs.shape[1] == each.max_length
