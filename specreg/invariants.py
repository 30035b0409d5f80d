"""What a spectrum and its system say in few numbers: shares of moduli, and memory that no change of gauge alters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    reading = _reading(system, lags)
    moment = sum(part * age for part, age in zip(reading.parts, reading.ages, strict=True))
    time = torch.arange(system.length, dtype=reading.total.dtype, device=reading.total.device).view(1, -1, 1)
    return reading.mean(moment / torch.where(reading.counted, reading.total * time, 1.0))


def half_life(system: LinearSystem, lags: Sequence[int] | None = None) -> Tensor:
    """The age in steps by which half of what is read lies, with readers weighed alike: ``(H,)``.

    F(τ) is the mean over readers of the share of Σ_s I(t, s) that is at most τ old; the half-life solves F(τ) = ½,
    linearly between the edges of the lags' cells, −½ to ½ for lag 0. 0 where nothing is read. Lags, readers, gradient
    and errors as for `effective_memory`.
    """
    edges, shares = _age_distribution(system, lags)
    below = (shares.detach() < 0.5).sum(0).clamp(1, len(shares) - 1)  # the edge at which ½ is reached, per head
    low, high = (shares.gather(0, index.unsqueeze(0)).squeeze(0) for index in (below - 1, below))
    reached = high > low
    part = torch.where(reached, (0.5 - low) / torch.where(reached, high - low, 1.0), 0.0)
    start, stop = edges[below - 1], edges[below]
    return torch.where(reached, start + part * (stop - start), 0.0)


def share_older(system: LinearSystem, age: float, lags: Sequence[int] | None = None) -> Tensor:
    """1 − F(age): the share of what is read that is more than `age` steps old, with readers weighed alike: ``(H,)``.

    F as for `half_life`, linear between the edges of the lags' cells. Raises `ValueError` for an age below 0.
    """
    if age < 0:
        raise ValueError(f"an age is 0 or more steps, got {age}")
    edges, shares = _age_distribution(system, lags)
    index = int((edges <= age).sum().clamp(1, len(edges) - 1))
    part = ((age - edges[index - 1]) / (edges[index] - edges[index - 1])).clamp_max(1)
    return shares[-1] - shares[index - 1] - part * (shares[index] - shares[index - 1])


@dataclass(frozen=True, eq=False)
class InfluenceProfile:
    """Mean influence by lag."""

    lags: Tensor  # (k,), increasing
    influence: Tensor  # (k, H), Ī(τ), the mean over the readers that reach back τ steps


def influence_profile(system: LinearSystem, lags: Sequence[int] | None = None) -> InfluenceProfile:
    """Ī(τ) = mean of I(t, t−τ) over the readers t ≥ τ that count, at 24 lags evenly spaced in log, or at those given.

    Differentiable; no gauge changes it. Raises `ValueError` for no lags and for lags that do not increase from 0 on.
    """
    length = system.length
    chosen = log_spaced_lags(length) if lags is None else list(lags)
    if not chosen or chosen[0] < 0 or any(low >= high for low, high in pairwise(chosen)):
        raise ValueError(f"lags increase, from 0 or later, as log_spaced_lags({length}) do, got {chosen}")
    profile = _means(system, chosen, system.influence(chosen))
    return InfluenceProfile(torch.tensor(chosen, device=profile.device), profile)


def relative_influence(system: LinearSystem, lags: Sequence[int]) -> Tensor:
    """Ī(τ) at lags that increase, up to a factor for each head that keeps it in the number range: ``(k, H)``.

    For shares among lags, which no number need hold the influence itself for: a transition of 1e30 has 1e90 after three
    steps. The factor is without gradient.
    """
    parts = system.influence_logs(list(lags))
    most = torch.stack([_log_influence(size, log).amax((0, 1)) for size, log in parts]).amax(0)  # (H,)
    most = torch.where(most == -torch.inf, 0.0, most)
    return _means(system, list(lags), [_shifted(size, log, most) for size, log in parts])


def window_eigenvalues(system: LinearSystem, width: int, stride: int = 1) -> Spectrum:
    """Eigenvalues of the products Λ_{t+width} … Λ_{t+1}, one every `stride` steps, as |λ|^{1/width} and phase/width.

    Per step, so that they compare with pointwise eigenvalues; a bounded gauge changes log|λ|/width by O(1/width). Exact
    for scalar and diagonal decays, one batched eigensolve of the non-trivial part for products of reflections. Phases
    of diagonals are means of the steps' phases, others those of the principal root. A window counts if its steps do.

    Raises `ValueError` for a window that the sequence cannot hold.
    """
    product = system.transition.window(width, stride)
    log_modulus, phase = product.polar()
    mask = system.mask
    if mask is not None:
        if not 1 <= width <= mask.shape[1]:
            raise ValueError(f"a window of {width} steps does not fit the {mask.shape[1]} steps of the system")
        mask = mask.unfold(1, width, stride).all(-1)
    return Spectrum(log_modulus / width, phase / width, product.multiplicity(), mask)


def lag_averaged_memory(system: LinearSystem, lags: Sequence[int] | None = None) -> Tensor:
    """Σ_τ τ Ī(τ) / Σ_τ Ī(τ) in steps, with Ī(τ) the mean influence over the readers that reach back τ steps: ``(H,)``.

    The other reading of effective memory. Few readers have long lags, but their mean counts as much as that of many, so
    that it is longer than the mean over readers of each one's own. Lags and errors as for `effective_memory`.
    """
    length = system.length
    chosen = _checked(lags, length)
    cells = [_cell(chosen, index, length) for index in range(len(chosen))]
    means = relative_influence(system, chosen)
    sizes, ages = (
        torch.tensor(values, dtype=means.dtype, device=means.device).unsqueeze(-1)
        for values in ([high - low for low, high in cells], [(low + high) / 2 for low, high in cells])
    )
    return (sizes * ages * means).sum(0) / (sizes * means).sum(0).clamp_min(torch.finfo(means.dtype).tiny)


@dataclass(frozen=True, eq=False)
class _Reading:
    """What each reader reads from the cell of each lag."""

    edges: list[float]  # of the cells, one more than lags
    parts: list[Tensor]  # (B, T, H) for each lag
    ages: list[Tensor]  # (1, T, 1) for each lag, the mean age in its cell
    total: Tensor  # (B, T, H)
    counted: Tensor  # (B, T, H), readers that count, have a past and read anything

    def mean(self, values: Tensor) -> Tensor:  # (B, T, H)
        """Over the readers that count, ``(H,)``; 0 where there are none."""
        return torch.where(self.counted, values, 0.0).sum((0, 1)) / self.counted.sum((0, 1)).clamp_min(1)


def _reading(system: LinearSystem, lags: Sequence[int] | None) -> _Reading:
    length = system.length
    chosen = _checked(lags, length)
    influences = _up_to_readers(system, chosen)
    time = torch.arange(length, dtype=influences[0].dtype, device=influences[0].device).view(1, -1, 1)
    total, parts, ages = torch.zeros_like(time), [], []
    for index, (lag, influence) in enumerate(zip(chosen, influences, strict=True)):
        low, high = _cell(chosen, index, length)
        following = chosen[index + 1] if index + 1 < len(chosen) else length
        ends = torch.where(time < following, time + 0.5, high)  # a reader's last lag stands for all before it
        parts.append(F.pad((ends[:, lag:] - low) * influence, (0, 0, lag, 0)))
        ages.append((low + ends) / 2)
        total = total + parts[-1]
    counted = (total > 0) & (time > 0) & _readers(system, total)
    edges = [_cell(chosen, index, length)[0] for index in range(len(chosen))] + [length - 0.5]
    return _Reading(edges, parts, ages, total, counted)


def _up_to_readers(system: LinearSystem, lags: Sequence[int]) -> list[Tensor]:
    """The influence at each lag, ``(B, T − lag, H)``, up to a factor for each reader that keeps it in the range."""
    found = []
    for lag, parts in zip(lags, system.influence_logs(lags), strict=True):
        size, log = torch.broadcast_tensors(*parts)
        shape = (size.shape[0], system.length - lag, size.shape[2])
        found.append((size.expand(shape), log.expand(shape)))
    logs = [
        F.pad(_log_influence(*each), (0, 0, lag, 0), value=-torch.inf) for lag, each in zip(lags, found, strict=True)
    ]
    most = torch.stack(torch.broadcast_tensors(*logs)).amax(0)
    most = torch.where(most == -torch.inf, 0.0, most)
    return [_shifted(size, log, most[:, lag:]) for lag, (size, log) in zip(lags, found, strict=True)]


def _log_influence(size: Tensor, log: Tensor) -> Tensor:
    """−inf where there is none; without gradient."""
    return torch.where(size == 0, -torch.inf, size.detach().log() + log.detach())


def _shifted(size: Tensor, log: Tensor, most: Tensor) -> Tensor:
    """size · exp(log − most); nothing stays nothing, though its log may be beyond the range of `exp`."""
    return size * torch.where(size == 0, 0.0, log - most).exp()


def _means(system: LinearSystem, lags: Sequence[int], influences: Sequence[Tensor]) -> Tensor:
    """The mean over the readers t ≥ lag that count, for each lag: ``(k, H)``."""
    means = []
    for lag, influence in zip(lags, influences, strict=True):
        shape = (*influence.shape[:1], system.length - lag, *influence.shape[2:])
        readers = _readers(system, influence)[:, lag:].expand(shape)
        means.append(torch.where(readers, influence, 0.0).sum((0, 1)) / readers.sum((0, 1)).clamp_min(1))
    return torch.stack(means)


def _age_distribution(system: LinearSystem, lags: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Edges of the lags' cells ``(k + 1,)`` and the mean share of what is read that is younger, ``(k + 1, H)``."""
    reading = _reading(system, lags)
    total = torch.where(reading.counted, reading.total, 1.0)
    shares = torch.stack([reading.mean(part / total) for part in reading.parts]).cumsum(0)
    edges = torch.tensor(reading.edges, dtype=shares.dtype, device=shares.device)
    return edges, F.pad(shares, (0, 0, 1, 0))


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
