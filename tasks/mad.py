"""Mechanistic architecture design (MAD): what its six tasks share, its settings, its accuracy and its score."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.streams import words
from specreg.tasks.task import UNSCORED, GeneratedTask

__all__ = [
    "BATCH_SIZE",
    "EPOCHS",
    "LEARNING_RATES",
    "SETTINGS",
    "WEIGHT_DECAYS",
    "MADScore",
    "MADTask",
    "below_each",
    "macro_accuracy",
    "mad_score",
    "previous_places",
    "words_at",
]

LEARNING_RATES = (1e-4, 5e-4, 1e-3)
"""Each setting is run with every one of these, decayed by a cosine to 1e-6 …"""
WEIGHT_DECAYS = (0.0, 0.1)
"""… and every one of these: six runs, the best of which counts."""
EPOCHS = 200
"""Passes over the training set."""
BATCH_SIZE = 128
"""Examples a step, and a batch whose accuracy is taken."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2⁶⁴ over the golden ratio, the step of SplitMix64

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]


def _varied(baseline: Mapping[str, Any], **changes: tuple[str, tuple[Any, ...]]) -> dict[str, dict[str, Any]]:
    """Return the baseline and each change of one field from it: field = (name of the change, values)."""
    varied = {"mad": dict(baseline)}
    for field, (name, values) in changes.items():
        varied |= {f"mad-{name}-{value}": {**baseline, field: value} for value in values}
    return varied


_LENGTHS, _EXAMPLES = ("length", (256, 512, 1024)), ("train", (6400, 3200, 1600, 800))

SETTINGS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "in-context-recall": _varied(
        {"vocab_size": 16, "length": 128, "faithful": True},
        vocab_size=("vocab", (32, 64, 128)),
        length=_LENGTHS,
        train_examples=_EXAMPLES,
    ),
    "noisy-recall": _varied(
        {"vocab_size": 32, "length": 128, "noise": 0.2, "noise_tokens": 16, "faithful": True},
        vocab_size=("vocab", (48, 80, 144)),
        length=_LENGTHS,
        train_examples=_EXAMPLES,
        noise=("noise", (0.4, 0.6, 0.8)),
    ),
    "fuzzy-recall": _varied(
        {"vocab_size": 16, "length": 128, "motif": 3, "faithful": True},
        vocab_size=("vocab", (32, 64, 128)),
        length=_LENGTHS,
        train_examples=_EXAMPLES,
    ),
    "memorization": _varied(
        {"vocab_size": 256, "length": 32, "train_examples": 256},
        vocab_size=("vocab", (512, 1024, 2048, 4096, 8192)),
    ),
    "compression": _varied(
        {"vocab_size": 16, "length": 32, "readout": "last", "faithful": True},
        vocab_size=("vocab", (32, 64, 128)),
        length=("length", (64, 128, 256)),
        train_examples=_EXAMPLES,
    ),
    "mad-selective-copying": _varied(
        {"vocab_size": 16, "length": 256, "tokens": 16, "faithful": True},
        vocab_size=("vocab", (32, 64, 128)),
        length=("length", (512, 1024)),
        train_examples=_EXAMPLES,
        tokens=("copy", (32, 64, 96)),
    ),
}
"""The published settings: task → name → fields. "mad" is the baseline, the others change one field of it.

They keep the reference's defects (`faithful`), since published numbers come with them; without it the same fields give
the corrected tasks.
"""


@dataclass(frozen=True, kw_only=True)
class MADTask(GeneratedTask):
    """What the six tasks have in common: tokens in, a class for each position out.

    Splits have streams of their own. At the published sizes no sequence comes twice; where settings leave few
    sequences, some occur in two splits.
    """

    name: ClassVar[str]
    """The task's key in `SETTINGS`."""

    train_examples: int | None = 12_800
    """Size of the training set; None: an endless stream."""
    validation_examples: int = 1280
    """Size of the validation set, which the reference has not."""
    test_examples: int = 1280
    """Size of the test set."""
    vocab_size: int = 16
    """Vocabulary V, special tokens among it."""
    length: int = 128
    """Sequence length L."""

    @property
    def channels(self) -> int:
        """Inputs are tokens: 0."""
        return 0

    @property
    def num_classes(self) -> int:
        """The vocabulary V."""
        return self.vocab_size

    @property
    def max_length(self) -> int:
        """The length L of a sequence."""
        return self.length

    @property
    def per_position(self) -> bool:
        """A target a position: True."""
        return True

    @classmethod
    def presets(cls) -> Mapping[str, Self]:
        """Return "tiny" and the published settings, with the reference's defects: see `mad.SETTINGS`."""
        return {"tiny": cls.tiny(), **{name: cls(**fields) for name, fields in SETTINGS[cls.name].items()}}


def macro_accuracy(
    answers: Tensor,  # (...), classes
    targets: Tensor,  # (...), UNSCORED where nothing is scored
    num_classes: int,
) -> float:
    """Return the accuracy that MAD publishes: the mean over classes of the share of their positions answered right.

    As torchmetrics' `MulticlassAccuracy` has it by default: a class that is neither a target nor an answer is left out,
    and one that is answered but never a target counts as 0. The reference takes it for each test batch of `BATCH_SIZE`
    examples and then the mean over batches. NaN where nothing is scored.
    """
    scored = targets != UNSCORED
    answers, targets = answers[scored], targets[scored]
    right = targets[answers == targets].bincount(minlength=num_classes).double()
    asked, answered = targets.bincount(minlength=num_classes), answers.bincount(minlength=num_classes)
    return float((right / asked.clamp(min=1))[asked + answered > 0].mean())


@dataclass(frozen=True)
class MADScore:
    """A model's score."""

    tasks: Mapping[str, float]
    """Each task's mean over its settings of the best run's accuracy."""

    @property
    def mean(self) -> float:
        """The mean over the tasks."""
        return math.fsum(self.tasks.values()) / len(self.tasks)


def mad_score(
    accuracies: Mapping[tuple[str, str], Iterable[float]],  # (task, setting) → one accuracy a run
) -> MADScore:
    """Return the aggregate score: the best run of each setting, their mean over settings, and that over tasks.

    Accuracies are `macro_accuracy` on the test split. Runs whose accuracy is NaN are left out, as the reference does.
    Raises ValueError where a setting of a task has no run, or a setting or task is not one of `SETTINGS`.
    """
    expected = {(task, setting) for task, settings in SETTINGS.items() for setting in settings}
    best = {key: max((run for run in runs if not math.isnan(run)), default=None) for key, runs in accuracies.items()}
    if unknown := sorted(set(best) - expected):
        raise ValueError(f"{unknown[0]} is no setting of MAD; there are the (task, setting) pairs of mad.SETTINGS")
    if missing := sorted(key for key in expected if best.get(key) is None):
        listed = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
        raise ValueError(f"{len(missing)} of {len(expected)} settings have no run: {listed}; the score is over all")
    found = {key: value for key, value in best.items() if value is not None}
    means = {task: math.fsum(found[task, name] for name in SETTINGS[task]) / len(SETTINGS[task]) for task in SETTINGS}
    return MADScore(means)


def words_at(
    keys: Words,  # (B,)
    positions: Integers,  # (B, N)
) -> Words:  # (B, N)
    """Return the words of each stream at positions of its own: word n of key k is word 0 of key k + n steps."""
    states = keys[:, None] + positions.astype(np.uint64) * _GOLDEN
    return words(states.reshape(-1), 0, 1).reshape(states.shape)


def below_each(
    draws: Words,  # (...)
    bounds: Integers,  # (...), 1 … 2³²
) -> Integers:  # (...)
    """Return integers uniform below bounds of their own, as `streams.below` does below one for all."""
    high: Words = ((draws >> np.uint64(32)) * bounds.astype(np.uint64)) >> np.uint64(32)
    return high.astype(np.int64)


def previous_places(
    names: Integers,  # (B, N), not negative
) -> Integers:  # (B, N)
    """Return where in its row each name stood last before, −1 where it is new."""
    count = names.shape[1]
    ordered = np.sort(names * count + np.arange(count), axis=1)  # by name, then by place
    places, sorted_names = ordered % count, ordered // count
    again = sorted_names[:, 1:] == sorted_names[:, :-1]
    previous = np.full_like(names, -1)
    np.put_along_axis(previous, places[:, 1:], np.where(again, places[:, :-1], -1), axis=1)
    return previous
