"""ListOps: conformance, the published marginals, and the reader of the official files."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import Tensor

from specreg.tasks.files import DataFormatError, MissingDataError
from specreg.tasks.listops import ListOps
from specreg.tasks.listops_files import load
from specreg.tasks.listops_law import kept_share, law
from specreg.tasks.listops_trees import Grammar
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike

NAMES = (".", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
PUBLISHED = Grammar(max_depth=10, max_args=10, longer_than=500, shorter_than=2000)


def parse(words: list[str]) -> tuple[int, int, int]:
    """Return an expression's value, depth and largest number of arguments, by recursion."""
    word = words.pop(0)
    if word.isdigit():
        return int(word), 1, 0
    assert word in ("[MIN", "[MAX", "[MED", "[SM")
    arguments = []
    while words[0] != "]":
        arguments.append(parse(words))
    words.pop(0)
    values = [value for value, _, _ in arguments]
    value = {"[MIN": min, "[MAX": max, "[MED": lambda v: int(median(v)), "[SM": lambda v: sum(v) % 10}[word](values)
    deepest = 1 + max(depth for _, depth, _ in arguments)
    return value, deepest, max(len(arguments), *(most for _, _, most in arguments))


def expression(batch: BatchLike, row: int) -> list[str]:
    """Return one example's tokens as the official files write them, padding left out."""
    length = int(batch.mask[row].sum())
    return [NAMES[token] for token in batch.inputs[row, :length].tolist()]


def values(batch: BatchLike) -> Tensor:
    answers = []
    for row in range(len(batch.targets)):
        words = expression(batch, row)
        answers.append(parse(words)[0])
        assert not words, "tokens are left after the expression"
    return torch.tensor(answers)


class TestListOpsConformance(TaskConformance):
    """Small trees."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(ListOps.tiny(), validation_examples=1000)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        return values(batch)


class TestPublishedListOpsConformance(TestListOpsConformance):
    """The published sizes; 300 examples a held-out split."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(ListOps(), train_examples=500, validation_examples=300, test_examples=300)


class TestReadListOpsConformance(TaskConformance):
    """The official layout, with trees that we made."""

    reseeded = False  # files are what they are

    @pytest.fixture(autouse=True)
    def _files(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def task(self) -> TaskLike:
        return ListOps(files=True, data=self.folder, shorter_than=60)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        return values(batch)


def official(words: list[str]) -> str:
    """Return an expression as the official files write it: every application in parentheses, of two parts."""
    word = words.pop(0)
    if word.isdigit():
        return word
    written = f"( {word} {official(words)} )"
    while words[0] != "]":
        written = f"( {written} {official(words)} )"
    return f"( {written} {words.pop(0)} )"


def write_files(folder: Path, seed: int = 5) -> None:
    """Write small trees in the official layout, line ends as Python's csv module makes them."""
    task = replace(ListOps.tiny(), seed=seed)
    for split, name, count in (("train", "train", 400), ("validation", "val", 150), ("test", "test", 120)):
        batch = task.batch(split, np.arange(count))
        lines = [f"{official(expression(batch, row))}\t{batch.targets[row]}\r\n" for row in range(count)]
        (folder / f"basic_{name}.tsv").write_text("Source\tTarget\r\n" + "".join(lines), newline="")


class TestGenerator:
    """The published grammar."""

    def test_published_marginals(self) -> None:
        """8.28 % of all trees are kept (a quarter of the roots are operators), their mean length is 1,035, and 0 and 9
        are near 17 %: the exact law, and that of 2,000 trees.
        """
        exact = law(PUBLISHED)
        assert round(exact.kept / 4, 4) == 0.0828
        assert round(exact.mean_length) == 1035
        assert [round(exact.values[value], 3) for value in (0, 9)] == [0.17, 0.168]
        assert all(0.07 < share < 0.0905 for share in exact.values[1:9])
        assert abs(sum(exact.values) - 1) < 1e-9
        assert ListOps().chance == max(exact.values)
        batch = ListOps().batch("train", np.arange(2000))
        lengths = batch.lengths.double()
        assert 500 < int(lengths.min()) <= int(lengths.max()) < 2000
        assert abs(float(lengths.mean()) - exact.mean_length) < 5 * float(lengths.std()) / math.sqrt(2000)
        shares = batch.targets.bincount(minlength=10) / 2000
        for share, expected in zip(shares.tolist(), exact.values, strict=True):
            assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 2000)

    def test_depth_and_arguments_are_bounded(self) -> None:
        batch = ListOps().batch("train", np.arange(100))
        depths, most = zip(*(parse(expression(batch, row))[1:] for row in range(100)), strict=True)
        assert max(depths) == 10
        assert max(most) == 10
        assert batch.lengths.tolist() == [len(expression(batch, row)) for row in range(100)]

    @pytest.mark.parametrize("grammar", [Grammar(3, 3, 1, 30), Grammar(4, 6, 20, 60), Grammar(6, 2, 20, 64)])
    def test_law_agrees_with_a_plain_sampler(self, grammar: Grammar) -> None:
        """Trees grown one node at a time by recursion are kept as often, and are worth 0 … 9 as often."""
        generator = np.random.default_rng(0)
        trees = [grow(grammar, generator, 1) for _ in range(30_000)]
        kept = [parse(tree)[0] for tree in trees if grammar.longer_than < len(tree) < grammar.shorter_than]
        exact = law(grammar)
        assert abs(kept_share(grammar) - exact.kept) < 1e-8
        assert abs(len(kept) / len(trees) - exact.kept) < 5 * math.sqrt(exact.kept / len(trees))
        for value, expected in enumerate(exact.values):
            assert abs(kept.count(value) / len(kept) - expected) < 5 * math.sqrt(expected / len(kept))

    def test_law_of_one_operator(self) -> None:
        """Depth 2, two digits: MIN, MAX, MED and SM counted over all hundred pairs."""
        pairs = [(a, b) for a in range(10) for b in range(10)]
        answers = [answer for a, b in pairs for answer in (min(a, b), max(a, b), (a + b) // 2, (a + b) % 10)]
        counts = np.bincount(answers, minlength=10) / 400
        np.testing.assert_allclose(law(Grammar(2, 2, 1, 30)).values, counts, atol=1e-9)

    def test_later_tries_do_not_depend_on_the_batch(self) -> None:
        """Few trees in a hundred fit, so hundreds of tries are drawn, alone one way and together another."""
        task = ListOps(max_depth=6, max_args=2, longer_than=20, shorter_than=64)
        assert 0.01 < kept_share(task.grammar) < 0.02
        together = task.batch("test", np.arange(300)).inputs
        alone = torch.cat([task.batch("test", [index]).inputs for index in range(0, 300, 60)])
        assert torch.equal(together[::60], alone)

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            (ListOps(), "8ddb11ef10c17e82"),
            (ListOps(max_depth=6, max_args=2, longer_than=20, shorter_than=64, seed=2**63), "face80649dfaca6e"),
        ],
    )
    def test_bytes_never_change(self, task: ListOps, expected: str) -> None:
        """Published numbers refer to them."""
        state = sha256()
        for split in ("train", "validation", "test"):
            batch = task.batch(split, np.arange(50))
            state.update(batch.inputs.numpy().tobytes())
            state.update(batch.targets.numpy().tobytes())
        assert state.hexdigest()[:16] == expected

    def test_slices(self) -> None:
        for task, unit in ((ListOps.tiny(), 10), (ListOps(), 100)):
            batch = task.batch("test", np.arange(50))
            slices = task.slices(batch)
            assert slices["length"].tolist() == [len(expression(batch, row)) // unit * unit for row in range(50)]
            assert slices["depth"].tolist() == [parse(expression(batch, row))[1] for row in range(50)]

    def test_names_of_tokens(self) -> None:
        task = ListOps.tiny()
        assert [task.token_name(token) for token in range(task.vocab_size)] == list(NAMES)
        assert task.class_name(7) == "7"

    def test_presets_and_sizes(self) -> None:
        task = ListOps.presets()["lra-listops"]
        assert [task.size(split) for split in ("train", "validation", "test")] == [96_000, 2000, 2000]
        assert (task.max_length, task.vocab_size, task.need.memory) == (1999, 16, 1999)
        assert ListOps.presets()["lra-listops-files"].files

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_depth": 1}, "depth of 2 or more"),
            ({"max_args": 1}, "2 … 31 arguments"),
            ({"max_args": 32}, "2 … 31 arguments"),
            ({"longer_than": 19}, "give 20 or more"),
            ({"shorter_than": 501}, "0.00% of trees"),
            ({"shorter_than": 502}, "1% or more must be"),
            ({"shorter_than": 20}, "21 … 65,536"),
            ({"shorter_than": 70_000}, "21 … 65,536"),
            ({"max_depth": 3}, "longer than 500 and shorter than 2000"),
            ({"files": True, "seed": -1}, "data seed"),
            ({"test_examples": 0}, "test_examples is 0"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            ListOps(**settings)


def grow(grammar: Grammar, generator: np.random.Generator, depth: int) -> list[str]:
    """Return a tree by the published rule, its root an operator; too long ones stop growing."""
    if depth == grammar.max_depth or (depth > 1 and generator.random() >= 0.25):
        return [str(generator.integers(10))]
    count = generator.integers(2, grammar.max_args + 1)
    arguments = [grow(grammar, generator, depth + 1) for _ in range(count)]
    operator = ("[MIN", "[MAX", "[MED", "[SM")[generator.integers(4)]
    return [operator, *(word for argument in arguments for word in argument), "]"]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with files in the official layout, which goes when the test ends, and so does what was cached."""
    with TemporaryDirectory() as name:
        monkeypatch.setenv("XDG_CACHE_HOME", str(Path(name) / "cache"))
        write_files(Path(name))
        yield Path(name)
    load.cache_clear()


class TestReader:
    """The official files."""

    def test_sizes_order_and_content(self, folder: Path) -> None:
        task = ListOps(files=True, data=str(folder), shorter_than=60)
        assert [task.size(split) for split in ("train", "validation", "test")] == [400, 150, 120]
        made = replace(ListOps.tiny(), seed=5)
        for split, count in (("train", 400), ("validation", 150), ("test", 120)):
            read, drawn = (each.batch(split, np.arange(count)) for each in (task, made))
            assert torch.equal(read.inputs, drawn.inputs)
            assert torch.equal(read.targets, drawn.targets)
            assert torch.equal(read.mask, drawn.mask)

    def test_an_official_line(self, folder: Path) -> None:
        """Parentheses are left out, the closing bracket stays."""
        line = "( ( ( ( [MED 3 ) ( ( ( [SM 9 ) 4 ) ] ) ) 8 ) ] )\t3"
        (folder / "basic_test.tsv").write_text(f"Source\tTarget\n{line}\n")
        batch = ListOps(files=True, data=folder, shorter_than=60).batch("test", [0])
        assert expression(batch, 0) == ["[MED", "3", "[SM", "9", "4", "]", "8", "]"]
        assert batch.targets.tolist() == [3]

    def test_folders_and_cache(self, folder: Path) -> None:
        """The archive's folder will do, and what was read is kept until the file changes."""
        (folder / "listops-1000").mkdir()
        for path in folder.glob("*.tsv"):
            path.rename(folder / "listops-1000" / path.name)
        task = ListOps(files=True, data=folder, shorter_than=60)
        first = task.batch("test", np.arange(20))
        assert len(list((folder / "cache").rglob("listops-*.flat"))) == 1
        load.cache_clear()
        assert torch.equal(task.batch("test", np.arange(20)).inputs, first.inputs)
        write_files(folder / "listops-1000", seed=6)
        load.cache_clear()
        assert not torch.equal(task.batch("test", np.arange(20)).inputs, first.inputs)

    def test_chance_is_counted(self, folder: Path) -> None:
        task = ListOps(files=True, data=folder, shorter_than=60)
        labels = task.batch("train", np.arange(400)).targets
        assert task.chance == int(labels.bincount().max()) / 400

    def test_missing_files_say_what_to_do(self, folder: Path) -> None:
        (folder / "basic_val.tsv").unlink()
        with pytest.raises(MissingDataError, match=re.escape("basic_val.tsv was not found")) as error:
            ListOps(files=True, data=folder).batch("validation", [0])
        for part in (str(folder), "listops-1000", "`data` field", "SPECREG_DATA", "generates its own"):
            assert part in str(error.value)

    def test_trees_longer_than_the_setting(self, folder: Path) -> None:
        with pytest.raises(DataFormatError, match=r"shorter_than is 30; give \d\d or more"):
            ListOps(files=True, data=folder, shorter_than=30).size("train")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("Source,Target\n", "line 1: the columns should be Source and Target"),
            ("Source\tTarget\n", "line 2: there is no example"),
            ("Source\tTarget\n( ( ( [MIN 1 ) 2 ) ] )\n", "the target is b'' and should be a digit"),
            ("Source\tTarget\n( ( ( [MIN 1 ) 2 ) ] )\t12\n", "the target is b'12'"),
            ("Source\tTarget\n( ( ( [MIN 1 ) 2 ) ] )\t2\n", "worth 1 and the target is 2"),
            ("Source\tTarget\n( ( ( [FIRST 1 ) 2 ) ] )\t1\n", "b'[FIRST' is no token of ListOps"),
            ("Source\tTarget\n( ( [MIN 1 ) 2 )\t1\n", "not equally many"),
            ("Source\tTarget\n\t1\n", "not equally many"),
            ("Source\tTarget\n] [MIN\t1\n", "worth None"),
            ("Source\tTarget\n[MIN ]\t1\n", "worth None"),
            ("Source\tTarget\n1 2\t1\n", "worth None"),
            ("Source\tTarget\n[MIN ] [MAX 1 ]\t1\n", "worth None"),
        ],
    )
    def test_wrong_layouts(self, folder: Path, content: str, message: str) -> None:
        (folder / "basic_train.tsv").write_text(content)
        with pytest.raises(DataFormatError, match=re.escape(message)) as error:
            ListOps(files=True, data=folder).train_batch(0, 4)
        assert "basic_train.tsv" in str(error.value)
        assert not list((folder / "cache").rglob("*.flat"))
