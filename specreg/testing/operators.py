"""The conformance tests of a structured operator, for our members and for anybody's.

An operator passes when everything it does agrees with its dense matrix and its logs survive where `exp` does not. Plain
assertions: any runner that calls methods named `test_…` will do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.autograd import gradcheck

from specreg.operators import StructuredOperator
from specreg.spectrum import from_polar

__all__ = ["OperatorConformance", "assert_close", "assert_same_values", "naive_window", "tensor_fields", "with_fields"]


class OperatorConformance(ABC):
    """The tests that every structured operator passes: subclass it, give `make`.

    Two attributes may be changed, with a reason beside them: `holds_logs`, whether log-moduli are held as such, beyond
    the range of `exp`, and `constant`, the names of tensor fields that have no gradient.
    """

    holds_logs: bool = True
    constant: frozenset[str] = frozenset({"sign"})

    @abstractmethod
    def make(self) -> StructuredOperator:
        """A small float64 operator with batch axes (B, T, H), at least six steps and no zero eigenvalues."""

    def test_shape_is_that_of_the_dense_matrix(self) -> None:
        """`shape`, eigenvalues and multiplicity fit the matrix."""
        operator = self.make()
        count = operator.multiplicity()
        assert operator.dense().shape == operator.shape
        assert operator.shape[-1] == operator.shape[-2] == int(count.sum())
        for values in (operator.log_modulus(), operator.phase(), operator.eigenvalues()):
            assert values.shape == (*operator.shape[:-2], len(count))

    def test_products_are_those_of_the_dense_matrix(self) -> None:
        """`mv` and `mm` apply the matrix, to real and complex vectors."""
        operator = self.make()
        dense = operator.dense()
        for dtype in (torch.float64, torch.complex128):
            matrix = _normal(*operator.shape[:-1], 3).to(dtype) * (1 if dtype == torch.float64 else 1 + 2j)
            joint = torch.promote_types(dense.dtype, dtype)
            product = dense.to(joint) @ matrix.to(joint)
            assert_close(operator.mm(matrix).to(joint), product)
            assert_close(operator.mv(matrix[..., 0]).to(joint), product[..., 0])

    def test_adjoint_is_the_conjugate_transpose(self) -> None:
        """⟨Ax, y⟩ = ⟨x, Aᴴy⟩, and the adjoint of the adjoint is the operator."""
        operator = self.make()
        dense = operator.dense()
        x, y = _normal(2, *operator.shape[:-1]).to(dense.dtype)
        adjoint = operator.adjoint()
        left = torch.linalg.vecdot(y, operator.mv(x))
        assert_close(torch.linalg.vecdot(adjoint.mv(y), x), left)
        assert_close(adjoint.adjoint().mv(x), operator.mv(x))

    def test_eigenvalues_are_those_of_the_dense_matrix(self) -> None:
        """With multiplicity, as a multiset, against LAPACK; a real operator has them in conjugate pairs."""
        operator = self.make()
        values = operator.eigenvalues().repeat_interleave(operator.multiplicity(), -1)
        assert_same_values(values, torch.linalg.eigvals(operator.dense()))

    def test_polar_form_is_that_of_the_eigenvalues(self) -> None:
        """log-modulus and phase, asked for alone or together, are those of the eigenvalues."""
        operator = self.make()
        log_modulus, phase = operator.polar()
        assert_close(log_modulus, operator.log_modulus())
        assert_close(phase, operator.phase())
        assert_close(torch.polar(log_modulus.exp(), phase.contiguous()), operator.eigenvalues())

    def test_log_modulus_beyond_exp(self) -> None:
        """Moduli of e^±10000 keep their logarithm, scaled and in windows, and their phase."""
        if not self.holds_logs:
            return
        operator = self.make()
        for shift in (-1e4, 1e4):
            scaled = operator.scaled(torch.full(operator.shape[:-2], shift, dtype=torch.float64))
            assert_close(scaled.log_modulus(), operator.log_modulus() + shift)
            assert_close(scaled.phase(), operator.phase())
            expected = operator.window(3).log_modulus() + 3 * shift
            assert_close(scaled.window(3).log_modulus(), expected)

    def test_scaled_is_the_multiple(self) -> None:
        """exp(log_scale) times the matrix, one factor a batch element; `log_scale` brings it to order 1."""
        operator = self.make()
        log_scale = _normal(*operator.shape[:-2])
        assert_close(operator.scaled(log_scale).dense(), operator.dense() * log_scale.exp()[..., None, None])
        normed = operator.scaled(-operator.log_scale()).dense().abs().amax((-1, -2))
        assert 1e-3 < float(normed.min()) <= float(normed.max()) < 1e3

    def test_windows_are_the_products(self) -> None:
        """Λ_{t+w} … Λ_{t+1} multiplied out, for widths from 1 to all steps and several strides, a zero step too."""
        operator = self.make()
        steps = operator.shape[1]
        erased = torch.zeros(operator.shape[:-2], dtype=torch.float64)
        erased[:, 3] = -torch.inf
        for member in (operator, operator.scaled(erased)):
            for width in (1, 2, 3, steps):
                for stride in (1, 2, 3):
                    window = member.window(width, stride)
                    assert_close(window.dense(), naive_window(member.dense(), width, stride))
                    assert window.shape[1] == (steps - width) // stride + 1

    def test_windows_of_a_constant_operator_are_powers(self) -> None:
        """A size-1 time axis gives the power, of any width, and stays."""
        operator = self.make().map(lambda field: field[:, :1])
        for width in (1, 2, 5):
            window = operator.window(width, 2)
            assert window.shape == operator.shape
            assert_close(window.dense(), torch.linalg.matrix_power(operator.dense(), width))

    def test_windows_that_do_not_fit_are_refused(self) -> None:
        """Widths below 1 or over all steps and strides below 1 raise, and the message has the number of steps."""
        operator = self.make()
        steps = operator.shape[1]
        for width, stride in ((0, 1), (-1, 1), (steps + 1, 1), (2, 0), (2, -1)):
            try:
                operator.window(width, stride)
            except ValueError as error:
                assert str(steps) in str(error)
            else:
                raise AssertionError(f"window({width}, {stride}) of {steps} steps was not refused")

    def test_map_and_steps_act_on_the_whole_batch(self) -> None:
        """Slicing by `map` is slicing every tensor, and `steps` hold the tensors of each step: bit by bit.

        Their matrices are those of the whole to the last digits, since processors round the ends of arrays by other
        instructions than their middle.
        """
        operator = self.make()
        dense, held, length = operator.dense(), tensor_fields(operator), operator.shape[1]
        part = operator.map(lambda field: field[:1, ::2])
        _check_identical(part, {name: field[:1, ::2] for name, field in held.items()})
        assert_close(part.dense(), dense[:1, ::2], 1e-14)
        steps = operator.steps(length)
        for t, step in enumerate(steps):
            _check_identical(step, {name: field[:, min(t, field.shape[1] - 1)] for name, field in held.items()})
        assert_close(torch.stack([step.dense() for step in steps], 1), dense, 1e-14)
        constant = operator.map(lambda field: field[:, :1]).steps(4)
        assert len(constant) == 4
        for step in constant:
            _check_identical(step, {name: field[:, 0] for name, field in held.items()})
            assert_close(step.dense(), dense[:, 0], 1e-14)

    def test_condition_numbers_are_those_of_the_dense_matrix(self) -> None:
        """κ, where it is known, is the norm of the spectral projector by numpy; beside the eigenvalues, detached."""
        operator = self.make()
        log_modulus, phase, condition = operator.conditioned()
        assert_same_values(from_polar(log_modulus, phase), operator.eigenvalues())
        if condition is None:
            return
        assert condition.shape == log_modulus.shape and not condition.requires_grad
        assert not operator.normal or bool((condition == 1).all())
        values = from_polar(log_modulus, phase).detach().flatten(0, -2)
        for own, found, matrix in zip(values, condition.flatten(0, -2), operator.dense().flatten(0, -3), strict=True):
            for value, expected in _projector_norms(matrix.detach().numpy()):
                error = float(found[(own - value).abs().argmin()]) / expected - 1
                assert abs(error) < 1e-8, f"κ off by a factor of 1 + {error:.3g}"

    def test_gradients_are_those_of_finite_differences(self) -> None:
        """gradcheck of matrix, product, window and eigenvalues (as symmetric functions) with respect to every field."""
        operator = self.make().map(lambda field: field[:1, :4, :2])
        held = tensor_fields(operator).items()
        moved = {name: field for name, field in held if name.rsplit(".", 1)[-1] not in self.constant}
        vector = _normal(*operator.shape[:-1])
        weights = operator.multiplicity()

        def results(*values: Tensor) -> tuple[Tensor, ...]:
            member = with_fields(operator, dict(zip(moved, values, strict=True)))
            log_modulus, phase = member.polar()
            moments = [(weights * part).sum(-1) for part in (log_modulus, log_modulus**2, phase.cos())]
            return (member.dense(), member.mv(vector), member.window(2).dense(), *moments)

        inputs = [field.detach().clone().requires_grad_() for field in moved.values()]
        assert gradcheck(results, inputs)

    def test_single_precision_agrees(self) -> None:
        """float32 gives the float64 values to 1e-4."""
        operator = self.make()
        single = operator.map(lambda field: field.to(torch.complex64 if field.is_complex() else torch.float32))
        assert single.log_modulus().dtype == torch.float32
        assert_close(single.dense().to(operator.dense().dtype), operator.dense(), 1e-4)
        eigenvalues = single.eigenvalues().to(torch.complex128)
        assert_same_values(eigenvalues, operator.eigenvalues(), 1e-4)


def _check_identical(operator: StructuredOperator, expected: dict[str, Tensor]) -> None:
    held = tensor_fields(operator)
    assert held.keys() == expected.keys()
    for name, field in held.items():
        assert torch.equal(field, expected[name]), f"{name} is not the same bit by bit"


def _projector_norms(matrix: NDArray[Any]) -> list[tuple[complex, float]]:
    """Each eigenvalue of a diagonalisable matrix with the 2-norm of its spectral projector."""
    values, right = np.linalg.eig(matrix)
    left = np.linalg.inv(right)
    found = []
    for value in values:
        same = np.abs(values - value) < 1e-9 * max(1.0, float(np.abs(values).max()))
        found.append((complex(value), float(np.linalg.norm(right[:, same] @ left[same], 2))))
    return found


def tensor_fields(operator: StructuredOperator) -> dict[str, Tensor]:
    """The tensors that an operator holds, by name; those of an operator within a tuple as "factors.0.matrix"."""
    held: dict[str, Tensor] = {}
    for field in fields(operator):
        value = getattr(operator, field.name)
        if isinstance(value, Tensor):
            held[field.name] = value
        for index, part in enumerate(value if isinstance(value, tuple) else ()):
            if isinstance(part, StructuredOperator):
                held |= {f"{field.name}.{index}.{name}": inner for name, inner in tensor_fields(part).items()}
    return held


def with_fields(operator: StructuredOperator, values: dict[str, Tensor]) -> StructuredOperator:
    """The operator with other tensors, by the names of `tensor_fields`."""
    changes: dict[str, object] = {name: value for name, value in values.items() if "." not in name}
    for name in {name.split(".", 1)[0] for name in values} - set(changes):
        parts = list(getattr(operator, name))
        for index, part in enumerate(parts):
            start = f"{name}.{index}."
            parts[index] = with_fields(part, {k[len(start) :]: v for k, v in values.items() if k.startswith(start)})
        changes[name] = tuple(parts)
    return replace(operator, **changes)


def naive_window(dense: Tensor, width: int, stride: int) -> Tensor:  # (B, T, …, n, n)
    """The products of `width` consecutive matrices, the latest on the left, one every `stride` steps."""
    products = []
    for start in range(0, dense.shape[1] - width + 1, stride):
        product = dense[:, start]
        for t in range(start + 1, start + width):
            product = dense[:, t] @ product
        products.append(product)
    return torch.stack(products, 1)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> None:
    """Equal shapes, and equal values up to `tolerance` relative to the largest; infinities at the same places."""
    assert ours.shape == theirs.shape, f"shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    ours, theirs = ours.detach(), theirs.detach()
    finite = theirs.isfinite()
    assert torch.equal(ours[~finite], theirs[~finite])
    if bool(finite.any()):
        scale = max(1.0, float(theirs[finite].abs().max()))
        error = float((ours[finite] - theirs[finite]).abs().max())
        assert error <= tolerance * scale, f"off by {error:.3g} where the largest value is {scale:.3g}"


def assert_same_values(
    ours: Tensor,  # (*batch, n) complex
    theirs: Tensor,  # (*batch, n) complex
    tolerance: float = 1e-8,
) -> None:
    """The same values in any order, by the best assignment within each batch element."""
    assert ours.shape == theirs.shape, f"shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    for mine, other in zip(ours.detach().flatten(0, -2), theirs.detach().flatten(0, -2), strict=True):
        gaps = (mine[:, None] - other[None, :]).abs().numpy()
        error = float(gaps[linear_sum_assignment(gaps)].max())
        assert error <= tolerance * max(1.0, float(other.abs().max())), f"eigenvalues differ by {error:.3g}"


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
