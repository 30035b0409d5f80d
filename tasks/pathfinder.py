"""Pathfinder-like images: are two markers joined by a contour of dashes? Pathfinder and Path-X, drawn or read."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from specreg.tasks.contour_stamps import GEOMETRY_VERSION, Geometry, published
from specreg.tasks.contours import draw_images
from specreg.tasks.files import cache_directory, data_directory
from specreg.tasks.pathfinder_files import LEVELS, OfficialImages, official_images, read_images
from specreg.tasks.record_cache import RecordCache
from specreg.tasks.streams import stream_keys, words
from specreg.tasks.task import Batch, GeneratedTask, SpectralNeed, Split, Task

__all__ = ["Pathfinder"]

_SIDES = (16, 32, 64, 128)
_PAIR_STREAMS = 2**60  # streams from here on draw the labels of pairs; those of images have lower numbers

Bytes = NDArray[np.uint8]
Source = Literal["generated", "official"]


@dataclass(frozen=True, kw_only=True)
class Pathfinder(GeneratedTask):
    """Pathfinder-like images as sequences of pixels: 1 where two markers stand at the ends of one contour of dashes.

    Probes long-range grouping: whether two points thousands of steps apart belong together. Two contours of
    `contour_length` paddles wind through the image among short distractors. One marker stands at the start of a
    contour, the other at the end of the same one (label 1) or of the other (label 0). An image is read row by row; a
    value is (grey/255 − 0.5)/0.5, the S4 repository's scale.

    Rule ("generated"): OUR OWN generator with the published geometry; its images resemble the official ones but are
    not those, so compare numbers with care. A paddle is a line of `paddle_length` pixels; the next one begins two
    margins on and ends on one of the pixels that lie paddle length + margin from the gap's middle, with a probability ∝
    cos²(min(continuity · turn, 90°)); no paddle comes within the margin of another contour or an earlier part of its
    own. The first contour starts in the middle of the image, the second at the seed distance from it; they grow a
    paddle each in turn and both are drawn anew when one is stuck. (On 64 and 128 pixels, where one such pair in 100 to
    10,000 gets through, the second grows when the first is whole.) Five tries are made for each distractor.

        side  paddle  thickness  margin  marker  seed distance  continuity  distractors    contrast
         32     2        0.5       1      1.5          7           1.0      20 paddles     1.5, 2.0
         64     5        1         1      2.5         12           1.8      22 paddles     0.8, 0.8
        128     5        1.5     2 or 3   3           20           1.8      35 paddles     0.9, 0.9

    Distractors have a third of the contours' paddles each; contrasts, of contours and distractors, are relative to the
    markers, and an image is scaled so that its brightest pixel is 255. There are no single paddles, as in the published
    wrapper (the class behind it defaults to them). Lines are drawn at twice the resolution. Directions are whole
    degrees; arithmetic is of integers. Where the published code forgets a contour's last paddle, so that others may
    cross it, ours does not. Labels are balanced: of images 2k and 2k + 1 one has label 1.

    Rule ("official"): the folders `pathfinder32/curv_baseline` (contours of 6 paddles), `…/curv_contour_length_9` and
    `…/curv_contour_length_14` of the Long Range Arena's release, or `pathfinder64`, `pathfinder128`, in the data
    directory (`data`, else SPECREG_DATA, else ~/.cache/specreg). One image of the easiest 32×32 set is an empty file
    and is left out. Of n images n // 10 are for validation, as many for test; the split is FIXED, stratified by label
    and not the S4 repository's draw. `train_examples` and its like play no part.

    Sizes: 160,000 for training, 20,000 for validation, 20,000 for test; T = side². Pathfinder is 32×32 with 14 paddles,
    Path-X 128×128; 16×16 is ours, for tests. Inputs (B, T, 1) float32, targets (B,), 2 classes.

    With `cache`, images drawn once are kept, each for itself, in a file in the user's cache folder
    ($XDG_CACHE_HOME/specreg/read, or ~/.cache/specreg/read): 0.16 GB for Pathfinder's training images and 2.6 GB for
    Path-X's when all were drawn. It may be deleted at any time. Held-out images are kept where training ones are.

    Chance: 1/2, labels being balanced.

    Source: Tay et al. (2020), arXiv:2011.04006; Linsley, Kim, Veerabadran, Windolf, Serre (2018), arXiv:1805.08315.

    Raises ValueError for a side or contour length that is not offered, and when drawing contours for which there is no
    room; MissingDataError and DataFormatError when official images are first asked for.
    """

    probes: ClassVar[str] = "grouping over long distances"
    source: ClassVar[str] = "Tay et al. 2020, arXiv:2011.04006; Linsley et al. 2018, arXiv:1805.08315"
    num_classes: ClassVar[int] = 2
    """Apart and joined."""
    chance: ClassVar[float] = 0.5

    side: int = 32
    """Rows and columns of an image: 32, 64, 128, or 16 for tests."""
    contour_length: int = 14
    """Paddles of a contour: 14, 9 and 6 are the published levels."""
    origin: Source = "generated"
    """Whether images are drawn or read."""
    data: Path | None = None
    """The directory of the official images; None: see the class."""
    cache: bool = True
    """Whether drawn images are kept in a file."""
    train_examples: int | None = 160_000
    validation_examples: int = 20_000
    test_examples: int = 20_000

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.data is not None:
            object.__setattr__(self, "data", Path(self.data))  # a configuration file gives a string
        if self.side not in _SIDES:
            raise ValueError(f"side is {self.side}; images are drawn with one of {', '.join(map(str, _SIDES))}")
        if self.origin not in get_args(Source):
            raise ValueError(f"origin is {self.origin!r}; it is one of {', '.join(get_args(Source))}")
        if self.origin == "official" and (self.side == 16 or self.contour_length not in LEVELS):
            given = f"side is {self.side} and contour_length {self.contour_length}"
            raise ValueError(
                f"{given}; official images have a side of 32, 64 or 128 and contours of 6, 9 or 14 paddles"
            )
        if not 2 <= self.contour_length <= 20:
            raise ValueError(f"contour_length is {self.contour_length}; give 2 … 20 (published are 6, 9 and 14)")
        if self.origin == "generated":
            super().__post_init__()
        else:  # the sizes are those of the files, which are not looked for yet
            Task.__post_init__(self)

    @classmethod
    def tiny(cls) -> Self:
        """Return images of 16×16 pixels with contours of 4 paddles, without a cache."""
        return cls(
            side=16, contour_length=4, cache=False, train_examples=2000, validation_examples=200, test_examples=200
        )

    @property
    def max_length(self) -> int:
        """The pixels of an image."""
        return self.side * self.side

    @property
    def need(self) -> SpectralNeed:
        """Rows lie one side apart, the markers up to the whole image."""
        return SpectralNeed(memory=self.max_length, periods=(self.side,))

    @property
    def image_shape(self) -> tuple[int, int]:
        """The image, row by row."""
        return self.side, self.side

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and the Long Range Arena's tasks, drawn; their easier levels; and the official images."""
        levels = {"easy": 6, "intermediate": 9, "hard": 14}
        drawn = {"pathfinder": cls(), "pathfinder-64": cls(side=64), "path-x": cls(side=128)}
        easier = {f"pathfinder-{name}": cls(contour_length=length) for name, length in levels.items() if length < 14}
        official = {
            "lra-pathfinder": cls(origin="official"),
            "lra-path-x": cls(origin="official", side=128),
        }
        return {"tiny": cls.tiny(), **drawn, **easier, **official}

    def class_name(self, label: int) -> str:
        """Return "joined" or "apart"."""
        return "joined" if label else "apart"

    def data_files(self) -> tuple[Path, ...]:
        """Return the folder of the official lists; `digests` in `specreg.tasks.files` names their content."""
        return (self._official().folder / "metadata",) if self.origin == "official" else ()

    def size(self, split: Split) -> int | None:
        """Return the number of images in a split."""
        if self.origin == "generated":
            return super().size(split)
        return int(self._official().members[split].size)

    def draw(self, split: Split, indices: NDArray[np.int64]) -> Batch:
        """Return the images at `indices`."""
        if self.origin == "official":
            images = self._official()
            chosen = images.members[split][indices]
            pixels, labels = read_images(images, chosen, self.side), images.labels[chosen]
        else:
            labels = self._labels(split, indices)
            pixels = self._pixels(split, indices, labels)
        values = _scale()[pixels.reshape(indices.size, -1, 1)]
        return Batch(torch.from_numpy(values), torch.from_numpy(labels))

    @property
    def geometry(self) -> Geometry:
        """What is drawn, in pixels."""
        return published(self.side, self.contour_length)

    def _labels(self, split: Split, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labels: in each pair of images one is 1, which one is drawn."""
        flips = words(stream_keys(self.seed, split, _PAIR_STREAMS + indices // 2), 0, 1)[:, 0] >> np.uint64(63)
        return (indices + flips.astype(np.int64)) % 2

    def _pixels(self, split: Split, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> Bytes:
        """Return the images from the cache, and those that are not there drawn and kept."""
        kept = self._records(split)
        if kept is None:
            return draw_images(self.geometry, stream_keys(self.seed, split, indices), labels > 0)
        pixels, found = kept.read(indices)
        lacking = np.flatnonzero(~found)
        if lacking.size:
            wanted = indices[lacking]
            drawn = draw_images(self.geometry, stream_keys(self.seed, split, wanted), labels[lacking] > 0)
            pixels[lacking] = drawn.reshape(lacking.size, -1)
            if self._trained(split):
                kept.write(wanted, pixels[lacking])
        return pixels

    def _trained(self, split: Split) -> bool:
        """Whether training images are kept: who only looks at some of another split leaves no file behind."""
        kept = self._records("train")
        return split == "train" or kept is None or kept.path.exists()

    def _records(self, split: Split) -> RecordCache | None:
        count = self.size(split)
        if not self.cache or count is None:
            return None
        said = repr((GEOMETRY_VERSION, self.geometry, self.seed, split, count))
        digest = sha256(said.encode()).digest()
        name = f"pathfinder{self.side}-{split}-{digest.hex()[:16]}.records"
        return RecordCache(cache_directory() / name, digest, count, self.max_length)

    def _official(self) -> OfficialImages:
        return official_images(data_directory(self.data), self.side, LEVELS[self.contour_length])


@cache
def _scale() -> NDArray[np.float32]:
    """Return the value of each grey level; a table is the same everywhere."""
    return ((np.arange(256) / 255 - 0.5) / 0.5).astype(np.float32)
