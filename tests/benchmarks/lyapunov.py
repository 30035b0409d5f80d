"""Eight Lyapunov exponents of a tanh network with their gradient, against a decomposition at each step by autograd.

The claim: N = 256, T = 200, batch 32, float32, gradient over windows of 50 steps, under 3 s on two cores. The peer
makes each Jacobian and decomposes at each step with `torch.linalg.qr`, all by autograd; at batch 4, which fits memory.
Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/lyapunov.py [repetitions]``, or with 2 on two idle cores: where
others share them, each of some thousand small parallel regions waits for the scheduler. The exit status counts misses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from specreg.estimators.lyapunov import Lyapunov, StepProducts

SIZE, STEPS, COUNT, WINDOW, GAIN = 256, 200, 8, 50, 1.2
LIMIT = 3.0


def states(weight: Tensor, batch: int) -> list[Tensor]:
    """h_t = tanh(W h_{t−1}), cut where the windows are."""
    state = 0.1 * torch.randn(batch, SIZE, generator=torch.Generator().manual_seed(1))
    found = []
    for t in range(STEPS):
        state = torch.tanh((state.detach() if t % WINDOW == 0 else state) @ weight.T)
        found.append(state)
    return found


def ours(weight: Tensor, batch: int) -> Tensor:
    """Exponents from products with eight columns, ``(batch, 8)``."""
    slopes = [1 - state.square() for state in states(weight, batch)]

    def product(t: int, columns: Tensor) -> Tensor:
        flat = columns.squeeze(1).permute(1, 0, 2).flatten(1)
        image = (weight @ flat).unflatten(1, (batch, -1)).permute(1, 0, 2)
        return (slopes[t].unsqueeze(-1) * image).unsqueeze(1)

    source = StepProducts(product, (batch, 1), STEPS, SIZE, weight.dtype, weight.device)
    return Lyapunov(COUNT, WINDOW)(source).values.squeeze(1)


def plain(weight: Tensor, batch: int) -> Tensor:
    """The same by Jacobians and a decomposition at each step."""
    basis = torch.linalg.qr(torch.randn(batch, SIZE, COUNT, generator=torch.Generator().manual_seed(2)))[0]
    logs = []
    for t, state in enumerate(states(weight, batch)):
        jacobian = (1 - state.square()).unsqueeze(-1) * weight
        basis, triangle = torch.linalg.qr(jacobian @ (basis.detach() if t % WINDOW == 0 else basis))
        logs.append(triangle.diagonal(dim1=-2, dim2=-1).abs().log())
    return torch.stack(logs).mean(0)


def seconds(function: Callable[[Tensor, int], Tensor], weight: Tensor, batch: int) -> float:
    weight.grad = None
    start = time.perf_counter()
    function(weight, batch).square().sum().backward()
    return time.perf_counter() - start


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    weight = GAIN * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / SIZE**0.5
    weight.requires_grad_()
    claim = median([seconds(ours, weight, 32) for _ in range(repetitions + 1)][1:])
    print(f"batch 32, {torch.get_num_threads()} threads: {claim:.2f} s, allowed {LIMIT} s")
    times = [(seconds(ours, weight, 4), seconds(plain, weight, 4)) for _ in range(repetitions + 1)][1:]
    first, second = (median(column) for column in zip(*times, strict=True))
    print(f"batch 4: ours {first:.3f} s, one decomposition a step {second:.3f} s, ratio {first / second:.2f}")
    difference = (ours(weight, 4) - plain(weight, 4)).abs().max().item()
    print(f"largest difference of the exponents, whose starts differ: {difference:.3g} nats a step")
    sys.exit(int(claim > LIMIT))


if __name__ == "__main__":
    main()
