"""The linear recurrent unit: a complex diagonal system whose parameters are its eigenvalues."""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specreg.models.mixer import Mixer, assign, convolution, convolve, full_precision, last_real, masked, padding_gain
from specreg.models.scans import diagonal_scan
from specreg.operators import Diagonal
from specreg.spectrum import from_polar
from specreg.system import System
from specreg.targets import Ring, Target

SMALLEST_PHASE = 1e-6  # radians a step; a phase of 0 would be held as −∞ and never move


class LRUState(NamedTuple):
    """What the next call needs."""

    hidden: Tensor  # (B, N) complex
    tail: Tensor | None  # of the short convolution


class Applied(NamedTuple):
    """What one call of `mix` applied."""

    values: Tensor  # (B, T, d_model)
    initial: Tensor | None  # (B, N)
    mask: Tensor | None


class LRU(Mixer):
    """h_t = λ ∘ h_{t−1} + e^γ ∘ B x_t,  core_t = Re(C h_t) + D ∘ x_t with λ = exp(−e^ν + i e^θ), N complex states.

    A GELU follows the core. Orvieto et al. 2023, arXiv 2303.06349.
    """

    spectral_names: tuple[str, ...] = ("log_rate", "log_phase")

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,  # N complex states, 2N real ones
        gate: bool = False,
        convolution_width: int = 0,  # on the input; 0: none
        init: Target | None = None,  # None: Ring(0, 1, 2π), the published start
    ) -> None:
        super().__init__(d_model, d_model, gate)
        if d_state < 1:
            raise ValueError(f"d_state must be at least 1, got {d_state}")
        self.d_state = d_state
        self.convolution = convolution(d_model, convolution_width)
        self.log_rate = nn.Parameter(torch.empty(d_state))  # ν = log(−log|λ|) = −log τ
        self.log_phase = nn.Parameter(torch.empty(d_state))  # log of the phase in radians
        self.log_gain = nn.Parameter(torch.empty(d_state))  # γ
        self.input_matrix = nn.Parameter(torch.randn(d_state, 2, d_model) / math.sqrt(2 * d_model))
        self.output_matrix = nn.Parameter(torch.randn(d_model, 2, d_state) / math.sqrt(d_state))
        self.skip = nn.Parameter(torch.randn(d_model))
        self.initialise(Ring(0.0, 1.0, max_phase=2 * math.pi))
        if init is not None:
            self.initialise(init)

    def initialise(self, target: Target) -> None:
        """Assign the target's quantiles; a target without a law of phases leaves the phases as they are."""
        log_modulus, phase = target.quantiles(self.d_state)
        assign(self, "log_rate", (-log_modulus).log())
        if phase is not None:
            assign(self, "log_phase", phase.clamp_min(SMALLEST_PHASE).log())
        assign(self, "log_gain", 0.5 * (-torch.expm1(2 * log_modulus)).log())  # √(1 − |λ|²)

    def mix(self, u: Tensor, state: LRUState | None, mask: Tensor | None) -> tuple[Tensor, LRUState, Applied]:
        x, tail = convolve(self.convolution, masked(u, mask), None if state is None else state.tail, mask)
        x = masked(full_precision(x), mask)
        weights = self.log_gain.exp()[:, None, None] * self.input_matrix
        driven = full_precision(F.linear(x, weights.flatten(0, 1))).unflatten(-1, (self.d_state, 2)).contiguous()
        driven = torch.view_as_complex(driven)
        initial = torch.zeros_like(driven[:, 0]) if state is None else state.hidden
        decay = from_polar(-self.log_rate.exp(), self.log_phase.exp())
        states = diagonal_scan(decay.view(1, 1, -1), driven, initial)
        real, imaginary = self.output_matrix.unbind(1)
        # Re(C h) on the interleaved real and imaginary parts as they lie in memory
        readouts = torch.stack((real, -imaginary), -1).flatten(1)
        core = F.linear(torch.view_as_real(states).flatten(-2), readouts) + self.skip * x
        applied = Applied(x, None if state is None else initial, mask)
        return masked(core, mask), LRUState(last_real(states, mask, initial), tail), applied

    def system(self, applied: Applied) -> System:
        x = applied.values
        gain = padding_gain(applied.mask, x)
        weights = torch.view_as_complex((self.log_gain.exp()[:, None, None] * self.input_matrix).mT.contiguous())
        real, imaginary = self.output_matrix.unbind(1)
        return System(
            operator=Diagonal(-self.log_rate.exp().view(1, 1, 1, -1), angle=self.log_phase.exp().view(1, 1, 1, -1)),
            inputs=weights.view(1, 1, 1, self.d_state, self.d_model),
            readouts=torch.complex(real, imaginary).view(1, 1, 1, self.d_model, self.d_state),
            values=x[:, :, None, :, None],
            log_gain=gain,
            log_readout_gain=gain,
            initial=None if applied.initial is None else applied.initial[:, None, :, None],
            feedthrough=self.skip.unsqueeze(-1),
            mask=applied.mask,
        )

    def readout(self, core: Tensor, u: Tensor) -> Tensor:
        """GELU, gate and output projection."""
        return self.output(self.gated(F.gelu(core), u))  # type: ignore[no-any-return]

    def core_macs(self, length: int) -> int:
        return length * self.d_state * (4 * self.d_model + 4)

    @classmethod
    def example(cls) -> Self:
        return cls(d_model=8, d_state=6, gate=True, convolution_width=3)
