"""Targets: every member by the published conformance tests, and what each law says in closed form."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch

from specreg import targets
from specreg.spectrum import Spectrum
from specreg.targets import LogUniformTimescale, Ring, Target, TwoCluster, midpoints
from specreg.testing.targets import TargetConformance, spectrum_of

MEMBERS = [
    member
    for member in vars(targets).values()
    if inspect.isclass(member) and issubclass(member, Target) and not inspect.isabstract(member)
]
FORMS: dict[str, Callable[[], Target]] = {
    **{member.__name__: member.example for member in MEMBERS},
    "disc": lambda: Ring(0.0, 1.0, max_phase=2 * math.pi),
    "ring-free-phase": lambda: Ring(0.9, 0.99),
    "thin-ring": lambda: Ring(0.99, 0.990001, max_phase=0.1),
    "tiny-ring": lambda: Ring(0.0, 1e-200),
    "more-than-half-a-turn": lambda: Ring(0.2, 0.8, max_phase=4.0),
    "timescales-below-a-step": lambda: LogUniformTimescale(0.01, 0.5),
    "timescales-for-ever": lambda: LogUniformTimescale(1.0, 1e9),
    "one-cluster-low": lambda: TwoCluster(1.0, 0.3, 0.9),
    "one-cluster-high": lambda: TwoCluster(0.0, 0.3, 0.9),
}


class TestTargets(TargetConformance):
    @pytest.fixture(autouse=True, params=FORMS)
    def form(self, request: pytest.FixtureRequest) -> None:
        self.name: str = request.param

    def make(self) -> Target:
        return FORMS[self.name]()


def test_every_member_is_found() -> None:
    assert {Ring, LogUniformTimescale, TwoCluster} <= set(MEMBERS)


def test_ring_is_uniform_by_area() -> None:
    """|λ|² at probability p is r_min² + p (r_max² − r_min²) (Orvieto et al. 2023)."""
    p = midpoints(50)
    squared = (2 * Ring(0.3, 0.8).log_modulus_quantile(p)).exp()
    torch.testing.assert_close(squared, 0.09 + p * (0.64 - 0.09))


def test_log_uniform_timescale_is_a_straight_line() -> None:
    """The median timescale of 1 to 1024 steps is 32."""
    target = LogUniformTimescale(1, 1024)
    half = torch.tensor([0.5], dtype=torch.float64)
    torch.testing.assert_close(target.log_timescale_quantile(half).exp(), 64 * half)
    torch.testing.assert_close(target.log_modulus_quantile(half), -half / 16)


def test_two_cluster_has_its_share() -> None:
    """A share of 0.25 of 8 values is two values; nothing between the clusters is inside."""
    target = TwoCluster(0.25, 0.1, 0.9)
    modulus = target.quantiles(8)[0].exp()
    torch.testing.assert_close(modulus, torch.tensor([0.1] * 2 + [0.9] * 6, dtype=torch.float64))
    between = torch.tensor([0.1, 0.5, 0.9]).log()
    assert target.contains(between, torch.zeros(3)).tolist() == [True, False, True]


def test_an_absent_cluster_is_outside() -> None:
    edges = torch.tensor([0.3, 0.9]).log()
    assert TwoCluster(1.0, 0.3, 0.9).contains(edges, torch.zeros(2)).tolist() == [True, False]
    assert TwoCluster(0.0, 0.3, 0.9).contains(edges, torch.zeros(2)).tolist() == [False, True]


def test_a_ring_holds_zero_only_if_it_reaches_there() -> None:
    zero = torch.tensor([-torch.inf])
    assert bool(Ring(0.0, 1.0).contains(zero, torch.zeros(1)))
    assert not bool(Ring(0.1, 1.0).contains(zero, torch.zeros(1)))


def test_conjugates_are_one_value() -> None:
    """A phase of −θ lies inside where θ does, and a turn more changes nothing."""
    target = Ring(0.5, 0.9, max_phase=1.0)
    log_modulus = torch.full((4,), math.log(0.7))
    phase = torch.tensor([0.9, -0.9, 0.9 + 2 * math.pi, 1.1])
    assert target.contains(log_modulus, phase).tolist() == [True, True, True, False]


def test_a_real_spectrum_is_far_from_a_law_of_phases() -> None:
    """All phases 0 against uniform on [0, 2]: a mean displacement of 1."""
    target = Ring(0.5, 0.9, max_phase=2.0)
    log_modulus, _ = target.quantiles(100)
    spectrum = spectrum_of(log_modulus, torch.zeros(100, dtype=torch.float64))
    assert target.phase_distance(spectrum).item() == pytest.approx(1.0, abs=1e-9)
    assert target.distance(spectrum).item() == pytest.approx(1.0, abs=1e-5)


def test_without_a_law_of_phases_there_is_no_phase_distance() -> None:
    target = Ring(0.5, 0.9)
    spectrum = spectrum_of(target.quantiles(4)[0], torch.rand(4))
    assert target.distance(spectrum).item() <= 1e-5
    with pytest.raises(ValueError, match="give it max_phase"):
        target.phase_distance(spectrum)


def test_distance_of_timescales_beyond_measure_is_of_one_scale() -> None:
    """Spectrum and target are continued alike beyond 10⁶ steps, so a law that reaches there is met by its quantiles."""
    target = LogUniformTimescale(1e5, 1e8)
    assert target.distance(spectrum_of(target.quantiles(100)[0], torch.zeros(100))).item() <= 1e-5


@pytest.mark.parametrize(
    ("make", "allowed"),
    [
        (lambda: Ring(0.9, 0.5), r"ring\(0.9, 0.5\).*0 <= r_min < r_max <= 1"),
        (lambda: Ring(0.9, 1.01), r"r_max <= 1"),
        (lambda: Ring(-0.1, 0.5), r"0 <= r_min"),
        (lambda: Ring(math.nan, 0.5), r"0 <= r_min"),
        (lambda: Ring(0.5, math.inf), r"r_max <= 1"),
        (lambda: LogUniformTimescale(0.0, 5.0), r"0 < shortest < longest.*steps"),
        (lambda: LogUniformTimescale(5.0, 5.0), r"0 < shortest < longest"),
        (lambda: LogUniformTimescale(1.0, math.inf), r"0 < shortest < longest"),
        (lambda: LogUniformTimescale(1.0, math.nan), r"0 < shortest < longest"),
        (lambda: TwoCluster(1.2), r"share is a fraction from 0 to 1, got 1.2"),
        (lambda: TwoCluster(math.nan), r"share is a fraction"),
        (lambda: TwoCluster(0.5, 0.99, 0.05), r"0 < near_zero < near_one < 1"),
        (lambda: TwoCluster(0.5, 0.0, 0.9), r"0 < near_zero"),
        (lambda: Ring(0.5, 0.9).quantiles(0), r"at least 1"),
        (lambda: Ring(0.5, 0.9).sample(0), r"at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        make()


def test_distance_pools_batch_time_and_heads() -> None:
    """The same values spread over any axes have the same distance."""
    target = LogUniformTimescale(1, 100)
    values = -torch.rand(24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.01
    reference = target.distance(spectrum_of(values, torch.zeros(24)))
    for shape in ((24, 1, 1, 1), (1, 24, 1, 1), (1, 1, 24, 1), (2, 3, 2, 2)):
        ones = torch.ones(shape[-1], dtype=torch.long)
        spectrum = Spectrum(values.view(shape), torch.zeros(shape), ones)
        torch.testing.assert_close(target.distance(spectrum), reference)
