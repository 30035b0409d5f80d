"""Mechanistic architecture design (MAD): what its six tasks share, its settings, its accuracy and its score."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specreg.tasks.task import UNSCORED, Task, TokenTask

__all__ = [
    "BATCH_SIZE",
    "EPOCHS",
    "LEARNING_RATES",
    "SETTINGS",
    "WEIGHT_DECAYS",
    "MADScore",
    "MADTask",
    "batch_macro_accuracy",
    "best_runs",
    "macro_accuracy",
    "mad_score",
    "mad_setting",
    "previous_places",
]

LEARNING_RATES = (1e-4, 5e-4, 1e-3)
"""Each setting is run with every one of these, decayed by a cosine to 1e-6 …"""
WEIGHT_DECAYS = (0.0, 0.1)
"""… and every one of these: six runs, the best of which counts."""
EPOCHS = 200
"""Passes over the training set."""
BATCH_SIZE = 128
"""Examples a step, and a batch whose accuracy is taken."""

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


_KEYS = tuple((task, setting) for task, settings in SETTINGS.items() for setting in settings)


@dataclass(frozen=True, kw_only=True)
class MADTask(TokenTask):
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
    def max_length(self) -> int:
        """The length L of a sequence."""
        return self.length

    @property
    def published_accuracy(self) -> Callable[[Sequence[Tensor], Sequence[Tensor]], float]:
        """`macro_accuracy` of each `BATCH_SIZE` test examples, and the mean over those batches."""
        return partial(batch_macro_accuracy, num_classes=self.num_classes)

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


def batch_macro_accuracy(
    answers: Sequence[Tensor],  # one an example, classes
    targets: Sequence[Tensor],  # in the same shapes, UNSCORED where nothing is scored
    num_classes: int,
) -> float:
    """Return the mean over batches of `BATCH_SIZE` examples of `macro_accuracy`; a smaller last batch counts as one."""
    parts = [slice(first, first + BATCH_SIZE) for first in range(0, len(answers), BATCH_SIZE)]
    joined = ((torch.cat(list(answers[part])), torch.cat(list(targets[part]))) for part in parts)
    return math.fsum(macro_accuracy(given, asked, num_classes) for given, asked in joined) / len(parts)


@dataclass(frozen=True)
class MADScore:
    """A model's score, or as much of it as there are runs for."""

    settings: Mapping[tuple[str, str], float]
    """The best run's accuracy at each (task, setting) that has one."""

    @property
    def tasks(self) -> dict[str, float]:
        """Each task's mean over its settings, tasks without a run left out."""
        found = {
            task: [self.settings[task, name] for name in SETTINGS[task] if (task, name) in self.settings]
            for task in SETTINGS
        }
        return {task: math.fsum(values) / len(values) for task, values in found.items() if values}

    @property
    def mean(self) -> float:
        """The mean over the tasks: MAD's score where nothing is missing."""
        return math.fsum(self.tasks.values()) / len(self.tasks)

    @property
    def missing(self) -> tuple[tuple[str, str], ...]:
        """The (task, setting) pairs without a run, in order."""
        return tuple(key for key in _KEYS if key not in self.settings)


def mad_setting(task: Task) -> tuple[str, str] | None:
    """Return which published (task, setting) a task is, whatever its seed and validation set; None: none of them."""
    if not isinstance(task, MADTask):
        return None
    unpublished = {"seed": task.seed, "validation_examples": task.validation_examples}
    named = (name for name in SETTINGS[task.name] if replace(type(task).presets()[name], **unpublished) == task)
    return next(((task.name, name) for name in named), None)


def best_runs(
    accuracies: Mapping[tuple[str, str], Iterable[float]],  # (task, setting) → one accuracy a run
) -> MADScore:
    """Return the best run of each setting; those whose accuracy is NaN are left out, as the reference does.

    Accuracies are the task's `published_accuracy` on the test split. Raises ValueError for a setting or task that is
    not one of `SETTINGS`.
    """
    if unknown := sorted(set(accuracies) - set(_KEYS)):
        raise ValueError(f"{unknown[0]} is no setting of MAD; there are the (task, setting) pairs of mad.SETTINGS")
    known = {key: [run for run in runs if not math.isnan(run)] for key, runs in accuracies.items()}
    return MADScore({key: max(runs) for key, runs in known.items() if runs})


def mad_score(
    accuracies: Mapping[tuple[str, str], Iterable[float]],  # (task, setting) → one accuracy a run
) -> MADScore:
    """Return the aggregate score: the best run of each setting, their mean over settings, and that over tasks.

    As `best_runs`, but raises ValueError where a setting of a task has no run.
    """
    score = best_runs(accuracies)
    if missing := sorted(score.missing):
        listed = ", ".join(map(str, missing[:3])) + (", …" if len(missing) > 3 else "")
        raise ValueError(f"{len(missing)} of {len(_KEYS)} settings have no run: {listed}; the score is over all")
    return score


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
