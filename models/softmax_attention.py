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

    Each η uses its own query (Rickenbach et al. 2025, arXiv 2510.09379). On the CPU and from a fresh start the
    flash kernel runs, and log η costs O(T) memory, gradient included; elsewhere the scores are formed.
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
    if fresh and q.device.type == "cpu":
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
    """torch's CPU flash kernel with a gradient for its log-sum-exp, which torch itself leaves out.

    ∂L/∂s_ij = p_ij (dO_i·v_j − dO_i·o_i + g_i) for a cotangent g of the log-sum-exp: what the kernel's own backward
    gives for one more value column with v = 0, o = −1 and dO = g. Scores come in scaled.
    """

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        width = max(q.shape[-1], v.shape[-1])
        rows = [_wide(x, width) for x in (q, k, v)]
        out, log_eta = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*rows, 0.0, True, scale=1.0)
        return out[..., : v.shape[-1]].contiguous(), log_eta

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, *output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_log_eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, log_eta = ctx.saved_tensors
        values, outs = _column(v, 0.0), _column(out, -1.0)
        grads = torch.cat((grad_out, grad_log_eta.unsqueeze(-1)), -1)
        width = max(q.shape[-1], values.shape[-1])
        padded = [_wide(x, width) for x in (grads, q, k, values, outs)]
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *padded, log_eta, 0.0, True, scale=1.0
        )
        return dq[..., : q.shape[-1]], dk[..., : k.shape[-1]], dv[..., : v.shape[-1]]


def joined(earlier: Tensor | None, now: Tensor | None, old: Tensor, new: Tensor) -> Tensor | None:
    """The padding masks of two stretches as one; None where nothing is padded."""
    if earlier is None and now is None:
        return None
    parts = [
        torch.ones(like.shape[:2], dtype=torch.bool, device=like.device) if mask is None else mask
        for mask, like in ((earlier, old), (now, new))
    ]
    return torch.cat(parts, 1)


def _wide(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1]))


def _column(x: Tensor, value: float) -> Tensor:
    return torch.nn.functional.pad(x, (0, 1), value=value)
