"""Formal languages with one answer a string or one a step: conformance, rules, laws."""

import itertools
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from specreg.tasks.cumulative_parity import CumulativeParity
from specreg.tasks.cycle_navigation import CycleNavigation
from specreg.tasks.even_pairs import EvenPairs
from specreg.tasks.majority import Majority
from specreg.tasks.missing_duplicate import MissingDuplicate
from specreg.tasks.modular_arithmetic import ModularArithmetic
from specreg.tasks.modular_arithmetic_brackets import ModularArithmeticBrackets
from specreg.tasks.parity import Parity
from specreg.tasks.solve_equation import SolveEquation
from specreg.testing.examples import real_tokens
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike


class FormalConformance(TaskConformance):
    """The reference answers one string, at the last step or, as a list, at each."""

    repeats = 0.5  # training meets short strings again

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
