"""Do two papers cite one another? The Retrieval task of the Long Range Arena, on the ACL Anthology Network."""

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

from specreg.tasks.files import (
    ENVIRONMENT_VARIABLE,
    DataFormatError,
    Flat,
    MissingDataError,
    cached,
    digests,
)
from specreg.tasks.task import Batch, SpectralNeed, Split
from specreg.tasks.texts import ClassifiedText, Vocabulary, character_tokens, length_class

__all__ = ["Retrieval"]

_READER = 1  # to be raised when what is read from the same files changes
_FILES: dict[Split, str] = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
_FOLDERS = (".", "tsv_data", "lra_release/tsv_data")
_LABELS = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}
_LONGEST_LINE = 64 << 20
_SOURCE = "https://github.com/google-research/long-range-arena"


@dataclass(frozen=True, kw_only=True)
class Retrieval(ClassifiedText):
    """Pairs of papers of the ACL Anthology Network: does one cite the other? The Long Range Arena's Retrieval.

    Probes compression of a long text: each of the two is read by itself, and only what is kept of them is compared. A
    text is cut to `length` steps, the end mark included, and shorter ones are padded on the right. Vocabularies:
    `characters`, by the rule of the S4 repository: padding, unknown and end mark, then every character that occurs in
    the training texts as they are cut, the commonest first; or `bytes`, by that of the Long Range Arena: padding, the
    256 bytes, and the end mark with `eos`.

    Sizes: those of the files, 147,086 pairs for training as published. Inputs (B, 2, T) tokens with T the longest of
    the batch, mask (B, 2, T), targets (B,), 2 classes: 1 where one cites the other. The splits are the official ones:
    whether a paper stands in several of them, in other pairs, is up to the files.

    Chance: measured: how often the label that is commonest in training is the answer in validation.

    Data: a directory (`data`, else the environment variable SPECREG_DATA, else ~/.cache/specreg) that holds
    new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv and new_aan_pairs.test.tsv of the official release, or their folder
    `tsv_data`, or `lra_release/tsv_data`. A line is label, two identifiers and two texts between tabs, without
    quotation. Lines are read one at a time, and texts that occur often kept once, in the cache folder.

    Source: Radev, Muthukrishnan, Qazvinian, Abu-Jbara (2013), doi:10.1007/s10579-012-9211-2; the task, Tay et al.
    (2020), arXiv:2011.04006.

    Raises ValueError for a length below 2 or an unknown vocabulary; MissingDataError (a FileNotFoundError) and
    DataFormatError (a ValueError) when pairs, their number or that of tokens are first asked for.
    """

    probes: ClassVar[str] = "compression of long texts"
    source: ClassVar[str] = "Radev et al. 2013, doi:10.1007/s10579-012-9211-2; Tay et al. 2020, arXiv:2011.04006"

    length: int = 4000
    """The most steps of a text, the end mark included."""

    @classmethod
    def tiny(cls) -> Self:
        """Return the first 64 bytes of each text, and at most 500 pairs of validation."""
        return cls(length=64, vocabulary="bytes", eos=False, validation_examples=500)

    @property
    def towers(self) -> int:
        """Two sequences an example, each encoded by itself."""
        return 2

    @property
    def chance(self) -> float:
        """How often the commonest training label is the answer in validation, measured."""
        pairs = self.texts()
        train, validation = (_rows(pairs, split)[:, 0] for split in ("train", "validation"))
        return float((validation == np.bincount(train, minlength=2).argmax()).mean())

    @property
    def need(self) -> SpectralNeed:
        """What tells stands anywhere in a text."""
        return SpectralNeed(memory=self.length, note="what tells stands anywhere in either text")

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny", and the settings of the S4 repository and of the Long Range Arena."""
        return {
            "tiny": cls.tiny(),
            "s4-aan": cls(),
            "lra-retrieval": cls(vocabulary="bytes", eos=False),
        }

    def slices(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the length of the longer text, as the power of two that it does not exceed."""
        return {"length": length_class(batch.lengths.amax(dim=1), self.length)}

    def class_name(self, label: int) -> str:
        """Return unrelated or citing."""
        return ("unrelated", "citing")[label]

    def data_files(self) -> tuple[Path, ...]:
        """Return the files that are read; `digests` in `specreg.tasks.files` names their content."""
        return tuple(_sources(self.directory).values())

    def whole(self, split: Split) -> int:
        """Return the number of pairs in a split, as the files have them."""
        return len(_rows(self.texts(), split))

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the pairs at `indices`."""
        labels, *chosen = _rows(self.texts(), split)[indices].T.astype(np.int64)
        inputs, mask = self.cut(np.stack(chosen, axis=1).reshape(-1))
        towers = (indices.size, 2, -1)
        return Batch(inputs.reshape(towers), torch.from_numpy(labels), mask.reshape(towers))

    def texts(self) -> Flat:
        """Return every text once, and the pairs."""
        pairs = _load(self.directory, self.vocabulary, self.length - self.eos)
        if pairs.notes["empty"] and not self.eos:
            raise DataFormatError("a text of new_aan_pairs is empty, a sequence without a step: set eos to True")
        return pairs


def _rows(pairs: Flat, split: Split) -> NDArray[np.int32]:
    """Return the label and the numbers of the two texts of each pair, (N, 3)."""
    bounds = np.cumsum([0, *pairs.notes["pairs"]])
    place = list(_FILES).index(split)
    rows: NDArray[np.int32] = pairs.labels[bounds[place] : bounds[place + 1]]
    return rows


@lru_cache(maxsize=4)
def _load(directory: Path, vocabulary: Vocabulary, cut: int) -> Flat:
    """Return every text once, as tokens, and the pairs; notes: pairs of each split, characters, empty texts."""
    sources = _sources(directory)

    def build() -> Flat:
        texts, rows, pairs = _read(sources, vocabulary, cut)
        data = np.frombuffer(b"".join(texts), np.uint8)
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])])
        notes = {"pairs": pairs, "empty": int((np.diff(offsets) == 0).sum())}
        if vocabulary == "bytes":
            return Flat(data, offsets, rows, notes)
        weights = np.bincount(rows[: pairs[0], 1:].reshape(-1), minlength=len(texts))  # training alone counts
        tokens, offsets, characters = character_tokens(data, offsets, weights, cut=cut, min_count=1)
        return Flat(tokens, offsets, rows, {**notes, "characters": characters})

    source = sha256(repr(sorted(digests(sources.values(), directory).items())).encode()).hexdigest()
    return cached("retrieval", build, source=source, version=_READER, settings={"vocabulary": vocabulary, "cut": cut})


def _sources(directory: Path) -> dict[Split, Path]:
    for folder in (directory / name for name in _FOLDERS):
        if any((folder / name).is_file() for name in _FILES.values()):
            for name in _FILES.values():
                if not (folder / name).is_file():
                    raise MissingDataError(
                        f"{folder / name} is missing; the three files new_aan_pairs.*.tsv are needed"
                    )
            return {split: folder / name for split, name in _FILES.items()}
    raise MissingDataError(
        f"new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv and new_aan_pairs.test.tsv were not found in {directory}, "
        f"nor in its folder tsv_data. They are part of the official release, see {_SOURCE}. Another directory is named "
        f"by the task's `data` field (`--data` on the command line) or the environment variable {ENVIRONMENT_VARIABLE}"
    )


def _read(
    sources: Mapping[Split, Path],
    vocabulary: Vocabulary,
    cut: int,
) -> tuple[list[bytes], NDArray[np.int32], list[int]]:
    """Return every text once, as cut, (label, text, text) of each pair, and the number of pairs of each split."""
    numbers: dict[bytes, int] = {}
    rows: list[tuple[int, int, int]] = []
    pairs = []
    for path in sources.values():
        before = len(rows)
        for label, *texts in _lines(path):
            first, second = (
                numbers.setdefault(text[:cut] if vocabulary == "bytes" else text.decode()[:cut].encode(), len(numbers))
                for text in texts
            )
            rows.append((label, first, second))
        pairs.append(len(rows) - before)
        if not pairs[-1]:
            raise DataFormatError(f"{path} is empty. Replace it: see {_SOURCE}")
    return list(numbers), np.array(rows, np.int32), pairs


def _lines(path: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield label and texts of each line."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            where = f"line {number:,} of {path}"
            label, *rest = line.rstrip(b"\r\n").split(b"\t")
            if not line.endswith(b"\n") and len(line) == _LONGEST_LINE:
                raise _wrong(where, f"has more than {_LONGEST_LINE:,} bytes")
            if len(rest) != 4:
                raise _wrong(where, f"has {1 + len(rest)} columns instead of label, id, id, text, text")
            if label not in _LABELS:
                raise _wrong(where, f"has the label {label[:20]!r}; it should be 0, 0.0, 1 or 1.0")
            try:
                rest[2].decode(), rest[3].decode()
            except UnicodeDecodeError as error:
                raise _wrong(where, f"is not UTF-8 ({error})") from error
            yield _LABELS[label], rest[2], rest[3]


def _wrong(where: str, what: str) -> DataFormatError:
    return DataFormatError(f"{where} {what}; the file is truncated, damaged or another one. Replace it: see {_SOURCE}")
