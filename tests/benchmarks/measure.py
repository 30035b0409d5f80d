"""What the benchmarks share: sides timed in turn, one line for a figure, and the names of peers that are not there.

Scripts import it as a sibling: they are run by their path, ``python tests/benchmarks/x.py``.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from statistics import median

PACKAGES = {
    "curvlinops": "curvlinops-for-pytorch",
    "hessian_eigenthings": "hessian-eigenthings",
    "ot": "POT",
    "xitorch": "xitorch",
}


def installed(module: str) -> bool:
    """Whether a peer can be imported; one line with its name if not."""
    found = importlib.util.find_spec(module) is not None
    if not found:
        print(f"not installed: {PACKAGES[module]} (pip install '.[bench]'): its figures are left out")
    return found


def in_turn(
    sides: Mapping[str, Callable[[], object]],
    repetitions: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each side, one after the other in every round, whose first one changes in turn; one round warms up.

    CPU time, unless another clock is given: a machine that others share hardly changes it.
    """
    names, times = list(sides), {name: list[float]() for name in sides}
    for repetition in range(repetitions + 1):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            start = clock()
            sides[name]()
            times[name].append(clock() - start)
    return {name: found[1:] for name, found in times.items()}


def row(
    what: str,
    ours: float,
    peer: str,
    theirs: float | None,
    unit: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    most_ratio: float | None = None,
    ratio: float | None = None,
) -> bool:
    """Print our figure, the peer's, their ratio and what is allowed of our figure or of the ratio; True for a miss."""
    line = f"{what:<52} ours {ours:<9.4g}"
    if theirs is not None:
        ratio = (ours / theirs if theirs else float("nan")) if ratio is None else ratio
        line += f" {peer} {theirs:<9.4g} ratio {ratio:<8.3g}"
    limits = (("at least", ours, least, unit), ("at most", ours, most, unit), ("at most", ratio, most_ratio, "ratio"))
    given = [(how, figure, limit, name) for how, figure, limit, name in limits if limit is not None]
    over = any(
        figure is None or not (figure >= limit if how == "at least" else figure <= limit)
        for how, figure, limit, _ in given
    )
    allowed = ", ".join(f"{how} {limit:.4g} {name}".strip() for how, _, limit, name in given)
    print(f"{line} {unit:<3} allowed: {allowed or 'no limit set'}{' MISSED' * over}")
    return over


def time_row(
    what: str,
    ours: list[float],
    peer: str,
    theirs: list[float],
    *,
    most: float | None = None,
    most_ratio: float | None = None,
) -> bool:
    """Medians in milliseconds, and the median of the ratios of neighbouring runs; `most` in milliseconds."""
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    first, second = (1e3 * median(times) for times in (ours, theirs))
    return row(what, first, peer, second, "ms", most=most, most_ratio=most_ratio, ratio=ratio)
