"""Formal languages: the bytes of their settings, which may never change, and the settings that are refused."""

import re
from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pytest

from specreg.tasks.binary_addition import BinaryAddition
from specreg.tasks.binary_multiplication import BinaryMultiplication
from specreg.tasks.bucket_sort import BucketSort
from specreg.tasks.cumulative_parity import CumulativeParity
from specreg.tasks.cycle_navigation import CycleNavigation
from specreg.tasks.duplicate_string import DuplicateString
from specreg.tasks.even_pairs import EvenPairs
from specreg.tasks.group_words import GroupWords
from specreg.tasks.majority import Majority
from specreg.tasks.missing_duplicate import MissingDuplicate
from specreg.tasks.modular_arithmetic import ModularArithmetic
from specreg.tasks.modular_arithmetic_brackets import ModularArithmeticBrackets
from specreg.tasks.odds_first import OddsFirst
from specreg.tasks.parity import Parity
from specreg.tasks.reverse_string import ReverseString
from specreg.tasks.solve_equation import SolveEquation
from specreg.tasks.square_root import SquareRoot
from specreg.tasks.stack_manipulation import StackManipulation
from specreg.tasks.task import Task
from specreg.testing.examples import SPLITS


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
        (lambda: ReverseString(shortest=0), "give 1 ≤ shortest"),
        (lambda: ReverseString(longest=1), "give 2 or more"),
        (lambda: DuplicateString(symbols=1), "give 2 … 1000"),
        (lambda: BucketSort(symbols=1001), "give 2 … 1000"),
        (lambda: OddsFirst(variant="evens"), "give one of documented, coded"),
        (lambda: BinaryAddition(shortest=2), "give 3 ≤ shortest"),
        (lambda: BinaryMultiplication(longest=3), "give 4 or more"),
        (lambda: SquareRoot(shortest=5, longest=4), "shortest is 5 and longest 4"),
        (lambda: StackManipulation(longest=1), "give 2 or more"),
    ],
)
def test_impossible_settings(make: Callable[[], Task], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def digest(task: Task) -> str:
    """Return a digest of the first examples of every split."""
    state = sha256()
    for split in SPLITS:
        batch = task.draw(split, np.arange(50))
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
        (ReverseString(), "2238c45e0b8e8575"),
        (DuplicateString(), "900854978fd38b33"),
        (OddsFirst(), "1c70a6dc5220606b"),
        (OddsFirst(variant="coded"), "247dcb2d553f2d4c"),
        (BucketSort(), "5b6c9385e88d416b"),
        (StackManipulation(), "041d42d2162a3a42"),
        (BinaryAddition(), "02184deedb11e77c"),
        (BinaryMultiplication(shortest=60, longest=90), "abd8629ebb1126d9"),
        (SquareRoot(seed=2**63), "cac4c84c0ff4966a"),
    ],
)
def test_bytes(task: Task, expected: str) -> None:
    """Published numbers refer to them."""
    assert digest(task) == expected
