"""Linear attention: a positive feature map makes the state finite."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from specreg.models.attention import Attention, begun, counted
from specreg.models.mixer import last_real, masked, padding_gain, without_autocast
from specreg.models.scans import decayed_attention
from specreg.operators import ScaledIdentity
from specreg.system import System
from specreg.targets import Target


class LinearState(NamedTuple):
    """Unnormalised sums, and the last log η for the first λ of the next call."""

    sums: Tensor  # Σ φ(k) [v, 1]ᵀ (B, H, e, d + 1)
    log_normaliser: Tensor  # (B, H)
    begun: Tensor | bool  # (B,), which rows have had a real step; True: all
    tail: Tensor | None


class Applied(NamedTuple):
    """What one call of `mix` applied."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    log_normaliser: Tensor
    previous: LinearState | None
    mask: Tensor | None


class LinearAttention(Attention):
    """core_t = Σ_{j≤t} φ(q_t)·φ(k_j) v_j / η_t with η_t = φ(q_t)·Σ_{j≤t} φ(k_j), φ = 1 + elu, and λ_t = η_{t−1}/η_t.

    Katharopoulos et al. 2020, arXiv 2006.16236; as a system: Sieber et al. 2024, arXiv 2405.15731.
    """

    def mix(self, u: Tensor, state: LinearState | None, mask: Tensor | None) -> tuple[Tensor, LinearState, Applied]:
        q, k, v, tail = self.project(u, None if state is None else state.tail, mask)
        q, k = feature_map(q), masked(feature_map(k), mask)
        extended = torch.cat((v, torch.ones_like(v[..., :1])), -1)
        with without_autocast(v):  # log η is a small difference away from log λ
            sums, last = decayed_attention(q, k, extended, None, None if state is None else state.sums)
        # under the floor η is out of range together with its gradient; its system has the same floor
        eta = sums[..., -1].clamp_min(math.sqrt(torch.finfo(sums.dtype).tiny))
        core, log_eta = sums[..., :-1] / eta.unsqueeze(-1), eta.log()
        applied = Applied(q, k, v, log_eta, state, mask)
        log_last = last_real(log_eta, mask, None if state is None else state.log_normaliser)
        rows = begun(state is not None and state.begun, mask)
        return masked(core.flatten(2), mask), LinearState(last, log_last, rows, tail), applied

    def system(self, applied: Applied) -> System:
        log_eta, before = applied.log_normaliser, applied.previous
        first = log_eta[:, 0] if before is None else before.log_normaliser
        padding = padding_gain(applied.mask, log_eta)
        initial = None
        if before is not None:
            initial = before.sums[..., :-1] * (-before.log_normaliser).exp()[..., None, None]
        return System(
            operator=ScaledIdentity(
                torch.cat((first.unsqueeze(1), log_eta[:, :-1]), 1) - log_eta, size=applied.keys.shape[-1]
            ),
            inputs=applied.keys.unsqueeze(-1),
            readouts=applied.queries.unsqueeze(-2),
            values=applied.values.unsqueeze(-2),
            log_gain=-log_eta if padding is None else padding - log_eta,
            log_readout_gain=padding,
            initial=initial,
            mask=counted(log_eta, before is not None and before.begun, applied.mask),
        )

    def refusal(self, target: Target) -> str:
        return (
            f"linear attention cannot be initialised to {target}: its λ_t = η_(t−1)/η_t follow from queries and keys, "
            "tend to 1 as keys accumulate, and no parameter sets them; leave init out, or use a penalty"
        )

    def core_macs(self, length: int) -> int:
        return 2 * length * self.d_state * (self.width // self.heads + 1)

    @classmethod
    def example(cls) -> Self:
        return cls(d_model=8, d_state=8, heads=2, gate=True, convolution_width=3)


def feature_map(x: Tensor) -> Tensor:
    """1 + elu(x), positive, to full relative precision: e^x for x ≤ 0, where adding 1 to elu would lose it."""
    return x.clamp_max(0).exp() + F.relu(x)
