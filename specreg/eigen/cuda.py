"""Eigenpairs of batches of small matrices on one GPU, and the gradient of their eigenvalues, each in one launch.

One thread block a matrix: Hessenberg reduction, complex QR iteration, eigenvectors of the triangle by substitution,
then Newton steps on both sides with residuals in twice the precision, all in CUDA C beside this module. The host runs
ahead of the device: it waits for no more than the check of the entries until somebody asks what is flagged.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from specreg.eigen.driver import Module, is_available, reports, shared_memory
from specreg.eigen.pairs import SEPARATION, Pairs, check_finite, put

LARGEST_SIZE = 256
SOURCES = ("arithmetic", "schur", "newton", "eigenpairs", "gradient")
STEPS = 5  # most Newton steps
WORKSPACE_BYTES = 1 << 30  # a batch that needs more is taken in parts
GRADIENT_ROWS = 16  # rows of a gradient that one block takes
DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}
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
        return 1 if self.small else 5

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
class Launched:
    """Eigenpairs that the device may still be at work on."""

    matrix: Tensor  # (b, n, n)
    pairs: Pairs  # without `clusters`, on the device, valid in its order
    number: int
    ended: torch.cuda.Event

    def any_flagged(self) -> bool:
        """Whether the vectors of some matrix are not valid; waits for the device."""
        self.ended.synchronize()
        found = reports().has(self.number)
        return bool(self.pairs.flagged.any()) if found is None else found

    def finished(self) -> Pairs:
        """The pairs, flagged matrices in single precision tried again; with `clusters` if none is left flagged."""
        if not self.any_flagged():
            return replace(self.pairs, clusters=_own_clusters(self.pairs))
        if self.matrix.dtype not in DOUBLE:
            return self.pairs
        again = self._in_double()
        return again if bool(again.flagged.any()) else replace(again, clusters=_own_clusters(again))

    def _in_double(self) -> Pairs:
        index = self.pairs.flagged.nonzero()[:, 0]
        wide = self.matrix[index].to(DOUBLE[self.matrix.dtype])
        return put(self.pairs, index, _started(wide, Limits.of(self.matrix.dtype), reports().number()))


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
    return launch(matrix).finished()


def launch(matrix: Tensor) -> Launched:
    """Start on the eigenpairs of ``(*batch, n, n)``, n ≤ 256, on CUDA, once the check of the entries is through.

    Raises `ValueError` for an entry that is NaN or infinite, with the index of the batch element.
    """
    given, size = matrix, matrix.shape[-1]
    matrix = _plain(matrix.detach()).reshape(-1, size, size)
    found = reports().number()
    if len(matrix):
        entries = size * size * (1 + matrix.is_complex())
        arguments = (matrix, entries, reports().address(found), found)
        _module(matrix.device.index, _plan(matrix)).launch("not_finite", (len(matrix), 1), 128, 0, "PiPi", *arguments)
    checked = _event()
    number = reports().number()
    pairs = _started(matrix, Limits.of(matrix.dtype), number)
    ended = _event()
    checked.synchronize()
    if reports().has(found) is not False:
        check_finite(given)
    return Launched(matrix, pairs, number, ended)


def _event() -> torch.cuda.Event:
    """Over when the device is done with all that it was given so far."""
    event = torch.cuda.Event()
    event.record()
    return event


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
    size = matrix.shape[-1]
    output = torch.empty(matrix.shape, dtype=matrix.dtype, device=matrix.device)
    count = matrix.numel() // (size * size)
    if not count:
        return output
    plan = _plan(matrix)
    shape = (int(matrix.is_complex()), size)
    pairs = [_plain(each) for each in (values, right, left, condition)]
    groups = None if clusters is None else _plain(clusters.to(condition))
    pulled = _plain(cotangent.to(values))
    grid, shared = (count, -(-size // GRADIENT_ROWS)), (4 * size + 64) * (8 if plan.double else 4)
    _module(matrix.device.index, plan).launch(
        "gradient", grid, 128, shared, "PiiPPPPPPiP", _plain(matrix), *shape, *pairs, groups, pulled, degree, output
    )
    return output


def _plain(tensor: Tensor) -> Tensor:
    """As it lies in memory: contiguous, no conjugation or sign put off."""
    if tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        return tensor
    return tensor.resolve_conj().resolve_neg().contiguous()


def _started(matrix: Tensor, limits: Limits, number: int) -> Pairs:
    """Start the kernel, which leaves `number` in the reports if it flags a matrix."""
    count, size = matrix.shape[:2]
    plan = _plan(matrix)
    dtype, device = torch.complex128 if plan.double else torch.complex64, matrix.device
    values = torch.empty(count, size, dtype=dtype, device=device)
    right, left = torch.empty(2, count, size, size, dtype=dtype, device=device).unbind()
    condition = torch.empty(count, size, dtype=values.real.dtype, device=device)
    flagged = torch.empty(count, dtype=torch.bool, device=device)
    part = max(1, WORKSPACE_BYTES // (plan.workspaces * size * size * dtype.itemsize))
    work = torch.empty(min(part, count), plan.workspaces, size, size, dtype=dtype, device=device)
    real = "d" if plan.double else "f"
    threads, shared = 64 * -(-size // 32), plan.shared_bytes(size)
    tensors = (matrix, values, right, left, condition, flagged)
    bounds = (limits.condition, limits.spread, limits.closest)
    for start in range(0, count, part):
        inputs, *outputs = tensors if part >= count else (each[start : start + part] for each in tensors)
        given = (inputs, int(matrix.is_complex()), size, *bounds, work, *outputs, reports().address(number), number)
        _module(device.index, plan).launch("eigenpairs", (len(inputs), 1), threads, shared, f"Pii3{real}7Pi", *given)
    return Pairs(values, right, left, condition, flagged)


def _own_clusters(pairs: Pairs) -> Tensor:
    return _range(pairs.values.shape[-1], pairs.values.device).expand(pairs.values.shape)


@cache
def _range(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, device=device)


def _plan(matrix: Tensor) -> Plan:
    return _planned(matrix.shape[-1], matrix.dtype in (torch.float64, torch.complex128), matrix.device.index)


@cache
def _planned(size: int, double: bool, device: int) -> Plan:
    return Plan.of(min(size, LARGEST_SIZE), double, shared_memory(device))


def source() -> str:
    """CUDA C of both kernels."""
    folder = files("specreg.eigen")
    return "\n".join(folder.joinpath(f"{part}.cu").read_text(encoding="utf-8") for part in SOURCES)


@cache
def _compiled(device: int, plan: Plan) -> Module:
    return Module(source(), plan.options(), device)


def _module(device: int, plan: Plan) -> Module:
    with _lock:  # compiled once, whichever thread comes first
        return _compiled(device, plan)
