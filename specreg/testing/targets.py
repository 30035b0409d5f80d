"""The conformance tests of a target spectrum, for our members and for anybody's.

A target passes when the values that it draws, hands out as quantiles and accepts are those of one law. Plain
assertions: any runner that calls methods named `test_…` will do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kstest
from torch import Tensor

from specreg.spectrum import Spectrum, log_timescale
from specreg.targets import Planar, Target
from specreg.targets.base import fold

__all__ = ["TargetConformance", "spectrum_of"]

_DRAWS = 4000
_COUNTS = (1, 2, 7, 64, 1000)


class TargetConformance(ABC):
    """The tests that every target passes: subclass it, give `make`.

    `significance` is the p-value below which a Kolmogorov–Smirnov test of 4000 seeded draws fails; draws are the same
    on every run.
    """

    significance: float = 1e-3

    @abstractmethod
    def make(self) -> Target:
        """The target under test, a frozen dataclass."""

    def test_draws_lie_inside(self) -> None:
        """`contains` holds for all that is drawn and for all quantiles, and for no value outside the support."""
        target = self.make()
        given = [target.quantiles(count) for count in _COUNTS]
        for log_modulus, phase in (target.sample(_DRAWS, _generator()), *given):
            assert bool(target.contains(log_modulus, _phase(log_modulus, phase)).all())
        low, high = target.support()
        below = low - 1e-3 if math.isfinite(low) else math.nan  # nothing is smaller than λ = 0
        outside = torch.tensor([below, high + 1e-3, math.nan], dtype=torch.float64)
        assert not bool(target.contains(outside, torch.zeros(3)).any())
        if target.max_phase is not None and target.max_phase < math.pi - 1e-3:
            assert not bool(target.contains(target.quantiles(1)[0], torch.tensor([target.max_phase + 1e-3])).any())

    def test_draws_are_seeded(self) -> None:
        """Equal generators give equal draws, in float64, and torch's global generator is left alone."""
        target, before = self.make(), torch.get_rng_state()
        first, second = target.sample(50, _generator()), target.sample(50, _generator())
        assert first[0].shape == (50,)
        assert first[0].dtype == torch.float64
        assert torch.equal(first[0], second[0])
        assert (first[1] is None) == (second[1] is None) == (target.max_phase is None)
        assert torch.equal(before, torch.get_rng_state())

    def test_moduli_follow_the_law(self) -> None:
        """Draws of log|λ| put through their law are uniform, by Kolmogorov–Smirnov; atoms are split at random."""
        target = self.make()
        drawn, _ = target.sample(_DRAWS, _generator())
        assert kstest(_probability(target.log_modulus_quantile, drawn), "uniform").pvalue > self.significance

    def test_phases_follow_the_law(self) -> None:
        """Draws of the phase, likewise; uniform where the law says no more than a largest phase."""
        target = self.make()
        _, phase = target.sample(_DRAWS, _generator())
        if phase is None:
            return
        assert kstest(_probability(target.phase_quantile, phase), "uniform").pvalue > self.significance
        if type(target).phase_quantile is Target.phase_quantile:
            assert kstest(phase.numpy(), "uniform", args=(0, target.max_phase)).pvalue > self.significance

    def test_phases_do_not_follow_the_moduli(self) -> None:
        """Rank correlation of draws within five standard errors of 0, unless the law is planar."""
        target = self.make()
        drawn, phase = target.sample(_DRAWS, _generator())
        if phase is None or isinstance(target, Planar):
            return
        ranks = np.argsort(np.argsort(drawn.numpy())), np.argsort(np.argsort(phase.numpy()))
        assert abs(np.corrcoef(*ranks)[0, 1]) < 5 / math.sqrt(_DRAWS)

    def test_quantiles_are_increasing_and_inside(self) -> None:
        """log|λ| does not fall with the probability, and stays within the support; log τ is −log(−log|λ|)."""
        target = self.make()
        probability = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
        log_modulus = target.log_modulus_quantile(probability)
        low, high = target.support()
        assert bool((log_modulus[1:] >= log_modulus[:-1]).all())
        assert low - 1e-12 <= float(log_modulus[0]) <= float(log_modulus[-1]) <= high + 1e-12
        torch.testing.assert_close(target.log_timescale_quantile(probability), -(-log_modulus).log())

    def test_quantiles_spread_phases_over_moduli(self) -> None:
        """The phases of 64 quantiles are no function of the moduli: rank correlation under a quarter."""
        target = self.make()
        _, phase = target.quantiles(64)
        if phase is not None and not isinstance(target, Planar):
            assert abs(np.corrcoef(np.arange(64), np.argsort(np.argsort(phase.numpy())))[0, 1]) < 0.25

    def test_quantiles_are_at_the_target(self) -> None:
        """`quantiles(n)` have a distance of at most 1e-5, in float32 and float64, in any order, conjugated or not."""
        target = self.make()
        for count in _COUNTS:
            log_modulus, phase = target.quantiles(count)
            order = torch.randperm(count, generator=_generator())
            phase = _phase(log_modulus, phase)
            for sign in (1, -1):
                for dtype in (torch.float32, torch.float64):
                    spectrum = spectrum_of(log_modulus[order].to(dtype), sign * phase[order].to(dtype))
                    assert target.distance(spectrum).item() <= 1e-5

    def test_distance_is_positive_elsewhere(self) -> None:
        """Other moduli or phases have a distance: for timescales that all fall, the mean fall in log τ."""
        target = self.make()
        log_modulus, phase = target.quantiles(64)
        phase = _phase(log_modulus, phase)
        for shift in (0.1, 0.5):
            moved = log_modulus * math.exp(shift)
            expected = (log_timescale(log_modulus) - log_timescale(moved)).mean()
            distance = target.timescale_distance(spectrum_of(moved, phase))
            assert abs(distance.item() - expected.item()) < 1e-6
            assert expected.item() > 0.01
        if target.max_phase:
            aside = target.phase_distance(spectrum_of(log_modulus, torch.zeros_like(phase))).item()
            assert abs(aside - fold(phase).mean().item()) < 1e-6
            assert target.distance(spectrum_of(log_modulus, 0.5 * phase)).item() > 0

    def test_distance_pulls(self) -> None:
        """It has a finite gradient everywhere, e^−10000 and growth of e^100 among it, and a step down it lowers it."""
        target = self.make()
        log_modulus, phase = target.quantiles(16)
        start = [log_modulus * math.exp(0.3) - 1e-3, _phase(log_modulus, phase) + 0.1]
        start[0][:4] = torch.tensor([-1e4, -1e-9, 1e-3, 100.0])
        inputs = [x.clone().requires_grad_() for x in start]
        distance = target.distance(spectrum_of(*inputs))
        gradients = torch.autograd.grad(distance, inputs, allow_unused=True)
        found = [torch.zeros_like(x) if g is None else g for x, g in zip(start, gradients, strict=True)]
        assert all(bool(gradient.isfinite().all()) for gradient in found)
        step = 1e-10 / max(float(gradient.abs().max()) for gradient in found)
        moved = [x - step * gradient for x, gradient in zip(start, found, strict=True)]
        assert target.distance(spectrum_of(*moved)).item() < distance.item()

    def test_nothing_counted_is_no_distance(self) -> None:
        """With every step masked out, whatever it holds, the distance is 0."""
        log_modulus = torch.full((1, 3, 1, 2), math.nan, dtype=torch.float64)
        ones = torch.ones(2, dtype=torch.long)
        spectrum = Spectrum(log_modulus, log_modulus, ones, torch.zeros(1, 3, dtype=torch.bool))
        assert self.make().distance(spectrum).item() == 0

    def test_the_picture_is_of_the_law(self) -> None:
        """Curves and points, and the boundary of areas, lie in the support; areas hold what is drawn at random."""
        target = self.make()
        outline = target.outline()
        assert outline.areas or outline.curves or outline.points
        for path in (*outline.areas, *outline.curves, *outline.points):
            assert path[0].shape == path[1].shape
            assert not bool(torch.stack(path).isnan().any())
            assert bool(target.contains(*path, tolerance=1e-5).all())
        drawn = target.sample(100, _generator())[0]
        ends = torch.cat([path[0] for path in (*outline.areas, *outline.curves, *outline.points)])
        assert float(ends.min()) - 1e-2 <= float(drawn.min())
        assert float(drawn.max()) <= float(ends.max()) + 1e-2

    def test_many_draws_are_near_the_target(self) -> None:
        """The distance of n draws shrinks: under a tenth of the law's own spread at n = 4000."""
        target = self.make()
        log_modulus, phase = target.sample(_DRAWS, _generator())
        tau = log_timescale(log_modulus)
        distance = target.timescale_distance(spectrum_of(log_modulus, _phase(log_modulus, phase))).item()
        assert distance < 0.1 * (float(tau.std()) + 1e-3)

    def test_record_is_the_target(self) -> None:
        """The repr evaluates to an equal target, which is hashable and refuses assignment."""
        target = self.make()
        names = {cls.__name__: cls for cls in _members(Target)}
        again = eval(repr(target), {"__builtins__": {}, "inf": math.inf}, names)
        assert again == target
        assert hash(again) == hash(target)
        try:
            setattr(target, fields(target)[0].name, 0.5)  # type: ignore[arg-type]
        except FrozenInstanceError:
            return
        raise AssertionError("a setting was assigned to; a target is a frozen dataclass")

    def test_phase_ranges_are_checked(self) -> None:
        """A phase range that is empty, negative, not a number or over a turn raises, and the message has the bounds."""
        target = self.make()
        if "max_phase" not in [field.name for field in fields(target)]:  # type: ignore[arg-type]
            return
        for bad in (0.0, -1.0, 6.3, math.nan, math.inf):
            try:
                replace(target, max_phase=bad)  # type: ignore[type-var]
            except ValueError as error:
                assert "max_phase" in str(error)
                assert "6.28" in str(error)
            else:
                raise AssertionError(f"max_phase={bad} was not refused")


def spectrum_of(log_modulus: Tensor, phase: Tensor) -> Spectrum:  # (m,), (m,)
    """One head at one step with these values, once each."""
    ones = torch.ones(len(log_modulus), dtype=torch.long)
    return Spectrum(log_modulus.view(1, 1, 1, -1), phase.view(1, 1, 1, -1), ones)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _phase(log_modulus: Tensor, phase: Tensor | None) -> Tensor:
    return torch.zeros_like(log_modulus) if phase is None else phase


def _members(cls: type) -> list[type]:
    found = [cls]
    children: list[type] = cls.__subclasses__()
    for child in children:
        found += _members(child)
    return found


def _probability(quantile: object, drawn: Tensor) -> NDArray[np.float64]:
    """Where each draw stands in the law, uniform if it follows it: the quantile function inverted on a fine grid."""
    assert callable(quantile)
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    values = quantile(grid).contiguous()
    below = torch.searchsorted(values, drawn - 1e-12).double()
    above = torch.searchsorted(values, drawn + 1e-12, right=True).double()
    spot = torch.rand(len(drawn), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return ((below + spot * (above - below)) / 200_000).numpy()
