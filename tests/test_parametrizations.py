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
from specreg.models.lru import LRU
from specreg.parametrizations import Disc, TimescaleInterval
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
