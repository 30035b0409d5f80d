"""From a long text to tokens, block by block: words, bytes, or the pieces of a tokenizer that the user gives."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specreg.tasks.files import DataFormatError, Flat

__all__ = ["Bytes", "Pieces", "TokenReader", "Words", "read_text"]

_END, _UNKNOWN = b"<eos>", b"<unk>"
_SPLITS = 3  # training, validation, test

Tokens = NDArray[Any]


class TokenReader(ABC):
    """What makes tokens of text; the numbers it gives at first may be changed once all text is read."""

    @abstractmethod
    def encode(self, block: bytes) -> Tokens:
        """Return the tokens of whole lines."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of different tokens so far."""

    @abstractmethod
    def settle(self, counts: NDArray[np.int64]) -> tuple[Tokens, list[str]]:
        """Return the final number of each token, and the name of each final number, from the counts in training."""


class Bytes(TokenReader):
    """The bytes themselves."""

    size = 256

    def encode(self, block: bytes) -> Tokens:
        return np.frombuffer(block, np.uint8)

    def settle(self, counts: NDArray[np.int64]) -> tuple[Tokens, list[str]]:
        return np.arange(self.size), []


class Words(TokenReader):
    """What stands between white space, and a mark at the end of each line; numbered by how common they are."""

    def __init__(self) -> None:
        self._numbers: defaultdict[bytes, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__

    def encode(self, block: bytes) -> Tokens:
        words = block.replace(b"\n", b" " + _END + b" ").split()
        return np.fromiter(map(self._numbers.__getitem__, words), np.int32, len(words))

    @property
    def size(self) -> int:
        return len(self._numbers)

    def settle(self, counts: NDArray[np.int64]) -> tuple[Tokens, list[str]]:
        words = list(self._numbers)
        order = sorted(np.flatnonzero(counts).tolist(), key=lambda number: (-counts[number], words[number]))
        final = np.full(len(words), -1)
        final[order] = np.arange(len(order))
        unknown = int(final[self._numbers[_UNKNOWN]]) if _UNKNOWN in self._numbers else -1
        strangers = np.flatnonzero(final < 0)
        if strangers.size and unknown < 0:
            raise DataFormatError(f"{words[strangers[0]]!r} does not occur in the training text, nor does {_UNKNOWN!r}")
        final[strangers] = unknown
        return final, [words[number].decode() for number in order]


class Pieces(TokenReader):
    """What a tokenizer of the library `tokenizers` makes of each line with its end, without its special tokens."""

    def __init__(self, path: Path) -> None:
        try:
            library = import_module("tokenizers")
        except ImportError as error:
            raise ImportError(f"{path} is read by the library tokenizers: pip install tokenizers") from error
        try:
            self._tokenizer = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower class
            raise DataFormatError(f"{path} is no JSON file of the library tokenizers ({error})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, block: bytes) -> Tokens:
        lines = block.decode().split("\n")[:-1]
        found = [self._tokenizer.encode(f"{line}\n", add_special_tokens=False).ids for line in lines]
        return np.fromiter((token for line in found for token in line), np.int32)

    @property
    def size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def settle(self, counts: NDArray[np.int64]) -> tuple[Tokens, list[str]]:
        names = [self._tokenizer.id_to_token(number) or f"<{number}>" for number in range(self.size)]
        return np.arange(self.size), names


def read_text(parts: Iterable[tuple[int, Iterator[bytes]]], reader: TokenReader) -> Flat:
    """Return the tokens of training, validation and test text from blocks of each, in whatever order they come.

    The notes are the names of the tokens ("vocabulary", empty for bytes), the bytes of each text ("bytes"), and how
    often the commonest training token is the next one in validation ("chance"). Raises DataFormatError for a text that
    is missing, is not UTF-8, or does not end with a line's end.
    """
    chunks: list[list[Tokens]] = [[] for _ in range(_SPLITS)]
    sizes = [0] * _SPLITS
    try:
        for place, blocks in parts:
            for block in _whole_lines(blocks):
                chunks[place].append(reader.encode(block))
                sizes[place] += len(block)
        counts = np.zeros(reader.size, np.int64)
        for chunk in chunks[0]:
            counts += np.bincount(chunk, minlength=reader.size)
        final, names = reader.settle(counts)
    except UnicodeDecodeError as error:
        raise DataFormatError(f"the text is not UTF-8 ({error})") from error
    offsets = np.concatenate([[0], np.cumsum([sum(map(len, part)) for part in chunks])])
    if np.diff(offsets).min() < 2:
        raise DataFormatError("training, validation and test text need two tokens each, or more")
    data = _joined([chunk for part in chunks for chunk in part], final)
    expected = data[offsets[1] + 1 : offsets[2]]  # the first token of a text is no answer
    chance = float((expected == final[counts.argmax()]).mean())
    nothing = np.empty(0, np.int64)
    return Flat(data, offsets, nothing, {"vocabulary": names, "bytes": sizes, "chance": chance})


def _joined(chunks: list[Tokens], final: Tokens) -> Tokens:
    dtype = np.uint8 if final.max() < 2**8 else np.uint16 if final.max() < 2**16 else np.int32
    table = final.astype(dtype)
    data = np.empty(sum(map(len, chunks)), dtype)
    place = 0
    for chunk in chunks:
        data[place : place + len(chunk)] = table[chunk]
        place += len(chunk)
    return data


def _whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        head, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            yield head + newline
    if rest:
        raise DataFormatError("the text does not end with a line's end: it is truncated")
