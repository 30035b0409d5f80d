"""What test.json files of several seeds say together; they may be damaged, or hold what nobody expects."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from specreg.studies.report_statistics import Estimate


def usable(value: Any) -> TypeGuard[int | float]:
    """Whether a stored metric is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def estimated(values: Iterable[Any]) -> Estimate | None:
    """Mean and spread over the seeds that have a figure; None where none has."""
    known = [float(value) for value in values if usable(value)]
    return Estimate.of(known) if known else None


def accuracies_by_size(tests: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Accuracy at each size that was not trained on and was measured, shorter ones first."""
    tables = [table for test in tests if isinstance(table := test.get("extrapolations"), Mapping)]
    entries: dict[str, list[Mapping[str, Any]]] = {}
    for name, entry in (item for table in tables for item in table.items()):
        if isinstance(entry, Mapping):
            entries.setdefault(str(name), []).append(entry)
    found = {name: estimated(entry.get("accuracy") for entry in entries[name]) for name in by_length(entries)}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def by_length(entries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The names of sizes, by the longest sequence of each; JSON keeps no order."""

    def length(name: str) -> float:
        known = entries[name][0].get("length")
        return float(known) if usable(known) else math.inf

    return sorted(entries, key=length)
