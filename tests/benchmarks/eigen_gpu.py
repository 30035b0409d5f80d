"""Eigenvalues on one GPU, forward and backward: `eigenvalues` against torch's own batched solver.

Medians of CUDA events around forward + backward, both sides alternated in one process, what the host does included;
beside them the time in which the device was at work. Run as ``python tests/benchmarks/eigen_gpu.py``; prints one row a
size and precision, with the largest time that is allowed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from specreg.eigen import cuda
from specreg.eigen.dense import eigenvalues

SIZES = {(1024, 16): 0.4, (512, 32): 1.2, (128, 64): 4.0, (64, 128): 25.0}  # milliseconds in single precision
DOUBLE = 3  # times that in double
ROUNDS, ROUNDS_OF_TORCH = 50, 3
SECONDS = 1.0  # of our side's rounds at least, as threads of torch's solver go on for a while


SIDES: dict[str, Callable[[Tensor], Tensor]] = {
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


def at_work(function: Callable[[Tensor], Tensor], matrix: Tensor, cotangent: Tensor) -> float:
    """Milliseconds that the kernels of one forward and backward pass take by themselves."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as record:
        milliseconds(function, matrix, cotangent)
    return sum(event.self_device_time_total for event in record.key_averages()) / 1000


def compare(batch: int, size: int, dtype: torch.dtype, allowed: float) -> bool:
    """Print one row; whether ours is in time."""
    generator = torch.Generator("cuda").manual_seed(0)
    shape = (4, batch, size, size)
    inputs = torch.randn(shape, generator=generator, dtype=dtype, device="cuda") / size**0.5
    cotangent = torch.complex(*torch.randn(2, batch, size, generator=generator, dtype=dtype, device="cuda"))
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for function in SIDES.values():
        milliseconds(function, inputs[0], cotangent)  # compiled and warmed up
    while len(times["eigenvalues"]) < ROUNDS or sum(times["eigenvalues"]) < 1000 * SECONDS:
        number = len(times["eigenvalues"])
        for side, function in SIDES.items():
            if side != "torch" or number < ROUNDS_OF_TORCH:
                times[side].append(milliseconds(function, inputs[number % 4], cotangent))
    medians = {side: median(each) for side, each in times.items()}
    flagged = sum(int(cuda.eigenpairs(each).flagged.sum()) for each in inputs)
    shown = "  ".join(f"{side} {each:.3f} ms" for side, each in medians.items())
    device = median(at_work(eigenvalues, inputs[0], cotangent) for _ in range(5))
    print(
        f"{dtype!s:14} {batch:5}x{size}x{size}: {shown}  on the device {device:.3f} ms  allowed {allowed:.1f}  "
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
