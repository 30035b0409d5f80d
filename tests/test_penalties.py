"""Penalties: every member by the published conformance tests, transport against scipy and brute force, closed forms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import wasserstein_distance
from torch import Tensor

from specreg import penalties
from specreg.eigen.dense import condition_numbers, eigenvalues
from specreg.estimators.applied import AppliedOperator, AppliedSystem
from specreg.invariants import effective_memory
from specreg.models.lru import LRU
from specreg.operators import Dense, Diagonal
from specreg.penalties import (
    Band,
    ClippedCondition,
    DensityBand,
    DensityDistance,
    EnergyDistance,
    HenriciDeparture,
    InfluenceDistance,
    InverseCondition,
    LyapunovDistance,
    MemoryBand,
    Normality,
    Penalty,
    PerHead,
    PhaseDistance,
    Sinkhorn,
    SlicedWasserstein,
    Spread,
    TimescaleBand,
    TimescaleCoverage,
    TimescaleDistance,
)
from specreg.penalties import condition as condition_penalties
from specreg.penalties.memory import decaying
from specreg.spectrum import Density, Exponents, Spectrum, polar
from specreg.system import LinearSystem, System
from specreg.targets import (
    Bilinear,
    LogUniformTimescale,
    Points,
    Ring,
    S4DInv,
    S4DLin,
    S4DQuad,
    Signed,
    Target,
    TwoCluster,
    midpoints,
)
from specreg.terms import Term
from specreg.testing.operators import assert_close
from specreg.testing.penalties import (
    KnowledgePenaltyConformance,
    PenaltyConformance,
    random_knowledge,
    random_spectrum,
)
from specreg.testing.targets import spectrum_of

MEMBERS = [
    member
    for member in vars(penalties).values()
    if inspect.isclass(member) and issubclass(member, Penalty) and not inspect.isabstract(member)
]
OF_SPECTRA = [member for member in MEMBERS if member.takes is Spectrum]
FORMS: dict[str, Callable[[], Penalty]] = {
    **{member.__name__: member.example for member in OF_SPECTRA},
    "ceiling": lambda: Band(0.0, 1.0),
    "exact-modulus": lambda: Band(0.9, 0.9),
    "one-timescale": lambda: TimescaleBand(10.0, 10.0),
    "growing-band": lambda: Band(1.5, 2.0),
    "ring": lambda: TimescaleDistance(Ring(0.0, 1.0)),
    "clusters": lambda: TimescaleDistance(TwoCluster(0.3)),
    "phases-of-a-turn": lambda: PhaseDistance(Ring(0.5, 0.9, max_phase=2 * math.pi)),
    "band-per-head": lambda: PerHead(Band(0.5, 0.95)),
    "phase-per-head": lambda: PerHead(PhaseDistance(Ring(0.5, 0.9, max_phase=1.0))),
    "sliced-to-points": lambda: SlicedWasserstein(Points(0.9, 0.1, 0.5, 3.0)),
    "sliced-to-the-axis": lambda: SlicedWasserstein(Signed()),
    "energy-to-s4d": lambda: EnergyDistance(S4DLin(16)),
    "energy-per-head": lambda: PerHead(EnergyDistance(Ring(0.5, 0.9, max_phase=1.0))),
    "planar-timescales": lambda: TimescaleDistance(S4DInv(16)),
    "planar-phases": lambda: PhaseDistance(Bilinear(S4DQuad(16))),
    "few-bins": lambda: TimescaleCoverage(20.0, bins=1, share=1.0),
    "close-spread": lambda: Spread(0.01),
    "spread-per-head": lambda: PerHead(Spread(0.5)),
    "clipped-distance": lambda: ClippedCondition(TimescaleDistance(LogUniformTimescale(1, 100)), 10.0),
}
OTHER_FORMS: dict[str, Callable[[], Penalty]] = {
    **{member.__name__: member.example for member in MEMBERS if member.takes is not Spectrum},
    "much-memory": lambda: MemoryBand(0.45, 0.6),
    "exact-memory": lambda: MemoryBand(0.1, 0.1),
    "influence-of-a-ring": lambda: InfluenceDistance(Ring(0.0, 1.0)),
    "any-departure": HenriciDeparture,
    "gradient-flossing": lambda: LyapunovDistance(),
    "density-of-a-hessian": lambda: DensityBand(0.0, 100.0),
    "density-of-timescales": lambda: DensityDistance(LogUniformTimescale(1, 100), scale=3.0),
}


class TestPenalties(PenaltyConformance):
    @pytest.fixture(autouse=True, params=FORMS)
    def form(self, request: pytest.FixtureRequest) -> None:
        self.name: str = request.param

    def make(self) -> Penalty:
        return FORMS[self.name]()

    @property
    def width(self) -> int:  # type: ignore[override]
        return 6 if isinstance(self.make(), Sinkhorn) else 300

    @property
    def every_entry(self) -> bool:  # type: ignore[override]
        return not isinstance(self.make(), Sinkhorn)

    @property
    def repetition_tolerance(self) -> float:  # type: ignore[override]
        return 0.1 if isinstance(self.make(), Sinkhorn | EnergyDistance) else 0.02


class TestPenaltiesOfMore(KnowledgePenaltyConformance):
    sampling_error = 0.3

    @pytest.fixture(autouse=True, params=OTHER_FORMS)
    def form(self, request: pytest.FixtureRequest) -> None:
        self.name: str = request.param

    def make(self) -> Penalty:
        return OTHER_FORMS[self.name]()


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_every_member_is_found() -> None:
    assert {Band, TimescaleBand, TimescaleDistance, PhaseDistance, PerHead} <= set(OF_SPECTRA)
    assert {MemoryBand, InfluenceDistance, LyapunovDistance, Normality, DensityDistance} <= set(MEMBERS) - set(
        OF_SPECTRA
    )


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


def test_wasserstein_between_two_intervals_by_quadrature() -> None:
    """log τ uniform on [0, log 100] against on [log 2, log 50]: ∫ |Q₁ − Q₂| by adaptive quadrature."""
    first, second = LogUniformTimescale(1, 100), LogUniformTimescale(2, 50)
    low, width = math.log(2), math.log(25)
    expected, _ = quad(lambda p: abs(math.log(100) * p - low - width * p), 0, 1, points=[0.5])
    spectrum = spectrum_of(first.quantiles(2000)[0], torch.zeros(2000))
    assert TimescaleDistance(second)(spectrum).item() == pytest.approx(expected, abs=1e-6)


def test_a_step_down_the_gradient_lowers_the_loss() -> None:
    """For every penalty, on random spectra, in both parts that it depends on."""
    for member in OF_SPECTRA:
        penalty, spectrum = member.example(), random_spectrum(1)
        inputs = [x.clone().requires_grad_() for x in (spectrum.log_modulus, spectrum.phase)]
        loss = penalty(spectrum_of(*(x.flatten() for x in inputs)))
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        moved = [x if g is None else x - 1e-4 * g / g.norm() for x, g in zip(inputs, gradients, strict=True)]
        assert penalty(spectrum_of(*(x.flatten() for x in moved))).item() < loss.item()


def test_a_nan_that_counts_is_seen() -> None:
    """A broken step that is not masked gives NaN, not a loss that looks healthy."""
    spectrum = spectrum_of(torch.tensor([-0.1, math.nan]), torch.tensor([0.1, math.nan]))
    for member in OF_SPECTRA:
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
        (lambda: PerHead(Normality()), r"per_head takes a penalty of a spectrum"),
        (lambda: InverseCondition(MemoryBand(0.1, 0.2)), r"takes a LinearSystem"),
        (lambda: InverseCondition(0.5), r"as in inverse_condition\(band\(0.5, 1.0\)\)"),  # type: ignore[arg-type]
        (lambda: ClippedCondition(0.5, 2.0), r"as in clipped_condition\(band\(0.5, 1.0\), 1000\)"),  # type: ignore[arg-type]
        (lambda: ClippedCondition(Band(0.5, 0.9), 0.5), r"largest κ of at least 1"),
        (lambda: SlicedWasserstein(Ring(0.5, 0.9)), r"sliced_wasserstein needs a target with a law of phases"),
        (lambda: EnergyDistance(0.5), r"energy_distance takes a target"),  # type: ignore[arg-type]
        (lambda: Sinkhorn(Signed(), 0.0), r"blur over 0"),
        (lambda: Spread(0.0), r"radius over 0"),
        (lambda: TimescaleCoverage(1.0), r"longest timescale over 1"),
        (lambda: TimescaleCoverage(10.0, 0), r"at least 1 bin"),
        (lambda: TimescaleCoverage(10.0, 3, 1.5), r"at most 1 of an even"),
        (lambda: MemoryBand(0.5, 0.2), r"0 <= low <= high <= 1"),
        (lambda: InfluenceDistance(3.0), r"influence_distance takes a target"),  # type: ignore[arg-type]
        (lambda: HenriciDeparture(1.5), r"from 0 to 1, got 1.5"),
        (lambda: LyapunovDistance(-1.0, 0.0), r"largest >= smallest"),
        (lambda: LyapunovDistance(math.nan), r"finite exponents"),
        (lambda: DensityBand(1.0, -1.0), r"low <= high"),
        (lambda: DensityDistance(Signed(), width=0.0), r"width and a scale over 0"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        make()


# In the plane


def test_sinkhorn_refuses_more_pairs_than_fit() -> None:
    with pytest.raises(ValueError, match="at most 4096, got 5000; use sliced_wasserstein"):
        Sinkhorn.example()(spectrum_of(torch.zeros(5000), torch.zeros(5000)))


@pytest.mark.parametrize("member", [SlicedWasserstein, EnergyDistance, Sinkhorn])
def test_pairs_of_conjugates_can_reach_the_target(member: Callable[[Target], Penalty]) -> None:
    """A real matrix with the target's values and their conjugates is at the target, as are the values alone."""
    target = Ring(0.5, 0.9, max_phase=math.pi)
    log_modulus, phase = target.quantiles(20)
    assert phase is not None
    both = spectrum_of(log_modulus.repeat(2), torch.cat((phase, -phase)))
    assert member(target)(both).item() < 1e-9
    assert member(target)(spectrum_of(log_modulus, phase)).item() < 1e-9
    assert member(target)(spectrum_of(log_modulus, phase.flip(0))).item() > 1e-4


def test_growth_is_seen_and_pulled_back_in_the_plane() -> None:
    """At e^100 the pull is as at e^1: the radius is 1 + log|λ| there."""
    for penalty in (SlicedWasserstein.example(), EnergyDistance.example(), Sinkhorn.example()):
        for size in (1.0, 100.0, 1e4):
            value = torch.tensor([size], dtype=torch.float64).requires_grad_()
            (gradient,) = torch.autograd.grad(penalty(spectrum_of(value, torch.zeros(1))), value)
            assert gradient.item() > 0.1


@pytest.mark.parametrize("penalty", [SlicedWasserstein, EnergyDistance], ids=lambda member: member.__name__)
def test_a_real_weight_is_driven_to_a_ring(penalty: Callable[[Target], Penalty]) -> None:
    """48×48, in 150 steps to 2 % of the start; the condition number stays moderate."""
    target, size, steps = Ring(0.9, 0.99, max_phase=math.pi), 48, 150
    weight = torch.randn(1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = weight.div(size**0.5).requires_grad_()
    optimiser = torch.optim.Adam([weight], lr=0.01)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    losses = []
    for _ in range(steps):
        log_modulus, phase = polar(eigenvalues(weight))
        loss = penalty(target)(spectrum_of(log_modulus[0], phase[0]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        falling.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]
    assert condition_numbers(weight).max().item() < 30


@pytest.mark.parametrize("form", {**FORMS, **OTHER_FORMS})
def test_pictures_of_goals(form: str) -> None:
    """A band's area has a loss of 0, what has a target shows it, and what is not of eigenvalues shows nothing."""
    penalty = {**FORMS, **OTHER_FORMS}[form]()
    outline = penalty.outline()
    if isinstance(penalty, Band | TimescaleBand):
        [(log_modulus, phase)] = outline.areas
        assert penalty(spectrum_of(log_modulus, phase)).item() < 1e-12
    if isinstance(penalty, TimescaleDistance | SlicedWasserstein | EnergyDistance | Sinkhorn):
        assert len(outline.areas) + len(outline.curves) + len(outline.points) > 0
    if penalty.takes is not Spectrum:
        assert not (outline.areas or outline.curves or outline.points)


# Coverage and spread


def test_coverage_asks_for_every_bin() -> None:
    """Log-uniform timescales have no loss, one timescale has one, by the definition; bins too full cost nothing."""
    penalty = TimescaleCoverage(1000.0, bins=4, share=0.5)
    assert penalty(spectrum_of(-1 / torch.logspace(0, 3, 50, dtype=torch.float64), torch.zeros(50))).item() == 0
    log_timescale = math.log(5.0)
    half = math.log(1000.0) / 8
    middles = [half * (2 * k + 1) for k in range(4)]
    even = [math.log(1000.0) * (i + 0.5) / 10 for i in range(10)]
    expected = 0.0
    for middle in middles:
        aim = sum(1 / (1 + ((x - middle) / half) ** 2) for x in even) / 10
        expected += 4 * max(0.0, 0.5 * aim - 1 / (1 + ((log_timescale - middle) / half) ** 2)) ** 2
    ours = penalty(spectrum_of(torch.full((10,), -0.2, dtype=torch.float64), torch.zeros(10))).item()
    assert ours == pytest.approx(expected, rel=1e-10)
    assert expected > 0.01


def test_coverage_spreads_what_is_in_one_place() -> None:
    """Descent from timescales of 1 to 2 steps covers 1 to 1000."""
    rates = torch.linspace(0.5, 1.0, 12, dtype=torch.float64).log().requires_grad_()
    optimiser = torch.optim.Adam([rates], lr=0.05)
    for _ in range(400):
        loss = TimescaleCoverage(1000.0)(spectrum_of(-rates.exp(), torch.zeros(12)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 1e-4
    assert (-rates).max().item() > math.log(200)


def test_spread_is_the_mean_over_pairs() -> None:
    """By a loop over batch, steps and pairs of values, each as often as its multiplicity."""
    spectrum, radius = random_spectrum(0), 0.7
    values = spectrum.eigenvalues
    radii = values.abs()
    places = torch.where(radii > 1, (1 + radii.log()) * values / radii, values).flatten(-2)
    repeated = places.repeat_interleave(spectrum.multiplicity.repeat(3), -1)
    total, pairs = 0.0, 0
    for step in repeated.flatten(0, 1):
        for i in range(len(step)):
            for j in range(i):
                total += max(0.0, 1 - float((step[i] - step[j]).abs()) ** 2 / radius**2) ** 2
                pairs += 1
    assert Spread(radius)(spectrum).item() == pytest.approx(total / pairs, rel=1e-10)


# Condition numbers


def test_condition_scales_the_gradient_and_not_the_value() -> None:
    """By 1/κ, and by limit/κ above the limit; −inf and an infinite κ do no harm."""
    log_modulus = torch.tensor([-0.01, -0.02, -0.5, -torch.inf, 0.3], dtype=torch.float64).requires_grad_()
    condition = torch.tensor([1.0, 10.0, 1000.0, 5.0, math.inf], dtype=torch.float64)
    spectrum = replace(spectrum_of(log_modulus, torch.zeros(5)), condition=condition.view(1, 1, 1, -1))
    plain = Band(0.3, 0.9)
    (reference,) = torch.autograd.grad(plain(spectrum), log_modulus)
    for penalty, factor in (
        (InverseCondition(plain), 1 / condition),
        (ClippedCondition(plain, 100.0), (100 / condition).clamp_max(1)),
    ):
        (gradient,) = torch.autograd.grad(penalty(spectrum), log_modulus)
        torch.testing.assert_close(gradient, factor * reference)
        assert penalty(spectrum).item() == plain(spectrum).item()


def test_no_gradient_of_a_value_held_still_is_a_number_too_large() -> None:
    """Where κ is infinite the gradient is 0, whatever comes from behind."""
    log_modulus = torch.tensor([-0.5, -0.5, -torch.inf], dtype=torch.float64)
    condition = torch.tensor([math.inf, 2.0, math.inf], dtype=torch.float64).view(1, 1, 1, -1)

    def loss(x: Tensor) -> Tensor:
        return InverseCondition(Band(0.9, 0.95))(replace(spectrum_of(x, torch.zeros(3)), condition=condition))

    leaf = log_modulus.clone().requires_grad_()
    held = replace(spectrum_of(leaf, torch.zeros(3)), condition=condition)
    found = condition_penalties._held_back(held, torch.reciprocal).log_modulus.flatten()
    (gradient,) = torch.autograd.grad(found, leaf, torch.full((3,), math.inf, dtype=torch.float64))
    assert gradient.tolist() == [0.0, math.inf, 0.0]
    assert found.tolist() == log_modulus.tolist()
    (reverse,) = torch.autograd.grad(loss(leaf), leaf)
    assert_close(torch.func.jacrev(loss)(log_modulus), reverse)
    assert bool(reverse.isfinite().all()) and reverse[1].item() < 0


def test_clips_are_counted() -> None:
    """Each by its multiplicity, at steps that count."""
    condition = torch.tensor([1.0, 99.0, 101.0, math.inf, math.nan]).view(1, 1, 1, -1).expand(2, 3, 1, -1)
    mask = torch.tensor([[True, False, False], [True, True, False]])
    log_modulus = torch.full((2, 3, 1, 5), -0.1)
    spectrum = Spectrum(log_modulus, torch.zeros_like(log_modulus), torch.tensor([1, 1, 3, 1, 1]), mask, condition)
    penalty = ClippedCondition(Band.example(), 100.0)
    assert penalty.clips(spectrum).item() == 3 * (3 + 1 + 1)
    assert penalty.clips(replace(spectrum, condition=None)).item() == 0


# Systems, matrices, exponents, densities


def test_memory_band_is_the_squared_excess() -> None:
    system = decaying(torch.tensor([-0.01, -0.1, -3.0], dtype=torch.float64))
    memory = effective_memory(system)
    expected = ((memory - 0.3).clamp_min(0) ** 2 + (0.1 - memory).clamp_min(0) ** 2).mean()
    assert_close(MemoryBand(0.1, 0.3)(system), expected)
    assert expected.item() > 1e-3


def test_influence_distance_is_transport_between_ages() -> None:
    """scipy's distance between the laws of log(1 + age), each by a plain loop over all lags."""
    rates = torch.tensor([-0.05, -0.4], dtype=torch.float64)
    target = LogUniformTimescale(2, 30)
    length = 20
    ones = torch.ones(1, 1, 2, 1, 1, dtype=torch.float64)
    system = System(Diagonal(rates.view(1, 1, 2, 1)), ones, ones, torch.zeros(1, length, 2, 1, 1, dtype=torch.float64))

    def ages(log_modulus: Tensor) -> np.ndarray:  # type: ignore[type-arg]
        found = np.zeros(length)
        for rate in log_modulus.tolist():
            profile = np.array([math.exp(rate * lag) for lag in range(length)])
            found += profile / profile.sum() / len(log_modulus)
        return found

    places = np.log1p(np.arange(length))
    expected = wasserstein_distance(places, places, ages(rates), ages(target.quantiles(2)[0]))
    assert InfluenceDistance(target)(system).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("penalty", [MemoryBand(0.3, 0.3), InfluenceDistance(LogUniformTimescale(1, 10))], ids=repr)
def test_no_gauge_changes_a_penalty_of_memory(penalty: Penalty) -> None:
    """The state times any positive sequence."""
    make, inputs = random_knowledge(LinearSystem, 0)
    system = make(*inputs)
    gauged = system.regauged(2 * uniform(2, 12, 3, seed=3))
    assert_close(penalty(gauged), penalty(system))


def test_penalties_of_memory_leave_padding_out() -> None:
    """A padded system has the loss of its real steps."""
    make, inputs = random_knowledge(LinearSystem, 0)
    mask = torch.arange(12).expand(2, -1) < 7
    for penalty in (MemoryBand(0.3, 0.3), InfluenceDistance(LogUniformTimescale(1, 10))):
        alone = penalty(make(*[x[:, :7] for x in inputs]))
        system = make(*inputs)
        padded = replace(
            system, mask=mask, log_gain=torch.where(mask, 0.0, -torch.inf)[..., None].expand(-1, -1, 3).double(),
            log_readout_gain=torch.where(mask, 0.0, -torch.inf)[..., None].expand(-1, -1, 3).double(),
        )  # fmt: skip
        if isinstance(penalty, MemoryBand):
            assert_close(penalty(padded), alone)
        assert penalty(padded).isfinite()


def test_terms_pair_them_with_what_hands_systems_on() -> None:
    """A term on an LRU, through `AppliedSystem` and `AppliedOperator`, reaches its parameters."""
    mixer = LRU(4, d_state=6)
    system = mixer.with_system(torch.randn(1, 20, 4, generator=torch.Generator().manual_seed(0)))[2]
    for penalty in (MemoryBand(0.4, 0.5), InfluenceDistance(LogUniformTimescale(1, 20))):
        gradients = torch.autograd.grad(penalty(AppliedSystem()(system)), mixer.log_rate, retain_graph=True)
        assert bool(gradients[0].isfinite().all())
        assert bool(gradients[0].any())
        Term("memory", AppliedSystem(), penalty)  # type: ignore[arg-type]
    assert Normality()(AppliedOperator()(system)).item() < 1e-12  # diagonal
    Term("normal", AppliedOperator(), Normality())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="MemoryBand takes a LinearSystem and AppliedOperator gives"):
        Term("t", AppliedOperator(), MemoryBand(0.1, 0.2))  # type: ignore[arg-type]


def test_applied_operators_leave_masked_steps_out() -> None:
    make, inputs = random_knowledge(LinearSystem, 0)
    mask = torch.arange(12) < torch.tensor([[12], [3]])
    assert AppliedOperator()(replace(make(*inputs), mask=mask)).shape == (15, 3, 2, 2)
    assert AppliedOperator()(make(*inputs)).shape == (2, 12, 3, 2, 2)
    dense = Dense(torch.eye(2))
    assert AppliedOperator()(dense) is dense
    with pytest.raises(TypeError, match="AppliedSystem takes a system"):
        AppliedSystem()(dense)
    with pytest.raises(TypeError, match="AppliedOperator takes a system or a structured operator"):
        AppliedOperator()(torch.eye(2))  # type: ignore[arg-type]


def test_normality_is_bounded_by_departures() -> None:
    """12 Δ⁴/(n³ − n) ≤ ‖AᴴA − AAᴴ‖² ≤ 6 Δ² ‖A‖², Δ² = ‖A‖² − Σ|λ|² by numpy; at most 2 ‖A‖⁴, at a shift of two."""
    for seed in range(20):
        size = 2 + seed % 6
        matrix = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).triu()
        square = float(matrix.square().sum())
        departure = square - float((np.abs(np.linalg.eigvals(matrix.numpy())) ** 2).sum())
        commutator = Normality()(Dense(matrix)).item() * square**2
        assert 12 * departure**2 / (size**3 - size) <= commutator * (1 + 1e-9)
        assert commutator <= 6 * departure * square * (1 + 1e-9)
        assert commutator <= 2 * square**2
    assert Normality()(Dense(torch.tensor([[0.0, 3.0], [0.0, 0.0]]))).item() == pytest.approx(2.0)
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert Normality()(Dense(rotation)).item() < 1e-28


def test_departure_is_relative() -> None:
    """1 − Σ|λ|²/‖A‖² by numpy, whatever the scale; 1 for a nilpotent matrix."""
    matrix = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = np.linalg.eigvals(matrix.numpy())
    expected = 1 - float((np.abs(values) ** 2).sum()) / float(matrix.square().sum())
    for scale in (1e-60, 1.0, 1e60):
        assert HenriciDeparture()(Dense(scale * matrix)).item() == pytest.approx(expected, rel=1e-10)
    assert HenriciDeparture(0.5)(Dense(torch.tensor([[0.0, 7.0], [0.0, 0.0]]))).item() == pytest.approx(0.25)


def test_normality_does_not_depend_on_scale_or_unitary_change() -> None:
    matrix = torch.randn(2, 5, 5, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    unitary = torch.linalg.qr(matrix[0])[0]
    reference = Normality()(Dense(matrix))
    assert_close(Normality()(Dense(1e-60 * matrix)), reference)
    assert_close(Normality()(Dense(unitary @ matrix @ unitary.mH)), reference)


def test_lyapunov_distance_is_the_sum_of_squares() -> None:
    values = torch.tensor([[0.5, -0.25, -3.0], [0.0, -1.0, -2.0]], dtype=torch.float64)
    found = Exponents(values, torch.zeros_like(values))
    assert LyapunovDistance()(found).item() == pytest.approx((0.25 + 0.0625 + 9 + 1 + 4) / 2)
    assert LyapunovDistance(0.0, -2.0)(found).item() == pytest.approx((0.25 + 0.75**2 + 1) / 2)


def test_density_band_is_the_mean_excess() -> None:
    nodes = torch.tensor([[-2.0, 0.0, 3.0], [1.0, 2.0, 4.0]], dtype=torch.float64)
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]], dtype=torch.float64)
    expected = 0.5 * (0.5 * 1 + 0.25 * 4 + 0.3 * 1 + 0.5 * 9)
    assert DensityBand(-1.0, 1.0)(Density(nodes, weights)).item() == pytest.approx(expected)


def test_density_distance_is_unbiased() -> None:
    """Its mean over estimates from two probes is the distance of the true density, the naive square's is not."""
    penalty = DensityDistance(Signed(-1.0, 1.0), width=0.1)
    law = torch.tensor([-0.5, 0.2, 0.9], dtype=torch.float64)
    share = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    truth = penalty(Density(law.expand(2, 3), share.expand(2, 3))).item()
    draws = torch.multinomial(share, 2000, replacement=True, generator=torch.Generator().manual_seed(0))
    nodes = law[draws].view(1000, 2, 1)  # each probe finds one eigenvalue, as often as there are some
    estimates = torch.stack([penalty(Density(pair, torch.ones_like(pair))) for pair in nodes])
    error = estimates.std().item() / math.sqrt(len(estimates))
    assert abs(estimates.mean().item() - truth) < 4 * error
    assert error < 0.1 * abs(truth) + 0.02


def test_density_distance_sees_the_scale() -> None:
    """The target's values on [−3, 3] are nearer to a law there than those on [−1, 1]."""
    nodes = (6 * midpoints(200) - 3).expand(2, -1)
    density = Density(nodes, torch.full_like(nodes, 1 / 200))
    assert DensityDistance(Signed(), scale=3.0)(density).item() < 1e-4
    assert DensityDistance(Signed(), scale=1.0)(density).item() > 0.1
    with pytest.raises(ValueError, match="at least 2 probes, got 1"):
        DensityDistance(Signed())(Density(nodes[:1], nodes[:1]))
