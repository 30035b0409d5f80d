"""How a command speaks: results on stdout, talk on stderr, one JSON document if asked, one line for an error."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specreg.studies.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Output:
    """The options that every command has."""

    json: bool = False  # one JSON document on stdout, everything else on stderr
    quiet: bool = False  # no talk
    debug: bool = False  # stack traces

    def say(self, text: str) -> None:
        """A line of talk."""
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)

    def console(self, *, stderr: bool = False) -> Console:
        """rich's console: plain where the stream is no terminal or NO_COLOR is set, as wide as the terminal."""
        from rich.console import Console

        return Console(stderr=stderr, highlight=False, emoji=False, markup=False)

    @contextmanager
    def progress(self, description: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
        """A bar with the time left on a terminal, nothing elsewhere; gives a function of (done, note)."""
        if self.quiet or self.json or not sys.stderr.isatty():
            yield lambda count, note: None
            return
        bar = _bar(self.console(stderr=True))
        with bar:
            task = bar.add_task(description, total=total, completed=done, note="")
            yield lambda count, note: bar.update(task, completed=count, note=printable(note))


@contextmanager
def trimmed(console: Console) -> Iterator[None]:
    """Print without the blanks that fill a table's lines, where the reader is no terminal."""
    if console.is_terminal:
        yield
        return
    with console.capture() as capture:
        yield
    console.file.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))


def run(output: Output, body: Callable[[], Any]) -> int:
    """Run a command's body; print its result as JSON if asked; turn what goes wrong into one line and an exit code."""
    try:
        data = body()
    except KeyboardInterrupt as stop:
        return failed(output, INTERRUPTED, "interrupted", str(stop) or "interrupted")
    except UsageError as error:
        return failed(output, WRONG_USAGE, "usage", str(error), error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing more to say
        return 128 + signal.SIGPIPE
    except Exception as error:
        text = (
            f"{type(error).__name__}: {error}" if not isinstance(error, (RuntimeError, ArithmeticError)) else str(error)
        )
        return failed(output, FAILED, type(error).__name__, text, error)
    if output.json:
        print(json.dumps({"ok": True, "data": data}, allow_nan=False))
    return DONE


def failed(output: Output, code: int, kind: str, message: str, error: BaseException | None = None) -> int:
    """Say what went wrong, on stderr and, if asked, as the JSON document."""
    if output.debug and error is not None:
        traceback.print_exception(error)
    if output.json:
        print(json.dumps({"ok": False, "error": {"kind": kind, "message": printable(message), "exit": code}}))
    print(f"specreg: {printable(message)}", file=sys.stderr)
    return code


def printable(text: str) -> str:
    """Text without what could command a terminal: control and direction characters are written as escapes."""
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf")
        else char.encode("unicode_escape").decode()
        for char in text
    )


def _bar(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
    )
