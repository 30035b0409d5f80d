"""Eigenvalues of dense matrices with right and left vectors that are accurate to their condition."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import TypeVar

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
# found among what torch is linked to; it sets the number of threads of the calling thread's operations only
SET_OPENMP_THREADS = getattr(ctypes.CDLL(torch._C.__file__), "omp_set_num_threads", None)
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
    condition: Tensor  # (b, n), real, κ_i = ‖v_i‖‖y_i‖/|y_iᴴ v_i| ≥ 1, or ‖P_C‖₂ in a semisimple cluster
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
        flat = matrix.reshape(-1, size, size)
        solve = _in_pieces if matrix.device.type == "cpu" else _scaled_pairs
        try:
            pairs = solve(flat, *_rows(flat))
        except ValueError:
            check_finite(matrix)  # names the element of the whole batch
            raise
        pairs = resolved(flat, pairs)
    return Pairs(*(part.reshape((*batch, *part.shape[1:])) for part in (getattr(pairs, name) for name in FIELDS)))


def kernel_for(matrix: Tensor) -> ModuleType | None:
    """The module whose `eigenpairs` and `gradient` take this matrix in one launch, where there is one."""
    if not matrix.is_cuda:
        return None
    kernel = _cuda()
    return kernel if kernel.supports(matrix) else None


@cache
def _cuda() -> ModuleType:
    from specreg.eigen import cuda  # imported where there is a use for it

    return cuda


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


def _in_pieces(matrix: Tensor, right: Tensor, left: Tensor) -> Pairs:
    """`_scaled_pairs` of the pieces of a batch, whose vectors go straight to where those of all are."""
    parts = in_pieces(_scaled_pairs, matrix, right, left)
    values, condition, flagged = (torch.cat([getattr(part, n) for part in parts]) for n in ("values", *FIELDS[3:5]))
    return Pairs(values, right.mT, left.mT, condition, flagged)


def _scaled_pairs(matrix: Tensor, right: Tensor, left: Tensor) -> Pairs:
    """`refined_pairs` of finite matrices with entries of any order."""
    check_finite(matrix)
    scaled, exponent = power_scaled(matrix)
    pairs = refined_pairs(scaled, right, left)
    return replace(pairs, values=power_unscaled(pairs.values, exponent))


def _rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the vectors v_iᵀ and w_i of a batch, real on the CPU for real matrices."""
    dtype = matrix.dtype if matrix.device.type == "cpu" else matrix.dtype.to_complex()
    right, left = (torch.empty(matrix.shape, dtype=dtype, device=matrix.device) for _ in range(2))
    return right, left


def refined_pairs(matrix: Tensor, right: Tensor, left: Tensor, eps: float | None = None) -> Pairs:
    """Eigenpairs of matrices ``(b, n, n)`` of entries of order 1, by LAPACK or its like and Newton steps.

    The rows of `right` and `left`, contiguous, take the vectors, and the result is a view of them. `eps` is the
    precision of the entries, if not the dtype's. Matrices that are `flagged` hold no valid vectors.
    """
    eps = torch.finfo(matrix.dtype).eps if eps is None else eps
    on_cpu, rounded = matrix.device.type == "cpu", _single_products_are_rounded(matrix)
    if rounded and matrix.dtype in WIDE:
        wide = _wide_pairs(matrix, eps)
        vectors = right.mT.copy_(wide.right), left.mT.copy_(wide.left)
        return Pairs(
            wide.values.to(matrix.dtype.to_complex()), *vectors, wide.condition.to(right.real.dtype), wide.flagged
        )
    values, vectors = torch.linalg.eig(matrix)
    basis = Basis(packed(values, vectors, right), right, left)
    _invert(right, left)
    matrix = matrix.to(right.dtype)
    first = newton(matrix, basis, SHORT.get(right.dtype, right.dtype) if on_cpu and not rounded else right.dtype)
    alone = _stand_alone(first, eps) & (first.moved <= LARGEST_CORRECTION).all(-1)  # False at a NaN
    chosen = (alone & ~_settled(first, QUIET)).nonzero()[:, 0]
    if not len(chosen):
        return _finished(first, ~alone)
    if matrix.real.dtype != torch.float64:
        more = _wide_pairs(matrix[chosen], eps)
    else:
        more = _more_precise(matrix[chosen], first.basis.part(chosen), eps)
    pairs = _finished(first, ~alone)
    for name in FIELDS[:-1]:
        getattr(pairs, name).index_copy_(0, chosen, getattr(more, name).to(getattr(pairs, name).dtype))
    return pairs


def _wide_pairs(matrix: Tensor, eps: float) -> Pairs:
    wide = matrix.to(WIDE[matrix.dtype])
    return refined_pairs(wide, *_rows(wide), eps)


def _single_products_are_rounded(matrix: Tensor) -> bool:
    """Whether torch may multiply matrices of single precision with fewer digits, as it does if told to."""
    backend = torch.backends.cuda.matmul if matrix.is_cuda else torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    return backend.fp32_precision not in ("none", "ieee")


def _stand_alone(step: Step, eps: float) -> Tensor:
    """Whether every eigenvalue of a matrix is further from the others than rounding could move it, ``(b,)``."""
    return step.norm[:, 0] * step.closeness < 1 / (SEPARATION * eps)


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
    return _finished(next, ~(settled & _stand_alone(next, eps)))


def _finished(step: Step, flagged: Tensor) -> Pairs:
    """The pairs after a step, in the memory of its basis."""
    basis = step.basis
    left = basis.left.conj_physical_()
    return Pairs(basis.form.values, basis.right.mT, left.mT, step.condition.clamp_min(1), flagged)


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


def eigvals(matrix: Tensor) -> Tensor:
    """Eigenvalues alone, without refinement."""
    if matrix.device.type != "cpu":
        return torch.linalg.eigvals(matrix)  # type: ignore[no-any-return]
    return torch.cat(in_pieces(torch.linalg.eigvals, matrix))


def in_pieces(solve: Callable[..., Result], matrix: Tensor, *others: Tensor, large: bool = False) -> list[Result]:
    """`solve` of the pieces of a batch, on as many threads as torch may use where LAPACK would use only one.

    All tensors are split in the same places, if `large` no further than among the threads. Nothing is recorded for a
    derivative.
    """
    size, entries = matrix.shape[-1], max(matrix.numel(), 1)
    workers = torch.get_num_threads() if size <= LARGEST_SHARED_SIZE else 1
    workers = min(workers, -(-entries // DIVIDED))
    # in threads of our own torch must not divide operations further, and large memory is paged in anew at each use
    free = workers < 2 or SET_OPENMP_THREADS is not None
    largest = (entries if large else PIECE // min(workers, 2)) if free else DIVIDED
    count = -(-entries // min(largest, -(-entries // workers)))
    pieces = list(zip(*(part.split(max(1, -(-len(matrix) // count))) for part in (matrix, *others)), strict=True))

    def solve_detached(piece: tuple[Tensor, ...]) -> Result:
        with torch.no_grad():  # a thread of its own does not inherit the mode
            return solve(*piece)

    if workers < 2:
        return [solve_detached(piece) for piece in pieces]
    with ThreadPoolExecutor(workers, initializer=_keep_undivided) as pool:
        return list(pool.map(solve_detached, pieces))


def _keep_undivided() -> None:
    """Let torch run each operation of this thread, one of ours, on it alone. Other threads have their own number."""
    torch.get_num_threads()  # in a new thread torch sets it, once, to that of the program
    if SET_OPENMP_THREADS is not None:
        SET_OPENMP_THREADS(1)


def _invert(right: Tensor, left: Tensor) -> None:
    """Put into `left` the rows of W = V⁻¹ of Vᵀ, infinite or NaN where singular."""
    pieces = [(right, left)]
    if right.shape[-1] > LARGEST_BATCHED_LU:
        pieces = list(zip(right.split(1), left.split(1), strict=True))
    for each, inverse in pieces:
        information = torch.empty(len(each), dtype=torch.int32, device=each.device)
        torch.linalg.inv_ex(each, out=(inverse.mT, information))
