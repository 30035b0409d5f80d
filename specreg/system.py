"""The linear system that a forward pass applied: h_t = Λ_t h_{t−1} + B_t u_t.

A mixer hands it out beside its output, so that nothing re-derives projections later. Running it must give the
mixer's fast forward pass; that identity is what makes a reported spectrum true. Framework: Sieber et al. 2024,
arXiv 2405.15731; eigenvalues across tasks: Rickenbach et al. 2025, arXiv 2510.09379.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from specreg.operators import Diagonal, ScaledIdentity, StructuredOperator
from specreg.operators.decayed import decayed_sizes
from specreg.operators.lagged import lagged_sizes


class LinearSystem(ABC):
    """What every applied system offers; axes are ``(B|1, T|1, H, …)``: batch, time, head or independent block."""

    mask: Tensor | None  # (B|1, T), True where the transition exists and counts

    @property
    @abstractmethod
    def transition(self) -> StructuredOperator:
        """Λ_t."""

    @property
    @abstractmethod
    def length(self) -> int:
        """T, the number of time steps, also of a system that does not vary."""

    @abstractmethod
    def unroll(self) -> Tensor:
        """The core output ``(B, T, H·p·d)`` by the recurrence itself, one step after the other: the definition."""

    @abstractmethod
    def respond(self, values: Tensor, initial: Tensor | None = None) -> Tensor:
        """The core output of the same system, frozen, driven by other values (impulses, probes)."""

    @abstractmethod
    def influence(self, lags: Sequence[int]) -> list[Tensor]:
        """I(t, t−lag) = ‖C_t (Λ_t … Λ_{t−lag+1}) B_{t−lag}‖ for each lag, ``(B|1, T−lag|1, H)``.

        Frobenius norm; reader t = lag, lag+1, …. No change of gauge alters it. Lag 0 leaves the feedthrough out.
        """

    def influence_logs(self, lags: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """`influence` as size and log of a factor, for a product that no number holds: I = size · exp(log)."""
        return [(influence, torch.zeros_like(influence.detach())) for influence in self.influence(lags)]

    @abstractmethod
    def regauged(self, log_gauge: Tensor, before: Tensor | None = None) -> Self:  # (B, T, H), (B, H)
        """The same input–output map with the state e^{log_gauge_t} h_t; `before` is the gauge of the initial state."""


@dataclass(frozen=True, eq=False)
class System(LinearSystem):
    """S_t = Λ_t S_{t−1} + e^{gain_t} K_t V_t + drift_t,  core_t = e^{readout_gain_t} Re(Q_t S_t) + D ∘ V_t.

    A vector state is a matrix state with d = 1. Attention: r = p = 1. LRU: H = 1, r = p = D, d = 1.
    Padded steps have log_gain and log_readout_gain −inf: they write nothing and read nothing.
    """

    operator: StructuredOperator  # batch (B|1, T|1, H), n×n
    inputs: Tensor  # K (B|1, T|1, H|1, n, r)
    readouts: Tensor  # Q (B|1, T|1, H|1, p, n)
    values: Tensor  # V (B, T, H, r, d)
    log_gain: Tensor | None = None  # (B, T, H)
    log_readout_gain: Tensor | None = None  # (B, T, H)
    initial: Tensor | None = None  # S_0 (B, H, n, d): the system's own state, not the mixer's
    feedthrough: Tensor | None = None  # D, broadcasts against values
    drift: Tensor | None = None  # (B, T, H, n, d), nonlinear cells only
    mask: Tensor | None = None  # (B|1, T)

    @property
    def transition(self) -> StructuredOperator:
        return self.operator

    @property
    def length(self) -> int:
        return self.values.shape[1]

    def unroll(self) -> Tensor:
        """Step by step, with the state held as e^m Ŝ and |Ŝ| of order 1.

        The scale m_t = max(m_{t−1} + log‖Λ_t‖, gain_t) keeps the recurrence in range where the gauge itself is not:
        norm attention with a double exponential overflows float64 in its own gauge while its output is finite.
        """
        length = self.values.shape[1]
        state, log_scale = self._initial_state()
        gains, read_gains, drifts = (
            _optional_steps(x, length) for x in (self.log_gain, self.log_readout_gain, self.drift)
        )
        inputs, readouts, values = (_steps(x, length) for x in (self.inputs, self.readouts, self.values))
        cores = []
        for t, operator in enumerate(self.operator.steps(length)):
            log_operator = _magnitude(operator).detach()
            gain, read_gain, drift = gains[t], read_gains[t], drifts[t]
            gain = torch.zeros_like(log_scale) if gain is None else gain
            scale = torch.maximum(log_scale + log_operator, gain.detach()).clamp_min(_lowest(log_scale))
            write = inputs[t] @ values[t].to(inputs[t].dtype)
            state = _raise(operator.scaled(-log_operator).mm(state), log_operator + log_scale - scale)
            state = state + _raise(write, gain - scale)
            if drift is not None:
                state = state + _raise(drift, -scale)
            cores.append(_raise(_real(_times(readouts[t], state)), scale if read_gain is None else read_gain + scale))
            log_scale = scale
        core = torch.stack(cores, 1)
        if self.feedthrough is not None:
            core = core + self.feedthrough * self.values
        return core.flatten(2)

    def respond(self, values: Tensor, initial: Tensor | None = None) -> Tensor:
        return replace(self, values=values, initial=initial).unroll()

    def influence(self, lags: Sequence[int]) -> list[Tensor]:
        return [size * log.exp() for size, log in self.influence_logs(lags)]

    def influence_logs(self, lags: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        for lag in lags:
            _check_lag(lag, self.length)
        operator, varies = self.operator, self.operator.shape[1] > 1
        if isinstance(operator, (ScaledIdentity, Diagonal)) and (varies or self.inputs.shape[1] > 1):
            sizes = decayed_sizes(operator, self.inputs, self.readouts, lags, self.length)
        elif varies:
            sizes = lagged_sizes(operator, self.inputs, self.readouts, lags)
        else:
            return [self._influence(lag) for lag in lags]
        return [self._with_gains(size, logs, lag) for (size, logs), lag in zip(sizes, lags, strict=True)]

    def regauged(self, log_gauge: Tensor, before: Tensor | None = None) -> System:
        start = torch.zeros_like(log_gauge[:, 0]) if before is None else before
        earlier = torch.cat((start.unsqueeze(1), log_gauge[:, :-1]), 1)
        length = log_gauge.shape[1]
        operator = self.operator.map(lambda field: field.expand(-1, length, *field.shape[2:]))
        return replace(
            self,
            operator=operator.scaled(log_gauge - earlier),
            log_gain=log_gauge if self.log_gain is None else self.log_gain + log_gauge,
            log_readout_gain=-log_gauge if self.log_readout_gain is None else self.log_readout_gain - log_gauge,
            initial=self.initial if self.initial is None else _raise(self.initial, start),
            drift=None if self.drift is None else _raise(self.drift, log_gauge),
        )

    def _initial_state(self) -> tuple[Tensor, Tensor]:
        batch, _, heads, _, width = self.values.shape
        dtype = torch.promote_types(self.inputs.dtype, self.values.dtype)
        log_scale = torch.zeros(batch, heads, dtype=self.values.dtype, device=self.values.device)
        if self.initial is not None:
            return self.initial.to(dtype), log_scale
        state = torch.zeros(batch, heads, self.inputs.shape[-2], width, dtype=dtype, device=self.values.device)
        return state, log_scale + _lowest(log_scale)

    def _influence(self, lag: int) -> tuple[Tensor, Tensor]:
        """By the power of a transition that does not vary."""
        sources, readers = slice(None, self.length - lag), slice(lag, None)
        inputs, readouts = _part(self.inputs, sources), _part(self.readouts, readers)
        log_size = torch.zeros((), dtype=self.values.dtype, device=self.values.device)
        if lag:
            product = self.operator.window(lag)
            log_product = _magnitude(product)
            inputs, log_size = product.scaled(-log_product).mm(inputs), log_product
        kernel = _real(_times(readouts, inputs))
        return self._with_gains(torch.linalg.vector_norm(kernel.flatten(-2), dim=-1), log_size, lag)

    def _with_gains(self, size: Tensor, log_size: Tensor, lag: int) -> tuple[Tensor, Tensor]:
        for gain, part in ((self.log_gain, slice(None, self.length - lag)), (self.log_readout_gain, slice(lag, None))):
            log_size = log_size if gain is None else log_size + gain[:, part]
        return size, log_size


@dataclass(frozen=True, eq=False)
class KernelSystem(LinearSystem):
    """Softmax attention in the dictionary of the keys seen so far, where its infinite state is finite.

    log c_j ← log c_j + log λ_t for j < t, log c_t = −log η_t; the weight of key j at step t is exp(q_t·k_j + log c_j),
    with log λ_t = log η_{t−1} − log η_t and log η_t = log Σ_{j≤t} exp(q_t·k_j). Queries carry the 1/√d_h.
    A gauge g adds g_t − g_{t−1} to log λ_t and g_t to log c_t, and is taken out again at the read-out.
    """

    queries: Tensor  # (B, T, H, e)
    keys: Tensor  # (B, S, H, e), the last T of them are this call's
    values: Tensor  # (B, S, H, d)
    log_normaliser: Tensor  # log η (B, T, H)
    previous_log_normaliser: Tensor | None = None  # log η of the step before (B, H); None: a fresh start
    log_gauge: Tensor | None = None  # (B, T, H)
    key_mask: Tensor | None = None  # (B, S), False at padding
    mask: Tensor | None = None  # (B|1, T); a fresh start leaves out step 1, whose transition does not exist

    @property
    def transition(self) -> ScaledIdentity:
        first = self.previous_log_normaliser
        first = self.log_normaliser[:, 0] if first is None else first
        log_decay = torch.cat((first.unsqueeze(1), self.log_normaliser[:, :-1]), 1) - self.log_normaliser
        if self.log_gauge is not None:
            log_decay = log_decay + self.log_gauge.diff(dim=1, prepend=torch.zeros_like(self.log_gauge[:, :1]))
        return ScaledIdentity(log_decay, size=1)

    @property
    def length(self) -> int:
        return self.queries.shape[1]

    def unroll(self) -> Tensor:
        start = self.keys.shape[1] - self.queries.shape[1]
        gauge = torch.zeros_like(self.log_normaliser) if self.log_gauge is None else self.log_gauge
        log_decays = self.transition.log_factor.unbind(1)
        batch, stop, heads, _ = self.keys.shape
        log_weights = self.queries.new_full((batch, heads, stop), -torch.inf)
        if self.previous_log_normaliser is not None:
            past = torch.arange(stop, device=log_weights.device) < start
            log_weights = torch.where(past, -self.previous_log_normaliser.unsqueeze(-1), log_weights)
        cores = []
        for t, (query, log_eta, g) in enumerate(
            zip(self.queries.unbind(1), self.log_normaliser.unbind(1), gauge.unbind(1), strict=True)
        ):
            now = torch.arange(stop, device=log_weights.device) == start + t
            log_weights = torch.where(now, (g - log_eta).unsqueeze(-1), log_weights + log_decays[t].unsqueeze(-1))
            logits = torch.einsum("bhe,bshe->bhs", query, self.keys) + log_weights - g.unsqueeze(-1)
            cores.append(torch.einsum("bhs,bshd->bhd", self._readable(logits, t).exp(), self.values))
        return torch.stack(cores, 1).flatten(2)

    def respond(self, values: Tensor, initial: Tensor | None = None) -> Tensor:
        if initial is not None:
            raise ValueError("the state of softmax attention is its dictionary: give values for the earlier keys too")
        return replace(self, values=values).unroll()

    def influence(self, lags: Sequence[int]) -> list[Tensor]:
        return [self._influence(lag) for lag in lags]

    def regauged(self, log_gauge: Tensor, before: Tensor | None = None) -> KernelSystem:
        if before is not None:
            raise ValueError("the dictionary of softmax attention starts in its last step's gauge: leave `before` out")
        return replace(self, log_gauge=log_gauge if self.log_gauge is None else self.log_gauge + log_gauge)

    def _readable(self, logits: Tensor, t: int) -> Tensor:
        if self.key_mask is None:
            return logits
        reader = self.key_mask[:, self.keys.shape[1] - self.queries.shape[1] + t]
        return logits.masked_fill(~(self.key_mask & reader.unsqueeze(1)).unsqueeze(1), -torch.inf)

    def _influence(self, lag: int) -> Tensor:
        _check_lag(lag, self.length)
        queries, keys = self.queries[:, lag:], self.keys[:, -self.length :][:, : self.length - lag]
        log_weights: Tensor = torch.linalg.vecdot(queries, keys) - self.log_normaliser[:, lag:]
        return log_weights.masked_fill(~self._countable(lag), -torch.inf).exp()

    def _countable(self, lag: int) -> Tensor:
        length = self.length
        if self.key_mask is None:
            return torch.ones(1, length - lag, 1, dtype=torch.bool, device=self.queries.device)
        mask = self.key_mask[:, -length:]
        return (mask[:, lag:] & mask[:, : length - lag]).unsqueeze(-1)


def _magnitude(operator: StructuredOperator) -> Tensor:
    """The log magnitude to split off, 0 where the operator itself is 0: −inf can be neither taken out nor put back."""
    log_scale = operator.log_scale()
    return torch.where(log_scale == -torch.inf, 0.0, log_scale)


def _times(first: Tensor, second: Tensor) -> Tensor:
    """A product of which one may be real and the other complex."""
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype) @ second.to(dtype)


def _check_lag(lag: int, length: int) -> None:
    if not 0 <= lag < length:
        raise ValueError(f"lag {lag} is outside the sequence: allowed are 0 to {length - 1}")


def _lowest(like: Tensor) -> float:
    """A log scale that `exp` sends to 0 and that can be subtracted from itself, which −inf cannot."""
    return torch.finfo(like.dtype).min / 8


def _raise(tensor: Tensor, log_factor: Tensor) -> Tensor:  # (…, n, d), (…)
    return tensor * log_factor.exp()[..., None, None]


def _real(tensor: Tensor) -> Tensor:
    return tensor.real if tensor.is_complex() else tensor


def _part(tensor: Tensor, part: slice) -> Tensor:
    """A slice along time, or the whole of a tensor that does not vary."""
    return tensor if tensor.shape[1] == 1 else tensor[:, part]


def _optional_steps(tensor: Tensor | None, length: int) -> Sequence[Tensor | None]:
    return [None] * length if tensor is None else _steps(tensor, length)


def _steps(tensor: Tensor, length: int) -> Sequence[Tensor]:
    """One tensor for each step; unbound at once, because indexing x[:, t] has a quadratic backward."""
    return [tensor.squeeze(1)] * length if tensor.shape[1] == 1 else tensor.unbind(1)
