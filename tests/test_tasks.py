"""Tasks: the conformance tests on every member, and what each member promises besides."""

import math
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from specreg.tasks import cifar10_gray
from specreg.tasks.cifar10_gray import CIFAR10Gray
from specreg.tasks.digits import Digits
from specreg.tasks.files import DataFormatError, MissingDataError, data_directory
from specreg.tasks.mqar import MQAR
from specreg.tasks.selective_copying import SelectiveCopying
from specreg.tasks.task import Task
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike

DATA = Path(os.environ.get("SPECREG_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
TRAINING = ("train", "validation")  # what the 50,000 official training images are split into
needs_cifar = pytest.mark.skipif(
    not (DATA / "cifar10-gray.npz").is_file(),
    reason="cifar10-gray.npz is neither in SPECREG_DATA nor in ../shared/data beside the checkout",
)


def digest(task: Task) -> str:
    """Return a digest of the first examples of every split."""
    state = sha256()
    for split in ("train", "validation", "test"):
        batch = task.batch(split, np.arange(50))
        state.update(batch.inputs.numpy().tobytes())
        state.update(batch.targets.numpy().tobytes())
    return state.hexdigest()[:16]


class TestMQARConformance(TaskConformance):
    """Multi-query recall with random fillers."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(MQAR.tiny(), validation_examples=1000)  # enough to tell 1/32 from 1/64

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        return recall(batch, pairs=4)


class TestFiniteMQARConformance(TestMQARConformance):
    """Multi-query recall with a training set, fillers 0, and as many pairs as fit."""

    @cached_property
    def task(self) -> TaskLike:
        return MQAR(
            length=16, pairs=4, vocab_size=128, random_non_queries=False, train_examples=300, validation_examples=120
        )


class TestSelectiveCopyingConformance(TaskConformance):
    """Selective copying."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(SelectiveCopying.tiny(), validation_examples=1000)  # enough to tell 1/6 from 1/8

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        answers = torch.zeros_like(batch.targets)
        for row, sequence in enumerate(batch.inputs.tolist()):
            marker = task.num_classes - 1
            data = [token for token in sequence if token not in (0, marker)]
            answers[row, sequence.index(marker) :] = torch.tensor(data)
        return answers


class TestDigitsConformance(TaskConformance):
    """Digits: the reference looks the image up in scikit-learn's table."""

    reseeded = False  # the split is fixed

    @cached_property
    def task(self) -> TaskLike:
        return Digits.tiny()

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        known = digit_labels()
        return torch.tensor([known[(16 * image).to(torch.uint8).numpy().tobytes()] for image in batch.inputs])


@needs_cifar
class TestCIFAR10GrayConformance(TaskConformance):
    """Grey CIFAR-10: the reference looks the image up in the file."""

    reseeded = False  # the split is fixed

    @cached_property
    def task(self) -> TaskLike:
        return CIFAR10Gray(data=DATA)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        known = cifar_labels()
        pixels = ((batch.inputs.double() * 0.2389 + 0.4808) * 255).round().to(torch.uint8)
        return torch.tensor([known[image.numpy().tobytes()] for image in pixels])


@needs_cifar
class TestSmallCIFAR10GrayConformance(TaskConformance):
    """Grey CIFAR-10 averaged to 8×8."""

    reseeded = False  # the split is fixed

    @cached_property
    def task(self) -> TaskLike:
        return replace(CIFAR10Gray.tiny(), data=DATA)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        sums = ((batch.inputs.double() * 0.2389 + 0.4808) * 255 * 16).round().to(torch.int64)
        known = small_cifar_labels()
        return torch.tensor([known[image.numpy().tobytes()] for image in sums])


def recall(batch: BatchLike, pairs: int) -> Tensor:
    """Answer each scored position by looking its token up in the context."""
    answers = torch.zeros_like(batch.targets)
    for row, (sequence, scored) in enumerate(zip(batch.inputs.tolist(), (batch.targets == 0).tolist(), strict=True)):
        value = dict(zip(sequence[0 : 2 * pairs : 2], sequence[1 : 2 * pairs : 2], strict=True))
        assert len(value) == len(set(value.values())) == pairs
        asked = [place for place, wanted in enumerate(scored) if wanted]
        assert sorted(sequence[place] for place in asked) == sorted(value), "each key is asked once"
        assert all(place >= 2 * pairs and place % 2 == 0 for place in asked), (
            "a question opens a slot after the context"
        )
        for place in asked:
            answers[row, place] = value[sequence[place]]
    return answers


@cache
def digit_labels() -> dict[bytes, int]:
    images, labels = load_digits(return_X_y=True)
    return {image.astype(np.uint8).tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


@cache
def cifar_arrays() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DATA / "cifar10-gray.npz", allow_pickle=False) as archive:
        images = np.concatenate([archive["train_images"], archive["test_images"]])
        return images, np.concatenate([archive["train_labels"], archive["test_labels"]])


@cache
def cifar_labels() -> dict[bytes, int]:
    images, labels = cifar_arrays()
    return {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


@cache
def small_cifar_labels() -> dict[bytes, int]:
    images, labels = cifar_arrays()
    columns = images.astype(np.int64).reshape(-1, 32, 8, 4).sum(axis=3)
    sums = columns.transpose(0, 2, 1).reshape(-1, 8, 8, 4).sum(axis=3).transpose(0, 2, 1)
    return {image.tobytes(): int(label) for image, label in zip(np.ascontiguousarray(sums), labels, strict=True)}


class TestTask:
    """What every task inherits."""

    def test_unknown_split_names_the_nearest(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'validation'"):
            MQAR.tiny().batch("valid", np.arange(3))
        with pytest.raises(ValueError, match="train, validation, test"):
            MQAR.tiny().batches("dev", 3)

    @pytest.mark.parametrize("indices", [[], [[0, 1]], 3, [0.0, 1.0], [True]])
    def test_indices_are_one_axis_of_integers(self, indices: object) -> None:
        with pytest.raises(ValueError, match="one axis of integers"):
            MQAR.tiny().batch("train", indices)

    @pytest.mark.parametrize("index", [-1, 200])
    def test_indices_outside_the_split(self, index: int) -> None:
        with pytest.raises(IndexError, match=re.escape("'validation' has 0 … 199")):
            MQAR.tiny().batch("validation", [index])

    def test_training_steps_are_checked(self) -> None:
        for step, batch_size in ((-1, 8), (0, 0)):
            with pytest.raises(ValueError, match="step is 0 or more and batch_size 1 or more"):
                MQAR.tiny().train_batch(step, batch_size)
        with pytest.raises(ValueError, match="1 or more"):
            MQAR.tiny().batches("test", 0)

    def test_an_endless_split_is_not_walked(self) -> None:
        with pytest.raises(ValueError, match="train_batch"):
            MQAR.tiny().batches("train", 8)

    def test_far_steps_of_an_endless_task(self) -> None:
        task = MQAR.tiny()
        assert torch.equal(task.train_batch(10**12, 4).inputs, task.batch("train", 4 * 10**12 + np.arange(4)).inputs)

    def test_batches_may_span_epochs(self) -> None:
        """Batches of 8 over 5 examples: each five places in turn hold all five examples."""
        task = replace(MQAR.tiny(), train_examples=5)
        rows = torch.cat([task.train_batch(step, 8).inputs for step in range(5)])
        for epoch in rows.split(5):
            assert epoch.unique(dim=0).shape[0] == 5

    def test_logits_of_another_shape(self) -> None:
        task = MQAR.tiny()
        batch = task.train_batch(0, 2)
        for judge in (task.score, task.loss):
            with pytest.raises(ValueError, match=re.escape("asks for (2, 32, 64)")):
                judge(torch.zeros(2, 64), batch)

    def test_loss_is_cross_entropy_with_an_ignored_index(self) -> None:
        task = MQAR.tiny()
        batch = task.train_batch(0, 6)
        logits = torch.randn(6, 32, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
        torch.testing.assert_close(task.loss(logits, batch), expected)

    def test_batch_moves_and_counts(self) -> None:
        batch = MQAR.tiny().train_batch(0, 6)
        moved = replace(batch, mask=batch.scored).to("meta")
        assert len(batch) == 6
        assert {moved.inputs.device.type, moved.targets.device.type, moved.mask.device.type} == {"meta"}
        assert batch.to("cpu").mask is None

    def test_seed_out_of_range(self) -> None:
        for seed in (-1, 2**64):
            with pytest.raises(ValueError, match=re.escape("0 … 2**64 - 1")):
                MQAR(seed=seed)

    @pytest.mark.parametrize(
        "task", [MQAR(seed=7), SelectiveCopying(tokens=3), Digits(seed=1), CIFAR10Gray(length=256)]
    )
    def test_repr_is_the_record(self, task: Task) -> None:
        assert eval(repr(task)) == task
        assert type(task).example() == type(task).tiny()


class TestBytes:
    """The bytes themselves, which may never change: published numbers refer to them."""

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            (MQAR(), "37e3baeeab35d835"),
            (MQAR(length=512, pairs=64, power=0.3, random_non_queries=False, seed=2**63), "a35423f54d9c6741"),
            (SelectiveCopying(), "882f61f68740e387"),
            (Digits(), "5a5cb3e7f38a717f"),
        ],
    )
    def test_of_generated_and_shipped_examples(self, task: Task, expected: str) -> None:
        assert digest(task) == expected

    @needs_cifar
    def test_of_read_examples(self) -> None:
        assert digest(CIFAR10Gray(data=DATA)) == "902601ff4d6be9e3"
        assert digest(CIFAR10Gray(data=DATA, length=64)) == "d4e6e2fba8b1837a"

    def test_in_another_process(self) -> None:
        """Hash seeds and import order play no part."""
        code = "import pickle, sys; t = pickle.load(sys.stdin.buffer); b = t.train_batch(3, 9); "
        code += "sys.stdout.buffer.write(b.inputs.numpy().tobytes() + b.targets.numpy().tobytes())"
        task = replace(MQAR.tiny(), train_examples=50)
        result = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(task),
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": "11"},
        )
        here = task.train_batch(3, 9)
        assert result.stdout == here.inputs.numpy().tobytes() + here.targets.numpy().tobytes()


class TestMQAR:
    """Multi-query recall."""

    def test_slot_law_of_the_first_question(self) -> None:
        """At length 512 with 64 pairs: 17 % of first keys are asked in slot 0 of 192, half in the first ten."""
        task = MQAR(length=512, pairs=64, random_non_queries=False)
        weights = np.arange(1, 193) ** -0.99
        law = weights / weights.sum()
        assert task.slots == 192
        assert round(law[0], 2) == 0.17
        assert abs(law[:10].sum() - 0.5) < 0.01
        slots = np.concatenate([first_slots(task, first) for first in range(0, 20_000, 2000)])
        for upto in (1, 10, 50, 120):
            p = law[:upto].sum()
            assert abs((slots < upto).mean() - p) < 5 * math.sqrt(p * (1 - p) / slots.size)

    def test_power_one_is_uniform(self) -> None:
        slots = first_slots(MQAR(length=64, pairs=4, power=1.0, random_non_queries=False), 0, 14_000)
        counts = np.bincount(slots, minlength=28)
        assert ((counts - 500) ** 2 / 500).sum() < 27 + 5 * math.sqrt(54)

    def test_every_slot_is_taken_where_pairs_fill_the_sequence(self) -> None:
        batch = MQAR(length=64, pairs=16).train_batch(0, 50)
        assert torch.equal(batch.scored.nonzero()[:, 1].reshape(50, 16), torch.arange(32, 64, 2).expand(50, 16))

    def test_ranges_of_keys_values_and_fillers(self) -> None:
        """Every key, value and filler of a small odd vocabulary occurs, and none besides."""
        task = MQAR(length=16, pairs=2, vocab_size=21)
        batch = task.train_batch(0, 3000)
        assert batch.inputs[:, 0:4:2].unique().tolist() == list(range(1, 10))
        assert batch.inputs[:, 1:4:2].unique().tolist() == list(range(10, 21))
        assert batch.inputs[:, 5::2].unique().tolist() == list(range(21))
        assert batch.targets[batch.scored].unique().tolist() == list(range(10, 21))
        assert task.chance == 1 / 11

    def test_fillers_of_zero(self) -> None:
        """The same examples but for the fillers, and then every token after the context is a question or 0."""
        random, plain = (replace(MQAR.tiny(), random_non_queries=flag).train_batch(0, 64) for flag in (True, False))
        assert torch.equal(random.targets, plain.targets)
        assert torch.equal(random.inputs[plain.inputs != 0], plain.inputs[plain.inputs != 0])
        assert torch.equal((plain.inputs != 0)[:, 8:], plain.scored[:, 8:])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"length": 63}, "even length"),
            ({"length": 2}, "4 or more"),
            ({"pairs": 17}, "allows 1 … 16 (this many pairs need a length of 68 or more)"),
            ({"pairs": 0}, "allows 1 … 16"),
            ({"vocab_size": 64}, "give 65 or more"),
            ({"power": 0.0}, "(0, 1]"),
            ({"power": 1.5}, "(0, 1]"),
            ({"power": math.nan}, "(0, 1]"),
            ({"train_examples": 0}, "train_examples is 0; give 1 or more, or None"),
            ({"validation_examples": 0}, "validation_examples is 0; give 1 or more"),
            ({"test_examples": -5}, "test_examples is -5; give 1 or more"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, float], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            MQAR(**settings)

    def test_published_sizes_construct(self) -> None:
        for length, pairs in ((64, 4), (128, 8), (256, 16), (512, 64), (512, 128), (1024, 256)):
            batch = MQAR(length=length, pairs=pairs).train_batch(0, 2)
            assert batch.scored.sum(dim=1).tolist() == [pairs, pairs]


def first_slots(task: MQAR, first: int, count: int = 2000) -> np.ndarray:
    """Return the slot in which each example asks for its first key."""
    batch = task.batch("train", np.arange(first, first + count))
    asked = batch.inputs[:, 2 * task.pairs :: 2] == batch.inputs[:, :1]
    assert bool((asked.sum(dim=1) == 1).all())
    return asked.int().argmax(dim=1).numpy()


class TestSelectiveCopying:
    """Selective copying."""

    def test_positions_are_uniform(self) -> None:
        """Each of the first L + M steps holds a data token with probability M/(L + M)."""
        task = SelectiveCopying(blanks=15, tokens=5, alphabet=6)
        held = (task.train_batch(0, 20_000).inputs[:, :20] != 0).double().mean(dim=0)
        assert float((held - 0.25).abs().max()) < 5 * math.sqrt(0.25 * 0.75 / 20_000)

    def test_layout(self) -> None:
        task = SelectiveCopying(blanks=0, tokens=3, alphabet=4)
        batch = task.train_batch(0, 200)
        assert torch.equal(batch.inputs[:, :3], batch.targets[:, 3:])
        assert bool((batch.inputs[:, 3:] == 3).all())
        assert batch.inputs[:, :3].unique().tolist() == [1, 2]
        assert (SelectiveCopying().max_length, SelectiveCopying().chance) == (120, 1 / 8)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [({"blanks": -1}, "0 or more blanks"), ({"tokens": 0}, "1 or more tokens"), ({"alphabet": 3}, "4 or more")],
    )
    def test_impossible_settings(self, settings: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SelectiveCopying(**settings)


class TestDigits:
    """Digits."""

    def test_sizes_and_strata(self) -> None:
        task = Digits()
        sizes = [task.size(split) for split in ("train", "validation", "test")]
        assert sizes == [1257, 270, 270]
        for split in ("validation", "test"):
            labels = task.batch(split, np.arange(270)).targets
            assert labels.bincount().tolist() == [27] * 10
        assert task.chance == 0.1

    def test_every_image_is_in_one_split(self) -> None:
        task = Digits()
        batches = [task.batch(split, np.arange(task.size(split))) for split in ("train", "validation", "test")]
        images = torch.cat([batch.inputs for batch in batches])
        assert images.unique(dim=0).shape[0] == 1797
        assert (float(images.min()), float(images.max())) == (0.0, 1.0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that goes, and the images read from it, when the test ends: they are large."""
    with TemporaryDirectory() as name:
        yield Path(name)
    cifar10_gray._load.cache_clear()


def write_archive(folder: Path, **changes: np.ndarray) -> Path:
    """Write an archive in the layout of `cifar10-gray.npz`, class by class in turn, with the given arrays in place."""
    arrays = {
        "train_images": np.zeros((50_000, 32, 32), np.uint8),
        "train_labels": (np.arange(50_000) % 10).astype(np.uint8),
        "test_images": np.zeros((10_000, 32, 32), np.uint8),
        "test_labels": (np.arange(10_000) % 10).astype(np.uint8),
    }
    path = folder / "cifar10-gray.npz"
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return path


def write_binary(folder: Path) -> Path:
    """Write the official binary layout; image i of file f has one colour, from which i mod 251 and f can be read."""
    binary = folder / "cifar-10-batches-bin"
    binary.mkdir()
    for number, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
        records = np.empty((10_000, 3073), np.uint8)
        records[:, 0] = np.arange(10_000) % 10
        records[:, 1:1025] = (np.arange(10_000) % 251)[:, None]
        records[:, 1025:2049] = 40 * number
        records[:, 2049:] = 255
        records.tofile(binary / name)
    return binary


class TestCIFAR10Gray:
    """Grey CIFAR-10."""

    @needs_cifar
    def test_sizes_strata_and_moments(self) -> None:
        task = CIFAR10Gray(data=DATA)
        assert [task.size(split) for split in ("train", "validation", "test")] == [45_000, 5_000, 10_000]
        validation = task.batch("validation", np.arange(5_000))
        assert validation.targets.bincount().tolist() == [500] * 10
        assert abs(float(validation.inputs.mean())) < 0.02
        assert abs(float(validation.inputs.std()) - 1) < 0.02

    @needs_cifar
    def test_every_training_image_is_seen_once_an_epoch(self) -> None:
        task = CIFAR10Gray(data=DATA, length=64, seed=3)
        rows = [task.train_batch(step, 9000) for step in range(5)]
        images = torch.cat([batch.inputs for batch in rows])
        assert images.unique(dim=0).shape[0] == 45_000
        assert torch.cat([batch.targets for batch in rows]).bincount().tolist() == [4500] * 10

    @needs_cifar
    def test_pooled_images_are_means_of_blocks(self) -> None:
        full = CIFAR10Gray(data=DATA).batch("test", np.arange(20)).inputs.reshape(20, 1, 32, 32)
        for side in (16, 8, 4):
            small = CIFAR10Gray(data=DATA, length=side * side).batch("test", np.arange(20)).inputs
            pooled = torch.nn.functional.avg_pool2d(full.double(), 32 // side).reshape(20, -1, 1)
            torch.testing.assert_close(small.double(), pooled, atol=2e-6, rtol=0)

    @pytest.mark.parametrize("length", [1, 63, 100, 784, 4096])
    def test_impossible_length(self, length: int) -> None:
        with pytest.raises(ValueError, match=re.escape("16 (4×4), 64 (8×8), 256 (16×16), 1024 (32×32)")):
            CIFAR10Gray(length=length)

    def test_official_binary_files(self, folder: Path) -> None:
        """Luma of each plane, file order and labels, through the split, read from files of the official size."""
        write_binary(folder)
        task = CIFAR10Gray(data=folder)
        test = task.batch("test", np.arange(10_000))
        luma = torch.tensor([0.299 * (i % 251) + 0.114 * 255 for i in range(10_000)], dtype=torch.float64)
        levels = grey_levels(test.inputs)
        assert float((levels - (luma + 0.587 * 200)[:, None]).abs().max()) <= 0.501
        assert torch.equal(test.targets, torch.arange(10_000) % 10)
        train = torch.cat([task.batch(split, np.arange(task.size(split))).inputs[:, :1] for split in TRAINING])
        expected = torch.cat([luma + 0.587 * 40 * number for number in range(5)])
        assert float((grey_levels(train)[:, 0].sort().values - expected.sort().values).abs().max()) <= 0.501
        assert task.batch("validation", np.arange(5_000)).targets.bincount().tolist() == [500] * 10

    def test_archive_is_preferred_and_a_string_will_do(self, folder: Path) -> None:
        write_archive(folder)
        (folder / "cifar-10-batches-bin").mkdir()
        task = CIFAR10Gray(data=str(folder))
        assert task.data == folder
        assert task.batch("test", [0]).inputs.unique().tolist() == [np.float32(-0.4808 / 0.2389)]

    def test_read_once_a_process(self, folder: Path) -> None:
        path = write_archive(folder)
        first = CIFAR10Gray(data=folder).batch("test", [0])
        path.unlink()
        assert torch.equal(CIFAR10Gray(data=folder, seed=1).batch("test", [0]).inputs, first.inputs)

    def test_missing_files_say_what_to_do(self, folder: Path) -> None:
        (folder / "cifar-10-batches-py").mkdir()
        with pytest.raises(FileNotFoundError, match=re.escape("cifar-10-binary.tar.gz")) as error:
            CIFAR10Gray(data=folder).train_batch(0, 4)
        for part in (str(folder), "pickles are not read", "cifar10-gray.npz", "SPECREG_DATA", "`data` field"):
            assert part in str(error.value)
        (folder / "cifar-10-batches-bin").mkdir()
        with pytest.raises(MissingDataError, match=re.escape("data_batch_1.bin is missing")):
            CIFAR10Gray(data=folder).train_batch(0, 4)

    def test_truncated_binary_file(self, folder: Path) -> None:
        binary = folder / "cifar-10-batches-bin"
        binary.mkdir()
        (binary / "data_batch_1.bin").write_bytes(bytes(3073 * 9))
        (binary / "test_batch.bin").write_bytes(b"")
        with pytest.raises(DataFormatError, match="27,657 bytes; it should have 30,730,000"):
            CIFAR10Gray(data=folder).train_batch(0, 4)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"test_labels": None}, "no array 'test_labels'"),
            ({"train_images": np.zeros((50_000, 1024), np.uint8)}, "(50000, 1024); it should be uint8 (50000, 32, 32)"),
            ({"train_labels": np.zeros(50_000, np.int64)}, "train_labels is int64"),
            ({"train_labels": np.zeros(50_000, np.uint8)}, "training classes have [50000, 0"),
            ({"test_labels": np.full(10_000, 11, np.uint8)}, "test classes have"),
            ({"test_labels": np.array([{"a": 1}], dtype=object)}, "test_labels is object"),
        ],
    )
    def test_wrong_layouts(self, folder: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
        write_archive(folder, **changes)
        with pytest.raises(DataFormatError, match=re.escape(message)) as error:
            CIFAR10Gray(data=folder).train_batch(0, 4)
        assert "cifar-10-binary.tar.gz" in str(error.value)

    def test_truncated_archive(self, folder: Path) -> None:
        path = write_archive(folder)
        path.write_bytes(path.read_bytes()[:1_000_000])
        with pytest.raises(DataFormatError, match="truncated or damaged"):
            CIFAR10Gray(data=folder).train_batch(0, 4)

    def test_not_an_archive(self, folder: Path) -> None:
        (folder / "cifar10-gray.npz").write_bytes(b"<html>404</html>")
        with pytest.raises(DataFormatError, match="truncated or damaged"):
            CIFAR10Gray(data=folder).train_batch(0, 4)

    @pytest.mark.parametrize(
        ("shape", "body"), [((50_000, 32, 32), bytes(99)), ((2**40, 2**20), b""), ((50_000, 32, 32), bytes(51_200_001))]
    )
    def test_headers_that_lie(self, folder: Path, shape: tuple[int, ...], body: bytes) -> None:
        """An array shorter or longer than its header says, or one whose header asks for a tebibyte of memory."""
        header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        with zipfile.ZipFile(folder / "cifar10-gray.npz", "w") as archive:
            prefix = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
            archive.writestr("train_images.npy", prefix + header.encode() + body)
        with pytest.raises(DataFormatError, match="train_images"):
            CIFAR10Gray(data=folder).train_batch(0, 4)

    def test_flipped_bytes_never_pass(self, folder: Path) -> None:
        """Whatever byte of the archive is changed, the file is refused in our words, or read as it was."""
        path = folder / "small.npz"
        image = np.arange(96, dtype=np.uint8).reshape(6, 4, 4)
        np.savez_compressed(path, train_images=image)
        content = path.read_bytes()
        for place in range(len(content)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
            try:
                read = read_small(path, image.shape)
            except (DataFormatError, *cifar10_gray._DAMAGE):
                continue
            assert np.array_equal(read, image)

    def test_directory_order(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        monkeypatch.delenv("SPECREG_DATA", raising=False)
        assert data_directory(None) == folder / "cache" / "specreg"
        monkeypatch.setenv("SPECREG_DATA", str(folder / "named"))
        assert data_directory(None) == folder / "named"
        assert data_directory(folder / "given") == folder / "given"
        monkeypatch.delenv("SPECREG_DATA")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert data_directory(None) == Path.home() / ".cache" / "specreg"


def read_small(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read one small array as the reader of the archive does."""
    with zipfile.ZipFile(BytesIO(path.read_bytes())) as archive:
        return cifar10_gray._read_array(path, archive, "train_images", shape)


def grey_levels(inputs: Tensor) -> Tensor:
    """Undo the normalisation: grey levels on the scale 0 … 255, without the channel axis."""
    return ((inputs.double() * 0.2389 + 0.4808) * 255)[..., 0]
