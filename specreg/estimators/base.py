"""From an operator to what is known of its spectrum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch

from specreg.operators import LinearOperator
from specreg.system import LinearSystem

Knowledge = TypeVar("Knowledge", covariant=True)


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
