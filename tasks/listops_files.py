"""The official files of ListOps: one expression and its value a line."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from specreg.tasks.files import ENVIRONMENT_VARIABLE, DataFormatError, Flat, MissingDataError, cached, digest
from specreg.tasks.listops_trees import DIGIT, END, OPERATOR, PADDING, VOCABULARY
from specreg.tasks.task import Split

__all__ = ["FILES", "load"]

FILES: dict[Split, str] = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
"""The file of each split."""

_FOLDERS = ("", "listops-1000", "listops")
_READER = 1
_EVALUATED = 1000  # lines of a file whose value is worked out again
_TOKENS = {name.encode(): token for token, name in enumerate(VOCABULARY) if token != PADDING}
_OPERATORS: tuple[Callable[[list[int]], int], ...] = (
    min,
    max,
    lambda values: int(np.median(values)),
    lambda values: sum(values) % 10,
)


@cache
def load(directory: Path, name: str) -> Flat:
    """Read one file once a process, from the cache where it was read before."""
    path = _found(directory, name)
    return cached("listops", lambda: _parse(path), source=digest(path), version=_READER, settings={})


def _found(directory: Path, name: str) -> Path:
    for folder in _FOLDERS:
        if (path := directory / folder / name).is_file():
            return path
    raise MissingDataError(
        f"{name} was not found in {directory}, nor in its folders listops-1000 and listops. It is one of the three "
        f"files basic_train.tsv, basic_val.tsv and basic_test.tsv of the Long Range Arena; another directory is named "
        f"by the task's `data` field (`--data` on the command line) or the environment variable "
        f"{ENVIRONMENT_VARIABLE}, and without `files` the task generates its own trees"
    )


def _parse(path: Path) -> Flat:
    with path.open("rb") as file:
        if file.readline().split() != [b"Source", b"Target"]:
            raise _wrong(path, 1, "the columns should be Source and Target, separated by a tab")
        rows = [_row(path, number, line) for number, line in enumerate(file, start=2)]
    if not rows:
        raise _wrong(path, 2, "there is no example")
    for number, (tokens, label) in enumerate(rows[:_EVALUATED], start=2):
        if (value := _value(tokens)) != label:
            raise _wrong(path, number, f"the expression is worth {value} and the target is {label}")
    lengths = [len(tokens) for tokens, _ in rows]
    return Flat(
        data=np.frombuffer(b"".join(tokens for tokens, _ in rows), dtype=np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=np.array([label for _, label in rows], dtype=np.uint8),
        notes={},
    )


def _row(path: Path, number: int, line: bytes) -> tuple[bytes, int]:
    """Return one example's tokens and target; parentheses, which the binary form of the tree needs, are left out."""
    source, _, target = line.rstrip(b"\r\n").partition(b"\t")
    try:
        tokens = bytes(_TOKENS[word] for word in source.translate(None, b"()").split())
    except KeyError as error:
        raise _wrong(path, number, f"{error} is no token of ListOps") from error
    if len(target) != 1 or not target.isdigit():
        raise _wrong(path, number, f"the target is {target!r} and should be a digit")
    if not tokens or tokens.count(END) != sum(tokens.count(OPERATOR + kind) for kind in range(4)):
        raise _wrong(path, number, "operators and closing brackets are not equally many")
    return tokens, int(target)


def _value(tokens: bytes) -> int | None:
    """Return what an expression is worth; None where it is none."""
    open_operators: list[tuple[int, list[int]]] = []
    value: int | None = None
    for place, token in enumerate(tokens):
        if OPERATOR <= token < END:
            open_operators.append((token, []))
            continue
        if token == END:
            if not open_operators or not open_operators[-1][1]:
                return None
            operator, arguments = open_operators.pop()
            value = _OPERATORS[operator - OPERATOR](arguments)
        else:
            value = token - DIGIT
        if open_operators:
            open_operators[-1][1].append(value)
        elif place < len(tokens) - 1:
            return None
    return None if open_operators else value


def _wrong(path: Path, line: int, what: str) -> DataFormatError:
    return DataFormatError(
        f"{path} is not a ListOps file of the Long Range Arena, line {line}: {what}. Replace it by the official file"
    )
