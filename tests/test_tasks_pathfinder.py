"""Pathfinder: the rule of the drawn images by brute force, their cache, the official files and hostile ones."""

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from specreg.tasks import contours, pathfinder_files
from specreg.tasks.contour_stamps import Geometry, inks, published, tables_of
from specreg.tasks.files import DataFormatError, MissingDataError
from specreg.tasks.pathfinder import Pathfinder
from specreg.tasks.png import decode_png
from specreg.tasks.record_cache import RecordCache
from specreg.tasks.streams import stream_keys, words
from specreg.testing.tasks import BatchLike, TaskConformance, TaskLike

SPLITS = ("train", "validation", "test")
Place = tuple[int, int]


@pytest.fixture(autouse=True, scope="module")
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def pixels_of(inputs: Tensor) -> np.ndarray:
    """Undo the scale: grey levels (B, T)."""
    return ((inputs[..., 0].double() * 0.5 + 0.5) * 255).round().to(torch.uint8).numpy()


class Recorder:
    """Takes the place of the canvas: keeps contours as lists of (place, direction) in pixels."""

    def __init__(self) -> None:
        self.contours: list[list[tuple[Place, int]]] = []
        self.marked: list[Place] = []
        self.margin = 0

    def paddles(self, row: int, tables: object, contour: list[tuple[int, int]], contrast: int) -> None:
        self.contours.append([(self._place(tables, start), direction) for start, direction in contour])

    def marks(self, row: int, tables: object, contour: list[tuple[int, int]]) -> None:
        self.marked = [self._place(tables, contour[0][0]), self._place(tables, contour[-1][0])]

    @staticmethod
    def _place(tables: object, start: int) -> Place:
        row, column = divmod(start, tables.stride)  # type: ignore[attr-defined]
        return row - tables.reach, column - tables.reach  # type: ignore[attr-defined]


def recorded(geometry: Geometry, key: np.ndarray, joined: bool) -> Recorder:
    """Return what is drawn for one key."""
    recorder = Recorder()
    contours._draw_one(geometry, contours._Draws(key, words(key, 0, 512)[0].tolist()), joined, recorder, 0)  # type: ignore[arg-type]
    return recorder


@cache
def ends_by_image(task: Pathfinder) -> dict[bytes, list[tuple[Place, Place]]]:
    """Return where the two contours of each image begin and end, by the image's pixels."""
    known = {}
    for split in SPLITS:
        size = task.size(split)
        batch = task.batch(split, np.arange(size))
        keys = stream_keys(task.seed, split, np.arange(size))
        for row, image in enumerate(pixels_of(batch.inputs)):
            long = recorded(task.geometry, keys[row : row + 1], joined=False).contours[:2]
            known[image.tobytes()] = [(contour[0][0], contour[-1][0]) for contour in long]
    return known


def is_marked(image: np.ndarray, place: Place) -> bool:
    """Whether a marker stands there: the pixel and its four neighbours are all bright, as no end of a line is."""
    row, column = place
    around = [(row, column), (row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
    bright = [int(image[y, x]) for y, x in around if 0 <= y < image.shape[0] and 0 <= x < image.shape[1]]
    return min(bright) > 0.5 * bright[0] and bright[0] > 100


class PathfinderConformance(TaskConformance):
    """The reference looks for the markers in the image, at the ends of its two contours."""

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        known, answers = ends_by_image(task), []  # type: ignore[arg-type]
        side = math.isqrt(task.max_length)
        for image in pixels_of(batch.inputs):
            ends = known[image.tobytes()]
            starts = [is_marked(image.reshape(side, side), start) for start, _ in ends]
            stops = [is_marked(image.reshape(side, side), stop) for _, stop in ends]
            if sum(starts) == sum(stops) == 1:
                answers.append(int(starts.index(True) == stops.index(True)))
            else:  # a contour's end lies under another's marker
                assert sum(starts) + sum(stops) > 2
                answers.append(-1)
        self.unclear = answers.count(-1) / len(answers)
        return torch.tensor(answers)

    def test_answers_agree_with_the_reference(self) -> None:
        for split in SPLITS:
            size = min(1000, self.task.size(split))
            batch = self.task.batch(split, np.arange(size))
            answers = self.reference(self.task, batch)
            clear = answers >= 0
            assert torch.equal(answers[clear], batch.targets[clear])
            assert float(clear.float().mean()) > 0.9


class TestTinyConformance(PathfinderConformance):
    """16×16, drawn each time."""

    @cached_property
    def task(self) -> TaskLike:
        return replace(Pathfinder.tiny(), train_examples=1000)


class TestPathfinderConformance(PathfinderConformance):
    """32×32 with contours of 14 paddles, through the cache."""

    @cached_property
    def task(self) -> TaskLike:
        return Pathfinder(train_examples=1000, validation_examples=300, test_examples=300)


class TestPathXConformance(PathfinderConformance):
    """128×128."""

    @cached_property
    def task(self) -> TaskLike:
        return Pathfinder(side=128, train_examples=60, validation_examples=20, test_examples=20)


class TestEasyConformance(PathfinderConformance):
    """32×32 with contours of 6 paddles."""

    @cached_property
    def task(self) -> TaskLike:
        return Pathfinder(contour_length=6, train_examples=300, validation_examples=100, test_examples=100, seed=5)


class TestOfficialConformance(TaskConformance):
    """The official layout, of 150 small files: the reference knows which images got which label."""

    reseeded = False  # the split is fixed

    @pytest.fixture(autouse=True)
    def files(self, official: tuple[Path, dict[bytes, int]]) -> None:
        self.folder, self.known = official

    @property
    def task(self) -> TaskLike:
        return Pathfinder(origin="official", data=self.folder)

    def reference(self, task: TaskLike, batch: BatchLike) -> Tensor:
        return torch.tensor([self.known[image.tobytes()] for image in pixels_of(batch.inputs)])


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, int]]:
    """Write an official folder; return its directory and the labels by image."""
    directory = tmp_path_factory.mktemp("official")
    batch = Pathfinder(cache=False, seed=9).batch("train", np.arange(150))
    images = pixels_of(batch.inputs).reshape(-1, 32, 32)
    write_official(directory, images, batch.targets.tolist())
    return directory, {image.tobytes(): label for image, label in zip(images, batch.targets.tolist(), strict=True)}


def write_official(
    directory: Path, images: np.ndarray, labels: list[int], level: str = "curv_contour_length_14"
) -> Path:
    """Write images in lists of 60 with a text file each, as the official release has them, every filter in use."""
    folder = directory / "pathfinder32" / level
    (folder / "metadata").mkdir(parents=True)
    for first in range(0, len(images), 60):
        number = first // 60
        (folder / "imgs" / str(number)).mkdir(parents=True)
        lines = []
        for index in range(first, min(first + 60, len(images))):
            name = f"sample_{index - first}.png"
            filters = [(index + row) % 5 for row in range(32)]
            (folder / "imgs" / str(number) / name).write_bytes(png(images[index][..., None], filters))
            lines.append(f"imgs/{number} {name} {index - first} {labels[index]} 1.0 14 4 2 0.5 1 1\n")
        (folder / "metadata" / f"{number}.npy").write_text("".join(lines))
    return folder


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return one part of a PNG file."""
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def png(image: np.ndarray, filters: list[int], header: bytes | None = None) -> bytes:
    """Write a PNG file by the rules of its specification, pixel by pixel."""
    rows, columns, channels = image.shape
    lines = bytearray()
    for y in range(rows):
        lines.append(filters[y])
        for x in range(columns):
            for c in range(channels):
                a = int(image[y, x - 1, c]) if x else 0
                b = int(image[y - 1, x, c]) if y else 0
                corner = int(image[y - 1, x - 1, c]) if x and y else 0
                paeth = min((a, b, corner), key=lambda value: abs(a + b - corner - value))
                predicted = (0, a, b, (a + b) // 2, paeth)[filters[y]]
                lines.append((int(image[y, x, c]) - predicted) % 256)
    usual = columns.to_bytes(4) + rows.to_bytes(4) + bytes((8, 0 if channels == 1 else 2, 0, 0, 0))
    packed = zlib.compress(bytes(lines))
    parts = [chunk(b"IHDR", header or usual), chunk(b"tEXt", b"Software\0none")]
    parts += [chunk(b"IDAT", packed[:20]), chunk(b"IDAT", packed[20:]), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class TestRule:
    """What is drawn, checked pixel by pixel."""

    @pytest.mark.parametrize(("side", "count"), [(32, 60), (64, 10), (128, 8)])
    def test_paddles_follow_one_another_and_keep_apart(self, side: int, count: int) -> None:
        geometry = published(side, 14)
        keys = stream_keys(3, "train", np.arange(count))
        for row in range(count):
            found = recorded(geometry, keys[row : row + 1], joined=bool(row % 2))
            assert [len(contour) for contour in found.contours[:2]] == [14, 14]
            assert {len(contour) for contour in found.contours[2:]} <= {0, geometry.distractor_length}
            assert len(found.contours) == 2 + geometry.distractors
            for contour in found.contours:
                check_steps(geometry, contour)
            check_clearance(geometry, found.contours)
            expected = [contour[place][0] for contour in found.contours[:2] for place in (0, -1)]
            assert set(found.marked) <= set(expected)

    def test_contours_start_where_published(self) -> None:
        """The first within the central 4×4 pixels, the second 7 pixels from it, to half a pixel each way."""
        geometry = published(32, 14)
        keys = stream_keys(0, "test", np.arange(200))
        for row in range(200):
            first, second = (contour[0][0] for contour in recorded(geometry, keys[row : row + 1], True).contours[:2])
            assert all(14 <= place < 18 for place in first)
            assert abs(math.dist(first, second) - 7) <= math.sqrt(0.5)

    def test_turns_have_the_published_law(self) -> None:
        """Unhindered, a turn's weight is cos²(1.8·turn) and 0 from 50° on, over the pixels of the ring."""
        tables = tables_of(published(128, 14), 2)
        for direction in range(0, 360, 23):
            sums, ends = tables.ends[direction]
            assert sums == np.cumsum([weight for weight, _, _ in ends]).tolist()
            assert len(ends) > 8
            for weight, _, new in ends:
                turn = min((new - direction) % 360, (direction - new) % 360)
                assert turn < 50
                assert abs(weight / 2**16 - math.cos(math.radians(1.8 * turn)) ** 2) < 1e-4

    def test_margins_are_drawn_alike(self) -> None:
        """Path-X: margins of 2 and 3 pixels, half the images each; they are told by the gap between paddles."""
        keys = stream_keys(1, "train", np.arange(4000))
        first = words(keys, 0, 1)[:, 0] >> np.uint64(63)
        assert abs(float(first.mean()) - 0.5) < 5 * math.sqrt(0.25 / 4000)
        for row in range(4):
            contour = recorded(published(128, 14), keys[row : row + 1], True).contours[0]
            gaps = [gap(contour[place], contour[place + 1], 5, place == 0) for place in range(13)]
            assert abs(np.mean(gaps) - 2 * (2 + int(first[row]))) < 1

    def test_stamps(self) -> None:
        """Half cover for a line of half a pixel, full for a pixel and a half, a whole disc for a marker."""
        for side, level in ((32, 8), (64, 12), (128, 16)):
            geometry = published(side, 14)
            stamp = inks(geometry)[0]
            middle = stamp.shape[0] // 2
            assert stamp[middle, middle + 1] == level
            assert np.count_nonzero(stamp.max(axis=0)) == geometry.paddle_length + 1
            area = inks(geometry)[360].sum() / 16
            assert abs(area - math.pi * (geometry.marker_radius / 2) ** 2) < 0.8

    def test_sines_agree_with_the_library(self) -> None:
        from specreg.tasks.contour_stamps import _sines

        expected = [math.sin(math.radians(tenth / 10)) * 2**30 for tenth in range(3600)]
        assert max(abs(a - b) for a, b in zip(_sines(), expected, strict=True)) <= 0.5001

    def test_brightness(self) -> None:
        """The brightest pixel of every image is 255, and a tenth to four tenths of the pixels are inked."""
        batch = Pathfinder(cache=False).batch("train", np.arange(200))
        images = pixels_of(batch.inputs).reshape(-1, 32, 32)
        assert images.max(axis=(1, 2)).tolist() == [255] * 200
        assert 0.1 < (images > 0).mean() < 0.4
        assert (float(batch.inputs.min()), float(batch.inputs.max())) == (-1.0, 1.0)

    def test_labels_are_balanced_in_pairs_without_a_pattern(self) -> None:
        task = Pathfinder(cache=False)
        labels = task._labels("train", np.arange(20_000))
        assert (labels.reshape(-1, 2).sum(axis=1) == 1).all()
        assert abs(labels[::2].mean() - 0.5) < 5 * math.sqrt(0.25 / 10_000)
        assert labels[::2].tolist() != task._labels("test", np.arange(20_000))[::2].tolist()

    def test_no_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contours, "_PAIR_TRIES", 20)
        with pytest.raises(ValueError, match=r"no two contours of 20 paddles .* at 16×16; give a smaller"):
            replace(Pathfinder.tiny(), contour_length=20).batch("train", [0])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"side": 48}, "side is 48; images are drawn with one of 16, 32, 64, 128"),
            ({"contour_length": 1}, "give 2 … 20"),
            ({"contour_length": 21}, "give 2 … 20"),
            ({"origin": "drawn"}, "it is one of generated, official"),
            ({"origin": "official", "side": 16}, "a side of 32, 64 or 128 and contours of 6, 9 or 14"),
            ({"origin": "official", "contour_length": 7}, "a side of 32, 64 or 128 and contours of 6, 9 or 14"),
            ({"train_examples": 0}, "train_examples is 0"),
            ({"seed": -1}, "0 … 2**64 - 1"),
            ({"seed": -1, "origin": "official"}, "0 … 2**64 - 1"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            Pathfinder(**settings)  # type: ignore[arg-type]

    def test_presets_and_sizes(self) -> None:
        presets = Pathfinder.presets()
        assert [presets["path-x"].size(split) for split in SPLITS] == [160_000, 20_000, 20_000]
        assert (presets["path-x"].max_length, presets["pathfinder"].max_length) == (16_384, 1024)
        assert presets["pathfinder"].image_shape == (32, 32)
        assert presets["path-x"].need.periods == (128,)
        assert [Pathfinder().class_name(label) for label in (0, 1)] == ["apart", "joined"]
        for preset in presets.values():
            assert eval(repr(preset)) == preset

    def test_bytes(self) -> None:
        """The bytes may never change: published numbers refer to them."""
        drawn = [Pathfinder(cache=False), Pathfinder(side=64, cache=False), Pathfinder(side=128, cache=False)]
        found = [sha256(task.batch("train", np.arange(6)).inputs.numpy().tobytes()).hexdigest()[:16] for task in drawn]
        assert found == DIGESTS

    def test_endless_training(self) -> None:
        """Without a number of training images none is kept, and far indices are drawn as quickly."""
        task = replace(Pathfinder.tiny(), train_examples=None, cache=True)
        assert task.train_batch(10**9, 4).inputs.shape == (4, 256, 1)


DIGESTS = ["b2beaa47d7e980a9", "4c3f05eee1dbe694", "75835340d7ac9336"]


def line(start: Place, direction: int, length: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ends of a paddle."""
    angle = math.radians(direction)
    return (start[0], start[1]), (start[0] + length * math.sin(angle), start[1] + length * math.cos(angle))


def gap(one: tuple[Place, int], two: tuple[Place, int], length: int, first: bool) -> float:
    """Return the gap between two paddles; all but a contour's first are drawn from their ends backwards."""
    tail, head = line(*one, length)
    return math.dist(head if first else tail, line(*two, length)[1])


def check_steps(geometry: Geometry, contour: list[tuple[Place, int]]) -> None:
    """Each paddle begins two margins from where the last one ended, rounding twice, and turns less than allowed."""
    for place in range(len(contour) - 1):
        distance = gap(contour[place], contour[place + 1], geometry.paddle_length, place == 0)
        assert any(abs(distance - 2 * margin) < 2.2 for margin in geometry.margins)
        before = contour[place][1] if place == 0 else (contour[place][1] + 180) % 360
        after = (contour[place + 1][1] + 180) % 360
        turn = min((after - before) % 360, (before - after) % 360)
        assert turn * geometry.continuity < 900


def check_clearance(geometry: Geometry, found: list[list[tuple[Place, int]]]) -> None:
    """No pixel a quarter inked by one paddle is so by another contour, or by its own but for the next paddle."""
    side, stamps = geometry.side, inks(geometry)
    middle = stamps.shape[1] // 2
    inked: list[tuple[int, int, set[Place]]] = []
    for number, contour in enumerate(found):
        for place, ((row, column), direction) in enumerate(contour):
            strong = np.argwhere(stamps[direction] >= 4).tolist()
            pixels = {(row + y - middle, column + x - middle) for y, x in strong}
            assert all(1 <= y < side - 1 and 1 <= x < side - 1 for y, x in pixels)
            for other, where, theirs in inked:
                if other != number or abs(where - place) > 1:
                    assert not pixels & theirs
            inked.append((number, place, pixels))


class TestCache:
    """Images that were drawn are kept, each for itself."""

    def task(self, seed: int) -> Pathfinder:
        return replace(Pathfinder.tiny(), cache=True, seed=seed)

    def file(self, user_cache: Path, before: set[Path]) -> Path:
        (path,) = set(user_cache.rglob("*")) - before
        return path

    def test_looking_at_held_out_images_leaves_no_file(self, user_cache: Path) -> None:
        before = set(user_cache.rglob("*.records"))
        task = self.task(31)
        first = task.batch("validation", np.arange(10))
        assert set(user_cache.rglob("*.records")) == before
        task.train_batch(0, 4)
        assert torch.equal(task.batch("validation", np.arange(10)).inputs, first.inputs)
        assert len(set(user_cache.rglob("*.records")) - before) == 2

    def test_second_time_from_the_file(self, user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.task(100).batch("train", [0])
        before = set(user_cache.rglob("*"))
        first = self.task(1).batch("train", [5, 3, 1999, 5])
        path = self.file(user_cache, before)
        assert path.name.startswith("pathfinder16-train-")
        assert torch.equal(first.inputs[0], first.inputs[3])
        assert torch.equal(replace(self.task(1), cache=False).batch("train", [5, 3, 1999, 5]).inputs, first.inputs)
        monkeypatch.setattr("specreg.tasks.pathfinder.draw_images", None)
        assert torch.equal(self.task(1).batch("train", [1999, 3]).inputs, first.inputs[[2, 1]])
        with pytest.raises(TypeError):
            self.task(1).batch("train", [4])

    @pytest.mark.parametrize("damage", ["truncated", "longer", "header", "record", "moved", "emptied"])
    def test_damaged_files_are_drawn_anew(self, user_cache: Path, damage: str) -> None:
        task = self.task(int.from_bytes(damage.encode()[:4]))
        task.train_batch(0, 1)
        before = set(user_cache.rglob("*"))
        expected = task.batch("validation", np.arange(200))
        path = self.file(user_cache, before)
        content = path.read_bytes()
        record = (len(content) - 66) // 200
        changed = {
            "truncated": content[:-300],
            "longer": content + b"0",
            "header": content[:30] + bytes([content[30] ^ 1]) + content[31:],
            "record": content[:500] + bytes([content[500] ^ 64]) + content[501:],
            "moved": content[:66] + content[66 + record :] + content[66 : 66 + record],
            "emptied": b"",
        }[damage]
        path.write_bytes(changed)
        assert torch.equal(task.batch("validation", np.arange(200)).inputs, expected.inputs)
        assert path.read_bytes() == content
        assert set(user_cache.rglob("*")) - before == {path}

    def test_no_folder_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        batch = self.task(3).batch("train", [0, 1])
        assert batch.targets.sum() == 1
        assert torch.equal(self.task(3).batch("train", [0, 1]).inputs, batch.inputs)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_nothing_is_left_where_a_file_cannot_be_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(self: Path, target: object) -> Path:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        kept = RecordCache(tmp_path / "a.records", b"d" * 32, 3, 4)
        kept.write(np.array([1]), np.ones((1, 4), np.uint8))
        assert list(tmp_path.iterdir()) == []
        assert not kept.read(np.array([1]))[1].any()

    def test_empty_records_differ_from_none(self, tmp_path: Path) -> None:
        kept = RecordCache(tmp_path / "a.records", b"d" * 32, 3, 4)
        kept.write(np.array([1]), np.zeros((1, 4), np.uint8))
        records, found = kept.read(np.arange(3))
        assert found.tolist() == [False, True, False]
        assert not records.any()


class TestOfficialFiles:
    """The official folders and what may be wrong with them."""

    def test_sizes_strata_and_order(self, official: tuple[Path, dict[bytes, int]]) -> None:
        task = Pathfinder(origin="official", data=str(official[0]))  # type: ignore[arg-type]
        assert [task.size(split) for split in SPLITS] == [120, 15, 15]
        assert abs(int(task.batch("validation", np.arange(15)).targets.sum()) - 7.5) == 0.5
        assert task.data_files() == (official[0] / "pathfinder32" / "curv_contour_length_14" / "metadata",)
        assert Pathfinder().data_files() == ()

    def test_the_empty_image_of_the_easy_set(self, tmp_path: Path) -> None:
        """sample_172.png of list 0 is left out in the easy set; any other empty file is refused."""
        images = np.zeros((20, 32, 32), np.uint8)
        folder = write_official(tmp_path, images, [0, 1] * 10, "curv_baseline")
        with (folder / "metadata" / "0.npy").open("a") as file:
            file.write("imgs/0 sample_172.png 172 1 1.0 6 2 2 0.5 1 1\n")
        (folder / "imgs" / "0" / "sample_172.png").write_bytes(b"")
        task = Pathfinder(origin="official", contour_length=6, data=tmp_path)
        assert sum(task.size(split) for split in SPLITS) == 20
        task.batch("train", np.arange(16))
        (folder / "imgs" / "0" / "sample_3.png").write_bytes(b"")
        with pytest.raises(
            DataFormatError, match=r"sample_3\.png is not a PNG image as it should be: the file is empty"
        ):
            for split in SPLITS:
                task.batch(split, np.arange(task.size(split)))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(MissingDataError, match=r"pathfinder128/curv_contour_length_14/metadata.*lra_release"):
            Pathfinder(origin="official", side=128, data=tmp_path).size("train")
        folder = write_official(tmp_path, np.zeros((20, 32, 32), np.uint8), [0, 1] * 10)
        (folder / "imgs" / "0" / "sample_7.png").unlink()
        task = Pathfinder(origin="official", data=tmp_path)
        with pytest.raises(MissingDataError, match=r"sample_7\.png is missing"):
            for split in SPLITS:
                task.batch(split, np.arange(task.size(split)))
        for path in (folder / "metadata").iterdir():
            path.unlink()
        pathfinder_files.official_images.cache_clear()
        with pytest.raises(MissingDataError, match="holds no list"):
            task.size("train")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\x93NUMPY\x01\x00v\x00{'descr': '<U20'}", "it is a numpy array; the official lists are text"),
            (b"\xff\xfe\x00", "it is not text"),
            (b"imgs/0 sample_0.png 0 1\n" * 9, "name 9 images; 10 are needed"),
            (b"../../secret sample_0.png 0 1 1.0\n" * 20, "line 1 is '../../secret"),
            (b"imgs/0 ../sample_0.png 0 1 1.0\n" * 20, "line 1 is 'imgs/0 ../sample_0.png"),
            (b"/etc sample_0.png 0 1 1.0\n" * 20, "line 1 is '/etc"),
            (b"imgs/0 sample_0.png 0 1 1.0\nimgs/0 sample_1.png 0 2 1.0\n", "line 2 is"),
            (b"imgs/0 sample_0.png\n" * 20, "the label 0 or 1"),
            (b"", "name 0 images"),
            (b"\n" * ((1 << 24) + 1), "a list has at most 16,777,216"),
        ],
    )
    def test_hostile_lists(self, tmp_path: Path, content: bytes, message: str) -> None:
        folder = tmp_path / "lra_release" / "pathfinder32" / "curv_contour_length_14" / "metadata"
        folder.mkdir(parents=True)
        (folder / "0.npy").write_bytes(content)
        with pytest.raises(DataFormatError, match=re.escape(message)):
            Pathfinder(origin="official", data=tmp_path).size("train")

    def test_lists_of_other_names(self, tmp_path: Path) -> None:
        folder = tmp_path / "pathfinder32" / "curv_contour_length_14" / "metadata"
        folder.mkdir(parents=True)
        (folder / "combined.npy").write_text("imgs/0 sample_0.png 0 1 1.0\n" * 20)
        with pytest.raises(DataFormatError, match="not one of the official lists"):
            Pathfinder(origin="official", data=tmp_path).size("train")

    def test_large_images_are_not_read(self, tmp_path: Path) -> None:
        folder = write_official(tmp_path, np.zeros((20, 32, 32), np.uint8), [0, 1] * 10)
        for path in (folder / "imgs" / "0").iterdir():
            path.write_bytes(bytes((1 << 20) + 1))
        with pytest.raises(DataFormatError, match="an image has at most 1,048,576"):
            Pathfinder(origin="official", data=tmp_path).batch("train", [0])


class TestPNG:
    """The reader of small PNG files."""

    @pytest.mark.parametrize("channels", [1, 3])
    def test_every_filter(self, channels: int) -> None:
        state = np.random.default_rng(0)
        images = state.integers(0, 256, (12, 9, 7, channels)).astype(np.uint8)
        files = [png(image, state.integers(0, 5, 9).tolist()) for image in images]
        assert np.array_equal(decode_png(files, range(12), (9, 7, channels)), images)
        assert decode_png([], [], (9, 7, channels)).shape == (0, 9, 7, channels)

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ((5, 4, 8, 0, 0), "it is 5×4 pixels; it should be 4×4"),
            ((4, 4, 16, 0, 0), "it is 16-bit grey; it should be 8-bit grey"),
            ((4, 4, 8, 2, 0), "it is 8-bit RGB; it should be"),
            ((4, 4, 8, 3, 0), "it is 8-bit palette"),
            ((4, 4, 8, 9, 0), "it is 8-bit colour type 9"),
            ((4, 4, 8, 0, 1), "it is 8-bit grey, interlaced"),
            ((2**31 - 1, 2**31 - 1, 8, 0, 0), "it is 2147483647×2147483647 pixels"),
        ],
    )
    def test_other_kinds(self, header: tuple[int, ...], message: str) -> None:
        width, height, depth, colour, interlaced = header
        body = width.to_bytes(4) + height.to_bytes(4) + bytes((depth, colour, 0, 0, interlaced))
        content = png(np.zeros((4, 4, 1), np.uint8), [0] * 4, header=body)
        with pytest.raises(DataFormatError, match=re.escape(f"name is not a PNG image as it should be: {message}")):
            decode_png([content], ["name"], (4, 4, 1))

    @pytest.mark.parametrize(
        ("pixels", "message"),
        [
            (zlib.compress(bytes(10**7)), "more pixels than its size says"),
            (zlib.compress(bytes(19)), "fewer pixels than its size says"),
            (zlib.compress(bytes(20))[:-5], "its pixels are truncated"),
            (zlib.compress(bytes(range(20)))[:-9], "fewer pixels"),
            (b"not compressed", "cannot be decompressed"),
            (zlib.compress(bytes([5, 0, 0, 0, 0] * 4)), "a filter that PNG lacks"),
        ],
    )
    def test_hostile_pixels(self, pixels: bytes, message: str) -> None:
        header = (4).to_bytes(4) * 2 + bytes((8, 0, 0, 0, 0))
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        good = png(np.zeros((4, 4, 1), np.uint8), [0] * 4)
        with pytest.raises(DataFormatError, match=f"second is not .*{message}"):
            decode_png([good, b"\x89PNG\r\n\x1a\n" + parts], ["first", "second"], (4, 4, 1))

    def test_truncated_or_altered_anywhere(self) -> None:
        """Cut or changed at any byte, an image is refused in our words or read as it was."""
        image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
        content = png(image, [0, 1, 2, 4])
        for place in range(len(content)):
            altered = content[:place] + bytes([content[place] ^ 0x21]) + content[place + 1 :]
            for given in (content[:place], altered):
                try:
                    read = decode_png([given], ["name"], (4, 4, 3))
                except DataFormatError as error:
                    assert "name is not a PNG image" in str(error)
                    continue
                assert np.array_equal(read[0], image)
