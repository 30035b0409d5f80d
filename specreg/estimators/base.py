"""From an operator to what is known of its spectrum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from specreg.operators import LinearOperator, StructuredOperator
from specreg.system import LinearSystem

Knowledge = TypeVar("Knowledge", covariant=True)


def as_operator(source: LinearSystem | LinearOperator, name: str) -> LinearOperator:
    """The operator itself, or a system's transitions; `TypeError` with the estimator's name for anything else."""
    if isinstance(source, LinearSystem):
        return counted_transition(source)
    if not isinstance(source, LinearOperator):
        raise TypeError(f"{name} takes a system or a linear operator, got {type(source).__name__}: wrap it as Dense(…)")
    return source


def counted_transition(system: LinearSystem) -> StructuredOperator:
    """The transitions of the steps that count.

    Where they vary over time and a mask leaves steps out, one batch axis stands for the batch and the time axis.
    """
    transition, mask = system.transition, system.mask
    if mask is None or transition.shape[1] == 1:
        return transition
    batch, steps = (max(a, b) for a, b in zip(transition.shape[:2], mask.shape, strict=True))
    counted = mask.expand(batch, steps)
    return transition.map(lambda field: field.expand(batch, steps, *field.shape[2:])[counted])


def number_type(operator: LinearOperator) -> tuple[torch.dtype, torch.device]:
    """What an operator says that it acts on, or, if structured, what its product with a vector of its tensors' type is.

    Raises `TypeError` for an operator that does not say.
    """
    dtype, device = getattr(operator, "dtype", None), getattr(operator, "device", None)
    if isinstance(dtype, torch.dtype) and device is not None:
        return dtype, torch.device(device)
    if not isinstance(operator, StructuredOperator):
        raise TypeError(f"{type(operator).__name__} does not say what it acts on: give it a `dtype` and a `device`")
    first = (slice(1),) * (len(operator.shape) - 2)  # one batch element tells it for all
    tensors: list[Tensor] = []
    one = operator.map(lambda field: tensors.append(field) or field[first])  # type: ignore[func-returns-value]
    vector = torch.zeros(one.shape[:-1], dtype=tensors[0].dtype, device=tensors[0].device)
    for tensor in tensors[1:]:
        vector = vector.to(torch.promote_types(vector.dtype, tensor.dtype))
    with torch.no_grad():
        return one.mv(vector).dtype, vector.device


def own_stream(generator: torch.Generator | None) -> torch.Generator:
    """A generator on the CPU, seeded by a draw from `generator`, or from one of seed 0.

    A weight drawn under the same seed would otherwise hold the very numbers of a random probe, and estimates on it
    would be far off: the mean of a 200×200 matrix's spectrum by thirteen standard errors.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    seed = torch.randint(2**62, (), device=generator.device, generator=generator)
    return torch.Generator().manual_seed(int(seed))


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
