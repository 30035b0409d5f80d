"""Penalties: from what an estimator gives to a loss."""

from specreg.penalties.base import Penalty
from specreg.penalties.law import Band, PerHead, PhaseDistance, TimescaleBand, TimescaleDistance

__all__ = ["Band", "Penalty", "PerHead", "PhaseDistance", "TimescaleBand", "TimescaleDistance"]
