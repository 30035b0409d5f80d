"""The restarted Krylov search that Arnoldi and Lanczos share, and what tells it that it has found everything."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from specreg.estimators.subspace import (
    Array,
    Basis,
    End,
    Projection,
    combined,
    log_missed,
    orthogonalised,
    orthogonality,
    random_direction,
)
from specreg.operators import LinearOperator

MARGIN = 0.95  # the estimate of a residual stops this far below the tolerance, since the recomputed one has rounding
TWIN = 1000.0  # tolerances between two eigenvalues from which on both are seen, up to the allowed risk
PATIENCE = 32  # products before the rate of convergence is judged
WARM_RISK = 0.1  # of not having seen a newcomer, on each of the two sides, which draw independently


@dataclass(frozen=True)
class Aim:
    """What a search is after and what it may spend."""

    count: int
    end: End
    tolerance: float
    capacity: int
    max_matvecs: int
    risk: float  # allowed probability that a copy of a multiple eigenvalue was missed
    projection: type[Projection]
    keep_products: bool = False
    dense_matvecs: float = math.inf  # what a dense solve costs, in products; beyond it a search is given up


@dataclass(frozen=True)
class Found:
    """The most extreme Ritz pairs of one batch element."""

    values: Array  # (k,)
    vectors: Tensor  # (n, k), unit, complex
    products: Tensor | None  # (n, k), A times the vectors, from the products that built the basis
    radius: float  # the largest modulus of a Ritz value: what residuals are relative to
    clear: Array  # (k,), bool: nothing else can be as extreme, as far as this side knows
    spectrum: Array  # (m,), every Ritz value
    orthogonality: float
    matvecs: int
    split: bool  # the last value's conjugate is left out
    slow: bool = False  # given up in favour of a dense solve
    sample: tuple[Tensor, Tensor] | None = None  # a vector (n,) and its product


@dataclass(frozen=True)
class Ritz:
    """All Ritz values of a basis, the most extreme first."""

    values: Array  # (m,)
    vectors: Array  # (m, m)
    residuals: Array  # (m,)
    scores: Array  # (m,)
    count: int
    partner: int | None  # index of the last wanted value's conjugate, where that is as extreme and not wanted itself

    @classmethod
    def ordered(cls, values: Array, vectors: Array, residuals: Array, aim: Aim, real: bool) -> Ritz:
        """Ritz values in any order, brought into that of the aim."""
        order, count = aim.end.order(values), aim.count
        values = values[order]
        scores, last = aim.end.score(values), values[count - 1]
        conjugates = np.flatnonzero(values == last.conjugate())
        torn = real and last.imag != 0 and conjugates[0] >= count and scores[conjugates[0]] >= scores[count - 1]
        partner = int(conjugates[0]) if torn else None
        return cls(values, vectors[:, order], residuals[order], scores, count, partner)

    @property
    def radius(self) -> float:
        return float(np.abs(self.values).max())

    @property
    def level(self) -> float:
        """The score that no other value may reach."""
        return float(self.scores[self.count - 1])

    def inner(self, error: float) -> float:
        """The least score of the wanted values beyond the last one: a copy of any of them would push that out.

        ∞ if there is none; values that differ by no more than twice the `error` count as one.
        """
        wanted = self.scores[: self.count]
        return float(wanted[wanted > self.level + 2 * error].min(initial=math.inf))

    def rivals(self) -> Array:
        """Which others may be as extreme as the last wanted one: |θ| + r ≥ |λ_k|, as indices."""
        reach = self.scores + self.residuals >= self.level
        reach[: self.count] = False
        if self.partner is not None:
            reach[self.partner] = False
        return np.flatnonzero(reach)

    def clear(self, complete: bool) -> Array:
        """Which of the wanted (k,) no rival may be as extreme as; all of them if nothing else is in the space."""
        reach = (self.scores + self.residuals)[self.rivals()].max(initial=-math.inf)
        return np.asarray(self.scores[: self.count] > (-math.inf if complete else reach))


@dataclass(eq=False)
class Search:
    """A restarted Krylov iteration for one batch element, which asks for products by yielding vectors."""

    aim: Aim
    first: Tensor  # (n,)
    share: float  # of the first vector that is random; under 1 for a warm start
    generator: torch.Generator
    basis: Basis = field(init=False)
    used: int = 0
    log_norm: float = 0.0  # of the residual polynomial applied to the first vector since the last injection
    discarded: list[complex] = field(default_factory=list)  # roots of that polynomial that restarts took away
    history: list[tuple[int, float]] = field(default_factory=list)  # products used, the worst residual
    explored: float = math.inf  # no value above this score is in the complement of what a second random vector has seen

    def __post_init__(self) -> None:
        self.basis = Basis.of(self.first, min(self.aim.capacity, len(self.first)), self.aim.keep_products)

    def run(self) -> Generator[Tensor, Tensor, Found]:
        """Products until the wanted pairs are certain, or `max_matvecs` are used, or a dense solve is cheaper."""
        check = self.aim.count
        while True:
            broken = self._take((yield self.basis.next))
            full = self.basis.size == self.basis.capacity
            if broken or full or self.used >= min(check, self.aim.max_matvecs):
                ritz = self._ritz()
                if ritz is not None and self._finished(ritz) and (yield from self._copies_excluded(ritz)):
                    return self._found(ritz, finished=True)
                ritz = self._ritz()
                if ritz is not None and (self.used >= self.aim.max_matvecs or self._is_slow()):
                    return self._found(ritz, slow=self.used < self.aim.max_matvecs)
                check = self.used + self._wait()
                if self.basis.size == self.basis.capacity:
                    self._restart()

    def _take(self, product: Tensor) -> bool:
        """Extend the basis; True if it became invariant and goes on with a random vector."""
        self.used += 1
        norm = self.basis.extend(self.basis.scaled(product))
        if norm > 0:
            self.log_norm += math.log(norm)
            return False
        lock = self.basis.locked
        if lock:
            active = self.aim.projection.eigen(self.basis.projected[lock:, lock:])[0]
            self.explored = float(self.aim.end.score(active).max())
        self._inject()
        return True

    def _inject(self) -> None:
        self.basis.inject(self.generator)
        self.log_norm, self.discarded, self.share = 0.0, [], 1.0

    def _ritz(self) -> Ritz | None:
        """The Ritz values, or None while there are fewer than wanted."""
        if self.basis.size < self.aim.count:
            return None
        rounding = torch.finfo(self.first.dtype).eps ** 0.5
        self.aim.projection.check(self.basis.projected, max(rounding, 10 * self.aim.tolerance))
        values, vectors = self.aim.projection.eigen(self.basis.projected)
        residuals = np.zeros(len(values)) if self.basis.complete else np.abs(self.basis.coupling @ vectors)
        return Ritz.ordered(values, vectors, residuals, self.aim, real=not self.basis.vectors.is_complex())

    def _finished(self, ritz: Ritz) -> bool:
        """Whether further products could not change which values are wanted, copies apart."""
        rivals = ritz.residuals[ritz.rivals()]
        worst = max(ritz.residuals[: ritz.count].max(), rivals.max(initial=0.0))
        self.history.append((self.used, float(worst / ritz.radius) if worst else 0.0))
        if self.basis.complete:
            return True
        if worst > self._goal(ritz) * ritz.radius:
            return False
        return self.share == 1 or self._log_newcomer(ritz) <= math.log(WARM_RISK)

    def _goal(self, ritz: Ritz) -> float:
        """The residual, relative to the radius, at which the wanted pairs are found.

        Near two simple eigenvalues λ, μ that are close a Ritz vector mixes x and y as the first vector v did, with a
        residual of |λ − μ| |yᴴv/xᴴv|: at a residual r there is a chance of (2/π) r/|λ − μ| that μ goes unseen.
        Where nothing else would show it, that is to be the allowed one from a distance of `TWIN` tolerances on.
        """
        goal = MARGIN * self.aim.tolerance
        if self.aim.projection.searches > 1 or ritz.inner(self.aim.tolerance * ritz.radius) < math.inf:
            return goal
        tight = math.pi / 2 * self.aim.risk * TWIN * self.aim.tolerance
        return min(goal, max(tight, 10 * torch.finfo(self.first.dtype).eps))

    def _log_newcomer(self, ritz: Ritz) -> float:
        """log of the probability that a warm start did not see an eigenvalue that now is as extreme as the wanted."""
        roots = np.concatenate([ritz.values[ritz.count :], self.discarded])
        roots = roots[self.aim.end.score(roots) < ritz.level]
        known = self.basis.size + len(self.discarded) - len(roots)
        # a newcomer at a tenth of the radius from each known one at least; nearer ones are a matter of the residual
        log_norm = self.log_norm - known * math.log(0.1 * ritz.radius)
        boundary = self.aim.projection.boundary(self.aim.end, ritz.level, ritz.radius)
        return log_missed(log_norm, roots, boundary, len(self.first), self.share)

    def _copies_excluded(self, ritz: Ritz) -> Generator[Tensor, Tensor, bool]:
        """Look for what one Krylov space cannot show: further copies of the wanted values.

        A space grown from one vector holds one eigenvector of each eigenvalue. A second random vector, in the
        complement of all that is there, would show another one. If that cannot be excluded soon the wanted pairs are
        locked and the search goes on from a random vector.
        """
        error = self.aim.tolerance * ritz.radius
        level = ritz.inner(error)
        if self.basis.complete or level == math.inf or self.aim.risk >= 1:
            return True
        if self.aim.projection.searches == 1:  # it may as well have missed a simple one beside the last
            level = ritz.level + (ritz.count + 3) * error
        if not self.basis.locked:
            if (yield from self._probe(ritz, level)):
                return True
            self._lock_wanted()
            return False
        level -= ritz.count * error  # as far as the residuals of what is locked take a copy down
        if self.explored < level:
            return True
        active = self.aim.projection.eigen(self.basis.projected[self.basis.locked :, self.basis.locked :])[0]
        if len(active) and self.aim.end.score(active).max() >= level:
            self._lock_wanted()
            return False
        roots = np.concatenate([active, self.discarded])
        return len(active) > 0 and self._log_copy(self.log_norm, roots, level, ritz.radius) <= math.log(self.aim.risk)

    def _log_copy(self, log_norm: float, roots: Array, level: float, radius: float) -> float:
        boundary = self.aim.projection.boundary(self.aim.end, level, radius)
        return log_missed(log_norm, roots, boundary, len(self.first))

    def _probe(self, ritz: Ritz, level: float) -> Generator[Tensor, Tensor, bool]:
        """A short iteration in the complement: True if no eigenvalue of this score is in it, up to the allowed risk."""
        error = self.aim.tolerance * ritz.radius
        count, level = self.aim.projection.hidden(self.aim.end, ritz.values, ritz.residuals, ritz.count, level, error)
        known = self.aim.projection.leading(self.basis.projected, self.aim.end, count)
        rows = torch.from_numpy(known.T.copy()).to(self.basis.vectors) @ self.basis.vectors[: self.basis.size]
        most = ritz.level + error  # above it is another one, whatever the residuals
        room = min(self.basis.capacity, len(self.first) - len(rows))
        if room < 1:
            return True
        basis, log_norm = Basis.of(random_direction(rows, self.generator), room, keep_products=False), 0.0
        while basis.size < room and self.used < self.aim.max_matvecs:
            product = self.basis.scaled((yield basis.next))
            self.used += 1
            norm = basis.extend(orthogonalised(product, rows)[1])
            log_norm += math.log(norm) if norm > 0 else -math.inf
            roots = self.aim.projection.eigen(basis.projected)[0]
            top = float(self.aim.end.score(roots).max())
            if top > most:
                return False
            if top < level and self._log_copy(log_norm, roots, level, ritz.radius) <= math.log(self.aim.risk):
                return True
        return False

    def _lock_wanted(self) -> None:
        """Keep the wanted pairs alone, as an invariant subspace, and go on with a random vector."""
        self.basis.locked = 0
        self.basis.compress(self.aim.projection.leading(self.basis.projected, self.aim.end, self.aim.count))
        self._inject()

    def _restart(self) -> None:
        """Keep the better half of what is not locked; lock the wanted ones alone if that leaves no room."""
        active = self.basis.size - self.basis.locked
        if 2 * active < self.basis.capacity:
            self._lock_wanted()
            return
        matrix = self.basis.projected[self.basis.locked :, self.basis.locked :]
        kept = self.aim.projection.leading(matrix, self.aim.end, min(self.aim.count + active // 2, active - 2))
        if kept.shape[1] == active:  # equal scores throughout: any part of them is as good
            kept = kept[:, : active // 2]
        values = self.aim.projection.eigen(matrix)[0]
        remaining = self.aim.projection.eigen(kept.conj().T @ matrix @ kept)[0]
        stay = linear_sum_assignment(np.abs(remaining[:, None] - values[None, :]))[1]
        self.discarded += [complex(value) for value in np.delete(values, stay)]
        self.basis.compress(kept)

    def _wait(self) -> int:
        """How many products to the next look: rather one look too many than a product."""
        goal = MARGIN * self.aim.tolerance
        if len(self.history) < 2 or not self.history[-1][1] > goal:
            return 1
        (then, before), (now, worst) = self.history[-2:]
        rate = math.log(before / worst) / max(now - then, 1) if before > 0 else 0.0
        return min(8, max(1, int(0.7 * math.log(worst / goal) / rate))) if rate > 0 else 8

    def _is_slow(self) -> bool:
        """Whether a dense solve is cheaper than what remains at the present rate, on two sides."""
        used, worst = self.history[-1] if self.history else (0, 0.0)
        if used < PATIENCE or self.aim.dense_matvecs == math.inf or worst == 0:
            return False
        then, before = next(
            entry for entry in reversed(self.history) if 2 * entry[0] <= used or entry == self.history[0]
        )
        rate = math.log(before / worst) / max(used - then, 1) if before > worst else 0.0
        remaining = math.log(max(worst / self.aim.tolerance, 2.0)) / rate if rate > 0 else math.inf
        return 2 * (used + remaining) > self.aim.dense_matvecs

    def _found(self, ritz: Ritz, finished: bool = False, slow: bool = False) -> Found:
        wanted = ritz.vectors[:, : ritz.count]
        rows = self.basis.vectors[: self.basis.size]
        vectors = combined(rows, wanted)
        norms = torch.linalg.vector_norm(vectors, dim=0)
        products = self.basis.products
        images = None if products is None else combined(products[: self.basis.size], wanted) / norms
        scale = 2.0**self.basis.exponent
        return Found(
            values=ritz.values[: ritz.count] * scale,
            vectors=vectors / norms,
            products=None if images is None else images * scale,
            radius=ritz.radius * scale,
            clear=ritz.clear(self.basis.complete) & finished,
            spectrum=ritz.values * scale,
            orthogonality=orthogonality(rows),
            matvecs=self.used,
            split=ritz.partner is not None,
            slow=slow,
        )


class Searcher(Protocol):
    """What asks for products: `run` yields vectors, is sent the products, and returns what it found."""

    @property
    def first(self) -> Tensor: ...

    def run(self) -> Generator[Tensor, Tensor, Found]: ...


def check_finite(tensor: Tensor, index: int, batch: torch.Size) -> None:
    """Raise `ValueError` with the index of the batch element that a tensor with a NaN or an infinity belongs to."""
    if not bool(torch.isfinite(tensor).all()):
        where = f"batch element {tuple(map(int, np.unravel_index(index, batch)))}" if batch else "the operator"
        raise ValueError(f"eigenvalues need finite entries: {where} holds a NaN or an infinity")


def answer(operator: LinearOperator, searches: Sequence[Searcher]) -> list[Found]:
    """Run one search for each batch element in step, so that one product serves them all.

    Raises `ValueError` with the index of a batch element whose product is not finite.
    """
    batch, size = operator.shape[:-2], operator.shape[-1]
    runs = [search.run() for search in searches]
    asked: list[Tensor | None] = [next(run) for run in runs]
    found: list[Found | None] = [None] * len(runs)
    idle = torch.zeros_like(searches[0].first)
    samples: list[tuple[Tensor, Tensor]] = []
    while any(vector is not None for vector in asked):
        vectors = [idle if vector is None else vector for vector in asked]
        joined = vectors[0] if len(vectors) == 1 else torch.stack(vectors)
        products = operator.mv(joined.view(*batch, size)).detach().reshape(len(runs), size)
        if not samples:
            samples = [
                (vector.clone(), product) for vector, product in zip(asked, products, strict=True) if vector is not None
            ]
        for index, run in enumerate(runs):
            if asked[index] is None:
                continue
            check_finite(products[index], index, batch)
            try:
                asked[index] = run.send(products[index])
            except StopIteration as stop:
                asked[index], found[index] = None, stop.value
    pairs = zip(found, samples, strict=True)
    return [replace(result, sample=sample) for result, sample in pairs if result is not None]
