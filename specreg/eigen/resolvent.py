"""Searches in the complex plane for where the smallest singular value of A − zI is small, one matrix at a time."""

from __future__ import annotations

import cmath
import math

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray

Complex = NDArray[np.complex128]
Real = NDArray[np.float64]
Cotangents = list[tuple[int, Complex]]  # of the k-th power

TURNS = 60  # of a criss-cross search, far more than it takes
POLISHING = 4  # Newton or secant steps at its end
NEARLY_REAL = 1e-4  # how far from the axis, or the circle, an eigenvalue is still tried; each is then checked
TRIED = 8  # candidates on a ray
SMALLEST_SLOPE = 1e-8  # of σ_min along a ray: below it the boundary has a corner, and the gradient is cut
POWERS = 256  # of a matrix, whose norms bound its Kreiss constant from above
CELL = 1.002  # ratio of 1 − t across a cell
NEAREST, FARTHEST = 1e-8, 1e8  # |z| − 1 of the points that may attain a Kreiss constant
HOPELESS = 1e100  # a norm of a power above it will not fade
OFF_AXIS = 0.01  # turns starts off the real axis, where a real matrix may have a saddle
PRECISE = {"ftol": 1e-16, "gtol": 1e-10}
STARTS = 3  # points of the grid from which its maximum is sought


def outermost_point(matrix: Complex, epsilon: float) -> tuple[float, Complex]:
    """ρ_ε and its gradient: the largest |z| with σ_min(A − zI) ≤ ε, by criss-cross search (Mengi, Overton 2005)."""
    scale = max(float(np.abs(matrix).max()), epsilon)
    matrix, epsilon = matrix / scale, epsilon / scale
    values = np.linalg.eigvals(matrix)
    angle = float(np.angle(values[np.abs(values).argmax()]))
    radius = _extent(matrix, angle, epsilon, float(np.abs(values).max()))
    for _ in range(TURNS):
        extents = [(_extent(matrix, middle, epsilon, radius), middle) for middle in _arcs(matrix, radius, epsilon)]
        best = max(extents, default=(radius, angle))
        if best[0] <= radius * (1 + 1e-15):
            break
        radius, angle = best
    radius, angle = _polished(matrix, angle, epsilon, radius)
    _, left, right = smallest(matrix - radius * cmath.exp(1j * angle) * np.eye(len(matrix)))
    slope = (cmath.exp(1j * angle) * np.vdot(left, right)).real
    return radius * scale, np.outer(left, right.conj()) / min(slope, -SMALLEST_SLOPE)


def smallest(matrix: Complex) -> tuple[float, Complex, Complex]:
    """σ_min with its left and right vectors: A v = σ u."""
    left, values, right = np.linalg.svd(matrix)
    return float(values[-1]), left[:, -1], right[-1].conj()


def _extent(matrix: Complex, angle: float, epsilon: float, inside: float) -> float:
    """The largest r with σ_min(A − r e^{iθ}I) = ε, or `inside` if rounding hides one beyond it.

    It is the largest real eigenvalue of [[B, −εI], [−εI, Bᴴ]], B = e^{−iθ}A.
    """
    turned, identity = cmath.exp(-1j * angle) * matrix, np.eye(len(matrix))
    values = np.linalg.eigvals(np.block([[turned, -epsilon * identity], [-epsilon * identity, turned.conj().T]]))
    candidates = np.sort(values.real[np.abs(values.imag) <= NEARLY_REAL])[::-1][:TRIED]
    for radius in candidates:
        for _ in range(POLISHING):
            value, left, right = smallest(turned - radius * identity)
            slope = -np.vdot(left, right).real
            if abs(value - epsilon) <= 1e-15 or abs(slope) < SMALLEST_SLOPE:
                break
            step = (value - epsilon) / slope
            radius -= max(-NEARLY_REAL, min(NEARLY_REAL, step))
        if abs(value - epsilon) <= 1e-13 + 1e-9 * epsilon and radius >= inside:
            return float(radius)
    return inside


def _arcs(matrix: Complex, radius: float, epsilon: float) -> list[float]:
    """Middles of the arcs of the circle |z| = r that lie inside the pseudospectrum.

    Their ends are unimodular eigenvalues of the pencil [[A, −εI], [0, rI]] − z [[rI, 0], [−εI, Aᴴ]].
    """
    size = len(matrix)
    identity, zero = np.eye(size), np.zeros((size, size))
    left = np.block([[matrix, -epsilon * identity], [zero, radius * identity]])
    right = np.block([[radius * identity, zero], [-epsilon * identity, matrix.conj().T]])
    above, below = scipy.linalg.eigvals(left, right, homogeneous_eigvals=True)
    size_above, size_below = np.abs(above), np.abs(below)
    close = (np.abs(size_above - size_below) <= NEARLY_REAL * (size_above + size_below)) & (size_above > 0)
    ends = np.sort(np.angle(above[close] / below[close]))
    middles = (ends + np.append(ends[1:], ends[:1] + 2 * math.pi)) / 2
    shifted = matrix - (radius * np.exp(1j * middles))[:, None, None] * identity
    depths = np.linalg.svd(shifted, compute_uv=False)[:, -1] if len(middles) else np.zeros(0)
    return [float(middle) for middle in middles[depths < epsilon * (1 - 1e-12) - 1e-16]]


def _polished(matrix: Complex, angle: float, epsilon: float, radius: float) -> tuple[float, float]:
    """A few secant steps on r′(θ) = r Im w/Re w, w = e^{iθ}uᴴv, 0 at the maximum; never to a smaller radius."""

    def at(theta: float) -> tuple[float, float]:
        extent = _extent(matrix, theta, epsilon, 0.0)
        _, left, right = smallest(matrix - extent * cmath.exp(1j * theta) * np.eye(len(matrix)))
        along = cmath.exp(1j * theta) * np.vdot(left, right)
        return extent, float(along.imag) / min(float(along.real), -SMALLEST_SLOPE)

    before, slope_before = angle, at(angle)[1]
    now = angle + 1e-5 * (1 if slope_before > 0 else -1)
    for _ in range(POLISHING):
        extent, slope = at(now)
        if extent >= radius * (1 - 1e-15):
            radius, angle = max(radius, extent), now
        if slope == slope_before or abs(slope) < 1e-15:
            break
        step = slope * (now - before) / (slope - slope_before)
        before, slope_before, now = now, slope, now - max(-1e-3, min(1e-3, step))
    return radius, angle


def kreiss_below(matrix: Complex, rounding: float) -> tuple[float, Complex]:
    """The largest (|z| − 1)/σ_min(zI − A) that was found, at least 1, its value at infinity; and its gradient.

    A radius or norm above 1 by no more than `rounding` counts as 1.
    """
    values, size = np.linalg.eigvals(matrix), len(matrix)
    if np.abs(values).max() > 1 + rounding:
        return math.inf, np.zeros_like(matrix)
    identity = np.eye(size)

    def descent(position: Real) -> tuple[float, Real]:  # log(|z| − 1), arg z
        distance, turn = math.exp(position[0]), cmath.exp(1j * position[1])
        point = (1 + distance) * turn
        value, left, right = smallest(point * identity - matrix)
        inner = np.vdot(left, right)
        value = max(value, 1e-300)
        slopes = [distance * (turn * inner).real / value - 1, (1j * point * inner).real / value]
        return math.log(value) - position[0], np.array(slopes)

    farthest = math.log(FARTHEST * (1 + float(np.abs(matrix).max()) * size))
    distances = np.linspace(
        math.log(max(1e-4, 100 * rounding)), math.log(10 + 10 * float(np.abs(matrix).max()) * size), 20
    )
    order = np.argsort(-np.abs(values))[:TRIED]
    angles = np.concatenate((np.angle(values[order]), np.linspace(-math.pi, math.pi, 24, endpoint=False)))
    angles += OFF_AXIS
    grid = np.stack(np.meshgrid(distances, angles, indexing="ij"), -1).reshape(-1, 2)
    points = (1 + np.exp(grid[:, 0])) * np.exp(1j * grid[:, 1])
    depths = np.linalg.svd(points[:, None, None] * identity - matrix, compute_uv=False)[:, -1]
    heights = grid[:, 0] - np.log(np.maximum(depths, 1e-300))
    starts = _apart(grid, np.argsort(-heights), distances[1] - distances[0])
    bounds = [(math.log(max(NEAREST, 100 * rounding)), farthest), (None, None)]
    found = [
        scipy.optimize.minimize(descent, start, jac=True, method="L-BFGS-B", bounds=bounds, options=PRECISE)
        for start in starts
    ]
    best = min(found, key=lambda result: float(result.fun)).x
    point = (1 + math.exp(best[0])) * cmath.exp(1j * best[1])
    value, left, right = smallest(point * identity - matrix)
    height = math.exp(best[0]) / max(value, 1e-300)
    if height <= 1 + 1e-12:
        return 1.0, np.zeros_like(matrix)
    return height, np.outer(left, right.conj()) * (height / value)


def _apart(grid: Real, order: NDArray[np.int64], spacing: float) -> list[Real]:
    """The best points of a grid, in order, that are not neighbours of better ones."""
    chosen: list[Real] = []
    for index in order:
        away = [grid[index] - other for other in chosen]
        if all(max(abs(d), 2 * abs(math.sin(turn / 2))) > 2 * spacing for d, turn in away):
            chosen.append(grid[index])
        if len(chosen) == STARTS:
            break
    return chosen


def kreiss_above(matrix: Complex, rounding: float) -> tuple[float, Complex]:
    """max over t of (1 − t) Σ_{k<m} ‖A^k‖ t^k + τ t^m, where τ ≥ ‖A^k‖ for all k ≥ m; and its gradient.

    The weights sum to 1, so that the largest of the ‖A^k‖ and τ is a bound too. A norm above 1 by no more than
    `rounding` counts as 1.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        powers, triples = _powers(matrix, 1 + rounding)
    norms = np.array([1.0] + [norm for norm, _, _ in triples])
    last = len(norms) - 1
    of_norms: Cotangents = [(k, np.outer(left, right.conj())) for k, (_, left, right) in enumerate(triples, 1)]
    tail, of_tail, of_matrix = _tail(matrix, powers, norms, of_norms, 1 + rounding)
    if not math.isfinite(tail):
        return math.inf, np.zeros_like(matrix)
    rest = np.append(CELL ** -np.arange(math.log(1e9) / math.log(CELL)), 0.0)  # 1 − t, from 1 to 0
    ahead = 1 - rest[1:, None]
    bounds = rest[:-1] * (ahead ** np.arange(last) @ norms[:-1]) + tail * ahead[:, 0] ** last
    cell, top = int(bounds.argmax()), int(norms[:-1].argmax())
    point, value = float(ahead[cell, 0]), float(bounds[cell])
    used, share = [(k, rest[cell] * point**k * cotangent) for k, cotangent in of_norms[:-1]], point**last
    if max(float(norms[top]), tail) <= value:
        value, used, share = max(float(norms[top]), tail), [], 1.0
        if norms[top] >= tail:
            used, share = of_norms[top - 1 : top] if top else [], 0.0
    gradient = _through_powers(matrix, powers, used + [(k, share * cotangent) for k, cotangent in of_tail])
    rounded = 1 + 8 * len(matrix) * len(norms) * float(np.finfo(np.float64).eps)
    return value * rounded, gradient + share * of_matrix


def _tail(
    matrix: Complex, powers: list[Complex], norms: Real, of_norms: Cotangents, bounded: float
) -> tuple[float, Cotangents, Complex]:
    """τ ≥ ‖A^k‖ for all k from the last power on, its gradient in the powers, and that in A beside them."""
    last, none = len(norms) - 1, np.zeros_like(matrix)
    if not math.isfinite(norms[-1]):
        return math.inf, [], none
    if norms[-1] > bounded:
        tail, of_matrix, of_last = _lasting(matrix, powers[-1])
        return tail, [(last, of_last)], of_matrix
    top = int(norms[:-1].argmax())  # ‖A^(qm + s)‖ ≤ ‖A^m‖^q ‖A^s‖
    products = [(last, norms[top] * of_norms[-1][1])]
    return float(norms[-1] * norms[top]), products + [(k, norms[-1] * c) for k, c in of_norms[:-1] if k == top], none


def _powers(matrix: Complex, bounded: float) -> tuple[list[Complex], list[tuple[float, Complex, Complex]]]:
    """I, A, A², … and norms with vectors of all but the first, up to the first `bounded` one or `POWERS`."""
    powers, triples = [np.eye(len(matrix), dtype=np.complex128)], []
    for _ in range(POWERS):
        powers.append(matrix @ powers[-1])
        if not np.isfinite(powers[-1]).all():
            triples.append((math.inf, matrix[0], matrix[0]))
            break
        left, values, right = np.linalg.svd(powers[-1])
        triples.append((float(values[0]), left[:, 0], right[0].conj()))
        if values[0] <= bounded:
            break
    return powers, triples


def _lasting(matrix: Complex, power: Complex) -> tuple[float, Complex, Complex]:
    """τ = ‖Σ_{k≥m} (A^k)ᴴA^k‖^½ ≥ ‖A^k‖ for k ≥ m, its gradient through A, and through A^m; ∞ if the sum diverges."""
    total = _stein(matrix, np.eye(len(matrix), dtype=np.complex128))
    if total is None:
        return math.inf, matrix, matrix
    values, vectors = np.linalg.eigh(power.conj().T @ total @ power)
    vector = vectors[:, -1]
    image = power @ vector
    tail = math.sqrt(max(float(values[-1]), 0.0))
    spread = _stein(matrix.conj().T, np.outer(image, image.conj()))
    if spread is None or tail == 0:
        return math.inf, matrix, matrix
    of_last = np.asarray(np.outer(total @ image, vector.conj()) / tail, np.complex128)
    return tail, total @ matrix @ spread / tail, of_last


def _stein(matrix: Complex, start: Complex) -> Complex | None:
    """Σ_k (A^k)ᴴ S A^k by doubling (Smith 1968), or None if it diverges."""
    total, power = start, matrix
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(64):
            total = total + power.conj().T @ total @ power
            size = float(np.linalg.norm(power))
            if size <= 1e-8:
                return total
            if not size < HOPELESS:
                return None
            power = power @ power
    return None


def _through_powers(matrix: Complex, powers: list[Complex], cotangents: Cotangents) -> Complex:
    """The gradient in A of a function of its powers, from those in A^k."""
    total, carried = np.zeros_like(matrix), np.zeros_like(matrix)
    of_powers = [np.zeros_like(matrix) for _ in powers]
    for k, cotangent in cotangents:
        of_powers[k] = of_powers[k] + cotangent
    for k in range(len(powers) - 1, 0, -1):
        carried = carried + of_powers[k]
        total = total + carried @ powers[k - 1].conj().T
        carried = matrix.conj().T @ carried
    return total
