"""Formal languages with one answer a string or one a step: conformance, rules, laws, splits by content, bytes."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specreg.tasks.cumulative_parity import CumulativeParity
from specreg.tasks.cycle_navigation import CycleNavigation
from specreg.tasks.even_pairs import EvenPairs
from specreg.tasks.group_words import GroupWords
from specreg.tasks.majority import Majority
from specreg.tasks.missing_duplicate import MissingDuplicate
from specreg.tasks.modular_arithmetic import ModularArithmetic
from specreg.tasks.modular_arithmetic_brackets import ModularArithmeticBrackets
from specreg.tasks.parity import Parity
from specreg.tasks.solve_equation import SolveEquation
from specreg.tasks.task import Task
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike

SPLITS = ("train", "validation", "test")


def real_tokens(batch: BatchLike) -> Iterator[list[int]]:
    """Yield each example's tokens without padding."""
    for row, tokens in enumerate(batch.inputs.tolist()):
        yield tokens if batch.mask is None else tokens[: int(batch.mask[row].sum())]


def contents(task: Task, split: str, count: int) -> set[tuple[int, ...]]:
    """Return the different strings among the first examples of a split."""
    return {tuple(tokens) for tokens in real_tokens(task.draw(split, np.arange(count)))}  # type: ignore[arg-type]


class FormalConformance(TaskConformance):
    """The reference answers one string, at the last step or, as a list, at each."""

    overlap = 0.5  # training meets short strings again; held-out splits share none, which is tested without allowance

    def answer(self, tokens: list[int]) -> int | list[int]:
        """Return the answer, or one a step."""
        raise NotImplementedError

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        answers = torch.zeros_like(batch.targets)
        for row, tokens in enumerate(real_tokens(batch)):
            answer = self.answer(tokens)
            last = answer if isinstance(answer, list) else [answer]
            answers[row, len(tokens) - len(last) : len(tokens)] = torch.tensor(last)
            if not isinstance(answer, list):
                assert (batch.targets[row] == 0).nonzero().flatten().tolist() == [len(tokens) - 1]
        return answers

    def test_splits_are_disjoint(self) -> None:
        """Not a single string is shared, however short."""
        task: Any = self.task
        train, validation, test = (contents(task, split, 5000) for split in SPLITS)
        assert not train & validation
        assert not train & test
        assert not validation & test


class TestParityConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(Parity.tiny(), validation_examples=1000)

    def answer(self, tokens: list[int]) -> int:
        assert set(tokens) <= {1, 2}
        return 1 + tokens.count(2) % 2


class TestPublishedParityConformance(TestParityConformance):
    @cached_property
    def task(self) -> TaskLike:
        return Parity.presets()["xlstm"]


class TestChomskyParityConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return Parity.presets()["chomsky"]

    def answer(self, tokens: list[int]) -> int:
        assert tokens[-1] == 2
        return tokens.count(1) % 2


class TestCumulativeParityConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(CumulativeParity.tiny(), validation_examples=1000)

    def answer(self, tokens: list[int]) -> list[int]:
        return [tokens[: step + 1].count(1) % 2 for step in range(len(tokens))]


class TestPaddedCumulativeParityConformance(TestCumulativeParityConformance):
    @cached_property
    def task(self) -> TaskLike:
        return CumulativeParity(shortest=8, longest=30)


class TestEvenPairsConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(EvenPairs.tiny(), validation_examples=1000)

    def answer(self, tokens: list[int]) -> int:
        return 1 + changes(tokens) % 2


class TestChomskyEvenPairsConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return EvenPairs.presets()["chomsky"]

    def answer(self, tokens: list[int]) -> int:
        return changes(tokens[:-1]) % 2


class TestCycleNavigationConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(CycleNavigation.tiny(), validation_examples=1000)

    def answer(self, tokens: list[int]) -> int:
        return 4 + sum({1: 0, 2: 1, 3: -1}[token] for token in tokens) % 5


class TestChomskyCycleNavigationConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(CycleNavigation.presets()["chomsky"], places=4)

    def answer(self, tokens: list[int]) -> int:
        return sum(token - 1 for token in tokens[:-1]) % 4


class TestMajorityConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(Majority.tiny(), validation_examples=1000)

    def answer(self, tokens: list[int]) -> int:
        return int(tokens.count(1) / (len(tokens) - 1) > 0.5)


class TestCumulativeMajorityConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return Majority(shortest=6, longest=14, cumulative=True)

    def answer(self, tokens: list[int]) -> list[int]:
        return [int(tokens[:end].count(1) >= tokens[:end].count(0)) for end in range(1, len(tokens) + 1)]


class TestModularArithmeticConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(ModularArithmetic.tiny(), validation_examples=1000)

    def answer(self, tokens: list[int]) -> int:
        assert tokens[-1] == 4
        return 5 + eval("".join("·+-*="[token] if token < 5 else str(token - 5) for token in tokens[:-1])) % 5


class TestPublishedModularArithmeticConformance(TestModularArithmeticConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(ModularArithmetic.presets()["xlstm"], faithful=True)


class TestChomskyModularArithmeticConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return ModularArithmetic.presets()["chomsky"]

    def answer(self, tokens: list[int]) -> int:
        assert tokens[-1] == 9
        return eval("".join(str(token) if token < 5 else "+-*"[token - 5] for token in tokens[:-1])) % 5


class TestBracketsConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(ModularArithmeticBrackets.tiny(), validation_examples=1000)

    def answer(self, tokens: list[int]) -> int:
        assert tokens[-1] == 10
        return value(tokens[:-1]) % 5


class TestChomskyBracketsConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return ModularArithmeticBrackets.presets()["chomsky"]

    def answer(self, tokens: list[int]) -> int:
        assert tokens[-1] == 11
        return value(tokens[:-1]) % 5


class TestSolveEquationConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(SolveEquation.tiny(), validation_examples=1000)

    def answer(self, tokens: list[int]) -> int:
        assert tokens[-1] == 11
        assert tokens[-3] == 10
        assert tokens.count(9) == 1
        text = "".join(str(token) if token < 5 else "+-()x"[token - 5] for token in tokens[:-3])
        (solution,) = [digit for digit in range(5) if eval(text.replace("x", str(digit))) % 5 == tokens[-2]]
        return solution


class TestPublishedSolveEquationConformance(TestSolveEquationConformance):
    @cached_property
    def task(self) -> TaskLike:
        return SolveEquation()


class TestMissingDuplicateConformance(FormalConformance):
    @cached_property
    def task(self) -> TaskLike:
        return replace(MissingDuplicate.tiny(), validation_examples=1000)

    def answer(self, tokens: list[int]) -> int:
        assert tokens[-1] == 4
        half = (len(tokens) - 1) // 2
        assert tokens[2 * half : -1] == [3] * ((len(tokens) - 1) % 2)
        place = tokens.index(2)
        answer = tokens[(place + half) % (2 * half)]
        tokens[place] = answer
        assert tokens[:half] == tokens[half : 2 * half]
        return answer


class TestPublishedMissingDuplicateConformance(TestMissingDuplicateConformance):
    @cached_property
    def task(self) -> TaskLike:
        return MissingDuplicate()


def changes(bits: list[int]) -> int:
    """Count 01 and 10."""
    return sum(a != b for a, b in itertools.pairwise(bits))


def value(tokens: list[int]) -> int:
    """Evaluate a bracketed expression by Python's rules."""
    return int(eval("".join(str(token) if token < 5 else "+-*()"[token - 5] for token in tokens)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Parity(shortest=0), "give 1 ≤ shortest ≤ longest"),
        (lambda: Parity(shortest=1), "give 2 or more"),
        (lambda: Parity(shortest=9, longest=8), "shortest is 9 and longest 8"),
        (lambda: Parity(shortest=2, longest=2), "give 3 or more"),
        (lambda: Parity(variant="xlstms"), "variant is 'xlstms'; give one of xlstm, chomsky"),
        (lambda: ModularArithmeticBrackets(variant="other"), "give one of xlstm, chomsky"),
        (lambda: ModularArithmetic(modulus=2), "give 3 … 100"),
        (lambda: ModularArithmetic(shortest=2), "give 3 or more"),
        (lambda: ModularArithmetic(variant="chomsky", faithful=True), "the defect is that of 'xlstm'"),
        (lambda: ModularArithmeticBrackets(modulus=101), "give 3 … 100"),
        (lambda: ModularArithmeticBrackets(shortest=1, longest=2), "give 3 or more"),
        (lambda: SolveEquation(modulus=1), "give 3 … 100"),
        (lambda: SolveEquation(shortest=2), "give 3 ≤ shortest"),
        (lambda: MissingDuplicate(shortest=1), "give 2 ≤ shortest"),
        (lambda: MissingDuplicate(longest=3), "give 4 or more"),
        (lambda: CycleNavigation(places=2), "3 or more"),
        (lambda: Majority(shortest=1, longest=1), "give 2 or more"),
        (lambda: GroupWords(group="Z1"), "of one element"),
        (lambda: GroupWords(group="Q8"), "group is 'Q8'"),
        (lambda: GroupWords(pairs=True), "give a training set of 3,600 or more"),
        (lambda: GroupWords(pairs=True, train_examples=3599), "give a training set of 3,600 or more"),
    ],
)
def test_impossible_settings(make: Callable[[], Task], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def digest(task: Task) -> str:
    """Return a digest of the first examples of every split."""
    state = sha256()
    for split in SPLITS:
        batch = task.draw(split, np.arange(50))  # type: ignore[arg-type]
        state.update(batch.inputs.numpy().tobytes() + batch.targets.numpy().tobytes())
    return state.hexdigest()[:16]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Parity(), "3e78367513b7d8d0"),
        (Parity(variant="chomsky", shortest=1), "56748ca9ba49630b"),
        (CumulativeParity(), "9b2c481d6d260f11"),
        (EvenPairs(), "6c1c33d36ed1c182"),
        (CycleNavigation(), "6d9191f3d3ba7d64"),
        (Majority(), "100a13bf1071a2a6"),
        (ModularArithmetic(), "96f9ca448a62c75f"),
        (ModularArithmetic(variant="chomsky", shortest=1), "e775de3d8f0b5d2b"),
        (ModularArithmeticBrackets(), "5ddab0f5c8886807"),
        (SolveEquation(), "32a6d16ec8c8ecf9"),
        (MissingDuplicate(), "b6b7a08f8db1f998"),
        (GroupWords(), "86ed445e6ab4b728"),
        (GroupWords(group="S5", shortest=2, longest=40, seed=2**63), "f6e791f8e50a0a80"),
    ],
)
def test_bytes(task: Task, expected: str) -> None:
    """The bytes themselves, which may never change: published numbers refer to them."""
    assert digest(task) == expected
