"""Lyapunov exponents: closed forms, Newman's formula, gradients against differences, windows, masks, splits."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from specreg.estimators.lyapunov import Lyapunov, StepProducts
from specreg.operators import Dense, Diagonal, ScaledIdentity
from specreg.spectrum import Exponents
from specreg.system import System
from specreg.testing.operators import assert_close

FULL = os.environ.get("SPECREG_FULL") == "1"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=seeded(seed))


def from_singular_values(matrices: Tensor) -> Tensor:
    """log σ_i(J_T … J_1)/T of the explicit product, for short ones."""
    product = torch.eye(matrices.shape[-1], dtype=matrices.dtype).expand_as(matrices[:, 0])
    for matrix in matrices.unbind(1):
        product = matrix @ product
    return torch.linalg.svdvals(product).log() / matrices.shape[1]


def systems_of(operator: Dense | Diagonal | ScaledIdentity, mask: Tensor | None) -> System:
    batch, steps, heads, size, _ = operator.shape
    steps = steps if mask is None else mask.shape[1]
    batch = batch if mask is None else mask.shape[0]
    inputs = torch.zeros(1, 1, 1, size, 1, dtype=torch.float64)
    values = torch.zeros(batch, steps, heads, 1, 1, dtype=torch.float64)
    return System(operator, inputs, inputs.mT, values, mask=mask)


def test_gaussian_products_meet_newmans_formula() -> None:
    """Λ_i = ½ [log 2 + ψ((n − i + 1)/2)] for i.i.d. normal entries, within four standard errors, and 2 % in all."""
    size, steps, batch = 4, 4000 if FULL else 1000, 16
    found = Lyapunov(size)(Dense(random(batch, steps, 1, size, size)))
    index = torch.arange(1, size + 1, dtype=torch.float64)
    expected = 0.5 * (math.log(2) + torch.digamma((size - index + 1) / 2))
    mean, error = found.values.mean((0, 1)), found.standard_error.square().mean((0, 1)).div(batch).sqrt()
    assert ((mean - expected).abs() < 4 * error).all()
    assert (error < 0.02).all()


def test_sum_of_all_is_the_mean_log_determinant() -> None:
    for dtype in (torch.float64, torch.complex128):
        matrices = random(2, 60, 3, 5, 5, dtype=dtype)
        found = Lyapunov(5)(Dense(matrices)).values.sum(-1)
        assert_close(found, torch.linalg.slogdet(matrices)[1].mean(1), 1e-12)


def test_diagonal_and_scalar_are_time_means() -> None:
    """Exactly, sorted, real and complex, against a QR of the same as dense matrices."""
    for operator in (Diagonal.example(), ScaledIdentity.example()):
        exponents = Lyapunov(4)(operator)
        logs = operator.log_modulus().repeat_interleave(operator.multiplicity(), -1)
        assert_close(exponents.values, logs.mean(1).sort(-1, descending=True)[0], 1e-14)
        assert exponents.basis is None
        assert Lyapunov(2)(operator).values.shape == (2, 3, 2)
    # off by O(1/T) of boundary terms
    decays = 0.3 * random(1, 4000, 1, 3) - torch.tensor([0.0, 0.5, 1.5])
    dense = Lyapunov(3)(Dense(torch.diag_embed(decays.exp())))
    assert_close(dense.values, Lyapunov(3)(Diagonal(decays)).values, 5e-3)


def test_triangular_products_have_their_diagonals() -> None:
    """From the identity an upper triangular product is its own decomposition: the mean log-diagonal to rounding."""
    diagonal = torch.tensor([2.0, 1.0, 0.5, 1e-3]).double() * (0.2 * random(2, 300, 2, 4, seed=1)).exp()
    matrices = torch.diag_embed(diagonal) + random(2, 300, 2, 4, 4, seed=2).triu(1)
    start = Exponents(torch.zeros(0), torch.zeros(0), torch.eye(4).double().expand(2, 2, 4, 4))
    expected = diagonal.log().mean(1).sort(-1, descending=True)[0]
    assert_close(Lyapunov(4)(Dense(matrices), start=start).values, expected, 1e-12)
    # from anywhere in the limit
    assert_close(Lyapunov(3)(Dense(matrices)).values, expected[..., :3], 0.1)


def test_constant_transitions_have_the_limit_itself() -> None:
    matrix = random(1, 1, 2, 5, 5)
    found = Lyapunov(5)(systems_of(Dense(matrix), torch.ones(3, 40, dtype=torch.bool)))
    assert_close(found.values, torch.linalg.eigvals(matrix[:, 0]).abs().log().sort(-1, descending=True)[0], 1e-12)
    assert (found.standard_error == 0).all()


def test_orthogonal_products_neither_grow_nor_fade() -> None:
    factors = torch.linalg.qr(random(2, 80, 1, 6, 6))[0]
    assert_close(Lyapunov(4)(Dense(factors)).values, torch.zeros(2, 1, 4, dtype=torch.float64), 1e-13)


def test_growth_of_a_short_product_is_that_of_its_volumes() -> None:
    """The sum of k exponents is log ‖Λ^k(J_T … J_1) applied to the start‖/T: determinants of small Gram matrices."""
    matrices = random(1, 3, 1, 6, 6, seed=4)
    basis = torch.linalg.qr(random(1, 1, 6, 2, seed=5))[0]
    found = Lyapunov(2)(Dense(matrices), start=Exponents(basis, basis, basis)).values.sum(-1)
    image = matrices[:, 2] @ matrices[:, 1] @ matrices[:, 0] @ basis
    assert_close(found, torch.logdet(image.mT @ image) / 6, 1e-13)
    assert found.item() <= from_singular_values(matrices[:, :, 0])[..., :2].sum().item() + 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradient_is_that_of_differences(dtype: torch.dtype) -> None:
    """Through the whole length, along random directions, real and complex, all and few exponents."""
    for size, count in ((5, 3), (4, 4), (1, 1)):
        matrices = random(2, 25, 2, size, size, dtype=dtype).requires_grad_()
        change = random(2, 25, 2, size, size, seed=1, dtype=dtype)
        coefficients = torch.arange(1, count + 1).double()

        def loss(x: Tensor, k: int = count, c: Tensor = coefficients) -> Tensor:
            return (Lyapunov(k, None)(Dense(x)).values * c).sum()

        (gradient,) = torch.autograd.grad(loss(matrices), matrices)
        slope = (loss(matrices + 1e-6 * change) - loss(matrices - 1e-6 * change)).item() / 2e-6
        assert (gradient.conj() * change).sum().real.item() == pytest.approx(slope, rel=1e-6, abs=1e-7)


def network(weight: Tensor, batch: int, steps: int, cut: int | None) -> StepProducts:
    """The Jacobians diag(1 − h_t²) W of h_t = tanh(W h_{t−1}), by products; states cut every `cut` steps."""
    size, states = weight.shape[0], []
    state = random(batch, size, seed=9).to(weight.dtype)
    for t in range(steps):
        state = torch.tanh((state.detach() if cut is not None and t % cut == 0 else state) @ weight.T)
        states.append(state)

    def product(t: int, columns: Tensor) -> Tensor:
        flat = columns.squeeze(1).permute(1, 0, 2).flatten(1)
        image = (weight @ flat).unflatten(1, (batch, -1)).permute(1, 0, 2)
        return ((1 - states[t].square()).unsqueeze(-1) * image).unsqueeze(1)

    return StepProducts(product, (batch, 1), steps, size, weight.dtype, weight.device)


def test_products_alone_give_what_dense_jacobians_give() -> None:
    """A tanh network by products and as a stack of Jacobians; the gradient through its states against differences."""
    weight = (1.5 * random(7, 7) / 7**0.5).requires_grad_()
    by_products = Lyapunov(3, None)(network(weight, 3, 30, None))
    source = network(weight, 3, 30, None)
    columns = torch.eye(7, dtype=torch.float64).expand(3, 1, 7, 7)
    dense = torch.stack([source.product(t, columns) for t in range(30)], 1)
    assert_close(by_products.values, Lyapunov(3)(Dense(dense)).values, 1e-11)
    vector = random(3, 30, 1, 7)
    assert_close(source.mv(vector), Dense(dense).mv(vector), 1e-13)
    (gradient,) = torch.autograd.grad(by_products.values.sum(), weight)
    change = random(7, 7, seed=2)
    sums = [Lyapunov(3)(network(weight.detach() + h * change, 3, 30, None)).values.sum() for h in (1e-6, -1e-6)]
    assert (gradient * change).sum().item() == pytest.approx((sums[0] - sums[1]).item() / 2e-6, rel=1e-5)
    with pytest.raises(ValueError, match="adjoint_product"):
        source.adjoint()


def test_window_cuts_the_gradient_of_the_directions() -> None:
    """With windows of w steps it is the sum of what each window gives with its start held; values stay."""
    matrices = random(1, 20, 1, 4, 4).requires_grad_()
    whole, windowed = (Lyapunov(2, window)(Dense(matrices)) for window in (None, 5))
    assert_close(whole.values, windowed.values, 1e-12)
    (found,) = torch.autograd.grad(windowed.values.sum(), matrices)
    expected, start = torch.zeros_like(matrices), None
    for first in range(0, 20, 5):
        part = Lyapunov(2, None)(Dense(matrices[:, first : first + 5]), start=start)
        expected += torch.autograd.grad(part.values.sum() / 4, matrices)[0]
        start = part
    assert_close(found, expected, 1e-11)


def test_a_sequence_in_parts_is_the_sequence() -> None:
    """The mean of two parts' exponents, the second from the first one's basis."""
    matrices = random(2, 30, 1, 5, 5) * 10.0 ** -torch.arange(5)  # exponents that stay in order
    whole = Lyapunov(3)(Dense(matrices))
    first = Lyapunov(3)(Dense(matrices[:, :12]))
    second = Lyapunov(3)(Dense(matrices[:, 12:]), start=first)
    assert whole.basis is not None
    assert second.basis is not None
    sums = torch.stack((12 * first.values, 18 * second.values)).sum(0) / 30
    assert_close(sums, whole.values, 1e-12)
    assert_close(second.basis @ second.basis.mT, whole.basis @ whole.basis.mT, 1e-10)


def test_spacing_adapts_and_loses_no_digits() -> None:
    """Condition 1e4 a step beside orthogonal steps: as exact as one decomposition a step."""
    factors = torch.linalg.qr(random(1, 90, 1, 4, 4))[0]
    harsh = (torch.arange(90) // 30 == 1)[None, :, None, None]
    scales = torch.where(harsh, torch.tensor([1e3, 1.0, 1e-1, 1e-4]).double(), 1.0)
    matrices = factors @ torch.diag_embed(scales)
    product, logs = torch.eye(4).double(), torch.zeros(4).double()
    for matrix in matrices[0, :, 0]:
        product, triangle = torch.linalg.qr(matrix @ product)
        logs += triangle.diagonal().abs().log()
    start = Exponents(logs, logs, torch.eye(4).double()[None, None])
    found = Lyapunov(4)(Dense(matrices), start=start).values[0, 0]
    assert_close(found, (logs / 90).sort(descending=True)[0], 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_huge_and_tiny_transitions(scale: float, dtype: torch.dtype) -> None:
    """A factor of 1e±30 adds its log, in float32 too."""
    matrices = random(1, 40, 1, 3, 3)
    found = Lyapunov(3)(Dense(scale * matrices.to(dtype))).values.double()
    assert_close(found - math.log(scale), Lyapunov(3)(Dense(matrices)).values, 1e-4)


def test_singular_and_zero_transitions_have_infinite_decay_and_no_nan() -> None:
    """Rank one, nilpotent and zero steps beside random ones: −inf where lost, finite gradients, others as alone."""
    matrices = random(4, 12, 1, 4, 4)
    matrices[0] = random(12, 1, 4, 1, seed=1) * random(12, 1, 1, 4, seed=2)
    matrices[1] = torch.diag(torch.ones(3), 1).double()
    matrices[2] = 0
    leaf = matrices.clone().requires_grad_()
    values = Lyapunov(4)(Dense(leaf)).values
    finite = torch.isfinite(values)
    assert finite[0, 0].tolist() == [True, False, False, False]
    assert not finite[1:3].any()
    assert finite[3].all()
    (gradient,) = torch.autograd.grad(values[finite].sum(), leaf)
    assert torch.isfinite(gradient).all()
    alone = matrices[3:].clone().requires_grad_()
    basis = Lyapunov(4)(Dense(matrices * 0 + torch.eye(4))).basis
    assert basis is not None
    found = Lyapunov(4)(Dense(alone), start=Exponents(basis, basis, basis[3:])).values
    (expected,) = torch.autograd.grad(found.sum(), alone)
    assert_close(values[3:], found, 1e-12)
    assert_close(gradient[3:], expected, 1e-10)


@pytest.mark.parametrize("kind", [Dense, Diagonal, ScaledIdentity])
def test_masked_steps_count_out(kind: type[Dense | Diagonal | ScaledIdentity]) -> None:
    """As if they were not there, whatever they hold; their gradient is 0."""
    operator = kind.example() if kind is not Diagonal else replace(Diagonal.example(), angle=None)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, 4:] = False
    mask[1, 0] = mask[1, 3] = False

    def spoilt(field: Tensor) -> Tensor:
        field = field.clone()
        field[~mask] = torch.nan
        return field.requires_grad_() if field.is_floating_point() else field

    spoiled = operator.map(spoilt)
    estimator = Lyapunov(2, None)
    found = estimator(systems_of(spoiled, mask))
    for b in range(2):
        kept = operator.map(lambda field, b=b: field[b : b + 1, mask[b]])  # type: ignore[misc]
        start = None
        if kind is Dense:
            probe = estimator(systems_of(Dense(torch.eye(4).double().expand(2, 7, 3, 4, 4)), mask)).basis
            assert probe is not None
            start = Exponents(probe, probe, probe[b : b + 1])
        assert_close(found.values[b : b + 1], estimator(kept, start=start).values, 1e-12)
    names = {Dense: "matrix", Diagonal: "log_magnitude", ScaledIdentity: "log_factor"}
    (gradient,) = torch.autograd.grad(found.values.sum(), getattr(spoiled, names[kind]))
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()


def test_what_it_cannot_serve_is_refused() -> None:
    """With what was given, what is allowed and what to do."""
    matrices = random(2, 5, 1, 3, 3)
    with pytest.raises(TypeError, match="Dense"):
        Lyapunov(2)(matrices)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(B, T, H\)"):
        Lyapunov(2)(Dense(matrices[0]))
    with pytest.raises(ValueError, match="1 to 3"):
        Lyapunov(4)(Dense(matrices))
    with pytest.raises(ValueError, match="from 1 on"):
        Lyapunov(0)
    with pytest.raises(ValueError, match="from 1 on"):
        Lyapunov(1, 0)
    mask = torch.tensor([[True] * 5, [False] * 5])
    with pytest.raises(ValueError, match="batch element 1 has no step"):
        Lyapunov(2)(systems_of(Dense(matrices), mask))
    matrices[1, 3, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="batch element 1"):
        Lyapunov(2)(Dense(matrices))


def test_standard_error_is_the_scatter_of_means() -> None:
    """Over independent runs the means scatter as the standard errors say, or less: ends of blocks add to those."""
    found = Lyapunov(3)(Dense(random(200 if FULL else 60, 400, 1, 3, 3)))
    scatter = found.values.std(0)
    said = found.standard_error.square().mean(0).sqrt()
    assert ((said / scatter > 0.7) & (said / scatter < 1.6)).all()
    assert not found.standard_error.requires_grad


def test_second_derivatives_are_refused() -> None:
    matrices = random(1, 6, 1, 3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(Lyapunov(2)(Dense(matrices)).values.sum(), matrices, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(gradient.sum(), matrices)


def test_global_random_state_is_untouched_and_results_repeat() -> None:
    before = torch.get_rng_state()
    matrices = random(1, 9, 1, 3, 3)
    first, second = (Lyapunov(2)(Dense(matrices)).values for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_backward_is_linear_in_time() -> None:
    """Slices by unbind: the gradient of 400 steps costs less than 20 times that of 100."""

    def seconds(steps: int) -> float:
        leaf = (random(1, steps, 1, 64, 64) / 8).requires_grad_()
        loss = Lyapunov(4)(Dense(leaf)).values.sum()
        begin = time.process_time()
        loss.backward()
        return time.process_time() - begin

    seconds(20)
    few, many = (min(seconds(steps) for _ in range(3)) for steps in (100, 400))
    assert many < 20 * few + 0.02
