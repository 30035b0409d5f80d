"""Power iteration on a small block: the dominant eigenvalue with the memory of a few vectors."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from specreg.estimators.base import Estimator, as_operator, number_type, own_stream
from specreg.estimators.krylov import extremes, first_vectors, reachable
from specreg.estimators.search import MARGIN, Aim, Found, Ritz, answer
from specreg.estimators.subspace import End, General, combined, orthogonality, random_vector
from specreg.operators import LinearOperator
from specreg.spectrum import Extremes
from specreg.system import LinearSystem


@dataclass(frozen=True)
class PowerIteration(Estimator[Extremes]):
    """The eigenvalue of largest modulus by power iteration on A and on Aᴴ, with Rayleigh–Ritz on a block.

    One vector cannot converge to a complex pair of a real operator; a block of 3 can, and sees a rival. A round takes
    `block` products and gains the factor |λ_{block+1}/λ₁|: `Arnoldi` needs fewer products and sees more of the rest,
    so that power iteration often ends with a value that is right and not certified. It stops at the residual. Gradient,
    warm start, warnings and errors are those of `Arnoldi` (Golub, Van Loan 2013, Matrix Computations, section 8.2.4).
    """

    tolerance: float | None = None  # of the residuals, relative to the modulus; None: √eps of the type
    max_matvecs: int = 2000  # products, of both sides together
    block: int = 3  # vectors

    gives: ClassVar[type] = Extremes

    def __post_init__(self) -> None:
        for name, value, least in (("block", self.block, 2), ("max_matvecs", self.max_matvecs, 2 * self.block)):
            if value < least:
                raise ValueError(f"{name}={value}: allowed are integers from {least} on")

    def __call__(
        self,
        source: LinearSystem | LinearOperator,
        generator: torch.Generator | None = None,
        start: Extremes | None = None,
    ) -> Extremes:
        operator = as_operator(source, "PowerIteration")
        dtype, device = number_type(operator)
        batch, size = operator.shape[:-2], operator.shape[-1]
        tolerance = reachable(self.tolerance, dtype)
        aim = Aim(1, End(), tolerance, min(self.block, size), self.max_matvecs // 2, 1.0, General)
        draw = own_stream(generator)
        sides: list[list[Found]] = []
        with torch.no_grad():
            known = (None, None) if start is None else (start.right, start.left)
            for side, vectors in zip((operator, operator.adjoint()), known, strict=True):
                firsts, _ = first_vectors(batch, size, dtype, device, draw, vectors)
                sides.append(answer(side, [PowerSearch(aim, first, draw) for first in firsts]))
                aim = replace(aim, end=aim.end.mirrored())
        return extremes(operator, sides[0], sides[1], aim, dtype)


@dataclass(frozen=True, eq=False)
class PowerSearch:
    """Block power iteration for one batch element, which asks for products by yielding vectors."""

    aim: Aim
    first: Tensor  # (n,)
    generator: torch.Generator

    def run(self) -> Generator[Tensor, Tensor, Found]:
        """Rounds of products until the first residual is small or no round is left."""
        width = self.aim.capacity
        others = [random_vector(len(self.first), self.first, self.generator) for _ in range(width - 1)]
        rows = _orthonormal(torch.stack([self.first, *others]))
        used = 0
        while True:
            images: list[Tensor] = []
            for row in rows:
                images.append((yield row))
            used += width
            found, taken = self._round(rows, torch.stack(images), used)
            if found is not None:
                return found
            rows = _orthonormal(taken)

    def _round(self, rows: Tensor, images: Tensor, used: int) -> tuple[Found | None, Tensor]:
        """The Ritz pairs if this was the last round, and the images at order 1."""
        largest = float(images.abs().max())
        exponent = math.frexp(largest)[1] if largest > 0 else 0
        half = exponent // 2
        images = images * 2.0**-half * 2.0 ** (half - exponent)
        values, vectors = General.eigen((rows.conj() @ images.mT).cpu().numpy())
        ritz_vectors = combined(rows, vectors)
        errors = combined(images, vectors) - ritz_vectors * torch.from_numpy(values).to(ritz_vectors)
        residuals = torch.linalg.vector_norm(errors, dim=0).double().cpu().numpy()
        ritz = Ritz.ordered(values, vectors, residuals, self.aim, real=not rows.is_complex())
        complete = len(rows) == rows.shape[1]
        small = complete or ritz.residuals[0] <= MARGIN * self.aim.tolerance * ritz.radius
        if not small and used + len(rows) <= self.aim.max_matvecs:
            return None, images
        return self._found(ritz, rows, 2.0**exponent, used, bool(small), complete), images

    def _found(self, ritz: Ritz, rows: Tensor, scale: float, used: int, small: bool, complete: bool) -> Found:
        vectors = combined(rows, ritz.vectors[:, :1])
        return Found(
            values=ritz.values[:1] * scale,
            vectors=vectors / torch.linalg.vector_norm(vectors, dim=0),
            products=None,
            radius=ritz.radius * scale,
            clear=ritz.clear(complete) & small,
            spectrum=ritz.values * scale,
            orthogonality=orthogonality(rows),
            matvecs=used,
            split=ritz.partner is not None,
        )


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the rows' span; Householder's, which completes dependent rows."""
    basis: Tensor = torch.linalg.qr(rows.mT)[0]
    return basis.mT.contiguous()
