"""From an operator to what is known of its spectrum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from specreg.operators import LinearOperator, StructuredOperator
from specreg.system import LinearSystem

Knowledge = TypeVar("Knowledge", covariant=True)


def at_counted_steps(transition: StructuredOperator, mask: Tensor) -> StructuredOperator:  # batch (B|1, T|1, …)
    """The transitions of the steps that count, one batch axis in the place of the batch and the time axis."""
    batch, steps = (max(a, b) for a, b in zip(transition.shape[:2], mask.shape, strict=True))
    counted = mask.expand(batch, steps)
    return transition.map(lambda field: field.expand(batch, steps, *field.shape[2:])[counted])


class Estimator(ABC, Generic[Knowledge]):
    """What finds eigenvalues; members are frozen dataclasses.

    `gives` is the type of the result: a term pairs the estimator only with a penalty that takes it.
    """

    gives: ClassVar[type]

    @abstractmethod
    def __call__(self, source: LinearSystem | LinearOperator, generator: torch.Generator | None = None) -> Knowledge:
        """What is known of the spectrum of a system, masked steps counted out, or of an operator.

        `generator` draws what is random; None: a fresh one seeded with 0. Nobody's global random state is touched.
        """
