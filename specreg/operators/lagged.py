"""What travels through a varying system over given lags, for all readers at once and without a T×T matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from specreg.operators.base import StructuredOperator, windowed_sum
from specreg.operators.chain import RESCALED_EVERY, magnitude, rescaled, spread
from specreg.operators.decayed import is_traced
from specreg.operators.householder import HouseholderProduct, RankOneUpdate, solve_reflections

CHUNK = 64  # steps that are walked one by one; further ones are crossed a chunk at a time
MOST_GROWTH = 1.0  # log of the growth of a chunk of reflections up to which their WY form is used


def lagged_sizes(
    operator: StructuredOperator,  # batch (B|1, T, H)
    inputs: Tensor,  # (B|1, T|1, H|1, n, r)
    readouts: Tensor,  # (B|1, T|1, H|1, p, n)
    lags: Sequence[int],
) -> list[tuple[Tensor, Tensor]]:
    """‖Re Q_t Λ_t … Λ_{t−lag+1} K_{t−lag}‖ for each lag and all t ≥ lag, as size and log factor ``(B|1, T−lag, H)``.

    Exact. Time is cut into chunks of C: sources are carried forward to the later readers of their chunk and to its end,
    readers back to before its start, and readers then cross whole chunks by the chunks' products. Time O(T² n²/C) for
    the longest lag, memory O(T² n/C) where a gradient is asked for; magnitudes are split off as logs on the way.

    Products of reflections that do not grow are carried by their compact WY form, without a loop over steps, to within
    eps of what the decay alone would leave.
    """
    batch = torch.broadcast_shapes(operator.shape[:-2], *((part.shape[0], 1, 1) for part in (inputs, readouts)))
    operator, inputs, readouts = spread(operator, batch), _full(inputs, batch), _full(readouts, batch)
    log_scale = magnitude(operator)
    reflections = _steady(operator, log_scale)
    if reflections is not None:
        log_scale = reflections.log_factor
        chunks = _Chunks.reflected(reflections, inputs, readouts)
    else:
        chunks = _Chunks.walked(operator.scaled(-log_scale), inputs, readouts)
    sizes = []
    for lag, (kernel, logs) in zip(lags, chunks.kernels(lags), strict=True):
        size: Tensor = torch.linalg.vector_norm(kernel.flatten(-2), dim=-1)
        sizes.append((size, logs + windowed_sum(log_scale, lag, 1)[:, 1:] if lag else logs))
    return sizes


@dataclass(frozen=True, eq=False)
class _Chunks:
    """A system in chunks of C steps, axes (B, chunks, H, …), with what is known inside each."""

    length: int
    near: Tensor  # (B, chunks, H, C, C, p, r): by reader and source of one chunk
    near_logs: Tensor  # (B, chunks, H, C, C)
    sources: Tensor  # (B, chunks, H, C, n, r), carried to the chunk's end
    source_logs: Tensor  # (B, chunks, H, C)
    readers: Tensor  # (B, chunks, H, C, p, n), carried back to before the chunk's first step
    reader_logs: Tensor  # (B, chunks, H, C)
    crossing: Tensor  # (B, chunks, H, n, n), the product of a chunk
    crossing_logs: Tensor  # (B, chunks, H)

    @classmethod
    def walked(cls, operator: StructuredOperator, inputs: Tensor, readouts: Tensor) -> _Chunks:
        """Step by step, all chunks at once."""
        batch, length = operator.shape[:2]
        width = min(CHUNK, length)
        product = operator.map(lambda field: _padded(field, width)).window(width, width)
        logs = magnitude(product)
        crossing = product.scaled(-logs).dense()
        dtype = _joint(crossing, inputs, readouts)
        sources, readers = (_folded(part.to(dtype), width).unbind(1) for part in (inputs, readouts))
        steps = operator.map(lambda field: _folded(field, width)).steps(width)
        parts = (*_forward(steps, sources, readers), *_backward(steps, readers))
        near, near_logs, carried, source_logs, back, reader_logs = (p.unflatten(0, (batch, -1)) for p in parts)
        return cls(length, near, near_logs, carried, source_logs, back, reader_logs, crossing.to(dtype), logs)

    @classmethod
    def reflected(cls, operator: HouseholderProduct, inputs: Tensor, readouts: Tensor) -> _Chunks:
        """Without the decays, from Π (I − β_j k_j k_jᴴ) = I − Kᵀ W with (I + BL) W = B K̄, rows for each prefix.

        A source u of step s meets the factors of later steps alone: (I + BL) z = B K̄ u with the rows up to s set to 0,
        and later readers find u − Kᵀ z, with the factors up to themselves.
        """
        length, width = operator.shape[1], min(CHUNK, operator.shape[1])
        dtype = _joint(operator.keys, inputs, readouts)
        keys, beta = (_chunked(part.to(dtype), width).flatten(3, 4) for part in (operator.keys, operator.beta))
        sources, readers = (_chunked(part.to(dtype), width) for part in (inputs, readouts))
        reads, rank = readers.shape[-2], sources.shape[-1]
        written, rows = sources.movedim(-2, -3).flatten(-2), readers.flatten(-3, -2)  # (…, n, C·r), (…, C·p, n)
        steps = torch.arange(width, device=keys.device)
        later = steps.repeat_interleave(operator.keys.shape[-2])[:, None] > steps  # (C·m, C), factor after source
        met = (keys.conj() @ written) * later.repeat_interleave(rank, -1)
        solved = solve_reflections(keys.conj() @ keys.mT, beta, torch.cat((met, keys.conj()), -1))
        change, product = solved.split((met.shape[-1], keys.shape[-1]), -1)
        seen = (rows @ keys.mT) * ~later.mT.repeat_interleave(reads, 0)
        near = (rows @ written - seen @ change).unflatten(-1, (-1, rank)).unflatten(-3, (-1, reads)).movedim(-3, -2)
        carried = (written - keys.mT @ change).unflatten(-1, (-1, rank)).movedim(-2, -3)
        back = (rows - seen @ product).unflatten(-2, (-1, reads))
        crossing = torch.eye(keys.shape[-1], dtype=dtype, device=keys.device) - keys.mT @ product
        logs = torch.zeros_like(operator.log_factor[:, :1]).expand(crossing.shape[:3])
        each = logs.unsqueeze(-1).expand(*logs.shape, width)
        return cls(
            length, near, each.unsqueeze(-1).expand(*each.shape, width), carried, each, back, each, crossing, logs
        )

    def kernels(self, lags: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """±Q_t Λ_t … Λ_{t−lag+1} K_{t−lag} for each lag, as values ``(B, T−lag, H, p, r)`` and log factors.

        A lag of qC + ρ has q − 1 whole chunks between reader and source where the reader is at step ρ or later of its
        own chunk, and q before; so the readers, carried on chunk by chunk, are met with sources at two distances.
        """
        width = self.near.shape[3]
        wanted = {hop for lag in lags for hop in (lag // width - 1, lag // width if lag % width else -1)} - {-1}
        far = {lag: [self._near(lag)] if lag < width else [] for lag in lags}
        readers, logs = self.readers[:, 1:], self.reader_logs[:, 1:]
        for hop in range(max(wanted, default=-1) + 1):
            if hop:
                readers, logs = self._crossed(readers, logs, hop)
            if hop % RESCALED_EVERY == RESCALED_EVERY - 1:
                readers, size = rescaled(readers, (-1, -2))
                logs = logs + size
            for lag in far:
                start = lag % width
                if lag // width == hop + 1:
                    far[lag].append(self._met(readers, logs, slice(start, None), slice(0, width - start)))
                if lag // width == hop and start:
                    far[lag].append(self._met(readers, logs, slice(0, start), slice(width - start, None)))
        return [self._joined(far[lag], lag) for lag in lags]

    def _near(self, lag: int) -> tuple[Tensor, Tensor]:
        """Readers and sources of the same chunk."""
        kernel = self.near.diagonal(-lag, 3, 4).movedim(-1, 3)
        return kernel, self.near_logs.diagonal(-lag, 3, 4)

    def _crossed(self, readers: Tensor, logs: Tensor, hop: int) -> tuple[Tensor, Tensor]:
        """Readers carried back over one more chunk; those of the first chunk left have no further past."""
        chunks = slice(1, self.crossing.shape[1] - hop)
        flat = readers[:, 1:].flatten(3, 4) @ self.crossing[:, chunks]
        return flat.unflatten(3, readers.shape[3:5]), logs[:, 1:] + self.crossing_logs[:, chunks].unsqueeze(-1)

    def _met(self, readers: Tensor, logs: Tensor, ours: slice, theirs: slice) -> tuple[Tensor, Tensor]:
        """Readers from step `ours` of their chunks with the sources at steps `theirs`, one to one."""
        count = readers.shape[1]
        kernel = readers[:, :, :, ours] @ self.sources[:, :count, :, theirs]
        return kernel, logs[..., ours] + self.source_logs[:, :count, :, theirs]

    def _joined(self, parts: list[tuple[Tensor, Tensor]], lag: int) -> tuple[Tensor, Tensor]:
        """The later steps of each chunk, then its earlier ones in front, in the order of time."""
        width = self.near.shape[3]
        chunks, start = self.near.shape[1] - lag // width, lag % width
        whole = []
        for index, later in enumerate(parts[0]):
            later = later.real if later.is_complex() else later
            tail = (0, 0) * (later.dim() - 4)
            if len(parts) == 2:
                earlier = parts[1][index].real if parts[1][index].is_complex() else parts[1][index]
                earlier = F.pad(earlier, (*tail, 0, 0, 0, 0, chunks - earlier.shape[1], 0))
            else:
                earlier = F.pad(later[:, :, :, :0], (*tail, start, 0))
            steps = torch.cat((earlier, later), 3).movedim(3, 2).flatten(1, 2)
            whole.append(steps[:, start : start + self.length - lag])
        return whole[0], whole[1]


def _forward(
    steps: Sequence[StructuredOperator],  # C of batch (N, H)
    inputs: Sequence[Tensor],  # C of (N, H, n, r)
    readouts: Sequence[Tensor],  # C of (N, H, p, n)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sources carried forward through their chunk: what later readers of it read, and what is left at its end."""
    width, rank = len(steps), inputs[0].shape[-1]
    state, logs = inputs[0], steps[0].log_scale().new_zeros(*inputs[0].shape[:2], 1)
    near, near_logs = [], []
    for index, (step, written, readout) in enumerate(zip(steps, inputs, readouts, strict=True)):
        if index:
            state = torch.cat((step.mm(state), written), -1)
            logs = F.pad(logs, (0, 1))
        if index % RESCALED_EVERY == RESCALED_EVERY - 1 or index == width - 1:
            each, size = rescaled(state.unflatten(-1, (-1, rank)), (-3, -1))
            state, logs = each.flatten(-2), logs + size
        read = (readout @ state).unflatten(-1, (-1, rank)).movedim(-2, 2)
        near.append(F.pad(read, (0, 0, 0, 0, 0, width - index - 1)))
        near_logs.append(F.pad(logs, (0, width - index - 1)))
    return torch.stack(near, 2), torch.stack(near_logs, 2), state.unflatten(-1, (-1, rank)).movedim(-2, 2), logs


def _backward(
    steps: Sequence[StructuredOperator],  # C of batch (N, H)
    readouts: Sequence[Tensor],  # C of (N, H, p, n)
) -> tuple[Tensor, Tensor]:
    """Readers carried back to before their chunk: rows ``(N, H, C, p, n)`` and logs ``(N, H, C)``."""
    rank = readouts[0].shape[-2]
    state, logs = readouts[-1].mH[..., :0], steps[0].log_scale().new_zeros(*readouts[0].shape[:2], 0)
    for index, (step, readout) in enumerate(zip(steps[::-1], readouts[::-1], strict=True), 1):
        adjoint = step.adjoint()
        assert isinstance(adjoint, StructuredOperator)
        state, logs = adjoint.mm(torch.cat((readout.mH, state), -1)), F.pad(logs, (1, 0))
        if index % RESCALED_EVERY == 0 or index == len(steps):
            each, size = rescaled(state.unflatten(-1, (-1, rank)), (-3, -1))
            state, logs = each.flatten(-2), logs + size
    return state.mH.unflatten(-2, (-1, rank)), logs


def _steady(operator: StructuredOperator, log_scale: Tensor) -> HouseholderProduct | None:
    """The operator as reflections if none is 0 or grows so that a chunk of them would lose digits.

    None under a compiler or a transform too, which sees no values.
    """
    product = operator.product() if isinstance(operator, RankOneUpdate) else operator
    if not isinstance(product, HouseholderProduct) or is_traced(log_scale, product.keys, product.beta):
        return None
    keeps = ((log_scale - product.log_factor) * CHUNK <= MOST_GROWTH).all()
    return product if bool(keeps) else None


def _joint(*tensors: Tensor) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _full(part: Tensor, batch: Sequence[int]) -> Tensor:
    return part.expand(*batch, *part.shape[3:])


def _padded(field: Tensor, width: int) -> Tensor:
    """Time filled up to whole chunks with the last step again, which nobody reads."""
    missing = -field.shape[1] % width
    return torch.cat((field, *[field[:, -1:]] * missing), 1)


def _chunked(part: Tensor, width: int) -> Tensor:
    """(B, T, H, …) as (B, chunks, H, C, …)."""
    chunks: Tensor = _padded(part, width).unflatten(1, (-1, width))
    return chunks.movedim(2, 3)


def _folded(field: Tensor, width: int) -> Tensor:
    """(B, T, …) as (B · chunks, C, …)."""
    chunks: Tensor = _padded(field, width).unflatten(1, (-1, width))
    return chunks.flatten(0, 1)
