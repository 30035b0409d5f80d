"""Parametrisations: every member by the published conformance tests, and with targets and mixers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from specreg import parametrizations
from specreg.estimators import Exact
from specreg.initialisers import fit
from specreg.models.backbone import Backbone
from specreg.models.lru import LRU
from specreg.models.mamba2 import Mamba2
from specreg.models.mixer import Mixer
from specreg.models.pseudo_lti_mamba2 import PseudoLTIMamba2
from specreg.parametrizations import Disc, SchurStable, Sector, SignRange, TimescaleInterval, energy
from specreg.parametrizations import Ring as RingMap
from specreg.penalties import TimescaleDistance
from specreg.studies.building import optimiser_groups
from specreg.studies.configuration import Optimiser
from specreg.system import LinearSystem
from specreg.targets import LogUniformTimescale
from specreg.targets import Ring as TargetRing
from specreg.targets import Sector as TargetSector
from specreg.testing.parametrizations import ParametrizationConformance


class TestComplexDisc(ParametrizationConformance):
    radius = 0.9

    def make(self) -> nn.Module:
        return Disc(self.radius)

    def inside(self) -> Tensor:
        modulus = self.radius * torch.tensor([0.0, 1e-12, 0.5, 0.9, 0.999999], dtype=torch.float64)
        return torch.polar(modulus, torch.arange(5, dtype=torch.float64))

    def outside(self) -> list[Tensor]:
        return [self.radius * torch.tensor([x], dtype=torch.complex128) for x in (1.0, 1j, -1.5, 1e300)]

    def contains(self, value: Tensor) -> Tensor:
        return value.abs() < self.radius


class TestInterval(TestComplexDisc):
    radius = 1.0

    def inside(self) -> Tensor:
        return torch.tensor([0.0, 1e-12, -0.5, 0.9, -0.999999], dtype=torch.float64)

    def outside(self) -> list[Tensor]:
        return [torch.tensor([x], dtype=torch.float64) for x in (1.0, -1.0, 1.5, math.inf)]


class TestTimescaleInterval(ParametrizationConformance):
    shortest, longest = 2.0, 1000.0

    def make(self) -> nn.Module:
        return TimescaleInterval(self.shortest, self.longest)

    def inside(self) -> Tensor:
        low, high = math.log(self.shortest), math.log(self.longest)
        return -(low + (high - low) * torch.tensor([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64))

    def outside(self) -> list[Tensor]:
        return [torch.tensor([-math.log(tau)], dtype=torch.float64) for tau in (2.0, 1000.0, 1.0, 1e6, 1e-3)]

    def contains(self, value: Tensor) -> Tensor:
        return (-value > math.log(self.shortest)) & (-value < math.log(self.longest))


class TestTimescalesAroundOne(TestTimescaleInterval):
    shortest, longest = 1.0, 1024.0

    def outside(self) -> list[Tensor]:
        return [torch.tensor([-math.log(tau)], dtype=torch.float64) for tau in (1.0, 1024.0, 0.5, 1e6)]


class TestLongTimescales(TestTimescaleInterval):
    shortest, longest = 1e5, 2e5

    def outside(self) -> list[Tensor]:
        return [torch.tensor([-math.log(tau)], dtype=torch.float64) for tau in (1e5, 2e5, 1.0, 1e6)]


class TestRing(ParametrizationConformance):
    r_min, r_max = 0.5, 1.0

    def make(self) -> nn.Module:
        return RingMap(self.r_min, self.r_max)

    def inside(self) -> Tensor:
        share = torch.tensor([1e-6, 0.2, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
        return torch.polar(self.r_min + share * (self.r_max - self.r_min), torch.arange(5, dtype=torch.float64) - 2.5)

    def outside(self) -> list[Tensor]:
        radii = (self.r_min, self.r_max, 0.9 * self.r_min, 2.0, 1e300)
        return [torch.polar(torch.tensor([r], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)) for r in radii]

    def contains(self, value: Tensor) -> Tensor:
        return (value.abs() > self.r_min) & (value.abs() < self.r_max)

    def free(self) -> Tensor:
        """Within one turn."""
        return torch.complex(torch.linspace(-6, 6, 5).double(), torch.linspace(-3.1, 3.1, 5).double())


class TestThinRing(TestRing):
    r_min, r_max = 0.999, 0.9999

    def inside(self) -> Tensor:
        """Away from the edges by more than float32 can tell apart."""
        return torch.polar(torch.tensor([0.9991, 0.9995, 0.9998], dtype=torch.float64), torch.arange(3).double())

    def free(self) -> Tensor:
        return super().free()[1:4]


class TestDiscWithoutItsMiddle(TestRing):
    r_min, r_max = 0.0, 0.9

    def outside(self) -> list[Tensor]:
        return [torch.tensor([x], dtype=torch.complex128) for x in (0.0, 0.9, 2.0)]


class TestSector(TestRing):
    r_min, r_max = 0.2, 0.95
    min_phase, max_phase = -0.5, 2.0

    def make(self) -> nn.Module:
        return Sector(self.r_min, self.r_max, self.min_phase, self.max_phase)

    def inside(self) -> Tensor:
        modulus = super().inside().abs()
        share = torch.tensor([0.3, 1e-6, 0.5, 1 - 1e-6, 0.9], dtype=torch.float64)
        return torch.polar(modulus, self.min_phase + share * (self.max_phase - self.min_phase))

    def outside(self) -> list[Tensor]:
        middle = 0.5 * (self.min_phase + self.max_phase)
        places = ((0.9, self.max_phase + 0.1), (0.9, self.min_phase - 0.1), (1.0, middle), (0.1, middle))
        return [
            torch.polar(torch.tensor([r], dtype=torch.float64), torch.tensor([t], dtype=torch.float64))
            for r, t in places
        ]

    def contains(self, value: Tensor) -> Tensor:
        phase = value.angle()
        return super().contains(value) & (phase > self.min_phase) & (phase < self.max_phase)

    def free(self) -> Tensor:
        return 3 * torch.complex(torch.linspace(-2, 2, 5).double(), torch.linspace(2, -1, 5).double())


class TestUpperHalf(TestSector):
    min_phase, max_phase = 0.0, math.pi


class TestSignRange(ParametrizationConformance):
    low, high = -1.0, 1.0

    def make(self) -> nn.Module:
        return SignRange(self.low, self.high)

    def inside(self) -> Tensor:
        return self.low + (self.high - self.low) * torch.tensor([1e-6, 0.1, 0.5, 0.8, 1 - 1e-6], dtype=torch.float64)

    def outside(self) -> list[Tensor]:
        return [torch.tensor([x], dtype=torch.float64) for x in (self.low, self.high, 1.5, -1.5, math.inf)]

    def contains(self, value: Tensor) -> Tensor:
        return (value > self.low) & (value < self.high)


class TestUnevenSignRange(TestSignRange):
    low, high = -0.3, 0.99


class TestSchurStable(ParametrizationConformance):
    radius, dtype, size = 0.95, torch.float64, 3

    def make(self) -> nn.Module:
        return SchurStable(self.radius)

    def inside(self) -> Tensor:
        """Random of radius 0.9 and 0.999 of the largest, zero, a Jordan block of norm 3, a shift, multiples of one."""
        draw = torch.randn(self.size, self.size, dtype=self.dtype, generator=torch.Generator().manual_seed(0))
        unit = draw / torch.linalg.eigvals(draw).abs().max()
        shift = torch.diag(torch.ones(self.size - 1, dtype=self.dtype), 1)
        one = torch.eye(self.size, dtype=self.dtype)
        inner = (0.9 * unit, 0.999 * unit, 0 * one, 0.5 * one + 1.5 * shift, shift, -0.7 * one, 1e-30 * unit)
        return self.radius * torch.stack(inner)

    def outside(self) -> list[Tensor]:
        one = torch.eye(self.size, dtype=self.dtype).unsqueeze(0)
        shift = torch.diag(torch.ones(self.size - 1, dtype=self.dtype), 1).unsqueeze(0)
        return [self.radius * one, -2 * one, self.radius * one + shift, 1e30 * (one + shift), torch.eye(2)[:1]]

    def contains(self, value: Tensor) -> Tensor:
        return torch.linalg.eigvals(value.to(torch.complex128)).abs().amax(-1) < self.radius


class TestComplexSchurStable(TestSchurStable):
    radius, dtype, size = 1.0, torch.complex128, 2


def test_every_member_has_a_test() -> None:
    cases = [
        case for case in globals().values() if inspect.isclass(case) and issubclass(case, ParametrizationConformance)
    ]
    tested = {type(case().make()) for case in cases if not inspect.isabstract(case)}
    members = {
        member
        for member in vars(parametrizations).values()
        if inspect.isclass(member) and issubclass(member, nn.Module) and member.__module__ == parametrizations.__name__
    }
    assert members == tested


def test_a_target_is_assigned_through_a_constraint() -> None:
    """An LRU constrained to the interval of its target is initialised by it: distance under 1e-5."""
    mixer, target = LRU(4, d_state=16), LogUniformTimescale(1, 1024)
    mixer.initialise(LogUniformTimescale(2, 3))
    register_parametrization(mixer, "log_rate", TimescaleInterval(1, 1024))
    mixer.log_rate = (-target.quantiles(16)[0]).log().float()  # type: ignore[assignment]
    spectrum = Exact()(mixer.with_system(torch.zeros(1, 3, 4))[2])
    assert target.distance(spectrum).item() < 1e-5


def constrained(shortest: float = 1, longest: float = 1024) -> LRU:
    """An LRU that starts at timescales of 2 to 3 steps and cannot leave an interval."""
    mixer = LRU(4, d_state=16, init=LogUniformTimescale(2, 3))
    register_parametrization(mixer, "log_rate", TimescaleInterval(shortest, longest))
    return mixer


def applied(mixer: Mixer) -> LinearSystem:
    return mixer.with_system(torch.zeros(1, 3, mixer.d_model))[2]


def test_initialising_goes_through_a_constraint() -> None:
    """`initialise` gives the target, though `log_rate` is a computed tensor, and refuses what lies outside."""
    mixer, target = constrained(), LogUniformTimescale(1, 1024)
    mixer.initialise(target)
    assert target.distance(Exact()(applied(mixer))).item() < 1e-5
    with pytest.raises(ValueError, match="between 1 and 1024 steps"):
        mixer.initialise(LogUniformTimescale(1, 5000))


class Shifted(nn.Module):
    """x ↦ x + 1."""

    def forward(self, free: Tensor) -> Tensor:
        return free + 1

    def right_inverse(self, value: Tensor) -> Tensor:
        return value - 1


@pytest.mark.parametrize("member", [LRU, Mamba2, PseudoLTIMamba2])
def test_every_parameter_may_be_parametrised(member: type[Mixer]) -> None:
    """A mixer whose parameters are all computed is initialised alike, and hands out what is trained."""
    mixer, target = member.example(), LogUniformTimescale(2, 500)
    for module in list(mixer.modules()):
        for name, _ in list(module.named_parameters(recurse=False)):
            register_parametrization(module, name, Shifted())
    mixer.initialise(target)
    u = torch.randn(1, 3, mixer.d_model)
    measured = Exact()(mixer.with_system(u)[2]).log_modulus[0, 0].flatten().double().sort().values
    torch.testing.assert_close(measured, target.quantiles(len(measured))[0], rtol=1e-5, atol=0)
    assert {id(p) for p in mixer.spectral_parameters()} <= {id(p) for p in mixer.parameters()}
    assert len(list(mixer.spectral_parameters())) == len(mixer.spectral_names)


def test_constrained_parameters_stay_in_their_group() -> None:
    """The unconstrained values behind them are the spectral group: no weight decay, a rate of their own."""
    mixer = constrained()
    model = Backbone([mixer], num_classes=2, max_length=3, vocab_size=2)
    groups = optimiser_groups(model, Optimiser(spectral_learning_rate=0.5, weight_decay=0.1))
    [spectral] = [group for group in groups if group["lr"] == 0.5]
    assert {id(p) for p in spectral["params"]} == {id(p) for p in mixer.spectral_parameters()}
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in model.parameters()}
    names = {name for name, p in mixer.named_parameters() for q in spectral["params"] if p is q}
    assert names == {"parametrizations.log_rate.original", "log_phase"}
    assert spectral["weight_decay"] == 0


def test_a_constrained_spectrum_is_fitted() -> None:
    mixer, target = constrained(), LogUniformTimescale(2, 512)
    parameters = [p for p in mixer.spectral_parameters() if p is not mixer.log_phase]
    reached = fit(lambda: {"layer": applied(mixer)}, parameters, target, learning_rate=0.2)
    assert reached < 0.05
    assert target.distance(Exact()(applied(mixer))).item() == pytest.approx(reached, rel=1e-4)


def test_training_never_leaves_the_interval() -> None:
    """Adam at a rate of 1 toward timescales that the interval, of 1 to 64 steps, does not have."""
    mixer, penalty = constrained(longest=64), TimescaleDistance(LogUniformTimescale(100, 1000))
    optimiser = torch.optim.Adam(mixer.spectral_parameters(), lr=1.0)
    before = Exact()(applied(mixer)).log_timescale.min().item()
    for _ in range(20):
        optimiser.zero_grad()
        penalty(Exact()(applied(mixer))).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        timescale = Exact()(applied(mixer)).log_timescale
        assert 0 < timescale.min().item() <= timescale.max().item() < math.log(64)
    assert timescale.min().item() > before + 1


def test_the_way_to_the_edge_is_monotone() -> None:
    """In float32, where |z|² leaves the number range from 2e19 on."""
    free = torch.tensor([0.0, 1.0, 10.0, 1e10, 1e25, 1e38])
    modulus = Disc()(free)
    assert bool((modulus.diff() > -1e-6).all())
    assert modulus[-1].item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_discs_without_a_size_are_refused(radius: float) -> None:
    with pytest.raises(ValueError, match="finite radius over 0"):
        Disc(radius)


@pytest.mark.parametrize(("shortest", "longest"), [(0.0, 1.0), (2.0, 2.0), (3.0, 2.0), (1.0, math.inf), (math.nan, 2)])
def test_intervals_without_a_size_are_refused(shortest: float, longest: float) -> None:
    with pytest.raises(ValueError, match="0 < shortest < longest"):
        TimescaleInterval(shortest, longest)


@pytest.mark.parametrize(
    ("make", "allowed"),
    [
        (lambda: RingMap(0.9, 0.5), "0 <= r_min < r_max"),
        (lambda: RingMap(0.5, math.inf), "0 <= r_min < r_max"),
        (lambda: Sector(0.5, 0.9, 1.0, 0.5), "min_phase < max_phase"),
        (lambda: Sector(0.5, 0.9, 0.0, 4.0), "3.1416"),
        (lambda: SignRange(1.0, -1.0), "finite low < high"),
        (lambda: SchurStable(0.0), "finite radius over 0"),
        (lambda: SchurStable()(torch.zeros(2, 3)), "square matrices"),
        (lambda: SchurStable().right_inverse(torch.zeros(3)), "square matrices"),
        (lambda: SchurStable().right_inverse(torch.eye(2)), "below 1.0 by more than the rounding"),
        (lambda: SchurStable().right_inverse(torch.full((2, 2), math.nan)), "spectral radius below"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], object], allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        make()


@pytest.mark.parametrize("size", [1, 2, 7])
def test_energy_is_the_sum_over_powers(size: int) -> None:
    """Σ ‖A^k‖² by a loop, and n less than the trace of scipy's discrete Lyapunov solution."""
    draw = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    matrix = 0.8 * draw / torch.linalg.eigvals(draw).abs().max()
    powers, power = 0.0, matrix
    for _ in range(400):
        powers, power = powers + power.square().sum().item(), power @ matrix
    assert energy(matrix).item() == pytest.approx(powers, rel=1e-12)
    solution = solve_discrete_lyapunov(matrix.numpy(), torch.eye(size).numpy())
    assert energy(matrix).item() == pytest.approx(float(solution.trace()) - size, rel=1e-10)
    assert energy(torch.stack((matrix, 2 * matrix, 0 * matrix))).tolist() == pytest.approx([powers, 1e100, 0.0])


def test_a_stable_scalar_has_a_closed_form() -> None:
    """a²/(1 − a²) = x² gives a = x/√(1 + x²), the real disc's map."""
    free = torch.tensor([-1e6, -2.0, -1e-8, 0.0, 0.5, 30.0], dtype=torch.float64).requires_grad_()
    stable = SchurStable(0.9)(free.view(-1, 1, 1)).flatten()
    expected = 0.9 * free / (1 + free.square()).sqrt()
    torch.testing.assert_close(stable, expected, rtol=1e-12, atol=0)
    weights = torch.arange(6, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((weights * x).sum(), free)[0] for x in (stable, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_the_gradient_at_the_edge_is_that_of_the_bound() -> None:
    """Where S(A)·‖A‖ = room holds a nilpotent A, S being a polynomial, against finite differences across the ray."""
    draw = torch.randn(2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).tril(-1)
    free, across = 1e12 * draw[0], 1e12 * draw[1]
    module = SchurStable()
    leaf = free.clone().requires_grad_()
    weights = torch.arange(9, dtype=torch.float64).view(3, 3)
    (gradient,) = torch.autograd.grad((weights * module(leaf)).sum(), leaf)
    ahead, behind = ((weights * module(free + step * across)).sum() for step in (1e-4, -1e-4))
    assert (gradient * across).sum().item() == pytest.approx((ahead - behind).item() / 2e-4, rel=1e-5)


def test_stability_is_kept_where_the_matrix_is_far_from_normal() -> None:
    """Large steps up the norm of a 12×12 recurrent weight in float32, and its own radius never reaches 1."""
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(0.5 * torch.diag(torch.ones(11), 1)))
    register_parametrization(module, "weight", SchurStable())
    optimiser = torch.optim.Adam(module.parameters(), lr=1.0)
    for _ in range(60):
        optimiser.zero_grad()
        module.weight.square().sum().neg().backward()  # type: ignore[operator, union-attr]
        optimiser.step()
        weight = module.weight
        assert isinstance(weight, Tensor)
        assert torch.linalg.eigvals(weight.detach().double()).abs().max().item() < 1
    assert weight.norm().item() > 3


def test_a_sector_and_a_ring_hold_their_targets() -> None:
    """The quantiles of the targets of the same name can be assigned, and come out again."""
    for target, module in (
        (TargetRing(0.5, 0.99, math.pi), RingMap(0.5, 0.99)),
        (TargetSector(0.5, 0.9), Sector(0.5, 0.9, 0, math.pi)),
    ):
        log_modulus, phase = target.quantiles(50)
        assert phase is not None
        value = torch.polar(log_modulus.exp(), phase)
        torch.testing.assert_close(module(module.right_inverse(value)), value)
