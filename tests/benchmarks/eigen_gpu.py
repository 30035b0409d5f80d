"""Eigenvalues on one GPU, forward and backward: the kernel and `eigenvalues` against torch's own batched solver.

Medians of CUDA events around forward + backward, all sides alternated in one process. Run as
``python tests/benchmarks/eigen_gpu.py``; prints one row a size and precision, with the largest time that is allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from specreg.eigen import cuda
from specreg.eigen.dense import eigenvalues

SIZES = {(1024, 16): 0.4, (512, 32): 1.2, (128, 64): 4.0, (64, 128): 25.0}  # milliseconds in single precision
DOUBLE = 3  # times that in double
ROUNDS, ROUNDS_OF_TORCH = 50, 3


class KernelEigenvalues(Function):
    """The two launches of the kernel alone, without what is done for flagged matrices."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        pairs = cuda.eigenpairs(matrix)
        ctx.save_for_backward(matrix, pairs.values, pairs.right, pairs.left, pairs.condition)
        return pairs.values

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        matrix, values, right, left, condition = ctx.saved_tensors
        return cuda.gradient(cotangent, matrix, values, right, left, condition, clusters=None)


def kernel(matrix: Tensor) -> Tensor:
    return KernelEigenvalues.apply(matrix)  # type: ignore[no-any-return, no-untyped-call]


SIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "kernel": kernel,
    "eigenvalues": eigenvalues,
    "torch": torch.linalg.eigvals,
}


def milliseconds(function: Callable[[Tensor], Tensor], matrix: Tensor, cotangent: Tensor) -> float:
    matrix = matrix.detach().requires_grad_()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    torch.autograd.grad(function(matrix), matrix, cotangent)
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def compare(batch: int, size: int, dtype: torch.dtype, allowed: float) -> bool:
    """Print one row; whether ours is in time."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (4, batch, size, size)
    inputs = torch.randn(shape, generator=generator, dtype=dtype, device="cuda") / size**0.5
    cotangent = torch.complex(*torch.randn(2, batch, size, generator=generator, dtype=dtype, device="cuda"))
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for function in SIDES.values():
        milliseconds(function, inputs[0], cotangent)  # compiled and warmed up
    for number in range(ROUNDS):
        for side, function in SIDES.items():
            if side != "torch" or number < ROUNDS_OF_TORCH:
                times[side].append(milliseconds(function, inputs[number % 4], cotangent))
    medians = {side: median(each) for side, each in times.items()}
    flagged = sum(int(cuda.eigenpairs(each).flagged.sum()) for each in inputs)
    shown = "  ".join(f"{side} {each:.3f} ms" for side, each in medians.items())
    print(
        f"{dtype!s:14} {batch:5}x{size}x{size}: {shown}  allowed {allowed:.1f}  "
        f"torch/eigenvalues {medians['torch'] / medians['eigenvalues']:.0f}  flagged {flagged} of {4 * batch}",
        flush=True,
    )
    return medians["eigenvalues"] <= allowed


def main() -> int:
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "CUDA", torch.version.cuda)
    in_time = [
        compare(batch, size, dtype, allowed * factor)
        for dtype, factor in ((torch.float32, 1), (torch.float64, DOUBLE))
        for (batch, size), allowed in SIZES.items()
    ]
    return int(not all(in_time))


if __name__ == "__main__":
    sys.exit(main())
