"""The scans are faster than the loop over time steps that they replace, and than torch's associative scan.

Forward and backward, float32 and complex64. Run as ``OMP_NUM_THREADS=1 python tests/benchmarks/scans.py
[repetitions]``; the exit status counts misses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from measure import in_turn, time_row
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan

from specreg.models.scans import decayed_attention, diagonal_scan

BATCH, LENGTH, STATES, HEADS, WIDTH = 8, 1024, 64, 4, 64


def scan_loop(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """h_t = a_t ∘ h_{t−1} + x_t, one step after the other."""
    state, states = initial, []
    for a, x in zip(decay.expand_as(inputs).unbind(1), inputs.unbind(1), strict=True):
        state = a * state + x
        states.append(state)
    return torch.stack(states, 1)


def scan_associative(decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
    """The same by a tree of (a, x) pairs."""

    def combine(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    decays = decay.expand_as(inputs).contiguous()
    products, states = associative_scan(combine, (decays, inputs), dim=1, combine_mode="generic")
    return states + products * initial.unsqueeze(1)


def attention_loop(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """S_t = λ_t S_{t−1} + k_t v_tᵀ, y_t = S_tᵀ q_t, one step after the other."""
    state, outputs = torch.zeros(BATCH, HEADS, k.shape[-1], v.shape[-1]), []
    for query, key, value, log in zip(q.unbind(1), k.unbind(1), v.unbind(1), log_decay.unbind(1), strict=True):
        state = log.exp()[..., None, None] * state + key.unsqueeze(-1) * value.unsqueeze(-2)
        outputs.append((query.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1)


def forward_and_backward(function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    output = function(*inputs)
    torch.autograd.grad(output, inputs, torch.ones_like(output))


def compare(what: str, rivals: dict[str, Callable[..., Tensor]], inputs: list[Tensor], repetitions: int) -> int:
    """The first rival is ours; all must agree; how many of the others are faster."""
    outputs = [function(*inputs).detach() for function in rivals.values()]
    for name, output in zip(rivals, outputs, strict=True):
        error = float((output - outputs[0]).abs().max() / outputs[0].abs().max())
        assert error < 1e-4, f"{name} differs by {error:.1e}"
    times = in_turn({name: partial(forward_and_backward, f, inputs) for name, f in rivals.items()}, repetitions)
    ours, *others = rivals
    return sum(time_row(what, times[ours], other, times[other], most_ratio=1) for other in others)


def scan_inputs(dtype: torch.dtype, varying: bool) -> list[Tensor]:
    torch.manual_seed(0)
    shape = (BATCH, LENGTH, STATES) if varying else (1, 1, STATES)
    decay = torch.rand(shape).mul(0.1).add(0.9).to(dtype)
    if dtype.is_complex:
        decay = decay * torch.polar(torch.ones(shape), torch.rand(shape))
    rest = [torch.randn(BATCH, LENGTH, STATES, dtype=dtype), torch.randn(BATCH, STATES, dtype=dtype)]
    return [x.requires_grad_() for x in (decay, *rest)]


def attention_inputs() -> list[Tensor]:
    torch.manual_seed(0)
    rows = [torch.randn(BATCH, LENGTH, heads, WIDTH) for heads in (1, 1, HEADS)]
    return [x.requires_grad_() for x in (*rows, -0.1 * torch.rand(BATCH, LENGTH, HEADS))]


def main(repetitions: int = 5) -> int:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), B {BATCH}, L {LENGTH}, N {STATES}")
    rivals = {"ours": diagonal_scan, "loop": scan_loop, "associative_scan": scan_associative}
    misses = 0
    for kind, dtype in (("complex", torch.complex64), ("real", torch.float32)):
        for varying in (False, True):
            name = f"{kind} {'varying' if varying else 'invariant'} scan"
            misses += compare(name, rivals, scan_inputs(dtype, varying), repetitions)
    attention = {"ours": lambda q, k, v, a: decayed_attention(q, k, v, a)[0], "loop": attention_loop}
    return misses + compare("decayed attention", attention, attention_inputs(), repetitions)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
