"""Sequences of pixels: permuted digits, MNIST and CIFAR-10 from files written here, and hostile copies of them."""

import gzip
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from specreg.tasks import cifar10, cifar10_gray, cifar_files, mnist
from specreg.tasks.cifar10 import CIFAR10
from specreg.tasks.cifar10_gray import CIFAR10Gray
from specreg.tasks.digits import Digits
from specreg.tasks.files import DataFormatError, MissingDataError
from specreg.tasks.mnist import MNIST
from specreg.tasks.pixel_orders import pixel_order
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike

SPLITS = ("train", "validation", "test")
MEANS, STDS = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.243, 0.261])
NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(scope="module", autouse=True)
def forget() -> Iterator[None]:
    """Let go of the images that were read: they are large."""
    yield
    for read in (mnist._load, cifar10._load, cifar10_gray._load):
        read.cache_clear()


def reversed_bits(length: int) -> list[int]:
    """Return the S4 repository's bit-reversal order: a column, halved and put side by side until it is a row."""
    bits = 0
    while 2**bits < length:
        bits += 1
    table = np.arange(2**bits).reshape(-1, 1)
    for _ in range(bits):
        half = table.shape[0] // 2
        table = np.hstack((table[:half], table[half:]))
    return [int(number) for number in table[0] if number < length]


class TestOrders:
    """The orders in which pixels are read."""

    @pytest.mark.parametrize("length", [1, 2, 16, 64, 784, 1024])
    def test_each_pixel_once(self, length: int) -> None:
        assert pixel_order("none", length).tolist() == list(range(length))
        assert pixel_order("bit-reversal", length).tolist() == reversed_bits(length)
        assert sorted(pixel_order("random", length).tolist()) == list(range(length))

    def test_random_order_is_fixed(self) -> None:
        """The bytes may never change: published numbers refer to them."""
        assert pixel_order("random", 784)[:6].tolist() == RANDOM_784
        assert pixel_order("random", 64)[:6].tolist() == RANDOM_64
        steps = np.abs(np.diff(pixel_order("random", 784)))
        assert abs(steps.mean() - 784 / 3) < 5 * 184 / 28  # two of n places are n/3 apart, with deviation n/√18

    @pytest.mark.parametrize("task", [Digits, MNIST, CIFAR10])
    def test_orders_that_do_not_exist(self, task: type) -> None:
        with pytest.raises(ValueError, match="permuted is 'hilbert'; it is one of none, bit-reversal, random"):
            task(permuted="hilbert")


RANDOM_784 = [2, 291, 221, 538, 253, 355]
RANDOM_64 = [2, 47, 37, 52, 30, 38]


def put_back(inputs: Tensor, order: str) -> Tensor:
    """Undo an order by hand, (B, T, C)."""
    length = inputs.shape[1]
    places = reversed_bits(length) if order == "bit-reversal" else pixel_order(order, length).tolist()  # type: ignore[arg-type]
    rows = torch.empty_like(inputs)
    for step, place in enumerate(places):
        rows[:, place] = inputs[:, step]
    return rows


@cache
def digit_labels() -> dict[bytes, int]:
    images, labels = load_digits(return_X_y=True)
    return {image.astype(np.uint8).tobytes(): int(label) for image, label in zip(images, labels, strict=True)}


class TestBitReversedDigitsConformance(TaskConformance):
    """Digits in bit-reversal order: the reference looks the image up in scikit-learn's table."""

    reseeded = False  # the split is fixed
    order = "bit-reversal"

    @cached_property
    def task(self) -> TaskLike:
        return Digits(permuted=self.order)  # type: ignore[arg-type]

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        images = (16 * put_back(batch.inputs, self.order)).to(torch.uint8)
        return torch.tensor([digit_labels()[image.numpy().tobytes()] for image in images])


class TestRandomDigitsConformance(TestBitReversedDigitsConformance):
    """Digits in the fixed random order."""

    order = "random"


def test_permuted_digits_hold_the_same_images() -> None:
    plain, turned = (Digits(permuted=order).batch("test", np.arange(270)) for order in ("none", "bit-reversal"))
    assert torch.equal(turned.targets, plain.targets)
    assert torch.equal(turned.inputs[:, 1], plain.inputs[:, 32])
    assert (Digits().image_shape, Digits(permuted="random").image_shape) == ((8, 8), None)
    assert Digits(permuted="random").need.periods == ()


def idx(array: np.ndarray) -> bytes:
    """Write an array of bytes in the IDX format."""
    sizes = b"".join(size.to_bytes(4) for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def numbered(count: int, kind: int) -> np.ndarray:
    """Return images 28×28 from which their number, their set and hence their label can be read."""
    images = np.zeros((count, 28, 28), np.uint8)
    numbers = np.arange(count)
    images[:, 3, 4], images[:, 20, 7], images[:, 27, 27] = numbers % 251, numbers // 251, 100 + kind
    return images


def label(number: int) -> int:
    """The label of an image by its number."""
    return (7 * number + number // 10) % 10


@pytest.fixture(scope="module")
def mnist_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the four files, two of them packed and in torchvision's folder."""
    directory = tmp_path_factory.mktemp("mnist")
    folder = directory / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for kind, (images, labels, count) in enumerate(((*NAMES[:2], 60_000), (*NAMES[2:], 10_000))):
        content = {images: idx(numbered(count, kind)), labels: idx(np.array([label(n) for n in range(count)]))}
        (folder / images).write_bytes(content[images])
        with gzip.open(folder / f"{labels}.gz", "wb", compresslevel=1) as file:
            file.write(content[labels])
    return directory


class TestMNISTConformance(TaskConformance):
    """MNIST row by row: the reference reads the image's number from its pixels."""

    reseeded = False  # the split is fixed
    order = "none"

    @pytest.fixture(autouse=True)
    def files(self, mnist_folder: Path) -> None:
        self.folder = mnist_folder

    @property
    def task(self) -> TaskLike:
        return MNIST(permuted=self.order, data=self.folder)  # type: ignore[arg-type]

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        pixels = (put_back(batch.inputs, self.order) * 255).round().to(torch.int64)
        images = pixels.reshape(-1, 28, 28)
        return torch.tensor([label(int(image[3, 4] + 251 * image[20, 7])) for image in images])


class TestBitReversedMNISTConformance(TestMNISTConformance):
    """psMNIST as the S4 repository has it."""

    order = "bit-reversal"


class TestRandomMNISTConformance(TestMNISTConformance):
    """psMNIST with the fixed random order."""

    order = "random"


class TestMNISTFiles:
    """The files of MNIST and what may be wrong with them."""

    def test_split(self, mnist_folder: Path) -> None:
        """Every official image is in one split, the test set in its order, training and validation mixed."""
        task = MNIST(data=str(mnist_folder))  # type: ignore[arg-type]
        numbers = {}
        for split in SPLITS:
            batch = task.batch(split, np.arange(task.size(split)))
            images = (batch.inputs[..., 0] * 255).round().to(torch.int64).reshape(-1, 28, 28)
            assert images[:, 27, 27].unique().tolist() == [101 if split == "test" else 100]
            numbers[split] = (images[:, 3, 4] + 251 * images[:, 20, 7]).tolist()
        assert numbers["test"] == list(range(10_000))
        assert sorted(numbers["train"] + numbers["validation"]) == list(range(60_000))
        assert [len(numbers[split]) for split in SPLITS] == [54_000, 6_000, 10_000]
        assert abs(np.mean(numbers["validation"]) - 29_999.5) < 5 * 17_320 / np.sqrt(6000)
        assert [path.name for path in task.data_files()] == [NAMES[0], f"{NAMES[1]}.gz", NAMES[2], f"{NAMES[3]}.gz"]

    def test_dots_in_names(self, mnist_folder: Path, tmp_path: Path) -> None:
        for path in (mnist_folder / "MNIST" / "raw").iterdir():
            (tmp_path / path.name.replace("-idx", ".idx")).symlink_to(path)
        assert MNIST(data=tmp_path).batch("test", [3]).targets.tolist() == [label(3)]

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError) as error:
            MNIST(data=tmp_path).batch("test", [0])
        for part in (str(tmp_path), "MNIST/raw", *NAMES, "SPECREG_DATA", "`data` field"):
            assert part in str(error.value)
        (tmp_path / NAMES[1]).write_bytes(b"")
        with pytest.raises(MissingDataError, match=f"{NAMES[0]} is missing, with or without .gz"):
            MNIST(data=tmp_path).batch("test", [0])
        with pytest.raises(MissingDataError, match=f"{NAMES[0]} is missing"):
            MNIST(data=tmp_path).data_files()

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (NAMES[0], b"", "does not begin as an IDX file of 60000×28×28 bytes does"),
            (NAMES[0], b"<html>404</html>", "magic number 0x00000803"),
            (NAMES[0], idx(np.zeros((3, 28, 28))), "60000×28×28"),
            (
                NAMES[0],
                bytes((0, 0, 8, 3)) + (60_000).to_bytes(4) + (28).to_bytes(4) * 2,
                "fewer than 47,040,016 bytes",
            ),
            (NAMES[0], bytes((0, 0, 8, 3)) + b"\xff" * 12, "does not begin"),
            (NAMES[1], idx(np.zeros(60_000)) + b"0", "more than 60,008 bytes"),
            (NAMES[1], idx(np.full(60_000, 10)), "it holds the label 10; labels are 0 … 9"),
            (f"{NAMES[1]}.gz", b"<html>404</html>", "truncated or damaged"),
            (f"{NAMES[1]}.gz", gzip.compress(idx(np.arange(60_000) % 10))[:-20], "truncated or damaged"),
            (f"{NAMES[1]}.gz", gzip.compress(bytes(10**8), 9), "does not begin"),
        ],
    )
    def test_wrong_files(self, mnist_folder: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        for path in (mnist_folder / "MNIST" / "raw").iterdir():
            if not path.name.startswith(name.removesuffix(".gz")):
                (tmp_path / path.name).symlink_to(path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataFormatError, match=re.escape(message)) as error:
            MNIST(data=tmp_path).batch("test", [0])
        assert str(tmp_path / NAMES[0][:5]) in str(error.value)
        assert "Replace it" in str(error.value)

    def test_presets(self) -> None:
        presets = MNIST.presets()
        assert [presets[name].permuted for name in ("smnist", "psmnist", "psmnist-random")] == [
            *("none", "bit-reversal", "random")
        ]
        assert (MNIST().image_shape, MNIST(permuted="random").image_shape) == ((28, 28), None)
        assert MNIST().chance == 1135 / 10_000
        assert eval(repr(MNIST(permuted="random"))) == MNIST(permuted="random")


@pytest.fixture(scope="module")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the official binary layout; an image's number, file and label can be read from its planes."""
    directory = tmp_path_factory.mktemp("cifar")
    binary = directory / "cifar-10-batches-bin"
    binary.mkdir()
    numbers = np.arange(10_000)
    for file, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
        records = np.zeros((10_000, 3073), np.uint8)
        records[:, 0] = numbers % 10
        planes = records[:, 1:].reshape(-1, 3, 32, 32)
        # whole blocks of 8×8, so that means over blocks leave them readable
        planes[:, 0, :8, 8:16] = (numbers % 250)[:, None, None]
        planes[:, 1, 8:16, :8] = (numbers // 250)[:, None, None]
        planes[:, 2, 24:, 24:] = 40 * file
        records.tofile(binary / name)
    return directory


class TestCIFAR10Conformance(TaskConformance):
    """Colour CIFAR-10 row by row: the reference reads the image's number from its planes."""

    reseeded = False  # the split is fixed
    length, order = 1024, "none"

    @pytest.fixture(autouse=True)
    def files(self, cifar_folder: Path) -> None:
        self.folder = cifar_folder

    @property
    def task(self) -> TaskLike:
        return CIFAR10(length=self.length, permuted=self.order, data=self.folder)  # type: ignore[arg-type]

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        values = put_back(batch.inputs, self.order)
        levels = ((values * STDS + MEANS) * 255).round().to(torch.int64)
        side = round(self.length**0.5)
        block = side // 4
        images = levels.reshape(-1, side, side, 3)
        return (images[:, 0, block, 0] + 250 * images[:, block, 0, 1]) % 10


class TestSmallCIFAR10Conformance(TestCIFAR10Conformance):
    """Colour CIFAR-10 averaged to 8×8, in bit-reversal order."""

    length, order = 64, "bit-reversal"


class TestCIFARFiles:
    """The colour files of CIFAR-10, which the grey task reads as well."""

    def test_planes_and_split(self, cifar_folder: Path) -> None:
        task = CIFAR10(data=str(cifar_folder))  # type: ignore[arg-type]
        test = task.batch("test", np.arange(2000))
        levels = ((test.inputs * STDS + MEANS) * 255).round().reshape(-1, 32, 32, 3)
        assert levels[:, 0, 8, 0].tolist() == [n % 250 for n in range(2000)]
        assert levels[:, 8, 0, 1].tolist() == [n // 250 for n in range(2000)]
        assert levels[:, 31, 31, 2].unique().tolist() == [200.0]
        assert task.batch("validation", np.arange(5000)).targets.bincount().tolist() == [500] * 10
        assert len(task.data_files()) == 6

    def test_the_grey_task_holds_out_the_same_images(self, cifar_folder: Path) -> None:
        grey, colour = (task(data=cifar_folder).batch("validation", np.arange(50)) for task in (CIFAR10Gray, CIFAR10))
        assert torch.equal(grey.targets, colour.targets)
        levels = ((colour.inputs.double() * STDS + MEANS) * 255).round()
        luma = levels @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
        assert float(((grey.inputs[..., 0].double() * 0.2389 + 0.4808) * 255 - luma).abs().max()) <= 0.501
        assert len(CIFAR10Gray(data=cifar_folder).data_files()) == 6

    def test_pooled_images_are_means_of_blocks(self, cifar_folder: Path) -> None:
        full = (
            CIFAR10(data=cifar_folder).batch("train", np.arange(20)).inputs.reshape(20, 32, 32, 3).permute(0, 3, 1, 2)
        )
        for side in (16, 8, 4):
            small = CIFAR10(data=cifar_folder, length=side * side).batch("train", np.arange(20)).inputs
            means = torch.nn.functional.avg_pool2d(full.double(), 32 // side).flatten(2).transpose(1, 2)
            torch.testing.assert_close(small.double(), means, atol=3e-6, rtol=0)

    def test_missing_truncated_and_unbalanced(self, tmp_path: Path) -> None:
        for task in (CIFAR10(data=tmp_path), CIFAR10Gray(data=tmp_path)):
            with pytest.raises(MissingDataError, match=r"cifar-10-binary\.tar\.gz.*uoft-cs/cifar10.*SPECREG_DATA"):
                task.batch("test", [0])
            with pytest.raises(MissingDataError, match="CIFAR-10 was not found"):
                task.data_files()
        binary = tmp_path / "cifar-10-batches-bin"
        binary.mkdir()
        (binary / "data_batch_1.bin").write_bytes(bytes(3072))
        with pytest.raises(DataFormatError, match="3,072 bytes; it should have 30,730,000"):
            CIFAR10(data=tmp_path).batch("test", [0])
        with pytest.raises(DataFormatError, match=r"training classes have \[50000, 0, .*; each should have 5,000"):
            empty = np.zeros(0, np.uint8)
            cifar_files.checked(binary, empty, np.zeros(50_000, np.uint8), empty, np.zeros(10_000, np.uint8))

    def test_settings(self) -> None:
        with pytest.raises(ValueError, match=re.escape("length is 100; the images are square: allowed are 16 (4×4)")):
            CIFAR10(length=100)
        presets = CIFAR10.presets()
        assert (presets["scifar"].max_length, presets["scifar"].channels) == (1024, 3)
        assert presets["pscifar"].permuted == "bit-reversal"
        assert (CIFAR10().image_shape, presets["pscifar"].image_shape) == ((32, 32), None)
        assert eval(repr(CIFAR10(length=64))) == CIFAR10(length=64)
        assert replace(CIFAR10(), length=64).need.periods == (8,)


class FakeParquetFile:
    """Stands for pyarrow's reader where it is not installed: the file's bytes name what it holds."""

    content: tuple[list[object], list[object]] = ([], [])
    names = ("img", "label")

    def __init__(self, path: Path) -> None:
        if path.read_bytes() == b"damaged":
            raise OSError("no magic bytes")
        self.metadata = SimpleNamespace(num_rows=len(self.content[1]))
        self.schema_arrow = SimpleNamespace(names=list(self.names))

    def __enter__(self) -> "FakeParquetFile":
        return self

    def __exit__(self, *given: object) -> None:
        return None

    def iter_batches(self, rows: int, columns: list[str]) -> Iterator[SimpleNamespace]:
        for first in range(0, len(self.content[1]), rows):
            parts = dict(zip(columns, (part[first : first + rows] for part in self.content), strict=True))
            yield SimpleNamespace(column=lambda name, held=parts: SimpleNamespace(to_pylist=lambda: held[name]))


def coloured(number: int) -> np.ndarray:
    """Return an image 32×32 with a pattern in each channel."""
    rows, columns, channels = np.mgrid[:32, :32, :3]
    return ((number * (channels + 1) + rows * columns) % 256).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    """Write an RGB image as PNG, its rows not filtered."""
    lines = b"".join(b"\0" + row.tobytes() for row in image)
    header = (32).to_bytes(4) * 2 + bytes((8, 2, 0, 0, 0))
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    parts = (len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class TestParquet:
    """Hugging Face's files."""

    @pytest.fixture
    def fake(self, monkeypatch: pytest.MonkeyPatch) -> type[FakeParquetFile]:
        kind = type("Fake", (FakeParquetFile,), {})
        module = SimpleNamespace(ArrowException=RuntimeError)
        monkeypatch.setitem(sys.modules, "pyarrow", module)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", SimpleNamespace(ParquetFile=kind))
        return kind

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        folder = tmp_path / "cifar10" / "plain_text"
        folder.mkdir(parents=True)
        for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
            (folder / name).write_bytes(b"PAR1")
        return folder

    def test_both_sets(self, fake: type[FakeParquetFile], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The planes of every image, in order; here with sets of 30 images."""
        monkeypatch.setattr(cifar_files, "_PARQUET", {"train-*.parquet": 30, "test-*.parquet": 30})
        monkeypatch.setattr(cifar_files, "TRAIN", 30)
        monkeypatch.setattr(cifar_files, "TEST", 30)
        monkeypatch.setattr(cifar_files, "_PER_FILE", 10)
        monkeypatch.setattr(cifar_files, "_ROWS", 7)
        fake.content = ([{"bytes": png(coloured(n)), "path": None} for n in range(30)], [n % 10 for n in range(30)])
        directory = folder.parents[1]
        assert cifar_files.has_colour(directory)
        images = cifar_files.read_colour(directory, np.ascontiguousarray)
        assert np.array_equal(images.test, np.stack([coloured(n).transpose(2, 0, 1) for n in range(30)]))
        assert images.train_labels.tolist() == [n % 10 for n in range(30)]
        fake.content = ([], [])  # the second time nothing is decoded
        again = cifar_files.read_colour(directory, np.ascontiguousarray)
        assert np.array_equal(again.train, images.train)
        assert [path.name[:5] for path in CIFAR10(data=directory).data_files()] == ["train", "test-"]

    @pytest.mark.parametrize(
        ("image", "answer", "message"),
        [
            ({"bytes": b"GIF89a"}, 1, "it does not begin as a PNG file does"),
            ({"bytes": None}, 1, "not the bytes of a small PNG file"),
            ({"path": "/etc/passwd"}, 1, "not the bytes of a small PNG file"),
            ({"bytes": bytes(70_000)}, 1, "not the bytes of a small PNG file"),
            ("text", 1, "not the bytes of a small PNG file"),
            ({"bytes": png(coloured(0))}, 10, "it holds the label 10"),
            ({"bytes": png(coloured(0))}, None, "it holds the label None"),
            ({"bytes": png(coloured(0))}, 3, "there are 1 images; there should be 50,000"),
        ],
    )
    def test_wrong_rows(
        self, fake: type[FakeParquetFile], folder: Path, image: object, answer: object, message: str
    ) -> None:
        fake.content = ([image], [answer])
        with pytest.raises(DataFormatError, match=re.escape(message)):
            CIFAR10(data=folder.parents[1]).batch("test", [0])

    def test_wrong_files(self, fake: type[FakeParquetFile], folder: Path) -> None:
        fake.names = ("image", "label")
        with pytest.raises(
            DataFormatError, match=r"its columns are \['image', 'label'\]; they should be img and label"
        ):
            CIFAR10(data=folder.parents[1]).batch("test", [0])
        fake.content = ([], [0] * 50_001)
        fake.names = ("img", "label")
        with pytest.raises(DataFormatError, match="it has 50,001 rows"):
            CIFAR10Gray(data=folder.parents[1]).batch("test", [0])
        (folder / "train-00000-of-00001.parquet").write_bytes(b"damaged")
        with pytest.raises(DataFormatError, match="truncated, damaged or no parquet file"):
            CIFAR10(data=folder.parents[1]).batch("test", [0])

    def test_without_pyarrow(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        for task in (CIFAR10, CIFAR10Gray):
            with pytest.raises(MissingDataError, match=r"needs pyarrow.*`pip install pyarrow`.*binary version"):
                task(data=folder.parents[1]).batch("test", [0])

    def test_pyarrow_itself(self, folder: Path) -> None:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path = folder / "train-00000-of-00001.parquet"
        images = [{"bytes": png(coloured(n)), "path": f"{n}.png"} for n in range(20)]
        parquet.write_table(arrow.table({"img": images, "label": list(range(10)) * 2}), path)
        ((planes, labels),) = cifar_files._read_parquet(path)
        assert np.array_equal(planes, np.stack([coloured(n).transpose(2, 0, 1) for n in range(20)]))
        assert labels.tolist() == list(range(10)) * 2
        content = path.read_bytes()
        for damaged in (b"", b"PAR1", content[:-30], content[:4] + bytes(200) + content[204:]):
            path.write_bytes(damaged)
            with pytest.raises(DataFormatError, match=re.escape(str(path))):
                list(cifar_files._read_parquet(path))
