"""Spectral loss terms: an estimator, a penalty, a weight and a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specreg.estimators import Estimator
from specreg.operators import LinearOperator
from specreg.penalties import Penalty
from specreg.system import LinearSystem


@dataclass(frozen=True)
class Constant:
    """The factor 1 at every step."""

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Ramp:
    """From 0 at step `start` linearly to 1 at step `stop`; a later start than stop ramps down from 1 to 0."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.start == self.stop:
            raise ValueError(f"Ramp needs two different steps, got {self.start} twice")

    def __call__(self, step: int) -> float:
        return min(1.0, max(0.0, (step - self.start) / (self.stop - self.start)))


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a term found: the weighted loss, the penalty of each layer and the spectra behind them."""

    loss: Tensor  # scalar
    penalties: Mapping[str, Tensor]  # by layer, unweighted
    spectra: Mapping[str, Any]  # what the estimator gave: a Spectrum for Exact


@dataclass(frozen=True)
class Term:
    """weight · schedule(step) · mean over layers of penalty(estimator(layer)).

    Raises `TypeError` where the penalty cannot use what the estimator gives, `ValueError` for a weight that is negative
    or not finite.

    A term whose factor is 0 is left out of the loss by the caller (`factor`): adding 0 times a value does not give
    bit-identical sums.
    """

    name: str
    estimator: Estimator[Any]
    penalty: Penalty
    weight: float = 1.0
    schedule: Callable[[int], float] = Constant()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"term {self.name!r}: the weight is a finite number of at least 0, got {self.weight}")
        if not isinstance(self.penalty, Penalty):
            raise TypeError(f"term {self.name!r} needs a penalty such as Band(0.5, 1.0), got {self.penalty!r}")
        if not isinstance(self.estimator, Estimator):
            raise TypeError(f"term {self.name!r} needs an estimator such as Exact(), got {self.estimator!r}")
        if not issubclass(self.estimator.gives, self.penalty.takes):
            raise TypeError(
                f"term {self.name!r}: {type(self.penalty).__name__} takes a {self.penalty.takes.__name__} and "
                f"{type(self.estimator).__name__} gives a {self.estimator.gives.__name__}: change one of the two"
            )
        if not callable(self.schedule):
            raise TypeError(f"term {self.name!r} needs a schedule such as Ramp(0, 1000), got {self.schedule!r}")

    def factor(self, step: int) -> float:
        """weight · schedule(step)."""
        return self.weight * self.schedule(step)

    def __call__(self, systems: Mapping[str, LinearSystem | LinearOperator], step: int = 0) -> Evaluation:
        """Evaluate on named systems or operators, such as the layers that `with_systems` hands out."""
        if not systems:
            raise ValueError(f"term {self.name!r} got no system: give a mapping from layer name to system")
        spectra = {name: self.estimator(system) for name, system in systems.items()}
        penalties = {name: self.penalty(spectrum) for name, spectrum in spectra.items()}
        loss = self.factor(step) * torch.stack(list(penalties.values())).mean()
        return Evaluation(loss, penalties, spectra)
