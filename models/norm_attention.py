"""Norm attention: linear attention whose normaliser is a learned projection, in both published forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specreg.models.attention import Attention, begun, counted
from specreg.models.mixer import gate_logits, last_real, log_softplus, masked, padding_gain
from specreg.models.scans import decayed_attention
from specreg.operators import ScaledIdentity
from specreg.system import System
from specreg.targets import Target

Normaliser = Literal["exp", "softplus", "sigmoid", "tli_exp", "tli_elu", "tli_softplus", "tli_sigmoid"]


class NormState(NamedTuple):
    """Unnormalised sums, and the last log η for the first λ of the next call."""

    sums: Tensor  # Σ k vᵀ (B, H, e, d)
    log_normaliser: Tensor  # (B, H)
    begun: Tensor | bool  # (B,), which rows have had a real step; True: all
    tail: Tensor | None


class Applied(NamedTuple):
    """What one call of `mix` applied."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    log_normaliser: Tensor
    previous: NormState | None
    mask: Tensor | None


class NormAttention(Attention):
    """core_t = (1/η_t) Σ_{j≤t} (q_t·k_j/√d_h) v_j, η_t from its own projection z_t = w·u_t + o, λ_t = η_{t−1}/η_t.

    `normaliser` names a published form: η(z) = exp, softplus or sigmoid of z (Sieber et al. 2024, arXiv 2405.15731), or
    1/η = exp(−f(z)) with f = exp, elu, softplus or sigmoid (`tli_…`: Rickenbach et al. 2025, arXiv 2510.09379). The
    offsets o start evenly on [4, 9] for the latter, as published, but for `tli_exp`: a double exponential, which
    underflows float32 there in three heads of four and starts on [−2, 0] here.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        heads: int = 4,
        gate: bool = False,
        convolution_width: int = 0,
        normaliser: Normaliser = "softplus",
    ) -> None:
        super().__init__(d_model, d_state, heads, gate, convolution_width)
        if normaliser not in LOG_NORMALISERS:
            raise ValueError(f"normaliser must be one of {', '.join(LOG_NORMALISERS)}, got {normaliser!r}")
        self.normaliser = normaliser
        # the offsets cancel from log λ_t = z_{t−1} − z_t
        self.spectral_names = () if normaliser == "exp" else ("offset",)
        self.norm = nn.Linear(d_model, heads, bias=False)
        low, high = OFFSETS[normaliser]
        self.offset = nn.Parameter(torch.linspace(low, high, heads))

    def mix(self, u: Tensor, state: NormState | None, mask: Tensor | None) -> tuple[Tensor, NormState, Applied]:
        q, k, v, tail = self.project(u, None if state is None else state.tail, mask)
        k = k / math.sqrt(k.shape[-1])
        log_eta = LOG_NORMALISERS[self.normaliser](gate_logits(self.norm, masked(u, mask)) + self.offset)
        sums, last = decayed_attention(q, k, v, None, None if state is None else state.sums)
        core = masked((sums * (-log_eta).exp().unsqueeze(-1)).flatten(2), mask)
        applied = Applied(q, k, v, log_eta, state, mask)
        log_last = last_real(log_eta, mask, None if state is None else state.log_normaliser)
        rows = begun(state is not None and state.begun, mask)
        return core, NormState(last, log_last, rows, tail), applied

    def system(self, applied: Applied) -> System:
        log_eta, before = applied.log_normaliser, applied.previous
        first = log_eta[:, 0] if before is None else before.log_normaliser
        padding = padding_gain(applied.mask, log_eta)
        neutral = System(
            # the state is held unnormalised and the paper's gauge put on as logs: 1/η itself may be out of range
            operator=ScaledIdentity(log_eta.new_zeros(1, 1, self.heads), size=applied.keys.shape[-1]),
            inputs=applied.keys.unsqueeze(-1),
            readouts=applied.queries.unsqueeze(-2),
            values=applied.values.unsqueeze(-2),
            log_gain=padding,
            log_readout_gain=-log_eta if padding is None else padding - log_eta,
            initial=None if before is None else before.sums,
            mask=counted(log_eta, before is not None and before.begun, applied.mask),
        )
        return neutral.regauged(-log_eta, -first)

    def refusal(self, target: Target) -> str:
        return (
            f"norm attention cannot be initialised to {target}: its λ_t = η_(t−1)/η_t telescope, so log λ averages 0 "
            "over time, and no setting keeps every |λ| below 1; leave init out, or use a penalty"
        )

    def core_macs(self, length: int) -> int:
        return 2 * length * self.d_state * (self.width // self.heads)

    @classmethod
    def example(cls) -> Self:
        return cls(d_model=8, d_state=8, heads=2, gate=True, convolution_width=3)


LOG_NORMALISERS: dict[str, Callable[[Tensor], Tensor]] = {  # log η of z
    "exp": lambda z: z,
    "softplus": log_softplus,
    "sigmoid": F.logsigmoid,
    "tli_exp": lambda z: z.clamp_max(60).exp(),  # exp(−e^60) is 0 in float64, and e^60 in range in float32
    "tli_elu": F.elu,
    "tli_softplus": F.softplus,
    "tli_sigmoid": torch.sigmoid,
}
OFFSETS = {  # where o starts, first and last head
    "exp": (0.0, 0.0),
    "softplus": (0.0, 0.0),
    "sigmoid": (0.0, 0.0),
    "tli_exp": (-2.0, 0.0),
    "tli_elu": (4.0, 9.0),
    "tli_softplus": (4.0, 9.0),
    "tli_sigmoid": (4.0, 9.0),
}
