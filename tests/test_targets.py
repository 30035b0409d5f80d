"""Targets: every member by the published conformance tests, and what each law says in closed form."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from scipy.signal import cont2discrete
from scipy.stats import kstest

from specreg import targets
from specreg.spectrum import Spectrum, polar
from specreg.targets import (
    Bilinear,
    Disk,
    Empirical,
    FourierGrid,
    HalfPlane,
    HippoLegS,
    LogUniformTimescale,
    Points,
    PowerSpectrum,
    Ring,
    S4DInv,
    S4DLin,
    S4DQuad,
    Sector,
    Signed,
    Target,
    TwoCluster,
    midpoints,
)
from specreg.targets.base import fold, represented
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
    "disk-of-free-phase": lambda: Disk(0.5, max_phase=None),
    "undamped-half-plane": lambda: HalfPlane(0.0, 1.0, math.pi),
    "negative-only": lambda: Signed(-0.9, -0.2),
    "all-signs": Signed,
    "one-step": lambda: S4DLin(32, 0.05, 0.05),
    "frequencies-that-fold": lambda: S4DQuad(64, 0.01, 0.01),
    "long-steps": lambda: HippoLegS(8, 0.5, 50.0),
    "bilinear-of-reals": lambda: Bilinear(HippoLegS(16, 0.01, 1.0)),
    "bilinear-at-one-step": lambda: Bilinear(S4DInv(16, 0.1, 0.1)),
    "odd-grid": lambda: FourierGrid(7, 3.0),
    "one-point": lambda: Points(0.5, -2.0),
    "points-on-zero-and-the-circle": lambda: Points(0.0, 0.0, 1.0, math.pi, 0.5, 1.0),
}


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestTargets(TargetConformance):
    @pytest.fixture(autouse=True, params=FORMS)
    def form(self, request: pytest.FixtureRequest) -> None:
        self.name: str = request.param

    def make(self) -> Target:
        return FORMS[self.name]()


def test_every_member_is_found() -> None:
    assert {Ring, LogUniformTimescale, TwoCluster} <= set(MEMBERS)
    assert {Disk, Sector, HalfPlane, Signed, HippoLegS, S4DLin, S4DInv, S4DQuad, FourierGrid} <= set(MEMBERS)
    assert {Points, Empirical, PowerSpectrum, Bilinear} <= set(MEMBERS)


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
        (lambda: Disk(0.0), r"radius over 0 and at most 1"),
        (lambda: Disk(math.nan), r"radius over 0"),
        (lambda: Sector(0.9, 0.5), r"sector\(0.9, 0.5\).*r_min < r_max"),
        (lambda: Sector(0.5, 0.9, 2.0, 1.0), r"min_phase < max_phase"),
        (lambda: Sector(0.5, 0.9, 0.0, 4.0), r"at most|<= π"),
        (lambda: Sector(0.5, 0.9, 0.0, None), r"min_phase < max_phase"),
        (lambda: HalfPlane(2.0, 1.0, 1.0), r"0 <= slowest < fastest"),
        (lambda: HalfPlane(0.0, 1.0, 1.0, step=0.0), r"a step over 0"),
        (lambda: HalfPlane(0.0, 1.0, 4.0), r"at most π"),
        (lambda: Signed(-1.5, 1.0), r"-1 <= low < high <= 1"),
        (lambda: Signed(0.5, 0.5), r"low < high"),
        (lambda: HippoLegS(0), r"multiple of 1, got 0"),
        (lambda: S4DLin(7), r"multiple of 2, got 7"),
        (lambda: S4DInv(8, 0.1, 0.01), r"shortest_step <= longest_step"),
        (lambda: S4DQuad(8, 0.0, 0.01), r"0 < shortest_step"),
        (lambda: Bilinear(Ring(0.5, 0.9)), r"continuous-time law"),  # type: ignore[arg-type]
        (lambda: FourierGrid(1, 5.0), r"size of at least 2"),
        (lambda: FourierGrid(8, 0.0), r"timescale over 0"),
        (lambda: Points(), r"in turn.*got 0"),
        (lambda: Points(0.5), r"in turn.*got 1"),
        (lambda: Points(-0.5, 0.0), r"moduli of at least 0"),
        (lambda: Points(0.5, math.inf), r"finite phases"),
        (lambda: Points(Ring(0.5, 0.9), 0.0), r"finite phases"),  # type: ignore[arg-type]
        (lambda: Empirical.from_spectrum(spectrum_of(torch.tensor([math.nan]), torch.zeros(1))), r"holds a NaN"),
        (lambda: PowerSpectrum.from_batch(torch.zeros(5)), r"\(B, T\) or channels"),
        (lambda: PowerSpectrum.from_batch(torch.zeros(5, 3)), r"at least 8 steps"),
        (lambda: PowerSpectrum.from_batch(torch.ones(5, 30)), r"constant"),
        (lambda: PowerSpectrum.from_batch(noise(64, 200)), r"white noise"),
        (lambda: PowerSpectrum.from_batch((8 * uniform(32, 100)).long()), r"white noise"),
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


def complex_quantiles(target: Target, count: int) -> np.ndarray[tuple[int], np.dtype[np.complex128]]:
    log_modulus, phase = target.quantiles(count)
    assert phase is not None
    return torch.polar(log_modulus.exp(), phase).numpy()  # type: ignore[no-any-return]


def legs(size: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The HiPPO-LegS matrix by its definition."""
    matrix = np.zeros((size, size))
    for n in range(size):
        for k in range(n + 1):
            matrix[n, k] = -(n + 1) if n == k else -math.sqrt(2 * n + 1) * math.sqrt(2 * k + 1)
    return matrix


def test_legs_is_the_spectrum_of_its_matrix() -> None:
    """By matrix exponential and by scipy's bilinear discretisation, at a size that a dense solve still gets right."""
    size, step = 6, 0.3
    exponential = np.linalg.eigvals(expm(step * legs(size)))
    np.testing.assert_allclose(np.sort(exponential), np.sort(complex_quantiles(HippoLegS(size, step, step), size).real))
    discrete, *_ = cont2discrete((legs(size), np.ones((size, 1)), np.eye(size), np.zeros((size, 1))), step, "bilinear")
    ours = complex_quantiles(Bilinear(HippoLegS(size, step, step)), size)
    np.testing.assert_allclose(np.sort(np.linalg.eigvals(discrete).real), np.sort(ours.real), rtol=1e-6)


def test_the_last_of_legs_is_negative_under_the_bilinear_rule() -> None:
    """N = 64 at Δ = 0.1: −0.5238 against 0.00166."""
    assert complex_quantiles(Bilinear(HippoLegS(64, 0.1, 0.1)), 64).real.min() == pytest.approx(-2.2 / 4.2)
    assert complex_quantiles(HippoLegS(64, 0.1, 0.1), 64).real.min() == pytest.approx(math.exp(-6.4))


@pytest.mark.parametrize(
    ("member", "frequency"),
    [
        (S4DLin, lambda n, size: math.pi * n),
        (S4DInv, lambda n, size: size / math.pi * (size / (2 * n + 1) - 1)),
        (S4DQuad, lambda n, size: (1 + 2 * n) ** 2 / math.pi),
    ],
)
def test_s4d_frequencies(member: type[S4DLin], frequency: Callable[[int, int], float]) -> None:
    """exp(Δa) and the bilinear map of −½ + iω, in complex arithmetic; folded where Δω passes π."""
    size, step = 16, 0.05
    a = np.array([-0.5 + 1j * frequency(n, size) for n in range(size // 2)])
    by_exponential, by_bilinear = np.exp(step * a), (1 + step * a / 2) / (1 - step * a / 2)
    target = member(size, step, step)
    for expected, law in ((by_exponential, target), (by_bilinear, Bilinear(target))):
        expected = np.where(expected.imag < 0, expected.conj(), expected)
        np.testing.assert_allclose(np.sort_complex(complex_quantiles(law, size // 2)), np.sort_complex(expected), 1e-9)


def test_steps_are_log_uniform() -> None:
    """The decay of every S4D mode is Δ/2: log Δ of draws is uniform on the range."""
    log_modulus, _ = S4DLin(16, 0.001, 0.1).sample(4000, torch.Generator().manual_seed(0))
    step = (-2 * log_modulus).log().numpy()
    assert kstest(step, "uniform", args=(math.log(0.001), math.log(100))).pvalue > 1e-3


def test_a_disk_is_the_circular_law() -> None:
    """Eigenvalues of a Gaussian matrix of size 300: moduli and phases are near, half the moduli are not."""
    matrix = 0.8 * noise(300, 300) / math.sqrt(300)
    log_modulus, phase = polar(torch.linalg.eigvals(matrix))
    assert Disk(0.8).timescale_distance(spectrum_of(log_modulus, phase)).item() < 0.1
    assert Disk(0.8).phase_distance(spectrum_of(log_modulus, phase)).item() < 0.1
    assert Disk(0.8).timescale_distance(spectrum_of(log_modulus - math.log(2), phase)).item() > 0.5


def test_a_half_plane_is_a_rectangle_of_exponents() -> None:
    """log λ / step has real parts of −2 to −0.1 and imaginary ones of 0 to 4, each evenly."""
    log_modulus, phase = HalfPlane(0.1, 2.0, 4.0, step=0.5).quantiles(50)
    assert phase is not None
    torch.testing.assert_close(log_modulus / 0.5, -2.0 + 1.9 * midpoints(50))
    torch.testing.assert_close((phase / 0.5).sort().values, 4.0 * midpoints(50))


@pytest.mark.parametrize("size", [2, 7, 16])
def test_a_fourier_grid_has_the_roots_of_unity(size: int) -> None:
    log_modulus, phase = FourierGrid(size, 10.0).quantiles(size)
    assert phase is not None
    roots = np.exp(2j * np.pi * np.arange(size) / size)
    torch.testing.assert_close(phase.sort().values, torch.from_numpy(np.abs(np.angle(roots))).sort().values)
    torch.testing.assert_close(log_modulus, torch.full((size,), -0.1, dtype=torch.float64))


def test_signed_is_uniform_on_the_axis() -> None:
    values = complex_quantiles(Signed(-0.5, 0.9), 70)
    np.testing.assert_allclose(values.real, -0.5 + 1.4 * midpoints(70).numpy(), atol=1e-12)
    assert np.abs(values.imag).max() < 1e-12


def test_points_of_complex_values() -> None:
    """Conjugates fold; the values come back as quantiles, whatever their order."""
    values = torch.tensor([0.5 + 0.5j, -0.3, 0.2 - 0.9j, 0.0])
    expected = np.sort_complex(np.array([0.5 + 0.5j, -0.3, 0.2 + 0.9j, 0.0]))
    np.testing.assert_allclose(np.sort_complex(complex_quantiles(Points.of(values), 4)), expected, atol=1e-7)
    assert Points(0.5, 1.0, 0.9, 2.0) == Points(0.5, 1, 0.9, 2)
    assert Points(0.5, 1.0, 0.9, 2.0) != Empirical(0.5, 1.0, 0.9, 2.0)


def test_empirical_is_met_by_its_own_spectrum() -> None:
    """All values are kept where they are few; moduli meet their own phases."""
    log_modulus, phase = -uniform(40, seed=1), 3 * uniform(40, seed=2)
    target = Empirical.from_spectrum(spectrum_of(log_modulus, phase))
    assert len(target.numbers) == 80
    assert target.distance(spectrum_of(log_modulus, -phase)).item() < 1e-9
    assert target.distance(spectrum_of(log_modulus, phase.flip(0))).item() > 0.05


def test_empirical_counts_what_counts() -> None:
    """Masked steps have no part, multiplicities have theirs, many values are thinned to a law that is near."""
    log_modulus = -uniform(2, 50, 3, 4, seed=1)
    phase = 3 * uniform(2, 50, 3, 4, seed=2)
    mask = torch.arange(50) < torch.tensor([[50], [20]])
    spoilt = torch.where(mask[:, :, None, None], log_modulus, math.nan)
    spectrum = Spectrum(spoilt, phase, torch.tensor([1, 2, 1, 1]), mask)
    target = Empirical.from_spectrum(spectrum, 100)
    assert len(target.numbers) == 200
    assert target.timescale_distance(spectrum).item() < 0.05
    assert target.phase_distance(spectrum).item() < 0.15
    nothing = Spectrum(spoilt, phase, torch.ones(4, dtype=torch.long), torch.zeros_like(mask))
    with pytest.raises(ValueError, match="no step of the spectrum counts"):
        Empirical.from_spectrum(nothing)


def autoregressive(count: int, length: int, poles: list[complex]) -> torch.Tensor:
    """x_t with the given poles, driven by white noise, by a plain loop."""
    coefficients = np.real(np.poly(poles))[1:]
    driven = noise(length + 200, count, seed=5).numpy()
    x = np.zeros_like(driven)
    for t in range(len(driven)):
        x[t] = driven[t]
        for lag, coefficient in enumerate(coefficients, 1):
            if t >= lag:
                x[t] -= coefficient * x[t - lag]
    return torch.from_numpy(x[200:].T.copy())


@pytest.mark.parametrize("memory", [5.0, 30.0])
def test_the_timescale_of_an_input_is_found(memory: float) -> None:
    """An AR(1) process has the autocorrelation e^{−k/τ}: its τ is the median of the law, its phase 0."""
    inputs = autoregressive(64, 600, [math.exp(-1 / memory)])
    log_modulus, phase = PowerSpectrum.from_batch(inputs.unsqueeze(-1)).quantiles(32)
    assert phase is not None
    assert (-1 / log_modulus).median().item() == pytest.approx(memory, rel=0.35)
    assert phase.median().item() < 0.06


def test_the_frequency_of_an_input_is_found() -> None:
    """An AR(2) process that turns by 0.8 a step, half of its steps spoilt and masked."""
    pole = 0.97 * complex(math.cos(0.8), math.sin(0.8))
    inputs = autoregressive(64, 600, [pole, pole.conjugate()])
    mask = torch.arange(600).expand(64, -1) < 300
    target = PowerSpectrum.from_batch(torch.where(mask, inputs, math.nan).unsqueeze(-1), mask)
    _, phase = target.quantiles(32)
    assert phase is not None
    assert phase.median().item() == pytest.approx(0.8, abs=0.06)


def test_the_period_of_tokens_is_found() -> None:
    """Tokens that repeat every 5 steps: phases are multiples of 2π/5, and timescales are long."""
    tokens = torch.stack([(torch.arange(200) + shift) % 5 for shift in range(5)])
    log_modulus, phase = PowerSpectrum.from_batch(tokens).quantiles(32)
    assert phase is not None
    off = (phase / (2 * math.pi / 5) - (phase / (2 * math.pi / 5)).round()).abs()
    assert off.max().item() < 0.05
    assert (-1 / log_modulus).min().item() > 100


def test_a_planar_distance_wants_each_modulus_at_its_own_phase() -> None:
    """Exchanged phases keep both marginal laws, and are seen; a shift of a law has its own length."""
    target = Points(0.5, 0.5, 0.9, 2.5)
    exchanged = spectrum_of(torch.tensor([0.5, 0.9]).double().log(), torch.tensor([2.5, 0.5]).double())
    assert target.timescale_distance(exchanged).item() < 1e-6
    assert target.phase_distance(exchanged).item() < 1e-6
    assert target.distance(exchanged).item() > 0.3
    log_modulus, phase = target.values
    for turned in (0.0, 0.2):
        moved = spectrum_of(log_modulus * math.exp(-0.3), phase + turned)
        assert target.distance(moved).item() == pytest.approx(math.hypot(0.3, turned), rel=5e-3)


def test_pairs_of_conjugates_are_half_as_many_points() -> None:
    """What a real matrix can meet; states of which one of each pair is held are all counted."""
    values = torch.linalg.eigvals(noise(10, 10))
    log_modulus, phase = polar(values)
    assert represented(spectrum_of(log_modulus, phase)) == 5
    assert represented(spectrum_of(log_modulus, fold(phase))) == 10
    assert represented(spectrum_of(log_modulus, 3 * uniform(10) - 1.5)) == 10
    assert represented(spectrum_of(log_modulus, torch.zeros(10))) == 10
    target = Points(0.5, 0.5, 0.9, 2.5)
    log_modulus, phase = target.values
    assert target.distance(spectrum_of(log_modulus.repeat(2), torch.cat((phase, -phase)))).item() < 1e-12


def test_frequencies_fold_at_the_step() -> None:
    """S4D-Quad at N = 64 turns by up to 12.6 radians at a step of 0.01: folded into [0, π]."""
    _, phase = S4DQuad(64, 0.01, 0.01).quantiles(32)
    assert phase is not None
    assert 0 <= phase.min().item() <= phase.max().item() <= math.pi


def test_pictures() -> None:
    """An annulus or a wedge as areas, circles and ranges of steps as curves, points as points with their conjugates."""
    assert len(Ring(0.5, 0.9).outline().areas) == 1
    assert len(Sector(0.5, 0.9, 0.5, 1.0).outline().areas) == 2
    assert len(TwoCluster(0.3).outline().curves) == 2
    assert len(TwoCluster(1.0).outline().curves) == 1
    assert len(S4DLin(16).outline().curves) == 16
    [points] = S4DLin(16, 0.1, 0.1).outline().points
    assert points[0].shape == (16,)
    [boundary] = Ring(0.5, 0.9, max_phase=1.0).outline().areas
    assert boundary[1].abs().max().item() == pytest.approx(1.0)
    assert sorted(set(boundary[0].exp().round(decimals=6).tolist())) == pytest.approx([0.5, 0.9])
