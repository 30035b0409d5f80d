"""Densities: quadrature and kernel polynomials against known spectra, their gradients, errors and unbiased squares."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specreg.estimators.base import Estimator
from specreg.estimators.kernel_polynomial import KernelPolynomial
from specreg.estimators.quadrature import LanczosQuadrature, draw_probes
from specreg.operators import Dense, Diagonal, LinearOperator, ScaledIdentity
from specreg.spectrum import Density
from specreg.system import System
from specreg.testing.operators import assert_close

FULL = os.environ.get("SPECREG_FULL") == "1"
SEEDS = 200 if FULL else 40
ESTIMATORS: list[Callable[..., Estimator[Density]]] = [LanczosQuadrature, KernelPolynomial]


class Product(LinearOperator):
    """A matrix known by its products with vectors alone."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.dtype, self.device = matrix, matrix.dtype, matrix.device

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    def mv(self, vector: Tensor) -> Tensor:
        return (self.matrix @ vector.unsqueeze(-1)).squeeze(-1)

    def adjoint(self) -> Product:
        return Product(self.matrix.mH)


def symmetric(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.randn(*shape, shape[-1], dtype=dtype, generator=draw)
    return (matrix + matrix.mH) / (2 * shape[-1] ** 0.5)


def rotated(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    size = eigenvalues.shape[-1]
    vectors = torch.linalg.qr(torch.randn(size, size, dtype=eigenvalues.dtype, generator=draw))[0]
    return (vectors * eigenvalues) @ vectors.mH


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_quadrature_of_a_full_krylov_space_is_dense_evaluation(dtype: torch.dtype) -> None:
    """k = n: each probe's moments and gradient are those of vᴴ f(A) v to rounding, batched."""
    matrix = symmetric(3, 2, 12, dtype=dtype).requires_grad_()
    density = LanczosQuadrature(12, 4)(Dense(matrix), seeded(1))
    assert density.nodes.shape == density.weights.shape == (3, 2, 4, 12)
    assert_close(density.weights.sum(-1), torch.ones(3, 2, 4, dtype=torch.float64), 1e-13)
    values = torch.linalg.eigvalsh(matrix.detach())
    assert_close(density.nodes, values.unsqueeze(-2).expand_as(density.nodes), 1e-10)
    probes = draw_probes(Dense(matrix), 4, seeded(1))
    form = torch.linalg.vecdot(probes, (torch.linalg.matrix_exp(matrix).unsqueeze(-3) @ probes.unsqueeze(-1))[..., 0])
    assert_close((density.weights * density.nodes.exp()).sum(-1), form.real, 1e-12)
    (gradient,) = torch.autograd.grad(density.moment(torch.exp)[0].sum(), matrix)
    (expected,) = torch.autograd.grad(form.real.mean(-1).sum(), matrix)
    assert_close(gradient, (expected + expected.mH) / 2, 1e-12)


def test_quadrature_is_exact_for_polynomials() -> None:
    """Values to degree 2k − 1, gradients to degree k; one degree more is not."""
    matrix, steps = symmetric(20).requires_grad_(), 4

    def at(degree: int, h: float) -> Tensor:
        moved = matrix.detach() + h * symmetric(20, seed=3)
        return LanczosQuadrature(20, 3)(Dense(moved), seeded(2)).moment(lambda x: x**degree)[0]

    density = LanczosQuadrature(steps, 3)(Dense(matrix), seeded(2))
    for degree, exact in ((1, True), (7, True), (8, False)):
        error = (density.moment(lambda x, d=degree: x**d)[0] - at(degree, 0.0)).abs().item()
        assert (error < 1e-13) == exact
    for degree, exact in ((1, True), (4, True), (5, False)):
        moment = density.moment(lambda x, d=degree: x**d)[0]
        (gradient,) = torch.autograd.grad(moment, matrix, retain_graph=True)
        slope = (gradient * symmetric(20, seed=3)).sum().item()
        error = abs(slope - (at(degree, 1e-5) - at(degree, -1e-5)).item() / 2e-5)
        assert (error < 1e-9) == exact, (degree, error)


def test_gradient_converges_to_the_dense_one() -> None:
    """Against vᵀ exp(A) v with the same probe: geometric in the number of steps, 1e-12 from 14 on."""
    errors = []
    for steps in (4, 8, 14):
        matrix = symmetric(40).requires_grad_()
        (found,) = torch.autograd.grad(
            LanczosQuadrature(steps, 2)(Dense(matrix), seeded(0)).moment(torch.exp)[0], matrix
        )
        (true,) = torch.autograd.grad(LanczosQuadrature(40, 2)(Dense(matrix), seeded(0)).moment(torch.exp)[0], matrix)
        errors.append(((found - true).norm() / true.norm()).item())
    assert errors[0] < 1e-2
    assert errors[1] < 1e-6
    assert errors[2] < 1e-12


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_wasserstein_error_is_within_the_bound(estimator: Callable[..., Estimator[Density]]) -> None:
    """At most t (λ_max − λ_min) from 12/t + ½ steps and 4 log(2n/η)/((n + 2) t²) probes, and falling as 1/steps."""
    size = 400
    spectra = [
        torch.linspace(-1, 3, size, dtype=torch.float64),
        torch.cos(torch.linspace(0, math.pi, size, dtype=torch.float64)),
        torch.linspace(0.01, 1, size, dtype=torch.float64).pow(4) * 10,
        torch.cat((torch.full((200,), -1.0), torch.full((200,), 1.0))).double(),
    ]
    for spectrum in spectra:
        operator, span = Dense(rotated(spectrum)), float(spectrum.max() - spectrum.min())
        errors = []
        for t in (0.4, 0.1):
            steps = math.ceil(12 / t + 0.5)
            probes = math.ceil(4 * math.log(2 * size / 0.01) / ((size + 2) * t * t))
            errors.append(float(estimator(steps, probes)(operator, seeded(3)).distance(spectrum)))
            assert errors[-1] <= t * span
        assert errors[1] <= max(0.6 * errors[0], 1e-2 * span)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_wasserstein_error_falls_with_steps(estimator: Callable[..., Estimator[Density]]) -> None:
    """With ample probes what is left is the blur of the steps: a factor 4 in steps takes off at least 2.5."""
    spectrum = torch.linspace(-1, 1, 300, dtype=torch.float64)
    operator = Dense(rotated(spectrum))
    few, many = (float(estimator(m, 400)(operator, seeded(1)).distance(spectrum)) for m in (8, 32))
    assert many * 2.5 < few < 1.0


def test_distance_is_that_of_scipy() -> None:
    """∫ |F − G| of two weighted laws, and its gradient."""
    scipy_stats = pytest.importorskip("scipy.stats")
    draw = seeded(4)
    nodes = torch.randn(2, 3, 5, dtype=torch.float64, generator=draw).requires_grad_()
    weights = torch.rand(2, 3, 5, dtype=torch.float64, generator=draw).softmax(-1)
    goal, share = (
        torch.randn(7, dtype=torch.float64, generator=draw),
        torch.rand(7, generator=draw).double().softmax(-1),
    )
    found = Density(nodes, weights).distance(goal, share)
    for b in range(2):
        expected = scipy_stats.wasserstein_distance(nodes[b].detach().flatten(), goal, weights[b].flatten() / 3, share)
        assert found[b].item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: Density(x, weights).distance(goal, share), nodes)


@pytest.mark.parametrize("estimator", [LanczosQuadrature(24, 24), KernelPolynomial(64, 24)])
def test_standard_errors_cover_at_their_rate(estimator: Estimator[Density]) -> None:
    """Value and gradient of (1/n) tr e^{A(θ)}: the truth lies in 90 % of Student's 90 % intervals."""
    size, hits, gradient_hits = 60, 0, 0
    base, slope = symmetric(size, seed=11), symmetric(size, seed=12)
    values, vectors = torch.linalg.eigh(base)
    truth = values.exp().mean()
    true_gradient = ((vectors * values.exp()) @ vectors.mT * slope).sum() / size
    quantile = 1.714  # of Student's law with 23 degrees of freedom, 95 %
    for seed in range(SEEDS):
        theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        density = estimator(Dense(base + theta * slope), seeded(seed))
        value, error = density.moment(torch.exp)
        gradient, gradient_error = density.moment_gradient(torch.exp, theta)
        hits += bool((value - truth).abs() <= quantile * error)
        gradient_hits += bool((gradient - true_gradient).abs() <= quantile * gradient_error)
    slack = 3.3 * math.sqrt(0.9 * 0.1 / SEEDS)
    assert abs(hits / SEEDS - 0.9) <= slack
    assert abs(gradient_hits / SEEDS - 0.9) <= slack


@pytest.mark.parametrize("distance", [0.0, 0.2])
@pytest.mark.parametrize("estimator", [LanczosQuadrature(16, 4), KernelPolynomial(96, 4)])
def test_squared_loss_is_unbiased(estimator: Estimator[Density], distance: float) -> None:
    """(m − c)² and its gradient over seeds: by pairs of probes and by halves right, by the plain square too large."""
    size = 30
    base, slope = symmetric(size, seed=21), symmetric(size, seed=22)
    values, vectors = torch.linalg.eigh(base)
    goal = values.exp().mean() - distance
    truth = torch.tensor(distance, dtype=torch.float64)
    true_gradient = 2 * truth * ((vectors * values.exp()) @ vectors.mT * slope).sum() / size
    samples: list[list[float]] = []
    for seed in range(3 * SEEDS):
        theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
        density = estimator(Dense(base + theta * slope), seeded(seed))
        left, right = density.split()
        assert left.nodes.shape[-2] + right.nodes.shape[-2] == 4
        pairs = density.squared_error(torch.exp, goal)
        halves = ((left.weights * left.nodes.exp()).sum(-1).mean(-1) - goal) * (
            (right.weights * right.nodes.exp()).sum(-1).mean(-1) - goal
        )
        plain = (density.moment(torch.exp)[0] - goal).square()
        (gradient,) = torch.autograd.grad(pairs, theta)
        samples.append([pairs.item(), halves.item(), gradient.item(), plain.item()])
    found = torch.tensor(samples, dtype=torch.float64)
    scores = (found.mean(0) - torch.stack((truth**2, truth**2, true_gradient, truth**2))) / (
        found.std(0) / math.sqrt(len(samples))
    )
    assert (scores[:3].abs() < 3.5).all()
    assert distance > 0 or scores[3] > 5


@pytest.mark.parametrize("estimator", [LanczosQuadrature(30, 6), KernelPolynomial(30, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_awkward_operators(estimator: Estimator[Density], dtype: torch.dtype) -> None:
    """Zero, identity, few distinct, repeated, nearly repeated, huge and tiny ones, size 1: finite, and right."""
    close = torch.tensor([1.0, 1 + 1e-9, 1 + 2e-9, 2.0, 2.0, 2.0])
    matrices = [
        torch.zeros(5, 5),
        torch.eye(7),
        torch.full((1, 1), -3.0),
        rotated(torch.tensor([1.0, 1, 1, 1, 2, 2, 2, 5])),
        rotated(close.double()),
        1e30 * torch.eye(4),
        1e-30 * symmetric(6),
        1e30 * symmetric(63),
    ]
    for matrix in matrices:
        leaf = matrix.to(dtype).requires_grad_()
        size = torch.linalg.matrix_norm(leaf.detach().double(), 2).to(dtype)
        density = estimator(Dense(leaf), seeded(0))
        scale = torch.where(size > 0, size, 1.0)
        moment = density.moment(lambda x, s=scale: (x / s) ** 2)[0]
        first = density.moment(lambda x, s=scale: x / s)[0]
        gradient, of_first = (torch.autograd.grad(m, leaf, retain_graph=True)[0] * scale for m in (moment, first))
        assert torch.isfinite(density.nodes).all()
        assert_close(density.weights.sum(-1), torch.ones_like(density.weights[..., 0]), 1e-5)
        assert torch.isfinite(gradient).all()
        # tr A has gradient I/n in expectation, and its trace in every sample
        assert of_first.diagonal().sum().item() == pytest.approx(1.0, abs=0.05)


def test_close_ritz_values_have_the_limit_of_the_gradient() -> None:
    """As two eigenvalues meet, the gradient goes over into that of the repeated one: no jump, no growth."""
    gradients, gaps = [], (0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-7, 1e-6)
    for gap in gaps:
        leaf = rotated(torch.tensor([-1.0, 0.5, 0.5 + gap, 2.0], dtype=torch.float64)).requires_grad_()
        density = LanczosQuadrature(4, 5)(Dense(leaf), seeded(3))
        loss = density.smoothed(torch.linspace(-1, 2, 7, dtype=torch.float64), 0.3).square().sum()
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    for gap, gradient in zip(gaps, gradients, strict=True):
        # the gradient itself moves by about the gap
        assert (gradient - gradients[0]).abs().max() < (1e-7 + 30 * gap) * gradients[0].abs().max()


def test_an_early_end_holds_up_no_other() -> None:
    """A batch of zero, identity and random gives each what it gives alone."""
    matrices = torch.stack((torch.zeros(9, 9).double(), torch.eye(9).double(), symmetric(9)))
    density = LanczosQuadrature(9, 3)(Dense(matrices), seeded(1))
    for found, matrix in zip(density.moment(torch.exp)[0], matrices, strict=True):
        form = torch.linalg.matrix_exp(matrix).diagonal().mean()
        assert found.item() == pytest.approx(form.item(), rel=0.2)
    assert_close(density.moment(torch.exp)[0][:2], torch.tensor([1.0, math.e], dtype=torch.float64), 1e-14)


@pytest.mark.parametrize("estimator", [LanczosQuadrature(10, 3), KernelPolynomial(32, 3)])
def test_products_alone_are_enough(estimator: Estimator[Density]) -> None:
    """An operator that has only `mv` gives what the dense one gives, gradient included."""
    results = []
    for wrap in (Dense, Product):
        leaf = symmetric(2, 15).requires_grad_()
        density = estimator(wrap(leaf), seeded(5))
        (gradient,) = torch.autograd.grad(density.moment(torch.exp)[0].sum(), leaf)
        results.append((density.nodes, density.weights, gradient))
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-12)


def test_systems_leave_masked_steps_out() -> None:
    """A NaN at a masked step is not seen; the axes of the steps that count are one."""
    transition = torch.randn(2, 4, 3, 5, dtype=torch.float64, generator=seeded(0))
    transition[0, 2] = torch.nan
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[0, 2] = False
    vectors = torch.zeros(1, 1, 1, 5, 1, dtype=torch.float64)
    values = torch.zeros(2, 4, 3, 1, 1, dtype=torch.float64)
    system = System(Diagonal(transition), vectors, vectors.mT, values, mask=mask)
    density = LanczosQuadrature(5, 2)(system)
    assert density.nodes.shape == (7, 3, 2, 5)
    assert_close(density.nodes[:, :, 0], transition[mask].sort(-1)[0].exp(), 1e-9)
    scalar = LanczosQuadrature(5, 2)(ScaledIdentity(transition[1, :, :, 0], 5))
    assert_close(scalar.nodes[..., 0], transition[1, :, :, 0, None].exp().expand(4, 3, 2), 1e-12)


@pytest.mark.parametrize("estimator", [LanczosQuadrature(8, 3), KernelPolynomial(32, 3)])
def test_what_is_not_symmetric_or_finite_is_refused(estimator: Estimator[Density]) -> None:
    """With the index of the batch element, and a bare tensor with what to do."""
    skewed = torch.stack((symmetric(6), torch.randn(6, 6, dtype=torch.float64, generator=seeded(1))))
    with pytest.raises(ValueError, match=r"symmetric operators: batch element \(1,\)"):
        estimator(Dense(skewed))
    infinite = symmetric(2, 3, 6)
    infinite[1, 2, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        estimator(Dense(infinite))
    with pytest.raises(TypeError, match="Dense"):
        estimator(skewed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 1 on"):
        LanczosQuadrature(0, 3)
    with pytest.raises(ValueError, match="at least 2 probes"):
        LanczosQuadrature(3, 1)(Dense(skewed[:1])).moment(torch.exp)


def test_kernel_polynomial_weights_are_a_law() -> None:
    """Not negative and of sum 1 by Jackson's kernel, on bounds that hold the spectrum; given bounds are checked."""
    matrix = symmetric(80)
    density = KernelPolynomial(50, 5)(Dense(matrix))
    assert density.weights.min() > -1e-15
    values = torch.linalg.eigvalsh(matrix)
    assert density.nodes.min() < values.min() < values.max() < density.nodes.max()
    assert (density.nodes.max() - density.nodes.min()) < 1.2 * (values.max() - values.min())
    with pytest.raises(ValueError, match="not inside its bounds"):
        KernelPolynomial(200, 5, bounds=(-0.2, 0.2))(Dense(matrix))
    assert KernelPolynomial(200, 5, bounds=(-3, 3))(Dense(matrix)).distance(values) < 0.1


def test_kernel_polynomial_has_second_derivatives() -> None:
    """Its moments are polynomials: gradgradcheck of a moment in a parameter."""
    base, slope = symmetric(8, seed=1), symmetric(8, seed=2)

    def moment(theta: Tensor) -> Tensor:
        estimator = KernelPolynomial(12, 3, bounds=(-4, 4))
        return estimator(Dense(base + theta * slope + theta**2 * base)).moment(torch.exp)[0]

    theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(moment, theta)
    assert torch.autograd.gradgradcheck(moment, theta)


def test_quadrature_refuses_second_derivatives() -> None:
    """Its gradient holds the basis: differentiated again it would be wrong, for a loss linear in the weights too."""
    matrix = symmetric(5).requires_grad_()
    moment = LanczosQuadrature(3, 2)(Dense(matrix)).moment(torch.exp)[0]
    (gradient,) = torch.autograd.grad(moment, matrix, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(gradient.square().sum(), matrix)


def test_smoothed_density_integrates_to_one_and_matches_the_spectrum() -> None:
    """Against the dense sum of normal laws."""
    values = torch.linspace(-1, 1, 100, dtype=torch.float64)
    points = torch.linspace(-2, 2, 401, dtype=torch.float64)
    found = LanczosQuadrature(100, 40)(Dense(rotated(values))).smoothed(points, 0.2)
    exact = (-0.5 * ((points - values.unsqueeze(-1)) / 0.2) ** 2).exp().mean(0) / (0.2 * math.sqrt(2 * math.pi))
    assert torch.trapezoid(found, points).item() == pytest.approx(1.0, abs=1e-4)
    assert (found - exact).abs().max() < 0.06
    with pytest.raises(ValueError, match="above 0"):
        Density(values[None], values[None]).smoothed(points, 0.0)


def test_probes_do_not_repeat_the_numbers_of_a_weight() -> None:
    """A matrix drawn under the seed that the estimator is given is estimated like any other."""
    size = 200
    matrix = torch.randn(size, size, dtype=torch.float64, generator=seeded(0))
    matrix = (matrix + matrix.mT) / (2 * size**0.5)
    for generator in (None, seeded(0)):
        value, error = LanczosQuadrature(40, 32)(Dense(matrix), generator).moment(lambda x: (2 * x).exp())
        assert abs(value - (2 * torch.linalg.eigvalsh(matrix)).exp().mean()) < 4 * error


def test_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    LanczosQuadrature(3, 2)(Dense(symmetric(5)))
    KernelPolynomial(5, 2)(Dense(symmetric(5)))
    assert torch.equal(before, torch.get_rng_state())
    assert not LanczosQuadrature(3, 2)(Dense(symmetric(5))).nodes.requires_grad
