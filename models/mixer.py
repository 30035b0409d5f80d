"""What every sequence mixer is: a core that applies a linear system, and a readout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from specreg.system import LinearSystem
from specreg.targets import Target


class UnreachableTargetError(ValueError):
    """A target spectrum that the mixer cannot have: a mistake at construction, not a loss that never falls."""


class Mixer(nn.Module, ABC):
    """y = readout(core, u), where the core is the output of a linear system that the mixer can hand out.

    A member writes `mix`, which runs the fast form and returns what it applied, and `system`, which lays that out as
    a `LinearSystem`; nothing is projected twice, and a forward pass that nobody asks for its system builds none.

    `mask` marks real steps: the first n of each row are True, the padding after them False (`Backbone` checks it). The
    state is then that after the last real step.
    """

    spectral_names: tuple[str, ...] = ()  # of the parameters that set eigenvalues directly

    def __init__(self, d_model: int, width: int, gate: bool) -> None:
        super().__init__()
        for name, size in (("d_model", d_model), ("width", width)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        self.d_model, self.width = d_model, width
        self.output = nn.Linear(width, d_model)
        self.gate = nn.Linear(d_model, width) if gate else None

    @abstractmethod
    def mix(self, u: Tensor, state: Any, mask: Tensor | None) -> tuple[Tensor, Any, Any]:
        """The core output ``(B, T, width)``, the state after the last step, and what was applied, for `system`."""

    @abstractmethod
    def system(self, applied: Any) -> LinearSystem:
        """The system behind a call of `mix`."""

    @abstractmethod
    def core_macs(self, length: int) -> int:
        """Multiply–accumulate operations of the core on one sequence, without projections."""

    @classmethod
    @abstractmethod
    def example(cls) -> Self:
        """A small instance for tests and first tries."""

    def forward(self, u: Tensor, state: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """Output ``(B, T, d_model)`` for input ``(B, T, d_model)``, and the state to go on from."""
        core, state, _ = self.mix(u, state, mask)
        return self.readout(core, u), state

    def with_system(self, u: Tensor, state: Any = None, mask: Tensor | None = None) -> tuple[Tensor, Any, LinearSystem]:
        """`forward`, and the system that it applied."""
        core, state, applied = self.mix(u, state, mask)
        return self.readout(core, u), state, self.system(applied)

    def step(self, u: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One time step: output ``(B, d_model)`` for input ``(B, d_model)``."""
        y, state = self(u.unsqueeze(1), state)
        return y.squeeze(1), state

    def readout(self, core: Tensor, u: Tensor) -> Tensor:
        """Gate (if there is one) and output projection."""
        return self.output(self.gated(core, u))  # type: ignore[no-any-return]

    def gated(self, core: Tensor, u: Tensor) -> Tensor:
        """core ∘ SiLU(W u + b), or the core itself without a gate."""
        return core if self.gate is None else core * F.silu(self.gate(u))

    def spectral_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that set eigenvalues directly: an optimiser group of their own, without weight decay.

        Of a parametrised one, what is trained: the unconstrained parameter behind it.
        """
        for name in self.spectral_names:
            if parametrize.is_parametrized(self, name):
                yield from self.get_submodule(f"parametrizations.{name}").parameters(recurse=False)
            else:
                yield self.get_parameter(name)

    def initialise(self, target: Target) -> None:
        """Set the parameters so that the spectrum is the target's; raises `UnreachableTargetError` if it cannot be."""
        raise UnreachableTargetError(self.refusal(target))

    def refusal(self, target: Target) -> str:
        """Why the target cannot be met; members say more."""
        return f"{type(self).__name__} cannot be initialised to {target}: no parameter sets its eigenvalues"


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over the last `width` steps, then SiLU; its state is the tail of its input."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"a short convolution needs a width of at least 1, got {width}")
        self.channels, self.width = channels, width
        self.weight = nn.Parameter(torch.empty(channels, 1, width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, tail: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output ``(B, T, channels)`` and the new tail ``(B, width − 1, channels)``."""
        if tail is None:
            tail = x.new_zeros(x.shape[0], self.width - 1, self.channels)
        extended = torch.cat((tail.to(x.dtype), x), 1)
        y = F.conv1d(extended.mT, self.weight.to(x.dtype), self.bias.to(x.dtype), groups=self.channels).mT
        return F.silu(y), last_steps(extended, mask, self.width - 1)


def convolution(channels: int, width: int) -> ShortConvolution | None:
    """A short convolution, or None for width 0."""
    return ShortConvolution(channels, width) if width else None


def convolve(
    layer: ShortConvolution | None, x: Tensor, tail: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """`layer(x)`, or x itself where there is no convolution."""
    return (x, None) if layer is None else layer(x, tail, mask)


def last_steps(extended: Tensor, mask: Tensor | None, count: int) -> Tensor:
    """The `count` steps before the end of each row's real part; `extended` has `count` earlier steps in front."""
    if mask is None:
        return extended[:, extended.shape[1] - count :]
    index = mask.sum(1, keepdim=True) + torch.arange(count, device=mask.device)
    return extended.gather(1, index.unsqueeze(-1).expand(-1, -1, extended.shape[-1]))


def masked(tensor: Tensor, mask: Tensor | None, value: float = 0.0) -> Tensor:
    """`tensor` (B, T, …) with `value` at padded steps."""
    if mask is None:
        return tensor
    return tensor.masked_fill(~mask.view(*mask.shape, *[1] * (tensor.dim() - 2)), value)


def padding_gain(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """0 at real steps and −inf at padded ones, ``(B, T, 1)``: a log gain that neither writes nor reads."""
    return None if mask is None else torch.where(mask, 0.0, -torch.inf).to(like.dtype).unsqueeze(-1)


def last_real(values: Tensor, mask: Tensor | None, before: Tensor | None) -> Tensor:
    """The value ``(B, …)`` of ``(B, T, …)`` at each row's last real step; `before`, or 0, where a row has none."""
    if mask is None:
        return values[:, -1]
    first = torch.zeros_like(values[:, 0]) if before is None else before
    index = mask.sum(1).view(-1, *[1] * (values.dim() - 1)).expand(-1, 1, *values.shape[2:])
    return torch.cat((first.unsqueeze(1), values), 1).gather(1, index).squeeze(1)


@torch.no_grad()
def assign(module: nn.Module, name: str, value: Tensor) -> None:
    """Set a parameter, through its parametrisation if it has one, where `copy_` would write into a computed tensor."""
    parameter = getattr(module, name)
    if parametrize.is_parametrized(module, name):
        setattr(module, name, value.to(parameter))
    else:
        parameter.copy_(value)


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A region in which matrix products keep float32: for what log λ is made of."""
    return torch.autocast(tensor.device.type, enabled=False)


def gate_logits(layer: nn.Linear, u: Tensor) -> Tensor:
    """`layer(u)` in float32 or better, also under autocast: bfloat16 has 8 bits, of which log λ would keep few."""
    with without_autocast(u):
        return full_precision(layer(u.to(layer.weight.dtype)))


def log_softplus(z: Tensor) -> Tensor:
    """log(log(1 + e^z)), which is z itself where e^z is small; finite, with a finite gradient, for every z."""
    small = z < -15
    low, high = torch.where(small, z, -15.0), torch.where(small, 0.0, z)
    return torch.where(small, low - 0.5 * low.exp(), F.softplus(high).log())


def full_precision(tensor: Tensor) -> Tensor:
    """float32 or better: decays, logs and states do not survive bfloat16."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
