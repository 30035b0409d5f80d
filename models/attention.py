"""What the attention mixers share: queries, keys and values, heads, and a short convolution on all three."""

from __future__ import annotations

from torch import Tensor, nn

from specreg.models.mixer import Mixer, convolution, convolve, full_precision, masked


class Attention(Mixer):
    """Queries and keys of total width d_state, values of width d_model, split over the heads."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,  # of queries and of keys, all heads together
        heads: int = 4,
        gate: bool = False,
        convolution_width: int = 0,  # on queries, keys and values; 0: none
    ) -> None:
        super().__init__(d_model, d_model, gate)
        if heads < 1 or d_state < 1 or d_model % heads or d_state % heads:
            raise ValueError(f"heads must divide d_model and d_state, got {heads} heads, {d_model} and {d_state}")
        self.heads, self.d_state = heads, d_state
        self.projection = nn.Linear(d_model, 2 * d_state + d_model)
        self.convolution = convolution(2 * d_state + d_model, convolution_width)

    def project(
        self, u: Tensor, tail: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys ``(B, T, H, e)`` and values ``(B, T, H, d)``, zero at padding, and the convolution's tail."""
        x, tail = convolve(self.convolution, masked(self.projection(u), mask), tail, mask)
        x = masked(full_precision(x), mask)
        q, k, v = x.split((self.d_state, self.d_state, self.width), -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        return q, k, v, tail


def begun(before: Tensor | bool, mask: Tensor | None) -> Tensor | bool:
    """Which rows ``(B,)`` have had a real step by the end of this call; True: all, False: none."""
    return True if mask is None or before is True else mask.any(1) | before


def counted(log_normaliser: Tensor, before: Tensor | bool, mask: Tensor | None) -> Tensor | None:
    """Which decays η_{t−1}/η_t count, ``(B|1, T)``: not padding, nor λ_1 of a row not begun `before`: no η_0."""
    if before is True:
        return mask
    later = log_normaliser.new_ones(1, log_normaliser.shape[1]).cumsum(1) > 1
    exists = later | (before.unsqueeze(1) if isinstance(before, Tensor) else before)
    return exists if mask is None else exists & mask
