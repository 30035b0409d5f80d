"""What a run directory says of its eigenvalues and of what is read: before and after training, and along it.

Read from files alone. A file that is missing or damaged becomes a note, not an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from specreg.invariants import MODULUS_EDGES
from specreg.spectrum import from_polar
from specreg.studies.building import build_target, build_terms
from specreg.studies.configuration import ConfigurationError, Run
from specreg.studies.recording import GAUGE, Layer, Memory, decode
from specreg.studies.run_directory import RunDirectory
from specreg.targets import Outline

Floats = NDArray[np.float64]
Complex = NDArray[np.complex128]

EDGES = MODULUS_EDGES
"""Edges of the modulus bins, half-open [a, b): Rickenbach et al. 2025, arXiv 2510.09379, whose bins are closed."""
BINS = ("< 0.1", "0.1–0.5", "0.5–0.9", "0.9–1", "1–10", "10–100", "≥ 100")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LOG_EDGES = np.log(np.array(EDGES)).astype(np.float32)  # in the precision of the files, so that an edge is an edge


@dataclass(frozen=True, eq=False)
class Influence:
    """What one head at one step reads of its past, by age; no change of gauge alters it."""

    lags: Floats  # (k,), steps, increasing
    mean: Floats  # (k,), Ī(τ)
    half_life: float  # steps
    effective_memory: float  # share of the past

    @property
    def usable(self) -> bool:
        """Whether there is a mean for each lag and every figure is a number."""
        figures = [*self.lags, *self.mean, self.half_life, self.effective_memory]
        return self.lags.shape == self.mean.shape and bool(np.isfinite(figures).all())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, to the digits of float32."""
        return {
            "lags": [int(lag) for lag in self.lags],
            "mean": [float(f"{value:.7g}") for value in self.mean],
            "half_life": self.half_life,
            "effective_memory": self.effective_memory,
        }


@dataclass(frozen=True, eq=False)
class Values:
    """One head at one step: its eigenvalues, each counted once (conjugates are one value), and what it reads."""

    log_modulus: Floats  # (values,), log |λ|, −inf where λ is 0
    phase: Floats  # (values,), |arg λ| in [0, π]
    condition: Floats | None = None  # (values,), κ; None, as what follows: recorded by an earlier version
    certificate: str | None = None
    influence: Influence | None = None

    @property
    def usable(self) -> bool:
        """Whether there are eigenvalues, whole and none of them undefined."""
        known = [self.log_modulus, self.phase, *([] if self.condition is None else [self.condition])]
        whole = all(field.shape == self.log_modulus.shape and not np.isnan(field).any() for field in known)
        return whole and self.log_modulus.size > 0 and bool(np.isfinite(self.phase).all())

    @property
    def worst_condition(self) -> float | None:
        """The largest κ, of the eigenvalue that a change of the transition moves most."""
        return None if self.condition is None else float(self.condition.max())

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
        tau, worst = self.time_constant(), self.worst_condition
        return {
            "values": len(self.log_modulus),
            "modulus": {"min": low, "median": middle, "max": high},
            "time_constant": tau if math.isfinite(tau) else None,
            "phase": {"median": self.median_phase(), "max": float(self.phase.max())},
            "share": dict(zip(BINS, shares(self.log_modulus), strict=True)),
            "condition": {"max": worst if worst is not None and math.isfinite(worst) else None},
            "certificate": self.certificate,
            "influence": None if self.influence is None else self.influence.to_dict(),
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


@dataclass(frozen=True, eq=False)
class Region:
    """Where a run wants its eigenvalues: areas, curves and points of the plane, and their extent in moduli."""

    text: str  # the expression
    role: str  # "penalty" or "initialisation"
    low: float  # moduli
    high: float
    areas: tuple[Complex, ...] = ()  # closed boundaries
    curves: tuple[Complex, ...] = ()
    points: tuple[Complex, ...] = ()

    @property
    def shaded(self) -> bool:
        """Whether it is drawn as an area: a penalty's that has one."""
        return self.role == "penalty" and bool(self.areas)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"text": self.text, "role": self.role, "low": self.low, "high": self.high}


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
            "targets": [region.to_dict() for region in self.regions],
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


Layers = dict[str, tuple[Values, ...]]  # the heads of each layer


def read_file(path: Path, note: Callable[[str], None]) -> Layers | None:
    """One file of spectra, phases folded; None, with a note, where it is damaged or holds a NaN."""
    try:
        layers = {name: tuple(heads_in(layer)) for name, layer in decode(path).items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        note(f"{path.name} cannot be read: {type(error).__name__}")
        return None
    for name, heads in layers.items():
        if not heads or not all(values.usable for values in heads):
            note(f"{path.name}: {name} holds no usable eigenvalues; the file is left out")
            return None
        if any(values.influence is not None and not values.influence.usable for values in heads):
            note(f"{path.name}: the influence of {name} is not finite and is left out")
            layers[name] = tuple(replace(values, influence=None) for values in heads)
    return layers


def heads_in(layer: Layer) -> Iterable[Values]:
    """Each head of a recorded layer."""
    angle = folded(layer.phase)
    for head, log_modulus in enumerate(layer.log_modulus.double().numpy()):
        condition = None if layer.condition is None else layer.condition[head].double().numpy()
        influence = None if layer.memory is None else influence_of(layer.memory, head)
        yield Values(log_modulus, angle[head], condition, layer.certificate, influence)


def influence_of(memory: Memory, head: int) -> Influence:
    """One head's part of what a layer reads."""
    return Influence(
        lags=memory.lags.double().numpy(),
        mean=memory.influence[:, head].double().numpy(),
        half_life=float(memory.half_life[head]),
        effective_memory=float(memory.effective_memory[head]),
    )


def folded(phase: torch.Tensor) -> Floats:
    """|phase| in [0, π]."""
    angle: Floats = np.abs(np.remainder(phase.double().numpy() + math.pi, 2 * math.pi) - math.pi)
    return angle


def heads_of(before: Layers, after: Layers) -> Iterable[Head]:
    """Each head of each layer that both recordings have."""
    for name, ends in after.items():
        starts = before.get(name, ())
        if len(starts) == len(ends):
            for head, (start, end) in enumerate(zip(starts, ends, strict=True)):
                yield Head(name, head, start, end)


def track(name: str, recorded: dict[int, Layers]) -> Track:
    """A layer's quantiles of log |λ| along training: observed values, and so those of τ."""
    steps = tuple(step for step, layers in recorded.items() if name in layers)
    rows = []
    for step in steps:
        pooled = np.concatenate([values.log_modulus for values in recorded[step][name]])
        quantiles = np.quantile(pooled, QUANTILES, method="inverted_cdf")
        rows.append(tuple(float(value) for value in quantiles))
    return Track(name, steps, tuple(rows))


def regions(run: Run, note: Callable[[str], None]) -> Iterable[Region]:
    """Where the targets of a run's penalties and initialisation lie; nothing for what has no place in the plane."""
    try:
        aims = [(term.name, "penalty", term.penalty.outline()) for term in build_terms(run.penalties)]
        if run.init is not None:
            aims.append((run.init, "initialisation", build_target(run.init).outline()))
    except ConfigurationError as error:
        note(f"no target is drawn: {error}")
        return
    for text, role, outline in aims:
        if outline.areas or outline.curves or outline.points:
            yield region(text, role, outline)


def region(text: str, role: str, outline: Outline) -> Region:
    """An outline in the plane, and its extent in moduli."""
    kinds = (outline.areas, outline.curves, outline.points)
    moduli = torch.cat([log_modulus for paths in kinds for log_modulus, _ in paths])
    drawn = (tuple(from_polar(*path).numpy() for path in paths) for paths in kinds)
    return Region(text, role, float(moduli.min().exp()), float(moduli.max().exp()), *drawn)
