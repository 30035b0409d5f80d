"""Structured operators: Householder products, diagonal plus rank one, diagonal plus low rank, chains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from specreg.eigen.dense import conditioned_eigenvalues
from specreg.operators import Dense, Diagonal, ScaledIdentity, StructuredOperator, diagonal_plus, householder
from specreg.operators.chain import Chain, dense_window
from specreg.operators.diagonal_plus import DiagonalPlusLowRank, DiagonalPlusRankOne
from specreg.operators.extended import Extended, digits, legs_words, secular_roots
from specreg.operators.householder import HouseholderProduct, RankOneUpdate
from specreg.testing.operators import OperatorConformance, assert_close, assert_same_values, naive_window


def normal(*shape: int, seed: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def products(factors: int, size: int, dtype: torch.dtype = torch.float64) -> HouseholderProduct:
    return HouseholderProduct(
        0.3 * normal(2, 7, 2), normal(2, 7, 2, factors).sigmoid(), normal(2, 7, 2, factors, size, seed=3, dtype=dtype)
    )


def rwkv(size: int) -> DiagonalPlusRankOne:
    """diag(w) − κ̂ (g∘κ̂)ᵀ with unit κ̂ and gates g in (0, 1)."""
    key = torch.nn.functional.normalize(normal(1, 6, 2, size), dim=-1)
    gate = normal(1, 6, 2, size, seed=5).sigmoid()
    return DiagonalPlusRankOne(
        -0.6 * normal(1, 6, 2, size, seed=6).sigmoid(), -key, key * gate, torch.zeros(1, 6, 2).double()
    )


def low_rank(rank: int, size: int = 3) -> DiagonalPlusLowRank:
    example = DiagonalPlusLowRank.example()
    poles = -1 - normal(2, 6, 1, size).abs() + 1j * normal(2, 6, 1, size, seed=8)
    left, right = 0.3 * normal(2, 2, 6, 1, size, rank, seed=9, dtype=torch.complex128)
    return replace(example, poles=poles, left=left, right=right)


FORMS: dict[str, Callable[[], StructuredOperator]] = {
    "rank one": RankOneUpdate.example,
    "rank one, positive": lambda: replace(RankOneUpdate.example(), sign=None),
    "rank one, 1×1": lambda: RankOneUpdate(normal(1, 6, 2), 0.3 * normal(1, 6, 2).sigmoid(), normal(1, 6, 2, 1)),
    "product": HouseholderProduct.example,
    "product, complex": lambda: products(2, 4, torch.complex128),
    "product of one": lambda: products(1, 3),
    "product of n": lambda: products(3, 3),
    "product of more than n": lambda: products(4, 3),
    "diagonal plus rank one": DiagonalPlusRankOne.example,
    "rwkv": lambda: rwkv(5),
    "diagonal plus rank one, mixed signs": lambda: DiagonalPlusRankOne(
        *normal(3, 2, 6, 2, 4, seed=11), normal(2, 6, 2)
    ),
    "low rank": DiagonalPlusLowRank.example,
    "low rank 2": lambda: low_rank(2),
    "low rank 0": lambda: low_rank(0),
    "low rank, cubed": lambda: replace(DiagonalPlusLowRank.example(), power=3),
    "chain": Chain.example,
    "chain of scalars": lambda: Chain((ScaledIdentity.example(), ScaledIdentity.example())),
    "chain of diagonals": lambda: Chain((Diagonal.example(), ScaledIdentity.example(), Diagonal.example())),
    "chain with one structure": lambda: Chain((ScaledIdentity.example(), RankOneUpdate.example())),
    "chain of two": lambda: Chain((DiagonalPlusRankOne.example(), RankOneUpdate.example()), normal(2, 7, 3)),
    "chain that spreads": lambda: Chain((Dense(normal(1, 1, 2, 4, 4)), Diagonal(normal(2, 6, 2, 4)))),
}


class TestStructuredOperators(OperatorConformance):
    @pytest.fixture(autouse=True, params=FORMS, ids=lambda name: name.replace(" ", "-"))
    def form(self, request: pytest.FixtureRequest) -> None:
        self.name: str = request.param

    def make(self) -> StructuredOperator:
        return FORMS[self.name]()


class TestHouseholder:
    @pytest.mark.parametrize("size", [1, 2, 63])
    def test_eigenvalues_are_the_paper_s(self, size: int) -> None:
        """α, n − 1 times, and α(1 − β‖k‖²), in numpy's own words."""
        log_alpha, beta, key = normal(1, 5, 2), normal(1, 5, 2, seed=1).sigmoid(), normal(1, 5, 2, size, seed=2)
        operator = RankOneUpdate(log_alpha, beta, key)
        alpha = np.exp(log_alpha.numpy())
        inner = alpha * (1 - beta.numpy() * (key.numpy() ** 2).sum(-1))
        np.testing.assert_allclose(operator.eigenvalues()[..., -1].real.numpy(), inner, rtol=1e-12)
        assert operator.multiplicity().tolist() == ([1] if size == 1 else [size - 1, 1])
        if size > 1:
            np.testing.assert_allclose(operator.eigenvalues()[..., 0].real.numpy(), alpha, rtol=1e-14)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("factors", [1, 2])
    def test_a_write_that_erases_has_a_finite_gradient(self, factors: int, dtype: torch.dtype) -> None:
        """β‖k‖² = 1 exactly: λ = 0, log|λ| = −inf, gradient 0 there and unchanged elsewhere in the batch."""
        keys = torch.eye(3, dtype=dtype)[:factors].expand(1, 2, 1, factors, 3).clone().requires_grad_()
        beta = torch.full((1, 2, 1, factors), 1.0, dtype=dtype)
        beta[0, 1] = 0.5
        beta.requires_grad_()
        log_alpha = torch.zeros(1, 2, 1, dtype=dtype, requires_grad=True)
        log_modulus, phase = HouseholderProduct(log_alpha, beta, keys).polar()
        assert bool((log_modulus[0, 0, 0, 1:] == -math.inf).all())
        total = log_modulus.clamp_min(-30).sum() + phase.sum()
        gradients = torch.autograd.grad(total, (log_alpha, beta, keys))
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        torch.testing.assert_close(gradients[1][0, 1, 0], torch.full((factors,), -2.0, dtype=dtype))

    @pytest.mark.parametrize("share", [1e-12, 1e-3, 0.4999999, 0.5, 1 - 1e-9, 1 + 1e-9, 1.5, 2.0])
    def test_weak_writes_keep_their_digits(self, share: float) -> None:
        """log|1 − β‖k‖²| against 40 digits: near 0 a plain difference has none left."""
        key = torch.tensor([[[[1.0, 0.0]]]]).double()
        operator = RankOneUpdate(torch.zeros(1, 1, 1).double(), torch.full((1, 1, 1), share, dtype=torch.float64), key)
        beta = float(operator.beta)
        with mpmath.workdps(40):
            exact = float(mpmath.log(abs(1 - mpmath.mpf(beta))))
        assert operator.log_modulus()[0, 0, 0, 1].item() == pytest.approx(exact, rel=1e-14)
        assert operator.phase()[0, 0, 0, 1].item() == (math.pi if beta > 1 else 0)

    def test_reflections_keep_all_moduli_at_one(self) -> None:
        """β = 2/‖k‖²: orthogonal products, on the unit circle, of determinant (−1)^m."""
        keys = normal(1, 4, 2, 3, 6)
        operator = HouseholderProduct(torch.zeros(1, 4, 2), 2 / keys.square().sum(-1), keys)
        assert_close(operator.log_modulus(), torch.zeros(1, 4, 2, 4).double())
        turn = operator.phase().sum(-1)
        assert_close(turn.cos(), -torch.ones_like(turn))

    def test_only_small_matrices_are_solved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """m eigenvalues from an m×m matrix, whatever n; one batched solve for all windows."""
        solved: list[tuple[int, ...]] = []
        solve = householder.eigenvalues

        def recorded(matrix: Tensor) -> Tensor:
            solved.append(tuple(matrix.shape))
            return solve(matrix)

        monkeypatch.setattr(householder, "eigenvalues", recorded)
        keys = torch.nn.functional.normalize(normal(1, 9, 1, 3, 200), dim=-1)
        operator = HouseholderProduct(torch.zeros(1, 9, 1), normal(1, 9, 1, 3).sigmoid(), keys)
        values = operator.eigenvalues()
        window = operator.window(4, 2)
        values_of_windows = window.eigenvalues()
        assert solved == [(1, 9, 1, 3, 3), (1, 3, 1, 12, 12)]
        for small, of in ((values, operator), (values_of_windows, window)):
            full = small.repeat_interleave(of.multiplicity(), -1)
            assert_same_values(full[:, :1], torch.linalg.eigvals(of.dense()[:, :1]))

    def test_a_window_is_a_view(self) -> None:
        """Overlapping windows of rank-one factors store no keys of their own."""
        operator = RankOneUpdate(normal(1, 100, 2), normal(1, 100, 2).sigmoid(), normal(1, 100, 2, 64))
        window = operator.window(20)
        assert isinstance(window, HouseholderProduct)
        assert window.keys.shape == (1, 81, 2, 20, 64)
        assert window.keys.untyped_storage().data_ptr() == operator.key.untyped_storage().data_ptr()

    @pytest.mark.parametrize("width", [3, 4, 5, 23])
    @pytest.mark.parametrize("stride", [1, 4])
    def test_wide_windows(self, width: int, stride: int) -> None:
        """Past n factors the products are dense, from pieces, values and gradients."""
        operator = products(2, 6)
        held = (operator.log_factor, operator.beta, operator.keys)
        fields = [field.repeat_interleave(4, 1).requires_grad_() for field in held]
        long = HouseholderProduct(*fields)
        found, plain = long.window(width, stride).dense(), naive_window(long.dense(), width, stride)
        assert_close(found, plain)
        weight = normal(*plain.shape)
        gradients = [torch.autograd.grad((result * weight).sum(), fields) for result in (found, plain)]
        for ours, theirs in zip(*gradients, strict=True):
            assert_close(ours, theirs)

    def test_constant_fields_spread_over_time(self) -> None:
        """One β for all steps, as a size-1 axis."""
        operator = RankOneUpdate(normal(1, 1, 2), normal(1, 1, 2).sigmoid(), normal(2, 8, 2, 3))
        for width in (2, 5):
            assert_close(operator.window(width).dense(), naive_window(operator.dense(), width, 1))

    def test_constant_fields_are_the_same_at_every_step(self) -> None:
        """`steps` of an operator of which some tensors vary, and `unroll` with them."""
        operator = RankOneUpdate(normal(1, 1, 2), normal(1, 1, 2).sigmoid(), normal(2, 8, 2, 3))
        steps = operator.steps(8)
        assert all(torch.equal(step.beta, operator.beta[:, 0]) for step in steps)
        assert_close(torch.stack([step.dense() for step in steps], 1), operator.dense(), 1e-14)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
    def test_condition_numbers_where_factors_vanish_or_repeat(self, dtype: torch.dtype) -> None:
        """Without β_1, with k_1 = k_2, or with k_1 = 0 it is one reflection, which is normal: κ is 1."""
        keys = normal(1, 3, 1, 2, 5, dtype=torch.promote_types(dtype, torch.float64)).to(dtype)
        beta = normal(1, 3, 1, 2).sigmoid().to(keys.real.dtype)
        beta[:, 0, :, 0] = 0
        keys[:, 1, :, 0] = keys[:, 1, :, 1]
        keys[:, 2, :, 0] = 0
        condition = HouseholderProduct(torch.zeros(1, 3, 1).to(beta), beta, keys.requires_grad_()).conditioned()[2]
        torch.testing.assert_close(condition, torch.ones(1, 3, 1, 3).to(beta), rtol=1e-5, atol=0)

    def test_a_product_can_be_far_from_normal(self) -> None:
        """A write of 1.9 and one of 1.2 at an angle of 1.2: κ is that of the dense product, where others have 1."""
        keys = torch.tensor([[1.0, 0, 0, 0], [math.cos(1.2), math.sin(1.2), 0, 0]]).double().expand(1, 1, 1, 2, 4)
        beta = torch.tensor([1.9, 1.2]).double().expand(1, 1, 1, 2)
        operator = HouseholderProduct(torch.zeros(1, 1, 1).double(), beta, keys)
        condition = operator.conditioned()[2]
        _, dense = conditioned_eigenvalues(operator.dense())
        torch.testing.assert_close(condition.max(), dense.max(), rtol=1e-9, atol=0)
        assert condition.max().item() > 2.7

    def test_long_windows_stay_in_range(self) -> None:
        """500 steps of α = e^−5 and of α = e^5: logs that no number holds, and the eigenvalues beside them."""
        for log_alpha in (-5.0, 5.0):
            keys = torch.nn.functional.normalize(normal(1, 500, 1, 1, 4), dim=-1)
            beta = torch.full((1, 500, 1, 1), 0.01, dtype=torch.float64)
            operator = HouseholderProduct(torch.full((1, 500, 1), log_alpha, dtype=torch.float64), beta, keys)
            plain = HouseholderProduct(torch.zeros(1, 500, 1).double(), beta, keys)
            product = torch.linalg.eigvals(naive_window(plain.dense(), 500, 1)).abs().log().sort().values
            found = operator.window(500).log_modulus().sort().values
            assert_close(found - 500 * log_alpha, product)


class TestDiagonalPlusRankOne:
    @pytest.mark.parametrize("size", [1, 2, 63])
    def test_secular_equation(self, size: int) -> None:
        """1 + Σ a_i b_i/(w_i − λ) = 0 in 50 digits, and the eigenvalues of RWKV-7 interlace with its decays."""
        operator = rwkv(size)
        values = operator.eigenvalues()[0, 0, 0].real.sort().values
        decays = operator.log_decay[0, 0, 0].exp().sort().values
        assert bool((values <= decays + 1e-15).all()) and bool((values[1:] >= decays[:-1] - 1e-15).all())
        poles, weights = operator.log_decay[0, 0, 0].exp(), (operator.left * operator.right)[0, 0, 0]
        with mpmath.workdps(50):
            for value in values.tolist():
                pairs = [
                    (c, 1 / (mpmath.mpf(w) - value)) for w, c in zip(poles.tolist(), weights.tolist(), strict=True)
                ]
                slope = mpmath.fsum(c * inverse**2 for c, inverse in pairs)
                assert abs((1 + mpmath.fsum(c * inverse for c, inverse in pairs)) / slope) < 1e-14

    def test_scaling_of_a_and_b_loses_nothing(self) -> None:
        """a·t and b/t with t from 1e−8 to 1e8: a dense solve loses half the digits, this none."""
        operator = rwkv(8)
        scaling = torch.logspace(-8, 8, 8, dtype=torch.float64)
        moved = replace(operator, left=operator.left * scaling, right=operator.right / scaling)
        assert_same_values(moved.eigenvalues(), operator.eigenvalues(), 1e-14)

    @pytest.mark.parametrize("case", ["no write", "no read", "one zero", "equal decays", "all zero", "no decay"])
    def test_degenerate_cases_are_finite(self, case: str) -> None:
        decay, left, right = (f.clone() for f in (rwkv(4).log_decay, rwkv(4).left, rwkv(4).right))
        if case in ("no write", "all zero"):
            left.zero_()
        if case in ("no read", "all zero"):
            right.zero_()
        if case == "one zero":
            left[..., 1] = 0
        if case == "equal decays":
            decay[:] = -0.5
        if case == "no decay":
            decay[:] = -math.inf
        fields = [field.requires_grad_() for field in (decay, left, right)]
        operator = DiagonalPlusRankOne(*fields, torch.zeros(1, 6, 2).double())
        assert_same_values(operator.eigenvalues(), torch.linalg.eigvals(operator.dense()), 1e-7)
        log_modulus, phase = operator.polar()
        for gradient in torch.autograd.grad(log_modulus.clamp_min(-40).square().sum() + phase.sum(), fields):
            assert bool(gradient.isfinite().all())

    def test_the_symmetric_solve_has_the_general_gradient(self) -> None:
        """Of Σ log|λ|² with respect to a, b and w: equal to that through the dense matrix."""
        operator = rwkv(5)
        fields = [f.detach().requires_grad_() for f in (operator.log_decay, operator.left, operator.right)]
        moved = DiagonalPlusRankOne(*fields, operator.log_factor)
        ours = torch.autograd.grad(moved.log_modulus().square().sum(), fields)
        theirs = torch.autograd.grad(torch.linalg.eigvals(moved.dense()).abs().log().square().sum(), fields)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)

    def test_a_nan_is_named(self) -> None:
        operator = rwkv(3)
        operator.left[0, 2, 1, 0] = math.nan
        with pytest.raises(ValueError, match=r"\(0, 2, 1\)"):
            operator.eigenvalues()


class TestLegS:
    @pytest.mark.parametrize("size", [1, 2, 3, 16, 31, 64])
    def test_continuous_eigenvalues_are_the_integers(self, size: int) -> None:
        """−1 … −N to the last digit, where a dense solve of the discretised matrix is off by more than 1 from 24 on."""
        operator = DiagonalPlusLowRank.legs(size, torch.full((1, 1, 2), -6.0).double())
        values = operator.continuous_eigenvalues()[0, 0, 1]
        order = values.real.argsort(descending=True)
        exact = -torch.arange(1, size + 1).to(torch.complex128)
        torch.testing.assert_close(values[order], exact, rtol=4e-16 if size > 3 else 1e-13, atol=0)
        half = math.exp(-6.0) / 2
        log_modulus, phase = operator.polar()
        mapped = torch.log((1 + half * exact.real) / (1 - half * exact.real))
        assert_close(log_modulus[0, 0, 1][order], mapped, 1e-13)
        assert_close(phase, torch.zeros_like(phase), 1e-13)
        if size == 31:
            half_step = torch.linalg.eigvals(operator.dense()[0, 0, 1])
            wrong = 2 * (half_step - 1) / (half_step + 1) / (2 * half)
            assert float((wrong[wrong.real.argsort(descending=True)] - exact).abs().max()) > 1

    @pytest.mark.parametrize("size", [2, 5, 8])
    def test_it_is_unitarily_similar_to_legs(self, size: int) -> None:
        """The singular values of A + sI are those of the triangular matrix, for several s."""
        n = np.arange(size)
        dense = -np.tril(np.sqrt(np.outer(2 * n + 1, 2 * n + 1)), -1) - np.diag(n + 1.0)
        ours = DiagonalPlusLowRank.legs(size, torch.zeros(1, 1, 1).double()).continuous()[0, 0, 0].numpy()
        for shift in (0, 0.5, 1 + 3j):
            found, true = (np.linalg.svd(m + shift * np.eye(size), compute_uv=False) for m in (ours, dense))
            np.testing.assert_allclose(found, true, rtol=1e-11)

    def test_float64_words_are_not_enough(self) -> None:
        """The parameters rounded to float64 have other eigenvalues, and those are found: residuals in 90 digits."""
        operator = replace(DiagonalPlusLowRank.legs(32, torch.zeros(1, 1, 1).double()), tails=None)
        values = operator.continuous_eigenvalues()[0, 0, 0]
        order = values.real.argsort(descending=True)
        assert float((values[order] + torch.arange(1, 33)).abs().max()) > 1
        with mpmath.workdps(90):
            poles = [mpmath.mpc(z) for z in operator.poles[0, 0, 0].tolist()]
            weights = [mpmath.mpc(z) ** 2 for z in operator.left[0, 0, 0, :, 0].tolist()]
            for value in values.tolist():
                f = 1 + mpmath.fsum(c / (value - p) for p, c in zip(poles, weights, strict=True))
                slope = mpmath.fsum(c / (value - p) ** 2 for p, c in zip(poles, weights, strict=True))
                assert abs(f / slope) < 4e-16 * abs(value)

    def test_gradient_is_that_of_the_secular_equation(self) -> None:
        """∂λ/∂Λ_i = (c_i/(λ − Λ_i)²)/s and ∂λ/∂P_i = (Q̄_i/(λ − Λ_i))/s, s = Σ c_j/(λ − Λ_j)², in 90 digits; N = 32."""
        operator = DiagonalPlusLowRank.legs(32, torch.zeros(1, 1, 1).double())
        poles, left = (f.detach().requires_grad_() for f in (operator.poles, operator.left))
        values = replace(operator, poles=poles, left=left).continuous_eigenvalues()[0, 0, 0]
        index = int((values.real + 16).abs().argmin())
        by_poles, by_left = torch.autograd.grad(values[index].real, (poles, left))
        words, roots = legs_words(32, 6)
        with mpmath.workdps(90):
            exact_poles = [mpmath.fsum(mpmath.mpc(w) for w in row) for row in words.tolist()]
            exact_left = [mpmath.fsum(mpmath.mpc(w) for w in row) for row in roots.tolist()]
            inverse = [1 / (-16 - p) for p in exact_poles]
            s = mpmath.fsum(c**2 * r**2 for c, r in zip(exact_left, inverse, strict=True))
            of_poles = [complex(mpmath.conj(c**2 * r**2 / s)) for c, r in zip(exact_left, inverse, strict=True)]
            of_left = [complex(mpmath.conj(c * r / s)) for c, r in zip(exact_left, inverse, strict=True)]
        np.testing.assert_allclose(by_poles[0, 0, 0].numpy(), of_poles, rtol=1e-12)
        np.testing.assert_allclose(by_left[0, 0, 0, :, 0].numpy(), of_left, rtol=1e-12)

    @pytest.mark.parametrize("size", [12, 32, 64])
    def test_condition_numbers_of_legs(self, size: int) -> None:
        """‖v‖‖y‖/|yᴴv| of v_i = P_i/(λ − Λ_i) in 90 digits, up to 1e45: κ of float64 vectors is 1e16 at most."""
        operator = DiagonalPlusLowRank.legs(size, torch.full((1, 1, 1), -5.0).double())
        log_modulus, _, condition = operator.conditioned()
        order = log_modulus[0, 0, 0].argsort(descending=True)
        words, roots = legs_words(size, 6)
        with mpmath.workdps(90):
            poles = [mpmath.fsum(mpmath.mpc(w) for w in row) for row in words.tolist()]
            left = [mpmath.fsum(mpmath.mpc(w) for w in row) for row in roots.tolist()]
            for k in (1, size // 2, size):
                v = [c / (-k - p) for c, p in zip(left, poles, strict=True)]
                square = mpmath.fsum(abs(x) ** 2 for x in v)
                expected = float(
                    square
                    / abs(mpmath.fsum(mpmath.conj(c) * c / (-k - p) ** 2 for c, p in zip(left, poles, strict=True)))
                )
                assert condition[0, 0, 0, order[k - 1]].item() == pytest.approx(expected, rel=1e-6)
        single = DiagonalPlusLowRank.legs(size, torch.full((1, 1, 1), -5.0)).conditioned()[2]
        assert single.dtype == torch.float32 and bool(single.isfinite().all())

    def test_both_paths_have_one_gradient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where float64 suffices the secular equation gives what the dense solve gives, conjugates and Q included."""
        operator = DiagonalPlusLowRank.example().map(lambda field: field[:1, :2, :1])
        fields = [f.detach().requires_grad_() for f in (operator.poles, operator.left, operator.right)]
        moved = DiagonalPlusLowRank(*fields, operator.log_step, operator.log_factor)
        found = []
        for trusted in (1e-9, 0.0):
            monkeypatch.setattr(diagonal_plus, "TRUSTED_ERROR", trusted)
            values = moved.continuous_eigenvalues()
            found.append([values, *torch.autograd.grad((values**3 * (1 + 2j)).imag.sum(), fields)])
        assert_same_values(found[0][0], found[1][0], 1e-13)
        for one, other in zip(found[0][1:], found[1][1:], strict=True):
            assert_close(one, other, 1e-11)

    def test_equal_matrices_are_solved_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        solve = diagonal_plus.secular_roots
        monkeypatch.setattr(diagonal_plus, "secular_roots", lambda *given: calls.append(1) or solve(*given))
        operator = DiagonalPlusLowRank.legs(12, normal(1, 1, 64))
        assert operator.log_modulus().shape == (1, 1, 64, 12)
        assert len(calls) == 1

    def test_single_precision(self) -> None:
        """In complex64 the words are split anew: same eigenvalues, and gradients that fit float32."""
        operator = DiagonalPlusLowRank.legs(64, torch.full((1, 1, 1), -5.0))
        poles = operator.poles.detach().requires_grad_()
        values = replace(operator, poles=poles).continuous_eigenvalues()
        assert values.dtype == torch.complex64
        torch.testing.assert_close(values.real.sort(descending=True).values[0, 0, 0], -torch.arange(1.0, 65))
        (gradient,) = torch.autograd.grad(values.real.sum(), poles)
        assert bool(torch.view_as_real(gradient).isfinite().all())


class TestDiagonalPlusLowRank:
    @pytest.mark.parametrize("case", ["no correction", "equal poles", "weight 0", "double root"])
    def test_what_has_no_separate_roots_goes_to_the_dense_solve(
        self, case: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(diagonal_plus, "TRUSTED_ERROR", 0.0)
        poles = torch.tensor([-1, -2, -3], dtype=torch.complex128)[None, None, None].clone()
        left = torch.full((1, 1, 1, 3, 1), 0.5, dtype=torch.complex128)
        if case == "no correction":
            left.zero_()
        if case == "equal poles":
            poles[..., 1] = -1
        if case == "weight 0":
            left[..., 2, :] = 0
        right = left.clone()
        if case == "double root":  # (λ + 1)(λ + 2) + ¼ has a double root at −3/2
            poles, left, right = poles[..., :2], left[..., :2, :], right[..., :2, :] * torch.tensor([[1.0], [-1.0]])
        fields = [f.detach().requires_grad_() for f in (poles, left, right)]
        operator = DiagonalPlusLowRank(*fields, *torch.zeros(2, 1, 1, 1).double())
        values = operator.continuous_eigenvalues()
        assert_same_values(values, torch.linalg.eigvals(operator.continuous()), 1e-6)
        for gradient in torch.autograd.grad(values.real.square().sum(), fields):
            assert float(gradient.abs().max()) < 100  # not that of one root of a pair, which is 1/eps

    def test_slow_decays_keep_their_digits(self) -> None:
        """log|λ| of a = −1e−9 + i at Δ = 1e−3 against 60 digits: |λ| itself is 1 in float64 but for its last digits."""
        pole, step = -1e-9 + 1j, 1e-3
        operator = DiagonalPlusLowRank(
            torch.full((1, 1, 1, 1), pole),
            *torch.zeros(2, 1, 1, 1, 1, 1, dtype=torch.complex128),
            torch.full((1, 1, 1), step).double().log(),
            torch.zeros(1, 1, 1).double(),
        )
        with mpmath.workdps(60):
            half = mpmath.mpc(pole) * mpmath.exp(mpmath.mpf(operator.log_step.item())) / 2
            exact = mpmath.log((1 + half) / (1 - half))
        log_modulus, phase = operator.polar()
        assert log_modulus.item() == pytest.approx(float(exact.real), rel=1e-13)
        assert phase.item() == pytest.approx(float(exact.imag), rel=1e-13)

    def test_a_step_that_erases_has_a_finite_gradient(self) -> None:
        """½Δa = −1: λ = 0."""
        log_step = torch.full((1, 1, 1), math.log(2.0), requires_grad=True, dtype=torch.float64)
        poles = torch.full((1, 1, 1, 1), -1.0, dtype=torch.complex128, requires_grad=True)
        zeros = torch.zeros(2, 1, 1, 1, 1, 1, dtype=torch.complex128)
        log_modulus, phase = DiagonalPlusLowRank(poles, *zeros, log_step, torch.zeros(1, 1, 1).double()).polar()
        assert log_modulus.item() < -30
        for gradient in torch.autograd.grad(log_modulus.clamp_min(-50).sum() + phase.sum(), (poles, log_step)):
            assert bool(torch.view_as_real(gradient + 0j).isfinite().all())

    def test_a_power_keeps_the_eigenvalues_digits(self) -> None:
        """Windows of a constant LegS system: w log|λ|, though the dense power's eigenvalues are long wrong."""
        operator = DiagonalPlusLowRank.legs(24, torch.full((1, 1, 1), -4.0).double())
        assert_close(operator.window(50).log_modulus(), 50 * operator.log_modulus())
        vector = normal(1, 1, 1, 24).to(torch.complex128)
        walked = vector
        for _ in range(50):
            walked = operator.mv(walked)
        assert_close(operator.window(50).mv(vector), walked)


def test_extended_numbers() -> None:
    """Arithmetic on sums of words against mpmath at 60 digits."""
    words = normal(4, 3, dtype=torch.complex128).numpy() * np.array([1, 1e-17, 1e-34])
    with digits(60), mpmath.workdps(60):
        ours = Extended.from_words(words)
        exact = [mpmath.fsum(mpmath.mpc(w) for w in row) for row in words.tolist()]
        result = (ours * ours + ours.reciprocal() - ours).sum()
        expected = mpmath.fsum(z * z + 1 / z - z for z in exact)
        assert abs(mpmath.mpf(str(result.real)) - expected.real) < mpmath.mpf(10) ** -57
        assert abs(mpmath.mpf(str(result.imag)) - expected.imag) < mpmath.mpf(10) ** -57


def test_secular_roots_of_a_random_equation() -> None:
    """Against LAPACK where that is accurate, from starting values that are nowhere near."""
    poles, left, right = (normal(9, seed=seed, dtype=torch.complex128).numpy() for seed in (1, 2, 3))
    found = secular_roots(poles[:, None], left[:, None], right[:, None], np.zeros(9, np.complex128))
    assert found is not None
    dense = np.linalg.eigvals(np.diag(poles) - np.outer(left, right))
    assert_same_values(torch.from_numpy(found.values)[None], torch.from_numpy(dense)[None], 1e-12)


class TestChain:
    def test_order_is_that_of_matrices(self) -> None:
        """The last factor first."""
        one, other = Dense(normal(3, 3)), Dense(normal(3, 3, seed=1))
        assert_close(Chain((one, other)).dense(), one.matrix @ other.matrix)

    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ValueError, match="sizes"):
            Chain((Dense(torch.eye(2)), Dense(torch.eye(3))))
        with pytest.raises(ValueError, match="at least one"):
            Chain(())
        with pytest.raises(ValueError, match="broadcast"):
            Chain((Dense(torch.zeros(2, 3, 3)), Dense(torch.zeros(4, 3, 3))))

    @pytest.mark.parametrize("name", ["dense", "rwkv", "low rank", "product"])
    def test_gradients_reach_every_factor(self, name: str) -> None:
        """Of eigenvalues and windows, against the product written out."""
        first = Dense.example() if name == "dense" else FORMS[name]()
        first = first.map(lambda field: field[:1, :4, :1])
        names = [f for f in ("matrix", "log_decay", "left", "right", "poles", "keys", "beta") if hasattr(first, f)]
        fields = [getattr(first, f).detach().requires_grad_() for f in names]
        moved = replace(first, **dict(zip(names, fields, strict=True)))
        second = Dense(normal(1, 4, 1, *first.shape[-2:], seed=12))
        chain = Chain((moved, second), normal(1, 4, 1))
        plain = moved.dense() @ second.matrix.to(moved.dense().dtype) * normal(1, 4, 1).exp()[..., None, None]
        ours = chain.log_modulus().sum() + chain.window(3).dense().abs().square().sum()
        theirs = torch.linalg.eigvals(plain).abs().log().sum() + naive_window(plain, 3, 1).abs().square().sum()
        for one, other in zip(*(torch.autograd.grad(x, fields) for x in (ours, theirs)), strict=True):
            assert_close(one, other, 1e-8)

    def test_dense_windows_stay_in_range(self) -> None:
        """400 steps of matrices of size e^±3, float32: a leading eigenvalue whose logarithm is beyond its range."""
        for log_size in (-3.0, 3.0):
            matrices = normal(1, 400, 1, 3, 3) * math.exp(log_size)
            window = dense_window(Dense(matrices.float()), 400)
            product, log = torch.eye(3, dtype=torch.float64), 0.0
            for matrix in matrices[0, :, 0]:
                product = matrix @ product
                log += math.log(product.abs().max())
                product = product / product.abs().max()
            expected = log + math.log(torch.linalg.eigvals(product).abs().max())
            assert window.log_modulus().max().item() == pytest.approx(expected, rel=1e-5)
