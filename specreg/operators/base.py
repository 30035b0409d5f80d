"""Transitions as linear operators: a batch of square maps whose structure owns the eigenvalues.

Inside a system the batch axes are always ``(B|1, T|1, H)``: batch element, time step, head or independent block.
Decays are held as log-modulus with a sign or phase beside it and are never exponentiated first, because the
scores of a trained attention overflow ``exp`` in float32 and a modulus of 1e-30 is a real answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from specreg.spectrum import from_polar


class LinearOperator(ABC):
    """A batch of square linear maps; batch axes first."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """``(*batch, n, n)``."""

    @abstractmethod
    def mv(self, vector: Tensor) -> Tensor:  # (*batch, n)
        """Apply the map to one vector of each batch element."""

    @abstractmethod
    def adjoint(self) -> LinearOperator:
        """The conjugate transpose."""


@dataclass(frozen=True, eq=False)
class StructuredOperator(LinearOperator):
    """An operator whose eigenvalues come in closed form or by one dense solve.

    Every tensor field has the full batch axes in front (size 1 where constant), so that an operation on the batch
    is the same operation on every field.
    """

    normal: ClassVar[bool] = False  # whether every member is a normal map, with κ = 1, and no eigensolve is made

    @abstractmethod
    def dense(self) -> Tensor:
        """The matrices, ``(*batch, n, n)``."""

    @abstractmethod
    def log_modulus(self) -> Tensor:
        """log |λ| of the distinct eigenvalues, ``(*batch, m)``; never through ``exp``."""

    @abstractmethod
    def phase(self) -> Tensor:
        """arg λ of the distinct eigenvalues in radians, ``(*batch, m)``."""

    @abstractmethod
    def multiplicity(self) -> Tensor:
        """How often each distinct eigenvalue occurs, ``(m,)``; sums to n."""

    @abstractmethod
    def mm(self, matrix: Tensor) -> Tensor:  # (*batch, n, r)
        """Apply the map to the columns of a matrix."""

    @abstractmethod
    def scaled(self, log_scale: Tensor) -> Self:  # (*batch), real
        """The operator times exp(log_scale), one real factor for each batch element."""

    @abstractmethod
    def window(self, width: int, stride: int = 1) -> StructuredOperator:
        """The products Λ_{t+width} … Λ_{t+1} along the time axis (batch axis 1), one every `stride` steps.

        A time-invariant operator (time axis of size 1) gives its power and keeps the size-1 axis. Raises `ValueError`
        for a window longer than the time axis, a stride below 1, or an operator without a time axis.
        """

    def eigenvalues(self) -> Tensor:
        """The distinct eigenvalues, complex ``(*batch, m)``, with `multiplicity` beside them."""
        return from_polar(*self.polar())

    def polar(self) -> tuple[Tensor, Tensor]:
        """log-modulus and phase together, each ``(*batch, m)``."""
        return self.log_modulus(), self.phase()

    def conditioned(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """`polar`, and κ = ‖v‖‖y‖/|yᴴv| of each distinct eigenvalue ``(*batch, m)``, detached; None: not known.

        v and y are vectors of the operator itself, whatever smaller problem they come from. κ is exactly 1 for
        `normal` maps.
        """
        log_modulus, phase = self.polar()
        return log_modulus, phase, torch.ones_like(log_modulus.detach()) if self.normal else None

    @classmethod
    @abstractmethod
    def example(cls) -> Self:
        """A small instance for tests: float64, batch axes (B, T, H) with at least six steps, no zeros."""

    def mv(self, vector: Tensor) -> Tensor:
        return self.mm(vector.unsqueeze(-1)).squeeze(-1)

    def log_scale(self) -> Tensor:
        """A log magnitude that can be split off, ``(*batch)``: the largest log |λ|."""
        return self.log_modulus().amax(-1)

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The operator with `function` applied to each tensor field: slicing, moving, detaching of the whole batch."""
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: function(value) for name, value in tensors.items()})

    def steps(self, length: int) -> list[Self]:
        """One operator for each of `length` time steps, batch axes ``(B|1, H)``; a time-invariant one is repeated."""
        if self.shape[1] == 1:
            return [self.map(lambda field: field.squeeze(1))] * length
        unbound = {
            f.name: v.unbind(1) * (length if v.shape[1] == 1 else 1)
            for f in fields(self)
            if isinstance(v := getattr(self, f.name), Tensor)
        }
        return [replace(self, **{name: parts[t] for name, parts in unbound.items()}) for t in range(length)]


def check_window(shape: torch.Size, width: int, stride: int) -> None:  # (*batch, n, n)
    """Refuse a window that the time axis (batch axis 1) cannot hold."""
    if len(shape) < 4:
        raise ValueError(f"a window needs a time axis, the second batch axis, got an operator of shape {tuple(shape)}")
    steps = shape[1]
    if width < 1 or stride < 1 or (width > steps > 1):
        longest = "any width" if steps == 1 else f"a width up to {steps}"
        raise ValueError(f"window({width}, {stride}) of {steps} steps: allowed are {longest} and strides, from 1 on")


def windowed_sum(logs: Tensor, width: int, stride: int) -> Tensor:
    """Sums of `width` consecutive entries of `logs` ``(B, T, …)`` along axis 1, also where entries are −inf.

    A cumulative sum makes it O(T), in float64 because float32 loses 2e-4 at 4096 steps; zeros of the product are
    counted apart, since −inf − (−inf) is not a number.
    """
    if logs.shape[1] == 1:
        return logs * width
    zero = logs == -torch.inf
    finite = torch.where(zero, 0.0, logs).double()
    padded = torch.nn.functional.pad(finite.cumsum(1).movedim(1, -1), (1, 0)).movedim(-1, 1)
    zeros = torch.nn.functional.pad(zero.long().cumsum(1).movedim(1, -1), (1, 0)).movedim(-1, 1)
    stop, start = slice(width, None, stride), slice(None, -width, stride)
    sums = (padded[:, stop] - padded[:, start]).to(logs.dtype)
    return torch.where(zeros[:, stop] > zeros[:, start], -torch.inf, sums)


def expanded(field: Tensor | None, like: Tensor) -> Tensor | None:
    return None if field is None else field.expand_as(like)


def windowed_sign(sign: Tensor, width: int, stride: int) -> Tensor:
    negatives = windowed_sum((sign < 0).to(torch.float64), width, stride)
    return (1 - 2 * torch.remainder(negatives, 2)).to(sign.dtype)
