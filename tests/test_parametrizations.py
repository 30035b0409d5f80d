"""Parametrisations: every member by the published conformance tests, and with targets and mixers."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
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
from specreg.parametrizations import Disc, TimescaleInterval
from specreg.penalties import TimescaleDistance
from specreg.studies.building import optimiser_groups
from specreg.studies.configuration import Optimiser
from specreg.system import LinearSystem
from specreg.targets import LogUniformTimescale
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


def test_every_member_has_a_test() -> None:
    tested = {type(case().make()) for case in ParametrizationConformance.__subclasses__()}
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
