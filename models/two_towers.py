"""A backbone that reads two sequences, each by itself, and compares what it kept of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specreg.models.backbone import Backbone
from specreg.models.mixer import Mixer
from specreg.system import LinearSystem


class TwoTowers(Backbone):
    """One encoder, the same for both sequences, then a linear map of [a, b, a∘b, a − b].

    a and b are the means over real steps. Takes ``(B, 2, T)`` tokens with a mask ``(B, 2, T)``, or ``(B, 2, T,
    channels)`` values; answers with ``(B, num_classes)``. Systems are those of 2B sequences, the two of an example one
    after the other. `ValueError` for one answer a position and for tied embeddings, which a comparison has no use for.
    """

    def __init__(self, mixers: Sequence[Mixer], *, num_classes: int, **settings: Any) -> None:
        for name in ("per_position", "tied"):
            if settings.get(name):
                raise ValueError(f"two sequences are answered with one class: {name} cannot be set")
        super().__init__(mixers, num_classes=num_classes, **settings)
        self.head = Comparison(mixers[0].d_model, num_classes)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits."""
        return super().forward(*one_after_another(inputs, mask))

    def with_systems(self, inputs: Tensor, mask: Tensor | None = None) -> tuple[Tensor, dict[str, LinearSystem]]:
        """Logits, and the system that each layer applied to the 2B sequences."""
        return super().with_systems(*one_after_another(inputs, mask))

    def macs(self, length: int) -> int:
        """Multiply–accumulate operations for one pair of sequences; the comparison is made once."""
        assert self.head is not None
        return 2 * super().macs(length) - self.head.weight.numel()


class Comparison(nn.Linear):
    """A linear map of [a, b, a∘b, a − b], a and b the two that stand one after the other in a batch of 2B."""

    def __init__(self, d_model: int, num_classes: int) -> None:
        super().__init__(4 * d_model, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (2B, d_model)
        a, b = x.unflatten(0, (-1, 2)).unbind(1)
        return super().forward(torch.cat((a, b, a * b, a - b), -1))


def one_after_another(inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The two sequences of each example as two rows of a batch."""
    if inputs.dim() < 3 or inputs.shape[1] != 2:
        raise ValueError(f"two sequences an example are of shape (B, 2, T) or more, got {tuple(inputs.shape)}")
    return inputs.flatten(0, 1), None if mask is None else mask.flatten(0, 1)
