"""A backbone whose answers at all positions are decoded from its output at the last step, and from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specreg.models.backbone import Backbone, Norm, make_norm, sinusoids
from specreg.models.mixer import Mixer


class LastStateDecoder(Backbone):
    """An encoder whose output x_T after the last real step is all that its decoder is given.

    Position t is answered with the head on MLP(x_T + p_t), p_t fixed sines and cosines and MLP twice [norm, linear,
    GELU] of constant width: no answer depends on x_t, so that a task may ask for its own input again (Poli et al. 2024,
    arXiv:2403.17844, compression). Takes and gives what a `Backbone` with `per_position` does. `ValueError` where
    `per_position` is False.
    """

    def __init__(self, mixers: Sequence[Mixer], *, norm: Norm = "layer", **settings: Any) -> None:
        super().__init__(mixers, norm=norm, **settings)
        if not self.per_position:
            raise ValueError("a decoder of the last state answers every position: per_position cannot be False")
        d_model = mixers[0].d_model
        steps = ((make_norm(norm, d_model), nn.Linear(d_model, d_model), nn.GELU()) for _ in range(2))
        self.decoder = nn.Sequential(*(layer for step in steps for layer in step))

    def _answer(self, x: Tensor, mask: Tensor | None) -> Tensor:
        length = x.shape[1]
        last = x[:, -1] if mask is None else x[torch.arange(len(x), device=x.device), mask.sum(1).clamp_min(1) - 1]
        decoded = self.decoder(last.unsqueeze(1) + sinusoids(length, x.shape[2]).to(x))
        return super()._answer(decoded, mask)
