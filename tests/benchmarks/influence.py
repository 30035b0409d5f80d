"""Influence at 24 lags and effective memory at T = 4096 with gradients: 0.5 s and 50 MiB, 3 s for delta rules.

The peer is the plain formula ‖C_t Λ_t … Λ_{s+1} B_s‖ by dense products for all pairs, with autograd, at length 512,
where it can run; ours must agree there. Peaks are what torch had allocated and not freed, by its profiler, gradients
included and inputs not. Windows of 64 steps of rank-one factors, n = 64, T = 1024: beside them the products written
out. Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/influence.py [repetitions]``; the exit status counts misses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from measure import in_turn, row, time_row
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from specreg.invariants import effective_memory, log_spaced_lags
from specreg.operators import Diagonal, ScaledIdentity, StructuredOperator
from specreg.operators.householder import HouseholderProduct, RankOneUpdate
from specreg.system import System

LENGTH, SHORT, MIB = 4096, 512, 2**20  # steps of the claim and of the peer
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
    length = fields[0].shape[1]
    keys, queries = (leaf(unit(1, length, heads, size).to(dtype)) for _ in range(2))
    values = torch.zeros(1, length, heads, 1, 1, dtype=torch.float64)
    return (
        lambda: System(operator(*fields), keys.unsqueeze(-1), queries.unsqueeze(-2), values),
        [*fields, keys, queries],
    )


def cases(length: int) -> dict[str, tuple[Case, float, float | None]]:
    """Each structure with its budgets in ms and MiB."""

    def decay(*shape: int) -> Tensor:
        return leaf(-0.01 * torch.rand(1, length, *shape, dtype=torch.float64))

    def beta(*shape: int) -> Tensor:
        return leaf(torch.rand(1, length, *shape, dtype=torch.float64))

    def keys(*shape: int) -> Tensor:
        return leaf(unit(1, length, *shape))

    turning = [decay(1, 64), decay(1, 64)]
    return {
        "scalar, 4 × 64": (case(lambda a: ScaledIdentity(a, 64), [decay(4)], 4, 64), 500, 50),
        "diagonal, 64": (case(Diagonal, [decay(1, 64)], 1, 64), 500, 50),
        "diagonal, 4 × 64": (case(Diagonal, [decay(4, 64)], 4, 64), 500, 50),
        "complex diagonal, 64": (case(complex_diagonal, turning, 1, 64, torch.complex128), 500, 50),
        "delta, 64": (case(RankOneUpdate, [decay(1), beta(1), keys(1, 64)], 1, 64), 3000, None),
        "delta, 4 × 64": (case(RankOneUpdate, [decay(4), beta(4), keys(4, 64)], 4, 64), 3000, None),
        "delta product of 2, 64": (case(HouseholderProduct, [decay(1), beta(1, 2), keys(1, 2, 64)], 1, 64), 3000, None),
    }


def complex_diagonal(log_magnitude: Tensor, angle: Tensor) -> Diagonal:
    return Diagonal(log_magnitude, angle=angle)


def influence(make: Callable[[], System]) -> list[Tensor]:
    system = make()
    return system.influence(log_spaced_lags(system.length))


def memory(make: Callable[[], System]) -> list[Tensor]:
    return [effective_memory(make())]


def by_dense_products(make: Callable[[], System]) -> list[Tensor]:
    """I(t, s) of every source s at every reader t, one product a step; those of the same lags as ours."""
    system = make()
    transitions, inputs, readouts = system.transition.dense()[0], system.inputs[0], system.readouts[0]
    states, sizes = inputs[0][..., :0], []
    for transition, source, readout in zip(transitions, inputs, readouts, strict=True):
        states = torch.cat(((transition.to(source.dtype) @ states), source), -1)  # (H, n, t + 1)
        read = readout @ states
        sizes.append((read.real if read.is_complex() else read).abs().squeeze(-2))
    return [
        torch.stack([size[:, -1 - lag] for size in sizes[lag:]]).unsqueeze(0) for lag in log_spaced_lags(system.length)
    ]


def with_gradient(side: Callable[[Callable[[], System]], list[Tensor]], one: Case) -> None:
    make, parameters = one
    torch.autograd.grad(torch.stack([part.mean() for part in side(make)]).sum(), parameters)


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


def windows(repetitions: int) -> int:
    """Products of 64 rank-one factors applied, and written out, forward alone; ours is also what is stored."""
    keys, beta = unit(1, 1024, 1, 64), torch.rand(1, 1024, 1, dtype=torch.float64)
    operator = RankOneUpdate(torch.zeros(1, 1024, 1, dtype=torch.float64), beta, keys)
    vector, misses = unit(1, 1024, 1, 64), 0
    for name, stride, budget, most in (("overlapping", 1, 326, 60), ("strided", 64, 18, 1)):
        count = 960 // stride + 1

        def applied(stride: int = stride, count: int = count) -> Tensor:
            return operator.window(64, stride).mv(vector[:, :count])

        def written_out(stride: int = stride) -> Tensor:
            return operator.window(64, stride).dense()

        times = in_turn({"ours": applied, "written out": written_out}, repetitions)
        what, peer = f"windows of 64, {name}", "written out"
        misses += time_row(f"{what}, applied", times["ours"], peer, times[peer], most=budget)
        held = [peak(partial(operator.window, 64, stride)), peak(written_out)]
        misses += row(f"{what}, stored", held[0], peer, held[1], "MiB", most=most)
    return misses


def at_length(name: str, one: Case, budget: float, most: float | None, repetitions: int) -> int:
    """The claim: time and peak at T = 4096; too long for the peer."""
    times = in_turn({side.__name__: partial(with_gradient, side, one) for side in (influence, memory)}, repetitions)
    misses = 0
    for side in (influence, memory):
        what, spent = f"T {LENGTH}, {name}, {side.__name__}", 1e3 * median(times[side.__name__])
        misses += row(what, spent, "", None, "ms", most=budget)
        misses += row(f"{what}, peak", peak(partial(with_gradient, side, one)), "", None, "MiB", most=most)
    return misses


def against_products(name: str, one: Case, repetitions: int) -> None:
    """Both at the length at which the peer can run."""
    with torch.no_grad():
        both = zip(influence(one[0]), by_dense_products(one[0]), strict=True)
        apart = max(float((ours - theirs).abs().max()) for ours, theirs in both)
    assert apart < 1e-10, f"{name}: {apart:.1e} apart"
    sides = {side.__name__: partial(with_gradient, side, one) for side in (influence, by_dense_products)}
    times, what = in_turn(sides, repetitions), f"T {SHORT}, {name}, influence"
    time_row(what, times["influence"], "dense products", times["by_dense_products"])
    peaks = [peak(side) for side in sides.values()]
    row(f"{what}, peak", peaks[0], "dense products", peaks[1], "MiB")


def main(repetitions: int = 3) -> int:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), float64, forward and gradient")
    torch.manual_seed(0)
    misses = windows(5)
    for name, (one, budget, most) in cases(LENGTH).items():
        misses += at_length(name, one, budget, most, repetitions)
    for name, (one, _, _) in cases(SHORT).items():
        against_products(name, one, repetitions)
    return misses


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
