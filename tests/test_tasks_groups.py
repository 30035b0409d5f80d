"""Words of finite groups, and the groups."""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specreg.tasks.group_words import GroupWords
from specreg.tasks.groups import group
from specreg.testing.examples import real_tokens
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike


class TestGroupWordsConformance(TaskConformance):
    """Words of S3; the group is made of permutations or residues by hand."""

    repeats = 0.01  # 6⁸ words
    factors: tuple[Callable[[], tuple[list[Any], Callable[[Any, Any], Any]]], ...] = (lambda: symmetric(3),)

    @cached_property
    def task(self) -> TaskLike:
        return replace(GroupWords.tiny(), validation_examples=1000)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        answers = torch.zeros_like(batch.targets)
        for row, tokens in enumerate(real_tokens(batch)):
            assert tokens[0] == task.num_classes == math.prod(len(elements) for elements, _ in self.parts)
            assert not bool((batch.targets[row, :1] == 0).any())
            for step, token in enumerate(tokens[1:], start=1):
                answers[row, step] = token if step == 1 else self.times(int(answers[row, step - 1]), token)
        return answers

    @cached_property
    def parts(self) -> list[tuple[list[Any], Callable[[Any, Any], Any]]]:
        return [factor() for factor in self.factors]

    def times(self, a: int, b: int) -> int:
        number = scale = 0
        for elements, operation in reversed(self.parts):
            (a, i), (b, j) = divmod(a, len(elements)), divmod(b, len(elements))
            place = elements.index(operation(elements[i], elements[j]))
            number, scale = number + place * max(scale, 1), max(scale, 1) * len(elements)
        return number


class TestA5Conformance(TestGroupWordsConformance):
    factors = (lambda: alternating(5),)

    @cached_property
    def task(self) -> TaskLike:
        return replace(GroupWords.presets()["a5-20"], validation_examples=1000, longest=6, shortest=6)


class TestA4TimesZ5Conformance(TestGroupWordsConformance):
    repeats = 0.15  # there are 60 words of one element
    factors = (lambda: alternating(4), lambda: cyclic(5))

    @cached_property
    def task(self) -> TaskLike:
        return GroupWords(group="A4xZ5", shortest=1, longest=9)


class TestFiniteZ6Conformance(TestGroupWordsConformance):
    repeats = 0.05
    factors = (lambda: cyclic(6),)

    @cached_property
    def task(self) -> TaskLike:
        return GroupWords(group="Z6", shortest=6, longest=6, train_examples=400, pairs=True)


def symmetric(degree: int) -> tuple[list[Any], Callable[[Any, Any], Any]]:
    """Return the permutations in lexicographic order, and the product that applies the left one first."""
    elements = list(itertools.permutations(range(degree)))
    return elements, lambda a, b: tuple(b[a[place]] for place in range(degree))


def alternating(degree: int) -> tuple[list[Any], Callable[[Any, Any], Any]]:
    """Return the permutations of determinant 1."""
    elements, product = symmetric(degree)
    return [p for p in elements if np.linalg.det(np.eye(degree)[list(p)]) > 0], product


def cyclic(order: int) -> tuple[list[Any], Callable[[Any, Any], Any]]:
    """Return the residues and their sum."""
    return list(range(order)), lambda a, b: (a + b) % order


class TestGroupWords:
    """Words."""

    def test_words_of_two_come_first(self) -> None:
        """With `pairs` a training set opens with all words of two elements, and then has none."""
        task = GroupWords(group="S3", shortest=5, longest=5, train_examples=100, pairs=True)
        batch = task.batch("train", np.arange(100))
        assert batch.lengths.tolist() == [3] * 36 + [6] * 64
        assert {tuple(tokens[1:]) for tokens in batch.inputs[:36, :3].tolist()} == set(
            itertools.product(range(6), repeat=2)
        )
        assert task.batch("test", np.arange(50)).lengths.unique().tolist() == [6]


class TestGroups:
    """Tables of products."""

    @pytest.mark.parametrize(
        ("name", "order", "commutative", "solvable", "orders"),
        [
            ("Z60", 60, True, True, (2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60)),
            ("A4xZ5", 60, False, True, (2, 3, 5, 10, 15)),
            ("A5", 60, False, False, (2, 3, 5)),
            ("S5", 120, False, False, (2, 3, 4, 5, 6)),
            ("S3", 6, False, True, (2, 3)),
            ("S4", 24, False, True, (2, 3, 4)),
            ("Z2×Z3", 6, True, True, (2, 3, 6)),
            ("Z1", 1, True, True, ()),
            ("A2", 1, True, True, ()),
        ],
    )
    def test_structure(self, name: str, order: int, commutative: bool, solvable: bool, orders: tuple[int, ...]) -> None:
        found = group(name)
        table, numbers = found.table, np.arange(order)
        assert found.order == len(found.names) == len(set(found.names)) == order
        assert (found.commutative, found.solvable, found.element_orders) == (commutative, solvable, orders)
        assert (table[0] == numbers).all()
        assert (table[:, 0] == numbers).all()
        assert (np.sort(table, axis=0) == numbers[:, None]).all()
        assert (np.sort(table, axis=1) == numbers).all()
        assert (table[table] == table[:, table]).all(), "(a·b)·c = a·(b·c)"

    def test_product_applies_the_left_element_first(self) -> None:
        s3 = group("S3")
        assert s3.names == ("123", "132", "213", "231", "312", "321")
        # 1 ↔ 2 first, then 2 ↔ 3: 1 → 2 → 3, 2 → 1 → 1, 3 → 3 → 2
        assert s3.names[s3.table[2, 1]] == "312"

    @pytest.mark.parametrize("name", ["", "B3", "S", "S0", "s5", "A5x", "A5*Z2", "S5 "])
    def test_unknown_names(self, name: str) -> None:
        with pytest.raises(ValueError, match="give S, A or Z with a number"):
            group(name)

    @pytest.mark.parametrize("name", ["S7", "A7", "Z1001", "S5xZ9", "S999999999"])
    def test_too_large(self, name: str) -> None:
        with pytest.raises(ValueError, match=re.escape("at most 1,000 are tabulated")):
            group(name)
