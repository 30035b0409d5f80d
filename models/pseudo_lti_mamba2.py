"""Mamba-2 with constant decays: Δ_t only scales what is written."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specreg.models.mamba2 import Mamba2, inverse_softplus, real_quantiles
from specreg.models.mixer import assign
from specreg.targets import Target


class PseudoLTIMamba2(Mamba2):
    """Mamba-2 with λ_h = e^{−softplus(a_h)} = σ(−a_h), the same at every step.

    The variant of Rickenbach et al. 2025, arXiv 2510.09379, with a uniform on [−8, −2] at the start; Δ_t of a head
    scales all columns of its B (there: a quarter of them).
    """

    spectral_names: tuple[str, ...] = ("log_rate",)

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        heads: int = 4,
        expand: int = 2,
        gate: bool = False,
        convolution_width: int = 0,
        init: Target | None = None,
    ) -> None:
        super().__init__(d_model, d_state, heads, expand, gate, convolution_width)
        self.log_rate = nn.Parameter(torch.empty(heads).uniform_(-8, -2))  # a, with rate softplus(a)
        if init is not None:
            self.initialise(init)

    def initialise(self, target: Target) -> None:
        """Assign the target's quantiles, one to each head; raises for a target with a law of phases."""
        assign(self, "log_rate", inverse_softplus(-real_quantiles(self, target, self.heads)))

    def log_decay(self, step: Tensor, mask: Tensor | None) -> Tensor:
        constant = -F.softplus(self.log_rate).view(1, 1, -1)
        return constant if mask is None else torch.where(mask.unsqueeze(-1), constant, 0.0)
