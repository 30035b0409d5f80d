"""A real 128×128 weight is driven by gradient to a ring, pairs of conjugates, to 2 % of the start in 500 steps.

Start: Gaussian entries of variance 1/n. Aim: moduli of 0.9 to 0.99, uniform by area, phases on all the circle. Ways:
sliced and sorted transport, the energy distance, Sinkhorn, each measured by its own loss, and all by exact assignment
to the target's points (scipy), which none of them descends. The peers descend POT's `emd2` and sliced distance with
`torch.linalg.eigvals`; all ways take their steps in turn. Then POT's distances beside ours. Run as ``OMP_NUM_THREADS=1
python tests/benchmarks/target_reached.py [seeds] [steps]``; the exit status counts misses.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from measure import in_turn, installed, row, time_row
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from specreg.estimators import Exact
from specreg.operators import Dense
from specreg.penalties import ClippedCondition, EnergyDistance, Penalty, Sinkhorn, SlicedWasserstein
from specreg.penalties.plane import compared
from specreg.spectrum import Spectrum, polar
from specreg.targets import Ring
from specreg.transport import DIRECTIONS, circular_wasserstein, sinkhorn, sliced_wasserstein, wasserstein

SIZE, MOST = 128, 0.02
TARGET = Ring(0.9, 0.99, max_phase=math.pi)
CLIP = 100.0  # largest κ that pulls with its full force
RATE = 3e-3
SHOWN = (0, 0.02, 0.1, 0.5, 1)  # of the way, at which κ is printed


@dataclass
class Course:
    """What was seen along the way, the start first."""

    losses: list[float] = field(default_factory=list)
    assignments: list[float] = field(default_factory=list)
    conditions: list[float] = field(default_factory=list)
    clips: int = 0
    seconds: list[float] = field(default_factory=list)  # of each step, CPU time

    @property
    def reached(self) -> float:
        """The last loss, as a share of the first."""
        return self.losses[-1] / self.losses[0]

    @property
    def steps(self) -> float:
        """The first step at most 2 % from the target; NaN if none was."""
        return next((float(step) for step, loss in enumerate(self.losses) if loss <= MOST * self.losses[0]), math.nan)


def exact(weight: Tensor) -> Spectrum:
    """Eigenvalues with their condition numbers, one solve for both."""
    return Exact()(Dense(weight))


def by_torch(weight: Tensor) -> Spectrum:
    log_modulus, phase = polar(torch.linalg.eigvals(weight).view(1, 1, 1, -1))
    return Spectrum(log_modulus, phase, torch.ones(SIZE, dtype=torch.long))


def to_compare(spectrum: Spectrum) -> tuple[Tensor, Tensor, Tensor]:
    """The folded values, their equal weights, and a point of the target for each value."""
    values, weights, points = compared(spectrum, TARGET)
    return values, weights, points.repeat_interleave(len(values) // len(points), 0)


def assignment(spectrum: Spectrum) -> float:
    """The mean distance in the plane under the best assignment to the target, pairs folded."""
    values, _, points = to_compare(spectrum)
    distances = torch.cdist(values.detach(), points)
    return float(distances[linear_sum_assignment(distances.numpy())].mean())


def exact_transport(spectrum: Spectrum) -> Tensor:
    """POT's exact transport cost, the distance as cost: the assignment itself, its gradient that of the plan."""
    import ot

    values, weights, points = to_compare(spectrum)
    cost: Tensor = ot.emd2(weights, weights, torch.cdist(values, points))
    return cost


def sliced_by_pot(spectrum: Spectrum) -> Tensor:
    """POT's sliced distance on ours' directions, scaled as ours."""
    values, weights, points = to_compare(spectrum)
    return pot_sliced(values, weights, points)


def pot_sliced(values: Tensor, weights: Tensor, points: Tensor) -> Tensor:
    import ot

    angle = torch.arange(DIRECTIONS, dtype=values.dtype) * (math.pi / DIRECTIONS)
    share, units = torch.full_like(points[:, 0], 1 / len(points)), torch.stack((angle.cos(), angle.sin()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # POT transposes a vector
        distance: Tensor = ot.sliced_wasserstein_distance(values, points, weights, share, projections=units, p=1)
    return 0.5 * math.pi * distance


def sorted_transport(spectrum: Spectrum) -> Tensor:
    """Moduli and folded phases each by their order, to the laws represented by one value for each pair."""
    weights, half = spectrum.weights(), SIZE // 2

    def pairs(quantile: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda p: quantile(((p * half).floor().clamp_max(half - 1) + 0.5) / half)

    moduli = wasserstein(spectrum.modulus, weights, pairs(lambda p: TARGET.log_modulus_quantile(p).exp()))
    return moduli + circular_wasserstein(spectrum.folded_phase, weights, pairs(lambda p: math.pi * p))


def drive(
    loss_of: Callable[[Spectrum], Tensor], solve: Callable[[Tensor], Spectrum], seed: int, steps: int, rate: float
) -> Iterator[Course]:
    """Adam, its rate falling linearly to 0; the same course again after every step."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=draw).div(math.sqrt(SIZE)).requires_grad_()
    optimiser = torch.optim.Adam([weight], lr=rate)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    course = Course()
    for step in range(steps + 1):
        start = time.process_time()
        spectrum = solve(weight)
        loss = loss_of(spectrum)
        optimiser.zero_grad()
        loss.backward()
        course.seconds.append(time.process_time() - start)
        note(course, weight, spectrum, loss, step in (0, steps))
        optimiser.step()
        falling.step()
        yield course


def note(course: Course, weight: Tensor, spectrum: Spectrum, loss: Tensor, at_an_end: bool) -> None:
    """What is seen at one step; a peer's κ is measured here, outside of its time."""
    condition = exact(weight.detach()).condition if spectrum.condition is None else spectrum.condition
    assert condition is not None
    course.losses.append(loss.item())
    course.conditions.append(float(condition.max()))
    course.clips += int(condition.gt(CLIP).sum())
    if at_an_end:
        course.assignments.append(assignment(spectrum))


def courses(seed: int, steps: int, with_peer: bool) -> dict[str, Course]:
    """Every way from one seed, a step of each in turn."""
    penalties: list[Penalty] = [SlicedWasserstein(TARGET), EnergyDistance(TARGET), Sinkhorn(TARGET)]
    ways = {
        type(penalty).__name__: drive(ClippedCondition(penalty, CLIP), exact, seed, steps, RATE)
        for penalty in penalties
    }
    ways["sorted transport"] = drive(sorted_transport, exact, seed, steps, RATE)
    if with_peer:
        ways["emd2"] = drive(exact_transport, by_torch, seed, steps, RATE)
        ways["POT's sliced"] = drive(sliced_by_pot, by_torch, seed, steps, RATE)
    (last,) = deque(zip(*ways.values(), strict=True), maxlen=1)
    return dict(zip(ways, last, strict=True))


def compare(name: str, course: Course, peer: str, other: Course | None) -> bool:
    """Final distance in its own loss and by assignment, steps (NaN: never) and time; True for a miss."""
    figures = (
        ("end over start", course.reached, None if other is None else other.reached, MOST),
        ("steps to 2 %", course.steps, None if other is None else other.steps, None),
        ("assignment at the end", course.assignments[1], None if other is None else other.assignments[1], None),
    )
    misses = [row(f"{name}, {what}", ours, peer, theirs, most=most) for what, ours, theirs, most in figures]
    if other is not None:
        time_row(f"{name}, a step", course.seconds, peer, other.seconds)
    return any(misses)


def show_conditions(found: dict[str, Course]) -> None:
    for name, course in found.items():
        last = len(course.conditions) - 1
        along = ", ".join(f"{course.conditions[round(share * last)]:.3g}" for share in SHOWN)
        print(f"κ of {name}: {along}; largest {max(course.conditions):.3g}, {course.clips} values over {CLIP:g}")


def distances(count: int, repetitions: int) -> None:
    """Value and gradient of the distances of `specreg.transport` beside POT's, which must agree."""
    import ot

    draw = torch.Generator().manual_seed(0)
    values, points = torch.rand(2, count, 2, dtype=torch.float64, generator=draw)
    values.requires_grad_()
    weights, line, turn = torch.full((count,), 1 / count, dtype=torch.float64), points[:, 0].sort().values, 2 * math.pi

    def quantile(p: Tensor) -> Tensor:
        return line[(p * count).long().clamp_max(count - 1)]

    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "wasserstein_1d": (
            lambda: wasserstein(values[:, 0], weights, quantile),
            lambda: ot.wasserstein_1d(values[:, 0], line, weights, weights),
        ),
        "wasserstein_circle": (
            lambda: circular_wasserstein(turn * values[:, 0], weights, lambda p: turn * quantile(p)),
            lambda: turn * ot.wasserstein_circle(values[:, 0], line, weights, weights, p=1).squeeze(),
        ),
        "sliced_wasserstein_distance": (
            lambda: sliced_wasserstein(values, weights, points),
            lambda: pot_sliced(values, weights, points),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # POT transposes a vector
            apart = abs(ours().item() / theirs().item() - 1)
            assert apart < 1e-6, f"{name}: {apart:.1e} apart"
            sides = {"ours": partial(gradient_of, ours, values), "POT": partial(gradient_of, theirs, values)}
            times = in_turn(sides, repetitions)
        time_row(f"{count} values, value and gradient", times["ours"], f"ot.{name}", times["POT"])


def plane_transport(repetitions: int) -> None:
    """Sinkhorn's divergence beside the exact plan for the same cost, at the size of the claim: other quantities."""
    import ot

    draw = torch.Generator().manual_seed(0)
    values, points = torch.rand(2, SIZE, 2, dtype=torch.float64, generator=draw)
    values.requires_grad_()
    weights = torch.full((SIZE,), 1 / SIZE, dtype=torch.float64)
    ours, theirs = (
        lambda: sinkhorn(values, weights, points, 0.1),
        lambda: ot.emd2(weights, weights, torch.cdist(values, points).square() / 2),
    )
    times = in_turn(
        {"ours": lambda: gradient_of(ours, values), "POT": lambda: gradient_of(theirs, values)}, repetitions
    )
    time_row(f"{SIZE} values, Sinkhorn's divergence, blur 0.1", times["ours"], "ot.emd2", times["POT"])


def gradient_of(distance: Callable[[], Tensor], values: Tensor) -> Tensor:
    return torch.autograd.grad(distance(), values)[0]


def main(seeds: int = 2, steps: int = 500) -> int:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), float64, n {SIZE}, {steps} steps")
    with_peer, misses = installed("ot"), 0
    for seed in range(seeds):
        print(f"seed {seed}")
        found = courses(seed, steps, with_peer)
        for name in list(found)[:4]:
            peer = "POT's sliced" if name == "SlicedWasserstein" else "emd2"
            misses += compare(name, found[name], peer, found.get(peer))
        print(f"at {', '.join(f'{share:.0%}' for share in SHOWN)} of the way:")
        show_conditions(found)
    if with_peer:
        for count in (SIZE, 2048):
            distances(count, 10)
        plane_transport(5)
    return misses


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
