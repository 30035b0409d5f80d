"""Lyapunov exponents of a product of transitions: how fast perturbations grow or fade, whatever the gauge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specreg.eigen.first_order import first_order_only
from specreg.estimators.base import Estimator, number_type, own_stream
from specreg.operators import Diagonal, LinearOperator, ScaledIdentity, StructuredOperator
from specreg.spectrum import Exponents
from specreg.system import LinearSystem

NUM_BLOCKS = 8  # windows of time whose means give the standard error

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class StepProducts(LinearOperator):
    """A time-varying map given by the product of each of its steps: the Jacobians diag(1 − h_t²) W of a tanh network.

    `product(t, columns)` applies step t to ``(B, H, n, r)``; what it closes over may require grad. Nothing n×n
    is ever made.
    """

    product: Callable[[int, Tensor], Tensor]
    batch: tuple[int, int]  # (B, H)
    length: int
    size: int
    dtype: torch.dtype
    device: torch.device
    adjoint_product: Callable[[int, Tensor], Tensor] | None = None

    @property
    def shape(self) -> torch.Size:
        """``(B, T, H, n, n)``."""
        return torch.Size((self.batch[0], self.length, self.batch[1], self.size, self.size))

    def mv(self, vector: Tensor) -> Tensor:
        columns = vector.unsqueeze(-1).unbind(1)
        return torch.stack([self.product(t, column) for t, column in enumerate(columns)], 1).squeeze(-1)

    def adjoint(self) -> StepProducts:
        if self.adjoint_product is None:
            raise ValueError("these steps were given without their conjugate transposes: give `adjoint_product`")
        return StepProducts(
            self.adjoint_product, self.batch, self.length, self.size, self.dtype, self.device, self.product
        )


@dataclass(frozen=True)
class Lyapunov(Estimator[Exponents]):
    """The k largest Lyapunov exponents Λ_i = lim (1/T) log σ_i(J_T … J_1), in nats a step, by the QR method.

    Q_t R_t = J_t Q_{t−1} and Λ_i = (1/T) Σ_t log |R_ii| (Benettin, Galgani, Giorgilli, Strelcyn 1980, Meccanica 15). A
    decomposition is taken as often as keeps the columns' condition below eps^{−1/4}, where single steps allow that.
    Scalar and diagonal transitions take the time mean of log|λ|, sorted, time-invariant ones log|λ|, which is the limit
    itself; anything else starts from random directions and is off by O(1/T) of the limit. A direction that the product
    maps to 0 has exponent −inf and gradient 0. Cost O(T n k²) at most beside the products with k columns.

    The gradient flows through at most `window` steps of the directions Q_t; None: through all. What J_t itself depends
    on is the caller's graph: through the states of a chaotic network it grows as e^{Λ_1 T} (Mikhaeil, Monfared,
    Durstewitz 2022, arXiv 2110.07238), so cut those at the same windows. There is no second derivative.

    The source is a system, masked steps left out, an operator with batch axes (B, T, H), or `StepProducts`. The result
    has batch axes (B|1, H), and the basis to go on from: `start` takes it for a sequence that arrives in parts.
    Raises `ValueError` for more exponents than states, missing axes, no counted step, and an entry that is not finite.
    """

    num_exponents: int
    window: int | None = 50

    gives = Exponents

    def __post_init__(self) -> None:
        if self.num_exponents < 1:
            raise ValueError(f"num_exponents is {self.num_exponents}: allowed are whole numbers from 1 on")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}: allowed are steps from 1 on, or None for the whole length")

    def __call__(
        self,
        source: LinearSystem | LinearOperator,
        generator: torch.Generator | None = None,
        start: Exponents | None = None,
    ) -> Exponents:
        operator, mask = (source.transition, source.mask) if isinstance(source, LinearSystem) else (source, None)
        self._check(operator, mask)
        if isinstance(operator, StructuredOperator) and _is_closed_form(operator):
            logs, counts = _closed_form(operator, mask)
            return _summary(logs, counts, self.num_exponents, None)
        length = max(operator.shape[1], 1 if mask is None else mask.shape[1])
        steps = _steps(operator, mask, length)
        batch = max(operator.shape[0], 1 if mask is None else mask.shape[0])
        if start is None or start.basis is None:
            basis = _random_basis(operator, batch, self.num_exponents, generator)
        else:
            basis = start.basis
        logs, ends, basis = self._sweep(steps, basis)
        return _summary(logs, _counts_between(mask, ends, logs), self.num_exponents, basis.detach())

    def _sweep(self, steps: Sequence[Step], basis: Tensor) -> tuple[Tensor, list[int], Tensor]:
        """log R_ii ``(decompositions, B, H, k)``, the step after each decomposition, and the last basis."""
        logs, ends, begin, spacing = [], [0], 0, _Spacing(basis)
        while begin < len(steps):
            left = len(steps) - begin if self.window is None else self.window - begin % self.window
            end = min(begin + min(spacing.steps, left), len(steps))
            columns = basis
            for step in steps[begin:end]:
                columns = step(columns)
            if end - begin > 1 and not math.isfinite(_largest(columns)):
                spacing.steps = 1
                continue
            _check_finite(columns, begin)
            following, log_diagonal = _Orthonormal.apply(columns)  # type: ignore[no-untyped-call]
            if not spacing.adapt(log_diagonal.detach(), end - begin):
                continue  # too far apart: the last columns have lost their digits
            logs.append(log_diagonal)
            ends.append(end)
            basis, begin = following, end
            if self.window is not None and begin % self.window == 0:
                basis = basis.detach()
        return torch.stack(logs), ends, basis

    def _check(self, operator: LinearOperator, mask: Tensor | None) -> None:
        if not isinstance(operator, StructuredOperator | StepProducts):
            raise TypeError(
                f"Lyapunov takes a system, a structured operator or StepProducts, got {type(operator).__name__}: wrap "
                "matrices (B, T, H, n, n) as Dense(…), products with them as StepProducts(…)"
            )
        shape = operator.shape
        if len(shape) != 5:
            raise ValueError(f"exponents need batch axes (B, T, H), got an operator of shape {tuple(shape)}")
        if self.num_exponents > shape[-1]:
            raise ValueError(f"{self.num_exponents} exponents of {shape[-1]} states: allowed are 1 to {shape[-1]}")
        if shape[1] == 0:
            raise ValueError("a sequence of 0 steps has no exponents: give at least one")
        if mask is not None:
            _check_counted(mask)


class _Spacing:
    """How many steps to take before the next decomposition."""

    def __init__(self, basis: Tensor) -> None:
        limits = torch.finfo(basis.dtype)
        self.steps = 1
        self.condition = -math.log(limits.eps) / 6
        self.magnitude = math.log(limits.max) / 8

    def adapt(self, logs: Tensor, taken: int) -> bool:
        """Set the number from what the last `taken` steps did to the columns; False if they were too many."""
        finite = torch.isfinite(logs)
        if not finite.all():  # lost by the transitions only if by a single one, else perhaps by rounding
            self.steps = 1
            return taken == 1
        spread = (logs.amax(-1) - logs.amin(-1)).amax()
        used = float(torch.maximum(spread / self.condition, logs.abs().amax() / self.magnitude))
        if used > 1.5 and taken > 1:
            self.steps = max(1, int(taken / used))
            return False
        self.steps = 2 * taken if used * 2 <= 1 else max(1, int(taken / max(used, 0.5)))
        return True


class _Orthonormal(torch.autograd.Function):
    """Y = Q R with R_ii > 0: Q and log R_ii; −inf, without gradient, where a column has nothing left of its own.

    Ȳ = [Q̄ + Q sym(M)] R⁻ᴴ, M = R R̄ᴴ − Q̄ᴴQ, where sym copies the lower triangle to the upper one (Walter, Lehmann 2013,
    Numerical Algorithms 63; arXiv 1009.6112).
    """

    @staticmethod
    def forward(ctx: Any, columns: Tensor) -> tuple[Tensor, Tensor]:
        basis, triangle = torch.linalg.qr(columns)
        diagonal = triangle.diagonal(dim1=-2, dim2=-1)
        phase = torch.where(diagonal == 0, 1.0, torch.sgn(diagonal))
        basis, triangle = basis * phase.unsqueeze(-2), triangle * phase.conj().unsqueeze(-1)
        modulus = diagonal.abs()
        rounding = 4 * columns.shape[-2] * torch.finfo(columns.dtype).eps
        lost = modulus <= rounding * triangle.abs().amax(-2)  # no squares, which overflow at 1e30 in float32
        ctx.save_for_backward(columns, basis, triangle, lost)
        return basis, torch.where(lost, -torch.inf, torch.where(lost, 1.0, modulus).log())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        columns, basis, triangle, lost = ctx.saved_tensors
        of_basis = torch.where(lost.unsqueeze(-2), 0.0, gradients[0]) if bool(lost.any()) else gradients[0]
        modulus = triangle.diagonal(dim1=-2, dim2=-1).real
        of_diagonal = torch.where(lost, 0.0, gradients[1] / torch.where(lost, 1.0, modulus))
        mixed = triangle * of_diagonal.unsqueeze(-2) - of_basis.mH @ basis
        mixed = torch.where(lost.unsqueeze(-1) | lost.unsqueeze(-2), 0.0, mixed)
        lower = mixed.tril(-1)
        mixed = lower + lower.mH + torch.diag_embed(mixed.diagonal(dim1=-2, dim2=-1).real.to(mixed))
        # a lost column's row of R becomes the identity's, so that no gradient reaches it
        safe = torch.where(lost.unsqueeze(-1), torch.eye(triangle.shape[-1]).to(triangle), triangle)
        # k×k solves: with the n rows of Ȳ on the right each matrix of the batch would wake all threads by itself
        inverse = torch.linalg.solve_triangular(safe, torch.eye(triangle.shape[-1]).to(triangle), upper=True)
        return first_order_only((of_basis + basis @ mixed) @ inverse.mH, columns)


def _is_closed_form(operator: StructuredOperator) -> bool:
    return operator.shape[1] == 1 or isinstance(operator, ScaledIdentity | Diagonal)


def _closed_form(operator: StructuredOperator, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """log|λ| of each step, ``(T|1, B|1, H, n)``, 0 where masked, and if it counts ``(T|1, B|1, 1, 1)``."""
    # the size is said, since a compiler cannot read the counts
    counts = operator.multiplicity()
    logs = operator.log_modulus().repeat_interleave(counts, -1, output_size=operator.shape[-1]).movedim(1, 0)
    if mask is None or logs.shape[0] == 1:
        return logs, torch.ones_like(logs[:, :, :1, :1])
    counted = mask.mT[:, :, None, None]
    return torch.where(counted, logs, 0.0), counted.to(logs)


def _steps(operator: LinearOperator, mask: Tensor | None, length: int) -> list[Step]:
    """What each step does to ``(B, H, n, k)``; a masked one does nothing."""
    if isinstance(operator, StepProducts):
        products: list[Step] = [_nth(operator.product, t) for t in range(length)]
    else:
        assert isinstance(operator, StructuredOperator)
        products = [step.mm for step in _without_masked(operator, mask).steps(length)]
    if mask is None:
        return products
    counts = mask[:, :, None, None, None].unbind(1)
    return [_masked(product, count) for product, count in zip(products, counts, strict=True)]


def _nth(product: Callable[[int, Tensor], Tensor], t: int) -> Step:
    return lambda columns: product(t, columns)


def _masked(product: Step, count: Tensor) -> Step:
    return lambda columns: torch.where(count, product(columns), columns)


def _without_masked(operator: StructuredOperator, mask: Tensor | None) -> StructuredOperator:
    """Fields 0 at masked steps, so that not even a NaN there reaches a gradient."""
    if mask is None:
        return operator

    def cleared(field: Tensor) -> Tensor:
        if field.shape[1] == 1:
            return field  # in use at the steps that count too
        counts = mask if field.shape[0] == mask.shape[0] else mask.any(0, keepdim=True)
        return torch.where(counts.reshape(*counts.shape, *(1,) * (field.dim() - 2)), field, 0.0)

    return operator.map(cleared)


def _random_basis(
    operator: LinearOperator, batch: int, num_columns: int, generator: torch.Generator | None
) -> Tensor:  # (B, H, n, k)
    dtype, device = number_type(operator)
    shape = (batch, operator.shape[2], operator.shape[-1], num_columns)
    draw = own_stream(generator)
    basis: Tensor = torch.linalg.qr(torch.randn(shape, dtype=dtype, generator=draw))[0]
    return basis.to(device)


def _counts_between(mask: Tensor | None, ends: Sequence[int], logs: Tensor) -> Tensor:
    """How many steps that count lie between decompositions, ``(decompositions, B|1, 1, 1)``."""
    if mask is None:
        counts = torch.tensor(ends, device=logs.device).diff().unsqueeze(-1)
    else:
        counted = torch.nn.functional.pad(mask.long().cumsum(1), (1, 0))
        counts = counted[:, list(ends)].diff(dim=1).mT
    return counts[:, :, None, None].to(logs)


def _summary(logs: Tensor, counts: Tensor, num_exponents: int, basis: Tensor | None) -> Exponents:
    """Sums of logs over sums of steps, the largest first, with the scatter of `NUM_BLOCKS` stretches of time."""
    means, order = (logs.sum(0) / counts.sum(0)).sort(-1, descending=True)
    stretches = zip(logs.detach().tensor_split(NUM_BLOCKS), counts.tensor_split(NUM_BLOCKS), strict=True)
    blocks = [(part.sum(0), steps.sum(0)) for part, steps in stretches if len(part)]
    sums, weights = (torch.stack(parts) for parts in zip(*blocks, strict=True))
    present = weights > 0
    number = present.sum(0).expand_as(means)
    offset = torch.where(present, sums / torch.where(present, weights, 1.0) - logs.detach().sum(0) / counts.sum(0), 0.0)
    error = (offset.square().sum(0) / (number * (number - 1)).clamp_min(1)).sqrt()
    error = torch.nan_to_num(error, nan=torch.inf).gather(-1, order)
    return Exponents(means[..., :num_exponents], error[..., :num_exponents], basis)


def _check_counted(mask: Tensor) -> None:
    counted = mask.any(1)
    if torch.compiler.is_compiling():  # a graph cannot ask which element it is
        torch._assert_async(counted.all(), "a batch element has no step that counts")
    elif not counted.all():
        raise ValueError(f"batch element {counted.logical_not().nonzero()[0].item()} has no step that counts")


def _largest(columns: Tensor) -> float:
    """The largest modulus, in one pass over memory; NaN or ∞ if anything is not finite."""
    return float(torch.linalg.vector_norm(columns.detach(), math.inf))


def _check_finite(columns: Tensor, step: int) -> None:
    if math.isfinite(_largest(columns)):
        return
    finite = torch.isfinite(columns.detach()).all(-1).all(-1).all(-1)
    if not finite.all():  # a complex number's modulus may overflow before its parts do
        where = (~finite).nonzero()[0].item()
        raise ValueError(
            f"exponents need finite transitions: batch element {where} gives a NaN or an infinity at {step}"
        )
