"""From an operator to what is known of its spectrum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from specreg.operators import StructuredOperator
from specreg.system import LinearSystem

Knowledge = TypeVar("Knowledge", covariant=True)


class Estimator(ABC, Generic[Knowledge]):
    """What finds eigenvalues; members are frozen dataclasses.

    `gives` is the type of the result: a term pairs the estimator only with a penalty that takes it.
    """

    gives: ClassVar[type]

    @abstractmethod
    def __call__(self, source: LinearSystem | StructuredOperator) -> Knowledge:
        """What is known of the spectrum of a system, masked steps counted out, or of an operator."""
