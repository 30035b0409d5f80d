"""Eight Lyapunov exponents of a tanh network with their windowed gradient in under 3 s on two cores, and right ones.

N = 256, T = 200, batch 32, float32. The peer is the plain method by autograd: a product and `torch.linalg.qr` at each
step. Both meet Newman's formula for i.i.d. Gaussian products, and triangular ones their diagonal. Run as
``OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE python tests/benchmarks/lyapunov.py [repetitions]``. The exit status counts
misses.

The policy matters where others use the cores: the network's own products are some four thousand parallel regions of a
fraction of a millisecond, and at the end of each a thread by default spins, for up to milliseconds, until the other one
has had its turn. Products without any decomposition then take as long; threads that sleep instead take 0.3 s.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from measure import in_turn, row, time_row
from torch import Tensor

from specreg.estimators.lyapunov import Lyapunov, StepProducts
from specreg.operators import Dense

SIZE, STEPS, COUNT, WINDOW, GAIN, BATCH = 256, 200, 8, 50, 1.2, 32
LIMIT = 3000.0  # ms


def states(weight: Tensor, batch: int) -> list[Tensor]:
    """h_t = tanh(W h_{t−1}), cut where the windows are."""
    state = 0.1 * torch.randn(batch, SIZE, generator=torch.Generator().manual_seed(1))
    found = []
    for t in range(STEPS):
        state = torch.tanh((state.detach() if t % WINDOW == 0 else state) @ weight.T)
        found.append(state)
    return found


def products(weight: Tensor) -> list[Callable[[Tensor], Tensor]]:
    """Each Jacobian diag(1 − h_t²) W applied to columns ``(B, n, k)``, as one product for the whole batch.

    Of the transposes: decompositions leave columns one after the other in memory, so that nothing is copied.
    """

    def product(columns: Tensor, slope: Tensor) -> Tensor:
        return (slope * (columns.mT @ weight.mT)).mT

    return [partial(product, slope=(1 - state.square()).unsqueeze(-2)) for state in states(weight, BATCH)]


def ours(weight: Tensor) -> Tensor:
    """Exponents ``(B, 8)``."""
    steps = products(weight)

    def product(t: int, columns: Tensor) -> Tensor:
        return steps[t](columns.squeeze(1)).unsqueeze(1)

    source = StepProducts(product, (BATCH, 1), STEPS, SIZE, weight.dtype, weight.device)
    return Lyapunov(COUNT, WINDOW)(source).values.squeeze(1)


def plain(steps: Sequence[Callable[[Tensor], Tensor]], start: Tensor, window: int = WINDOW) -> Tensor:
    """Benettin's method: Q R = J Q at each step, the mean of log|R_ii|, cut at the windows."""
    basis, logs = torch.linalg.qr(start)[0], []
    for t, step in enumerate(steps):
        basis, triangle = torch.linalg.qr(step(basis.detach() if t % window == 0 else basis))
        logs.append(triangle.diagonal(dim1=-2, dim2=-1).abs().log())
    return torch.stack(logs).mean(0)


def network(repetitions: int) -> int:
    """The claim, in wall time, since it is about cores, and how far the two sides are apart."""
    weight = GAIN * torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) / SIZE**0.5
    weight.requires_grad_()
    start = torch.randn(BATCH, SIZE, COUNT, generator=torch.Generator().manual_seed(2))
    sides: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(weight),
        "plain": lambda: plain(products(weight), start),
    }

    def trained(side: Callable[[], Tensor]) -> None:
        torch.autograd.grad(side().square().sum(), weight)

    steps = {name: partial(trained, side) for name, side in sides.items()}
    times = in_turn(steps, repetitions, time.perf_counter)
    what = f"8 exponents and gradient, {torch.get_num_threads()} thread(s)"
    over = time_row(what, times["ours"], "a QR at each step", times["plain"], most=LIMIT)
    difference = (sides["ours"]() - sides["plain"]()).abs().max().item()
    print(f"largest difference of the exponents, whose starts differ: {difference:.2g} nats a step")
    return int(over)


def known(length: int = 1000, batch: int = 16, size: int = 4) -> int:
    """Deviations from the exact exponents in standard errors, the largest of four, batch and errors averaged."""
    draw = torch.Generator().manual_seed(0)
    gaussian = torch.randn(batch, length, 1, size, size, dtype=torch.float64, generator=draw)
    rank = torch.arange(1, size + 1, dtype=torch.float64)
    newman = 0.5 * (math.log(2) + torch.digamma((size - rank + 1) / 2))
    decays = -0.5 * rank + 0.2 * torch.randn(batch, length, 1, size, dtype=torch.float64, generator=draw)
    triangular = 0.3 * gaussian.triu(1) + torch.diag_embed(decays.exp())
    start = torch.randn(batch, size, size, dtype=torch.float64, generator=draw)
    misses = 0
    for name, matrices, exact in (
        ("Gaussian products, Newman", gaussian, newman.expand(batch, -1)),
        ("triangular products", triangular, decays.mean((1, 2))),
    ):
        found = Lyapunov(size)(Dense(matrices))
        error = found.standard_error.square().mean((0, 1)).div(batch).sqrt()
        peer = plain([partial(torch.matmul, step) for step in matrices.squeeze(2).unbind(1)], start)
        deviations = [
            ((values - exact).mean(0).abs() / error).max().item() for values in (found.values.squeeze(1), peer)
        ]
        misses += row(f"{name}: deviation in errors", deviations[0], "plain", deviations[1], most=4)
    return misses


def main(repetitions: int = 5) -> int:
    print(f"torch {torch.__version__}, float32, N {SIZE}, T {STEPS}, batch {BATCH}, windows of {WINDOW}")
    return network(repetitions) + known()


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
