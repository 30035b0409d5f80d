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
from specreg.eigen.precise import power_of_two
from specreg.eigen.refine import Basis, Step, complex_vectors, newton, packed

Result = TypeVar("Result")

LARGEST_BATCHED_LU = 128  # with more than one thread torch's batched LU hangs above this size
LARGEST_SHARED_SIZE = 128  # up to here LAPACK's eigensolver gains more from sharing the batch among threads
SEPARATION = 16.0  # an eigenvalue stands alone if this · eps · ‖A‖_F · κ is below its gap
SHORT = {torch.float64: torch.float32, torch.complex128: torch.complex64}  # for the products of a first correction
WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
# noise of residuals in working precision, in κ·eps, up to which a first step settles all; and a later one, in double
QUIET, LOUDEST = 2.0**8, 2.0**23
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
        pairs = resolved(flat, kernel.eigenpairs(matrix))
    else:
        check_finite(matrix)
        flat = matrix.reshape(-1, size, size)
        scaled, exponent = power_scaled(flat)
        pairs = _joined(in_pieces(refined_pairs, scaled) if matrix.device.type == "cpu" else [refined_pairs(scaled)])
        pairs = resolved(flat, replace(pairs, values=power_unscaled(pairs.values, exponent)))
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
    eps = torch.finfo(matrix.dtype).eps if eps is None else eps
    on_cpu, rounded = matrix.device.type == "cpu", _single_products_are_rounded(matrix)
    if rounded and matrix.dtype in WIDE:
        wide = refined_pairs(matrix.to(WIDE[matrix.dtype]), eps)
        return Pairs(*(part.to(SHORT.get(part.dtype, part.dtype)) for part in (getattr(wide, n) for n in FIELDS[:-1])))
    values, vectors = torch.linalg.eig(matrix)
    form, right = packed(values, vectors, on_cpu and not matrix.is_complex())
    basis = Basis(form, right, _inverse(right).mT.contiguous())
    matrix = matrix.to(right.dtype)
    first = newton(matrix, basis, SHORT.get(right.dtype, right.dtype) if on_cpu and not rounded else right.dtype)
    alone = _stand_alone(matrix, first, eps) & (first.moved <= LARGEST_CORRECTION).all(-1)  # False at a NaN
    pairs = _finished(first, ~alone)
    chosen = (alone & ~_settled(first, QUIET)).nonzero()[:, 0]
    if not len(chosen):
        return pairs
    if matrix.real.dtype != torch.float64:
        return put(pairs, chosen, refined_pairs(matrix[chosen].to(WIDE[matrix.dtype]), eps))
    return put(pairs, chosen, _more_precise(matrix[chosen], first.basis.part(chosen), eps))


def _single_products_are_rounded(matrix: Tensor) -> bool:
    """Whether torch may multiply matrices of single precision with fewer digits, as it does if told to."""
    backend = torch.backends.cuda.matmul if matrix.is_cuda else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    return backend.fp32_precision not in ("none", "ieee")


def _stand_alone(matrix: Tensor, step: Step, eps: float) -> Tensor:
    """Whether every eigenvalue of a matrix is further from the others than rounding could move it, ``(b,)``."""
    norm = torch.linalg.vector_norm(matrix, dim=(-1, -2))
    return cast(Tensor, SEPARATION * eps * norm * step.closeness < 1)


def _settled(step: Step, quiet: float) -> Tensor:
    """Whether what a step leaves is within κ·eps for every vector, ``(b,)``.

    That is the product of what each side moved by, and the noise of residuals in twice the precision.
    """
    eps = torch.finfo(step.moved.dtype).eps
    spread = step.moved.amax(-1, True) * step.condition.amax(-1, True)
    return ((step.moved * spread <= eps * step.condition) & (step.noise <= quiet)).all(-1)


def _more_precise(matrix: Tensor, basis: Basis, eps: float) -> Pairs:
    """Newton steps until they move nothing."""
    for _ in range(PRECISE_STEPS):
        next = newton(matrix, basis, matrix.dtype)
        basis = next.basis
        settled = _settled(next, LOUDEST)
        if settled.all():
            break
    return _finished(next, ~(settled & _stand_alone(matrix, next, eps)))


def _finished(step: Step, flagged: Tensor) -> Pairs:
    basis = step.basis
    left = basis.left.mT
    return Pairs(basis.form.values, basis.right.mT, left.conj().resolve_conj(), step.condition.clamp_min(1), flagged)


def put(pairs: Pairs, index: Tensor, part: Pairs) -> Pairs:
    """`pairs` with `part` at the batch elements `index`; `clusters` only where both have them."""
    merged = {}
    for name in FIELDS:
        whole, some = getattr(pairs, name), getattr(part, name)
        if whole is not None and some is not None:
            merged[name] = whole.index_copy(0, index, some.to(whole))
    return Pairs(**merged)


def resolved(matrix: Tensor, pairs: Pairs) -> Pairs:
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


def _joined(parts: list[Pairs]) -> Pairs:
    """The pairs of all pieces of a batch, contiguous."""
    return Pairs(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS[:-1]))


def eigvals(matrix: Tensor) -> Tensor:
    """Eigenvalues alone, without refinement."""
    if matrix.device.type != "cpu":
        return torch.linalg.eigvals(matrix)  # type: ignore[no-any-return]
    return torch.cat(in_pieces(torch.linalg.eigvals, matrix))


def in_pieces(solve: Callable[..., Result], matrix: Tensor, *others: Tensor) -> list[Result]:
    """`solve` of the pieces of a batch, on as many threads as torch may use where LAPACK would use only one.

    All tensors are split in the same places. Nothing is recorded for a derivative.
    """
    size = matrix.shape[-1]
    workers = torch.get_num_threads() if size <= LARGEST_SHARED_SIZE else 1
    # in threads of our own a piece has to be so small that torch does not divide its operations among more threads
    length = max(1, (PIECE if workers < 2 else DIVIDED) // (size * size))
    pieces = list(zip(*(part.split(length) for part in (matrix, *others)), strict=True))
    workers = min(workers, len(pieces))

    def solve_detached(piece: tuple[Tensor, ...]) -> Result:
        with torch.no_grad():  # a thread of its own does not inherit the mode
            return solve(*piece)

    if workers < 2:
        return [solve_detached(piece) for piece in pieces]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(solve_detached, pieces))


def _inverse(matrix: Tensor) -> Tensor:
    """Inverses, infinite or NaN where singular."""
    if matrix.shape[-1] <= LARGEST_BATCHED_LU or len(matrix) < 2:
        return cast(Tensor, torch.linalg.inv_ex(matrix).inverse)
    return torch.stack([torch.linalg.inv_ex(each).inverse for each in matrix])
