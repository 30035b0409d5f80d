"""Softmax attention, with the gradient of its normaliser at O(T) memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.autograd import Function

from specreg.models.attention import Attention, begun, counted
from specreg.models.mixer import last_real, masked, without_autocast
from specreg.system import KernelSystem
from specreg.targets import Target


class SoftmaxState(NamedTuple):
    """Everything seen so far; the last log η is needed for the first λ of the next call."""

    keys: Tensor  # (B, S, H, e)
    values: Tensor  # (B, S, H, d)
    mask: Tensor | None  # (B, S), False at padding
    log_normaliser: Tensor  # (B, H)
    begun: Tensor | bool  # (B,), which rows have had a real step; True: all
    tail: Tensor | None


class Applied(NamedTuple):
    """What one call of `mix` applied."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    log_normaliser: Tensor
    previous: SoftmaxState | None
    key_mask: Tensor | None
    mask: Tensor | None


class SoftmaxAttention(Attention):
    """core_t = Σ_{j≤t} exp(q_t·k_j/√d_h) v_j / η_t with η_t = Σ_{j≤t} exp(q_t·k_j/√d_h) and λ_t = η_{t−1}/η_t.

    Each η uses its own query (Rickenbach et al. 2025, arXiv 2510.09379). From a fresh start torch's fused kernel runs
    (CPU; CUDA in float32), and log η costs O(T) memory, gradient included; elsewhere the scores are formed.
    """

    def mix(self, u: Tensor, state: SoftmaxState | None, mask: Tensor | None) -> tuple[Tensor, SoftmaxState, Applied]:
        q, k, v, tail = self.project(u, None if state is None else state.tail, mask)
        q = q / math.sqrt(q.shape[-1])
        if state is None:
            keys, values, key_mask = k, v, mask
        else:
            keys, values = torch.cat((state.keys, k), 1), torch.cat((state.values, v), 1)
            key_mask = joined(state.mask, mask, state.keys, k)
        core, log_eta = attend(q, keys, values, None if state is None else key_mask, fresh=state is None)
        last = last_real(log_eta, mask, None if state is None else state.log_normaliser)
        rows = begun(state is not None and state.begun, mask)
        new_state = SoftmaxState(keys, values, key_mask, last, rows, tail)
        return masked(core.flatten(2), mask), new_state, Applied(q, keys, values, log_eta, state, key_mask, mask)

    def system(self, applied: Applied) -> KernelSystem:
        before = applied.previous
        return KernelSystem(
            queries=applied.queries,
            keys=applied.keys,
            values=applied.values,
            log_normaliser=applied.log_normaliser,
            previous_log_normaliser=None if before is None else before.log_normaliser,
            key_mask=applied.key_mask,
            mask=counted(applied.log_normaliser, before is not None and before.begun, applied.mask),
        )

    def refusal(self, target: Target) -> str:
        return (
            f"softmax attention cannot be initialised to {target}: its λ_t = η_(t−1)/η_t follow from the scores, tend "
            "to 1 as keys accumulate, and no parameter sets them; leave init out, or use a penalty"
        )

    def core_macs(self, length: int) -> int:
        return length * (length + 1) // 2 * (self.d_state + self.width)

    @classmethod
    def example(cls) -> Self:
        return cls(d_model=8, d_state=8, heads=2, gate=True, convolution_width=3)


def attend(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, fresh: bool) -> tuple[Tensor, Tensor]:
    """Causal attention ``(B, T, H, d)`` and its log-sum-exp ``(B, T, H)``, the last T keys being the queries' own."""
    # the kernel reads rows as contiguous without checking: other strides give garbage
    q, k, v = (x.contiguous().transpose(1, 2) for x in (q, k, v))
    if fresh and (q.device.type == "cpu" or (q.device.type == "cuda" and q.dtype == torch.float32)):
        out, log_eta = FlashAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
    else:
        start = k.shape[-2] - q.shape[-2]
        allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril(start)
        if key_mask is not None:
            # a padded query sees its own key, so that its normaliser stays finite; nothing reads it
            own = allowed & ~allowed.tril(start - 1)
            allowed = allowed & (key_mask[:, None, None, :] | own)
        with without_autocast(q):  # scores in bfloat16 put log λ off by 0.07
            scores = (q @ k.mT).masked_fill(~allowed, -torch.inf)
        log_eta = scores.logsumexp(-1)
        out = (scores - log_eta.unsqueeze(-1)).exp() @ v
    return out.transpose(1, 2), log_eta.transpose(1, 2)


class FlashAttention(Function):
    """torch's fused causal attention with a gradient for its log-sum-exp, which torch itself leaves out.

    ∂L/∂s_ij = p_ij (dO_i·v_j − dO_i·o_i + g_i) for a cotangent g of the log-sum-exp. The kernels' backward reads the
    output o in dO_i·o_i alone, so it is handed one for which that product is less by g_i. Scores come in scaled.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if q.device.type == "cpu":
            rows = _wide(q, k, v)
            out, log_eta = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*rows, 0.0, True, scale=1.0)
        else:
            rows, efficient = _aligned(q, k, v), torch.ops.aten._scaled_dot_product_efficient_attention
            out, log_eta, *_ = efficient(*rows, None, True, 0.0, True, scale=1.0)
        return out[..., : v.shape[-1]].contiguous(), log_eta[..., : q.shape[-2]].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_log_eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, log_eta = ctx.saved_tensors
        grad_out, out = _less_by(grad_log_eta, grad_out, out)
        if q.device.type == "cpu":
            rows = _wide(grad_out, q, k, v, out)
            dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *rows, log_eta, 0.0, True, scale=1.0
            )
        else:
            grad_out, q_, k_, v_, out = _aligned(grad_out, q, k, v, out)
            # this kernel reads log-sum-exps in blocks of 32, and takes exp(score − ∞) = 0 for what is not there
            log_eta = torch.nn.functional.pad(log_eta, (0, -log_eta.shape[-1] % 32), value=torch.inf)
            seed = torch.zeros((), dtype=torch.int64, device=q.device)  # of dropout, which there is none of
            dq, dk, dv, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
                grad_out, q_, k_, v_, None, out, log_eta, seed, seed, 0.0, [True, True, True, False], True, scale=1.0
            )
        return dq[..., : q.shape[-1]], dk[..., : k.shape[-1]], dv[..., : v.shape[-1]]


def _less_by(cotangent: Tensor, grad_out: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """dO and an o′ with dO·o′ = dO·o − cotangent in each row.

    A row of zeros cannot have that, and gets a dO that is 1e-30 of the cotangent.
    """
    g = cotangent.unsqueeze(-1)
    least = torch.where(g == 0, 0.0, (1e-30 * g.abs()).clamp_min(torch.finfo(out.dtype).tiny))
    size = grad_out.abs().amax(-1, keepdim=True)
    grad_out = torch.where(size < least, torch.nn.functional.pad(least, (0, out.shape[-1] - 1)), grad_out)
    size = torch.maximum(size, least)
    size = torch.where(size > 0, size, 1.0)
    unit = grad_out / size  # squares of dO itself underflow in float32
    return grad_out, out - g / size * unit / unit.square().sum(-1, keepdim=True).clamp_min(1.0)


def joined(earlier: Tensor | None, now: Tensor | None, old: Tensor, new: Tensor) -> Tensor | None:
    """The padding masks of two stretches as one; None where nothing is padded."""
    if earlier is None and now is None:
        return None
    parts = [
        torch.ones(like.shape[:2], dtype=torch.bool, device=like.device) if mask is None else mask
        for mask, like in ((earlier, old), (now, new))
    ]
    return torch.cat(parts, 1)


def _wide(*rows: Tensor) -> list[Tensor]:
    """Zero columns added, so that all are of one width, as the CPU's kernel wants them."""
    width = max(x.shape[-1] for x in rows)
    return [_padded(x, width) for x in rows]


def _aligned(*rows: Tensor) -> list[Tensor]:
    """Zero columns added, so that each row begins at a multiple of 32 bytes."""
    return [_padded(x, -(-x.shape[-1] // 8) * 8) for x in rows]


def _padded(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1]))
