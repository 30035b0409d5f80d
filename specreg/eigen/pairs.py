"""Eigenvalues of dense matrices with right and left vectors that are accurate to their condition."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TypeVar, cast

import torch
from torch import Tensor

from specreg.eigen.clusters import clustered
from specreg.eigen.precise import packed_residual, power_of_two, residual
from specreg.eigen.refine import Basis, RealForm, Step, complex_vectors, newton, packed, step

Result = TypeVar("Result")

LARGEST_BATCHED_LU = 128  # with more than one thread torch's batched LU hangs above this size
LARGEST_SHARED_SIZE = 128  # up to here LAPACK's eigensolver gains more from sharing the batch among threads
SEPARATION = 16.0  # an eigenvalue stands alone if this · eps · ‖A‖_F · κ is below its gap
ROUGH = 256.0  # a first correction above this · eps · κ asks for another, from residuals in twice the precision
LARGEST_CORRECTION = 0.1  # above it the vectors are no start for Newton's method
PRECISE_STEPS = 4
PIECE = 2**17  # entries of matrices solved at once on the CPU: their temporaries stay in the cache
DIVIDED = 2**15  # entries above which torch divides an operation among threads
FIELDS = ("values", "right", "left", "condition", "flagged", "clusters")


@dataclass(frozen=True)
class Pairs:
    """Eigenvalues with right and left vectors and their condition, of a batch of finite matrices.

    Where `clusters` joins several eigenvalues, their columns of `right` and `left` are bases X and Y of the cluster's
    invariant subspaces instead, YᴴX = I, so that XYᴴ is its spectral projector.

    The vectors of real matrices may be real: then conjugate values stand side by side, the one above the real axis
    first, and in the place of v, v̄ and y, ȳ stand Re v, Im v and 2 Re y, 2 Im y. That too is a V and a Y with YᵀV = I.
    """

    values: Tensor  # (b, n), complex
    right: Tensor  # (b, n, n), columns v_i: A v_i = λ_i v_i
    left: Tensor  # (b, n, n), columns y_i: y_iᴴ A = λ_i y_iᴴ and y_iᴴ v_i = 1
    condition: Tensor  # (b, n), real, κ_i = ‖v_i‖‖y_i‖/|y_iᴴ v_i| ≥ 1
    flagged: Tensor  # (b,), bool: some eigenvalue could not be told from another, or its vectors not be refined
    clusters: Tensor | None = None  # (b, n), int64, index of the first member of each one's cluster; None: each its own


def eigenpairs(matrix: Tensor) -> Pairs:
    """Eigenpairs of ``(*batch, n, n)``, in its batch shape, flagged matrices cluster by cluster; with `clusters`.

    Raises `ValueError` for an entry that is NaN or infinite, with the index of the batch element.
    """
    batch, size = matrix.shape[:-2], matrix.shape[-1]
    kernel = kernel_for(matrix)
    if kernel is not None:
        flat = matrix.reshape(-1, size, size)
        pairs = _resolved(flat, kernel.eigenpairs(flat))
    else:
        check_finite(matrix)
        flat = matrix.reshape(-1, size, size)
        scaled, exponent = power_scaled(flat)
        pairs = _pieced_pairs(scaled) if matrix.device.type == "cpu" else refined_pairs(scaled)
        pairs = _resolved(flat, replace(pairs, values=power_unscaled(pairs.values, exponent)))
    return Pairs(*(part.reshape((*batch, *part.shape[1:])) for part in (getattr(pairs, name) for name in FIELDS)))


def kernel_for(matrix: Tensor) -> ModuleType | None:
    """The module whose `eigenpairs` and `gradient` take this matrix in one launch, where there is one."""
    if not matrix.is_cuda:
        return None
    from specreg.eigen import cuda  # imported where there is a use for it

    return cuda if cuda.supports(matrix) else None


def check_finite(matrix: Tensor) -> None:  # (*batch, n, n)
    """Raise `ValueError` naming the first batch element with a NaN or an infinity."""
    # the sum of all is finite in most cases and tells it in a tenth of the time
    if torch.isfinite(torch.view_as_real(matrix).sum() if matrix.is_complex() else matrix.sum()):
        return
    bad = (~torch.isfinite(matrix)).flatten(-2).any(-1).nonzero()
    if len(bad):
        where = f"batch element {tuple(bad[0].tolist())}" if matrix.dim() > 2 else "this one"
        raise ValueError(f"eigenvalues need finite matrices: {where} holds a NaN or an infinity; drop or repair it")


def power_scaled(matrix: Tensor) -> tuple[Tensor, Tensor | None]:
    """Each matrix times a power of two that brings its largest entry near 1, and the exponent taken out, ``(b,)``.

    None if all entries are of that order already: then nothing is copied.
    """
    largest = (torch.view_as_real(matrix).flatten(-2) if matrix.is_complex() else matrix).abs().amax((-1, -2))
    exponent = torch.frexp(largest).exponent
    if not (exponent.abs() > 4).any():
        return matrix, None
    return _times_power(matrix, -exponent[:, None, None]), exponent


def power_unscaled(values: Tensor, exponent: Tensor | None) -> Tensor:
    """The values ``(b, n)`` of the matrix that `power_scaled` was given."""
    return values if exponent is None else _times_power(values, exponent[:, None])


def _times_power(tensor: Tensor, exponent: Tensor) -> Tensor:
    half = torch.div(exponent, 2, rounding_mode="floor")  # in two steps, as 2^k alone may be out of range
    dtype = tensor.real.dtype
    return tensor * power_of_two(half, dtype) * power_of_two(exponent - half, dtype)


def refined_pairs(matrix: Tensor, eps: float | None = None) -> Pairs:
    """Eigenpairs of matrices ``(b, n, n)`` of entries of order 1, by LAPACK or its like and Newton steps.

    `eps` is the precision of the entries, if not the dtype's. Matrices that are `flagged` hold no valid vectors.
    """
    working = torch.finfo(matrix.dtype).eps
    eps = working if eps is None else eps
    real = not matrix.is_complex() and matrix.device.type == "cpu"
    values, vectors = torch.linalg.eig(matrix)
    form, right = packed(values, vectors, real)
    if not real:
        matrix = matrix.to(values.dtype)
    first = step(matrix, Basis(form, right, _inverse(right)))
    alone = _stand_alone(matrix, first, eps) & (first.moved <= LARGEST_CORRECTION).all(-1)  # False at a NaN
    rough = alone & (first.moved > ROUGH * working * first.condition).any(-1)
    pairs = _finished(first, ~alone)
    chosen = rough.nonzero()[:, 0]
    if not len(chosen):
        return pairs
    if working > torch.finfo(torch.float64).eps:
        wide = torch.complex128 if matrix.is_complex() else torch.float64
        return put(pairs, chosen, refined_pairs(matrix[chosen].to(wide), eps))
    return put(pairs, chosen, _more_precise(matrix[chosen], first.basis.part(chosen), eps))


def _stand_alone(matrix: Tensor, step: Step, eps: float) -> Tensor:
    """Whether every eigenvalue of a matrix is further from the others than rounding could move it, ``(b,)``."""
    norm = torch.linalg.vector_norm(matrix, dim=(-1, -2))[:, None]
    return cast(Tensor, (SEPARATION * eps * norm * step.condition < step.gap).all(-1))


def _more_precise(matrix: Tensor, basis: Basis, eps: float) -> Pairs:
    """Newton steps with residuals in twice the precision, until they move nothing."""
    working = torch.finfo(matrix.dtype).eps
    for _ in range(PRECISE_STEPS):
        next = newton(basis, *_precise_residuals(matrix, basis))
        basis = next.basis
        # what remains is the product of what each side moved by, as the residuals are next to exact
        spread = next.moved.amax(-1, True) * next.condition.amax(-1, True)
        settled = (next.moved * spread <= working * next.condition).all(-1)
        if settled.all():
            break
    return _finished(next, ~(settled & _stand_alone(matrix, next, eps)))


def _precise_residuals(matrix: Tensor, basis: Basis) -> tuple[Tensor, Tensor]:
    form, right, left = basis.form, basis.right, basis.left
    if isinstance(form, RealForm):
        right_residual = packed_residual(matrix, right, form.swapped(right), form.values, -1)
        left = left.mT.contiguous()
        return right_residual, packed_residual(matrix.mT, left, form.swapped(left), form.values, 1).mT
    return residual(matrix, right, form.values), residual(matrix.mT, left.mT, form.values).mT


def _finished(step: Step, flagged: Tensor) -> Pairs:
    form, right = step.basis.form, step.basis.right
    left = form.normalised(right, step.basis.left)
    return Pairs(form.values, right, left, step.condition.clamp_min(1), flagged)


def put(pairs: Pairs, index: Tensor, part: Pairs) -> Pairs:
    """`pairs` with `part` at the batch elements `index`; `clusters` only where both have them."""
    merged = {}
    for name in FIELDS:
        whole, some = getattr(pairs, name), getattr(part, name)
        if whole is not None and some is not None:
            merged[name] = whole.index_copy(0, index, some.to(whole))
    return Pairs(**merged)


def _resolved(matrix: Tensor, pairs: Pairs) -> Pairs:
    """The same with every flagged matrix taken cluster by cluster, on the CPU in double precision."""
    if pairs.clusters is not None:
        return pairs  # nothing was flagged, and a kernel has said so
    pairs = replace(pairs, clusters=torch.arange(matrix.shape[-1], device=matrix.device).repeat(len(matrix), 1))
    chosen = pairs.flagged.nonzero()[:, 0]
    if not len(chosen):
        return pairs
    wide = matrix[chosen].to(device="cpu", dtype=torch.complex128 if matrix.is_complex() else torch.float64)
    scaled, exponent = power_scaled(wide)
    solved = [clustered(each, torch.finfo(matrix.dtype).eps) for each in scaled.resolve_conj().numpy()]
    stacked = {
        name: torch.stack([torch.from_numpy(getattr(each, name)) for each in solved])
        for name in ("values", "right", "left", "condition", "clusters")
    }
    if pairs.right.is_complex():
        parts = (stacked[name] for name in ("values", "right", "left"))
        stacked["right"], stacked["left"] = complex_vectors(*parts)
    stacked["values"] = power_unscaled(stacked["values"], exponent)
    return put(pairs, chosen, Pairs(**stacked, flagged=pairs.flagged[chosen]))


def _pieced_pairs(matrix: Tensor) -> Pairs:
    """`refined_pairs` of a batch on the CPU, piece by piece."""
    parts = _in_pieces(refined_pairs, matrix)
    if len(parts) == 1:
        return parts[0]
    return Pairs(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS[:-1]))


def eigvals(matrix: Tensor) -> Tensor:
    """Eigenvalues alone, without refinement."""
    if matrix.device.type != "cpu":
        return torch.linalg.eigvals(matrix)  # type: ignore[no-any-return]
    return torch.cat(_in_pieces(torch.linalg.eigvals, matrix))


def _in_pieces(solve: Callable[[Tensor], Result], matrix: Tensor) -> list[Result]:
    """`solve` of the pieces of a batch, on as many threads as torch may use where LAPACK would use only one."""
    size = matrix.shape[-1]
    workers = torch.get_num_threads() if size <= LARGEST_SHARED_SIZE else 1
    # in threads of our own a piece has to be so small that torch does not divide its operations among more threads
    pieces = matrix.split(max(1, (PIECE if workers < 2 else DIVIDED) // (size * size)))
    workers = min(workers, len(pieces))
    if workers < 2:
        return [solve(piece) for piece in pieces]

    def solve_detached(piece: Tensor) -> Result:
        with torch.no_grad():  # a thread of its own does not inherit the mode
            return solve(piece)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(solve_detached, pieces))


def _inverse(matrix: Tensor) -> Tensor:
    """Inverses, infinite or NaN where singular."""
    if matrix.shape[-1] <= LARGEST_BATCHED_LU or len(matrix) < 2:
        return cast(Tensor, torch.linalg.inv_ex(matrix).inverse)
    return torch.stack([torch.linalg.inv_ex(each).inverse for each in matrix])
