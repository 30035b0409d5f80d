"""Articles of Wikipedia, token after token: language modelling."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.archives import Limits, members
from specreg.tasks.files import (
    ENVIRONMENT_VARIABLE,
    DataFormatError,
    Download,
    Flat,
    MissingDataError,
    cached,
    digest,
    digests,
)
from specreg.tasks.task import UNSCORED, Batch, FileTask, SpectralNeed, Split
from specreg.tasks.texts import length_class, shown
from specreg.tasks.token_readers import Bytes, Pieces, Words, read_text

__all__ = ["WikiText"]

Corpus = Literal["wikitext-2", "wikitext-103"]
Level = Literal["words", "bytes", "tokenizer"]

_READER = 1  # to be raised when what is read from the same files changes
_FILES = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")
_PLACES: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
# the authors' own address, since the first one is gone; the digests are those published of the archives there
_DOWNLOADS = {
    "wikitext-2": "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
    "wikitext-103": "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
}
_ADDRESS = "https://wikitext.smerity.com"
_BLOCK = 1 << 20
_LIMITS = Limits(members=100, member_bytes=1 << 30, total_bytes=2 << 30)


@dataclass(frozen=True, kw_only=True)
class WikiText(FileTask):
    """Language modelling on articles of Wikipedia: every position is answered with the next token.

    Probes prediction of natural language. The text of a split is one long sequence of tokens, cut in blocks of `length`
    that are learnt and scored each by itself: input i of a block is a token, target i the next one, that of the last
    position being the first of the next block. The last block is shorter and padded on the right.

    Levels: `words`, the tokens of the official files, separated by white space, and one mark `<eos>` a line, blank
    lines included; the vocabulary is that of the training text, the commonest word first, those equally common by
    their bytes. `bytes`, the 256 bytes of the same files. `tokenizer`, what a JSON file of the library `tokenizers`
    makes of each line with its end; the library is imported only then.

    Sizes: `wikitext-2` has 2,088,628 / 217,646 / 245,569 words for training, validation and test, 33,278 of them
    different; `wikitext-103` has the same validation and test texts, and fifty times the training text. Inputs and
    targets (B, length), as many classes as tokens.

    `perplexity` and `bits_per_byte` turn a mean loss into what is published; the latter compares levels.

    Chance: measured: how often the commonest training token is the answer in validation.

    Data: a directory (`data`, else the environment variable SPECREG_DATA, else ~/.cache/specreg) that holds the
    official `wikitext-2-v1.zip` or `wikitext-103-v1.zip`, read in place and in blocks, or else the unpacked folder
    `wikitext-2` or `wikitext-103` with wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens. What was read is kept
    in the cache folder.

    Source: Merity, Xiong, Bradbury, Socher (2016), arXiv:1609.07843.

    Raises ValueError for a length below 1, an unknown corpus or level, or a tokenizer without its level or the level
    without a tokenizer; MissingDataError (a FileNotFoundError) and DataFormatError (a ValueError) when text, or the
    number of tokens, is first asked for; ImportError where `tokenizers` is not installed.
    """

    probes: ClassVar[str] = "prediction of natural language"
    source: ClassVar[str] = "Merity et al. 2016, arXiv:1609.07843"
    per_position: ClassVar[bool] = True

    corpus: Corpus = "wikitext-2"
    """Which of the two."""
    level: Level = "words"
    """What a token is."""
    length: int = 256
    """Steps of a block T."""
    tokenizer: Path | None = None
    """A JSON file of the library `tokenizers`, for that level."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        for name, allowed in (("corpus", get_args(Corpus)), ("level", get_args(Level))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if self.length < 1:
            raise ValueError(f"length is {self.length}; give 1 or more")
        if (self.level == "tokenizer") != (self.tokenizer is not None):
            raise ValueError(
                f"level is {self.level!r} and tokenizer {self.tokenizer}; level 'tokenizer' needs the path of a JSON "
                "file of the library tokenizers, and the other levels take none"
            )
        if self.tokenizer is not None:  # a configuration file gives a string
            object.__setattr__(self, "tokenizer", Path(self.tokenizer).expanduser().absolute())

    @classmethod
    def tiny(cls) -> Self:
        """Return blocks of 128 bytes, and the first 200 of validation."""
        return cls(level="bytes", length=128, validation_examples=200)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, as the files or the tokenizer have them."""
        return 256 if self.level == "bytes" else len(self._text().notes["vocabulary"])

    @property
    def num_classes(self) -> int:
        """The number of tokens."""
        return self.vocab_size

    @property
    def max_length(self) -> int:
        """The steps of a block."""
        return self.length

    @property
    def chance(self) -> float:
        """How often the commonest training token is the answer in validation, measured."""
        return float(self._text().notes["chance"])

    @property
    def need(self) -> SpectralNeed:
        """Nothing certain is known."""
        return SpectralNeed(memory=self.length, note="dependence at every distance, near ones the most")

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", both corpora by words, and WikiText-103 in the blocks of S4."""
        return {
            "tiny": cls.tiny(),
            "wikitext-2": cls(),
            "wikitext-103": cls(corpus="wikitext-103"),
            "s4-wt103": cls(corpus="wikitext-103", length=8192),
        }

    def extrapolations(self) -> Mapping[str, Self]:
        """Return blocks of twice and four times the length."""
        return {f"length {n}": replace(self, length=n) for n in (2 * self.length, 4 * self.length)}

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return how many tokens of the block are known at each position, as the power of two not exceeded."""
        known = torch.arange(1, batch.targets.shape[1] + 1, device=batch.targets.device)
        classes = length_class(known, self.length).expand_as(batch.targets)
        return {"context": classes.where(batch.scored, -1)}

    def token_name(self, token: int) -> str:
        """Return the word, the byte, or the tokenizer's piece."""
        if self.level == "bytes":
            return shown(chr(token)) if token < 128 else f"\\x{token:02x}"
        return "".join(shown(each) for each in self._text().notes["vocabulary"][token]) or repr("")

    def data_files(self) -> tuple[Path, ...]:
        """Return the files that are read; `digests` in `specreg.tasks.files` names their content."""
        texts = _sources(self.directory, self.corpus)
        return texts if self.tokenizer is None else (*texts, self.tokenizer)

    def downloads(self) -> tuple[Download, ...]:
        """Return the official archive of the corpus."""
        archive = f"{self.corpus}-v1.zip"
        return (Download(f"{_ADDRESS}/{archive}", archive, _DOWNLOADS[self.corpus], 250 << 20),)

    def token_count(self, split: Split) -> int:
        """Return the number of tokens of a split."""
        offsets, place = self._text().offsets, _PLACES[split]
        return int(offsets[place + 1] - offsets[place])

    def byte_count(self, split: Split) -> int:
        """Return the number of bytes of a split."""
        return int(self._text().notes["bytes"][_PLACES[split]])

    @staticmethod
    def perplexity(loss: float) -> float:
        """Return e to the mean loss a token, in nats."""
        return math.exp(loss) if loss < 700 else math.inf

    def bits_per_byte(self, loss: float, split: Split) -> float:
        """Return the mean loss, in nats a token, in bits for each byte of the split's text."""
        return loss / math.log(2) * self.token_count(split) / self.byte_count(split)

    def whole(self, split: Split) -> int:
        """Return the number of blocks in a split."""
        return -(-(self.token_count(split) - 1) // self.length)

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the blocks at `indices`."""
        text = self._text()
        first, end = text.offsets[_PLACES[split] :][:2]
        places = first + indices[:, None] * self.length + np.arange(self.length + 1)
        real = places < end
        tokens = text.data[np.minimum(places, end - 1)].astype(np.int64)
        mask = real[:, 1:]  # a position counts where there is a next token
        inputs = np.where(mask, tokens[:, :-1], 0)
        targets = np.where(mask, tokens[:, 1:], UNSCORED)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(mask.copy()))

    def _text(self) -> Flat:
        return _load(self.directory, self.corpus, self.level, self.tokenizer)


@lru_cache(maxsize=4)
def _load(directory: Path, corpus: Corpus, level: Level, tokenizer: Path | None) -> Flat:
    """Return the tokens of training, validation and test text; see `read_text`."""
    if tokenizer is not None and not tokenizer.is_file():
        raise MissingDataError(f"tokenizer {tokenizer} is missing; give the path of a JSON file of that library")
    sources = _sources(directory, corpus)

    def build() -> Flat:
        reader = Pieces(tokenizer) if tokenizer is not None else Words() if level == "words" else Bytes()
        where = sources[0] if len(sources) == 1 else sources[0].parent
        try:
            return read_text(_archived(where, corpus) if len(sources) == 1 else _unpacked(sources), reader)
        except DataFormatError as error:
            raise DataFormatError(f"{corpus} could not be read from {where}: {error}") from error

    source = sha256(repr(digests(sources, directory)).encode()).hexdigest()
    settings = {"level": level, "tokenizer": None if tokenizer is None else digest(tokenizer)}
    return cached(corpus, build, source=source, version=_READER, settings=settings)


def _sources(directory: Path, corpus: Corpus) -> tuple[Path, ...]:
    archive, folder = directory / f"{corpus}-v1.zip", directory / corpus
    if archive.is_file():
        return (archive,)
    if folder.is_dir():
        for name in _FILES:
            if not (folder / name).is_file():
                raise MissingDataError(f"{folder / name} is missing; unpack the whole of {archive.name} there")
        return tuple(folder / name for name in _FILES)
    raise MissingDataError(
        f"{corpus} was not found in {directory}. Put the official archive {archive.name} there; it is read as it is, "
        f"or the folder {folder.name} that it unpacks to. Another directory is named by the task's `data` field "
        f"(`--data` on the command line) or the environment variable {ENVIRONMENT_VARIABLE}"
    )


def _archived(path: Path, corpus: Corpus) -> Iterator[tuple[int, Iterator[bytes]]]:
    wanted = [f"{corpus}/{name}" for name in _FILES]
    missing = set(wanted)
    for member in members(path, _LIMITS):
        if member.name in missing:
            missing.remove(member.name)
            yield wanted.index(member.name), member.blocks()
    if missing:
        raise DataFormatError(f"it has no {', '.join(sorted(missing))}")


def _unpacked(paths: tuple[Path, ...]) -> Iterator[tuple[int, Iterator[bytes]]]:
    for place, path in enumerate(paths):
        yield place, _blocks(path)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
