"""Operators that are known by their products: against the matrices that torch's own derivatives give."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call

from specreg.operators import Dense
from specreg.operators.matrix_free import GaussNewton, Hessian, Jacobian, MatrixFree, SelfAdjoint, SelfAdjointMatrixFree
from specreg.testing.operators import assert_close


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def matrix_of(operator: MatrixFree | Jacobian | SelfAdjoint) -> Tensor:
    """The matrix of an operator without batch axes, column by column."""
    identity = torch.eye(operator.shape[-1], dtype=operator.dtype)
    return torch.stack([operator.mv(column) for column in identity], -1)


def recurrent(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda state: torch.tanh(state @ weight.mT)


def curved(parts: dict[str, Tensor]) -> Tensor:
    return (parts["a"].sin() * parts["b"]).sum() + (parts["a"] @ parts["a"]) ** 2 + parts["b"].prod()


PARTS = {"a": normal(4), "b": normal(4, seed=1)}


class TestJacobian:
    @pytest.mark.parametrize("grad", [False, True])
    def test_products_are_those_of_the_matrix(self, grad: bool) -> None:
        """Of each batch element, with J and Jᴴ, of real and complex vectors, with and without a graph."""
        weight, points = normal(5, 5), normal(2, 3, 5, seed=1)
        slopes = 1 - torch.tanh(points @ weight.mT) ** 2
        expected = slopes.unsqueeze(-1) * weight
        jacobian = Jacobian(recurrent(weight.requires_grad_(grad)), points)
        vector = torch.complex(normal(2, 3, 5, seed=2), normal(2, 3, 5, seed=3))
        for right in (vector, vector.real):
            matrix = expected.to(right.dtype)
            assert_close(jacobian.mv(right), (matrix @ right.unsqueeze(-1)).squeeze(-1))
            assert_close(jacobian.adjoint().mv(right), (matrix.mH @ right.unsqueeze(-1)).squeeze(-1))
        assert jacobian.shape == (2, 3, 5, 5)
        assert jacobian.adjoint().adjoint() is jacobian
        assert jacobian.mv(vector.real).requires_grad == grad

    def test_complex_functions_are_taken_as_holomorphic(self) -> None:
        weight = torch.complex(normal(3, 3), normal(3, 3, seed=1))
        point = torch.complex(normal(3, seed=2), normal(3, seed=3))
        jacobian = Jacobian(lambda z: (weight @ z) ** 2, point)
        expected = (2 * (weight @ point)).unsqueeze(-1) * weight
        assert_close(matrix_of(jacobian), expected)
        assert_close(torch.stack([jacobian.adjoint().mv(e) for e in torch.eye(3).to(expected)], -1), expected.mH)

    def test_products_are_differentiable(self) -> None:
        """In the point and in the weights that the function closes over."""
        vector = normal(3, seed=5)

        def products(weight: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
            jacobian = Jacobian(recurrent(weight), point)
            return jacobian.mv(vector), jacobian.adjoint().mv(vector)

        assert gradcheck(products, (normal(3, 3).requires_grad_(), normal(3, seed=1).requires_grad_()))

    def test_functions_that_change_the_shape_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"function takes .*\(4,\).*gave .*\(3,\)"):
            Jacobian(lambda state: state[:3], normal(4)).mv(normal(4))
        with pytest.raises(ValueError, match="floating or complex"):
            Jacobian(lambda state: state, torch.arange(3))
        with pytest.raises(ValueError, match=r"takes \(4,\) vectors, got \(5,\)"):
            Jacobian(lambda state: state, normal(4)).mv(normal(5))


class TestHessian:
    @pytest.mark.parametrize("grad", [False, True])
    def test_products_are_those_of_the_matrix(self, grad: bool) -> None:
        """A mapping, a tuple and one tensor, against torch.autograd.functional.hessian."""
        flat = torch.cat(list(PARTS.values()))
        expected = torch.autograd.functional.hessian(lambda v: curved({"a": v[:4], "b": v[4:]}), flat)
        leaves = {name: part.clone().requires_grad_(grad) for name, part in PARTS.items()}
        forms = [
            Hessian(curved, leaves),
            Hessian(lambda t: curved({"a": t[0], "b": t[1]}), tuple(leaves.values())),
            Hessian(lambda v: curved({"a": v[:4], "b": v[4:]}), flat.requires_grad_(grad)),
        ]
        for hessian in forms:
            assert_close(matrix_of(hessian), expected)
            assert isinstance(hessian, SelfAdjoint) and hessian.adjoint() is hessian
            assert hessian.mv(flat.detach()).requires_grad == grad
            with torch.no_grad():
                assert_close(matrix_of(hessian), expected)

    def test_products_are_differentiable(self) -> None:
        def product(a: Tensor, b: Tensor) -> Tensor:
            return Hessian(curved, {"a": a, "b": b}).mv(normal(8, seed=3))

        assert gradcheck(product, [part.clone().requires_grad_() for part in PARTS.values()])

    def test_what_is_linear_or_unused_has_no_curvature(self) -> None:
        """Zeros, not an error, for a linear function, a constant and a parameter that does not occur."""
        for function in (lambda p: p["a"].sum(), lambda p: torch.zeros(()).double(), lambda p: (p["a"] ** 2).sum()):
            matrix = matrix_of(Hessian(function, PARTS))
            assert_close(matrix, torch.diag(matrix.diagonal()))
            assert not bool(matrix[4:].any())

    def test_requests_without_an_answer_are_refused(self) -> None:
        with pytest.raises(ValueError, match="scalar"):
            Hessian(lambda v: v**2, normal(3)).mv(normal(3))
        with pytest.raises(ValueError, match="one type on one device"):
            Hessian(curved, {"a": normal(4), "b": normal(4).float()})
        with pytest.raises(ValueError, match="real parameters"):
            Hessian(lambda v: v.abs().sum(), normal(3).to(torch.complex128))
        with pytest.raises(ValueError, match="none"):
            Hessian(curved, {})


class TestGaussNewton:
    @pytest.mark.parametrize("grad", [False, True])
    def test_products_are_those_of_the_matrix(self, grad: bool) -> None:
        """JᵀHJ multiplied out, for cross-entropy on a small network."""
        inputs, labels, weight = normal(6, 3), torch.tensor([0, 1, 1, 0, 1, 0]), normal(2, 3, seed=1)

        def outputs(w: Tensor) -> Tensor:
            return torch.tanh(inputs @ w.mT) @ normal(2, 2, seed=2)

        def loss(z: Tensor) -> Tensor:
            return nn.functional.cross_entropy(z, labels)

        jacobian = torch.autograd.functional.jacobian(outputs, weight).reshape(12, 6)
        hessian = torch.autograd.functional.hessian(loss, outputs(weight)).reshape(12, 12)
        operator = GaussNewton(outputs, weight.requires_grad_(grad), loss)
        assert_close(matrix_of(operator), jacobian.mT @ hessian @ jacobian)
        assert float(torch.linalg.eigvalsh(matrix_of(operator).detach()).min()) > -1e-12

    def test_of_a_linear_model_it_is_the_hessian(self) -> None:
        inputs, targets, weight = normal(6, 3), normal(6, seed=1), normal(3, seed=2)
        newton = GaussNewton(lambda w: inputs @ w, weight, lambda z: (z - targets).square().mean())
        hessian = Hessian(lambda w: (inputs @ w - targets).square().mean(), weight)
        assert_close(matrix_of(newton), matrix_of(hessian))

    def test_products_are_differentiable(self) -> None:
        def product(w: Tensor) -> Tensor:
            return GaussNewton(torch.sin, w, lambda z: (z**4).sum() + z.prod()).mv(normal(4, seed=3))

        assert gradcheck(product, normal(4).requires_grad_())


class TestMatrixFree:
    def test_products_are_those_of_the_closures(self) -> None:
        matrix = torch.complex(normal(4, 4), normal(4, 4, seed=1))
        operator = MatrixFree(lambda v: matrix @ v, lambda v: matrix.mH @ v, 4, torch.complex128)
        assert_close(matrix_of(operator), matrix)
        assert_close(matrix_of(operator.adjoint()), matrix.mH)
        assert operator.shape == (4, 4) and operator.dtype == torch.complex128

    def test_closures_that_change_the_kind_are_refused(self) -> None:
        for wrong in (lambda v: v[:2], lambda v: v.float()):
            with pytest.raises(ValueError, match="matvec takes"):
                MatrixFree(wrong, wrong, 3).mv(normal(3))
            with pytest.raises(ValueError, match="matvec takes"):
                SelfAdjointMatrixFree(wrong, 3).mv(normal(3))
        with pytest.raises(ValueError, match="size 0"):
            MatrixFree(abs, abs, 0)
        with pytest.raises(ValueError, match="int64"):
            SelfAdjointMatrixFree(abs, 3, torch.int64)

    def test_symmetry_is_a_matter_of_the_type(self) -> None:
        matrix = normal(3, 3) + normal(3, 3).mT
        symmetric = SelfAdjointMatrixFree(lambda v: matrix @ v, 3)
        assert isinstance(symmetric, SelfAdjoint) and symmetric.adjoint() is symmetric
        assert not isinstance(MatrixFree(lambda v: matrix @ v, lambda v: matrix @ v, 3), SelfAdjoint)
        assert not isinstance(Dense(matrix), SelfAdjoint)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def loss_of(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    inputs, labels = normal(8, 3), torch.arange(8) % 2
    return lambda parameters: nn.functional.cross_entropy(functional_call(model, parameters, (inputs,)), labels)


@pytest.mark.parametrize("grad", [False, True])
def test_the_users_state_stays(grad: bool) -> None:
    """Random state with a dropout in the model, train mode, requires_grad, grad and hooks."""
    model = network()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    hooks = dict(model._forward_hooks)
    model[0].weight.requires_grad_(False)
    state = torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        hessian = Hessian(loss_of(model), dict(model.named_parameters()))
        vector = normal(hessian.shape[-1])
        first, second = hessian.mv(vector), hessian.mv(vector)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)  # the mask of the dropout is the same in each product
    assert model.training and model._forward_hooks == hooks
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert len(calls) == (2 if grad else 1)


def test_a_thousand_calls_leave_no_tensors() -> None:
    model = network().eval()
    parameters = dict(model.named_parameters())
    loss = loss_of(model)
    vector = normal(sum(p.numel() for p in parameters.values()))

    def call() -> None:
        hessian = Hessian(loss, parameters)
        hessian.mv(vector).sum().backward()
        with torch.no_grad():
            hessian.mv(vector)
        model.zero_grad()

    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    call()
    before = alive()
    gc.disable()  # what only a collector would free is a leak until it runs
    try:
        for _ in range(1000):
            call()
        assert sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()) <= before
    finally:
        gc.enable()
