"""One backbone for every mixer: embedding, pre-norm blocks, pooling or one answer a position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specreg.models.mixer import Mixer, masked
from specreg.system import LinearSystem

Norm = Literal["layer", "rms"]
Positions = Literal["none", "learned", "sinusoidal"]
NORM_EPS = 1e-5  # set here, because RMSNorm's default depends on the dtype


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, mixer: Mixer, mlp_ratio: float, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.mixer = mixer
        self.norm = make_norm(norm, mixer.d_model)
        self.dropout = nn.Dropout(dropout)
        hidden = round(mlp_ratio * mixer.d_model)
        self.mlp = MLP(mixer.d_model, hidden, norm) if hidden else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self._finish(x, self.mixer(self.norm(x), None, mask)[0])

    def with_system(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, LinearSystem]:
        """`forward`, and the system that the mixer applied to its true input, norm(x)."""
        y, _, system = self.mixer.with_system(self.norm(x), None, mask)
        return self._finish(x, y), system

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(y)
        return x if self.mlp is None else x + self.dropout(self.mlp(x))


class MLP(nn.Module):
    """norm, linear, GELU, linear."""

    def __init__(self, d_model: int, hidden: int, norm: Norm) -> None:
        super().__init__()
        self.norm = make_norm(norm, d_model)
        self.expand = nn.Linear(d_model, hidden)
        self.contract = nn.Linear(hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(self.norm(x))))  # type: ignore[no-any-return]


class Backbone(nn.Module):
    """Embedding → one block for each mixer → norm → mean over real steps (or each step) → linear head.

    Takes token ids ``(B, T)`` (give `vocab_size`) or values ``(B, T, channels)`` (give `channels`); answers with logits
    ``(B, num_classes)``, or ``(B, T, num_classes)`` with `per_position`. A `mask` is True at real steps, padding after
    them; `ValueError` for any other.
    """

    def __init__(
        self,
        mixers: Sequence[Mixer],
        *,
        num_classes: int,
        max_length: int,
        vocab_size: int | None = None,
        channels: int = 0,
        per_position: bool = False,
        mlp_ratio: float = 2.0,  # hidden width over d_model; 0: no MLP
        norm: Norm = "layer",
        positions: Positions = "none",
        dropout: float = 0.0,
        tied: bool = False,  # one matrix embeds tokens and, transposed, answers with them
    ) -> None:
        super().__init__()
        widths = {mixer.d_model for mixer in mixers}
        if len(widths) != 1:
            raise ValueError(f"a backbone needs at least one mixer, all of one d_model, got {sorted(widths)}")
        if (vocab_size is None) == (channels == 0):
            raise ValueError(f"give vocab_size for tokens or channels for values, got {vocab_size} and {channels}")
        if not 0 <= dropout < 1 or mlp_ratio < 0:
            raise ValueError(f"dropout is in [0, 1) and mlp_ratio at least 0, got {dropout} and {mlp_ratio}")
        if tied and vocab_size != num_classes:
            raise ValueError(f"tied needs one class a token, got {num_classes} classes and vocab_size {vocab_size}")
        d_model = widths.pop()
        self.per_position = per_position
        self.embedding: nn.Linear | nn.Embedding
        self.embedding = nn.Linear(channels, d_model) if vocab_size is None else nn.Embedding(vocab_size, d_model)
        self.positions = position_embedding(positions, max_length, d_model)
        self.longest = max_length if positions == "learned" else None  # sequence that it can take; None: any
        self.blocks = nn.ModuleList(Block(mixer, mlp_ratio, norm, dropout) for mixer in mixers)
        self.norm = make_norm(norm, d_model)
        self.head = None if tied else nn.Linear(d_model, num_classes)
        if tied:
            nn.init.normal_(self.embedding.weight, std=d_model**-0.5)  # logits of variance 1, and not lost in the sum

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits."""
        x = self._embed(inputs, mask)
        for block in self.blocks:
            x = block(x, mask)
        return self._answer(x, mask)

    def with_systems(self, inputs: Tensor, mask: Tensor | None = None) -> tuple[Tensor, dict[str, LinearSystem]]:
        """Logits, and the system that each layer applied, by the names "layers.0", "layers.1", …

        Blocks and mixers are not called here, so that forward hooks on them do not run.
        """
        x = self._embed(inputs, mask)
        systems = {}
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x, systems[f"layers.{index}"] = block.with_system(x, mask)
        return self._answer(x, mask), systems

    def mixers(self) -> Iterator[Mixer]:
        """The mixers, first layer first."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block.mixer

    def macs(self, length: int) -> int:
        """Multiply–accumulate operations for one sequence: every linear map at every step, and the mixers' cores."""
        linear = sum(m.in_features * m.out_features for m in self.modules() if isinstance(m, nn.Linear))
        head = (self.embedding if self.head is None else self.head).weight.numel()
        if self.head is not None:
            linear -= head
        answers = length if self.per_position else 1
        return linear * length + head * answers + sum(mixer.core_macs(length) for mixer in self.mixers())

    def _embed(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            check_mask(mask, inputs.shape[:2])
        x: Tensor = self.embedding(inputs)
        if self.positions is None:
            return x
        length = inputs.shape[1]
        if self.longest is not None and length > self.longest:
            raise ValueError(f"positions were learned up to length {self.longest}, got {length}")
        beyond = length > len(self.positions)  # sines and cosines go on
        rows = sinusoids(length, x.shape[2]).to(x) if beyond else self.positions[:length]
        return x + rows

    def _answer(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.norm(x)
        if not self.per_position:
            x = x.mean(1) if mask is None else masked(x, mask).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)


def check_mask(mask: Tensor, shape: torch.Size) -> None:
    """Refuse a mask that is not right padding; under `torch.compile`, which sees no values, by its shape alone."""
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ValueError(f"a mask is bool of shape {tuple(shape)}, got {mask.dtype} of shape {tuple(mask.shape)}")
    if torch.compiler.is_compiling():
        return
    bad = (mask[:, 1:] & ~mask[:, :-1]).any(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"row {row} of the mask has a real step after padding: put the real steps of each row first")


def make_norm(norm: Norm, d_model: int) -> nn.Module:
    """Layer or root-mean-square norm."""
    return nn.LayerNorm(d_model, eps=NORM_EPS) if norm == "layer" else nn.RMSNorm(d_model, eps=NORM_EPS)


def position_embedding(positions: Positions, length: int, d_model: int) -> nn.Parameter | None:
    """``(length, d_model)``: nothing, learned from small random values, or fixed sines and cosines."""
    if positions == "none":
        return None
    if positions == "learned":
        return nn.Parameter(0.02 * torch.randn(length, d_model))
    return nn.Parameter(sinusoids(length, d_model), requires_grad=False)


def sinusoids(length: int, d_model: int) -> Tensor:
    """``(length, d_model)``: sin(ω_k t) and cos(ω_k t) in turn, ω_k from 1 down to 1/10,000 (Vaswani et al. 2017)."""
    frequency = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
    angle = torch.arange(length).unsqueeze(1) * frequency
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :d_model]
