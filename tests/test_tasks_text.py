"""Tasks on text: film reviews, articles, pairs of papers, and the model that compares two texts."""

import json
import math
import os
import re
import sys
import tarfile
import time
import types
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from specreg.models.backbone import Backbone
from specreg.models.lru import LRU
from specreg.models.two_towers import TwoTowers
from specreg.tasks import imdb, retrieval, wikitext
from specreg.tasks.files import DataFormatError, MissingDataError, digest, digests
from specreg.tasks.imdb import IMDb
from specreg.tasks.retrieval import Retrieval
from specreg.tasks.task import Batch
from specreg.tasks.texts import character_tokens, length_class
from specreg.tasks.wikitext import WikiText
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike, assert_workers_agree

DATA = Path(os.environ.get("SPECREG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SPLITS = ("train", "validation", "test")


def needs(name: str) -> pytest.MarkDecorator:
    reason = f"{name} is neither in SPECREG_DATA nor in ../shared/data beside the checkout"
    return pytest.mark.skipif(not (DATA / name).is_file(), reason=reason)


needs_imdb = needs("aclImdb-labelled.tar.xz")
needs_wikitext = needs("wikitext-2-v1.zip")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is read out of the user's folder, and for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    forget()


def forget() -> None:
    """Drop what a process keeps of the files that it read."""
    for kept in (imdb._source_digest, imdb._reviews, imdb._characters, imdb._members, wikitext._load, retrieval._load):
        kept.cache_clear()


# Reviews


@cache
def plain_reviews() -> dict[str, tuple[str, int]]:
    """Every review and its label by its name in the archive."""
    with tarfile.open(DATA / "aclImdb-labelled.tar.xz") as archive:
        return {
            info.name: (archive.extractfile(info).read().decode(), int("/pos/" in info.name))  # type: ignore[union-attr]
            for info in archive
            if info.isfile()
        }


@cache
def plain_characters(cut: int) -> tuple[str, ...]:
    """The vocabulary of characters, counted one by one."""
    counts: Counter[str] = Counter()
    for name, (text, _) in plain_reviews().items():
        if "/train/" in name:
            counts.update(text[:cut])
    common = sorted((-count, character) for character, count in counts.items() if count >= 15)
    return tuple(character for _, character in common)


def read_back(task: IMDb, batch: BatchLike) -> list[str]:
    """Undo the tokens: text with \\0 for unknown characters."""
    names = ["", "\0", "", *plain_characters(task.length - 1)]
    return ["".join(names[token] for token in row) for row in batch.inputs.tolist()]


@needs_imdb
class TestIMDbConformance(TaskConformance):
    """Reviews as published, by characters: the reference finds the review in the archive."""

    reseeded = False  # the split is fixed
    overlap = 0.006  # 123 texts stand in both official parts: 0.5 % of the test set

    @cached_property
    def task(self) -> TaskLike:
        return IMDb(data=DATA, length=2000)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        known = known_reviews(task.length - 1)  # type: ignore[attr-defined]
        return torch.tensor([known[text] for text in read_back(task, batch)])  # type: ignore[arg-type]


@cache
def known_reviews(cut: int) -> dict[str, int]:
    unknown = re.compile(f"[^{re.escape(''.join(plain_characters(cut)))}]")
    return {unknown.sub("\0", text[:cut]): label for text, label in plain_reviews().values()}


@needs_imdb
class TestTinyIMDbConformance(TaskConformance):
    """The first 128 bytes of reviews."""

    reseeded = False  # the split is fixed
    overlap = 0.006  # 128 reviews of the test set, 0.5 %, begin like one of the training set, one of validation too

    @cached_property
    def task(self) -> TaskLike:
        return replace(IMDb.tiny(), data=DATA)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        known = {text.encode()[:128]: label for text, label in plain_reviews().values()}
        return torch.tensor([known[bytes(byte - 1 for byte in row if byte)] for row in batch.inputs.tolist()])


@needs_imdb
class TestIMDb:
    """What is published of the reviews."""

    @pytest.mark.parametrize(("vocabulary", "eos", "tokens"), [("characters", True, 134), ("bytes", True, 258)])
    def test_published_sizes(self, vocabulary: Any, eos: bool, tokens: int) -> None:
        task = IMDb(data=DATA, vocabulary=vocabulary, eos=eos)
        assert (task.vocab_size, task.max_length) == (tokens, 4096)
        assert [task.size(split) for split in SPLITS] == [22_500, 2_500, 25_000]
        assert [replace(task, faithful=True).size(split) for split in SPLITS] == [25_000] * 3
        assert task.batch("validation", np.arange(2500)).targets.bincount().tolist() == [1250, 1250]
        assert task.batch("test", np.arange(25_000)[::5]).targets.bincount().tolist() == [2500, 2500]

    def test_texts_in_both_official_parts(self) -> None:
        """123, and none of them, nor any other that stands twice, is held out for validation."""
        texts = imdb._reviews(DATA)
        content, bounds = texts.data.tobytes(), texts.offsets.tolist()
        whole = [content[a:b] for a, b in pairwise(bounds)]
        assert len(set(whole[:25_000]) & set(whole[25_000:])) == 123
        validation = [whole[place] for place in imdb._members(DATA, "validation")]
        counts = Counter(whole)
        assert all(counts[text] == 1 for text in validation)
        train = [whole[place] for place in imdb._members(DATA, "train")]
        assert Counter(train) + Counter(validation) == Counter(whole[:25_000])

    def test_defect_validation_on_the_test_set(self) -> None:
        task = IMDb(data=DATA, length=64, faithful=True)
        assert torch.equal(task.batch("validation", [0, 24_999]).inputs, task.batch("test", [0, 24_999]).inputs)
        assert set(task.train_batch(0, 25_000).targets.bincount().tolist()) == {12_500}

    def test_loads_at_once_from_the_cache(self) -> None:
        """0.2 s on a quiet machine: the processor's time, the best of three."""
        task = IMDb(data=DATA)
        assert task.vocab_size == 134
        times = []
        for _ in range(3):
            forget()
            before = time.process_time()
            task.train_batch(0, 32)
            times.append(time.process_time() - before)
        assert min(times) < 0.2

    def test_workers(self) -> None:
        assert_workers_agree(replace(IMDb.tiny(), data=DATA), workers=(2,), batch_sizes=(500,))

    def test_digests(self) -> None:
        task = IMDb(data=DATA)
        names = digests(task.data_files(), DATA)
        sums = dict(line.split()[::-1] for line in (DATA / "SHA256SUMS").read_text().splitlines())
        assert names == {"aclImdb-labelled.tar.xz": sums["aclImdb-labelled.tar.xz"]}


PER_CLASS = 30


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reviews are few."""
    monkeypatch.setattr(imdb, "_PER_CLASS", PER_CLASS)
    monkeypatch.setattr(imdb, "_VALIDATION", 6)


def made_reviews() -> dict[str, bytes]:
    """Sixty training and sixty test reviews, each of its own text, which tells the label by its first letter."""
    reviews = {}
    for part in ("train", "test"):
        for label in ("neg", "pos"):
            for number in range(PER_CLASS):
                text = f"{label} {part} {number} é" + "ab\n"[number % 3] * number
                reviews[f"aclImdb/{part}/{label}/{number}_{1 + 9 * (label == 'pos')}.txt"] = text.encode()
    return reviews


def write_reviews(folder: Path, kind: str, reviews: dict[str, bytes]) -> Path:
    """Write the official archive, with what else is in it, the labelled one, or the folder; names in any order."""
    content = dict(reversed(reviews.items()))
    if kind == "folder":
        for name, body in content.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(body)
        return folder
    name = {"official": "aclImdb_v1.tar.gz", "labelled": "aclImdb-labelled.tar.xz"}[kind]
    if kind == "official":
        content |= {"aclImdb/imdb.vocab": b"the", "aclImdb/train/unsup/0_0.txt": b"x", "aclImdb/test/urls_neg.txt": b""}
    with tarfile.open(folder / name, "w:gz" if kind == "official" else "w:xz") as archive:
        for member, body in content.items():
            info = tarfile.TarInfo(member)
            info.size = len(body)
            archive.addfile(info, BytesIO(body))
    return folder


@pytest.mark.usefixtures("few")
class TestMadeIMDbConformance(TaskConformance):
    """Few reviews by characters of which some are rare, from the official layout."""

    reseeded = False  # the split is fixed

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        write_reviews(tmp_path, "official", made_reviews())
        self.path = tmp_path

    @cached_property
    def task(self) -> TaskLike:
        return IMDb(data=self.path, length=20, min_count=2)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        first = [task.token_name(token) for token in batch.inputs[:, 0].tolist()]
        return torch.tensor([{"n": 0, "p": 1}[name] for name in first])


class TestFaithfulIMDbConformance(TestMadeIMDbConformance):
    """Validation on the test set."""

    overlap = 1.0  # it is the published defect

    @cached_property
    def task(self) -> TaskLike:
        return IMDb(data=self.path, length=40, vocabulary="bytes", faithful=True)


@pytest.mark.usefixtures("few")
class TestMadeIMDb:
    """The reader of reviews."""

    def test_every_layout_is_the_same(self, tmp_path: Path) -> None:
        batches = []
        for kind in ("official", "labelled", "folder"):
            (tmp_path / kind).mkdir()
            write_reviews(tmp_path / kind, kind, made_reviews())
            task = IMDb(data=str(tmp_path / kind), length=64, min_count=1)  # type: ignore[arg-type]
            batches.append([task.batch(split, np.arange(task.size(split))) for split in SPLITS])
        for other in batches[1:]:
            for first, second in zip(batches[0], other, strict=True):
                assert torch.equal(first.inputs, second.inputs)
                assert torch.equal(first.targets, second.targets)

    def test_tokens(self, tmp_path: Path) -> None:
        write_reviews(tmp_path, "labelled", made_reviews())
        task = IMDb(data=tmp_path, length=16, min_count=1)
        row = task.batch("test", [5])
        assert [task.token_name(token) for token in row.inputs[0].tolist()] == [
            *"neg test 5 é",
            "\\n",
            "\\n",
            "\\n",
            "<eos>",
        ]
        rare = replace(task, min_count=61)  # the accent stands in each of the sixty training reviews
        assert "<unk>" in [rare.token_name(token) for token in rare.batch("test", [5]).inputs[0].tolist()]
        raw = replace(task, vocabulary="bytes", eos=False).batch("test", [0])
        assert bytes((raw.inputs[0][raw.mask[0]] - 1).tolist()) == "neg test 0 é".encode()
        assert [IMDb.tiny().token_name(token) for token in (0, 1, 98, 256)] == ["<pad>", "\\x00", "a", "\\xff"]
        assert task.slices(row)["length"].tolist() == [16]
        assert [task.class_name(label) for label in range(2)] == ["negative", "positive"]

    def test_padding(self, tmp_path: Path) -> None:
        write_reviews(tmp_path, "labelled", made_reviews())
        batch = IMDb(data=tmp_path, length=64, vocabulary="bytes").batch("test", [0, 20])
        assert batch.lengths.tolist() == [14, 35]
        assert batch.inputs[0, 13:].tolist() == [257, *[0] * 21]

    @pytest.mark.parametrize("kind", ["official", "labelled", "folder"])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"aclImdb/test/pos/7_10.txt": None}, "30 in test/neg, 29 in test/pos reviews; each should have 30"),
            ({"aclImdb/train/neg/99_1.txt": b"one more"}, "31 in train/neg"),
            ({"aclImdb/test/pos/7_10.txt": b"\xff\xfe"}, "test/pos/7_10.txt is not UTF-8"),
            ({"aclImdb/test/pos/7_10.txt": b""}, "test/pos/7_10.txt is empty"),
        ],
    )
    def test_wrong_content(self, tmp_path: Path, kind: str, change: dict[str, bytes | None], message: str) -> None:
        reviews = {name: body for name, body in (made_reviews() | change).items() if body is not None}
        write_reviews(tmp_path, kind, reviews)
        with pytest.raises(DataFormatError, match=re.escape(message)) as error:
            IMDb(data=tmp_path).train_batch(0, 2)
        assert "aclImdb_v1.tar.gz" in str(error.value)

    def test_truncated_archive(self, tmp_path: Path) -> None:
        path = write_reviews(tmp_path, "labelled", made_reviews()) / "aclImdb-labelled.tar.xz"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataFormatError, match="truncated or damaged"):
            IMDb(data=tmp_path).train_batch(0, 2)

    def test_an_altered_file_is_read_anew(self, tmp_path: Path) -> None:
        reviews = made_reviews()
        task = IMDb(data=write_reviews(tmp_path, "folder", reviews), length=64, vocabulary="bytes")
        before = task.batch("test", [0]).inputs
        first = digest(tmp_path / "aclImdb" / "test" / "neg")
        (tmp_path / "aclImdb" / "test" / "neg" / "0_1.txt").write_bytes(b"another text")
        forget()
        assert not torch.equal(task.batch("test", [0]).inputs, before)
        assert digest(tmp_path / "aclImdb" / "test" / "neg") != first

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError) as error:
            IMDb(data=tmp_path).train_batch(0, 2)
        for part in (str(tmp_path), "aclImdb_v1.tar.gz", "SPECREG_DATA", "`data` field"):
            assert part in str(error.value)
        (tmp_path / "aclImdb" / "train" / "neg").mkdir(parents=True)
        with pytest.raises(MissingDataError, match="pos is missing"):
            IMDb(data=tmp_path).train_batch(0, 2)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"length": 1}, "length is 1; give 2 or more"),
            ({"vocabulary": "words"}, "vocabulary is 'words'; allowed are characters, bytes"),
            ({"min_count": 0}, "min_count is 0; give 1 or more"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            IMDb(**settings)


class TestCharacters:
    """The vocabulary of characters."""

    def test_cut_before_counting(self) -> None:
        texts = ["aab" + "z" * 50, "é😀b", "", "zq"]
        data = np.frombuffer("".join(texts).encode(), np.uint8)
        offsets = np.cumsum([0, *(len(text.encode()) for text in texts)])
        tokens, ends, characters = character_tokens(data, offsets, np.array([1, 1, 1, 0]), cut=3, min_count=1)
        assert characters == ["a", "b", "é", "😀"]  # z and q stand behind the cut, or where nothing counts
        assert ends.tolist() == [0, 3, 6, 6, 8]
        assert tokens.tolist() == [3, 3, 4, 5, 6, 4, 1, 1]

    def test_more_characters_than_a_byte_numbers(self) -> None:
        text = "".join(chr(number) for number in range(0x4E00, 0x4E00 + 300))
        data = np.frombuffer(text.encode(), np.uint8)
        tokens, _, characters = character_tokens(data, np.array([0, data.size]), np.array([1]), cut=1000, min_count=1)
        assert tokens.tolist() == list(range(3, 303))
        assert "".join(characters) == text

    def test_length_classes(self) -> None:
        assert length_class(torch.tensor([1, 2, 3, 4, 5, 99, 100]), 100).tolist() == [1, 2, 4, 4, 8, 100, 100]
        assert length_class(torch.tensor([5, 64]), 64).tolist() == [8, 64]


# Articles


@cache
def plain_text(split: str) -> str:
    with zipfile.ZipFile(DATA / "wikitext-2-v1.zip") as archive:
        return archive.read(f"wikitext-2/wiki.{split}.tokens").decode()


def word_numbers(texts: dict[str, str]) -> dict[str, list[int]]:
    """The words of each text as numbers, the commonest of training first."""
    words = {split: text.replace("\n", " <eos> ").split() for split, text in texts.items()}
    counts = Counter(words["train"])
    numbers = {
        word: place for place, word in enumerate(sorted(counts, key=lambda word: (-counts[word], word.encode())))
    }
    return {split: [numbers.get(word, numbers.get("<unk>", -1)) for word in each] for split, each in words.items()}


def next_tokens(sequences: dict[str, list[int]], length: int) -> dict[bytes, list[int]]:
    """What follows each token of a block, by the block."""
    following = {}
    for sequence in sequences.values():
        for first in range(0, len(sequence) - 1, length):
            block = sequence[first : min(first + length, len(sequence) - 1)]
            following[np.array(block).tobytes()] = sequence[first + 1 : first + 1 + len(block)]
    return following


def followed(following: dict[bytes, list[int]], batch: BatchLike) -> Tensor:
    answers = torch.zeros_like(batch.targets)
    for row, (tokens, length) in enumerate(zip(batch.inputs, batch.lengths.tolist(), strict=True)):
        answers[row, :length] = torch.tensor(following[tokens[:length].numpy().tobytes()])
    return answers


@cache
def next_words(length: int) -> dict[bytes, list[int]]:
    return next_tokens(word_numbers({split: plain_text(split) for split in ("train", "valid", "test")}), length)


@cache
def next_bytes(length: int) -> dict[bytes, list[int]]:
    return next_tokens({split: list(plain_text(split).encode()) for split in ("train", "valid", "test")}, length)


@needs_wikitext
class TestWikiTextConformance(TaskConformance):
    """WikiText-2 by words, in short blocks, since logits are many."""

    reseeded = False  # the texts are fixed
    overlap = 0.001  # 7 of 18,138 blocks of validation, as short as these, stand in training too

    @cached_property
    def task(self) -> TaskLike:
        return WikiText(data=DATA, length=12)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        return followed(next_words(12), batch)


@needs_wikitext
class TestTinyWikiTextConformance(TaskConformance):
    """WikiText-2 by bytes."""

    reseeded = False  # the texts are fixed

    @cached_property
    def task(self) -> TaskLike:
        return replace(WikiText.tiny(), data=DATA)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        return followed(next_bytes(128), batch)


@needs_wikitext
class TestWikiText2:
    """What is published of WikiText-2."""

    def test_published_counts(self) -> None:
        task = WikiText(data=DATA)
        assert task.vocab_size == task.num_classes == 33_278
        assert [task.token_count(split) for split in SPLITS] == [2_088_628, 217_646, 245_569]
        assert [task.byte_count(split) for split in SPLITS] == [10_797_148, 1_121_681, 1_256_449]
        assert [task.token_name(token) for token in range(4)] == ["the", ",", ".", "of"]

    def test_blocks_are_the_text(self) -> None:
        task = WikiText(data=DATA, length=100)
        batch = task.batch("test", np.arange(task.size("test")))
        words = [task.token_name(token) for token in batch.inputs[batch.mask].tolist()]
        assert words == plain_text("test").replace("\n", " <eos> ").split()[:-1]
        assert torch.equal(batch.targets[:-1, :-1], batch.inputs[:-1, 1:])
        assert torch.equal(batch.targets[:-1, -1], batch.inputs[1:, 0])
        assert batch.lengths.tolist() == [100] * 2455 + [68]

    def test_perplexity_and_bits_per_byte(self) -> None:
        """A uniform guess of bytes costs eight bits a byte; words are longer than a byte."""
        raw, words = WikiText(data=DATA, level="bytes"), WikiText(data=DATA)
        assert raw.bits_per_byte(math.log(256), "test") == pytest.approx(8)
        assert words.bits_per_byte(math.log(2), "test") == pytest.approx(245_569 / 1_256_449)
        assert words.perplexity(math.log(100)) == pytest.approx(100)
        assert words.perplexity(1e4) == math.inf


TEXTS = {
    "train": " = Head = \n\n the cat sat on the <unk> . \n the dog\u3000ran — \n" * 5,
    "valid": "the cat \n\n the bird \n",
    "test": "dog ran on the cat \n",
}


def write_texts(folder: Path, archived: bool, texts: dict[str, str], corpus: str = "wikitext-2") -> Path:
    names = {f"{corpus}/wiki.{split}.tokens": text for split, text in texts.items()}
    if archived:
        with zipfile.ZipFile(folder / f"{corpus}-v1.zip", "w") as archive:
            for name, text in reversed(names.items()):
                archive.writestr(name, text)
    else:
        (folder / corpus).mkdir()
        for name, text in names.items():
            (folder / name).write_bytes(text.encode())
    return folder


def made_tokenizer(path: Path) -> Path:
    """A tokenizer of words and of the line's end, of the library that only its test needs."""
    library = pytest.importorskip("tokenizers")
    tokenizer = library.Tokenizer(library.models.WordLevel({"[U]": 0, "the": 1, "cat": 2, "\n": 3}, unk_token="[U]"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r" +"), "removed")
    tokenizer.enable_truncation(2)  # which would cut lines
    tokenizer.save(str(path))
    return path


class TestWikiText:
    """The reader of articles."""

    @pytest.mark.parametrize("archived", [True, False])
    @pytest.mark.parametrize("block", [1, 7, 1 << 20])
    def test_words(self, tmp_path: Path, archived: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same numbers as counted plainly, however small the blocks that the text is read in."""
        monkeypatch.setattr(wikitext, "_BLOCK", block)
        task = WikiText(data=write_texts(tmp_path, archived, TEXTS, "wikitext-103"), corpus="wikitext-103", length=4)
        split_at_ascii = {split: text.replace("\u3000", "_") for split, text in TEXTS.items()}
        for split, expected in zip(SPLITS, word_numbers(split_at_ascii).values(), strict=True):
            assert task.token_count(split) == len(expected)
            batch = task.batch(split, np.arange(task.size(split)))  # type: ignore[arg-type]
            assert batch.inputs[batch.mask].tolist() == expected[:-1]
            assert batch.targets[batch.mask].tolist() == expected[1:]
        assert task.token_name(0) == "<eos>"
        assert "dog\\u3000ran" in [task.token_name(token) for token in range(task.vocab_size)]

    def test_extrapolations(self, tmp_path: Path) -> None:
        task = WikiText(data=write_texts(tmp_path, True, TEXTS), length=3)
        longer = task.extrapolations()
        assert [other.length for other in longer.values()] == [6, 12]
        assert all(other.vocab_size == task.vocab_size for other in longer.values())

    def test_slices(self, tmp_path: Path) -> None:
        task = WikiText(data=write_texts(tmp_path, True, TEXTS), length=4)
        batch = task.batch("test", [0, 1])
        assert batch.lengths.tolist() == [4, 1]
        assert task.slices(batch)["context"].tolist() == [[1, 2, 4, 4], [1, -1, -1, -1]]

    def test_tokenizer(self, tmp_path: Path) -> None:
        path = made_tokenizer(tmp_path / "tokenizer.json")
        task = WikiText(data=write_texts(tmp_path, True, TEXTS), level="tokenizer", tokenizer=path, length=8)
        assert task.vocab_size == 4
        batch = task.batch("validation", [0])
        assert batch.inputs[0][batch.mask[0]].tolist() == [1, 2, 3, 3, 1, 0]
        assert [task.token_name(token) for token in range(4)] == ["[U]", "the", "cat", "\\n"]
        assert list(digests(task.data_files(), tmp_path)) == ["wikitext-2-v1.zip", "tokenizer.json"]
        assert list(digests(task.data_files(), tmp_path / "elsewhere")) == [
            str(tmp_path / "wikitext-2-v1.zip"),
            str(path),
        ]

    def test_tokenizer_library_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        (tmp_path / "tokenizer.json").write_text("{}")
        task = WikiText(
            data=write_texts(tmp_path, True, TEXTS), level="tokenizer", tokenizer=tmp_path / "tokenizer.json"
        )
        with pytest.raises(ImportError, match="pip install tokenizers"):
            task.train_batch(0, 1)

    def test_tokenizer_file_is_wrong(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: str) -> None:
            raise Exception(f"{path} has no model")  # what the library raises

        library = types.SimpleNamespace(Tokenizer=types.SimpleNamespace(from_file=refuse))
        monkeypatch.setitem(sys.modules, "tokenizers", library)
        path = tmp_path / "tokenizer.json"
        task = WikiText(data=write_texts(tmp_path, True, TEXTS), level="tokenizer", tokenizer=path)
        with pytest.raises(MissingDataError, match=re.escape("tokenizer.json is missing")):
            task.train_batch(0, 1)
        path.write_text(json.dumps({}))
        with pytest.raises(DataFormatError, match="no JSON file of the library tokenizers"):
            task.train_batch(0, 1)

    @pytest.mark.parametrize("archived", [True, False])
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train": TEXTS["train"][:-9]}, "does not end with a line's end: it is truncated"),
            ({"test": ""}, "two tokens each"),
            (
                {"train": TEXTS["train"].replace("<unk>", "mat")},
                "does not occur in the training text, nor does b'<unk>'",
            ),
        ],
    )
    def test_wrong_content(self, tmp_path: Path, archived: bool, change: dict[str, str], message: str) -> None:
        task = WikiText(data=write_texts(tmp_path, archived, TEXTS | change))
        with pytest.raises(DataFormatError, match=re.escape(message)) as error:
            task.train_batch(0, 1)
        assert str(tmp_path) in str(error.value)

    def test_not_utf8(self, tmp_path: Path) -> None:
        write_texts(tmp_path, False, TEXTS)
        (tmp_path / "wikitext-2" / "wiki.train.tokens").write_bytes(b"\xff\xfe <unk> \n")
        with pytest.raises(DataFormatError, match="is not UTF-8"):
            WikiText(data=tmp_path).train_batch(0, 1)

    def test_truncated_archive(self, tmp_path: Path) -> None:
        path = write_texts(tmp_path, True, TEXTS) / "wikitext-2-v1.zip"
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(DataFormatError, match="truncated or damaged"):
            WikiText(data=tmp_path).train_batch(0, 1)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError) as error:
            WikiText(data=tmp_path).train_batch(0, 1)
        for part in (str(tmp_path), "wikitext-2-v1.zip", "SPECREG_DATA", "`data` field"):
            assert part in str(error.value)
        write_texts(tmp_path, False, {"train": "a b\n"})
        with pytest.raises(MissingDataError, match=re.escape("valid.tokens is missing")):
            WikiText(data=tmp_path).train_batch(0, 1)
        write_texts(tmp_path, True, {"train": "a b\n"})
        with pytest.raises(
            DataFormatError, match=re.escape("it has no wikitext-2/wiki.test.tokens, wikitext-2/wiki.v")
        ):
            WikiText(data=tmp_path).train_batch(0, 1)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"corpus": "wikitext-3"}, "allowed are wikitext-2, wikitext-103"),
            ({"level": "letters"}, "allowed are words, bytes, tokenizer"),
            ({"length": 0}, "length is 0; give 1 or more"),
            ({"level": "tokenizer"}, "needs the path"),
            ({"tokenizer": Path("x.json")}, "the other levels take none"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            WikiText(**settings)


# Pairs of papers

PAIRS = {"train": 300, "eval": 60, "test": 60}


def write_pairs(folder: Path, changes: dict[str, bytes] | None = None) -> Path:
    """Write pairs that are labelled 1 where both texts begin with the same letter; some texts come back."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for split, count in PAIRS.items():
        texts = ["".join(generator.choice([*"abcdé \"'"], generator.integers(20, 60))) for _ in range(count)]
        heads = generator.choice([*"xy"], (count, 2))
        lines = []
        for row, (first, second) in enumerate(heads):
            pair = [f"{first}{texts[row]}", f"{second}{texts[generator.integers(row + 1)]}"]
            label = ("0", "0.0", "1", "1.0")[2 * (first == second) + row % 2]
            lines.append("\t".join([label, f"id{row}", "other", *pair]) + "\n")
        (folder / f"new_aan_pairs.{split}.tsv").write_bytes("".join(lines).encode())
    for name, content in (changes or {}).items():
        (folder / f"new_aan_pairs.{name}.tsv").write_bytes(content)
    return folder


class TestRetrievalConformance(TaskConformance):
    """Pairs by characters: the reference compares the first letters."""

    reseeded = False  # the splits are fixed

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        write_pairs(tmp_path)
        self.path = tmp_path

    @cached_property
    def task(self) -> TaskLike:
        return Retrieval(data=self.path, length=40)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        return torch.tensor([int(first[0] == second[0]) for first, second in batch.inputs.tolist()])


class TestRetrievalBytesConformance(TestRetrievalConformance):
    """Pairs by bytes, without an end."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(Retrieval.tiny(), data=self.path)


class TestRetrieval:
    """The reader of pairs."""

    @pytest.mark.parametrize("folder", [".", "tsv_data", "lra_release/tsv_data"])
    def test_texts_and_labels(self, tmp_path: Path, folder: str) -> None:
        write_pairs(tmp_path / folder)
        task = Retrieval(data=str(tmp_path), length=30)  # type: ignore[arg-type]
        assert [task.size(split) for split in SPLITS] == [*PAIRS.values()]
        names = dict(zip(SPLITS, PAIRS, strict=True))
        for split, name in names.items():
            lines = (tmp_path / folder / f"new_aan_pairs.{name}.tsv").read_text().split("\n")[:-1]
            batch = task.batch(split, np.arange(len(lines)))  # type: ignore[arg-type]
            for row, line in enumerate(lines):
                label, _, _, *texts = line.split("\t")
                assert int(float(label)) == int(batch.targets[row])
                for tower, text in enumerate(texts):
                    tokens = batch.inputs[row, tower][batch.mask[row, tower]].tolist()
                    assert [task.token_name(token) for token in tokens] == [*text[:29], "<eos>"]
        assert task.vocab_size == 3 + len([*"abcdé \"'xy"])
        assert task.towers == 2
        assert len(task.data_files()) == 3

    def test_texts_are_kept_once(self, tmp_path: Path) -> None:
        line = b"1\ta\tb\tthe same\tthe same\n"
        write_pairs(tmp_path, {"train": line * 50, "eval": line, "test": line})
        assert retrieval._load(tmp_path, "bytes", 8).offsets.tolist() == [0, 8]

    def test_quotes_are_text(self, tmp_path: Path) -> None:
        line = b'1.0\ta\tb\t"x\ty"\r\n'
        write_pairs(tmp_path, {"eval": line})
        batch = Retrieval(data=tmp_path, vocabulary="bytes", eos=False).batch("validation", [0])
        assert [bytes((tower[tower > 0] - 1).tolist()) for tower in batch.inputs[0]] == [b'"x', b'y"']

    def test_empty_text(self, tmp_path: Path) -> None:
        write_pairs(tmp_path, {"eval": b"1.0\ta\tb\t\ty\n"})
        assert Retrieval(data=tmp_path).batch("validation", [0]).lengths.tolist() == [[1, 2]]
        with pytest.raises(DataFormatError, match="set eos to True"):
            Retrieval(data=tmp_path, eos=False).batch("validation", [0])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"1\ta\tb\tc\td\n1\ta\tb\tc\n", "has 4 columns instead of label, id, id, text, text"),
            (b"1\ta\tb\tc\td\te\n", "line 1 of"),
            (b"2\ta\tb\tc\td\n", "has the label b'2'; it should be 0, 0.0, 1 or 1.0"),
            (b"1\ta\tb\t\xff\td\n", "is not UTF-8"),
            (b"<html>404</html>", "has 1 columns"),
        ],
    )
    def test_wrong_content(self, tmp_path: Path, content: bytes, message: str) -> None:
        write_pairs(tmp_path, {"eval": content})
        with pytest.raises(DataFormatError, match=re.escape(message)) as error:
            Retrieval(data=tmp_path).train_batch(0, 1)
        assert "new_aan_pairs.eval.tsv" in str(error.value)

    def test_a_line_without_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retrieval, "_LONGEST_LINE", 100)
        write_pairs(tmp_path, {"eval": b"1\ta\tb\tc\t" + b"d" * 1000})
        with pytest.raises(DataFormatError, match="has more than 100 bytes"):
            Retrieval(data=tmp_path).train_batch(0, 1)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError) as error:
            Retrieval(data=tmp_path).train_batch(0, 1)
        for part in (str(tmp_path), "new_aan_pairs.eval.tsv", "SPECREG_DATA", "`data` field"):
            assert part in str(error.value)
        (write_pairs(tmp_path) / "new_aan_pairs.test.tsv").unlink()
        with pytest.raises(MissingDataError, match=re.escape("new_aan_pairs.test.tsv is missing")):
            Retrieval(data=tmp_path).train_batch(0, 1)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [({"length": 1}, "length is 1; give 2 or more"), ({"vocabulary": "words"}, "allowed are characters, bytes")],
    )
    def test_impossible_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Retrieval(**settings)


class TestTwoTowers:
    """The model that compares two texts."""

    def test_compares_what_the_encoder_kept(self, tmp_path: Path) -> None:
        """The same as encoding each text by itself, pooling, and one linear map; padding has no effect."""
        batch = Retrieval(data=write_pairs(tmp_path), length=30).train_batch(0, 5)
        torch.manual_seed(0)
        model = TwoTowers([LRU(8, 4), LRU(8, 4)], num_classes=2, max_length=30, vocab_size=16)
        plain = Backbone([LRU(8, 4), LRU(8, 4)], num_classes=2, max_length=30, vocab_size=16)
        head = {name: value for name, value in model.state_dict().items() if name.startswith("head")}
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if k not in head}, strict=False)
        plain.head = torch.nn.Identity()  # type: ignore[assignment]
        logits = model(batch.inputs, batch.mask)
        assert logits.shape == (5, 2)
        for row in range(5):
            a, b = (plain(batch.inputs[row, tower][batch.mask[row, tower]][None]) for tower in range(2))
            kept = torch.cat((a, b, a * b, a - b), -1)
            torch.testing.assert_close(logits[row : row + 1], kept @ head["head.weight"].T + head["head.bias"])

    def test_systems_are_those_of_both(self) -> None:
        model = TwoTowers([LRU(8, 4)], num_classes=2, max_length=6, vocab_size=5, positions="learned")
        inputs = torch.randint(5, (3, 2, 6))
        logits, systems = model.with_systems(inputs)
        torch.testing.assert_close(logits, model(inputs))
        assert list(systems) == ["layers.0"]
        assert systems["layers.0"].unroll().shape[0] == 6

    def test_operations(self) -> None:
        settings: dict[str, Any] = {"num_classes": 2, "max_length": 6, "vocab_size": 5}
        pair, single = (kind([LRU(8, 4)], **settings) for kind in (TwoTowers, Backbone))
        assert pair.macs(6) == 2 * (single.macs(6) - 2 * 8) + 2 * 32

    def test_learns(self, tmp_path: Path) -> None:
        task = Retrieval(data=write_pairs(tmp_path), length=2, eos=False)
        torch.manual_seed(0)
        model = TwoTowers([LRU(16, 16)], num_classes=2, max_length=2, vocab_size=task.vocab_size)
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        for step in range(60):
            batch = task.train_batch(step, 50)
            optimiser.zero_grad()
            task.loss(model(batch.inputs, batch.mask), batch).backward()
            optimiser.step()
        batch = task.batch("test", np.arange(60))
        assert task.score(model(batch.inputs, batch.mask), batch).mean() > 0.9

    def test_refusals(self) -> None:
        settings: dict[str, Any] = {"num_classes": 5, "max_length": 6, "vocab_size": 5}
        for name in ("tied", "per_position"):
            with pytest.raises(ValueError, match=name):
                TwoTowers([LRU(8, 4)], **settings, **{name: True})
        model = TwoTowers([LRU(8, 4)], **settings)
        with pytest.raises(ValueError, match=re.escape("(B, 2, T) or more, got (3, 6)")):
            model(torch.zeros(3, 6, dtype=torch.int64))
        with pytest.raises(ValueError, match="real steps of each row first"):
            model(torch.zeros(1, 2, 3, dtype=torch.int64), torch.tensor([[[True] * 3, [False, True, True]]]))

    def test_batch_moves_whole(self) -> None:
        batch = Batch(torch.zeros(3, 2, 6, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
        assert batch.to("cpu").inputs.shape == (3, 2, 6)
