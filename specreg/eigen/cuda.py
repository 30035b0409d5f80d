"""Eigenpairs of batches of small matrices on one GPU, and the gradient of their eigenvalues, each in one launch.

One thread block a matrix: Hessenberg reduction, complex QR iteration, eigenvectors of the triangle by substitution,
then Newton steps on both sides with residuals in twice the precision, all in CUDA C beside this module. The host runs
ahead of the device: it waits for no more than that all entries are read until somebody asks what is flagged.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from specreg.eigen.driver import Kernel, Module, is_available, reports, shared_memory
from specreg.eigen.pairs import SEPARATION, Pairs, check_finite, put

LARGEST_SIZE = 256
SOURCES = ("arithmetic", "schur", "newton", "eigenpairs", "gradient")
STEPS = 5  # most Newton steps
WORKSPACE_BYTES = 1 << 30  # a batch that needs more is taken in parts
GRADIENT_ROWS = 16  # rows of a gradient that one block takes
DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
NOT_FINITE, FLAGGED, ALL_READ, ALL_DONE = range(4)  # what a launch reports, in the order of `Report` in eigenpairs.cu
_lock = threading.Lock()


@dataclass(frozen=True)
class Plan:
    """How the kernel is compiled and launched for matrices of one size and precision."""

    double: bool
    columns: int  # of a product, that a lane holds
    largest_block: int
    hessenberg_shared: bool
    factor_shared: bool
    small: bool  # n ≤ 16

    @staticmethod
    def of(size: int, double: bool, shared_limit: int) -> Plan:
        """The plan that keeps as much as fits in `shared_limit` bytes."""
        bucket = next(each for each in (16, 32, 64, 128, 256) if size <= each)
        columns, block, small = min(max(bucket // 32, 1), 4), max(2 * bucket, 64), bucket == 16
        choices = [Plan(double, columns, block, *each, small) for each in ((True, True), (True, False))]
        fitting = [each for each in choices if each.shared_bytes(size) <= shared_limit]
        return fitting[0] if fitting else replace(choices[0], hessenberg_shared=False, factor_shared=False)

    @property
    def workspaces(self) -> int:
        """Matrices in device memory of the kernel's own, for each of the batch."""
        return 0 if self.small else 5

    def shared_bytes(self, size: int) -> int:
        """Dynamic shared memory of a block, as `eigenpairs.cu` lays it out."""
        reals = 8 * size + 4 * size + 3 * size + 64  # rotations, vector and values, lengths with room for partners
        row = size | 1
        if self.small:
            reals += 4 * size * row + 8 * size * size  # all matrices but the given one
        else:
            reals += 2 * size * row * self.hessenberg_shared + 2 * size * size * self.factor_shared
        return reals * (8 if self.double else 4)

    def options(self) -> list[str]:
        """Definitions that `arithmetic.cu` asks for."""
        if self.double:
            numbers = {"REAL": "double", "EPSILON": "2.220446049250313e-16", "TINY": "1e-300"}
            numbers["LARGEST"] = "1.7976931348623157e308"
        else:
            numbers = {"REAL": "float", "EPSILON": "1.1920929e-7f", "TINY": "1e-36f", "LARGEST": "3.4028234e38f"}
        sizes = {"COLUMNS": self.columns, "THREADS": self.largest_block, "STEPS": STEPS, "SMALL": int(self.small)}
        places = {"H_SHARED": int(self.hessenberg_shared), "Q_SHARED": int(self.factor_shared)}
        fast = [] if self.double else ["--prec-div=false", "--prec-sqrt=false"]  # Newton's steps make up for it
        return ["--std=c++17", *fast, *(f"-D{name}={value}" for name, value in (numbers | sizes | places).items())]


def supports(matrix: Tensor) -> bool:
    """Whether `eigenpairs` takes this matrix: on a CUDA device that kernels can be compiled for, n ≤ 256."""
    return matrix.is_cuda and matrix.shape[-1] <= LARGEST_SIZE and is_available()


@dataclass(frozen=True)
class Limits:
    """Beyond them a matrix is flagged."""

    condition: float  # largest κ
    spread: float  # |λ_i − λ_j| over κ_i ‖A‖_F, smallest
    closest: float  # |λ_i − λ_j| over ‖A‖_F, smallest

    @staticmethod
    @cache
    def of(dtype: torch.dtype) -> Limits:
        """For entries of this precision, whatever the precision that they are computed with."""
        eps = torch.finfo(dtype).eps
        if dtype in DOUBLE:
            return Limits(0.25 / eps**0.5, 0.0, SEPARATION * eps)
        return Limits(torch.finfo(dtype).max, SEPARATION * eps, 0.0)


@dataclass(frozen=True)
class Kernels:
    """Those for matrices of one size, kind and device, with how they are launched."""

    plan: Plan
    size: int
    complex: bool
    threads: int
    shared: int
    dtype: torch.dtype  # of values and vectors
    real: torch.dtype  # of condition numbers
    eigenpairs: Kernel
    gradient: Kernel

    @staticmethod
    @cache
    def of(size: int, dtype: torch.dtype, device: int) -> Kernels:
        """Compiled when first asked for, which takes seconds."""
        double = dtype in (torch.float64, torch.complex128)
        plan = Plan.of(size, double, shared_memory(device))
        module = _module(device, plan)
        layouts = f"Pii3{'d' if double else 'f'}8Piq", "PiiPPPPPPiP"
        kernels = (module.kernel(*each) for each in zip(("eigenpairs", "gradient"), layouts, strict=True))
        types = (torch.complex128, torch.float64) if double else (torch.complex64, torch.float32)
        return Kernels(plan, size, dtype.is_complex, 64 * -(-size // 32), plan.shared_bytes(size), *types, *kernels)

    @staticmethod
    def for_matrix(matrix: Tensor) -> Kernels:
        """Those for ``(*batch, n, n)``."""
        return Kernels.of(matrix.shape[-1], matrix.dtype, matrix.device.index)


@dataclass(frozen=True)
class Launched:
    """Eigenpairs that the device may still be at work on."""

    matrix: Tensor  # (*batch, n, n), contiguous
    vectors: Tensor  # (2, b, n, n), right and left
    reals: Tensor  # (b n + b,), condition numbers, and 1 for each matrix that is flagged
    number: int

    def any_flagged(self) -> bool:
        """Whether the vectors of some matrix are not valid; waits for the device."""
        if not self._count:
            return False
        told = reports(self.matrix.device.index)
        told.wait(self.number, ALL_DONE)
        found = told.has(self.number, FLAGGED)
        return bool(self.reals[self._count :].any()) if found is None else found

    def pairs(self, values: Tensor) -> Pairs:
        """What was found, without `clusters`, the batch in one dimension; `values` as they came with this."""
        size, count = self.matrix.shape[-1], self._count
        condition, flagged = self.reals[:count].view(-1, size), self.reals[count:] != 0
        right, left = self.vectors.unbind()
        return Pairs(values.reshape(-1, size), right, left, condition, flagged)

    def finished(self, values: Tensor) -> Pairs:
        """The pairs, flagged matrices in single precision tried again; with `clusters` if none is left flagged."""
        pairs = self.pairs(values)
        if not self.any_flagged():
            return replace(pairs, clusters=_own_clusters(pairs))
        if self.matrix.dtype not in DOUBLE:
            return pairs
        again = self._in_double(pairs)
        return again if bool(again.flagged.any()) else replace(again, clusters=_own_clusters(again))

    def gradient(self, cotangent: Tensor, values: Tensor) -> Tensor:
        """As `gradient`, each eigenvalue its own; not valid for matrices that are flagged."""
        left = self.vectors.data_ptr() + self.vectors[0].nbytes
        addresses = (values.data_ptr(), self.vectors.data_ptr(), left, self.reals.data_ptr())
        return _started_gradient(cotangent.to(values), self.matrix, *addresses, 0, 1)

    @property
    def _count(self) -> int:
        return self.matrix.numel() // self.matrix.shape[-1]

    def _in_double(self, pairs: Pairs) -> Pairs:
        index = pairs.flagged.nonzero()[:, 0]
        flat = self.matrix.reshape(-1, *self.matrix.shape[-2:])
        values, launched = _started(flat[index].to(DOUBLE[flat.dtype]), Limits.of(flat.dtype))
        return put(pairs, index, launched.pairs(values))


def eigenpairs(matrix: Tensor) -> Pairs:
    """Eigenpairs of ``(*batch, n, n)``, n ≤ 256, on CUDA, the batch in one dimension.

    The vectors of matrices that are `flagged` are not valid.
    Matrices of any scale are taken. In double precision a matrix is flagged if 16 eps ‖A‖_F κ reaches a gap. In single
    precision it stands if no gap is below 16 eps ‖A‖_F and no condition number above 1/(4√eps): beyond that, what looks
    like simple eigenvalues may be a repeated one or a Jordan block, pulled apart by the rounding of its entries; up to
    there Newton's method with residuals in twice the precision has told them apart. What it could not is tried again in
    double precision, under the same limits.
    `clusters` is given, each value its own, if no matrix is flagged. Waits for the device, to learn what is flagged.

    Raises `ValueError` for an entry that is NaN or infinite, with the index of the batch element.
    """
    values, launched = launch(matrix)
    return launched.finished(values)


def launch(matrix: Tensor) -> tuple[Tensor, Launched]:
    """Eigenvalues ``(*batch, n)`` of ``(*batch, n, n)``, n ≤ 256, on CUDA, and what else the device is at work on.

    Returns once all entries are read. Raises `ValueError` for one that is NaN or infinite, with the index of the batch
    element.
    """
    values, launched = _started(_plain(matrix.detach()), Limits.of(matrix.dtype))
    if matrix.numel():
        told = reports(matrix.device.index)
        told.wait(launched.number, ALL_READ)
        if told.has(launched.number, NOT_FINITE) is not False:
            check_finite(matrix)
    return values, launched


def gradient(
    cotangent: Tensor,  # (*batch, n), complex
    matrix: Tensor,  # (*batch, n, n)
    values: Tensor,
    right: Tensor,
    left: Tensor,
    condition: Tensor,
    clusters: Tensor | None,
    degree: int = 1,
) -> Tensor:
    """Σ ḡ_i y_i v_iᴴ, ḡ averaged over clusters, its part that is linear in λ̄ given as c₀ I + c₁ Aᴴ, in one launch.

    `values` to `clusters` are as in `Pairs`, on CUDA; `clusters`, of any dtype, may be None if each value is its own.
    The linear part is left at its constant if `degree` is 0. The real part for a real matrix, in the matrix's shape and
    dtype. Not differentiable.
    """
    pairs = [_plain(each) for each in (values, right, left, condition)]
    groups = None if clusters is None else _plain(clusters.to(condition))
    addresses = (*(each.data_ptr() for each in pairs), 0 if groups is None else groups.data_ptr())
    return _started_gradient(cotangent.to(values), _plain(matrix), *addresses, degree)


def _started_gradient(cotangent: Tensor, matrix: Tensor, *parts: int) -> Tensor:
    """`parts`: addresses of values, right and left vectors, condition and clusters, and the degree."""
    output = torch.empty_like(matrix)
    kernels, size = Kernels.for_matrix(matrix), matrix.shape[-1]
    count = matrix.numel() // (size * size)
    *addresses, degree = parts
    cotangent = _plain(cotangent)
    if count:
        grid, shared = (count, -(-size // GRADIENT_ROWS)), (4 * size + 64) * (8 if kernels.plan.double else 4)
        given = (matrix.data_ptr(), kernels.complex, size, *addresses, cotangent.data_ptr(), degree, output.data_ptr())
        kernels.gradient(grid, 128, shared, *given)
    return output


def _plain(tensor: Tensor) -> Tensor:
    """As it lies in memory: contiguous, no conjugation or sign put off."""
    if tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        return tensor
    return tensor.resolve_conj().resolve_neg().contiguous()


def _started(matrix: Tensor, limits: Limits) -> tuple[Tensor, Launched]:
    """Start the kernel on a contiguous matrix."""
    kernels, told = Kernels.for_matrix(matrix), reports(matrix.device.index)
    size, dtype, device = kernels.size, kernels.dtype, matrix.device
    count = matrix.numel() // (size * size)
    values = torch.empty(matrix.shape[:-1], dtype=dtype, device=device)
    vectors = torch.empty((2, count, size, size), dtype=dtype, device=device)
    reals = torch.empty(count * (size + 1), dtype=kernels.real, device=device)
    each = kernels.plan.workspaces * size * size  # entries of the kernel's own for a matrix
    part = min(count, max(1, WORKSPACE_BYTES // (each * dtype.itemsize))) if each else count
    work = torch.empty(part * each, dtype=dtype, device=device) if each else vectors
    launched = Launched(matrix, vectors, reals, told.number())
    for start in range(0, count, max(part, 1)):
        addresses = _addresses(matrix, values, vectors, reals, start)
        given = (addresses[0], kernels.complex, size, limits.condition, limits.spread, limits.closest, work.data_ptr())
        report = (*told.addresses(launched.number), count, launched.number)
        grid = (min(part, count - start), 1)
        kernels.eigenpairs(grid, kernels.threads, kernels.shared, *given, *addresses[1:], *report)
    return values, launched


def _addresses(matrix: Tensor, values: Tensor, vectors: Tensor, reals: Tensor, start: int) -> tuple[int, ...]:
    """Of the matrix with this number, its values, right and left vectors, condition numbers and flag."""
    size, count, number = matrix.shape[-1], vectors.shape[1], values.itemsize
    right, condition = vectors.data_ptr() + start * size * size * number, reals.data_ptr()
    return (
        matrix.data_ptr() + start * size * size * matrix.itemsize,
        values.data_ptr() + start * size * number,
        right,
        right + count * size * size * number,
        condition + start * size * reals.itemsize,
        condition + (count * size + start) * reals.itemsize,
    )


def _own_clusters(pairs: Pairs) -> Tensor:
    return _range(pairs.values.shape[-1], pairs.values.device).expand(pairs.values.shape)


@cache
def _range(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device)


def source() -> str:
    """CUDA C of both kernels."""
    folder = files("specreg.eigen")
    return "\n".join(folder.joinpath(f"{part}.cu").read_text(encoding="utf-8") for part in SOURCES)


def _module(device: int, plan: Plan) -> Module:
    with _lock:  # compiled once, whichever thread comes first
        return _compiled(device, plan)


@cache
def _compiled(device: int, plan: Plan) -> Module:
    return Module(source(), plan.options(), device)
