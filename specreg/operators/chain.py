"""Products of operators, and windows of those whose products leave their structure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specreg.eigen.dense import conditioned_eigenvalues, eigenvalues
from specreg.operators.base import StructuredOperator, check_window, windowed_sum
from specreg.operators.closed_form import Diagonal, ScaledIdentity
from specreg.operators.dense import Dense
from specreg.spectrum import polar

RESCALED_EVERY = 8  # steps of a product between two checks of its magnitude


@dataclass(frozen=True, eq=False)
class Chain(StructuredOperator):
    """exp(a) A_1 A_2 … A_k, the last factor applied first.

    Scalar factors are taken out. One factor that remains keeps its own eigenvalues; those of diagonal factors multiply;
    any others need one dense n×n solve of their product, each brought to order 1 first, so that logs survive.
    Raises `ValueError` for no factors, factors of different sizes, or batches that do not broadcast.
    """

    factors: tuple[StructuredOperator, ...]
    log_factor: Tensor | None = None  # (*batch), log of a positive factor; None: 1

    def __post_init__(self) -> None:
        sizes = {factor.shape[-1] for factor in self.factors}
        if len(sizes) != 1:
            raise ValueError(f"Chain takes at least one operator, all of one size, got sizes {sorted(sizes)}")
        batches = [factor.shape[:-2] for factor in self.factors]
        try:
            batch = torch.broadcast_shapes(*batches, *([] if self.log_factor is None else [self.log_factor.shape]))
        except RuntimeError as error:
            raise ValueError(f"Chain takes batches that broadcast, got {[tuple(b) for b in batches]}") from error
        object.__setattr__(self, "factors", tuple(spread(factor, batch) for factor in self.factors))
        if self.log_factor is not None:
            object.__setattr__(self, "log_factor", self.log_factor.expand(batch))

    @property
    def shape(self) -> torch.Size:
        return self.factors[0].shape

    def dense(self) -> Tensor:
        return self._times(_product([factor.dense() for factor in self.factors]))

    def polar(self) -> tuple[Tensor, Tensor]:
        scalars, others = self._split()
        if len(others) > 1 and not _all_diagonal(others):
            product, logs = _joined(others)
            log_modulus, phase = polar(eigenvalues(product))
            return self._with_scalars(scalars, log_modulus + logs, phase)
        log_modulus, phase = (torch.stack(p).sum(0) for p in zip(*(o.polar() for o in others or scalars), strict=True))
        return self._with_scalars(scalars if others else [], log_modulus, phase)

    def conditioned(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """κ is that of the one factor that is no scalar, or of the product; scalars and diagonals have 1."""
        scalars, others = self._split()
        if _all_diagonal(others):
            log_modulus, phase = self.polar()
            return log_modulus, phase, torch.ones_like(log_modulus.detach())
        if len(others) == 1:
            log_modulus, phase, condition = others[0].conditioned()
        else:
            product, logs = _joined(others)
            values, condition = conditioned_eigenvalues(product)
            log_modulus, phase = polar(values)
            log_modulus = log_modulus + logs
        return (*self._with_scalars(scalars, log_modulus, phase), condition)

    def log_modulus(self) -> Tensor:
        return self.polar()[0]

    def phase(self) -> Tensor:
        return self.polar()[1]

    def multiplicity(self) -> Tensor:
        scalars, others = self._split()
        if len(others) < 2:
            return (*others, *scalars)[0].multiplicity()
        return torch.ones(self.shape[-1], dtype=torch.long, device=others[0].multiplicity().device)

    def mm(self, matrix: Tensor) -> Tensor:
        for factor in self.factors[::-1]:
            matrix = factor.mm(matrix)
        return self._times(matrix)

    def adjoint(self) -> Chain:
        adjoints = [factor.adjoint() for factor in self.factors[::-1]]
        return replace(self, factors=tuple(a for a in adjoints if isinstance(a, StructuredOperator)))

    def log_scale(self) -> Tensor:
        """The sum over the factors: no eigensolve is needed to keep a product in range."""
        logs = torch.stack([factor.log_scale() for factor in self.factors]).sum(0)
        return logs if self.log_factor is None else logs + self.log_factor

    def scaled(self, log_scale: Tensor) -> Chain:
        return replace(self, log_factor=log_scale if self.log_factor is None else self.log_factor + log_scale)

    def window(self, width: int, stride: int = 1) -> StructuredOperator:
        if not _all_diagonal(self._split()[1]):
            return dense_window(self, width, stride)
        check_window(self.shape, width, stride)  # these commute: each has its own window
        log_factor = None if self.log_factor is None else windowed_sum(self.log_factor, width, stride)
        return Chain(tuple(factor.window(width, stride) for factor in self.factors), log_factor)

    def map(self, function: Callable[[Tensor], Tensor]) -> Chain:
        log_factor = None if self.log_factor is None else function(self.log_factor)
        return Chain(tuple(factor.map(function) for factor in self.factors), log_factor)

    def steps(self, length: int) -> list[Chain]:
        if self.shape[1] == 1:
            return [self.map(lambda field: field.squeeze(1))] * length
        logs: Sequence[Tensor | None] = [None] * length if self.log_factor is None else self.log_factor.unbind(1)
        factors = zip(*(factor.steps(length) for factor in self.factors), strict=True)
        return [Chain(parts, log) for parts, log in zip(factors, logs, strict=True)]

    @classmethod
    def example(cls) -> Chain:
        """A negative scalar, a diagonal and a dense factor, batch (2, 7, 3), n = 4, float64."""
        diagonal = replace(Diagonal.example(), angle=None)
        log_factor = torch.randn(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        return cls((ScaledIdentity.example(), diagonal, Dense.example()), log_factor)

    def _split(self) -> tuple[list[StructuredOperator], list[StructuredOperator]]:
        scalars = [factor for factor in self.factors if isinstance(factor, ScaledIdentity)]
        return [*scalars], [factor for factor in self.factors if not isinstance(factor, ScaledIdentity)]

    def _with_scalars(
        self, scalars: Sequence[StructuredOperator], log_modulus: Tensor, phase: Tensor
    ) -> tuple[Tensor, Tensor]:
        for scalar in scalars:
            log_modulus, phase = log_modulus + scalar.log_modulus(), phase + scalar.phase()
        return log_modulus if self.log_factor is None else log_modulus + self.log_factor.unsqueeze(-1), phase

    def _times(self, matrix: Tensor) -> Tensor:
        return matrix if self.log_factor is None else matrix * self.log_factor.exp()[..., None, None]


def dense_window(operator: StructuredOperator, width: int, stride: int = 1, piece: int = 1) -> Chain:
    """The products Λ_{t+width} … Λ_{t+1} of any operator, one every `stride` steps, as scaled dense matrices.

    `piece` steps are joined by the operator's own `window` before they are multiplied on, where that is cheap. Cost
    O(T n³ width / stride) at worst; magnitudes are kept apart as logs. What is below eps of a product's largest entry
    is rounding, as its smaller eigenvalues over long windows are: Lyapunov exponents have those. Errors as for
    `StructuredOperator.window`.
    """
    check_window(operator.shape, width, stride)
    log_scale = magnitude(operator)
    normed = spread(operator.scaled(-log_scale), operator.shape[:-2])
    if operator.shape[1] == 1:
        return _power(normed.dense(), log_scale, width)
    last = operator.shape[1] - width + 1
    logs = windowed_sum(log_scale, width, stride)
    product: Tensor | None = None
    for count, start in enumerate(range(0, width, piece), 1):
        steps = min(piece, width - start)
        part = normed.map(lambda field, a=start, b=start + last + steps - 1: field[:, a:b])  # type: ignore[misc]
        joined = part.window(steps, stride) if steps > 1 else part.map(lambda field: field[:, ::stride])
        product = joined.dense() if product is None else joined.mm(product)
        if count % RESCALED_EVERY == 0:
            product, size = rescaled(product, (-1, -2))
            logs = logs + size
    assert product is not None  # width is at least 1
    return Chain((Dense(product),), logs)


def magnitude(operator: StructuredOperator) -> Tensor:
    """The log magnitude to split off, 0 where the operator itself is 0: −inf can be neither taken out nor put back."""
    log_scale = operator.log_scale()
    return torch.where(log_scale == -torch.inf, 0.0, log_scale)


def rescaled(tensor: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """`tensor` with largest entry 1 along `axes` (0 stays), and the log of what was split off, without gradient."""
    size = tensor.detach().abs().amax(axes, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    return tensor / size, size.log().squeeze(axes)


def _power(matrix: Tensor, log_scale: Tensor, exponent: int) -> Chain:
    """A power by repeated squaring, each square brought to order 1."""
    square, log_square = matrix, torch.zeros_like(log_scale)
    result, logs = None, log_scale * exponent
    for index in range(exponent.bit_length()):
        if exponent >> index & 1:
            result, size = rescaled(square if result is None else square @ result, (-1, -2))
            logs = logs + log_square + size
        square, size = rescaled(square @ square, (-1, -2))
        log_square = 2 * log_square + size
    assert result is not None  # the exponent is at least 1
    return Chain((Dense(result),), logs)


def _joined(factors: Sequence[StructuredOperator]) -> tuple[Tensor, Tensor]:
    """The product of factors brought to order 1, and the log of what that took out, ``(*batch, 1)``."""
    scales = [magnitude(factor) for factor in factors]
    parts = [factor.scaled(-scale).dense() for factor, scale in zip(factors, scales, strict=True)]
    return _product(parts), torch.stack(scales).sum(0).unsqueeze(-1)


def _all_diagonal(factors: Sequence[StructuredOperator]) -> bool:
    return all(isinstance(factor, Diagonal) for factor in factors)


def _product(matrices: Sequence[Tensor]) -> Tensor:
    dtype = matrices[0].dtype
    for matrix in matrices[1:]:
        dtype = torch.promote_types(dtype, matrix.dtype)
    product = matrices[-1].to(dtype)
    for matrix in matrices[-2::-1]:
        product = matrix.to(dtype) @ product
    return product


def spread(operator: StructuredOperator, batch: torch.Size) -> StructuredOperator:
    """The operator with every field expanded to the batch axes, without a copy."""
    extra = (1,) * (len(batch) - len(operator.shape[:-2]))
    depth = len(operator.shape[:-2])
    return operator.map(lambda field: field.reshape(*extra, *field.shape).expand(*batch, *field.shape[depth:]))
