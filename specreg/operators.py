"""Transitions as linear operators: a batch of square maps whose structure owns the eigenvalues.

Inside a system the batch axes are always ``(B|1, T|1, H)``: batch element, time step, head or independent block.
Decays are held as log-modulus with a sign or phase beside it and are never exponentiated first, because the
scores of a trained attention overflow ``exp`` in float32 and a modulus of 1e-30 is a real answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from specreg.spectrum import from_polar, polar


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
    def window(self, width: int, stride: int = 1) -> Self:
        """The products Λ_{t+width} … Λ_{t+1} along the time axis (batch axis 1), one every `stride` steps.

        A time-invariant operator (time axis of size 1) gives its power and keeps the size-1 axis. Raises `ValueError`
        for a window longer than the time axis, a stride below 1, or an operator without a time axis.
        """

    def eigenvalues(self) -> Tensor:
        """The distinct eigenvalues, complex ``(*batch, m)``, with `multiplicity` beside them."""
        return from_polar(self.log_modulus(), self.phase())

    def polar(self) -> tuple[Tensor, Tensor]:
        """log-modulus and phase together, each ``(*batch, m)``."""
        return self.log_modulus(), self.phase()

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
        unbound = {f.name: v.unbind(1) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
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


@dataclass(frozen=True, eq=False)
class ScaledIdentity(StructuredOperator):
    """±exp(a) I: one decay for all n states of a head, as in attention, Mamba-2 and RetNet."""

    log_factor: Tensor  # (*batch), log of the modulus
    size: int
    sign: Tensor | None = None  # (*batch), ±1; None: positive

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.log_factor.shape, self.size, self.size))

    def dense(self) -> Tensor:
        identity = torch.eye(self.size, dtype=self.log_factor.dtype, device=self.log_factor.device)
        return self._factor()[..., None, None] * identity

    def log_modulus(self) -> Tensor:
        return self.log_factor.unsqueeze(-1)

    def phase(self) -> Tensor:
        if self.sign is None:
            return torch.zeros_like(self.log_factor).unsqueeze(-1)
        return (self.sign < 0).to(self.log_factor).expand_as(self.log_factor).unsqueeze(-1) * torch.pi

    def multiplicity(self) -> Tensor:
        return torch.tensor([self.size], device=self.log_factor.device)

    def mm(self, matrix: Tensor) -> Tensor:
        return self._factor()[..., None, None] * matrix

    def adjoint(self) -> ScaledIdentity:
        return self

    def scaled(self, log_scale: Tensor) -> ScaledIdentity:
        log_factor = self.log_factor + log_scale
        return replace(self, log_factor=log_factor, sign=_expanded(self.sign, log_factor))

    def window(self, width: int, stride: int = 1) -> ScaledIdentity:
        check_window(self.shape, width, stride)
        sign = None if self.sign is None else _windowed_sign(self.sign, width, stride)
        return replace(self, log_factor=windowed_sum(self.log_factor, width, stride), sign=sign)

    @classmethod
    def example(cls) -> ScaledIdentity:
        """Decays and growths of both signs, batch (2, 7, 3), n = 4, float64."""
        draw = torch.Generator().manual_seed(0)
        log_factor = torch.randn(2, 7, 3, dtype=torch.float64, generator=draw)
        sign = torch.randn(2, 7, 3, dtype=torch.float64, generator=draw).sign()
        return cls(log_factor, size=4, sign=sign)

    def _factor(self) -> Tensor:
        return self.log_factor.exp() if self.sign is None else self.sign * self.log_factor.exp()


@dataclass(frozen=True, eq=False)
class Diagonal(StructuredOperator):
    """diag(λ_1 … λ_n) by log-modulus and, for a complex operator, phase, or, for a real one, sign.

    A complex operator holds its n values; where the system takes a real part at the read-out, the conjugates belong
    to that real part and are not held (S4D, S5, LRU).
    """

    log_magnitude: Tensor  # (*batch, n)
    angle: Tensor | None = None  # (*batch, n), radians; None: a real operator
    sign: Tensor | None = None  # (*batch, n), ±1, real operators only; None: positive

    def __post_init__(self) -> None:
        if self.angle is not None and self.sign is not None:
            raise ValueError("Diagonal takes an angle (complex) or a sign (real), not both")

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.log_magnitude.shape, self.log_magnitude.shape[-1]))

    def diagonal(self) -> Tensor:
        """The entries ``(*batch, n)``, complex where an angle is given."""
        if self.angle is not None:
            return from_polar(self.log_magnitude, self.angle)
        modulus = self.log_magnitude.exp()
        return modulus if self.sign is None else self.sign * modulus

    def dense(self) -> Tensor:
        return torch.diag_embed(self.diagonal())

    def log_modulus(self) -> Tensor:
        return self.log_magnitude

    def phase(self) -> Tensor:
        if self.angle is not None:
            return self.angle.expand_as(self.log_magnitude)
        if self.sign is None:
            return torch.zeros_like(self.log_magnitude)
        return (self.sign < 0).to(self.log_magnitude).expand_as(self.log_magnitude) * torch.pi

    def multiplicity(self) -> Tensor:
        return torch.ones(self.log_magnitude.shape[-1], dtype=torch.long, device=self.log_magnitude.device)

    def mm(self, matrix: Tensor) -> Tensor:
        return self.diagonal().unsqueeze(-1) * matrix

    def adjoint(self) -> Diagonal:
        return self if self.angle is None else replace(self, angle=-self.angle)

    def scaled(self, log_scale: Tensor) -> Diagonal:
        log_magnitude = self.log_magnitude + log_scale.unsqueeze(-1)
        angle, sign = _expanded(self.angle, log_magnitude), _expanded(self.sign, log_magnitude)
        return Diagonal(log_magnitude, angle=angle, sign=sign)

    def window(self, width: int, stride: int = 1) -> Diagonal:
        check_window(self.shape, width, stride)
        angle = None if self.angle is None else windowed_sum(self.phase(), width, stride)
        sign = None if self.sign is None else _windowed_sign(self.sign, width, stride)
        return Diagonal(windowed_sum(self.log_magnitude, width, stride), angle=angle, sign=sign)

    @classmethod
    def example(cls) -> Diagonal:
        """Complex entries inside and outside the unit disc, batch (2, 7, 3), n = 4, float64."""
        draw = torch.Generator().manual_seed(0)
        log_magnitude, angle = torch.randn(2, 2, 7, 3, 4, dtype=torch.float64, generator=draw)
        return cls(log_magnitude, angle=angle)


@dataclass(frozen=True, eq=False)
class Dense(StructuredOperator):
    """A batch of square matrices without structure, real or complex: a recurrent weight, a Jacobian.

    Raises `ValueError` for a matrix that is not square and, when eigenvalues are asked for, for an entry that is NaN
    or infinite, with the index of the batch element.

    The gradient is torch's, which needs a basis of eigenvectors. At a defective matrix (a shift, a Jordan block) no
    gradient exists: torch raises `LinAlgError` in the backward pass, for the whole batch if one matrix is so, or gives
    values of order 1/eps. Leave such matrices out or add a small random one; values alone are safe.
    """

    matrix: Tensor  # (*batch, n, n)

    def __post_init__(self) -> None:
        if self.matrix.dim() < 2 or self.matrix.shape[-1] != self.matrix.shape[-2]:
            raise ValueError(f"Dense takes square matrices (*batch, n, n), got shape {tuple(self.matrix.shape)}")

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    def dense(self) -> Tensor:
        return self.matrix

    def eigenvalues(self) -> Tensor:
        if not torch.isfinite(self.matrix).all():
            bad = (~torch.isfinite(self.matrix)).flatten(-2).any(-1).nonzero()[0].tolist()
            raise ValueError(f"eigenvalues need finite matrices: batch element {tuple(bad)} holds a NaN or an infinity")
        return torch.linalg.eigvals(self.matrix)  # type: ignore[no-any-return]

    def polar(self) -> tuple[Tensor, Tensor]:
        return polar(self.eigenvalues())  # one solve for both

    def log_modulus(self) -> Tensor:
        return self.polar()[0]

    def phase(self) -> Tensor:
        return self.polar()[1]

    def multiplicity(self) -> Tensor:
        return torch.ones(self.matrix.shape[-1], dtype=torch.long, device=self.matrix.device)

    def mm(self, matrix: Tensor) -> Tensor:
        dtype = torch.promote_types(self.matrix.dtype, matrix.dtype)
        return self.matrix.to(dtype) @ matrix.to(dtype)

    def adjoint(self) -> Dense:
        return Dense(self.matrix.mH)

    def log_scale(self) -> Tensor:
        """log of the largest entry: no eigensolve is needed to keep a product in range."""
        return self.matrix.abs().amax((-1, -2)).log()

    def scaled(self, log_scale: Tensor) -> Dense:
        return Dense(self.matrix * log_scale.exp()[..., None, None])

    def window(self, width: int, stride: int = 1) -> Dense:
        check_window(self.shape, width, stride)
        if self.matrix.shape[1] == 1:
            return Dense(torch.linalg.matrix_power(self.matrix, width))
        last = self.matrix.shape[1] - width + 1
        product = self.matrix[:, 0:last:stride]
        for offset in range(1, width):
            product = self.matrix[:, offset : offset + last : stride] @ product
        return Dense(product)

    @classmethod
    def example(cls) -> Dense:
        """Real matrices with real and complex eigenvalues, batch (2, 7, 3), n = 4, float64."""
        return cls(torch.randn(2, 7, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def _expanded(field: Tensor | None, like: Tensor) -> Tensor | None:
    return None if field is None else field.expand_as(like)


def _windowed_sign(sign: Tensor, width: int, stride: int) -> Tensor:
    negatives = windowed_sum((sign < 0).to(torch.float64), width, stride)
    return (1 - 2 * torch.remainder(negatives, 2)).to(sign.dtype)
