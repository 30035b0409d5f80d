"""Linear recurrences without a loop over time steps: the diagonal scan and attention with scalar decays.

Both split the sequence into chunks, handle all chunks at once inside, and carry the state from chunk to chunk. The
plain loops that define them stand in `specreg.system` (`System.unroll`) and in the tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from specreg.models.mixer import full_precision

SCAN_CHUNK = 32
ATTENTION_CHUNK = 64
FORGOTTEN = -800.0  # log of a decay that is 0 in float64, and whose sums over a chunk keep 1e-11


def diagonal_scan(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """h_t = a_t ∘ h_{t−1} + x_t for every t, real or complex: ``(B, T, N)``.

    Two passes over chunks of 32: the chunks' last states, the carry between them, then all states. O(T·N) operations
    and memory traffic of two reads and one write; its own backward is the same scan in reverse, so that nothing but
    the states is kept. Twice differentiable.
    """
    # decay (1, 1, N) time-invariant or (B, T, N); inputs (B, T, N); initial (B, N)
    return DiagonalScan.apply(decay, inputs, initial)  # type: ignore[no-any-return, no-untyped-call]


class DiagonalScan(Function):
    """The scan with its adjoint; use `diagonal_scan`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
        return two_pass_scan(decay, inputs, initial)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        decay, _, initial = inputs
        ctx.save_for_backward(decay, initial, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, initial, states = ctx.saved_tensors
        # g_t = ḡ_t + conj(a_{t+1}) g_{t+1}: the same recurrence, backwards in time, with the decays one step later
        later = decay if decay.shape[1] == 1 else torch.cat((decay[:, 1:], torch.zeros_like(decay[:, :1])), 1)
        adjoint = diagonal_scan(later.flip(1).conj(), grad.flip(1), torch.zeros_like(initial)).flip(1)
        # dL/da_t = g_t conj(h_{t−1}), with h_0 apart so that the states need not be copied one step later
        grad_first, rest, before = adjoint[:, :1] * initial.conj().unsqueeze(1), adjoint[:, 1:], states[:, :-1].conj()
        if decay.shape[1] == 1:
            grad_decay = torch.linalg.vecdot(states[:, :-1], rest, dim=1).unsqueeze(1) + grad_first
        else:
            grad_decay = torch.cat((grad_first, rest * before), 1)
        return grad_decay.sum_to_size(decay.shape), adjoint, decay[:, 0].conj() * adjoint[:, 0]


def two_pass_scan(decay: Tensor, inputs: Tensor, initial: Tensor, chunk: int = SCAN_CHUNK) -> Tensor:
    """`diagonal_scan` without a gradient rule of its own."""
    length = inputs.shape[1]
    if length <= chunk:
        return _sweep(decay, inputs, initial)
    padding = -length % chunk
    blocks = F.pad(inputs, (0, 0, 0, padding)).unflatten(1, (-1, chunk))
    varying = decay.shape[1] != 1
    decays = F.pad(decay, (0, 0, 0, padding)).unflatten(1, (-1, chunk)) if varying else decay.unsqueeze(1)
    lasts, products = torch.zeros_like(blocks[:, :, 0]), torch.ones_like(decays[:, :, 0])
    for k in range(chunk):
        factor = decays[:, :, k] if varying else decays[:, :, 0]
        lasts = torch.addcmul(blocks[:, :, k], factor, lasts)
        products = products * factor
    carries = _sweep(products, lasts, initial)
    starts = torch.cat((initial.unsqueeze(1), carries[:, :-1]), 1)
    states = torch.stack(_states(decays, blocks, starts), 2)
    return states.flatten(1, 2)[:, :length]


def _states(decays: Tensor, blocks: Tensor, state: Tensor) -> list[Tensor]:
    states = []
    for k in range(blocks.shape[2]):
        state = torch.addcmul(blocks[:, :, k], decays[:, :, k if decays.shape[2] != 1 else 0], state)
        states.append(state)
    return states


def _sweep(decay: Tensor, inputs: Tensor, state: Tensor) -> Tensor:
    """The recurrence itself over a short axis 1."""
    return torch.stack(_states(decay.unsqueeze(1), inputs.unsqueeze(1), state.unsqueeze(1)), 2).squeeze(1)


def decayed_attention(
    queries: Tensor,  # (B, T, H|1, n)
    keys: Tensor,  # (B, T, H|1, n)
    values: Tensor,  # (B, T, H, d)
    log_decay: Tensor | None,  # (B|1, T|1, H), log λ_t, finite or −inf for λ = 0; None: λ = 1
    initial: Tensor | None = None,  # (B, H, n, d); None: zero
    chunk: int = ATTENTION_CHUNK,
) -> tuple[Tensor, Tensor]:
    """S_t = λ_t S_{t−1} + k_t v_tᵀ,  y_t = S_tᵀ q_t: outputs ``(B, T, H, d)`` and the last state ``(B, H, n, d)``.

    The chunked form of Dao & Gu 2024 (arXiv 2405.21060): inside a chunk of K steps a masked K×K product, between
    chunks the state; O(T·(K·(n + d) + n·d)) operations. Decays are summed in float64, since a float32 difference of
    cumulative sums loses four digits over long chunks. A decay under e^{−800} is 0, in value and in gradient.
    Under autocast the products are rounded, but neither decays nor the state: a sum in bfloat16 ends at 256 terms.
    """
    length = values.shape[1]
    chunk = min(chunk, length)
    padding = -length % chunk
    q, k, v = (
        F.pad(full_precision(x), (0, 0, 0, 0, 0, padding)).unflatten(1, (-1, chunk)).transpose(2, 3)
        for x in (queries, keys, values)
    )  # (B, C, H, K, ·)
    scores = q @ k.mT
    if log_decay is None:
        causal = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
        weights, written, read, kept = scores.masked_fill(~causal, 0.0), k, q, None
    else:
        decay_from, to_end, from_start = _chunk_decays(log_decay, length, chunk, v.dtype)
        weights, written, read = scores * decay_from, k * to_end.unsqueeze(-1), q * from_start.unsqueeze(-1)
        kept = from_start[..., -1]
    updates = full_precision(written.mT @ v)  # (B, C, H, n, d)
    state = torch.zeros_like(updates[:, 0]) if initial is None else full_precision(initial)
    states = []
    for c, update in enumerate(updates.unbind(1)):
        states.append(state)
        state = update + (state if kept is None else kept[:, c if kept.shape[1] != 1 else 0, :, None, None] * state)
    outputs = weights @ v + read @ torch.stack(states, 1)
    return outputs.transpose(2, 3).flatten(1, 2)[:, :length], state


def _chunk_decays(log_decay: Tensor, length: int, chunk: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Products of decays inside each chunk: from s to t (lower triangle), from s to the end, from the start to t."""
    expanded = log_decay.double().clamp_min(FORGOTTEN).expand(-1, length, -1)
    logs = F.pad(expanded, (0, 0, 0, -length % chunk)).unflatten(1, (-1, chunk)).transpose(2, 3)
    total = logs.cumsum(-1)  # (B, C, H, K)
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=logs.device).tril()
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(dtype).masked_fill(~causal, -torch.inf)
    return between.exp(), (total[..., -1:] - total).to(dtype).exp(), total.to(dtype).exp()
