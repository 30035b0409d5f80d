"""What a spectrum and its system say in few numbers: shares of moduli, and memory that no change of gauge alters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from specreg.spectrum import Spectrum
from specreg.system import LinearSystem

MODULUS_EDGES = (0.1, 0.5, 0.9, 1.0, 10.0, 100.0)
LAG_COUNT = 24


def modulus_shares(spectrum: Spectrum, edges: Sequence[float] = MODULUS_EDGES) -> Tensor:
    """Share of the eigenvalues with |λ| in [0, e_1), [e_1, e_2), …, [e_k, ∞): ``(k + 1,)``.

    Half-open bins, so that each eigenvalue is in exactly one and the shares sum to 1 (to 0 if no step counts); weights
    are `spectrum.weights()`. Compared in logs: |λ| = 0 is in the first bin, and a modulus beyond the number range in
    the last. Bins as in Rickenbach et al. 2025, arXiv 2510.09379. Raises `ValueError` for edges that do not increase.
    """
    if not edges or min(edges) <= 0 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"edges are moduli over 0 that increase, such as {MODULUS_EDGES}, got {tuple(edges)}")
    log_modulus = spectrum.log_modulus.detach()
    # the same rounding as a modulus at an edge has
    log_edges = torch.tensor(edges, dtype=log_modulus.dtype, device=log_modulus.device).log()
    bins = torch.bucketize(log_modulus.contiguous(), log_edges, right=True)
    shares = torch.zeros(len(edges) + 1, dtype=torch.float64, device=bins.device)
    # a float32 sum of many small shares would lose digits
    return shares.index_add(0, bins.flatten(), spectrum.weights().double().flatten()).to(log_modulus.dtype)


def effective_memory(system: LinearSystem, lags: Sequence[int] | None = None) -> Tensor:
    """Mean age of what a reader reads, as a share of its past, averaged over readers: ``(H,)``, in [0, 1].

    For the reader at step t (from 0): m_t = Σ_τ τ I(t, t−τ) / Σ_τ I(t, t−τ) over 0 ≤ τ ≤ t, and m_t / t is its share;
    even reading gives ½. The mean is over the readers that count, have a past and read anything. `lags` defaults to 24,
    evenly spaced in log; each stands for the lags nearer to it than to its neighbours. All lags give the sums exactly.
    Differentiable; no gauge changes it, since none changes the influence. `lag_averaged_memory` is the other reading.

    Raises `ValueError` for lags that do not increase from 0.
    """
    length = system.length
    chosen = _checked(lags, length)
    influences = system.influence(chosen)
    time = torch.arange(length, dtype=influences[0].dtype, device=influences[0].device).view(1, -1, 1)
    total, moment = torch.zeros_like(time), torch.zeros_like(time)
    for index, (lag, influence) in enumerate(zip(chosen, influences, strict=True)):
        readers = time[:, lag:]
        low, high = _cell(chosen, index, length)
        following = chosen[index + 1] if index + 1 < len(chosen) else length
        ends = torch.where(readers < following, readers + 0.5, high)  # a reader's last lag stands for all before it
        reading = (ends - low) * influence
        total = total + F.pad(reading, (0, 0, lag, 0))
        moment = moment + F.pad(reading * (low + ends) / 2, (0, 0, lag, 0))
    counted = (total > 0) & (time > 0) & _readers(system, total)
    share = moment / torch.where(counted, total * time, 1.0)
    return torch.where(counted, share, 0.0).sum((0, 1)) / counted.sum((0, 1)).clamp_min(1)


def lag_averaged_memory(system: LinearSystem, lags: Sequence[int] | None = None) -> Tensor:
    """Σ_τ τ Ī(τ) / Σ_τ Ī(τ) in steps, with Ī(τ) the mean influence over the readers that reach back τ steps: ``(H,)``.

    The other reading of effective memory. Few readers have long lags, but their mean counts as much as that of many, so
    that it is longer than the mean over readers of each one's own. Lags and errors as for `effective_memory`.
    """
    length = system.length
    chosen = _checked(lags, length)
    profile, cells = [], [_cell(chosen, index, length) for index in range(len(chosen))]
    for lag, influence in zip(chosen, system.influence(chosen), strict=True):
        readers = _readers(system, influence)[:, lag:].expand(*influence.shape[:1], length - lag, *influence.shape[2:])
        profile.append(torch.where(readers, influence, 0.0).sum((0, 1)) / readers.sum((0, 1)).clamp_min(1))
    means = torch.stack(profile)  # (lags, H)
    sizes, ages = (
        torch.tensor(values, dtype=means.dtype, device=means.device).unsqueeze(-1)
        for values in ([high - low for low, high in cells], [(low + high) / 2 for low, high in cells])
    )
    return (sizes * ages * means).sum(0) / (sizes * means).sum(0).clamp_min(torch.finfo(means.dtype).tiny)


def log_spaced_lags(length: int, count: int = LAG_COUNT) -> list[int]:
    """At most `count` lags from 0 to length − 1, evenly spaced in log(1 + lag); all of them where there are no more."""
    if length <= count:
        return list(range(length))
    spaced = torch.linspace(0, math.log(length), count, dtype=torch.float64).exp().round().long() - 1
    return sorted(set(spaced.tolist()))


def _checked(lags: Sequence[int] | None, length: int) -> list[int]:
    chosen = log_spaced_lags(length) if lags is None else list(lags)
    if not chosen or chosen[0] != 0 or any(low >= high for low, high in pairwise(chosen)):
        raise ValueError(f"lags increase from 0, as log_spaced_lags({length}) do, got {chosen}")
    return chosen


def _cell(lags: Sequence[int], index: int, length: int) -> tuple[float, float]:
    """The interval of lags for which one of them stands: from half-way to its neighbours, the ends half a lag out."""
    low = (lags[index - 1] + lags[index]) / 2 if index else -0.5
    high = (lags[index] + lags[index + 1]) / 2 if index + 1 < len(lags) else length - 0.5
    return low, high


def _readers(system: LinearSystem, like: Tensor) -> Tensor:
    """Which steps count as readers, ``(B|1, T, 1)``; fresh attention leaves out step 1, which has no past."""
    if system.mask is None:
        return torch.ones(1, system.length, 1, dtype=torch.bool, device=like.device)
    return system.mask.unsqueeze(-1)
