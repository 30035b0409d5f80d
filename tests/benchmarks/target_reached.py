"""A real 128×128 weight is driven by gradient to a ring, pairs of conjugates: how near, in how many steps, at which κ.

Start: Gaussian entries of variance 1/n. Aim: moduli of 0.9 to 0.99, uniform by area, phases on all the circle. Ways:
sliced and sorted transport, the energy distance, Sinkhorn. Each is measured by its own loss, whose end may be at most 2
% of its start, and all of them by exact assignment to the target's points (scipy), which none of them descends; the
peer descends that by torch's eigenvalues and a fixed plan for each step, as one would write it with an
optimal-transport library. Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/target_reached.py [seeds] [steps]``; the
exit status counts misses.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from specreg.eigen.dense import condition_numbers, eigenvalues
from specreg.penalties import ClippedCondition, EnergyDistance, Penalty, Sinkhorn, SlicedWasserstein
from specreg.penalties.plane import compared
from specreg.spectrum import Spectrum, polar
from specreg.targets import Ring
from specreg.transport import circular_wasserstein, wasserstein

SIZE, MOST = 128, 0.02
TARGET = Ring(0.9, 0.99, max_phase=math.pi)
CLIP = 100.0  # largest κ that pulls with its full force
SHOWN = (0, 0.02, 0.1, 0.5, 1)  # of the way, at which κ is printed


@dataclass
class Course:
    """What was seen along the way, the start first."""

    losses: list[float] = field(default_factory=list)
    assignments: list[float] = field(default_factory=list)
    conditions: list[float] = field(default_factory=list)
    clips: int = 0
    seconds: float = 0.0

    @property
    def reached(self) -> float:
        """The last loss, as a share of the first."""
        return self.losses[-1] / self.losses[0]

    @property
    def steps(self) -> int | None:
        """The first step at most 2 % from the target."""
        return next((step for step, loss in enumerate(self.losses) if loss <= MOST * self.losses[0]), None)


def spectrum_of(values: Tensor, condition: Tensor | None) -> Spectrum:  # (1, n)
    """One matrix as one head at one step."""
    log_modulus, phase = polar(values.view(1, 1, 1, -1))
    ones = torch.ones(values.shape[-1], dtype=torch.long)
    return Spectrum(log_modulus, phase, ones, condition=None if condition is None else condition.view(1, 1, 1, -1))


def assignment(spectrum: Spectrum) -> Tensor:
    """The mean distance in the plane under the best assignment to the target, pairs folded, the plan fixed."""
    values, _, points = compared(spectrum, TARGET)
    points = points.repeat_interleave(len(values) // len(points), 0)
    distances = torch.cdist(values, points)
    rows, columns = linear_sum_assignment(distances.detach().numpy())
    return distances[rows, columns].mean()


def sorted_transport(spectrum: Spectrum) -> Tensor:
    """Moduli and folded phases each by their order, to the laws represented by one value for each pair."""
    weights, half = spectrum.weights(), SIZE // 2

    def pairs(quantile: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda p: quantile(((p * half).floor().clamp_max(half - 1) + 0.5) / half)

    moduli = wasserstein(spectrum.modulus, weights, pairs(lambda p: TARGET.log_modulus_quantile(p).exp()))
    return moduli + circular_wasserstein(spectrum.folded_phase, weights, pairs(lambda p: math.pi * p))


def drive(
    loss_of: Callable[[Spectrum], Tensor], solve: Callable[[Tensor], Tensor], seed: int, steps: int, rate: float
) -> Course:
    """Adam, its rate falling linearly to 0."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, SIZE, SIZE, dtype=torch.float64, generator=draw).div(math.sqrt(SIZE)).requires_grad_()
    optimiser = torch.optim.Adam([weight], lr=rate)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    course, start = Course(), time.process_time()
    for step in range(steps + 1):
        condition = condition_numbers(weight)
        spectrum = spectrum_of(solve(weight), condition)
        loss = loss_of(spectrum)
        course.losses.append(loss.item())
        course.conditions.append(float(condition.max()))
        course.clips += int(condition.gt(CLIP).sum())
        if step in (0, steps):
            course.assignments.append(assignment(spectrum).item())
        if step < steps:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            falling.step()
    course.seconds = time.process_time() - start
    return course


def main() -> int:
    """Every way from every seed; the number of ways that end too far away."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 500
    penalties: list[Penalty] = [SlicedWasserstein(TARGET), EnergyDistance(TARGET), Sinkhorn(TARGET)]
    ways: dict[str, tuple[Callable[[Spectrum], Tensor], Callable[[Tensor], Tensor]]] = {
        **{type(penalty).__name__: (ClippedCondition(penalty, CLIP), eigenvalues) for penalty in penalties},
        "sorted transport": (sorted_transport, eigenvalues),
        "peer: assignment": (assignment, torch.linalg.eigvals),
    }
    misses = 0
    print(
        f"{'way':18} seed   loss: start      end    share  steps to 2 %   assignment: start      end    s  "
        f"κ at {', '.join(f'{share:.0%}' for share in SHOWN)} of the way"
    )
    for name, (loss_of, solve) in ways.items():
        for seed in range(seeds):
            course = drive(loss_of, solve, seed, steps, 3e-3)
            ours = not name.startswith("peer")
            misses += ours and course.reached > MOST
            kappa = ", ".join(f"{course.conditions[round(share * steps)]:.3g}" for share in SHOWN)
            print(
                f"{name:18} {seed:4} {course.losses[0]:13.3g} {course.losses[-1]:8.2g} {course.reached:8.2%} "
                f"{course.steps!s:>13} {course.assignments[0]:19.3g} {course.assignments[1]:8.2g} {course.seconds:4.0f}"
                f"  {kappa}; largest {max(course.conditions):.3g}, {course.clips} clipped"
            )
    return misses


if __name__ == "__main__":
    sys.exit(main())
