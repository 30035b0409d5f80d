"""What `specreg list` shows: each member with its first sentence and its settings."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

from specreg.studies import definition, members
from specreg.studies.console import Output, trimmed

HANDED_IN = ("self", "init")


def show(kind: str, output: Output) -> list[dict[str, Any]]:
    """Print the members of a kind and return them as data."""
    found = entries(kind)
    if not output.json:
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 1, 0), show_header=False)
        table.add_column(no_wrap=True, style="bold")
        table.add_column()
        for entry in found:
            table.add_row(entry["name"], entry["summary"] + (f"\n{entry['form']}" if entry["form"] else ""))
        console = output.console()
        with trimmed(console):
            console.print(table)
    return found


def entries(kind: str) -> list[dict[str, Any]]:
    """Name, first sentence and form of each member."""
    if kind == "studies":
        return [{"name": name, "summary": _docstring(name), "form": ""} for name in definition.studies_available()]
    classes = {
        "models": members.models,
        "tasks": members.tasks,
        "targets": members.targets,
        "penalties": members.penalties,
    }
    return [
        {"name": name, "summary": members.summary(member), "form": form(name, member, kind)}
        for name, member in sorted(classes[kind]().items())
    ]


def form(name: str, member: type, kind: str) -> str:
    """How a member is written: `ring(r_min, r_max, max_phase=None)`, or its settings for `--set`."""
    parameters = [p for p in inspect.signature(member).parameters.values() if p.name not in HANDED_IN]
    if kind in ("targets", "penalties"):
        return f"{name}({', '.join(_plain(p) for p in parameters)})"
    return " ".join(_plain(p, none="none") for p in parameters)


def _docstring(study: str) -> str:
    """A study module's first sentence, without importing it."""
    source = Path(__file__).parent / f"{study.replace('-', '_')}.py"
    return (ast.get_docstring(ast.parse(source.read_text())) or "").split("\n\n")[0].replace("\n", " ")


def _plain(parameter: inspect.Parameter, none: str = "None") -> str:
    if parameter.default is parameter.empty:
        return parameter.name
    return f"{parameter.name}={none if parameter.default is None else parameter.default}"
