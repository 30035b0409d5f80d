"""Transport: distances on the line, the circle and in the plane, against scipy and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch import Tensor

from specreg.targets import LogUniformTimescale, Ring, Target, TwoCluster
from specreg.transport import circular_wasserstein, energy_distance, sinkhorn, sliced_wasserstein, wasserstein

LAWS: list[Target] = [LogUniformTimescale(1, 1024), Ring(0.5, 0.99), TwoCluster(0.3)]


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_wasserstein_is_that_of_scipy(law: Target, weighted: bool) -> None:
    """Between the weighted values and the law represented by one point for each share."""
    values, weights = 8 * uniform(50, seed=1), uniform(50, seed=2) if weighted else torch.ones(50, dtype=torch.float64)
    weights = weights / weights.sum()
    share = weights[values.argsort()]
    points = law.log_timescale_quantile(share.cumsum(0) - share / 2)
    expected = wasserstein_distance(values.numpy(), points.numpy(), weights.numpy(), share.numpy())
    assert wasserstein(values, weights, law.log_timescale_quantile).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_wasserstein_tends_to_the_integral(law: Target) -> None:
    """∫ |F⁻¹(p) − Q(p)| dp: within the width of a share for few values, and to 1e-3 for many."""
    for count, tolerance in ((20, 0.1), (4000, 2e-3)):
        values = (1 + 5 * uniform(count, seed=3)).sort().values
        weights = torch.full((count,), 1 / count, dtype=torch.float64)
        fine = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
        integral = (values[(fine * count).long()] - law.log_timescale_quantile(fine)).abs().mean().item()
        assert wasserstein(values, weights, law.log_timescale_quantile).item() == pytest.approx(integral, abs=tolerance)


def test_values_without_weight_meet_no_infinite_quantile() -> None:
    """A value of weight 0 at either end stands where the law of an unbounded support is infinite."""
    values = torch.tensor([-9.0, 0.1, 0.2, 9.0], dtype=torch.float64).requires_grad_()
    weights = torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=torch.float64)
    distance = wasserstein(values, weights, torch.logit)
    expected = 0.5 * (abs(0.1 - math.log(1 / 3)) + abs(0.2 - math.log(3)))
    assert distance.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(distance, values)
    assert gradient.tolist() == [0.0, 0.5, -0.5, 0.0]


@pytest.mark.parametrize("turn", [1.0, math.pi, 2 * math.pi])
def test_circular_wasserstein_is_the_best_cyclic_shift(turn: float) -> None:
    """Equal weights: the least mean arc over all cyclic matchings of the sorted points."""
    for seed in range(5):
        values = 2 * math.pi * uniform(17, seed=seed)
        weights = torch.full((17,), 1 / 17, dtype=torch.float64)
        points = (turn * (torch.arange(17, dtype=torch.float64) + 0.5) / 17).sort().values
        gaps = (values.sort().values[:, None] - points[None, :]).abs()
        arcs = torch.minimum(gaps, 2 * math.pi - gaps)
        index = torch.arange(17)
        best = min(arcs[index, (index + shift) % 17].mean().item() for shift in range(17))
        ours = circular_wasserstein(values, weights, lambda p: turn * p).item()
        assert ours == pytest.approx(best, rel=1e-9)


def test_circular_wasserstein_with_weights_is_the_best_cut() -> None:
    """Weighted: the least of ∫ |F − G − α| over every α that F − G takes."""
    values, weights = 2 * math.pi * uniform(9, seed=4), uniform(9, seed=5)
    weights = weights / weights.sum()
    order = values.argsort()
    share = weights[order]
    points = 2 * math.pi * (share.cumsum(0) - share / 2)
    where = np.concatenate((values[order].numpy(), points.numpy()))
    mass = np.concatenate((share.numpy(), -share.numpy()))
    along = np.argsort(where)
    difference = np.cumsum(mass[along])
    gaps = np.diff(np.append(where[along], where[along][0] + 2 * math.pi))
    best = min(float((gaps * np.abs(difference - offset)).sum()) for offset in difference)
    ours = circular_wasserstein(values, weights, lambda p: 2 * math.pi * p).item()
    assert ours == pytest.approx(best, rel=1e-9)


def test_turning_the_circle_has_no_effect() -> None:
    """Values and law turned together keep their distance, across the seam at 0."""
    values = 2 * math.pi * uniform(11, seed=6)
    weights = torch.full((11,), 1 / 11, dtype=torch.float64)
    reference = circular_wasserstein(values, weights, lambda p: 2 * p).item()
    for turn in (0.5, 3.0, 6.0):
        turned = circular_wasserstein(values + turn, weights, lambda p, turn=turn: 2 * p + turn)  # type: ignore[misc]
        assert turned.item() == pytest.approx(reference)


def cloud(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (count, 2) and weights that sum to 1."""
    weights = 0.1 + uniform(count, seed=seed + 1)
    return 2 * uniform(count, 2, seed=seed) - 1, weights / weights.sum()


def directions(count: int) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return [np.array([math.cos(k * math.pi / count), math.sin(k * math.pi / count)]) for k in range(count)]


def test_sliced_wasserstein_is_that_of_scipy() -> None:
    """π/2 times the mean over directions of scipy's distance between the projections, weighted."""
    (x, weights), (y, _) = cloud(23, 0), cloud(40, 7)
    alone = [wasserstein_distance(x.numpy() @ u, y.numpy() @ u, weights.numpy()) for u in directions(16)]
    expected = math.pi / 2 * float(np.mean(alone))
    assert sliced_wasserstein(x, weights, y).item() == pytest.approx(expected, rel=1e-12)


def test_a_shift_of_a_law_is_its_length() -> None:
    x, _ = cloud(30, 3)
    even = torch.full((30,), 1 / 30, dtype=torch.float64)
    for turn in (0.0, 0.3, 1.2):
        shifted = x + 5 * torch.tensor([math.cos(turn), math.sin(turn)])
        assert sliced_wasserstein(shifted, even, x).item() == pytest.approx(5.0, rel=4e-3)


def test_energy_distance_is_its_expectations() -> None:
    """2 E|X − Y| − E|X − X'| − E|Y − Y'| by all pairs: exact in the norm of 32 directions, 1 % off the Euclidean."""
    (x, weights), (y, _) = cloud(23, 0), cloud(40, 7)
    x, y = x.numpy(), y.numpy() + 0.5
    even, own = np.full(40, 1 / 40), weights.numpy()

    def polygon(difference: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return math.pi / 2 * np.mean([np.abs(difference @ u) for u in directions(32)], axis=0)  # type: ignore[no-any-return]

    def euclidean(difference: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.linalg.norm(difference, axis=-1)

    ours = energy_distance(torch.from_numpy(x), weights, torch.from_numpy(y)).item()
    for norm, tolerance in ((polygon, 1e-10), (euclidean, 1e-2)):
        mutual, first, second = (norm(a[:, None] - b[None]) for a, b in ((x, y), (x, x), (y, y)))
        expected = 2 * own @ mutual @ even - own @ first @ own - even @ second @ even
        assert ours == pytest.approx(float(expected), rel=tolerance)


def entropic(x: Tensor, a: Tensor, y: Tensor, b: Tensor, epsilon: float) -> float:
    """The entropic transport cost by plain Sinkhorn scaling, to convergence: ⟨P, c⟩ + ε KL(P, ab)."""
    cost = 0.5 * (x[:, None] - y[None]).square().sum(-1)
    kernel, v = (-cost / epsilon).exp(), torch.ones_like(b)
    for _ in range(5000):
        u = 1 / (kernel @ (b * v))
        v = 1 / (kernel.T @ (a * u))
    plan = (a * u)[:, None] * kernel * (b * v)
    return float((plan * cost).sum() + epsilon * (plan * (plan / (a[:, None] * b)).log()).sum())


def test_sinkhorn_is_the_debiased_cost() -> None:
    (x, weights), (y, _) = cloud(12, 0), cloud(20, 7)
    even = torch.full((20,), 1 / 20, dtype=torch.float64)
    expected = entropic(x, weights, y, even, 0.09)
    expected -= 0.5 * entropic(x, weights, x, weights, 0.09) + 0.5 * entropic(y, even, y, even, 0.09)
    assert sinkhorn(x, weights, y, 0.3).item() == pytest.approx(expected, rel=1e-6)
    assert sinkhorn(x, weights, y, 0.3, iterations=500).item() == pytest.approx(expected, rel=1e-10)


def test_sinkhorn_tends_to_the_assignment() -> None:
    """Half the squared 2-Wasserstein distance by scipy's assignment, at a blur far below the distance of points."""
    x, y = 4 * uniform(15, 2, seed=1), 4 * uniform(15, 2, seed=2) + 1
    even = torch.full((15,), 1 / 15, dtype=torch.float64)
    cost = 0.5 * (x[:, None] - y[None]).square().sum(-1)
    rows, columns = linear_sum_assignment(cost.numpy())
    ours = sinkhorn(x, even, y, 0.05, iterations=1000).item()
    assert ours == pytest.approx(float(cost[rows, columns].mean()), rel=1e-3)
