"""What travels through scalar and diagonal decays over given lags, in closed form and little memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specreg.operators.closed_form import Diagonal, ScaledIdentity

BLOCK = 1 << 16  # numbers of one block of readers, so that its intermediates stay in cache


def decayed_sizes(
    operator: ScaledIdentity | Diagonal,  # batch (B|1, T|1, H)
    inputs: Tensor,  # (B|1, T|1, H|1, n, r)
    readouts: Tensor,  # (B|1, T|1, H|1, p, n)
    lags: Sequence[int],
    length: int,
) -> list[tuple[Tensor, Tensor]]:
    """‖Re Q_t Λ_t … Λ_{t−lag+1} K_{t−lag}‖ for each lag and all t ≥ lag, as size and log factor ``(B|1, T−lag, H)``.

    From differences of cumulative logs in float64. Time O(T n) a lag; each block of readers is computed again for the
    gradient, so that memory is O(T n) in all. The log factor is without gradient.
    """
    logs = operator.log_factor.unsqueeze(-1) if isinstance(operator, ScaledIdentity) else operator.log_magnitude
    shape = (logs.shape[0], length, *logs.shape[2:])
    erased = logs.detach() == -torch.inf
    totals = torch.where(erased, 0.0, logs).double().expand(shape).cumsum(1)
    if isinstance(operator, Diagonal) and operator.angle is not None:
        totals = torch.complex(totals, operator.angle.double().expand(shape).cumsum(1))
    if operator.sign is not None:
        sign = operator.sign.unsqueeze(-1) if isinstance(operator, ScaledIdentity) else operator.sign
        signs = sign.detach().expand(shape).cumprod(1)
        inputs, readouts = inputs * signs.unsqueeze(-1), readouts * signs.unsqueeze(-2)
    traced = is_traced(logs, inputs, readouts)
    erasures = erased.expand(shape).cumsum(1) if traced or bool(erased.any()) else None
    fields = (totals, inputs, readouts)
    if traced:  # a compiler decides for itself what to keep
        return [_size(*_parts(fields, lag, lag, length), _alive(erasures, lag, lag, length)) for lag in lags]
    found = _Sizes.apply(*fields, erasures, tuple(lags))  # type: ignore[no-untyped-call]
    return list(zip(found[: len(lags)], found[len(lags) :], strict=True))


def is_traced(*tensors: Tensor) -> bool:
    """Whether a compiler or a transform of `torch.func` looks on, for which values cannot decide the way."""
    return torch.compiler.is_compiling() or any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors))


class _Sizes(torch.autograd.Function):
    """Sizes of all lags, then their log factors; keeps what it was given and nothing else."""

    @staticmethod
    def forward(
        ctx: Any, totals: Tensor, inputs: Tensor, readouts: Tensor, erasures: Tensor | None, lags: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(totals, inputs, readouts, erasures)
        ctx.lags = lags
        fields, length, steps = (totals, inputs, readouts), totals.shape[1], _steps(totals, inputs, readouts)
        sizes, logs = [], []
        for lag in lags:
            spans = [(start, min(start + steps, length)) for start in range(lag, length, steps)]
            found = [_size(*_parts(fields, lag, *span), _alive(erasures, lag, *span)) for span in spans]
            sizes.append(torch.cat([size for size, _ in found], 1))
            logs.append(torch.cat([log for _, log in found], 1))
        ctx.mark_non_differentiable(*logs)
        return (*sizes, *logs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        *fields, erasures = ctx.saved_tensors
        length, wanted = fields[0].shape[1], ctx.needs_input_grad[:3]
        cotangents = cotangents[: len(ctx.lags)]
        if torch.is_grad_enabled():  # a second derivative is wanted: through the formula itself
            sizes = [_size(*_parts(fields, k, k, length), _alive(erasures, k, k, length))[0] for k in ctx.lags]
            moved = [field for field, need in zip(fields, wanted, strict=True) if need]
            found = iter(torch.autograd.grad(sizes, moved, cotangents, create_graph=True))
            return (*(next(found) if need else None for need in wanted), None, None)
        gradients = [torch.zeros_like(field) if need else None for field, need in zip(fields, wanted, strict=True)]
        steps = _steps(*fields)
        for lag, cotangent in zip(ctx.lags, cotangents, strict=True):
            for start in range(lag, length, steps):
                stop = min(start + steps, length)
                _accumulate(gradients, fields, cotangent[:, start - lag : stop - lag], erasures, (lag, start, stop))
        return (*gradients, None, None)


def _size(late: Tensor, early: Tensor, inputs: Tensor, readouts: Tensor, alive: Tensor | None) -> tuple[Tensor, Tensor]:
    """‖Re Σ_n Q_n e^{late − early} K_n‖ over a block of readers, with the largest exponent taken out as a log."""
    change = late - early
    real = change.real if change.is_complex() else change
    largest = real.detach().amax(-1)
    decay = (change - largest.unsqueeze(-1)).exp()
    if alive is not None:
        decay = torch.where(alive, decay, 0)
    precision = torch.promote_types(inputs.dtype, readouts.dtype)
    decay = decay.to(torch.promote_types(precision, torch.complex32) if decay.is_complex() else precision)
    read = readouts * decay.unsqueeze(-2)
    inputs = inputs.to(read.dtype)
    kernel = (
        (read.squeeze(-2) * inputs.squeeze(-1)).sum(-1)[..., None, None] if _thin(inputs, readouts) else read @ inputs
    )
    kernel = kernel.real if kernel.is_complex() else kernel
    size: Tensor = torch.linalg.vector_norm(kernel.flatten(-2), dim=-1)
    return size, largest.to(size.dtype)


def _accumulate(
    gradients: Sequence[Tensor | None],
    fields: Sequence[Tensor],
    cotangent: Tensor,
    erasures: Tensor | None,
    span: tuple[int, int, int],
) -> None:
    """Add the gradient of one block of readers to those of the fields, in place."""
    owners = [gradients[0], *gradients]
    blank = [field if owner is None else owner for field, owner in zip(fields, gradients, strict=True)]
    leaves = [
        part.detach().requires_grad_(owner is not None)
        for part, owner in zip(_parts(fields, *span), owners, strict=True)
    ]
    with torch.enable_grad():
        late, early, inputs, readouts = leaves
        size, _ = _size(late, early, inputs, readouts, _alive(erasures, *span))
    places = _parts(blank, *span)
    moved = [(leaf, place) for leaf, place in zip(leaves, places, strict=True) if leaf.requires_grad]
    found = torch.autograd.grad(size, [leaf for leaf, _ in moved], cotangent)
    for gradient, (_, place) in zip(found, moved, strict=True):
        place += gradient


def _parts(fields: Sequence[Tensor], lag: int, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views for the readers from `start` to `stop`: their totals, their sources' totals and inputs, their read-outs."""
    totals, inputs, readouts = fields
    readers, sources = slice(start, stop), slice(start - lag, stop - lag)
    return totals[:, readers], totals[:, sources], _part(inputs, sources), _part(readouts, readers)


def _alive(erasures: Tensor | None, lag: int, start: int, stop: int) -> Tensor | None:
    """Where no factor between source and reader is 0."""
    return None if erasures is None else erasures[:, start:stop] == erasures[:, start - lag : stop - lag]


def _part(field: Tensor, part: slice) -> Tensor:
    return field if field.shape[1] == 1 else field[:, part]


def _thin(inputs: Tensor, readouts: Tensor) -> bool:
    return inputs.shape[-1] == 1 == readouts.shape[-2]


def _steps(totals: Tensor, inputs: Tensor, readouts: Tensor) -> int:
    """Readers in a block."""
    batch = torch.broadcast_shapes(totals.shape[:1], inputs.shape[:1], readouts.shape[:1])[0]
    heads = torch.broadcast_shapes(totals.shape[2:3], inputs.shape[2:3], readouts.shape[2:3])[0]
    width = inputs.shape[-2] * max(1, inputs.shape[-1], readouts.shape[-2])
    return max(1, BLOCK // int(batch * heads * width))
