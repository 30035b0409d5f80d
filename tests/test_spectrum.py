"""Spectra: timescales, folded phases, weights, masks and heads."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck

from specreg.spectrum import SMALLEST_RATE, Spectrum, log_timescale
from specreg.testing.operators import assert_close
from specreg.testing.penalties import random_spectrum


def test_log_timescale_is_minus_log_of_the_rate() -> None:
    """τ = −1/log|λ|: 1 to 10⁶ steps, and a modulus of 1e-30, a 70th of a step."""
    tau = torch.tensor([1.0, 10.0, 1e3, 0.9e6], dtype=torch.float64)
    assert_close(log_timescale(-1 / tau), tau.log(), 1e-12)
    assert log_timescale(torch.tensor(math.log(1e-30))).item() == pytest.approx(-math.log(30 * math.log(10)))


def test_log_timescale_goes_on_past_one() -> None:
    """Same value and slope at 10⁶ steps, increasing for ever after, and constant below a decay of 10⁹ a step."""
    edge = torch.tensor([-SMALLEST_RATE], dtype=torch.float64)
    slopes = []
    for offset in (-1e-12, 1e-12):
        x = (edge + offset).requires_grad_()
        y = log_timescale(x)
        slopes.append(torch.autograd.grad(y.sum(), x)[0].item())
        assert y.item() == pytest.approx(-math.log(SMALLEST_RATE), abs=1e-5)
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-5)
    growing = torch.tensor([-1e-6, -1e-9, 0.0, 1e-9, 1e-3, 1.0, 1e4], dtype=torch.float64)
    assert bool((log_timescale(growing).diff() > 0).all())
    assert log_timescale(torch.tensor(-torch.inf)).item() == log_timescale(torch.tensor(-1e10)).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_timescale_is_finite_everywhere(dtype: torch.dtype) -> None:
    x = torch.tensor([-torch.inf, -1e30, -70, -1, -1e-6, -1e-30, 0, 1e-30, 1, 70, 1e4], dtype=dtype).requires_grad_()
    y = log_timescale(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert bool(y.isfinite().all())
    assert bool(gradient.isfinite().all())
    assert bool((gradient >= 0).all())


def test_log_timescale_has_the_right_gradient() -> None:
    x = torch.tensor([-5.0, -0.3, -0.01, 0.2], dtype=torch.float64, requires_grad=True)
    assert gradcheck(log_timescale, (x,), eps=1e-8)


def test_conjugates_fold_onto_one_phase() -> None:
    """|arg λ| in [0, π], whatever the number of turns, with the slope of the distance from the real axis."""
    phase = torch.tensor([0.0, 1.0, -1.0, math.pi, -math.pi, 4.0, 2 * math.pi + 1, -7.0], dtype=torch.float64)
    phase.requires_grad_()
    spectrum = Spectrum(torch.zeros(1, 1, 1, 8), phase.view(1, 1, 1, 8), torch.ones(8, dtype=torch.long))
    folded = spectrum.folded_phase.flatten()
    expected = torch.tensor([0, 1, 1, math.pi, math.pi, 2 * math.pi - 4, 1, 7 - 2 * math.pi], dtype=torch.float64)
    assert_close(folded, expected)
    (slope,) = torch.autograd.grad(folded.sum(), phase)
    assert slope.tolist()[:3] == [0, 1, -1]
    assert slope.tolist()[5:] == [-1, 1, -1]


def test_eigenvalues_are_the_polar_form() -> None:
    spectrum = random_spectrum(0)
    assert_close(spectrum.eigenvalues.abs(), spectrum.modulus)
    assert_close(spectrum.eigenvalues.angle(), spectrum.phase)


@pytest.mark.parametrize("log_modulus", [-math.inf, -100.0, -95.0, -1.0, 0.0, 5.0])
def test_eigenvalues_have_finite_gradients(log_modulus: float) -> None:
    """In float32 where the modulus is subnormal or 0 too: dλ/dlog|λ| = λ, dλ/dφ = iλ."""
    log, phase = (torch.full((1, 1, 1, 1), x, requires_grad=True) for x in (log_modulus, 0.7))
    value = Spectrum(log, phase, torch.ones(1, dtype=torch.long)).eigenvalues
    true = math.exp(log_modulus) * complex(math.cos(0.7), math.sin(0.7))
    assert value.item() == pytest.approx(true, rel=1e-6, abs=1e-44)
    gradients = torch.autograd.grad(value.real.sum(), (log, phase))
    assert [g.item() for g in gradients] == pytest.approx([true.real, -true.imag], rel=1e-5, abs=1e-44)


def test_spectra_are_compared_by_identity() -> None:
    """They hold tensors, whose == is not a truth value."""
    assert random_spectrum(0) != random_spectrum(0)


def test_weights_are_shares_of_counted_values() -> None:
    """Multiplicity over steps that count; they sum to 1, and to 0 where nothing counts."""
    spectrum = random_spectrum(0)
    mask = torch.arange(6) < torch.tensor([[4], [1]])
    weights = replace(spectrum, mask=mask).weights()
    assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    assert_close(weights[0, 0, 0], spectrum.multiplicity.double() / (6 * 5 * 3))
    assert torch.equal(weights > 0, mask[:, :, None, None].expand(weights.shape))
    assert not bool(replace(spectrum, mask=torch.zeros(2, 6, dtype=torch.bool)).weights().any())


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (1, 6), (2, 1), (2, 6)])
@pytest.mark.parametrize("mask_batch", [1, 2])
def test_size_one_axes_weigh_as_if_written_out(batch: int, steps: int, mask_batch: int) -> None:
    """The weights of a spectrum that does not vary along an axis are the sums over that axis of the expanded one's."""
    mask = torch.arange(6) < torch.tensor([[4], [2]])[:mask_batch]
    whole = random_spectrum(0)
    spectrum = replace(
        whole, log_modulus=whole.log_modulus[:batch, :steps], phase=whole.phase[:batch, :steps], mask=mask
    )
    written = replace(spectrum, log_modulus=spectrum.log_modulus.expand(2, 6, -1, -1)).weights()
    summed = written.sum(tuple(axis for axis, size in ((0, batch), (1, steps)) if size == 1), keepdim=True)
    assert spectrum.weights().shape == spectrum.log_modulus.shape
    assert_close(spectrum.weights(), summed if batch == 1 or steps == 1 else written)


def test_counted_holds_finite_values_where_nothing_counts() -> None:
    """A NaN at a masked step is replaced, everything else is the same object or the same values."""
    spectrum = random_spectrum(0)
    assert spectrum.counted() is spectrum
    mask = torch.arange(6).view(1, 6) < 4
    broken = replace(spectrum, log_modulus=spectrum.log_modulus.clone(), mask=mask)
    broken.log_modulus[:, 5] = math.nan
    counted = broken.counted()
    assert bool(counted.log_modulus.isfinite().all())
    assert torch.equal(counted.log_modulus[:, :4], spectrum.log_modulus[:, :4])
    assert torch.equal(counted.weights(), broken.weights())


def test_heads_and_detach() -> None:
    """One spectrum a head with the mask and multiplicity of the whole; detached values are cut off from the graph."""
    spectrum = random_spectrum(0)
    heads = spectrum.heads()
    assert len(heads) == 3
    assert torch.equal(torch.cat([head.log_modulus for head in heads], 2), spectrum.log_modulus)
    assert all(head.mask is spectrum.mask and head.multiplicity is spectrum.multiplicity for head in heads)
    traced = replace(spectrum, log_modulus=spectrum.log_modulus.clone().requires_grad_())
    assert not traced.detach().log_modulus.requires_grad
