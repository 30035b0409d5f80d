"""The whole spectrum, in closed form or by a dense solve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from specreg.estimators.base import Estimator
from specreg.operators import LinearOperator, StructuredOperator
from specreg.spectrum import Spectrum
from specreg.system import LinearSystem


@dataclass(frozen=True)
class Exact(Estimator[Spectrum]):
    """Every eigenvalue: in closed form where the structure has one, else by one dense solve.

    An operator with fewer than three batch axes gets size-1 axes in front, so that the result always has
    ``(B|1, T|1, H, m)``. Raises `TypeError` for anything but a system or a structured operator, and `ValueError` for an
    operator with more than three batch axes.
    """

    gives = Spectrum

    def __call__(self, source: LinearSystem | LinearOperator, generator: torch.Generator | None = None) -> Spectrum:
        if isinstance(source, StructuredOperator):
            return _spectrum(source)
        if not isinstance(source, LinearSystem):
            raise TypeError(
                f"Exact takes a system or a structured operator, got {type(source).__name__}: wrap it as Dense(…)"
            )
        spectrum = _spectrum(source.transition)
        return replace(spectrum, mask=source.mask)


def _spectrum(operator: StructuredOperator) -> Spectrum:
    log_modulus, phase, condition = operator.conditioned()
    if log_modulus.dim() > 4:
        raise ValueError(
            f"a spectrum has axes (B, T, H, m): allowed are three batch axes at most, got {tuple(operator.shape[:-2])}"
        )
    lead = (1,) * (4 - log_modulus.dim())
    return Spectrum(
        log_modulus.reshape(*lead, *log_modulus.shape),
        phase.reshape(*lead, *phase.shape),
        operator.multiplicity(),
        condition=None if condition is None else condition.reshape(*lead, *condition.shape),
    )
