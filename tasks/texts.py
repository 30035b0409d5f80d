"""What the tasks on text share: bytes and characters as tokens, sequences cut from a long array, length classes."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.files import Flat
from specreg.tasks.task import FileTask

__all__ = [
    "END",
    "PAD",
    "SPECIALS",
    "UNKNOWN",
    "ByteTokens",
    "ClassifiedText",
    "Vocabulary",
    "character_tokens",
    "cut_rows",
    "length_class",
    "shown",
]

PAD, UNKNOWN, END = 0, 1, 2
SPECIALS = ("<pad>", "<unk>", "<eos>")
"""The first tokens of a vocabulary of characters."""

_BLOCK = 1000  # texts decoded at a time

Integers = NDArray[np.int64]


Vocabulary = Literal["characters", "bytes"]


class ByteTokens:
    """The vocabulary of bytes: 0 is padding, byte b is b + 1, and 257 the end where texts have one."""

    SHIFT = 1
    END = 257

    @classmethod
    def size(cls, eos: bool) -> int:
        """Return the number of tokens."""
        return cls.END + eos

    @classmethod
    def name(cls, token: int) -> str:
        """Return how a token is shown."""
        if token in (PAD, cls.END):
            return SPECIALS[PAD if token == PAD else END]
        byte = token - cls.SHIFT
        return chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"


@dataclass(frozen=True, kw_only=True)
class ClassifiedText(FileTask):
    """Text read character by character or byte by byte, and one of two classes."""

    num_classes: ClassVar[int] = 2

    length: int = 4096
    """The most steps of a text, the end mark included."""
    vocabulary: Vocabulary = "characters"
    """What a token is."""
    eos: bool = True
    """Whether an end mark is the last step of every text."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.length < 2:
            raise ValueError(f"length is {self.length}; give 2 or more")
        if self.vocabulary not in get_args(Vocabulary):
            raise ValueError(f"vocabulary is {self.vocabulary!r}; allowed are {', '.join(get_args(Vocabulary))}")

    @abstractmethod
    def texts(self) -> Flat:
        """Return all texts as tokens, or as bytes; among the notes of the former the "characters"."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens; of characters, as the files have them."""
        if self.vocabulary == "bytes":
            return ByteTokens.size(self.eos)
        return len(SPECIALS) + len(self.texts().notes["characters"])

    @property
    def max_length(self) -> int:
        """The most steps of a text."""
        return self.length

    def token_name(self, token: int) -> str:
        """Return the character, the byte or the name of the mark."""
        if self.vocabulary == "bytes":
            return ByteTokens.name(token)
        if token < len(SPECIALS):
            return SPECIALS[token]
        return shown(self.texts().notes["characters"][token - len(SPECIALS)])

    def cut(self, chosen: Integers) -> tuple[Tensor, Tensor]:
        """Return texts as the settings cut and end them, (B, T) tokens, and their mask: see `cut_rows`."""
        texts, as_bytes = self.texts(), self.vocabulary == "bytes"
        end = (ByteTokens.END if as_bytes else END) if self.eos else None
        shift = ByteTokens.SHIFT if as_bytes else 0
        return cut_rows(texts.data, texts.offsets, chosen, length=self.length, shift=shift, end=end)


def shown(character: str) -> str:
    """Return a character, or its escape where it cannot be printed."""
    return character if character.isprintable() else repr(character)[1:-1]


def character_tokens(
    data: NDArray[np.uint8],  # texts in UTF-8, one after another
    offsets: Integers,  # (N + 1,)
    weights: Integers,  # (N,), how often each text counts
    *,
    cut: int,
    min_count: int,
) -> tuple[NDArray[Any], Integers, list[str]]:
    """Return the first `cut` characters of each text as tokens, where each text begins, and the characters.

    Tokens are those of SPECIALS, then the characters that occur `min_count` times or more in the texts as cut, the
    commonest first, those equally common by code point; others are UNKNOWN. Texts are valid UTF-8.
    """
    counts = np.zeros(0x110000)
    lengths = []
    for first, codes, sizes in _code_blocks(data, offsets, cut):
        counted = np.bincount(codes, np.repeat(weights[first : first + sizes.size], sizes))
        counts[: counted.size] += counted
        lengths.append(sizes)
    kept = np.flatnonzero(counts >= max(min_count, 1))
    kept = kept[np.lexsort((kept, -counts[kept]))]
    ends = np.concatenate([[0], *lengths]).cumsum()
    dtype = np.uint8 if kept.size + len(SPECIALS) <= 256 else np.int32
    table = np.full(counts.size, UNKNOWN, dtype)
    table[kept] = np.arange(len(SPECIALS), len(SPECIALS) + kept.size)
    tokens = np.empty(ends[-1], dtype)
    for first, codes, sizes in _code_blocks(data, offsets, cut):
        tokens[ends[first] : ends[first + sizes.size]] = table[codes]
    return tokens, ends, [chr(code) for code in kept.tolist()]


def _code_blocks(
    data: NDArray[np.uint8], offsets: Integers, cut: int
) -> Iterator[tuple[int, NDArray[np.uint32], Integers]]:
    """Yield the number of the first text, the code points and the lengths of some texts at a time."""
    for first in range(0, offsets.size - 1, _BLOCK):
        bounds = offsets[first : first + _BLOCK + 1]
        content, starts = data[bounds[0] : bounds[-1]].tobytes(), (bounds - bounds[0]).tolist()
        texts = [content[a:b].decode()[:cut] for a, b in pairwise(starts)]
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        yield first, codes, np.array([len(text) for text in texts], np.int64)


def cut_rows(
    data: NDArray[Any],
    offsets: Integers,  # (N + 1,)
    chosen: Integers,  # (B,), which of the N
    *,
    length: int,  # the most steps, the end included
    shift: int = 0,  # token = what stands in `data` + shift
    end: int | None = None,  # a token that ends every sequence
) -> tuple[Tensor, Tensor]:
    """Return the first steps of sequences, (B, T) int64 with PAD on the right, and the mask, (B, T) bool.

    T is the longest of them. Sequences without an end have at least one step.
    """
    starts = offsets[chosen]
    kept = np.minimum(offsets[chosen + 1] - starts, length - (end is not None))
    real = kept + (end is not None)
    steps = np.arange(real.max())
    # beyond the last step of a sequence its neighbour's stand, and the last sequence has none
    places = np.minimum(starts[:, None] + steps, max(data.size - 1, 0))
    tokens = np.take(data, places).astype(np.int64)
    tokens += shift
    mask = steps < real[:, None]
    tokens[~mask] = PAD
    if end is not None:
        tokens[np.arange(chosen.size), kept] = end
    return torch.from_numpy(tokens), torch.from_numpy(mask)


def length_class(
    lengths: Tensor,  # int64
    longest: int,
) -> Tensor:
    """Return each length's power of two, that which it does not exceed, and `longest` above the last such power."""
    powers = [2**exponent for exponent in range(longest.bit_length()) if 2**exponent < longest]
    bounds = torch.tensor([*powers, longest], device=lengths.device)
    return bounds[torch.bucketize(lengths, bounds)]
