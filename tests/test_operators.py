"""Operators: every member against its dense matrix, in every form that it comes in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from specreg import operators
from specreg.operators import Dense, Diagonal, ScaledIdentity, StructuredOperator, windowed_sum
from specreg.spectrum import polar
from specreg.testing.operators import OperatorConformance, assert_close, naive_window

MEMBERS = [
    member
    for member in vars(operators).values()
    if inspect.isclass(member) and issubclass(member, StructuredOperator) and not inspect.isabstract(member)
]
FORMS: dict[str, Callable[[], StructuredOperator]] = {
    **{member.__name__: member.example for member in MEMBERS},
    "positive identity": lambda: replace(ScaledIdentity.example(), sign=None),
    "real diagonal": lambda: replace(Diagonal.example(), angle=None),
    "signed diagonal": lambda: Diagonal(Diagonal.example().log_magnitude, sign=signs(2, 7, 3, 4)),
    "complex dense": lambda: Dense(torch.complex(*normal(2, 2, 7, 3, 4, 4))),
    "one by one": lambda: Dense(normal(1, 6, 2, 1, 1)),
}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def signs(*shape: int) -> torch.Tensor:
    return normal(*shape).sign()


class TestOperators(OperatorConformance):
    @pytest.fixture(autouse=True, params=FORMS, ids=lambda name: name.replace(" ", "-"))
    def form(self, request: pytest.FixtureRequest) -> None:
        self.name: str = request.param
        self.holds_logs = not isinstance(self.make(), Dense)  # a matrix without structure has entries, not logs

    def make(self) -> StructuredOperator:
        return FORMS[self.name]()


def test_every_member_is_found() -> None:
    assert {Dense, Diagonal, ScaledIdentity} <= set(MEMBERS)


@pytest.mark.parametrize("length", [5, 40])
def test_window_of_logs_with_zeros(length: int) -> None:
    """Sums over windows that hold none, one or several −inf, and gradients that are finite, against a loop."""
    logs = normal(2, length, 3)
    logs[0, 1], logs[0, 2], logs[1, -1, 0] = -torch.inf, -torch.inf, -torch.inf
    logs.requires_grad_()
    for width in (1, 2, 5):
        for stride in (1, 2, 3):
            sums = windowed_sum(logs, width, stride)
            starts = range(0, length - width + 1, stride)
            assert_close(sums, torch.stack([logs[:, t : t + width].sum(1) for t in starts], 1))
            (gradient,) = torch.autograd.grad(sums[sums.isfinite()].sum(), logs)
            assert bool(gradient.isfinite().all())


def test_long_float32_windows_keep_their_digits() -> None:
    """A difference of float32 cumulative sums would lose 2e-4 at 4096 steps."""
    logs = -torch.rand(1, 4096, 1, generator=torch.Generator().manual_seed(0))
    sums = windowed_sum(logs, 4, 1)
    exact = logs.double().unfold(1, 4, 1).sum(-1)
    assert float((sums - exact).abs().max()) < 1e-6


def test_windows_of_negative_decays_alternate() -> None:
    """The sign of a window is the product of its signs: (−1)^width for one sign throughout."""
    operator = ScaledIdentity(torch.zeros(1, 6, 1, dtype=torch.float64), size=2, sign=-torch.ones(1, 6, 1))
    for width in (1, 2, 3, 4):
        assert_close(operator.window(width).dense(), naive_window(operator.dense(), width, 1))
        assert_close(operator.window(width).phase(), math.pi * (width % 2) * torch.ones(1, 7 - width, 1, 1).double())


def test_windows_of_phases_add_up() -> None:
    """Phases of a window are the sum of those of its steps, more than a turn if need be."""
    operator = Diagonal.example()
    assert operator.angle is not None
    expected = torch.stack([operator.angle[:, t : t + 3].sum(1) for t in range(5)], 1)
    assert_close(operator.window(3).phase(), expected)


def test_a_constant_sign_covers_all_steps() -> None:
    """A sign with size-1 axes gives phases of the full shape."""
    sign = -torch.ones(1, 1, 3, dtype=torch.float64)
    identity = ScaledIdentity(normal(2, 5, 3), 4, sign=sign)
    for operator in (identity, Diagonal(normal(2, 5, 3, 4), sign=sign.unsqueeze(-1))):
        assert operator.phase().shape == operator.log_modulus().shape
        assert_close(operator.window(2).dense(), naive_window(operator.dense(), 2, 1))


@pytest.mark.parametrize("modulus", [0.0, 1e-30, 1e-5, 1.0, 1e30])
@pytest.mark.parametrize("angle", [0.0, 0.7, math.pi / 2, math.pi, -math.pi])
def test_polar_has_finite_gradients_on_the_plane(modulus: float, angle: float) -> None:
    """In float32 too, where |z|² leaves the number range, and with a gradient in one of the two parts alone."""
    value = torch.polar(torch.tensor([modulus]), torch.tensor([angle])).requires_grad_()
    log_modulus, phase = polar(value)
    assert log_modulus.item() == pytest.approx(math.log(modulus) if modulus else -math.inf, abs=1e-5)
    if modulus:
        assert math.cos(phase.item() - angle) == pytest.approx(1.0)
    for part in (log_modulus.clamp_min(-1e3), phase):
        (gradient,) = torch.autograd.grad(part.sum(), value, retain_graph=True)
        assert bool(torch.view_as_real(gradient).isfinite().all())
        assert float(gradient.abs()) <= 1.01 / modulus if modulus else not float(gradient.abs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_of_zeros_and_of_any_size_can_be_scaled_and_multiplied_out(dtype: torch.dtype) -> None:
    """log of the largest entry is −inf with gradient 0, and windows of 1e±30 keep their logarithm."""
    matrix = torch.diag(torch.tensor([2.0, 3.0], dtype=dtype)).expand(1, 6, 3, 2, 2)
    matrix = (matrix * torch.tensor([0.0, 1e-30, 1e30], dtype=dtype)[:, None, None]).requires_grad_()
    operator = Dense(matrix)
    assert bool((operator.log_scale()[..., 0] == -math.inf).all())
    (gradient,) = torch.autograd.grad(operator.log_scale()[..., 1:].sum(), matrix)
    assert bool(gradient.isfinite().all()) and not bool(gradient[:, :, 0].any())
    for member in (operator, operator.map(lambda field: field[:, :1])):
        log_modulus = member.window(5).log_modulus()
        assert bool((log_modulus[:, :, 0] == -math.inf).all())
        expected = 5 * (torch.tensor([2.0, 3.0]).log() + math.log(10) * torch.tensor([[-30.0], [30.0]]))
        torch.testing.assert_close(log_modulus[0, 0, 1:].sort().values, expected.to(dtype))
        (gradient,) = torch.autograd.grad(log_modulus[:, :, 1:].sum(), matrix)
        assert bool(gradient.isfinite().all())


def test_dense_refuses_what_has_no_eigenvalues() -> None:
    """A matrix that is not square at construction; NaN and infinity, with the batch element, at `eigenvalues`."""
    with pytest.raises(ValueError, match=r"square.*\(3, 2\)"):
        Dense(torch.zeros(3, 2))
    for bad in (math.nan, math.inf):
        matrix = torch.zeros(2, 3, 2, 2)
        matrix[1, 2, 0, 1] = bad
        with pytest.raises(ValueError, match=r"\(1, 2\)"):
            Dense(matrix).eigenvalues()


@pytest.mark.parametrize("member", MEMBERS)
def test_operators_are_compared_by_identity(member: type[StructuredOperator]) -> None:
    """They hold tensors, whose == is not a truth value."""
    one, other = member.example(), member.example()
    assert one == one and one != other
    assert len({one, other}) == 2


def test_a_matrix_without_time_axis_has_no_windows() -> None:
    """The columns of a matrix are not time steps."""
    with pytest.raises(ValueError, match="time axis"):
        Dense(torch.eye(4)).window(2)


def test_diagonal_is_complex_or_signed() -> None:
    with pytest.raises(ValueError, match="not both"):
        Diagonal(torch.zeros(1, 1, 1, 2), angle=torch.zeros(1, 1, 1, 2), sign=torch.ones(1, 1, 1, 2))
