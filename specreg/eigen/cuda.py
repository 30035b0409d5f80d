"""Eigenpairs of batches of small matrices on one GPU, and the gradient of their eigenvalues, each in one launch.

One thread block a matrix: Hessenberg reduction, complex QR iteration, eigenvectors of the triangle by substitution,
then Newton steps on both sides with residuals in twice the precision, all in CUDA C beside this module.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from specreg.eigen.driver import Module, is_available, shared_memory
from specreg.eigen.pairs import Pairs, put

LARGEST_SIZE = 256
SOURCES = ("arithmetic", "schur", "newton", "eigenpairs", "gradient")
STEPS = 5  # most Newton steps
FLAGGED, NOT_FINITE = 1, 2  # what the kernel says of a matrix
WORKSPACES = 5  # matrices of the kernel's own, for each of the batch
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

    def shared_bytes(self, size: int) -> int:
        """Dynamic shared memory of a block, as `eigenpairs.cu` lays it out."""
        reals = 8 * size + 4 * size + 3 * size + 64  # rotations, vector and values, lengths with room for partners
        row = size | 1
        reals += 2 * size * row * self.hessenberg_shared + 2 * size * (row if self.small else size) * self.factor_shared
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
        return ["--std=c++17", *(f"-D{name}={value}" for name, value in (numbers | sizes | places).items())]


def supports(matrix: Tensor) -> bool:
    """Whether `eigenpairs` takes this matrix: on a CUDA device that kernels can be compiled for, n ≤ 256."""
    return matrix.is_cuda and matrix.shape[-1] <= LARGEST_SIZE and is_available()


def eigenpairs(matrix: Tensor) -> Pairs:
    """Eigenpairs of ``(b, n, n)``, n ≤ 256, on CUDA; the vectors of matrices that are `flagged` are not valid.

    Matrices of any scale are taken. In single precision a flagged matrix is tried again in double, and stands if, with
    eps of single precision, no gap is below 16 eps ‖A‖_F and no condition number above 1/(4√eps): beyond that, what
    looks like simple eigenvalues may be a repeated one or a Jordan block, pulled apart by the rounding of its entries.
    `clusters` is given, each value its own, if no matrix is flagged. Waits for the device, to learn what is flagged.

    Raises `ValueError` for an entry that is NaN or infinite, with the index of the batch element.
    """
    matrix = _plain(matrix.detach())
    pairs, status = _solved(matrix, most=torch.finfo(matrix.dtype).max, closest=0.0)
    if not len(matrix) or not bool(status.any()):
        return replace(pairs, clusters=_own_clusters(pairs))
    bad = (status == NOT_FINITE).nonzero()
    if len(bad):
        raise ValueError(
            f"eigenvalues need finite matrices: batch element {bad[0].item()} of {len(matrix)} holds a NaN or an "
            "infinity; drop or repair it"
        )
    if matrix.dtype in DOUBLE:
        pairs, status = _in_double(matrix, pairs, status)
    return replace(pairs, clusters=None if bool(status.any()) else _own_clusters(pairs))


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
    shape = (ctypes.c_int(int(matrix.is_complex())), ctypes.c_int(size))
    pairs = [_plain(each) for each in (values, right, left, condition)]
    groups = ctypes.c_void_p() if clusters is None else _plain(clusters.to(condition))
    pulled = _plain(cotangent.to(values))
    _module(matrix.device.index, plan).launch(
        "gradient",
        (count, -(-size // GRADIENT_ROWS)),
        128,
        (4 * size + 64) * (8 if plan.double else 4),
        [_plain(matrix), *shape, *pairs, groups, pulled, ctypes.c_int(degree), output],
    )
    return output


def _plain(tensor: Tensor) -> Tensor:
    """As it lies in memory: contiguous, no conjugation or sign put off."""
    if tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg():
        return tensor
    return tensor.resolve_conj().resolve_neg().contiguous()


def _solved(matrix: Tensor, most: float, closest: float) -> tuple[Pairs, Tensor]:
    """Pairs, and on the host what the kernel says of each matrix.

    Flagged are also matrices with a condition number above `most` or two values nearer than `closest`·‖A‖_F.
    """
    count, size = matrix.shape[:2]
    plan = _plan(matrix)
    real = torch.float64 if plan.double else torch.float32
    dtype = torch.complex128 if plan.double else torch.complex64
    device = matrix.device
    values = torch.empty(count, size, dtype=dtype, device=device)
    right = torch.empty(count, size, size, dtype=dtype, device=device)
    left = torch.empty_like(right)
    condition = torch.empty(count, size, dtype=real, device=device)
    flagged, status = torch.empty(2, count, dtype=torch.uint8, device=device).unbind()
    limits = [(ctypes.c_double if plan.double else ctypes.c_float)(each) for each in (most, closest)]
    part = max(1, WORKSPACE_BYTES // (WORKSPACES * size * size * dtype.itemsize))
    work = torch.empty(min(part, count), WORKSPACES, size, size, dtype=dtype, device=device)
    shape = (ctypes.c_int(int(matrix.is_complex())), ctypes.c_int(size))
    tensors = (matrix, values, right, left, condition, flagged, status)
    for start in range(0, count, part):
        inputs, *outputs = tensors if part >= count else (each[start : start + part] for each in tensors)
        _module(device.index, plan).launch(
            "eigenpairs",
            (len(inputs), 1),
            64 * -(-size // 32),
            plan.shared_bytes(size),
            [inputs, *shape, *limits, work, *outputs],
        )
    return Pairs(values, right, left, condition, flagged.view(torch.bool)), status.cpu()


def _in_double(matrix: Tensor, pairs: Pairs, status: Tensor) -> tuple[Pairs, Tensor]:
    """The flagged ones again in double precision."""
    chosen = status.nonzero()[:, 0]
    index = chosen.to(matrix.device)
    eps = torch.finfo(matrix.dtype).eps
    again, codes = _solved(matrix[index].to(DOUBLE[matrix.dtype]), most=0.25 / eps**0.5, closest=16 * eps)
    return put(pairs, index, again), status.index_copy(0, chosen, codes)


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
