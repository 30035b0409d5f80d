"""What a person sees of a task: decoded examples, sizes, chance and source; and the table of all tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from specreg.studies import data_files, members
from specreg.studies.building import make_checked, make_task, task_settings
from specreg.studies.commands import setting
from specreg.studies.console import Output, printable
from specreg.tasks.task import Batch, RegressionTask, SpectralNeed, Split, Task

SHOWN_STEPS = 400  # of a long sequence
SHADES = " .:-=+*#%@"  # from dark to light, two characters a pixel
COLUMNS = ("task", "probes", "length", "classes", "chance", "known spectral need", "source")


def show(
    name: str, settings: Sequence[str], examples: int, data: Path | None, download: bool, output: Output
) -> dict[str, Any]:
    """Print a task's facts and some validation examples; the same as data. Its files are downloaded if asked."""
    changes = dict(setting(text) for text in settings) | ({} if data is None else {"data": str(data)})
    task = make_task(task_settings(name) | changes)
    if download:
        data_files.fetch_missing(task, output.say)
    data_files.require(task)
    batch: Batch = make_checked(lambda: next(iter(task.batches("validation", examples))))
    facts = facts_of(task)
    shown = [example(task, batch, row) for row in range(min(examples, len(batch)))]
    if not output.json:
        for key, value in facts.items():
            print(f"{key:10} {printable(str(value))}")
        for row, each in enumerate(shown):
            print(f"\nexample {row}")
            for key, value in each.items():
                print(indented(key, value))
    return {**facts, "examples": shown}


def facts_of(task: Task) -> dict[str, Any]:
    """Sizes, chance and source."""
    sizes = {split: task.size(split) for split in get_args(Split)}
    return {
        "probes": task.probes,
        "sizes": ", ".join(f"{split} {'endless' if size is None else f'{size:,}'}" for split, size in sizes.items()),
        "length": task.max_length,
        "inputs": f"{task.vocab_size} tokens" if task.vocab_size else f"{task.channels} values a step",
        "answers": f"{task.num_classes} {'numbers' if isinstance(task, RegressionTask) else 'classes'}"
        + (", one a position" if task.per_position else ", one a sequence")
        + (", decoded from the last state alone" if task.from_last_state else ""),
        "chance": f"{task.chance:.4g}",
        "need": described(task.need) or "nothing known",
        "also at": ", ".join(task.extrapolations()) or "no other size",
        "presets": ", ".join(task.presets()),
        "source": task.source,
    }


def described(need: SpectralNeed) -> str:
    """A spectral need in a few words."""
    parts = [f"memory {need.memory}"] if need.memory else []
    parts += [f"lag{'s' * (len(need.lags) > 1)} {listed(need.lags)}"] if need.lags else []
    parts += [f"period{'s' * (len(need.periods) > 1)} {listed(need.periods)}"] if need.periods else []
    return "; ".join([*parts, *([need.note] if need.note else [])])


def listed(numbers: Sequence[int]) -> str:
    """The first of many numbers."""
    return ", ".join(map(str, numbers[:6])) + (", …" if len(numbers) > 6 else "")


def example(task: Task, batch: Batch, row: int) -> dict[str, str]:
    """One example: its input, decoded or drawn, and the answers that are scored."""
    length = batch.lengths[row]
    if length.dim():  # two sequences
        inputs = {f"input {side + 1}": tokens(task, batch.inputs[row, side, : length[side]]) for side in range(2)}
    elif task.vocab_size is not None:
        inputs = {"input": tokens(task, batch.inputs[row, :length])}
    elif task.image_shape is not None:
        inputs = {"input": drawing(batch.inputs[row].mean(-1).reshape(task.image_shape).numpy())}
    else:
        inputs = {"input": values(batch.inputs[row, :length])}
    return inputs | {"scored": answers(task, batch, row)}


def tokens(task: Task, sequence: torch.Tensor) -> str:
    """Token names: as text where each is one character, else with blanks between."""
    names = [task.token_name(token) for token in sequence[:SHOWN_STEPS].tolist()]
    text = ("" if all(len(name) == 1 for name in names) else " ").join(names)
    return text + (" …" if len(sequence) > SHOWN_STEPS else "")


def values(sequence: torch.Tensor) -> str:
    """Real values, one bracket a step where there are several channels."""
    steps = (" ".join(f"{value:.3g}" for value in step) for step in sequence[: SHOWN_STEPS // 4].tolist())
    text = " ".join(f"({step})" if sequence.shape[1] > 1 else step for step in steps)
    return text + (" …" if len(sequence) > SHOWN_STEPS // 4 else "")


def answers(task: Task, batch: Batch, row: int) -> str:
    """What is right: the class, or position and class of each scored position."""
    targets = batch.targets[row]
    if targets.is_floating_point():
        scored = targets[batch.scored[row]]
        shown = " ".join(f"{value:.4g}" for value in scored[:20].tolist())
        return f"{shown}{' …' * (len(scored) > 20)} within {getattr(task, 'tolerance', 0):g}"
    if not task.per_position:
        return task.class_name(int(targets))
    places = batch.scored[row].nonzero().flatten().tolist()
    pairs = (f"{place}→{task.class_name(int(targets[place]))}" for place in islice(places, 40))
    return f"{len(places)} positions: " + " ".join(pairs) + (" …" if len(places) > 40 else "")


def drawing(image: NDArray[np.float32]) -> str:
    """An image in characters, at most 64 pixels wide."""
    step = -(-image.shape[1] // 64)
    image = image[: image.shape[0] // step * step, : image.shape[1] // step * step]
    means = image.reshape(image.shape[0] // step, step, image.shape[1] // step, step).mean((1, 3))
    low, high = float(means.min()), float(means.max())
    shades = ((means - low) / (high - low or 1) * (len(SHADES) - 1)).round().astype(int)
    return "\n" + "\n".join("".join(2 * SHADES[shade] for shade in line) for line in shades)


def indented(key: str, text: str) -> str:
    """Key and text, later lines under the first."""
    return f"  {key:8} " + "\n           ".join(printable(line) for line in text.split("\n"))


def table(output: Output) -> list[dict[str, Any]]:
    """Print the table of all tasks, at their default settings; the same as data."""
    rows = [facts_row(name, cls()) for name, cls in sorted(members.tasks().items())]
    if not output.json:
        print(markdown(rows))
    return rows


def facts_row(name: str, task: Task) -> dict[str, Any]:
    """A task's row; what only its files, which may not be here, could tell is left open."""
    numbers = "numbers" if isinstance(task, RegressionTask) else ""
    cells = (
        f"`{name}`",
        task.probes,
        told(lambda: str(task.max_length)),
        told(lambda: f"{task.num_classes} {numbers}".strip()),
        told(lambda: f"{task.chance:.3g}"),
        described(task.need),
        task.source,
    )
    return dict(zip(COLUMNS, cells, strict=True))


def told(fact: Callable[[], str]) -> str:
    """A fact, or that it stands in the data."""
    try:
        return fact()
    except (FileNotFoundError, ImportError):
        return "from the data"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |" for row in rows)])
