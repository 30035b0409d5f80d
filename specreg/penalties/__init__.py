"""Penalties: from what an estimator gives to a loss."""

from specreg.penalties.base import Penalty
from specreg.penalties.condition import ClippedCondition, InverseCondition
from specreg.penalties.law import Band, PerHead, PhaseDistance, TimescaleBand, TimescaleCoverage, TimescaleDistance
from specreg.penalties.matrices import DensityBand, DensityDistance, HenriciDeparture, LyapunovDistance, Normality
from specreg.penalties.memory import InfluenceDistance, MemoryBand
from specreg.penalties.plane import EnergyDistance, Sinkhorn, SlicedWasserstein, Spread

__all__ = [
    "Band",
    "ClippedCondition",
    "DensityBand",
    "DensityDistance",
    "EnergyDistance",
    "HenriciDeparture",
    "InfluenceDistance",
    "InverseCondition",
    "LyapunovDistance",
    "MemoryBand",
    "Normality",
    "Penalty",
    "PerHead",
    "PhaseDistance",
    "Sinkhorn",
    "SlicedWasserstein",
    "Spread",
    "TimescaleBand",
    "TimescaleCoverage",
    "TimescaleDistance",
]
