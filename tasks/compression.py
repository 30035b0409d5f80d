"""Compression: a sequence is packed into one state and unpacked again, from MAD."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.mad import MADTask
from specreg.tasks.streams import below, stream_keys, words
from specreg.tasks.task import UNSCORED, Batch, SpectralNeed, Split

__all__ = ["Compression", "Readout"]

Readout = Literal["steps", "last"]


@dataclass(frozen=True, kw_only=True)
class Compression(MADTask):
    """Compression: L − 1 random tokens and a compression token, after which the tokens are to be given back.

    Probes capacity: how much a state holds at once. Tokens 0 … V − N − 2 are data, uniform; V − 1 is the compression
    token; the N before it are noise, which stands in the place of a data token with probability `noise` (0 as
    published; one protected token is always data). Noise need not be given back.

    `readout` says how the answer is read. With "steps", L − 2 more compression tokens follow, and the i-th compression
    token is where the i-th data token is the target: T = 2L − 2, and everything goes through the state at the first of
    them. With "last", as published, the input is the L tokens and the targets stand where the data tokens do: T = L.
    That is for a model that decodes every position from its state at the last step alone (there and in
    `specreg.models.last_state_decoder`, an MLP on that state plus sine and cosine positions): `from_last_state` is
    True, and `specreg train` builds such a model. One that answers position by position sees each answer and learns
    nothing from "last".

    Sizes: V = 16, L = 32, 12,800 training and 1,280 test examples; varied one at a time: V = 32, 64, 128; L = 64, 128,
    256; 6,400, 3,200, 1,600, 800 training examples. Inputs (B, T) tokens, targets (B, T), V classes.

    With `faithful`, as in the reference, the targets are the inputs: noise is to be given back too (its own targets
    are made and then dropped), no token is protected from it, and with "last" the compression token itself is a target.

    Chance: 1/(V − N − 1), any one data token always; where `faithful`, the commonest of data, noise and compression
    token. MAD's accuracy is `mad.macro_accuracy`.

    Source: Poli et al. (2024), arXiv:2403.17844.

    Raises ValueError for length < 3, noise outside [0, 1), noise without noise_tokens, and vocab_size below
    noise_tokens + 3.
    """

    name: ClassVar[str] = "compression"
    probes: ClassVar[str] = "capacity of a state"
    source: ClassVar[str] = "Poli et al. 2024, arXiv:2403.17844"

    length: int = 32
    """Data tokens and one compression token, L."""
    noise: float = 0.0
    """The probability that a token is noise, in [0, 1)."""
    noise_tokens: int = 0
    """How many of the tokens are noise, N."""
    readout: Readout = "steps"
    """Where the answers stand: at steps of their own, or as published for a decoder of the last state."""
    faithful: bool = False
    """Whether the reference's defects are kept."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.length < 3:
            raise ValueError(f"length is {self.length}; give 3 or more: two data tokens and the compression token")
        if self.readout not in get_args(Readout):
            raise ValueError(f"readout is {self.readout!r}; give one of {', '.join(get_args(Readout))}")
        if not 0.0 <= self.noise < 1.0 or self.noise_tokens < 0 or (self.noise > 0 and not self.noise_tokens):
            given = f"noise is {self.noise} with {self.noise_tokens} noise tokens"
            raise ValueError(f"{given}; it is a probability in [0, 1), and above 0 it needs 1 or more tokens")
        if self.vocab_size < self.noise_tokens + 3:
            raise ValueError(
                f"vocab_size is {self.vocab_size}, {self.noise_tokens} of them noise; "
                f"give {self.noise_tokens + 3} or more: two data tokens and the compression token"
            )

    @classmethod
    def tiny(cls) -> Self:
        """Return 15 data tokens of 7 kinds."""
        return cls(vocab_size=8, length=16, validation_examples=200, test_examples=200)

    @property
    def data_tokens(self) -> int:
        """The number of data tokens, V − N − 1."""
        return self.vocab_size - self.noise_tokens - 1

    @property
    def max_length(self) -> int:
        """L, and with steps to answer in, 2L − 2."""
        return self.length if self.readout == "last" else 2 * self.length - 2

    @property
    def from_last_state(self) -> bool:
        """Whether the targets stand where the tokens do, so that a model must not answer from those."""
        return self.readout == "last"

    @property
    def chance(self) -> float:
        """The share of the commonest answer."""
        if not self.faithful:
            return 1.0 / self.data_tokens
        commonest = max((1 - self.noise) / self.data_tokens, self.noise / max(1, self.noise_tokens))
        marks = 1 / self.length if self.readout == "last" else 0.0
        return max(marks, (1 - marks) * commonest)

    @property
    def need(self) -> SpectralNeed:
        """Every token is kept for L − 1 steps, or to the last."""
        if self.readout == "last":
            return SpectralNeed(memory=self.length, note="everything in one state, decoded from it alone")
        return SpectralNeed(memory=self.length - 1, lags=(self.length - 1,), note="everything in one state")

    def token_name(self, token: int) -> str:
        """Return "?" for the compression token, "n3" for noise, else the number."""
        if token == self.vocab_size - 1:
            return "?"
        return str(token) if token < self.data_tokens else f"n{token - self.data_tokens}"

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the place of the token that an answer gives back, counted from 0."""
        first = 0 if self.readout == "last" else self.length - 1
        place = torch.arange(self.max_length) - first
        return {"place": torch.where(batch.scored, place, -1)}

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        count, rows = self.length - 1, indices.size
        keyed = stream_keys(self.seed, split, indices)
        data = below(words(keyed, 0, count), self.data_tokens)
        answers = data
        if self.noise:
            noisy = self._noisy(keyed)
            data = np.where(
                noisy, self.data_tokens + below(words(keyed, 2 * count + 1, count), self.noise_tokens), data
            )
            answers = data if self.faithful else np.where(noisy, UNSCORED, data)
        inputs = np.full((rows, self.max_length), self.vocab_size - 1, dtype=np.int64)
        inputs[:, :count] = data
        targets = np.full_like(inputs, UNSCORED)
        if self.readout == "steps":
            targets[:, count:] = answers
        else:
            targets[:, :count] = answers
            targets[:, count] = self.vocab_size - 1 if self.faithful else UNSCORED
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))

    def _noisy(self, keyed: NDArray[np.uint64]) -> NDArray[np.bool_]:  # (B, L − 1)
        """Return which tokens are noise."""
        drawn = words(keyed, self.length - 1, self.length)
        noisy: NDArray[np.bool_] = (drawn[:, 1:] >> np.uint64(32)) < np.uint64(round(self.noise * 2**32))
        if not self.faithful:
            noisy &= np.arange(self.length - 1) != below(drawn[:, :1], self.length - 1)
        return noisy
