"""The spectral density of a symmetric operator by stochastic Lanczos quadrature, with a gradient that is safe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specreg.eigen.first_order import first_order_only
from specreg.estimators.base import Estimator, as_operator, number_type, own_stream
from specreg.operators import LinearOperator, StructuredOperator
from specreg.spectrum import Density
from specreg.system import LinearSystem


@dataclass(frozen=True)
class LanczosQuadrature(Estimator[Density]):
    """Stochastic Lanczos quadrature: each random probe's Gauss rule is one sample of the spectral density.

    A probe v uniform on the sphere has E vᴴ f(A) v = (1/n) tr f(A). k Lanczos steps from v, with full
    reorthogonalisation, give Ritz pairs (θ_j, s_j) and vᴴ f(A) v ≈ Σ_j |s_1j|² f(θ_j), exact for polynomials of degree
    2k − 1. The 1-Wasserstein error is at most t (λ_max − λ_min) with probability 1 − η from k ≥ 12/t + ½ and
    4 log(2n/η) / ((n + 2) t²) probes (Chen, Trogdon, Ubaru 2021, arXiv 2105.06595).

    The gradient holds the Krylov basis Q fixed: a loss on nodes and weights has Ā = Q T̄ Qᴴ with T̄ its gradient in the
    projected matrix QᴴAQ. For Σ w f(θ) it is exact for polynomials f of degree k and for every f once the Krylov space
    is invariant, so it converges later than the value, but it needs no derivative of the recurrence, which does not
    exist where that ends early. Equal and close Ritz values are safe: see `_GaussRule`. The loss must be a function of
    the measure Σ w δ_θ, as moments, smoothed densities and Wasserstein distances are. It costs one vector–Jacobian
    product for each of the k products with A that a probe's value took; second derivatives are refused. Where no
    gradient is wanted, `torch.no_grad` saves the graph.

    The source is a symmetric or Hermitian operator, or a system with such transitions, masked steps left out. Raises
    `ValueError` for one that turns out not to be, or that is not finite, with the index of the batch element.
    """

    krylov_dim: int
    num_probes: int

    gives = Density

    def __post_init__(self) -> None:
        for name in ("krylov_dim", "num_probes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: allowed are whole numbers from 1 on")

    def __call__(self, source: LinearSystem | LinearOperator, generator: torch.Generator | None = None) -> Density:
        operator = as_operator(source, "LanczosQuadrature")
        krylov = lanczos(operator, draw_probes(operator, self.num_probes, generator), self.krylov_dim)
        nodes, weights = _GaussRule.apply(krylov.projected, krylov.dimension)  # type: ignore[no-untyped-call]
        return Density(nodes * krylov.scale, weights)


@dataclass(frozen=True, eq=False)
class KrylovSpace:
    """What Lanczos finds from each probe: the projected matrix, in the graph, of A / scale."""

    projected: Tensor  # QᴴAQ / scale, (*batch, probes, k, k), rows and columns past `dimension` are 0
    dimension: Tensor  # (*batch, probes), how far the recurrence went
    scale: Tensor  # (*batch, 1, 1), real, detached: keeps norms in the number range
    residual: Tensor  # (*batch, probes), β_k: the size of what the last step left, over scale


def draw_probes(operator: LinearOperator, num_probes: int, generator: torch.Generator | None) -> Tensor:
    """Independent vectors, uniform on the unit sphere, ``(*batch, probes, n)``; a fresh generator of seed 0 if None."""
    dtype, device = number_type(operator)
    draw = own_stream(generator)
    shape = (*operator.shape[:-2], num_probes, operator.shape[-1])
    probes = torch.randn(shape, dtype=dtype, generator=draw).to(device)
    norm: Tensor = torch.linalg.vector_norm(probes, dim=-1, keepdim=True)
    return probes / norm


def apply(operator: LinearOperator, vectors: Tensor) -> Tensor:  # (*batch, r, n)
    """The operator on r vectors of each batch element, at once where it takes a matrix."""
    if isinstance(operator, StructuredOperator):
        return operator.mm(vectors.mT).mT
    return torch.stack([operator.mv(vector) for vector in vectors.unbind(-2)], -2)


def lanczos(operator: LinearOperator, probes: Tensor, steps: int) -> KrylovSpace:
    """Lanczos from every probe at once, with full reorthogonalisation, twice; at most n steps.

    The products with A are in the graph, the basis is not. A probe whose space is exhausted, because A has few distinct
    eigenvalues, goes on with zero vectors and holds up no other.
    """
    basis, products, dimension = [probes], [], torch.zeros_like(probes[..., 0].real, dtype=torch.long)
    scale = size = residual = torch.ones(())
    for step in range(min(steps, probes.shape[-1])):
        product = apply(operator, basis[-1])
        fixed = product.detach()
        if step == 0:
            largest = fixed.abs().amax((-1, -2), keepdim=True)
            scale = torch.where(largest > 0, largest, 1.0)
            size = torch.zeros_like(largest[..., 0])
        products.append(product / scale)
        dimension = dimension + basis[-1].abs().amax(-1).gt(0)
        size = torch.maximum(size, torch.linalg.vector_norm(fixed / scale, dim=-1))
        rest, earlier = fixed / scale, torch.stack(basis, -2)
        for _ in range(2):
            rest = rest - ((earlier.conj() @ rest.unsqueeze(-1)).mT @ earlier).squeeze(-2)
        residual = torch.linalg.vector_norm(rest, dim=-1)
        going = residual > 8 * probes.shape[-1] ** 0.5 * torch.finfo(residual.dtype).eps * size
        basis.append(torch.where(going.unsqueeze(-1), rest / residual.unsqueeze(-1), 0.0))
        if not going.any():
            break
    earlier, later = torch.stack(basis[: len(products)], -2), torch.stack(products, -2)
    projected = earlier.conj() @ later.mT
    _check_symmetric(projected.detach())
    return KrylovSpace(projected, dimension, scale, residual)


class _GaussRule(torch.autograd.Function):
    """Nodes θ and weights |s_1|² of Hermitian matrices T = S θ Sᴴ, with a gradient that close nodes do not upset.

    T̄ = S M Sᴴ with M_ii = θ̄_i and M_ij = s̄_1i s_1j (w̄_j − w̄_i)/(θ_j − θ_i). For a loss on the measure alone,
    w̄_j is a function of θ_j and θ̄_j is w_j times its slope, so that the quotient tends to (θ̄_i + θ̄_j)/(w_i + w_j),
    which is taken, with an error of order √eps, where the nodes are within √eps of the range of each other.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, dimension: Tensor) -> tuple[Tensor, Tensor]:
        hermitian = (projected + projected.mH) / 2
        steps = torch.arange(projected.shape[-1], device=projected.device)
        absent = steps >= dimension.unsqueeze(-1)
        # what the recurrence did not reach sorts behind everything that it did
        beyond = 4 * hermitian.abs().sum((-1, -2)).unsqueeze(-1) + 1
        hermitian = hermitian + torch.diag_embed(torch.where(absent, beyond, 0.0).to(hermitian))
        nodes, vectors = torch.linalg.eigh(hermitian)
        first = torch.where(absent, 0.0, vectors[..., 0, :])
        nodes = torch.where(absent, nodes[..., :1], nodes)
        ctx.save_for_backward(projected, nodes, vectors, first, absent)
        return nodes, first.abs().square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        projected, nodes, vectors, first, absent = ctx.saved_tensors
        of_nodes, of_weights = (torch.where(absent, 0.0, gradient) for gradient in gradients)
        weights = first.abs().square()
        gaps = nodes.unsqueeze(-2) - nodes.unsqueeze(-1)
        span = (nodes.amax(-1) - nodes.amin(-1))[..., None, None]
        close = gaps.abs() <= torch.finfo(nodes.dtype).eps ** 0.5 * span
        quotient = (of_weights.unsqueeze(-2) - of_weights.unsqueeze(-1)) / torch.where(close, 1.0, gaps)
        shared = weights.unsqueeze(-2) + weights.unsqueeze(-1)
        slope = (of_nodes.unsqueeze(-2) + of_nodes.unsqueeze(-1)) / torch.where(shared > 0, shared, 1.0)
        mixing = first.conj().unsqueeze(-1) * first.unsqueeze(-2) * torch.where(close, slope, quotient)
        mixing = torch.where(torch.eye(nodes.shape[-1], device=nodes.device, dtype=torch.bool), 0.0, mixing)
        mixing = mixing + torch.diag_embed(of_nodes.to(mixing))
        return first_order_only(vectors @ mixing @ vectors.mH, projected), None


def _check_symmetric(projected: Tensor) -> None:
    """Refuse what is not finite and what a few products have shown not to be Hermitian."""
    finite = torch.isfinite(projected).all(-1).all(-1).all(-1)
    if not finite.all():
        raise ValueError(
            f"a density needs finite operators: batch element {_first(~finite)} gives a NaN or an infinity"
        )
    skew = (projected - projected.mH).abs().amax((-1, -2, -3))
    allowed = 10 * torch.finfo(projected.dtype).eps ** 0.5 * projected.abs().amax((-1, -2, -3))
    if (skew > allowed).any():
        raise ValueError(
            f"a density needs symmetric operators: batch element {_first(skew > allowed)} is not. Use A + Aᴴ, AᴴA or a "
            "Hessian, or ask Exact or Arnoldi for eigenvalues"
        )


def _first(bad: Tensor) -> tuple[int, ...]:
    return tuple(bad.nonzero()[0].tolist())
