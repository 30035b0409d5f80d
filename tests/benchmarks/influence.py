"""Influence at 24 lags and effective memory at length 4096, and windows of rank-one factors, against the recurrence.

Ours against impulses at 32 sources sent through the step-by-step recurrence, forward and gradient, turn by turn in one
process: medians of CPU time, their ratio, and our peak of memory (what torch allocated and had not yet freed, by its
profiler, the gradients included and the inputs not). Budgets: 0.5 s and 50 MiB for scalar and diagonal structure, 3 s
for delta rules. Windows of 64 steps of n = 64, T = 1024: 326 ms to apply and 60 MiB to store where they overlap, 18 ms
and 1 MiB with stride 64; beside them what it takes to write the products out.
Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/influence.py [repetitions]``; the exit status counts misses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from specreg.invariants import effective_memory, log_spaced_lags
from specreg.operators import Diagonal, ScaledIdentity, StructuredOperator
from specreg.operators.householder import HouseholderProduct, RankOneUpdate
from specreg.system import System

LENGTH, SOURCES, MIB = 4096, 32, 2**20
Case = tuple[Callable[[], System], list[Tensor]]


def leaf(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_()


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(shape, dtype=torch.float64), dim=-1)


def case(
    operator: Callable[..., StructuredOperator],
    fields: list[Tensor],
    heads: int,
    size: int,
    dtype: torch.dtype = torch.float64,
) -> Case:
    keys, queries = (leaf(unit(1, LENGTH, heads, size).to(dtype)) for _ in range(2))
    values = torch.zeros(1, LENGTH, heads, 1, 1, dtype=torch.float64)
    return (
        lambda: System(operator(*fields), keys.unsqueeze(-1), queries.unsqueeze(-2), values),
        [*fields, keys, queries],
    )


def cases() -> dict[str, tuple[Case, float, float]]:
    """Each structure with its budgets in seconds and MiB."""

    def decay(*shape: int) -> Tensor:
        return leaf(-0.01 * torch.rand(1, LENGTH, *shape, dtype=torch.float64))

    def beta(*shape: int) -> Tensor:
        return leaf(torch.rand(1, LENGTH, *shape, dtype=torch.float64))

    return {
        "scalar, 4 heads of 64": (case(lambda a: ScaledIdentity(a, 64), [decay(4)], 4, 64), 0.5, 50),
        "diagonal, 64 states": (case(Diagonal, [decay(1, 64)], 1, 64), 0.5, 50),
        "diagonal, 4 heads of 64": (case(Diagonal, [decay(4, 64)], 4, 64), 0.5, 50),
        "complex diagonal, 64": (
            case(complex_diagonal, [decay(1, 64), decay(1, 64)], 1, 64, torch.complex128),
            0.5,
            50,
        ),
        "delta, 1 head of 64": (case(RankOneUpdate, [decay(1), beta(1), leaf(unit(1, LENGTH, 1, 64))], 1, 64), 3, 1e9),
        "delta, 4 heads of 64": (case(RankOneUpdate, [decay(4), beta(4), leaf(unit(1, LENGTH, 4, 64))], 4, 64), 3, 1e9),
        "delta product of 2, 64": (
            case(HouseholderProduct, [decay(1), beta(1, 2), leaf(unit(1, LENGTH, 1, 2, 64))], 1, 64),
            3,
            1e9,
        ),
    }


def complex_diagonal(log_magnitude: Tensor, angle: Tensor) -> Diagonal:
    return Diagonal(log_magnitude, angle=angle)


def by_influence(make: Callable[[], System], parameters: Sequence[Tensor]) -> None:
    total = torch.stack([part.mean() for part in make().influence(log_spaced_lags(LENGTH))]).sum()
    torch.autograd.grad(total, parameters)


def by_memory(make: Callable[[], System], parameters: Sequence[Tensor]) -> None:
    torch.autograd.grad(effective_memory(make()).sum(), parameters)


def by_impulses(make: Callable[[], System], parameters: Sequence[Tensor]) -> None:
    """One recurrence with a column for each source: what 32 sources say, exact for these."""
    system = make()
    heads = system.values.shape[2]
    values = torch.zeros(1, LENGTH, heads, 1, SOURCES, dtype=torch.float64)
    values[:, torch.arange(SOURCES) * (LENGTH // SOURCES), :, :, torch.arange(SOURCES)] = 1
    total = replace(system, values=values).unroll().abs().mean()
    torch.autograd.grad(total, parameters)


SIDES = {"influence": by_influence, "memory": by_memory, "impulses": by_impulses}


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def peak(function: Callable[[], object]) -> float:
    """MiB that were allocated and not yet freed at the worst moment."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / MIB


def windows() -> int:
    """Eigenvalue-ready windows of rank-one factors, and their dense products, forward alone."""
    keys, beta = unit(1, 1024, 1, 64), torch.rand(1, 1024, 1, dtype=torch.float64)
    operator = RankOneUpdate(torch.zeros(1, 1024, 1, dtype=torch.float64), beta, keys)
    vector = unit(1, 1024, 1, 64)
    over = 0
    for name, stride, budget, most in (("overlapping", 1, 0.326, 60), ("strided", 64, 0.018, 1)):
        count = 960 // stride + 1

        def applied(stride: int = stride, count: int = count) -> Tensor:
            return operator.window(64, stride).mv(vector[:, :count])

        def stored(stride: int = stride) -> Tensor:
            return operator.window(64, stride).dense()

        held = peak(lambda stride=stride: operator.window(64, stride))  # type: ignore[misc]
        for what, function in (("applied", applied), ("written out", stored)):
            function()
            spent, memory = median(seconds(function) for _ in range(5)), peak(function)
            missed = what == "applied" and (spent > budget or held > most)
            over += missed
            print(
                f"windows of 64, {name:11} {what:11} {1e3 * spent:7.1f} ms, stored {held:.1f} MiB, passing {memory:.1f}"
                f"{' OVER' * missed}"
            )
    return over


def compare(name: str, one: Case, budget: float, most: float, repetitions: int) -> int:
    """One structure, turn by turn; how many of its two lines are over budget."""
    sides = {what: partial(function, *one) for what, function in SIDES.items()}
    times: dict[str, list[float]] = {what: [] for what in sides}
    for repetition in range(repetitions + 1):
        for what, function in sides.items():
            if what != "impulses" or repetition < 2:  # the recurrence is slow: once to warm up, once to tell
                times[what].append(seconds(function))
    peer, over = times["impulses"][-1], 0
    for what in ("influence", "memory"):
        spent, memory = median(times[what][1:]), peak(sides[what])
        missed = spent > budget or memory > most
        over += missed
        print(
            f"{name:24} {what:10} {spent:6.3f} s {memory:7.1f} MiB   32 impulses {peer:6.2f} s   ×{spent / peer:.3f}"
            f"{' OVER' * missed}"
        )
    return over


def main(repetitions: int = 3) -> int:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), float64, T {LENGTH}, forward and gradient")
    torch.manual_seed(0)
    over = windows()
    for name, (one, budget, most) in cases().items():
        over += compare(name, one, budget, most, repetitions)
    return over


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
