"""Operators known by their products alone: closures, Jacobians, Hessians and Gauss–Newton matrices.

An operator belongs to the values that its parameters had when it was made: after an optimiser's step make a new one.
Products inside `torch.no_grad` go through one graph that is built once and kept as long as the operator lives, so that
a dropout mask stays the same; products with gradients enabled evaluate the function afresh and are differentiable in
everything that it depends on. Evaluations leave the global random state as it was.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from specreg.operators.base import LinearOperator

Parameters = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
CPU = torch.device("cpu")
UNBATCHED = torch.Size()


class ImplicitOperator(LinearOperator):
    """A batch of linear maps without entries at hand; a real one takes complex vectors too, as two products."""

    dtype: torch.dtype  # of the entries, floating or complex
    device: torch.device

    @abstractmethod
    def product(self, vector: Tensor) -> Tensor:  # (*batch, n), of the operator's own type
        """Apply the map to one vector of each batch element."""

    def mv(self, vector: Tensor) -> Tensor:
        if vector.shape != self.shape[:-1]:
            raise ValueError(
                f"a product with an operator {tuple(self.shape)} takes {tuple(self.shape[:-1])} vectors, "
                f"got {tuple(vector.shape)}"
            )
        if vector.is_complex() and not self.dtype.is_complex:
            return torch.complex(self.mv(vector.real), self.mv(vector.imag))
        return self.product(vector.to(self.dtype))


class SelfAdjoint(ImplicitOperator):
    """An operator that equals its own conjugate transpose, by construction: what Lanczos takes."""

    def adjoint(self) -> SelfAdjoint:
        return self


class Closure(ImplicitOperator):
    """What operators that are given by a closure share; the fields stand in the order in which each is called."""

    matvec: Callable[[Tensor], Tensor]
    size: int
    batch: torch.Size

    def __post_init__(self) -> None:
        _check_type(self.dtype, self.size)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.batch, self.size, self.size))

    def product(self, vector: Tensor) -> Tensor:
        return _same_kind(self.matvec(vector), vector, "matvec")


@dataclass(frozen=True, eq=False)
class MatrixFree(Closure):
    """A map given by its product and the product with its conjugate transpose.

    Both take and give tensors ``(*batch, size)`` of the given type on the given device. They may close over tensors
    that require grad: eigenvalues are differentiable in those. A product raises `ValueError` if the closure gives
    another shape or type.
    """

    matvec: Callable[[Tensor], Tensor]
    adjoint_matvec: Callable[[Tensor], Tensor]
    size: int
    dtype: torch.dtype = torch.float64
    device: torch.device = CPU
    batch: torch.Size = UNBATCHED

    def adjoint(self) -> MatrixFree:
        return replace(self, matvec=self.adjoint_matvec, adjoint_matvec=self.matvec)


@dataclass(frozen=True, eq=False)
class SelfAdjointMatrixFree(Closure, SelfAdjoint):
    """A symmetric or Hermitian map given by its product alone; otherwise as `MatrixFree`."""

    matvec: Callable[[Tensor], Tensor]
    size: int
    dtype: torch.dtype = torch.float64
    device: torch.device = CPU
    batch: torch.Size = UNBATCHED


@dataclass(frozen=True, eq=False)
class _Pullback:
    """The vector–Jacobian product of `outputs` with respect to `inputs`, through their graph."""

    outputs: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]

    def __call__(self, cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        traced = [pair for pair in zip(self.outputs, cotangents, strict=True) if pair[0].requires_grad]
        if not traced:  # constant outputs: their derivative is 0
            return tuple(torch.zeros_like(tensor) for tensor in self.inputs)
        outputs, cotangents = zip(*traced, strict=True)
        return torch.autograd.grad(
            outputs,
            self.inputs,
            cotangents,
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,
        )

    def transposed(self) -> _Pullback:
        """The Jacobian–vector product, as the derivative of the vector–Jacobian product by its vector."""
        cotangents = tuple(torch.zeros_like(output, requires_grad=True) for output in self.outputs)
        with torch.enable_grad():
            return _Pullback(self(cotangents), cotangents)


@dataclass(frozen=True, eq=False)
class Jacobian(ImplicitOperator):
    """The Jacobian of a map from ``(*batch, n)`` to itself at a point, one for each batch element.

    Batch elements must not mix: row b of the result may depend on row b of the argument alone, as in a recurrent step.
    A complex function must be holomorphic. J v takes two reverse passes, one of them once for all products (no forward
    mode is needed of the function), Jᴴ w takes one. Differentiable in the point and in what the function closes over.
    Raises `ValueError` for an integer point and, at the first product, if the function changes the shape or the type.
    """

    function: Callable[[Tensor], Tensor]
    point: Tensor  # (*batch, n)

    def __post_init__(self) -> None:
        _check_type(self.point.dtype, self.point.shape[-1] if self.point.dim() else 0)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.point.shape, self.point.shape[-1]))

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.point.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.point.device

    def adjoint(self) -> AdjointJacobian:
        return AdjointJacobian(self)

    def product(self, vector: Tensor) -> Tensor:
        if self._is_tracked(vector):
            return self._graph().transposed()((vector,))[0]
        with torch.no_grad():
            return self._push((vector,))[0]

    def adjoint_product(self, vector: Tensor) -> Tensor:
        """Jᴴ times a vector of each batch element, ``(*batch, n)``."""
        if self._is_tracked(vector):
            return self._graph()((vector,))[0]
        with torch.no_grad():
            return self._pull((vector,))[0]

    def _is_tracked(self, vector: Tensor) -> bool:
        return torch.is_grad_enabled() and (self._has_gradient or vector.requires_grad)

    @cached_property
    def _has_gradient(self) -> bool:
        if self.point.requires_grad:
            return True
        return _evaluated(lambda: self.function(self.point), self.device).requires_grad

    @cached_property
    def _pull(self) -> _Pullback:
        return self._graph(detached=True)

    @cached_property
    def _push(self) -> _Pullback:
        return self._pull.transposed()

    def _graph(self, detached: bool = False) -> _Pullback:
        point = _traced(self.point, detached)
        values = _evaluated(lambda: self.function(point), self.device)
        return _Pullback((_same_kind(values, point, "function"),), (point,))


@dataclass(frozen=True, eq=False)
class AdjointJacobian(ImplicitOperator):
    """The conjugate transpose of a Jacobian."""

    jacobian: Jacobian

    @property
    def shape(self) -> torch.Size:
        return self.jacobian.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.jacobian.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.jacobian.device

    def adjoint(self) -> Jacobian:
        return self.jacobian

    def product(self, vector: Tensor) -> Tensor:
        return self.jacobian.adjoint_product(vector)


@dataclass(frozen=True, eq=False)
class ParameterOperator(SelfAdjoint):
    """A symmetric operator on the space of all parameters together, flattened in the order in which they come."""

    function: Callable[[Any], Tensor]
    parameters: Parameters

    def __post_init__(self) -> None:
        kinds = {(tensor.dtype, tensor.device) for tensor in self._tensors}
        if len(kinds) != 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds)) or "none"
            raise ValueError(f"{type(self).__name__} takes parameters of one type on one device, got {found}")
        if self.dtype.is_complex:
            raise ValueError(
                f"{type(self).__name__} takes real parameters, got {self.dtype}: give real and imaginary "
                "parts as two tensors"
            )
        _check_type(self.dtype, self.shape[-1])

    @property
    def shape(self) -> torch.Size:
        size = sum(tensor.numel() for tensor in self._tensors)
        return torch.Size((size, size))

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self._tensors[0].dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._tensors[0].device

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        if isinstance(self.parameters, Tensor):
            return (self.parameters,)
        return tuple(self.parameters.values() if isinstance(self.parameters, Mapping) else self.parameters)

    def _call(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """The function of tensors in the form in which the parameters were given."""
        if isinstance(self.parameters, Tensor):
            return _evaluated(lambda: self.function(tensors[0]), self.device)
        if isinstance(self.parameters, Mapping):
            named = dict(zip(self.parameters, tensors, strict=True))
            return _evaluated(lambda: self.function(named), self.device)
        return _evaluated(lambda: self.function(tensors), self.device)

    @abstractmethod
    def _value(self) -> Tensor:
        """The scalar at the parameters as they are."""

    def _is_tracked(self, vector: Tensor) -> bool:
        return torch.is_grad_enabled() and (self._has_gradient or vector.requires_grad)

    @cached_property
    def _has_gradient(self) -> bool:
        """Whether a product depends on what requires grad: the parameters, or what the function closes over."""
        return any(tensor.requires_grad for tensor in self._tensors) or self._value().requires_grad

    def _split(self, vector: Tensor) -> tuple[Tensor, ...]:
        parts = vector.split([tensor.numel() for tensor in self._tensors])
        return tuple(part.view_as(tensor) for part, tensor in zip(parts, self._tensors, strict=True))


@dataclass(frozen=True, eq=False)
class Hessian(ParameterOperator):
    """The matrix of second derivatives of a scalar function of parameters.

    `parameters` are one tensor, a tuple, or a mapping such as ``dict(model.named_parameters())``, and the function
    takes the same form: with a module, ``lambda p: loss(torch.func.functional_call(model, p, (inputs,)), labels)``.
    Each product is one reverse pass through the graph of the gradient (Pearlmutter 1994, Neural Computation 6). Every
    operation needs a second derivative in torch. Raises `ValueError` at the first product if the function is not
    scalar.
    """

    def product(self, vector: Tensor) -> Tensor:
        if self._is_tracked(vector):
            return _joined(self._graph()(self._split(vector)))
        with torch.no_grad():
            return _joined(self._frozen(self._split(vector)))

    def _value(self) -> Tensor:
        return self._call(self._tensors)

    @cached_property
    def _frozen(self) -> _Pullback:
        return self._graph(detached=True)

    def _graph(self, detached: bool = False) -> _Pullback:
        tensors = tuple(_traced(tensor, detached) for tensor in self._tensors)
        return _gradient(self._call(tensors), tensors)


@dataclass(frozen=True, eq=False)
class GaussNewton(ParameterOperator):
    """Jᵀ H J: the outputs' Jacobian J in the parameters around the loss's Hessian H in the outputs.

    `function` maps parameters (forms as in `Hessian`) to outputs of any shape, `loss` outputs to a scalar. With
    cross-entropy or squared error it is the Fisher matrix of the model and positive semidefinite (Schraudolph 2002,
    Neural Computation 14). Three reverse passes a product. Raises `ValueError` as `Hessian` does.
    """

    loss: Callable[[Tensor], Tensor]

    def product(self, vector: Tensor) -> Tensor:
        if self._is_tracked(vector):
            push, curvature, pull = self._graphs()
            return _joined(pull(curvature(push(self._split(vector)))))
        with torch.no_grad():
            push, curvature, pull = self._frozen
            return _joined(pull(curvature(push(self._split(vector)))))

    def _value(self) -> Tensor:
        outputs = self._call(self._tensors)
        return _evaluated(lambda: self.loss(outputs), self.device)

    @cached_property
    def _frozen(self) -> tuple[_Pullback, _Pullback, _Pullback]:
        return self._graphs(detached=True)

    def _graphs(self, detached: bool = False) -> tuple[_Pullback, _Pullback, _Pullback]:
        tensors = tuple(_traced(tensor, detached) for tensor in self._tensors)
        outputs = self._call(tensors)
        pull = _Pullback((outputs,), tensors)
        outputs = outputs if outputs.requires_grad else outputs.detach().requires_grad_()
        value = _evaluated(lambda: self.loss(outputs), self.device)
        return pull.transposed(), _gradient(value, (outputs,)), pull


def _traced(tensor: Tensor, detached: bool) -> Tensor:
    """Something to differentiate by: the tensor itself if gradients shall reach it, else a view of its data."""
    return tensor.detach().requires_grad_() if detached or not tensor.requires_grad else tensor


def _evaluated(function: Callable[[], Tensor], device: torch.device) -> Tensor:
    """The function's value with its graph; whatever it draws, the global random state stays as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        return function()


def _gradient(value: Tensor, tensors: tuple[Tensor, ...]) -> _Pullback:
    """The Hessian's product: the pullback of the gradient."""
    if value.numel() != 1:
        raise ValueError(
            f"second derivatives are taken of a scalar, got a result of shape {tuple(value.shape)}: "
            "reduce it by sum or mean"
        )
    with torch.enable_grad():
        return _Pullback(_Pullback((value,), tensors)((torch.ones_like(value),)), tensors)


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def _same_kind(result: Tensor, vector: Tensor, name: str) -> Tensor:
    if result.shape != vector.shape or result.dtype != vector.dtype:
        raise ValueError(
            f"{name} takes {vector.dtype} of shape {tuple(vector.shape)} and must give the same, "
            f"it gave {result.dtype} of shape {tuple(result.shape)}"
        )
    return result


def _check_type(dtype: torch.dtype, size: int) -> None:
    if not (dtype.is_floating_point or dtype.is_complex) or size < 1:
        raise ValueError(f"an operator has floating or complex entries and a size from 1 on, got {dtype}, size {size}")
