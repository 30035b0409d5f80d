"""What a layer applied, handed on as it is: for penalties that eigenvalues alone do not serve."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specreg.estimators.base import Estimator, counted_transition
from specreg.operators import LinearOperator, StructuredOperator
from specreg.system import LinearSystem


@dataclass(frozen=True)
class AppliedSystem(Estimator[LinearSystem]):
    """The system itself, for penalties of its influence and memory; raises `TypeError` for an operator."""

    gives = LinearSystem

    def __call__(self, source: LinearSystem | LinearOperator, generator: torch.Generator | None = None) -> LinearSystem:
        if isinstance(source, LinearSystem):
            return source
        raise TypeError(
            f"AppliedSystem takes a system, which has inputs and readouts, got {type(source).__name__}: "
            "give what `with_systems` hands out"
        )


@dataclass(frozen=True)
class AppliedOperator(Estimator[StructuredOperator]):
    """The transitions, or an operator as it is, for penalties of its matrices; masked steps are left out.

    A transition that varies over time and is masked gives one batch axis of the steps that count, in place of the batch
    and the time axis. Raises `TypeError` for an operator without a dense form.
    """

    gives = StructuredOperator

    def __call__(
        self, source: LinearSystem | LinearOperator, generator: torch.Generator | None = None
    ) -> StructuredOperator:
        if isinstance(source, StructuredOperator):
            return source
        if not isinstance(source, LinearSystem):
            raise TypeError(
                f"AppliedOperator takes a system or a structured operator, got {type(source).__name__}: wrap it as "
                "Dense(…)"
            )
        return counted_transition(source)
