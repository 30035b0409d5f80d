"""Penalties: every member by the published conformance tests, transport against scipy and brute force, closed forms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import wasserstein_distance
from torch import Tensor

from specreg import penalties
from specreg.penalties import Band, Penalty, PerHead, PhaseDistance, TimescaleBand, TimescaleDistance
from specreg.targets import LogUniformTimescale, Ring, Target, TwoCluster
from specreg.testing.operators import assert_close
from specreg.testing.penalties import PenaltyConformance, random_spectrum
from specreg.testing.targets import spectrum_of
from specreg.transport import circular_wasserstein, wasserstein

MEMBERS = [
    member
    for member in vars(penalties).values()
    if inspect.isclass(member) and issubclass(member, Penalty) and not inspect.isabstract(member)
]
FORMS: dict[str, Callable[[], Penalty]] = {
    **{member.__name__: member.example for member in MEMBERS},
    "ceiling": lambda: Band(0.0, 1.0),
    "exact-modulus": lambda: Band(0.9, 0.9),
    "one-timescale": lambda: TimescaleBand(10.0, 10.0),
    "growing-band": lambda: Band(1.5, 2.0),
    "ring": lambda: TimescaleDistance(Ring(0.0, 1.0)),
    "clusters": lambda: TimescaleDistance(TwoCluster(0.3)),
    "phases-of-a-turn": lambda: PhaseDistance(Ring(0.5, 0.9, max_phase=2 * math.pi)),
    "band-per-head": lambda: PerHead(Band(0.5, 0.95)),
    "phase-per-head": lambda: PerHead(PhaseDistance(Ring(0.5, 0.9, max_phase=1.0))),
}
LAWS: list[Target] = [LogUniformTimescale(1, 1024), Ring(0.5, 0.99), TwoCluster(0.3)]


class TestPenalties(PenaltyConformance):
    @pytest.fixture(autouse=True, params=FORMS)
    def form(self, request: pytest.FixtureRequest) -> None:
        self.name: str = request.param

    def make(self) -> Penalty:
        return FORMS[self.name]()


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_every_member_is_found() -> None:
    assert {Band, TimescaleBand, TimescaleDistance, PhaseDistance, PerHead} <= set(MEMBERS)


def test_bands_are_means_of_squares() -> None:
    """Closed forms, weighted by multiplicity; repetition is exact."""
    modulus = torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)
    spectrum = spectrum_of(modulus.log(), torch.zeros(3))
    assert Band(0.5, 0.9)(spectrum).item() == pytest.approx((0.3**2 + 0.81 * math.log(1 / 0.9) ** 2) / 3)
    tau = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    spectrum = spectrum_of(-1 / tau, torch.zeros(3))
    assert TimescaleBand(2.0, 50.0)(spectrum).item() == pytest.approx(2 * math.log(2) ** 2 / 3)


@pytest.mark.parametrize("penalty", [Band(0.5, 0.95), TimescaleBand(2.0, 50.0)], ids=repr)
def test_repetition_is_exact_where_values_are_averaged(penalty: Penalty) -> None:
    spectrum = random_spectrum(0)
    count = spectrum.multiplicity
    repeated = spectrum_of(*(x.repeat_interleave(count, -1).flatten() for x in (spectrum.log_modulus, spectrum.phase)))
    assert_close(penalty(spectrum), penalty(repeated))


@pytest.mark.parametrize("high", [0.9, 1.0])
def test_a_growing_mode_is_pulled_back(high: float) -> None:
    """The gradient of an upper bound points inward from just outside up to e^10000."""
    for log_modulus in (1e-3, 1.0, 1e4):
        value = torch.tensor([log_modulus]).requires_grad_()
        for penalty in (Band(0.0, high), TimescaleBand(1.0, 100.0), TimescaleDistance(LogUniformTimescale(1, 100))):
            (gradient,) = torch.autograd.grad(penalty(spectrum_of(value, torch.zeros(1))), value)
            assert gradient.item() > 0


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


def test_wasserstein_between_two_intervals_by_quadrature() -> None:
    """log τ uniform on [0, log 100] against on [log 2, log 50]: ∫ |Q₁ − Q₂| by adaptive quadrature."""
    first, second = LogUniformTimescale(1, 100), LogUniformTimescale(2, 50)
    low, width = math.log(2), math.log(25)
    expected, _ = quad(lambda p: abs(math.log(100) * p - low - width * p), 0, 1, points=[0.5])
    spectrum = spectrum_of(first.quantiles(2000)[0], torch.zeros(2000))
    assert TimescaleDistance(second)(spectrum).item() == pytest.approx(expected, abs=1e-6)


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


def test_a_step_down_the_gradient_lowers_the_loss() -> None:
    """For every penalty, on random spectra, in both parts that it depends on."""
    for member in MEMBERS:
        penalty, spectrum = member.example(), random_spectrum(1)
        inputs = [x.clone().requires_grad_() for x in (spectrum.log_modulus, spectrum.phase)]
        loss = penalty(spectrum_of(*(x.flatten() for x in inputs)))
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        moved = [x if g is None else x - 1e-4 * g / g.norm() for x, g in zip(inputs, gradients, strict=True)]
        assert penalty(spectrum_of(*(x.flatten() for x in moved))).item() < loss.item()


def test_a_nan_that_counts_is_seen() -> None:
    """A broken step that is not masked gives NaN, not a loss that looks healthy."""
    spectrum = spectrum_of(torch.tensor([-0.1, math.nan]), torch.tensor([0.1, math.nan]))
    for member in MEMBERS:
        assert math.isnan(member.example()(spectrum).item())


@pytest.mark.parametrize(
    ("make", "allowed"),
    [
        (lambda: Band(0.9, 0.5), r"band\(0.9, 0.5\).*0 <= low <= high"),
        (lambda: Band(-0.1, 0.5), r"0 <= low"),
        (lambda: Band(0.0, 0.0), r"high over 0"),
        (lambda: Band(0.0, math.nan), r"0 <= low <= high"),
        (lambda: TimescaleBand(0.0, 5.0), r"0 < shortest <= longest.*steps"),
        (lambda: TimescaleBand(2.0, math.inf), r"0 < shortest <= longest"),
        (lambda: TimescaleDistance(0.5), r"takes a target, as in timescale_distance\(ring"),  # type: ignore[arg-type]
        (lambda: TimescaleDistance(Band(0.1, 0.2)), r"takes a target"),  # type: ignore[arg-type]
        (lambda: PhaseDistance(Ring(0.5, 0.9)), r"a max_phase"),
        (lambda: PhaseDistance(0.5), r"takes a target"),  # type: ignore[arg-type]
        (lambda: PerHead(Ring(0.5, 0.9)), r"per_head takes a penalty"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        make()
