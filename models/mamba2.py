"""Mamba-2: one input-dependent scalar decay a head, and its pseudo-time-invariant variant."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specreg.models.mixer import (
    Mixer,
    UnreachableTargetError,
    assign,
    convolution,
    convolve,
    full_precision,
    gate_logits,
    log_softplus,
    masked,
    padding_gain,
)
from specreg.models.scans import decayed_attention
from specreg.operators import ScaledIdentity
from specreg.system import System
from specreg.targets import Target


class Mamba2State(NamedTuple):
    """What the next call needs."""

    hidden: Tensor  # (B, H, n, P)
    tail: Tensor | None


class Applied(NamedTuple):
    """What one call of `mix` applied."""

    keys: Tensor  # B_t (B, T, 1, n)
    queries: Tensor  # C_t (B, T, 1, n)
    values: Tensor  # x_t (B, T, H, P)
    log_decay: Tensor  # (B|1, T|1, H)
    step_logit: Tensor  # Δ before its softplus (B, T, H)
    initial: Tensor | None
    mask: Tensor | None


class Mamba2(Mixer):
    """h_t = e^{−e^a Δ_t} h_{t−1} + Δ_t B_t x_tᵀ,  core_t = C_tᵀ h_t + D ∘ x_t with Δ_t = softplus(w·u_t + b), per head.

    B and C are shared by the heads; an RMS norm follows, and the gate if there is one. Dao & Gu 2024, arXiv 2405.21060.
    Given a target, `init` sets a = 0 and b so that the spectrum is the target's, and starts w at 0: selectivity is
    learnt from there. Without one, e^a is uniform on [1, 16] and Δ log-uniform on [0.001, 0.1], as published.
    """

    spectral_names: tuple[str, ...] = ("log_rate", "step_bias")

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,  # n, of B and C
        heads: int = 4,
        expand: int = 2,  # width of x over d_model
        gate: bool = False,
        convolution_width: int = 0,  # on x, B and C; 0: none
        init: Target | None = None,
    ) -> None:
        super().__init__(d_model, expand * d_model, gate)
        if heads < 1 or self.width % heads:
            raise ValueError(f"heads must divide expand * d_model = {self.width}, got {heads}")
        if d_state < 1:
            raise ValueError(f"d_state must be at least 1, got {d_state}")
        self.heads, self.d_state = heads, d_state
        self.projection = nn.Linear(d_model, self.width + 2 * d_state)
        self.convolution = convolution(self.width + 2 * d_state, convolution_width)
        self.step_projection = nn.Linear(d_model, heads, bias=False)
        step = torch.empty(heads).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.step_bias = nn.Parameter(inverse_softplus(step))
        self.log_rate = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())  # a
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(self.width, eps=1e-5)
        if init is not None:
            self.initialise(init)

    def initialise(self, target: Target) -> None:
        """Assign the target's quantiles, one to each head; raises for a target with a law of phases."""
        log_modulus = real_quantiles(self, target, self.heads)
        assign(self, "log_rate", torch.zeros(self.heads))
        assign(self, "step_bias", inverse_softplus(-log_modulus))
        assign(self.step_projection, "weight", torch.zeros(self.heads, self.d_model))

    def mix(self, u: Tensor, state: Mamba2State | None, mask: Tensor | None) -> tuple[Tensor, Mamba2State, Applied]:
        x, tail = convolve(
            self.convolution, masked(self.projection(u), mask), None if state is None else state.tail, mask
        )
        x = masked(full_precision(x), mask)
        values, keys, queries = x.split((self.width, self.d_state, self.d_state), -1)
        values = values.unflatten(-1, (self.heads, -1))
        keys, queries = keys.unsqueeze(2), queries.unsqueeze(2)
        step_logit = gate_logits(self.step_projection, u) + self.step_bias
        step = F.softplus(step_logit)
        log_decay = self.log_decay(step, mask)
        initial = None if state is None else state.hidden
        core, last = decayed_attention(queries, keys, values * step.unsqueeze(-1), log_decay, initial)
        core = core + self.skip.unsqueeze(-1) * values
        applied = Applied(keys, queries, values, log_decay, step_logit, initial, mask)
        return masked(core.flatten(2), mask), Mamba2State(last, tail), applied

    def log_decay(self, step: Tensor, mask: Tensor | None) -> Tensor:
        """log λ_t ``(B, T, H)`` for step sizes Δ; 0 at padding, where the state stands still."""
        return masked(-self.log_rate.exp() * step, mask)

    def system(self, applied: Applied) -> System:
        padding = padding_gain(applied.mask, applied.values)
        log_step = log_softplus(applied.step_logit)
        return System(
            operator=ScaledIdentity(applied.log_decay, size=self.d_state),
            inputs=applied.keys.unsqueeze(-1),
            readouts=applied.queries.unsqueeze(-2),
            values=applied.values.unsqueeze(-2),
            log_gain=log_step if padding is None else log_step + padding,
            log_readout_gain=padding,
            initial=applied.initial,
            feedthrough=self.skip.view(-1, 1, 1),
            mask=applied.mask,
        )

    def gated(self, core: Tensor, u: Tensor) -> Tensor:
        return self.norm(super().gated(core, u))  # type: ignore[no-any-return]

    def core_macs(self, length: int) -> int:
        return 2 * length * self.d_state * self.width

    @classmethod
    def example(cls) -> Self:
        return cls(d_model=8, d_state=6, heads=2, gate=True, convolution_width=3)


def inverse_softplus(value: Tensor) -> Tensor:
    """x with softplus(x) = value > 0, also for a value of 1e-6."""
    return value + (-torch.expm1(-value)).log()


def real_quantiles(mixer: Mixer, target: Target, count: int) -> Tensor:
    """The target's log-moduli for a mixer of positive decays; raises `UnreachableTargetError` if it has phases."""
    log_modulus, phase = target.quantiles(count)
    if phase is not None and bool(phase.any()):
        raise UnreachableTargetError(
            f"{type(mixer).__name__} has positive real eigenvalues and cannot meet {target}, which asks for phases: "
            "leave max_phase out, or use a complex model such as lru"
        )
    return log_modulus
