"""What induction heads and associative recall share: two special tokens, what is scored, splits by content."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from specreg.tasks.streams import stream_keys, words
from specreg.tasks.strings import digest
from specreg.tasks.task import UNSCORED, Batch, Split, TokenTask

__all__ = ["InContextTask", "Scored"]

Scored = Literal["last", "all"]

_TRIES = 64  # a content is held out with probability ¼: a row that finds none has a chance of 10⁻⁸
_SMALLEST_SPACE = 200
_LARGE_SPACE = 2**40  # beyond, two streams coincide too rarely to matter


@dataclass(frozen=True, kw_only=True)
class InContextTask(TokenTask):
    """A sequence that ends with the prefix, a question, and an answer to be found earlier in the same sequence.

    Token 0 is the "." of the published code, V − 1 the prefix "=>", 1 … V − 2 are symbols. The target of a step is the
    token that comes next. Held-out splits are scored on the answer alone.

    A space of fewer than 2⁴⁰ sequences is split by content: a hash of the whole sequence, with its answer, gives one
    half to training and a quarter to each held-out split, and an example is the first of 64 tries that belongs to its
    split. Larger spaces need no more than streams of their own.
    """

    vocab_size: int = 20
    """Vocabulary V, the two special tokens among them."""
    scored: Scored = "last"
    """What training scores: the answer ("last"), or every next token ("all")."""
    faithful: bool = False
    """Whether splits may share sequences in a small space, as in the published code."""

    def __post_init__(self) -> None:
        """Check what is scored and that there are sequences enough for three splits."""
        super().__post_init__()
        if self.scored not in get_args(Scored):
            raise ValueError(f"scored is {self.scored!r}; there are {', '.join(get_args(Scored))}")
        if self._space < _SMALLEST_SPACE and not self.faithful:
            raise ValueError(
                f"vocab_size {self.vocab_size} and length {self.max_length} make about {self._space} sequences, which "
                "are too few for three splits; give a larger vocabulary, longer sequences, or faithful=True"
            )

    @property
    def prefix(self) -> int:
        """The token before the question, V − 1."""
        return self.vocab_size - 1

    def token_name(self, token: int) -> str:
        """Return "=>" for the prefix, "." for the token 0, else the number."""
        return {0: ".", self.prefix: "=>"}.get(token, str(token))

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the examples at `indices`."""
        sequences = self._sequences(split, stream_keys(self.seed, split, indices))
        targets = sequences[:, 1:].copy()
        if split != "train" or self.scored == "last":
            targets[:, : -self._answers] = UNSCORED
        return Batch(torch.from_numpy(sequences[:, :-1].copy()), torch.from_numpy(targets))

    def _sequences(
        self,
        split: Split,
        keyed: NDArray[np.uint64],  # (B,)
    ) -> NDArray[np.int64]:  # (B, T + 1)
        count = self._words
        sequences = self._spelt(words(keyed, 0, count))
        if self.faithful or self._space >= _LARGE_SPACE:
            return sequences
        pending = np.flatnonzero(~_belongs(sequences, split))
        for tried in range(1, _TRIES):
            if not pending.size:
                break
            sequences[pending] = self._spelt(words(keyed[pending], tried * count, count))
            pending = pending[~_belongs(sequences[pending], split)]
        return sequences

    @property
    @abstractmethod
    def _answers(self) -> int:
        """The number of tokens to be answered, at the end."""

    @property
    @abstractmethod
    def _space(self) -> int:
        """A lower bound of the number of sequences, exact enough to tell small from large."""

    @property
    @abstractmethod
    def _words(self) -> int:
        """The number of words that a sequence takes."""

    @abstractmethod
    def _spelt(
        self,
        drawn: NDArray[np.uint64],  # (B, N), as many as `_words`
    ) -> NDArray[np.int64]:  # (B, T + 1), with the answer
        """Return whole sequences."""


def _belongs(
    sequences: NDArray[np.int64],  # (B, T + 1)
    split: Split,
) -> NDArray[np.bool_]:  # (B,)
    """Return which sequences are the split's, by the first two bits of a hash: 0 and 1 training, 2 and 3 held out."""
    mixed = digest(sequences, np.full(len(sequences), sequences.shape[1]))
    quarter = mixed >> np.uint64(62)
    owner: NDArray[np.bool_] = {"train": quarter < 2, "validation": quarter == 2, "test": quarter == 3}[split]
    return owner
