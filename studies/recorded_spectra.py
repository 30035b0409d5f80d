"""What a run directory says of its eigenvalues: before and after training, share per modulus bin, along training.

Read from files alone. A file that is missing or damaged becomes a note, not an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from specreg.invariants import MODULUS_EDGES
from specreg.studies.building import build_target, build_terms
from specreg.studies.configuration import ConfigurationError, Run
from specreg.studies.recording import GAUGE, decode
from specreg.studies.run_directory import RunDirectory

Floats = NDArray[np.float64]

EDGES = MODULUS_EDGES
"""Edges of the modulus bins, half-open [a, b): Rickenbach et al. 2025, arXiv 2510.09379, whose bins are closed."""
BINS = ("< 0.1", "0.1–0.5", "0.5–0.9", "0.9–1", "1–10", "10–100", "≥ 100")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LOG_EDGES = np.log(np.array(EDGES)).astype(np.float32)  # in the precision of the files, so that an edge is an edge
_POINTS = 100_001  # of a law whose extent is looked for


@dataclass(frozen=True, eq=False)
class Values:
    """The eigenvalues of one head at one step, each counted once; conjugates are one value."""

    log_modulus: Floats  # (values,), log |λ|, −inf where λ is 0
    phase: Floats  # (values,), |arg λ| in [0, π]

    @property
    def modulus(self) -> Floats:
        """|λ|; infinite beyond the number range."""
        with np.errstate(over="ignore"):
            return np.exp(self.log_modulus)

    @property
    def real(self) -> bool:
        """Whether every eigenvalue lies on the real axis."""
        return bool(np.all((self.phase < 1e-6) | (self.phase > math.pi - 1e-6)))

    def quantiles(self, *probabilities: float) -> list[float]:
        """Moduli at these probabilities: observed values, no interpolation between them."""
        return [float(value) for value in np.quantile(self.modulus, probabilities, method="inverted_cdf")]

    def time_constant(self) -> float:
        """Median of τ = −1/log|λ| in steps; infinite where the median mode does not decay."""
        middle = float(np.quantile(self.log_modulus, 0.5, method="inverted_cdf"))
        return math.inf if middle >= 0 else -1 / middle

    def median_phase(self) -> float:
        """Median of |arg λ|, radians a step."""
        return float(np.median(self.phase))

    def to_dict(self) -> dict[str, Any]:
        """Statistics, without the values themselves; None for what is not finite."""
        low, middle, high = (value if math.isfinite(value) else None for value in self.quantiles(0.0, 0.5, 1.0))
        tau = self.time_constant()
        return {
            "values": len(self.log_modulus),
            "modulus": {"min": low, "median": middle, "max": high},
            "time_constant": tau if math.isfinite(tau) else None,
            "phase": {"median": self.median_phase(), "max": float(self.phase.max())},
            "share": dict(zip(BINS, shares(self.log_modulus), strict=True)),
        }


@dataclass(frozen=True, eq=False)
class Head:
    """One head or independent block of one layer, at the first and the last recorded step."""

    layer: str
    head: int
    before: Values
    after: Values

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"{self.layer}, head {self.head}"


@dataclass(frozen=True)
class Track:
    """Quantiles of log |λ| of one layer, all heads pooled, at every recorded step."""

    layer: str
    steps: tuple[int, ...]
    quantiles: tuple[tuple[float, ...], ...]  # for each step, at QUANTILES


@dataclass(frozen=True)
class Region:
    """Where a run wants its eigenvalues: an annulus or a sector of one, or single circles."""

    text: str  # the expression
    role: str  # "penalty" or "initialisation"
    low: float  # moduli
    high: float
    max_phase: float | None  # radians; None: the phase is free
    circles: bool  # at low and high alone, nothing between


@dataclass(frozen=True, eq=False)
class RunSpectra:
    """The recorded spectra of one run."""

    run: str  # label
    subject: str  # what was trained on what
    gauge: str
    first_step: int
    last_step: int
    heads: tuple[Head, ...]
    tracks: tuple[Track, ...]
    regions: tuple[Region, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "run": self.run,
            "subject": self.subject,
            "gauge": self.gauge,
            "steps": [self.first_step, self.last_step],
            "bins": list(BINS),
            "heads": [
                {"layer": h.layer, "head": h.head, "before": h.before.to_dict(), "after": h.after.to_dict()}
                for h in self.heads
            ],
            "along_training": [
                {"layer": t.layer, "steps": t.steps, "probabilities": QUANTILES, "log_modulus": t.quantiles}
                for t in self.tracks
            ],
            "targets": [vars(region) for region in self.regions],
        }


def shares(log_modulus: Floats) -> tuple[float, ...]:
    """The share of eigenvalues in each modulus bin [a, b), of log |λ| as recorded in float32; sums to 1."""
    place = np.searchsorted(_LOG_EDGES, log_modulus.astype(np.float32), side="right")
    counts = np.bincount(place, minlength=len(BINS))
    return tuple(float(count) / len(log_modulus) for count in counts)


def read_spectra(files: RunDirectory, label: str, run: Run | None, note: Callable[[str], None]) -> RunSpectra | None:
    """Every recorded spectrum of a run, or None if there is none; what cannot be read is told to `note`."""
    recorded = {}
    for step, path in files.spectra().items():
        layers = read_file(path, note)
        if layers:
            recorded[step] = layers
    if not recorded:
        note(f"{label}: no spectra were recorded")
        return None
    first, last = min(recorded), max(recorded)
    if first != 0:
        note(f"{label}: nothing recorded at step 0; 'before' is step {first}")
    if first == last:
        note(f"{label}: one recorded step only ({first}); before and after are the same")
    return RunSpectra(
        run=label,
        subject="a model" if run is None else f"{run.model['name']} on {run.task['name']}",
        gauge=GAUGE,
        first_step=first,
        last_step=last,
        heads=tuple(heads_of(recorded[first], recorded[last])),
        tracks=tuple(track(name, recorded) for name in recorded[last]),
        regions=() if run is None else tuple(regions(run, note)),
    )


Layers = dict[str, tuple[Floats, Floats]]  # log-modulus and folded phase, (H, values)


def read_file(path: Path, note: Callable[[str], None]) -> Layers | None:
    """One file of spectra, phases folded; None, with a note, where it is damaged or holds a NaN."""
    try:
        layers = {name: folded(*pair) for name, pair in decode(path).items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        note(f"{path.name} cannot be read: {type(error).__name__}")
        return None
    for name, (log_modulus, phase) in layers.items():
        if log_modulus.size == 0 or np.isnan(log_modulus).any() or not np.isfinite(phase).all():
            note(f"{path.name}: {name} holds no usable eigenvalues; the file is left out")
            return None
    return layers


def folded(log_modulus: torch.Tensor, phase: torch.Tensor) -> tuple[Floats, Floats]:
    """log-modulus and |phase| in [0, π], as float64 arrays."""
    angle = np.abs(np.remainder(phase.double().numpy() + math.pi, 2 * math.pi) - math.pi)
    return log_modulus.double().numpy(), angle


def heads_of(before: Layers, after: Layers) -> Iterable[Head]:
    """Each head of each layer that both recordings have."""
    for name, (log_modulus, phase) in after.items():
        if name in before and len(before[name][0]) == len(log_modulus):
            start = before[name]
            for head in range(len(log_modulus)):
                values = Values(log_modulus[head], phase[head])
                yield Head(name, head, Values(start[0][head], start[1][head]), values)


def track(name: str, recorded: dict[int, Layers]) -> Track:
    """A layer's quantiles of log |λ| along training: observed values, and so those of τ."""
    steps = tuple(step for step, layers in recorded.items() if name in layers)
    rows = []
    for step in steps:
        values = np.quantile(recorded[step][name][0], QUANTILES, method="inverted_cdf")
        rows.append(tuple(float(value) for value in values))
    return Track(name, steps, tuple(rows))


def regions(run: Run, note: Callable[[str], None]) -> Iterable[Region]:
    """The supports of a run's targets, from its penalties and its initialisation."""
    try:
        for term in build_terms(run.penalties):
            goal = term.penalty.goal(_POINTS)
            max_phase = float(goal.phase.max())
            yield region(term.name, "penalty", goal.log_modulus.flatten(), max_phase or None)
        if run.init is not None:
            target = build_target(run.init)
            yield region(run.init, "initialisation", target.quantiles(_POINTS)[0], target.max_phase)
    except ConfigurationError as error:
        note(f"no target is drawn: {error}")


def region(text: str, role: str, log_modulus: torch.Tensor, max_phase: float | None) -> Region:
    """The extent of a law, from its quantiles."""
    few = len(torch.unique(log_modulus)) <= 2
    low, high = float(log_modulus.min().exp()), float(log_modulus.max().exp())
    return Region(text, role, low, high, max_phase, circles=few)
