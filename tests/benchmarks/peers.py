"""What other libraries do with the operators of the Krylov benchmarks: products counted, results to compare with.

Each peer is used as its documentation says and gets every advantage: a known tolerance, the steps that it needs. None
of these gives a gradient of an eigenvalue of a Hessian or of a non-symmetric operator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from measure import in_turn, installed, row, time_row
from torch import Tensor, nn

Products = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """What a peer returns for the largest eigenvalues of a Hessian."""

    peer: str
    products: int
    eigenvalues: Tensor  # (k,), largest first
    certified: bool | None  # None: the peer does not say

    def copies(self, true: Tensor) -> int:
        """How many of the true eigenvalues (simple ones) it returned more than once in place of others."""
        nearest = (self.eigenvalues.unsqueeze(-1) - true).abs().argmin(-1)
        return len(nearest) - len(nearest.unique())

    def error(self, true: Tensor) -> float:
        """The largest error relative to the largest eigenvalue."""
        return float((self.eigenvalues - true[: len(self.eigenvalues)]).abs().max() / true[0])


def of_hessian(model: nn.Module, inputs: Tensor, labels: Tensor, count: int, tolerance: float) -> list[Found]:
    """The `count` largest eigenvalues of the mean cross-entropy's Hessian by every peer that is installed."""
    size, found = size_of(model), []
    if installed("curvlinops"):
        with quiet():
            product = curvlinops_product(model, inputs, labels)
            found.append(by_eigsh("curvlinops + eigsh", product, size, count, tolerance))
    if installed("hessian_eigenthings"):
        with quiet():
            found += by_eigenthings(eigenthings_product(model, inputs, labels), size, count, tolerance)
    if installed("xitorch"):
        with quiet():  # it has no Hessian of its own
            found.append(by_davidson(double_backward(model, inputs, labels), size, count, tolerance))
    return found


def hessian_rows(ours: float, true: Tensor, model: nn.Module, inputs: Tensor, labels: Tensor, tolerance: float) -> None:
    """For each peer our products beside its own, then its error, its copies and whether it says that it is done."""
    what = f"products for the {len(true)} largest, residual {tolerance:.3g}"
    for found in of_hessian(model, inputs, labels, len(true), tolerance):
        row(what, ours, found.peer, found.products)
        said = "says nothing" if found.certified is None else f"says {'' if found.certified else 'not '}converged"
        print(f"  {found.peer}: error {found.error(true):.1e}, {found.copies(true)} copies, {said}")


def arpack_row(what: str, ours: Callable[[], object], matrix: Tensor, tolerance: float, repetitions: int) -> None:
    """The spectral radius with its gradient by both sides in turn."""
    times = in_turn({"ours": ours, "eigs": lambda: radius_by_arpack(matrix, tolerance)}, repetitions)
    products = radius_by_arpack(matrix, tolerance)[2]
    time_row(what, times["ours"], f"scipy eigs on A and Aᵀ ({products} products)", times["eigs"])


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def quiet() -> Iterator[None]:
    """Gradients on; neither their warnings nor their seeding of torch's own generator (xitorch) get out."""
    with torch.enable_grad(), torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def curvlinops_product(model: nn.Module, inputs: Tensor, labels: Tensor) -> Products:
    """`HessianLinearOperator`, its checks off, since they take products."""
    import curvlinops

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    operator = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, [(inputs, labels)], check_deterministic=False
    )
    return lambda vector: operator @ vector


def eigenthings_product(model: nn.Module, inputs: Tensor, labels: Tensor) -> Products:
    """`HessianOperator` with exact double backward."""
    import hessian_eigenthings as eigenthings

    loss = eigenthings.supervised_loss(nn.functional.cross_entropy)
    operator = eigenthings.HessianOperator(model, [(inputs, labels)], loss)
    return lambda vector: operator.matvec(vector)


def double_backward(model: nn.Module, inputs: Tensor, labels: Tensor) -> Products:
    """∇(∇L · v), the graph of ∇L kept."""
    parameters = list(model.parameters())
    loss = nn.functional.cross_entropy(model(inputs), labels)
    gradient = nn.utils.parameters_to_vector(torch.autograd.grad(loss, parameters, create_graph=True))

    def product(vector: Tensor) -> Tensor:
        parts = torch.autograd.grad(gradient, parameters, vector, retain_graph=True)
        return nn.utils.parameters_to_vector(parts).detach()

    return product


def by_eigsh(peer: str, product: Products, size: int, count: int, tolerance: float) -> Found:
    """ARPACK from a random start."""
    calls = 0

    def counted(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        nonlocal calls
        calls += 1
        return product(torch.from_numpy(np.ravel(vector))).detach().numpy()

    operator = scipy.sparse.linalg.LinearOperator((size, size), counted, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=size)
    values = scipy.sparse.linalg.eigsh(operator, count, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)
    return Found(peer, calls, torch.from_numpy(np.sort(values)[::-1].copy()), None)


def by_eigenthings(product: Products, size: int, count: int, tolerance: float) -> list[Found]:
    """Its Lanczos, which drops reorthogonalisation by itself above 50 steps, and its deflated power iteration."""
    import hessian_eigenthings as eigenthings

    calls = 0

    def counted(vector: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return product(vector)

    def found(name: str, result: Any) -> Found:
        values = result.eigenvalues.sort(descending=True).values
        return Found(f"hessian-eigenthings, {name}", calls, values, bool(result.converged.all()))

    operator, all_found = eigenthings.LambdaOperator(counted, size, dtype=torch.float64), []
    for steps in (40, 50, 60, 80):
        calls = 0
        result = eigenthings.lanczos(operator, k=count, max_iter=steps, tol=tolerance, which="LA", seed=0)
        all_found.append(found(f"Lanczos of {steps}", result))
    calls = 0
    result = eigenthings.deflated_power_iteration(operator, k=count, max_iter=10_000, tol=tolerance, seed=0)
    return [*all_found, found("power iteration", result)]


def by_davidson(product: Products, size: int, count: int, tolerance: float) -> Found:
    """xitorch's matrix-free `symeig`; its residual is absolute."""
    import xitorch
    from xitorch.linalg import symeig

    calls = 0

    class Curvature(xitorch.LinearOperator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(shape=(size, size), is_hermitian=True, dtype=torch.float64, device=torch.device("cpu"))

        def _mv(self, vector: Tensor) -> Tensor:
            nonlocal calls
            flat = vector.reshape(-1, size)
            calls += len(flat)
            return torch.stack([product(one) for one in flat]).reshape(vector.shape)

        def _getparamnames(self, prefix: str = "") -> list[str]:
            return []

    with torch.no_grad():
        values, _ = symeig(Curvature(), neig=count, mode="uppest", method="davidson", min_eps=tolerance)
    return Found("xitorch, Davidson", calls, values.sort(descending=True).values, None)


def radius_by_arpack(matrix: Tensor, tolerance: float = 1e-7) -> tuple[Tensor, Tensor, int]:
    """The spectral radius, its gradient in the matrix and the products, by scipy's `eigs` on A and on Aᵀ.

    The gradient of |λ| is Re(e^{−iθ} y xᵀ/(yᵀx)) with A x = λ x, Aᵀ y = λ y, λ = |λ|e^{iθ}: what one writes by hand
    around ARPACK. Nothing certifies it.
    """
    array, calls = matrix.detach().numpy(), 0

    def end(transposed: bool) -> tuple[complex, np.ndarray[Any, Any]]:
        def counted(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            nonlocal calls
            calls += 1
            return (array.T if transposed else array) @ vector

        operator = scipy.sparse.linalg.LinearOperator(array.shape, counted, dtype=array.dtype)
        start = np.random.default_rng(0).normal(size=len(array))
        values, vectors = scipy.sparse.linalg.eigs(operator, 1, which="LM", tol=tolerance, v0=start)
        vector: np.ndarray[Any, Any] = vectors[:, 0]
        return complex(values[0]), vector

    value, right = end(False)
    other, left = end(True)  # Aᵀ y = λ y, so that yᵀ A = λ yᵀ; of a pair perhaps the other one
    if abs(other - value) > abs(other - value.conjugate()):
        left = left.conj()
    slope = np.outer(left, right) / (left @ right)
    phase = value / abs(value)
    return torch.tensor(abs(value)), torch.from_numpy((slope * np.conj(phase)).real), calls
