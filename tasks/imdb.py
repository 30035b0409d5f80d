"""Film reviews, character by character: the Text task of the Long Range Arena."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Self

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
    digests,
)
from specreg.tasks.streams import stratified_order
from specreg.tasks.task import Batch, SpectralNeed, Split
from specreg.tasks.texts import ClassifiedText, character_tokens, length_class

__all__ = ["IMDb"]

_PER_CLASS = 12_500
_VALIDATION = 2_500
_READER = 1  # to be raised when what is read from the same files changes
_FOLDER = "aclImdb"
_ARCHIVES = ("aclImdb_v1.tar.gz", "aclImdb-labelled.tar.xz")
_PARTS = tuple(f"{part}/{label}" for part in ("train", "test") for label in ("neg", "pos"))  # labels 0 and 1
_REVIEW = re.compile(r"aclImdb/((?:train|test)/(?:neg|pos))/(\d+)_(\d+)\.txt")
_LIMITS = Limits(members=200_000, member_bytes=256 << 20, total_bytes=2 << 30)  # the official archive with its features
_SOURCE = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"


@dataclass(frozen=True, kw_only=True)
class IMDb(ClassifiedText):
    """Film reviews, positive or negative, read character by character: the Text task of the Long Range Arena.

    Probes classification of long text. A review is cut to `length` steps, the end mark included, and shorter ones are
    padded on the right. Vocabularies: `characters`, by the rule of the S4 repository: padding, unknown and end mark,
    then the characters that occur `min_count` times or more in the 25,000 training reviews as they are cut, the
    commonest first: 134 tokens at length 4096; or `bytes`, by that of the Long Range Arena: padding, the 256 bytes, and
    the end mark with `eos`.

    Sizes: 25,000 reviews for training and 25,000 for test, half of each positive, 13,704 bytes the longest. Validation
    is 2,500 of the training reviews, FIXED, the same for every seed and length: stratified, and drawn among those whose
    text occurs once. 123 texts stand in both official parts, 0.5 % of the test set: they are left there, and of reviews
    cut short a few more begin alike (at 128 bytes 128 of them, and one of validation). `faithful` trains on all 25,000
    and validates on the test set, as the Long Range Arena and the S4 repository do: a choice made by validation has
    then seen the test set. Inputs (B, T) tokens with T the longest of the batch, targets (B,), 2 classes.

    Chance: 0.5, the classes being equally many.

    Data: a directory (`data`, else the environment variable SPECREG_DATA, else ~/.cache/specreg) that holds the
    official `aclImdb_v1.tar.gz`, or `aclImdb-labelled.tar.xz` (the same without what has no label), read in place, or
    else the unpacked folder `aclImdb`. What was read is kept in the cache folder.

    Source: Maas, Daly, Pham, Huang, Ng, Potts (2011), ACL P11-1015; the task, Tay et al. (2020), arXiv:2011.04006.

    Raises ValueError for a length below 2, a `min_count` below 1 or an unknown vocabulary; MissingDataError (a
    FileNotFoundError) and DataFormatError (a ValueError) when reviews, or the number of tokens, are first asked for.
    """

    probes: ClassVar[str] = "classification of long text"
    source: ClassVar[str] = "Maas et al. 2011, ACL P11-1015; Tay et al. 2020, arXiv:2011.04006"
    chance: ClassVar[float] = 0.5
    """The reader accepts no files where the classes are not equally many."""

    min_count: int = 15
    """How often a character occurs in training to be a token of its own; no matter for bytes."""
    faithful: bool = False
    """Whether the test set is the validation set too, as published."""

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.min_count < 1:
            raise ValueError(f"min_count is {self.min_count}; give 1 or more")
        if self.faithful and self.validation_examples is not None:
            given = f"validation_examples is {self.validation_examples}"
            raise ValueError(f"{given}; faithful validates on the whole test set: give None")

    @classmethod
    def tiny(cls) -> Self:
        """Return the first 128 bytes of each review, and 500 of validation."""
        return cls(length=128, vocabulary="bytes", eos=False, validation_examples=500)

    @property
    def need(self) -> SpectralNeed:
        """Words that tell stand anywhere in a review."""
        return SpectralNeed(memory=self.length, note="telling words anywhere in the text")

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", and the settings of S4, of Rickenbach et al. 2025, "tli", and of the Long Range Arena's code.

        All of these validate on the test set; "lra-text" is the first without that.
        """
        return {
            "tiny": cls.tiny(),
            "lra-text": cls(),
            "s4-imdb": cls(faithful=True),
            "tli": cls(faithful=True),
            "lra-text-1000": cls(length=1000, vocabulary="bytes", eos=False, faithful=True),
        }

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the length of each review, as the power of two that it does not exceed."""
        return {"length": length_class(batch.lengths, self.length)}

    def class_name(self, label: int) -> str:
        """Return negative or positive."""
        return ("negative", "positive")[label]

    def data_files(self) -> tuple[Path, ...]:
        """Return the files and folders that are read; `digests` in `specreg.tasks.files` names their content."""
        return _sources(self.directory)

    def downloads(self) -> tuple[Download, ...]:
        """Return the official archive."""
        return (Download(_SOURCE, _ARCHIVES[0], _SHA256, 100 << 20),)

    def whole(self, split: Split) -> int:
        """Return the number of reviews in a split."""
        everything = 2 * _PER_CLASS
        if self.faithful:
            return everything
        return {"train": everything - _VALIDATION, "validation": _VALIDATION, "test": everything}[split]

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the reviews at `indices`."""
        if split == "test" or (self.faithful and split == "validation"):
            chosen = 2 * _PER_CLASS + indices
        else:
            chosen = indices if self.faithful else _members(self.directory, split)[indices]
        inputs, mask = self.cut(chosen)
        return Batch(inputs, torch.from_numpy(self.texts().labels[chosen]), mask)

    def texts(self) -> Flat:
        """Return all reviews, those of the official training part first."""
        if self.vocabulary == "bytes":
            return _reviews(self.directory)
        return _characters(self.directory, self.length - self.eos, self.min_count)


@lru_cache(maxsize=4)
def _members(directory: Path, split: Split) -> NDArray[np.int64]:
    """Return which of the 25,000 official training reviews a split holds."""
    reviews = _reviews(directory)
    alone = np.setdiff1d(np.arange(2 * _PER_CLASS), reviews.notes["repeated"])
    validation = alone[stratified_order(reviews.labels[alone])[:_VALIDATION]]
    return validation if split == "validation" else np.setdiff1d(np.arange(2 * _PER_CLASS), validation)


@lru_cache(maxsize=4)
def _characters(directory: Path, cut: int, min_count: int) -> Flat:
    """Return all reviews as characters; the notes are the characters."""

    def build() -> Flat:
        reviews = _reviews(directory)
        weights = (np.arange(4 * _PER_CLASS) < 2 * _PER_CLASS).astype(np.int64)  # training alone counts
        tokens, offsets, characters = character_tokens(
            reviews.data, reviews.offsets, weights, cut=cut, min_count=min_count
        )
        return Flat(tokens, offsets, reviews.labels, {"characters": characters})

    settings = {"cut": cut, "min_count": min_count}
    return cached("imdb-characters", build, source=_source_digest(directory), version=_READER, settings=settings)


@lru_cache(maxsize=2)
def _reviews(directory: Path) -> Flat:
    """Return all reviews as bytes: train/neg, train/pos, test/neg, test/pos, each by number."""
    return cached(
        "imdb", lambda: _read(directory), source=_source_digest(directory), version=_READER, settings={"of": _PER_CLASS}
    )


@lru_cache(maxsize=4)
def _source_digest(directory: Path) -> str:
    found = digests(_sources(directory), directory)
    return sha256(repr(sorted(found.items())).encode()).hexdigest()


def _sources(directory: Path) -> tuple[Path, ...]:
    for name in _ARCHIVES:
        if (directory / name).is_file():
            return (directory / name,)
    if (directory / _FOLDER).is_dir():
        return tuple(_part(directory, part) for part in _PARTS)
    raise MissingDataError(
        f"IMDb was not found in {directory}. Download {_SOURCE} (84 MB) to that directory; it is read as it is, or "
        f"from the folder {_FOLDER} that it unpacks to. Another directory is named by the task's `data` field "
        f"(`--data` on the command line) or the environment variable {ENVIRONMENT_VARIABLE}"
    )


def _part(directory: Path, part: str) -> Path:
    folder = directory / _FOLDER / part
    if not folder.is_dir():
        raise MissingDataError(f"{folder} is missing; unpack the whole of {_SOURCE} there")
    return folder


def _read(directory: Path) -> Flat:
    sources = _sources(directory)
    where = sources[0] if len(sources) == 1 else directory / _FOLDER
    reviews = sorted(_archived(where) if len(sources) == 1 else _unpacked(directory))
    counts = Counter(part for part, *_ in reviews)
    found = ", ".join(f"{counts[part]:,} in {_PARTS[part]}" for part in range(4))
    if [counts[part] for part in range(4)] != [_PER_CLASS] * 4:
        raise DataFormatError(f"{where} has {found} reviews; each should have {_PER_CLASS:,}. Replace it by {_SOURCE}")
    texts = [content for *_, content in reviews]
    occurrences = Counter(texts)
    repeated = [place for place, text in enumerate(texts[: 2 * _PER_CLASS]) if occurrences[text] > 1]
    return Flat(
        np.frombuffer(b"".join(texts), np.uint8),
        np.concatenate([[0], np.cumsum([len(text) for text in texts])]),
        np.tile(np.repeat(np.arange(2), _PER_CLASS), 2),
        {"repeated": repeated},
    )


Review = tuple[int, int, int, bytes]  # which of _PARTS, number, stars, text


def _archived(path: Path) -> Iterator[Review]:
    for member in members(path, _LIMITS):
        if match := _REVIEW.fullmatch(member.name):
            yield _review(f"{path}: {member.name}", match, member.read())


def _unpacked(directory: Path) -> Iterator[Review]:
    for part in _PARTS:
        for path in _part(directory, part).iterdir():
            if match := _REVIEW.fullmatch(f"{_FOLDER}/{part}/{path.name}"):
                yield _review(str(path), match, path.read_bytes())


def _review(name: str, match: re.Match[str], content: bytes) -> Review:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{name} is not UTF-8 ({error}). Replace it by {_SOURCE}") from error
    if not content:
        raise DataFormatError(f"{name} is empty. Replace it by {_SOURCE}")
    return _PARTS.index(match[1]), int(match[2]), int(match[3]), content
